"""Cutting an array into blocks of equal shape, and products with one matrix per axis.

Anil et al. 2020, "Scalable Second Order Optimization for Deep Learning", arXiv:2002.09018,
section 3.4 (blocks) and appendix (merging of small axes): every block of a large axis is
preconditioned by itself, so that no matrix is larger than `block_size`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from flaxtrain.typing import Array

__all__ = ["Blocks", "block_gram", "block_product", "blocks_of", "by_block_size"]


class Blocks(NamedTuple):
    """How an array is cut.

    Axes of length 1 are dropped. An axis of length n becomes `ceil(n / block_size)` blocks of
    equal size; the last one is filled up with zeros, fewer than there are blocks.

    Attributes:
        shape: of the array.
        axes: lengths of the axes that are cut: those of the array, some merged.
        counts: number of blocks along each of them.
        sizes: length of a block along each of them.

    Example:
        >>> blocks = blocks_of((3, 3, 2, 5), block_size=8)
        >>> blocks.axes, blocks.counts, blocks.sizes
        ((9, 10), (2, 2), (5, 5))
        >>> blocks.cut(jnp.ones((3, 3, 2, 5))).shape
        (4, 5, 5)
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    counts: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def order(self) -> int:
        """Number of axes that are cut."""
        return len(self.axes)

    @property
    def number(self) -> int:
        """Number of blocks."""
        return prod(self.counts)

    def cut(self, array: Array) -> Array:
        """Returns the blocks, `[number, *sizes]`."""
        array = array.reshape(self.axes)
        missing = [n * b - d for n, b, d in zip(self.counts, self.sizes, self.axes)]
        if any(missing):
            array = jnp.pad(array, [(0, m) for m in missing])
        if self.number == 1:
            return array[None]
        pairs = [length for pair in zip(self.counts, self.sizes) for length in pair]
        counts, sizes = range(0, 2 * self.order, 2), range(1, 2 * self.order, 2)
        array = array.reshape(pairs).transpose(*counts, *sizes)
        return array.reshape(self.number, *self.sizes)

    def join(self, blocks: Array) -> Array:
        """Returns the array; what was filled up is cut off."""
        array = blocks.reshape(*self.counts, *self.sizes)
        order = [axis for i in range(self.order) for axis in (i, self.order + i)]
        full = [n * b for n, b in zip(self.counts, self.sizes)]
        array = array.transpose(order).reshape(full)
        return array[tuple(slice(d) for d in self.axes)].reshape(self.shape)


def blocks_of(shape: tuple[int, ...], block_size: int, *, merge_axes: bool = True) -> Blocks:
    """Returns how an array of that shape is cut.

    Args:
        shape: of the array.
        block_size: the largest length of a block along an axis, >= 1.
        merge_axes: merge neighbouring axes of an array with three or more, so that two are left
            whose lengths differ as little as possible: `(3, 3, 64, 128)` is cut as
            `(576, 128)`, the kernel of attention `(512, 8, 64)` as `(512, 512)`.

    Example:
        >>> blocks_of((300, 1, 20), block_size=256)
        Blocks(shape=(300, 1, 20), axes=(300, 20), counts=(2, 1), sizes=(150, 20))
    """
    axes = tuple(length for length in shape if length != 1)
    if merge_axes and len(axes) > 2:
        pairs = ((prod(axes[:i]), prod(axes[i:])) for i in range(1, len(axes)))
        # Of two cuts that are equally even, the later one: it leaves the features of a layer's
        # output by themselves.
        axes = min(reversed(list(pairs)), key=lambda pair: max(pair) / max(min(pair), 1))
    counts = tuple(-(-length // block_size) for length in axes)
    sizes = tuple(-(-length // count) if count else 0 for length, count in zip(axes, counts))
    return Blocks(tuple(shape), axes, counts, sizes)


def block_gram(blocks: Array, i: int) -> Array:
    """Returns `G_(i) G_(i)^H` of every block G, `[number, n_i, n_i]`.

    Args:
        blocks: `[number, n_0, n_1, ...]`.
        i: the axis of a block that is kept; all others are summed over.

    Example:
        >>> print(block_gram(jnp.array([[[1.0, 2.0], [0.0, 1.0]]]), 0))
        [[[5. 2.]
          [2. 1.]]]
    """
    axes = tuple(axis for axis in range(1, blocks.ndim) if axis != i + 1)
    numbers = ((axes, axes), ((0,), (0,)))
    return lax.dot_general(blocks, jnp.conj(blocks), numbers, precision=lax.Precision.HIGHEST)


def block_product(blocks: Array, matrices: tuple[Array, ...]) -> Array:
    """Returns the product of every block with its `matrices[i]` along each axis i.

    Example:
        >>> g, x = jnp.array([[[1.0, 2.0]]]), jnp.array([[[3.0]]])
        >>> print(block_product(g, (x, 2.0 * jnp.eye(2)[None])))
        [[[ 6. 12.]]]
    """
    for matrix in matrices:
        # Axis 1 is contracted and the new one is put last, so after all k the order is back.
        numbers = (((1,), (2,)), ((0,), (0,)))
        blocks = lax.dot_general(blocks, matrix, numbers, precision=lax.Precision.HIGHEST)
    return blocks


def by_block_size(
    function: Callable[[Array], Array], stacks: tuple[Array, ...]
) -> tuple[Array, ...]:
    """Returns `function` of every stack of matrices; those of one size go through together.

    Args:
        function: from a stack of square matrices to one of the same shape.
        stacks: as many matrices in each.

    Example:
        >>> calls = []
        >>> stacks = tuple(jnp.ones((1, n, n)) for n in (2, 3, 2))
        >>> double = by_block_size(lambda a: calls.append(a.shape) or 2 * a, stacks)
        >>> calls, [stack.shape for stack in double]
        ([(2, 2, 2), (1, 3, 3)], [(1, 2, 2), (1, 3, 3), (1, 2, 2)])
    """
    sizes = [stack.shape[-1] for stack in stacks]
    results: dict[int, Array] = {}
    for size in dict.fromkeys(sizes):
        places = [i for i, n in enumerate(sizes) if n == size]
        together = function(jnp.concatenate([stacks[i] for i in places]))
        parts = jnp.split(together, len(places))
        results |= zip(places, parts)
    return tuple(results[i] for i in range(len(stacks)))
