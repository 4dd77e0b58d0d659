"""The recorded graph of a network: its layer calls, the uses of each parameter, the bottlenecks.

Recording wraps the `forward` of every leaf module that has a rule. The wrapper saves the input of
forward, and gives its output a node of its own in the autograd graph, the *tap*. The gradient at
the tap is the gradient at forward's output, whatever is done to that later (by hooks, in place, or
through a view of it).

The graph, walked once from the output, then answers three questions.

* Is a parameter covered by a rule? It is if exactly one edge of the whole graph leads to it, and
  exactly one tapped call claims it. A parameter that is tied, that belongs to a module called
  twice, or that is used outside its module is not, and goes to the per-sample fallback.
* Which parameters outside of these modules meet the samples in one sum, product or expansion (a
  class token, an embedding of positions, the scale of a residual branch)? The gradient at the
  operation's result, summed over the positions that share an entry, is the parameter's gradient for
  every sample; so the operation counts as a call of a layer (`Use`).
* Where can a backward pass be interrupted? At a *bottleneck*: a node that every path from the
  output to the taps below it goes through (the residual stream between two blocks, say). The
  gradients of all C outputs are taken down to one bottleneck, the layers above it are contracted
  and freed, and the passes continue from there. No arithmetic is repeated, and only one part of
  the network has its C gradients in memory at a time.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge, saved_tensors_hooks

from lnsim_torch.untouched import Untouched

NAMES = ("weight", "bias")


@dataclass(eq=False)
class LayerCall:
    """One call of a leaf module: its input (n, …), its output, and the output's tap."""

    module: nn.Module
    input: Tensor
    edge: Any  # a GradientEdge; None after `Graph.free_graph`
    output: Tensor | None  # in autograd's graph; None after `Graph.free_outputs`
    output_shape: torch.Size
    versions: tuple[int, int]  # of input and output; in-place operations raise them

    @property
    def use(self) -> "Use | None":
        """The use of a parameter that this call stands for; None if it is a module's call."""
        return self.module if isinstance(self.module, Use) else None

    def is_of_same_layer(self, other: "LayerCall") -> bool:
        """Whether both calls are of one module, or uses of one parameter by the same operation."""
        if self.use is None or other.use is None:
            return self.module is other.module
        return self.use.weight is other.use.weight and self.use.operation == other.use.operation

    @property
    def input_intact(self) -> bool:
        """Whether the input has not been changed in place since the call."""
        return self.input._version == self.versions[0]

    def intact_output(self) -> Tensor | None:
        """The output, or None if it has been changed in place or freed since the call."""
        intact = self.output is not None and self.output._version == self.versions[1]
        return self.output if intact else None


class Use(nn.Module):
    """One operation, result = x + alpha q, x q or expand(q), of which q is a parameter reshaped.

    weight: the parameter. shape: of q, with leading ones to as many axes as the result. factor: x
    of a product, alpha of a sum.
    """

    def __init__(
        self, weight: nn.Parameter, operation: str, shape: tuple[int, ...], factor: Tensor | float
    ):
        super().__init__()
        self.weight, self.operation, self.shape = weight, operation, shape
        self.factor = factor


@dataclass(eq=False)
class Graph:
    """A recorded forward pass: input, output (n, C), its calls, and the nodes, inputs before users.

    calls: the tapped calls that the output depends on, in order, and then the uses of parameters.
    taps: all calls, in order; None stands for a call that could not be tapped.
    """

    input: Tensor
    output: Tensor
    calls: list[LayerCall]
    nodes: list[Node]
    taps: list[LayerCall | None]

    def free_graph(self) -> None:
        """Drop autograd's graph and the tensors saved for it."""
        self.free_outputs()
        self.output = self.output.detach()
        self.nodes.clear()
        for call in (*self.calls, *self.taps):
            if call is not None:
                call.edge = None

    def free_outputs(self) -> None:
        """Drop the outputs of the calls."""
        for call in self.taps:
            if call is not None:
                call.output = None


