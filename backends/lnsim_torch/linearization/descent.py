"""The linearised network, its exact training curve on squared loss, and measures of a kernel.

The first-order model of a network around its parameters θ₀,

    f_lin(x; θ) = f(x; θ₀) + J(x) (θ − θ₀),        J(x) = ∂f/∂θ(x; θ₀),

is affine in θ. `linearize` returns it as a module to be trained; `mse_predictor` predicts the
outputs after full-batch gradient descent on it, without training. With the loss
½ mean (f − y)² over all N·C entries the residual follows

    gradient flow       r(t) = exp(−a t) r(0),
    gradient descent    r(t) = (1 − a)^t r(0),      a = lr Θ / (N·C),

t in steps, Θ the kernel on the training set. In Θ's eigenbasis these are scalars: one
eigendecomposition serves all times. On other samples

    f_test(t) = f_test(0) − Θ_test w(t),   w(t) = (1 − e^{−a t})/Θ r(0)  or  (1 − (1 − a)^t)/Θ r(0),

whose limit in a direction with eigenvalue λ → 0 is lr·t/(N·C): Θ is not inverted. At t = ∞ such
directions keep their initial values, in training and test.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lnsim_torch.linearization.expansion import Mode, exact_mode, forward_mode, own_saved_tensors
from lnsim_torch.linearization.frozen import FrozenCall, frozen_copy
from lnsim_torch.ntk.kernel import refuse_random_layers
from lnsim_torch.untouched import refused_randomness

with warnings.catch_warnings():
    # jvp imports this on its first use, which warns in some releases of torch.
    warnings.simplefilter("ignore")
    import torch._decomp.decompositions_for_jvp


def linearize(network: nn.Module) -> nn.Module:
    """The first-order model of `network` around its present parameters, as a module.

    The module takes the network's arguments and returns f(x; θ₀) + J(x)(θ − θ₀) for each output,
    with the J of plain autograd. Its parameters θ are the network's, in order, and start at θ₀;
    those with requires_grad=False stay fixed. Any torch optimiser trains it. The network is copied,
    and its layers keep their mode: changes that a call makes to buffers are undone after it, so
    that every call sees the same network.

    The first call, and the first after a move to another device or precision, takes several times
    as long as others: it selects an exact mode of differentiation (expansion.py).

    Raises ValueError for dropout or batch norm in training mode, for a ScriptModule with
    parameters, and if no parameter requires grad. A call of the module raises ValueError if the
    network draws random numbers. The first call also does if torch cannot differentiate an
    operation, if a parameter is used from a list or closure, or if an object hides an output.
    """
    return LinearizedNetwork(network)


class LinearizedNetwork(nn.Module):
    """See `linearize`."""

    def __init__(self, network: nn.Module):
        super().__init__()
        refuse_random_layers(network)
        trained = [p for p in network.parameters() if p.requires_grad]
        if not trained:
            raise ValueError(f"{type(network).__name__} has no parameter that requires grad")
        with torch.inference_mode(False):
            self.theta = nn.ParameterList(p.detach().clone() for p in trained)
            self.origin, self._frozen = frozen_copy(network, trained)
        self._mode: Mode | None = None

    def train(self, mode: bool = True) -> "LinearizedNetwork":
        """Set the flag of this module only: the linearised function does not depend on it."""
        self.training = mode
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> "LinearizedNetwork":
        self._mode = None  # another device or precision uses other operations
        return super()._apply(fn, recurse)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling():  # the compiler cannot trace any of this
            return torch.compiler.disable(self.forward)(*inputs, **named)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self.forward(*inputs, **named)
        call = FrozenCall(self._frozen, (inputs, named))
        mode = self._mode or self._select_mode(call)
        theta_0 = self._frozen.start()
        v = [theta - start for theta, start in zip(self.theta, theta_0, strict=True)]
        with refused_randomness(theta_0[0].device):
            values, changes = mode(call, theta_0, v, call.tensors)
        return call.result([y + d for y, d in zip(values, changes, strict=True)])

    def _select_mode(self, call: FrozenCall) -> Mode:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return forward_mode  # inside vmap, grad or jvp, where values cannot be compared
        with own_saved_tensors():
            self._frozen.inspect(call)
            theta_0, name = self._frozen.start(), type(self.origin).__name__
            self._mode = exact_mode(
                call, theta_0, call.tensors, name, self._frozen.has_half_precision
            )
        return self._mode


Times = float | Sequence[float] | Tensor


class MSEPredictor:
    """Function values of the linearised model under full-batch training; see `mse_predictor`."""

    def __init__(
        self,
        ntk_train: Tensor,
        f0: Tensor,
        y: Tensor,
        lr: float,
        ntk_test: Tensor | None = None,
        f0_test: Tensor | None = None,
    ):
        _check_predictor(ntk_train, f0, y, lr, ntk_test, f0_test)
        self._full = ntk_train.ndim == 4
        self._y = y.double()
        kernel = _matrix(ntk_train.double())
        eigenvalues, self._vectors = torch.linalg.eigh((kernel + kernel.T) / 2)
        # A kernel has no negative eigenvalue: values below rounding are zero.
        floor = eigenvalues.abs().max() * len(eigenvalues) * torch.finfo(ntk_train.dtype).eps
        self._rate = lr / f0.numel()
        self._decay = self._rate * torch.where(eigenvalues > floor, eigenvalues, 0.0)
        self._residual = self._vectors.T @ self._columns(f0.double() - self._y)
        self._f0_test = None if f0_test is None else f0_test.double()
        if ntk_test is not None:
            self._test = _matrix(ntk_test.double()) @ self._vectors

    def train(self, times: Times, *, discrete: bool = False) -> Tensor:
        """Training outputs at `times` (steps): (N, C), or (T, N, C) for T times; float64.

        discrete: gradient descent with steps of lr, at whole times; otherwise gradient flow. A time
        may be infinite. Raises ValueError for negative times and, if discrete, for fractional times
        and for infinite times at an lr at which gradient descent does not converge.
        """
        steps = self._steps(times, discrete)
        remaining, _ = self._remaining_and_decayed(steps, discrete)
        residual = self._vectors @ (remaining[..., None] * self._residual)
        return self._y + residual.reshape(*steps.shape, *self._y.shape)

    def test(self, times: Times, *, discrete: bool = False) -> Tensor:
        """Test outputs, like `train`. Raises ValueError if the test kernel was not given."""
        if self._f0_test is None:
            raise ValueError("test outputs need ntk_test and f0_test")
        steps = self._steps(times, discrete)
        _, decayed = self._remaining_and_decayed(steps, discrete)
        decays = self._decay > 0
        no_decay = torch.where(steps.isinf(), 0.0, steps)[..., None]
        ratio = torch.where(decays, decayed / torch.where(decays, self._decay, 1.0), no_decay)
        weight = self._rate * ratio
        change = self._test @ (weight[..., None] * self._residual)
        return self._f0_test - change.reshape(*steps.shape, *self._f0_test.shape)

    def _remaining_and_decayed(self, steps: Tensor, discrete: bool) -> tuple[Tensor, Tensor]:
        """The share r of the residual that is left in each eigendirection, and 1 − r.

        Both (T, directions).
        """
        a = self._decay
        log_factor = torch.where(a < 1, (-a).log1p(), (1 - a).abs().log()) if discrete else -a
        exponent = steps[..., None] * log_factor
        # 0 · ∞ is 0: a direction without decay stays, and so do all at time 0.
        exponent = torch.where((a > 0) & (steps[..., None] > 0), exponent, 0.0)
        negative = (a > 1) & (steps[..., None] % 2 == 1) & discrete
        remaining = torch.where(negative, -exponent.exp(), exponent.exp())
        return remaining, torch.where(negative, 1 - remaining, -exponent.expm1())

    def _steps(self, times: Times, discrete: bool) -> Tensor:
        steps = torch.as_tensor(times, dtype=torch.float64, device=self._decay.device)
        if not (steps >= 0).all():
            raise ValueError("times must be non-negative")
        if discrete and not (steps.isinf() | (steps == steps.round())).all():
            raise ValueError("times must be whole numbers of steps for gradient descent")
        highest = float(self._decay.max())
        if discrete and steps.isinf().any() and highest >= 2:
            raise ValueError(
                f"gradient descent has no limit: lr is {highest / 2:.3g} times the largest"
                " stable lr"
            )
        return steps

    def _columns(self, values: Tensor) -> Tensor:
        """(N, C) as columns that the kernel acts on: one for each output, or one of all entries."""
        return values.reshape(-1, 1) if self._full else values


def mse_predictor(
    ntk_train: Tensor,
    f0: Tensor,
    y: Tensor,
    lr: float,
    ntk_test: Tensor | None = None,
    f0_test: Tensor | None = None,
) -> MSEPredictor:
    """Predict full-batch training on the loss ½ mean (f − y)² from the initial kernel.

    ntk_train: kernel (N, N) shared by all outputs, or (N, N, C, C). f0, y: initial outputs and
    targets, (N, C). lr: learning rate. ntk_test: kernel (N_test, N[, C, C]) between the test and
    the training samples; f0_test: (N_test, C); both or neither.

    The result's `train(times, discrete=False)` and `test(times, discrete=False)` return the outputs
    at any times, counted in steps, in float64. Raises ValueError for shapes that do not match and
    for lr ≤ 0.

    Source: Lee et al. 2019, "Wide neural networks of any depth evolve as linear models".
    """
    return MSEPredictor(ntk_train, f0, y, lr, ntk_test, f0_test)


def kernel_change(ntk: Tensor, ntk_start: Tensor) -> Tensor:
    """Relative distance ‖K − K₀‖_F / ‖K₀‖_F of two kernels of one shape, a scalar."""
    if ntk.shape != ntk_start.shape:
        raise ValueError(f"kernels differ in shape: {tuple(ntk.shape)}, {tuple(ntk_start.shape)}")
    return (ntk - ntk_start).norm() / ntk_start.norm()


def label_alignment(ntk: Tensor, y: Tensor) -> Tensor:
    """Centred alignment of kernel and labels, ⟨K_c, Y_c Y_cᵀ⟩ / (‖K_c‖ ‖Y_c Y_cᵀ‖), a scalar.

    ntk: (N, N), or (N, N, C, C), which is averaged over its outputs. y: targets (N, C). One is a
    kernel that sees nothing but the labels. nan if all labels are equal.

    Source: Cortes, Mohri, Rostamizadeh 2012; as a similarity, CKA, Kornblith et al. 2019.
    """
    if ntk.ndim == 4:
        ntk = ntk.diagonal(dim1=2, dim2=3).mean(-1)
    if ntk.shape != (len(y), len(y)) or y.ndim != 2:
        raise ValueError(f"kernel {tuple(ntk.shape)} does not match labels {tuple(y.shape)}")
    centred = y.to(ntk.dtype) - y.to(ntk.dtype).mean(0)
    labels = centred @ centred.T
    kernel = ntk - ntk.mean(0) - ntk.mean(1, keepdim=True) + ntk.mean()
    return (kernel * labels).sum() / (kernel.norm() * labels.norm())


def effective_rank(ntk: Tensor) -> Tensor:
    """exp of the entropy of the kernel's normalised spectrum, between 1 and its size, a scalar.

    ntk: (N, N) or (N, N, C, C). Source: Roy, Vetterli 2007.
    """
    matrix = _matrix(ntk)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"kernel must be square, got {tuple(ntk.shape)}")
    spectrum = torch.linalg.eigvalsh(matrix).clamp(min=0)
    return torch.special.entr(spectrum / spectrum.sum()).sum().exp()


def _matrix(kernel: Tensor) -> Tensor:
    """(N, M, C, C) as (N·C, M·C), with the sample as the slower index; (N, M) unchanged."""
    if kernel.ndim == 2:
        return kernel
    n, m, c, _ = kernel.shape
    return kernel.transpose(1, 2).reshape(n * c, m * c)


def _check_predictor(
    ntk_train: Tensor,
    f0: Tensor,
    y: Tensor,
    lr: float,
    ntk_test: Tensor | None,
    f0_test: Tensor | None,
) -> None:
    if f0.ndim != 2 or y.shape != f0.shape:
        raise ValueError(f"f0 and y must be (N, C), got {tuple(f0.shape)} and {tuple(y.shape)}")
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    n, c = f0.shape
    outputs = (c, c) if ntk_train.ndim == 4 else ()
    if ntk_train.shape != (n, n, *outputs):
        raise ValueError(
            f"ntk_train must be {(n, n)} or {(n, n, c, c)}, got {tuple(ntk_train.shape)}"
        )
    if (ntk_test is None) != (f0_test is None):
        raise ValueError("ntk_test and f0_test must be given together")
    if ntk_test is not None and f0_test is not None:
        if f0_test.ndim != 2 or f0_test.shape[1] != c:
            raise ValueError(f"f0_test must be (N_test, {c}), got {tuple(f0_test.shape)}")
        expected = (len(f0_test), n, *outputs)
        if ntk_test.shape != expected:
            raise ValueError(f"ntk_test must be {expected}, got {tuple(ntk_test.shape)}")
