"""The inner loops of one-sample steps, in explicit SIMD vectors.

The pass.  A tile holds LANES * V hidden units: W : (r, LANES * V) with the hidden index innermost,
a and u of LANES * V each.  The pass applies the update of one step and, on the same loads, computes
the pre-activations u = W x' of the next:

    p = c a + e u,   a <- a + c u + g a,   W_j <- W_j + x_j p,   u <- sum_j x'_j W_j

It returns f(x') = a . u, and for SAM also a . a and u . u.  For SGD e = g = 0, and the code omits
them.

From loops, LLVM either makes guards against aliasing for every short inner loop or unrolls it until
registers spill.  So the pass is emitted as LLVM IR: p and the V accumulators stay in registers
(12 of 16 at V = 6 on AVX2), and each W_j is loaded and stored once.  The vectors are <4 x double>,
which LLVM splits where a machine's are narrower (SSE2, NEON).  Multiply-adds are llvm.fmuladd,
which is fused where the machine does that fast, and a product and a sum elsewhere.

The twin's step (twin.py) is emitted likewise; it is so short that the processor does it during the
sums of the pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lnsim.base.checks import DIVERGED_ABOVE

LANES = 4
MOST_VECTORS = 6

_DOUBLE, _INT32 = ir.DoubleType(), ir.IntType(32)
_VECTOR = ir.VectorType(_DOUBLE, LANES)
_ZERO = ir.Constant(_VECTOR, [0.0] * LANES)


class _Emitter:
    """Emits vector operations at the position of `builder`."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self.builder = builder
        self._context, self._signature, self._args = context, signature, args

    def pointer(self, argument: int, offset: Any = None) -> Any:
        """A pointer to the data of an array argument, `offset` elements from its start."""
        kind, value = self._signature.args[argument], self._args[argument]
        data = self._context.make_array(kind)(self._context, self.builder, value).data
        return data if offset is None else self.builder.gep(data, [offset])

    def _at(self, base: Any, offset: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(base, [offset]), _VECTOR.as_pointer())

    def load(self, base: Any, offset: Any) -> Any:
        """LANES elements of `base` from `offset` on."""
        value = self.builder.load(self._at(base, offset))
        value.align = 8
        return value

    def store(self, value: Any, base: Any, offset: Any) -> None:
        """Stores LANES elements to `base` from `offset` on."""
        self.builder.store(value, self._at(base, offset)).align = 8

    def splat(self, scalar: Any) -> Any:
        """A vector whose LANES elements all are `scalar`."""
        empty = ir.Constant(_VECTOR, ir.Undefined)
        one = self.builder.insert_element(empty, scalar, _INT32(0))
        first = ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES)
        return self.builder.shuffle_vector(one, empty, first)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """x y + z."""
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        name = f"llvm.fmuladd.v{LANES}f64"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [x, y, z])

    def across(self, total: Any) -> Any:
        """The sum of the lanes."""
        lane = [self.builder.extract_element(total, _INT32(i)) for i in range(LANES)]
        add = self.builder.fadd
        return add(add(lane[0], lane[2]), add(lane[1], lane[3]))

    def dot(self, x: list[Any], y: list[Any], start: Any) -> Any:
        """start + sum_k x_k y_k, lane by lane."""
        # Three chains of multiply-adds, as the latency of a single one would dominate the step.
        chains = [start, _ZERO, _ZERO]
        for k, (left, right) in enumerate(zip(x, y, strict=True)):
            chains[k % 3] = self.fma(left, right, chains[k % 3])
        return self.builder.fadd(self.builder.fadd(chains[1], chains[2]), chains[0])

    def loop(self, count: Any, starts: list[Any], body: Callable[[Any, list[Any]], Any]) -> Any:
        """Emits `count` >= 1 iterations of `body`(index, values) -> values; returns the last."""
        builder = self.builder
        before, inside = builder.block, builder.append_basic_block("body")
        builder.branch(inside)
        builder.position_at_end(inside)
        phis = [builder.phi(value.type) for value in (count, *starts)]
        values = body(phis[0], phis[1:])
        following = builder.add(phis[0], count.type(1))
        ends, end = [following, *values], builder.block
        for phi, start, value in zip(phis, [count.type(0), *starts], ends, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(value, end)
        after = builder.append_basic_block("after")
        again = builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
        again.set_metadata("llvm.loop", _not_unrolled(builder.module))
        builder.position_at_end(after)
        return values


def _not_unrolled(module: Any) -> Any:
    """Loop metadata that forbids unrolling, for which the registers would not suffice."""
    disable = module.add_metadata(["llvm.loop.unroll.disable"])
    loop = module.add_metadata([disable, disable])
    loop.operands = (loop, disable)  # a loop's metadata names itself first
    return loop


def _pass(vectors: int, sam: bool) -> Callable[..., Any]:
    """The code generator of the pass of SAM or SGD for tiles of `vectors` vectors."""
    units = range(vectors)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x_at, next_at, tiles, rank, *factors = args[5:]
        intp = rank.type
        emit = _Emitter(context, builder, signature, args)
        W, a, u = emit.pointer(1), emit.pointer(2), emit.pointer(3)
        x, next_x = emit.pointer(4, x_at), emit.pointer(4, next_at)
        c, *sam_factors = (emit.splat(factor) for factor in factors)
        at = [intp(LANES * k) for k in units]

        def one_tile(tile: Any, tile_sums: list[Any]) -> list[Any]:
            first = builder.mul(tile, intp(LANES * vectors))
            a_tile, u_tile = builder.gep(a, [first]), builder.gep(u, [first])
            W_tile = builder.gep(W, [builder.mul(first, rank)])
            p = []
            for k in units:
                a_k, u_k = emit.load(a_tile, at[k]), emit.load(u_tile, at[k])
                p_k, new_a = builder.fmul(c, a_k), emit.fma(c, u_k, a_k)
                if sam:
                    e, g = sam_factors
                    p_k, new_a = emit.fma(e, u_k, p_k), emit.fma(g, a_k, new_a)
                p.append(p_k)
                emit.store(new_a, a_tile, at[k])

            def one_row(j: Any, sums: list[Any]) -> list[Any]:
                W_j = builder.gep(W_tile, [builder.mul(j, intp(LANES * vectors))])
                x_j = emit.splat(builder.load(builder.gep(x, [j])))
                next_j = emit.splat(builder.load(builder.gep(next_x, [j])))
                totals = []
                for k in units:
                    value = emit.fma(p[k], x_j, emit.load(W_j, at[k]))
                    emit.store(value, W_j, at[k])
                    totals.append(emit.fma(value, next_j, sums[k]))
                return totals

            totals = emit.loop(rank, [_ZERO] * vectors, one_row)
            for k in units:
                emit.store(totals[k], u_tile, at[k])
            new_a = [emit.load(a_tile, at[k]) for k in units]
            pairs = [(new_a, totals), (new_a, new_a), (totals, totals)]
            return [emit.dot(*pair, start) for pair, start in zip(pairs, tile_sums, strict=False)]

        sums = emit.loop(tiles, [_ZERO] * (3 if sam else 1), one_tile)
        results = [emit.across(total) for total in sums]
        return context.make_tuple(builder, signature.return_type, results) if sam else results[0]

    return codegen


@intrinsic
def tile_pass(
    typingctx: Any, tile: Any, W: Any, a: Any, u: Any, X: Any, x_at: Any, next_at: Any,
    tiles: Any, rank: Any, c: Any,
) -> Any:  # fmt: skip
    """The pass of SGD over all tiles; returns f(x').

    tile: a tuple of V integers, whose length is part of its type, so that each V has its own code.
    W : (tiles, rank, LANES V), a and u : (tiles LANES V,), X : (n, rank); x and x' start at
    X.flat[x_at] and X.flat[next_at].
    """
    at, real = types.intp, types.float64
    return real(tile, W, a, u, X, at, at, at, at, real), _pass(len(tile), sam=False)


@intrinsic
def sam_pass(
    typingctx: Any, tile: Any, W: Any, a: Any, u: Any, X: Any, x_at: Any, next_at: Any,
    tiles: Any, rank: Any, c: Any, e: Any, g: Any,
) -> Any:  # fmt: skip
    """The pass of SAM over all tiles; returns (f(x'), |a|^2, |u|^2).  Arguments as `tile_pass`."""
    at, real = types.intp, types.float64
    results = types.UniTuple(real, 3)
    signature = results(tile, W, a, u, X, at, at, at, at, real, real, real)
    return signature, _pass(len(tile), sam=True)


@intrinsic
def twin_pass(
    typingctx: Any, theta: Any, inputs: Any, moves: Any, at: Any, vectors: Any, target: Any,
    lr: Any, push: Any,
) -> Any:  # fmt: skip
    """theta <- theta - lr (r + sign(r) push) move, r = <theta, x> - target.

    theta : (LANES `vectors`,) is unchanged if r has diverged.  x and move start at inputs.flat[at]
    and moves.flat[at].
    """
    real = types.float64
    signature = types.void(theta, inputs, moves, types.intp, types.intp, real, real, real)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        offset, count, target, lr, push = args[3:]
        emit = _Emitter(context, builder, signature, args)
        weights, x, move = emit.pointer(0), emit.pointer(1, offset), emit.pointer(2, offset)

        def product(k: Any, sums: list[Any]) -> list[Any]:
            j = builder.mul(k, k.type(LANES))
            return [emit.fma(emit.load(weights, j), emit.load(x, j), sums[0])]

        (total,) = emit.loop(count, [_ZERO], product)
        residual = builder.fsub(emit.across(total), target)
        negative = builder.fcmp_ordered("<", residual, _DOUBLE(0.0))
        pushed = builder.select(
            negative, builder.fsub(residual, push), builder.fadd(residual, push)
        )
        square = builder.fmul(residual, residual)
        undiverged = builder.fcmp_ordered("<", square, _DOUBLE(DIVERGED_ABOVE))
        step = builder.fmul(builder.fneg(lr), builder.select(undiverged, pushed, _DOUBLE(0.0)))
        c = emit.splat(step)

        def update(k: Any, _: list[Any]) -> list[Any]:
            j = builder.mul(k, k.type(LANES))
            emit.store(emit.fma(c, emit.load(move, j), emit.load(weights, j)), weights, j)
            return []

        emit.loop(count, [], update)
        return context.get_dummy_value()

    return signature, codegen