class _Tap(torch.autograd.Function):
    """The same memory with the same strides, but no view for autograd: an in-place operation on a
    view would rewrite the graph and leave the tap outside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


Forward = Callable[..., Any]


def record(network: Untouched, x: Tensor, modules: Sequence[nn.Module]) -> Graph:
    """Run `network` on `x` and record every call of the leaf modules `modules`."""
    taps: list[LayerCall | None] = []

    def tap(module: nn.Module, forward: Forward, args: tuple, kwargs: dict[str, Any]) -> Any:
        module_input, output = _input_of(args, kwargs), forward(*args, **kwargs)
        if not _can_be_tapped(module_input, output):
            taps.append(None)
            return output
        output = _Tap.apply(output)
        # The output keeps the graph alive; `get_gradient_edge` would add a node for that.
        edge = GradientEdge(output.grad_fn, output.output_nr)
        versions = module_input._version, output._version
        taps.append(LayerCall(module, module_input, edge, output, output.shape, versions))
        return output

    with _wrapped(modules, tap):
        output = network(x)
    _check_output(output, len(x))
    nodes = inputs_first(output.grad_fn)
    if any(node.name() == "CheckpointFunctionBackward" for node in nodes):
        raise ValueError(
            "torch.utils.checkpoint with use_reentrant=True hides parameters from torch.autograd."
            "grad; call it with use_reentrant=False"
        )
    for call in taps:
        if call is not None:
            call.input = call.input.detach()  # here, where no dispatch mode makes it slow
    reached = set(nodes)
    calls = [call for call in taps if call is not None and call.edge.node in reached]
    return Graph(x, output, [*calls, *_uses(nodes)], nodes, taps)


# Nodes of operations that only reshape: the gradient before and after has the same entries.
_RESHAPES = {
    f"{name}Backward{i}"
    for name in ("View", "ReshapeAlias", "Unsqueeze", "Squeeze", "Permute", "Transpose", "T")
    for i in (0, 1)
}
_OPERATIONS = {"AddBackward0", "SubBackward0", "MulBackward0", "ExpandBackward0"}
_LEAF = "torch::autograd::AccumulateGrad"


def _uses(nodes: Sequence[Node]) -> Iterator[LayerCall]:
    """The operations on a parameter and a tensor whose first axis the parameter does not have."""
    users = Counter(child for node in nodes for child, _ in node.next_functions)
    for node in nodes:
        if node.name() not in _OPERATIONS:
            continue
        for slot, (child, _) in enumerate(node.next_functions):
            leaf: Any = child
            operand: Any = None  # the metadata of q, if it is not the leaf itself
            while leaf is not None and leaf.name() in _RESHAPES and users[leaf] == 1:
                operand = operand or leaf._input_metadata[0]
                leaf = leaf.next_functions[0][0]
            if leaf is None or leaf.name() != _LEAF or users[leaf] != 1:
                continue
            use = _use(node, slot, leaf.variable, tuple((operand or leaf.variable).shape))
            if use is not None:
                yield use


def _use(node: Any, slot: int, weight: Any, shape: tuple[int, ...]) -> LayerCall | None:
    result = node._input_metadata[0]
    axes = len(result.shape)
    shape = (1,) * (axes - len(shape)) + shape
    if axes == 0 or shape[0] != 1 or weight.dtype != result.dtype or weight.is_complex():
        return None
    factor: Tensor | float = 1.0
    if node.name() == "MulBackward0":
        factor = (node._saved_other if slot == 0 else node._saved_self).detach()
    elif node.name() != "ExpandBackward0" and slot == 1:
        factor = float(node._saved_alpha)
    module = Use(weight, node.name(), shape, factor)
    empty = torch.empty(0, dtype=weight.dtype)
    return LayerCall(
        module, empty, GradientEdge(node, 0), None, torch.Size(result.shape), (empty._version, 0)
    )


def rerun(
    network: Untouched,
    x: Tensor,
    taps: Sequence[LayerCall | None],
    modules: Sequence[nn.Module],
    known_output: Callable[[LayerCall, Tensor], Tensor | None],
) -> Tensor | None:
    """Run a recorded network again, on x, reusing known outputs of its calls; return the output.

    known_output(call, input): the output of `call` on this input, or None if it must be computed;
    may raise. Returns None if the network makes other calls than the recorded ones.
    """
    remaining = iter(taps)
    same_calls = True

    def stand_in(module: nn.Module, forward: Forward, args: tuple, kwargs: dict[str, Any]) -> Any:
        nonlocal same_calls
        call = next(remaining, None)
        same_calls &= call is None or call.module is module
        if call is None or not same_calls:
            return forward(*args, **kwargs)
        output = known_output(call, _input_of(args, kwargs))
        return forward(*args, **kwargs) if output is None else output

    with _wrapped(modules, stand_in):
        output = outputs_of(network, x)
    return output if same_calls and next(remaining, taps) is taps else None


def outputs_of(network: Untouched, x: Tensor) -> Tensor:
    """The outputs (n, C), without recording.

    Autograd stays on, because some modules take a faster path without it; but its graph is not
    used, so no tensors are saved for it.
    """
    try:
        with saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing):
            output = network(x)
    except TypeError:  # the network itself differentiates, and needs the saved tensors
        output = network(x)
    _check_output(output, len(x))
    return output


@contextmanager
def _wrapped(
    modules: Sequence[nn.Module],
    wrapper: Callable[[nn.Module, Forward, tuple, dict[str, Any]], Any],
) -> Iterator[None]:
    """Send calls of `forward` through wrapper(module, forward, args, kwargs).

    Hooks would not do: global hooks run before a module's own.
    """
    for module in modules:

        def wrapped(
            *args: Any, module: nn.Module = module, forward: Forward = module.forward, **kwargs: Any
        ) -> Any:
            return wrapper(module, forward, args, kwargs)

        vars(module)["forward"] = wrapped
    try:
        yield
    finally:
        for module in modules:
            del vars(module)["forward"]


def _input_of(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["input"]


def _can_be_tapped(module_input: Tensor, output: Any) -> bool:
    if torch._C._functorch.is_functorch_wrapped_tensor(output):  # one sample of a vmap, say
        return False
    return output.requires_grad and not (module_input.is_complex() or output.is_complex())


def _check_output(output: Any, samples: int) -> None:
    is_tensor = isinstance(output, Tensor)
    if not is_tensor or output.ndim != 2 or len(output) != samples or output.shape[1] == 0:
        got = tuple(output.shape) if is_tensor else type(output).__name__
        raise ValueError(f"network output must be one tensor (N, C), N = {samples}; got {got}")
    if output.is_complex():
        raise ValueError(f"network output must be real, got {output.dtype}")
    if output.grad_fn is None:
        raise ValueError("network output depends on no parameter that requires grad")


def inputs_first(root: Any, known: Iterable[Node] = ()) -> list[Node]:
    """All nodes from `root` down to the `known` ones, each node after its inputs."""
    order: list[Node] = []
    seen = {root, *known}
    stack = [(root, iter(root.next_functions))]
    while stack:
        node, edges = stack[-1]
        for child, _ in edges:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append((child, iter(child.next_functions)))
                break
        else:
            order.append(node)
            stack.pop()
    return order


def parameter_uses(nodes: Iterable[Node]) -> Counter[Tensor]:
    """The number of edges from these nodes to each parameter."""
    children: Iterator[Any] = (child for node in nodes for child, _ in node.next_functions)
    return Counter(child.variable for child in children if child and child.name() == _LEAF)


def own_parameters(call: LayerCall, claim: tuple[bool, bool] = (True, True)) -> list[nn.Parameter]:
    """The weight and the bias of the call's module, as far as they are claimed."""
    both = (call.module._parameters.get(name) for name in NAMES)
    return [p for p, claimed in zip(both, claim, strict=True) if claimed and p is not None]


