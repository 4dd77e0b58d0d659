"""The tangent kernel by the naive loop: the Jacobian sample by sample, output by output."""

import torch
from lnsim_torch import empirical_ntk
from torch import nn

TOLERANCE = 1e-12


def jacobian(network, x):
    """(N, C, P), one sample and one output at a time."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    rows = []
    for n in range(len(x)):
        output = network(x[n : n + 1])[0]
        for value in output:
            found = torch.autograd.grad(
                value, parameters, retain_graph=True, materialize_grads=True
            )
            rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows).view(len(x), -1, rows[0].numel())


def expected(network, x, x2=None, outputs="full"):
    mine = jacobian(network, x)
    theirs = mine if x2 is None else jacobian(network, x2)
    full = torch.einsum("ncp,mdp->nmcd", mine, theirs)
    if outputs == "full":
        return full
    return full.diagonal(dim1=2, dim2=3).sum(-1) / (full.shape[2] if outputs == "mean" else 1)


def assert_exact(network, x, x2=None, tolerance=TOLERANCE, **options):
    for outputs in ("full", "mean", "sum"):
        found = empirical_ntk(network, x, x2, outputs=outputs, **options)
        right = expected(network, x, x2, outputs)
        assert found.shape == right.shape
        assert (found - right).abs().max() <= tolerance * right.abs().max()


def randomise(network):
    """Give every norm statistics, scales and shifts of its own."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._NormBase):
            for p in module.parameters():
                nn.init.normal_(p)
    return network
