"""The whole empirical tangent kernel of two small networks, computed in several ways.

A contender takes the network and its inputs and returns Theta : (N, N, C, C) as a NumPy array.
torch.func has two ways: the product of all Jacobians, and kernel-vector products, J_m (J_n^T e_c)
for every pair of samples and every output, without a Jacobian.  neural-tangents has both, as modes
1 and 2, and structured derivatives, mode 3; it gets the same weights in JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from lnsim_torch import empirical_ntk
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

Kernel = Callable[[nn.Module, Tensor], NDArray[np.float64]]

SAMPLES, CLASSES, SEED = 16, 10, 0
OURS = "lnsim_torch"
ROWS_AT_ONCE = 2
"""Rows of the kernel in one batch of kernel-vector products: all rows would need gigabytes."""


class ResNet(nn.Module):
    """A 3x3 stem, three residual blocks of two 3x3 convolutions, mean over pixels, dense layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        pairs = [[nn.Conv2d(channels, channels, 3, padding=1) for _ in "ab"] for _ in range(3)]
        self.blocks = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second in map(nn.Module.children, self.blocks):
            x = x + second(torch.relu(first(torch.relu(x))))
        return self.head(torch.relu(x).mean(dim=(2, 3)))


def networks(device: str) -> dict[str, tuple[nn.Module, Tensor]]:
    """The networks by name, in float64, each with its inputs."""
    torch.manual_seed(SEED)
    layers = [nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    mlp = nn.Sequential(*layers, nn.Linear(128, CLASSES))
    shapes = {"MLP": (mlp, (256,)), "ResNet": (ResNet(8), (3, 12, 12))}
    return {
        name: (
            network.double().to(device),
            torch.randn(SAMPLES, *shape, dtype=torch.float64).to(device),
        )
        for name, (network, shape) in shapes.items()
    }


def _of_one(network: nn.Module) -> tuple[dict[str, Tensor], Callable[..., Tensor]]:
    """The parameters, and the function (parameters, one sample) -> (C,)."""
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    return parameters, lambda values, x: functional_call(network, values, (x[None],))[0]


def lnsim_kernel(network: nn.Module, x: Tensor) -> NDArray[np.float64]:
    """The kernel of lnsim."""
    return empirical_ntk(network, x).cpu().numpy()


def jacobian_contraction(network: nn.Module, x: Tensor) -> NDArray[np.float64]:
    """torch.func: the Jacobians of all samples, multiplied."""
    parameters, f = _of_one(network)
    jacobians = vmap(jacrev(f), (None, 0))(parameters, x)
    rows = torch.cat([part.flatten(2) for part in jacobians.values()], dim=2)
    return torch.einsum("ncp,mdp->nmcd", rows, rows).cpu().numpy()


def backward_loop(network: nn.Module, x: Tensor) -> NDArray[np.float64]:
    """torch.autograd: a backward pass for every sample and output, the rows multiplied."""
    parameters = list(network.parameters())
    rows = []
    for sample in x.split(1):
        output = network(sample)[0]
        for value in output:
            gradients = torch.autograd.grad(
                value, parameters, retain_graph=True, materialize_grads=True
            )
            rows.append(torch.cat([g.flatten() for g in gradients]))
    jacobian = torch.stack(rows)
    kernel = (jacobian @ jacobian.T).view(len(x), -1, len(x), len(rows) // len(x))
    return kernel.transpose(1, 2).cpu().numpy()


def ntk_vector_products(network: nn.Module, x: Tensor) -> NDArray[np.float64]:
    """torch.func: a pull-back and a push-forward for every pair of samples and every output."""
    parameters, f = _of_one(network)
    outputs = torch.eye(CLASSES, dtype=x.dtype, device=x.device)

    def pair(one: Tensor, other: Tensor) -> Tensor:
        pull_back = vjp(lambda values: f(values, one), parameters)[1]

        def product(output: Tensor) -> Tensor:
            moves = pull_back(output)
            return jvp(lambda values: f(values, other), (parameters,), moves)[1]

        return vmap(product)(outputs)

    def row(one: Tensor) -> Tensor:
        return vmap(pair, (None, 0))(one, x)

    return vmap(row, chunk_size=ROWS_AT_ONCE)(x).cpu().numpy()


def neural_tangents(device: str) -> dict[str, Kernel]:
    """The three modes of neural-tangents, compiled.  Raises ImportError if it is not installed."""
    import jax

    nt = import_module("neural_tangents")
    jax.config.update("jax_enable_x64", True)
    place = jax.devices(device)[0]

    def kernel(mode: int) -> Kernel:
        compiled: dict[type[nn.Module], Any] = {
            kind: jax.jit(
                nt.empirical_ntk_fn(
                    apply, trace_axes=(), vmap_axes=0, implementation=nt.NtkImplementation(mode)
                )
            )
            for kind, apply in ((ResNet, _jax_resnet), (nn.Sequential, _jax_mlp))
        }

        def work(network: nn.Module, x: Tensor) -> NDArray[np.float64]:
            weights = {name: value.cpu().numpy() for name, value in network.state_dict().items()}
            weights, inputs = jax.device_put((weights, x.cpu().numpy()), place)
            return np.asarray(compiled[type(network)](inputs, None, weights))

        return work

    return {f"neural-tangents, {mode}": kernel(mode) for mode in (1, 2, 3)}


def contenders(device: str) -> tuple[dict[str, Kernel], dict[str, str]]:
    """The available kernels by name, and the reasons why others are missing, by name."""
    kernels: dict[str, Kernel] = {
        OURS: lnsim_kernel,
        "torch.func, Jacobians": jacobian_contraction,
        "torch.func, products": ntk_vector_products,
        "backward loop": backward_loop,
    }
    missing = {}
    try:
        tangents = neural_tangents(device)
    except ImportError:
        tangents, missing["neural-tangents"] = {}, "not installed, or does not work with this JAX"
    except RuntimeError:
        tangents, missing["neural-tangents"] = {}, f"sees no {device}"
    network, x = networks(device)["MLP"]
    for name, kernel in tangents.items():
        try:
            kernel(network, x[:1])
        except AttributeError:  # it uses internals of JAX that later releases lack
            missing[name] = "does not work with this JAX"
        else:
            kernels[name] = kernel
    return kernels, missing


def _jax_mlp(weights: dict[str, Any], x: Any) -> Any:
    """The MLP of `networks` in JAX."""
    import jax

    for layer in ("0", "2"):
        x = jax.nn.relu(x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"])
    return x @ weights["4.weight"].T + weights["4.bias"]


def _jax_resnet(weights: dict[str, Any], x: Any) -> Any:
    """`ResNet` in JAX."""
    import jax

    def convolved(layer: str, x: Any) -> Any:
        kernel, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
        return jax.lax.conv(x, kernel, (1, 1), "SAME") + bias[:, None, None]

    x = convolved("stem", x)
    for block in range(3):
        inner = jax.nn.relu(convolved(f"blocks.{block}.0", jax.nn.relu(x)))
        x = x + convolved(f"blocks.{block}.1", inner)
    return jax.nn.relu(x).mean(axis=(2, 3)) @ weights["head.weight"].T + weights["head.bias"]