@dataclass(frozen=True)
class Bottleneck:
    """A place to interrupt the backward passes: its edges, their bytes, and the calls above it."""

    above: frozenset[int]
    edges: tuple[GradientEdge, ...] = ()
    nbytes: int = 0


def bottlenecks(graph: Graph, calls: Sequence[int]) -> list[Bottleneck]:
    """The nodes that all paths from the output to the calls below them pass, from the output down.

    Only the calls `calls` count. Of the bottlenecks with the same calls above, the one with the
    fewest bytes is returned; the last one is the bottom, with all calls above it and no edges.
    """
    position = {node: i for i, node in enumerate(graph.nodes)}
    taps = {position[graph.calls[i].edge.node]: i for i in calls}
    leading = set(taps)  # nodes from which a tap is reached
    highest_user: dict[int, int] = {}  # of each of these nodes, the highest node that uses it
    output_numbers: dict[int, set[int]] = {}  # of each of these nodes, the outputs that are used
    for i, node in enumerate(graph.nodes):
        for child, number in node.next_functions:
            j = position[child] if child else -1
            if j in leading:
                leading.add(i)
                highest_user[j] = i
                output_numbers.setdefault(j, set()).add(number)
    # Node j crosses every level from j + 1 to its highest user. If no other node crosses level
    # j + 1, it is a bottleneck.
    change = Counter(j + 1 for j in highest_user)
    change.subtract(Counter(user + 1 for user in highest_user.values()))
    crossing, single = 0, []
    for j in range(len(graph.nodes)):
        crossing += change[j + 1]
        if crossing == 1 and j in highest_user:
            single.append(j)
    smallest: dict[frozenset[int], Bottleneck] = {}
    for j in reversed(single):
        above = frozenset(i for tap, i in taps.items() if tap >= j)
        edges = tuple(GradientEdge(graph.nodes[j], number) for number in sorted(output_numbers[j]))
        bottleneck = Bottleneck(above, edges, sum(_nbytes(edge) for edge in edges))
        if above not in smallest or bottleneck.nbytes < smallest[above].nbytes:
            smallest[above] = bottleneck
    bottom = frozenset(calls)
    return [*[*smallest.values()][: -1 if bottom in smallest else None], Bottleneck(bottom)]


