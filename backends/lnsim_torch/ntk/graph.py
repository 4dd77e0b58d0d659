"""What happened inside a network: its layer calls, who uses each parameter, where it can be cut.

While a network is recorded, the `forward` of every leaf module that has a rule is wrapped: the
wrapper saves what forward was given, and gives what it returned a node of its own in the autograd
graph, the *tap*. The gradient at the tap is the gradient at what forward returned, whatever is done
to that later (by hooks, in place, or through a view of it).

The graph, walked once from the output, then answers two questions.

* Is a parameter covered by a rule? It is when exactly one edge of the whole graph leads to it, and
  exactly one tapped call claims it. A parameter that is tied, that belongs to a module called
  twice, or that is used outside its module fails the count, and goes to the per-sample fallback.
* Where can a backward pass be interrupted? At a *bottleneck*: a node that every path from the
  output to the taps below it goes through (the residual stream between two blocks, say). Gradients
  for all C outputs are taken down to one bottleneck, the layers above it are contracted and
  forgotten, and the passes go on from there. No arithmetic is repeated, and only one stretch of
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
class Call:
    """One call of a leaf module: its input (n, …), its output, and the tap on that."""

    module: nn.Module
    input: Tensor
    edge: Any  # a GradientEdge, until `Graph.forget`
    output: Tensor | None  # in autograd's graph; until `Graph.release`
    output_shape: torch.Size
    versions: tuple[int, int]  # of input and output; in-place work on them raises it

    @property
    def input_intact(self) -> bool:
        """Whether the input still holds what the call was given."""
        return self.input._version == self.versions[0]

    def result(self) -> Tensor | None:
        """The output, if it still holds what the call gave."""
        intact = self.output is not None and self.output._version == self.versions[1]
        return self.output if intact else None


@dataclass(eq=False)
class Graph:
    """A recorded forward pass: input, output (n, C), its calls, and the nodes, inputs before users.

    taps: all calls in the order in which they were made, also those that the output does not
    depend on; None stands for one outside of autograd.
    """

    input: Tensor
    output: Tensor
    calls: list[Call]
    nodes: list[Node]
    taps: list[Call | None]

    def forget(self) -> None:
        """Let go of autograd's graph, and with it of what is saved for it."""
        self.release()
        self.output = self.output.detach()
        self.nodes.clear()
        for call in self.taps:
            if call is not None:
                call.edge = None

    def release(self) -> None:
        """Let go of what the calls gave."""
        for call in self.taps:
            if call is not None:
                call.output = None


