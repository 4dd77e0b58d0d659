"""One pass over a tile of the state, in explicit SIMD vectors.

A tile holds LANES * V hidden units: W : (r, LANES * V) with the hidden index innermost, a and u of
LANES * V each.  The pass applies the update of one step and, on the same loads, makes the
pre-activations u = W x' of the next:

    p = c a + e u,   a <- a + c u + g a,   W_j <- W_j + x_j p,   u <- sum_j x'_j W_j

It returns f(x') = a . u, and for SAM also a . a and u . u.  SGD has e = g = 0 and leaves them out.

Written as loops, LLVM either guards every short inner loop against aliasing or unrolls it into
register spills.  So the pass is emitted as LLVM IR: p and the V accumulators stay in registers
(12 of 16 at V = 6 on AVX2), each W_j is loaded and stored once.  The vectors are <4 x double>,
which LLVM splits where a machine's are narrower (SSE2, NEON), and multiply-adds are llvm.fmuladd,
which is fused where the machine does that fast and is a product and a sum elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 4
MOST_VECTORS = 6


def _emit(vectors: int, sam: bool) -> Callable[..., Any]:
    """The code generator of the pass for tiles of `vectors` vectors, of SAM or of SGD."""
    double, i32 = ir.DoubleType(), ir.IntType(32)
    vector = ir.VectorType(double, LANES)
    zero = ir.Constant(vector, [0.0] * LANES)
    units = range(vectors)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x_at, next_at, tiles, rank, *factors = args[5:]
        intp = rank.type
        block = builder.append_basic_block

        def pointer(argument: int) -> Any:
            array = context.make_array(signature.args[argument])(context, builder, args[argument])
            return array.data

        def at(base: Any, k: int) -> Any:
            return builder.bitcast(builder.gep(base, [intp(LANES * k)]), vector.as_pointer())

        def load(base: Any, k: int) -> Any:
            value = builder.load(at(base, k))
            value.align = 8
            return value

        def store(value: Any, base: Any, k: int) -> None:
            builder.store(value, at(base, k)).align = 8

        def splat(scalar: Any) -> Any:
            empty = ir.Constant(vector, ir.Undefined)
            one = builder.insert_element(empty, scalar, i32(0))
            first = ir.Constant(ir.VectorType(i32, LANES), [0] * LANES)
            return builder.shuffle_vector(one, empty, first)

        def fma(x: Any, y: Any, z: Any) -> Any:
            kind = ir.FunctionType(vector, [vector] * 3)
            name = f"llvm.fmuladd.v{LANES}f64"
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            return builder.call(function, [x, y, z])

        def dot(x: list[Any], y: list[Any], start: Any) -> Any:
            # Three chains of multiply-adds: one would be the longest wait of the whole step.
            chains = [start, zero, zero]
            for k in units:
                chains[k % 3] = fma(x[k], y[k], chains[k % 3])
            return builder.fadd(builder.fadd(chains[1], chains[2]), chains[0])

        def across(total: Any) -> Any:
            lane = [builder.extract_element(total, i32(i)) for i in range(LANES)]
            return builder.fadd(builder.fadd(lane[0], lane[2]), builder.fadd(lane[1], lane[3]))

        W_start, a_start, u_start = pointer(1), pointer(2), pointer(3)
        x = builder.gep(pointer(4), [x_at])
        x_next = builder.gep(pointer(4), [next_at])
        c, *others = (splat(factor) for factor in factors)
        before, tile_begin, row, tile_end, after = (
            builder.block,
            *map(block, ("tile", "row", "tile_end", "after")),
        )
        builder.branch(tile_begin)

        builder.position_at_end(tile_begin)
        tile = builder.phi(intp)
        tile.add_incoming(intp(0), before)
        partial = [builder.phi(vector) for _ in range(3 if sam else 1)]
        for phi in partial:
            phi.add_incoming(zero, before)
        first_unit = builder.mul(tile, intp(LANES * vectors))
        a_tile, u_tile = builder.gep(a_start, [first_unit]), builder.gep(u_start, [first_unit])
        W_tile = builder.gep(W_start, [builder.mul(first_unit, rank)])
        p = []
        for k in units:
            a_k, u_k = load(a_tile, k), load(u_tile, k)
            p_k, new_a = builder.fmul(c, a_k), fma(c, u_k, a_k)
            if sam:
                e, g = others
                p_k, new_a = fma(e, u_k, p_k), fma(g, a_k, new_a)
            p.append(p_k)
            store(new_a, a_tile, k)
        builder.branch(row)

        builder.position_at_end(row)
        j = builder.phi(intp)
        sums = [builder.phi(vector) for _ in units]
        W_j = builder.gep(W_tile, [builder.mul(j, intp(LANES * vectors))])
        x_j = splat(builder.load(builder.gep(x, [j])))
        next_j = splat(builder.load(builder.gep(x_next, [j])))
        totals = []
        for k in units:
            value = fma(p[k], x_j, load(W_j, k))
            store(value, W_j, k)
            totals.append(fma(value, next_j, sums[k]))
        next_row = builder.add(j, intp(1))
        for phi, start, end in zip(
            [j, *sums], [intp(0)] + [zero] * vectors, [next_row, *totals], strict=True
        ):
            phi.add_incoming(start, tile_begin)
            phi.add_incoming(end, row)
        again = builder.cbranch(builder.icmp_signed("<", next_row, rank), row, tile_end)
        again.set_metadata("llvm.loop", _not_unrolled(builder.module))

        builder.position_at_end(tile_end)
        for k in units:
            store(totals[k], u_tile, k)
        new_a = [load(a_tile, k) for k in units]
        pairs = [(new_a, totals), (new_a, new_a), (totals, totals)]
        sums_so_far = [dot(x, y, so_far) for (x, y), so_far in zip(pairs, partial, strict=False)]
        next_tile = builder.add(tile, intp(1))
        tile.add_incoming(next_tile, tile_end)
        for phi, total in zip(partial, sums_so_far, strict=True):
            phi.add_incoming(total, tile_end)
        builder.cbranch(builder.icmp_signed("<", next_tile, tiles), tile_begin, after)

        builder.position_at_end(after)
        results = [across(total) for total in sums_so_far]
        if not sam:
            return results[0]
        return context.make_tuple(builder, signature.return_type, results)

    return codegen


def _not_unrolled(module: Any) -> Any:
    """Loop metadata: unrolled, the pass would need more registers than there are."""
    disable = module.add_metadata(["llvm.loop.unroll.disable"])
    loop = module.add_metadata([disable, disable])
    loop.operands = (loop, disable)  # a loop's metadata names itself first
    return loop


@intrinsic
def tile_pass(
    typingctx: Any, tile: Any, W: Any, a: Any, u: Any, X: Any, x_at: Any, next_at: Any,
    tiles: Any, rank: Any, c: Any,
) -> Any:  # fmt: skip
    """The pass of SGD over all tiles; returns f(x').

    tile: a tuple of V integers, whose length is part of the type, so that each V has code of its
    own.  W : (tiles, rank, LANES V), a and u : (tiles LANES V,), X : (n, rank); x and x' start at
    X.flat[x_at] and X.flat[next_at].
    """
    at, real = types.intp, types.float64
    return real(tile, W, a, u, X, at, at, at, at, real), _emit(len(tile), sam=False)


@intrinsic
def sam_pass(
    typingctx: Any, tile: Any, W: Any, a: Any, u: Any, X: Any, x_at: Any, next_at: Any,
    tiles: Any, rank: Any, c: Any, e: Any, g: Any,
) -> Any:  # fmt: skip
    """The pass of SAM over all tiles; returns (f(x'), |a|^2, |u|^2).  Arguments as `tile_pass`."""
    at, real = types.intp, types.float64
    results = types.UniTuple(real, 3)
    signature = results(tile, W, a, u, X, at, at, at, at, real, real, real)
    return signature, _emit(len(tile), sam=True)