def _nbytes(edge: GradientEdge) -> int:
    metadata = edge.node._input_metadata[edge.output_nr]
    return torch.Size(metadata.shape).numel() * metadata.dtype.itemsize


Seeds = list[tuple[tuple[GradientEdge, ...], tuple[Tensor, ...]]]
"""For each output: the edges that its backward pass has reached, and the gradients there."""

Gradients = list[Tensor]
"""The gradients of some outputs at each call, (outputs, n, …)."""


def gradients_by_stage(
    graph: Graph,
    stages: Sequence[tuple[Sequence[int], Bottleneck]],
    outputs: range,
    at_once: int,
    weights: Tensor | None = None,
) -> Iterator[Iterable[Gradients]]:
    """For each stage, the gradients at its calls, output by output. To be consumed in order.

    weights: if given, one more item follows, the gradients of Σ_n weights[n] Σ_c f_c(x_n).

    stages: calls, and the bottleneck below them. Autograd's saved tensors are freed stage by stage,
    so a graph can be used once. at_once: if the gradients take at most this many bytes, all outputs
    share one pass, since the passes of a small network are all overhead.
    """
    if len(stages) == 1:
        calls = [graph.calls[i] for i in stages[0][0]]
        entries = len(outputs) * sum(call.output_shape.numel() for call in calls)
        if entries * graph.output.element_size() <= at_once:
            shared = _shared_pass(graph.output, calls, outputs, weights)
            if shared is not None:
                count = len(outputs)
                parts = [[g[:count] for g in shared], [g[count:] for g in shared]]
                yield parts if weights is not None else parts[:1]
                return
    root = (get_gradient_edge(graph.output),)
    seeds: Seeds = []
    for c in outputs:
        seed = torch.zeros_like(graph.output)
        seed[:, c] = 1
        seeds.append((root, (seed,)))
    if weights is not None:
        seed = torch.zeros_like(graph.output)
        seed[:, outputs.start : outputs.stop] = weights[:, None]
        seeds.append((root, (seed,)))
    for call_numbers, end in stages:
        yield _passes(graph.output, [graph.calls[i] for i in call_numbers], end, seeds)


def _shared_pass(
    output: Tensor, calls: Sequence[LayerCall], outputs: range, weights: Tensor | None
) -> Gradients | None:
    """The gradients of all outputs by one pass; None if an operation cannot be batched."""
    samples, classes = output.shape
    seeds = torch.eye(classes, dtype=output.dtype, device=output.device)
    seeds = seeds[outputs.start : outputs.stop]
    all_seeds = seeds[:, None].expand(-1, samples, -1)
    if weights is not None:
        all_seeds = torch.cat([all_seeds, (weights[:, None] * seeds.sum(0))[None]])
    try:
        gradients = torch.autograd.grad(
            output,
            [call.edge for call in calls],
            all_seeds,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
    except RuntimeError:
        return None
    return _with_zeros(output, calls, gradients, len(all_seeds))


def _passes(
    output: Tensor, calls: Sequence[LayerCall], end: Bottleneck, seeds: Seeds
) -> Iterator[Gradients]:
    """Continue every output's backward pass from `seeds` to `end`; update `seeds`."""
    targets = [*(call.edge for call in calls), *end.edges]
    for k, (edges, seed_gradients) in enumerate(seeds):
        gradients: tuple[Tensor | None, ...] = (None,) * len(targets)
        if edges and targets:
            last = k + 1 == len(seeds)
            gradients = torch.autograd.grad(
                edges, targets, seed_gradients, retain_graph=not last, allow_unused=True
            )
        at_end = zip(end.edges, gradients[len(calls) :], strict=True)
        reached = [(edge, gradient) for edge, gradient in at_end if gradient is not None]
        seeds[k] = (tuple(e for e, _ in reached), tuple(g for _, g in reached))
        at_calls = [g if g is None else g[None] for g in gradients[: len(calls)]]
        yield _with_zeros(output, calls, at_calls, 1)


def _with_zeros(
    output: Tensor, calls: Sequence[LayerCall], gradients: Sequence[Tensor | None], outputs: int
) -> Gradients:
    """The gradients, with zeros in place of None: the output does not depend on the call."""
    pairs = zip(calls, gradients, strict=True)
    return [output.new_zeros(outputs, *c.output_shape) if g is None else g for c, g in pairs]