class _Tap(torch.autograd.Function):
    """The same memory with the same strides, but no view in autograd's books: in-place work on a
    view would rewrite the graph and leave the tap outside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


Forward = Callable[..., Any]


def record(network: Untouched, x: Tensor, modules: Sequence[nn.Module]) -> Graph:
    """Run `network` on `x` and record every call of the leaf modules named."""
    taps: list[Call | None] = []

    def tap(module: nn.Module, forward: Forward, args: tuple, kwargs: dict[str, Any]) -> Any:
        given, output = _given(args, kwargs), forward(*args, **kwargs)
        if not _can_be_tapped(given, output):
            taps.append(None)
            return output
        output = _Tap.apply(output)
        # Of the graph that the output keeps alive; `get_gradient_edge` would add a node for that.
        edge = GradientEdge(output.grad_fn, output.output_nr)
        versions = given._version, output._version
        taps.append(Call(module, given, edge, output, output.shape, versions))
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
    return Graph(x, output, calls, nodes, taps)


def replay(
    network: Untouched,
    x: Tensor,
    taps: Sequence[Call | None],
    modules: Sequence[nn.Module],
    known: Callable[[Call, Tensor], Tensor | None],
) -> Tensor | None:
    """Run a recorded network again, on x, with what is known of its calls; the output.

    known: of a call and what it is given now, the output, if it need not be computed; may raise.
    None if the calls are others than those recorded.
    """
    left = iter(taps)
    alike = True

    def stand_in(module: nn.Module, forward: Forward, args: tuple, kwargs: dict[str, Any]) -> Any:
        nonlocal alike
        call = next(left, None)
        alike &= call is None or call.module is module
        if call is None or not alike:
            return forward(*args, **kwargs)
        output = known(call, _given(args, kwargs))
        return forward(*args, **kwargs) if output is None else output

    with _wrapped(modules, stand_in):
        output = outputs_of(network, x)
    return output if alike and next(left, taps) is taps else None


def outputs_of(network: Untouched, x: Tensor) -> Tensor:
    """The outputs (n, C) alone.

    Nothing is saved for the graph, which is not used; but outside of autograd, modules that know a
    faster way there would take it.
    """
    try:
        with saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing):
            output = network(x)
    except TypeError:  # it differentiates inside, and needs what is saved
        output = network(x)
    _check_output(output, len(x))
    return output


@contextmanager
def _wrapped(
    modules: Sequence[nn.Module],
    wrapper: Callable[[nn.Module, Forward, tuple, dict[str, Any]], Any],
) -> Iterator[None]:
    """Send calls of `forward` through wrapper(module, forward, args, kwargs).

    Not by hooks: there are global ones, which come before a module's own.
    """
    for module in modules:

        def wrapped(
            *args: Any, module: nn.Module = module, own: Forward = module.forward, **kwargs: Any
        ) -> Any:
            return wrapper(module, own, args, kwargs)

        vars(module)["forward"] = wrapped
    try:
        yield
    finally:
        for module in modules:
            del vars(module)["forward"]


def _given(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["input"]


def _can_be_tapped(given: Tensor, output: Any) -> bool:
    if torch._C._functorch.is_functorch_wrapped_tensor(output):  # one sample of a vmap, say
        return False
    return output.requires_grad and not (given.is_complex() or output.is_complex())


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
    """All nodes from `root` to those known, each after what it leads to (iterative depth first)."""
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
    """How many edges lead from these nodes of a graph to each parameter."""
    children: Iterator[Any] = (child for node in nodes for child, _ in node.next_functions)
    leaf = "torch::autograd::AccumulateGrad"
    return Counter(child.variable for child in children if child and child.name() == leaf)


def own_parameters(call: Call, claim: tuple[bool, bool] = (True, True)) -> list[nn.Parameter]:
    """Weight and bias of a call's module; of these, the ones claimed."""
    both = (call.module._parameters.get(name) for name in NAMES)
    return [p for p, claimed in zip(both, claim, strict=True) if claimed and p is not None]


@dataclass(frozen=True)
class Bottleneck:
    """A place to interrupt the backward passes: its edges, their bytes, and the calls above it."""

    above: frozenset[int]
    edges: tuple[GradientEdge, ...] = ()
    nbytes: int = 0


def bottlenecks(graph: Graph, calls: Sequence[int]) -> list[Bottleneck]:
    """Where all paths from the output to the calls below pass one node, from the output down.

    Only the calls named are looked at. One bottleneck, the one of fewest bytes, for each set of
    calls above it; the last is the bottom, all calls above it and no edges.
    """
    position = {node: i for i, node in enumerate(graph.nodes)}
    taps = {position[graph.calls[i].edge.node]: i for i in calls}
    leading = set(taps)  # nodes from which a tap is reached
    users: dict[int, int] = {}  # of these, to the highest node that uses them
    numbers: dict[int, set[int]] = {}  # and to the numbers of the outputs used
    for i, node in enumerate(graph.nodes):
        for child, number in node.next_functions:
            j = position[child] if child else -1
            if j in leading:
                leading.add(i)
                users[j] = i
                numbers.setdefault(j, set()).add(number)
    # Node j crosses every level from j + 1 to its highest user; alone at j + 1: a bottleneck.
    change = Counter(j + 1 for j in users)
    change.subtract(Counter(highest + 1 for highest in users.values()))
    crossing, narrow = 0, []
    for j in range(len(graph.nodes)):
        crossing += change[j + 1]
        if crossing == 1 and j in users:
            narrow.append(j)
    found: dict[frozenset[int], Bottleneck] = {}
    for j in reversed(narrow):
        above = frozenset(i for tap, i in taps.items() if tap >= j)
        edges = tuple(GradientEdge(graph.nodes[j], number) for number in sorted(numbers[j]))
        here = Bottleneck(above, edges, sum(_nbytes(edge) for edge in edges))
        if above not in found or here.nbytes < found[above].nbytes:
            found[above] = here
    bottom = frozenset(calls)
    return [*[*found.values()][: -1 if bottom in found else None], Bottleneck(bottom)]


