"""Networks and losses whose curvature is checked, and the matrix that torch.func forms of it.

The Hessian of the mean loss L of all samples at once is formed by torch.func.hessian.  The
Gauss-Newton matrix is sum_i J_i^T B_i J_i, with J_i = df(x_i)/dtheta from torch.func.jacrev and
B_i = d^2L/df_i^2 from the Hessian of L by the outputs.
"""

import torch
from lnsim_torch.networks import Erf
from lnsim_torch.training.evaluation import summed_loss
from torch import nn
from torch.func import functional_call, hessian, jacrev

SAMPLES, CLASSES = 7, 3


def squared(f, labels):
    return summed_loss(f, labels, "squared") / len(labels)


LOSSES = {"squared": squared, "cross_entropy": nn.CrossEntropyLoss()}


class Shared(nn.Module):
    """One layer, used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(torch.tanh(self.first(torch.tanh(self.first(x)))))


def frozen():
    network = nn.Sequential(nn.Linear(4, 5), Erf(), nn.Linear(5, CLASSES))
    network[0].bias.requires_grad_(False)
    return network


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(3, CLASSES),
    )  # fmt: skip


NETWORKS = {
    "erf": lambda: nn.Sequential(nn.Linear(4, 5), Erf(), nn.Linear(5, CLASSES)),
    "relu": lambda: nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True), nn.Linear(5, CLASSES)
    ),
    "conv": conv,
    "shared": Shared,
    "frozen": frozen,
}


def case(name, samples=SAMPLES):
    """A network whose running statistics are of no batch, samples and labels."""
    torch.manual_seed(1)
    network = NETWORKS[name]()
    for module in network.modules():
        if hasattr(module, "running_var"):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    shape = (2, 5, 5) if name == "conv" else (4,)
    return network, torch.randn(samples, *shape), torch.arange(samples) % CLASSES


def dense(network, x, y, loss, matrix):
    """The matrix (P, P), formed by torch.func from the loss of all samples at once."""
    network = network.eval()
    trained = {n: p.detach() for n, p in network.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in trained.values()]

    def outputs(theta):
        parts = zip(trained.items(), theta.split(sizes), strict=True)
        return functional_call(network, {n: t.view_as(p) for (n, p), t in parts}, (x,))

    theta = torch.cat([p.flatten() for p in trained.values()])
    if matrix == "hessian":
        return hessian(lambda t: loss(outputs(t), y))(theta)
    J = jacrev(outputs)(theta).flatten(0, 1)
    f = outputs(theta)
    inner = hessian(lambda f: loss(f.view(len(x), -1), y))(f.flatten())
    return J.T @ inner @ J
