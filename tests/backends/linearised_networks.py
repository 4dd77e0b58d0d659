"""Networks of every kind to linearise, and plain autograd to hold them against."""

import copy
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint


class Plain(nn.Module):
    """Two layers and what is between them: a function of this module and the first one's output."""

    def __init__(self, between=lambda self, h: torch.tanh(h)):
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)
        self.register_buffer("seen", torch.zeros(5), persistent=False)
        self.between = between

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))


def through(layer):
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(5, 2))


def shared_module():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(3, 2))


def tied():
    network = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    network[2].weight = network[0].weight
    return network


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class ScaledDotProduct(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 12)

    def forward(self, x):
        q, k, v = (part.unsqueeze(1) for part in self.layer(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v)


def encoder():
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(12, 2)).eval()


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = kind(4, 3, batch_first=True, bidirectional=True)
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.layer(x)[0][:, -1])


class Warped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 6)

    def forward(self, x):
        grid = F.affine_grid(self.layer(x.flatten(1)).view(-1, 2, 3), x.shape, align_corners=False)
        return F.grid_sample(x, grid, align_corners=False).flatten(1)


class OfAllParameters(nn.Module):
    """A network that asks for its own parameters, each of which must be there once."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.layer.register_parameter("again", self.layer.weight)

    def forward(self, x):
        penalty = sum(p.square().sum() for p in self.parameters())
        return self.layer(x.to(next(self.parameters()).dtype)) + penalty


def pruned():
    network = through(nn.Linear(3, 5))
    prune.l1_unstructured(network[0], "weight", 0.4)
    return network


def old_norm(wrap):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch has a newer one
        return through(wrap(nn.Linear(3, 5)))


def called(network, x=None):
    network(torch.randn(2, 3) if x is None else x)
    return network


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


def relative_to_mean(self, h):
    with torch.no_grad():
        mean = h.abs().mean(1, keepdim=True)
    return torch.tanh(h / mean)


def reversed_gradient(self, h):
    if h.requires_grad:
        h.register_hook(lambda g: -g)
    return torch.tanh(h)


def moving_average(self, h):
    self.seen.mul_(0.5).add_(0.5 * h.detach().mean(0))
    return torch.tanh(h - self.seen)


def counting(self, h):
    self.calls = getattr(self, "calls", 0) + 1
    return torch.tanh(h * self.calls)


def in_place(self, h):
    h[:, 1:] += h[:, :-1].clone()
    return h.tanh_()


def checkpointed(self, h):
    return checkpoint(lambda h: torch.tanh(h) * h, h, use_reentrant=False)


def checkpointed_layers():
    class Checkpointed(Plain):
        def forward(self, x):
            layers = nn.Sequential(self.first, nn.Tanh(), self.last)
            return checkpoint(layers, x, use_reentrant=False)

    return Checkpointed()


def sequences():
    return torch.randn(2, 3, 4)


def images():
    return torch.randn(2, 1, 4, 4)


def samples():
    return torch.randn(3, 3)


def indices():
    return torch.tensor([[0, 3], [1, 1]])


def embedded(**options):
    return nn.Sequential(nn.Embedding(4, 3, **options), nn.Flatten(), nn.Linear(6, 2))


FORWARD = {
    "a module used twice": (shared_module, samples),
    "tied weights": (tied, samples),
    "attention": (lambda: Attention().eval(), sequences),
    "scaled dot product": (ScaledDotProduct, sequences),
    "transformer encoder": (encoder, sequences),
    "LSTM": (lambda: Recurrent(nn.LSTM), sequences),
    "GRU": (lambda: Recurrent(nn.GRU), sequences),
    "own parameters": (OfAllParameters, samples),
    "pruned": (pruned, samples),
    "pruned, called": (lambda: called(pruned()), samples),
    "orthogonal": (lambda: through(parametrizations.orthogonal(nn.Linear(3, 5))), samples),
    "spectral norm, eval": (
        lambda: through(parametrizations.spectral_norm(nn.Linear(3, 5))).eval(),
        samples,
    ),
    "in place": (lambda: Plain(in_place), samples),
    "a counter": (lambda: Plain(counting), samples),
    "embedding": (embedded, indices),
    "sparse embedding": (lambda: embedded(sparse=True), indices),
    "renormalised embedding": (lambda: embedded(max_norm=0.5), indices),
}


BACKWARD = {
    "weight norm": (lambda: through(parametrizations.weight_norm(nn.Linear(3, 5))), samples),
    "old weight norm": (lambda: old_norm(nn.utils.weight_norm), samples),
    "old weight norm, called": (lambda: called(old_norm(nn.utils.weight_norm)), samples),
    "spectral norm": (lambda: through(parametrizations.spectral_norm(nn.Linear(3, 5))), samples),
    "old spectral norm": (lambda: old_norm(nn.utils.spectral_norm), samples),
    "old spectral norm, called": (lambda: called(old_norm(nn.utils.spectral_norm)), samples),
    "checkpoint": (lambda: Plain(checkpointed), samples),
    "checkpoint of layers": (checkpointed_layers, samples),
    "hardsigmoid": (lambda: Plain(lambda self, h: F.hardsigmoid(3 * h)), samples),
    "hardsigmoid in place": (lambda: Plain(lambda self, h: F.hardsigmoid(3 * h, True)), samples),
    "grid sample": (Warped, images),
    "no_grad inside": (lambda: Plain(relative_to_mean), samples),
    "a hook on a gradient": (lambda: Plain(reversed_gradient), samples),
    "a gradient of its own": (lambda: Plain(lambda self, h: Rounded.apply(3 * h)), samples),
}


NETWORKS = FORWARD | BACKWARD | {"a moving average": (lambda: Plain(moving_average), samples)}


def dense(t):
    return t.to_dense() if t.is_sparse else t


def plain_jacobian(network, x):
    """The outputs and J, (outputs, parameters), of a network at its first call, row by row."""
    network = copy.deepcopy(network) if all(p.is_leaf for p in held(network)) else network
    trained = [p for p in network.parameters() if p.requires_grad]
    y = network(x)
    rows = []
    for value in y.flatten():
        row = torch.autograd.grad(value, trained, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([dense(g).flatten() for g in row]))
    return y.detach(), torch.stack(rows)


def held(network):
    return [
        t for m in network.modules() for t in m.__dict__.values() if isinstance(t, torch.Tensor)
    ]


def moved(linear):
    """Moves θ, and gives the way it went."""
    by = [torch.randn_like(p) for p in linear.parameters()]
    with torch.no_grad():
        for p, d in zip(linear.parameters(), by, strict=True):
            p.add_(d)
    return torch.cat([d.flatten() for d in by])


def close(found, expected, tolerance=1e-12):
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)