def _nbytes(edge: GradientEdge) -> int:
    entry = edge.node._input_metadata[edge.output_nr]
    return torch.Size(entry.shape).numel() * entry.dtype.itemsize


Seeds = list[tuple[tuple[GradientEdge, ...], tuple[Tensor, ...]]]
Gradients = list[Tensor]  # for some outputs: of each call, (outputs, n, …)


def sweep(
    graph: Graph,
    stages: Sequence[tuple[Sequence[int], Bottleneck]],
    outputs: range,
    at_once: int,
) -> Iterator[Iterable[Gradients]]:
    """Per stage, output by output: the gradients at the stage's calls. To be consumed in order.

    stages: calls, and the bottleneck they are above. What autograd saved is freed stage by stage,
    so a graph serves for one sweep. at_once: bytes of gradients up to which all outputs share one
    pass; a small network's passes are all overhead.
    """
    if len(stages) == 1:
        called = [graph.calls[i] for i in stages[0][0]]
        entries = len(outputs) * sum(call.output_shape.numel() for call in called)
        if entries * graph.output.element_size() <= at_once:
            shared = _shared_pass(graph.output, called, outputs)
            if shared is not None:
                yield [shared]
                return
    root = (get_gradient_edge(graph.output),)
    seeds: Seeds = []
    for c in outputs:
        seed = torch.zeros_like(graph.output)
        seed[:, c] = 1
        seeds.append((root, (seed,)))
    for numbers, end in stages:
        yield _passes(graph.output, [graph.calls[i] for i in numbers], end, seeds)


def _shared_pass(output: Tensor, calls: Sequence[Call], outputs: range) -> Gradients | None:
    """The gradients of all outputs by one pass; None where an operation cannot be batched."""
    samples, classes = output.shape
    seeds = torch.eye(classes, dtype=output.dtype, device=output.device)
    try:
        found = torch.autograd.grad(
            output,
            [call.edge for call in calls],
            seeds[outputs.start : outputs.stop, None].expand(-1, samples, -1),
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
    except RuntimeError:
        return None
    return _with_zeros(output, calls, found, len(outputs))


def _passes(
    output: Tensor, calls: Sequence[Call], end: Bottleneck, seeds: Seeds
) -> Iterator[Gradients]:
    """Take every output's gradients from where they are, `seeds`, to `end`; update `seeds`."""
    wanted = [*(call.edge for call in calls), *end.edges]
    for k, (edges, gradients) in enumerate(seeds):
        found: tuple[Tensor | None, ...] = (None,) * len(wanted)
        if edges and wanted:
            last = k + 1 == len(seeds)
            found = torch.autograd.grad(
                edges, wanted, gradients, retain_graph=not last, allow_unused=True
            )
        at_end = zip(end.edges, found[len(calls) :], strict=True)
        reached = [(edge, gradient) for edge, gradient in at_end if gradient is not None]
        seeds[k] = (tuple(e for e, _ in reached), tuple(g for _, g in reached))
        here = [g if g is None else g[None] for g in found[: len(calls)]]
        yield _with_zeros(output, calls, here, 1)


def _with_zeros(
    output: Tensor, calls: Sequence[Call], found: Sequence[Tensor | None], outputs: int
) -> Gradients:
    """What was found; zeros where an output does not depend on the call."""
    pairs = zip(calls, found, strict=True)
    return [output.new_zeros(outputs, *c.output_shape) if g is None else g for c, g in pairs]
