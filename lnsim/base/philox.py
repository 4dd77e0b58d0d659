"""The words of NumPy's Philox generator for many keys at once.

Philox-4x64 with 10 rounds and the constants of Salmon et al. (SC 2011).  NumPy increments the
counter before it makes a block, so word k is lane k mod 4 of the block of counter k // 4 + 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

from lnsim.base.compiled import compiled

_MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_WEYL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_ROUNDS = 10


@intrinsic
def _product(typingctx: Any, x: Any, y: Any) -> Any:
    """The upper and the lower 64 bits of the product of two uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide, word = ir.IntType(128), ir.IntType(64)
        product = builder.mul(*(builder.zext(arg, wide) for arg in args))
        halves = [builder.lshr(product, wide(64)), product]
        return context.make_tuple(
            builder, signature.return_type, [builder.trunc(half, word) for half in halves]
        )

    return types.UniTuple(types.uint64, 2)(types.uint64, types.uint64), codegen


@compiled(nogil=True)
def _block(counter, key_0, key_1):  # type: ignore[no-untyped-def]
    """The four words of a counter below 2**64."""
    x0, x1, x2, x3 = counter, np.uint64(0), np.uint64(0), np.uint64(0)
    for _ in range(_ROUNDS):
        high_0, low_0 = _product(_MULTIPLIERS[0], x0)
        high_1, low_1 = _product(_MULTIPLIERS[1], x2)
        x0, x1, x2, x3 = high_1 ^ x1 ^ key_0, low_1, high_0 ^ x3 ^ key_1, low_0
        key_0 += _WEYL[0]
        key_1 += _WEYL[1]
    return x0, x1, x2, x3


@compiled(nogil=True)
def _fill(words, key, position):  # type: ignore[no-untyped-def]
    counter = np.uint64(position // 4 + 1)
    k = -(position % 4)
    while k < words.size:
        x = _block(counter, key[0], key[1])
        if k >= 0 and k + 4 <= words.size:
            words[k], words[k + 1], words[k + 2], words[k + 3] = x
        else:
            for lane in range(4):
                if 0 <= k + lane < words.size:
                    words[k + lane] = x[lane]
        counter += np.uint64(1)
        k += 4


def _fill_by_numpy(words, key, position):  # type: ignore[no-untyped-def]
    bits = np.random.Philox(key=key).advance(position // 4)
    words[:] = bits.random_raw(position % 4 + words.size)[position % 4 :]


# `_product` needs the compiler.
fill = _fill_by_numpy if config.DISABLE_JIT else _fill
"""fill(words, key, position) fills words : (T,) with words `position` ... of Philox(key=key)."""


@compiled(nogil=True)
def fill_all(words, keys, rows, position):  # type: ignore[no-untyped-def]
    """`fill` for these rows of words : (S, T) and of keys : (S, 2)."""
    for c in rows:
        fill(words[c], keys[c], position)
