"""One adapter: its shapes and first values; and kernels plus products, as functions of trees.

How adapters are stored is said in `adapters.py`. To add them, only the arrays are needed.
"""

from __future__ import annotations

import math
import string
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.errors import ArgumentTypeError, ParameterError
from flaxtrain.params.facts import ParamFact
from flaxtrain.params.kernel_axes import LINEAR, KernelAxes
from flaxtrain.text import kind_of
from flaxtrain.tree import Path, path_name
from flaxtrain.typing import Array, Key, Params

__all__ = ["join_adapters", "split_adapters"]

LORA, LORA_A, LORA_B = "lora", "lora_a", "lora_b"
Shape = tuple[int, ...]
CLASSES = ", ".join(cls.__name__ for cls in LINEAR)

_OF_THIS_MODEL = "use the adapters with params of the model that they were made for"


@dataclass(frozen=True)
class Pair:
    """One kernel with its `A` and `B`.

    Attributes:
        kernel: the row of the kernel in the table of facts.
        a: shape of `A`.
        b: shape of `B`.
        dtype: dtype of both.
        fan_in: number of values that are summed over, for each output.
    """

    kernel: ParamFact
    a: Shape
    b: Shape
    dtype: Any
    fan_in: int

    @classmethod
    def of(cls, fact: ParamFact, axes: KernelAxes | None, rank: int, dtype: Any) -> Pair:
        place = [i for i in range(len(fact.shape)) if i not in fact.lifted_axes]
        local = set(range(len(fact.local_shape)))
        if axes is None or len(place) != len(local) or not local.issuperset(axes.into):
            raise ParameterError(
                f"which axes {fact.name!r} sums over is not known",
                where="LoRA.bind",
                fix=f"{fact.owner_name} has to use its kernel as {CLASSES} do; deselect it",
            )
        into = {place[i] for i in axes.into}
        out = {place[i] for i in local.difference(axes.into, axes.batch)}
        _check_rank(fact, into, out, rank)
        return cls(
            kernel=fact,
            a=(*_without(fact.shape, out), rank),
            b=(*_without(fact.shape, into), rank),
            dtype=jnp.dtype(fact.dtype if dtype is None else dtype),
            fan_in=_product(fact.shape, into),
        )

    @property
    def paths(self) -> tuple[Path, Path]:
        """The paths of `A` and `B` in the params."""
        path = (LORA, *self.kernel.path)
        return (*path, LORA_A), (*path, LORA_B)

    def facts(self) -> list[ParamFact]:
        """Returns the kernel's row, changed to that of `A` and to that of `B`."""
        kernel = self.kernel
        names = kernel.partitioning
        if names is not None and len(names) != len(kernel.shape):
            names = None
        return [
            replace(
                kernel,
                path=path,
                shape=shape,
                local_shape=tuple(
                    size for i, size in enumerate(shape) if i not in kernel.lifted_axes
                ),
                dtype=self.dtype,
                partitioning=names and (*kept(names, kernel.shape, shape), None),
                role=LORA,
                hidden=False,
                rule=f"adapter of {kernel.name!r}",
                kernel_axes=axes,
            )
            for path, shape, axes in zip(
                self.paths, (self.a, self.b), _pair_axes(kernel), strict=True
            )
        ]

    def init(self, key: Key) -> dict[str, Array]:
        """Returns `A` and `B` before training."""
        key = jax.random.fold_in(key, zlib.crc32(self.kernel.name.encode()))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        a = jax.random.normal(key, self.a, wide) * self.fan_in**-0.5
        return {LORA_A: a.astype(self.dtype), LORA_B: jnp.zeros(self.b, self.dtype)}


def _pair_axes(kernel: ParamFact) -> tuple[KernelAxes | None, KernelAxes | None]:
    """Returns the axes of `A`, from in axes to the rank, and of `B`, from the rank on."""
    axes = kernel.kernel_axes
    if axes is None:
        return None, None
    return axes, KernelAxes((len(kernel.local_shape),), axes.batch)


def split_adapters(params: Params) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits params into those of the model and the adapters.

    Raises:
        ParameterError: there are no adapters.

    Example:
        >>> split_adapters({"head": 1, "lora": {"body": 2}})
        ({'head': 1}, {'body': 2})
    """
    if not isinstance(params, Mapping) or not isinstance(params.get(LORA), Mapping):
        raise ParameterError(
            "the params have no adapters",
            where="split_adapters(params)",
            fix="they belong under the top-level key 'lora'; join_adapters puts them there",
        )
    return {key: tree for key, tree in params.items() if key != LORA}, dict(params[LORA])


def join_adapters(base: Params, adapters: Params) -> dict[str, Any]:
    """Inverse of `split_adapters`.

    Raises:
        ArgumentTypeError: an argument is no mapping.
        ParameterError: `base` has something called `lora` already.

    Example:
        >>> join_adapters({"head": 1}, {"body": 2})
        {'head': 1, 'lora': {'body': 2}}
    """
    where = "join_adapters(base, adapters)"
    for name, tree in (("base", base), ("adapters", adapters)):
        if not isinstance(tree, Mapping):
            found = f"{name} is {kind_of(tree)}, not nested dicts"
            raise ArgumentTypeError(found, where=where, fix="pass params and adapters")
    if LORA in base:
        raise ParameterError(
            "the params have something called 'lora' already",
            where=where,
            fix="take the adapters off first: base, _ = split_adapters(params)",
        )
    return {**base, LORA: dict(adapters)}


def add_products(base: Any, adapters: Any, scale: float, rank: int, path: Path = ()) -> Any:
    """Returns `base` with `W + scale A B` for each pair; other leaves as they are.

    Args:
        base: nested mappings with the kernels, or one kernel.
        adapters: nested mappings with the pairs, or one pair.
        scale: the factor.
        rank: the rank that each pair has to have.
        path: where `base` is in the params.

    Raises:
        ParameterError: a pair has another rank, or doesn't fit its kernel.
    """
    if not isinstance(adapters, Mapping) or _is_pair(adapters):
        _check_fit(base, adapters, rank, path)
        return _plus(base, adapters[LORA_A], adapters[LORA_B], scale)
    known = base if isinstance(base, Mapping) else {}
    for key in adapters:
        if key not in known:
            raise ParameterError(
                f"there are adapters for {path_name((*path, key))!r}, not in the params",
                where="LoRA.merge",
                fix=_OF_THIS_MODEL,
            )
    changed = {
        key: add_products(known[key], tree, scale, rank, (*path, key))
        for key, tree in adapters.items()
    }
    return {**known, **changed}


def kept(labels: Sequence[Any], shape: Shape, part: Shape) -> tuple[Any, ...]:
    """Returns the label of each axis of `shape` that has its length in `part` too, else None.

    Args:
        labels: one for each axis of `shape`.
        shape: of a kernel.
        part: shape of its `A` or `B`, with an axis more.

    Example:
        >>> kept("abc", (5, 2, 3), (5, 1, 1, 4))
        ('a', None, None)
    """
    pairs = zip(labels, shape, part[:-1], strict=True)
    return tuple(label if size == own else None for label, size, own in pairs)


def _plus(kernel: Any, a: Any, b: Any, scale: float) -> Array:
    wide = jnp.promote_types(jnp.result_type(kernel.dtype, a.dtype, b.dtype), jnp.float32)
    letters = string.ascii_lowercase[: len(kernel.shape)]
    factors, subscripts = [], []
    for factor in (a, b):
        axes = kept(letters, kernel.shape, factor.shape)
        absent = tuple(i for i, letter in enumerate(axes) if letter is None)
        factors.append(jnp.squeeze(factor, absent).astype(wide))
        subscripts.append("".join(letter for letter in axes if letter) + "R")
    # On accelerators the default precision of a float32 product is less than float32's.
    product = jnp.einsum(
        f"{','.join(subscripts)}->{letters}", *factors, precision=jax.lax.Precision.HIGHEST
    )
    return (kernel.astype(wide) + scale * product).astype(kernel.dtype)


def _is_pair(node: Mapping[str, Any]) -> bool:
    # A module may be called `lora_a`; what it holds is a mapping then.
    is_leaf = [not isinstance(child, Mapping) for child in node.values()]
    return set(node) == {LORA_A, LORA_B} and all(is_leaf)


def _check_fit(base: Any, pair: Any, rank: int, path: Path) -> None:
    where, name = "LoRA.merge", path_name(path)
    if not isinstance(pair, Mapping) or not hasattr(base, "shape"):
        raise ParameterError(
            f"{name!r} is no kernel with a pair of {LORA_A!r} and {LORA_B!r}",
            where=where,
            fix=_OF_THIS_MODEL,
        )
    a, b, shape = (tuple(x.shape) for x in (pair[LORA_A], pair[LORA_B], base))
    if a[-1:] != (rank,) or b[-1:] != (rank,):
        raise ParameterError(
            f"the adapter of {name!r} has shapes {a} and {b}: the last axis is not rank {rank}",
            where=where,
            fix="use the LoRA(rank=, alpha=) that the adapters were trained with",
        )
    sizes = list(zip(a[:-1], b[:-1], strict=False))
    fits = len(a) == len(b) == len(shape) + 1 and all(
        max(pair) == size and min(pair) in (1, size) for pair, size in zip(sizes, shape)
    )
    if not fits:
        raise ParameterError(
            f"{name!r} has shape {shape}, its adapter has {a} and {b}",
            where=where,
            fix=_OF_THIS_MODEL,
        )


def _without(shape: Shape, axes: set[int]) -> Shape:
    return tuple(1 if i in axes else size for i, size in enumerate(shape))


def _product(shape: Shape, axes: set[int]) -> int:
    return math.prod(shape[i] for i in axes)


def _check_rank(fact: ParamFact, into: set[int], out: set[int], rank: int) -> None:
    sides = _product(fact.shape, into), _product(fact.shape, out)
    largest = min(sides) - 1
    if rank > largest:
        raise ParameterError(
            f"rank {rank} is too high for {fact.name!r}, a matrix {sides[0]} x {sides[1]}",
            where="LoRA(rank=...)",
            fix=f"use a rank of at most {largest}, or deselect it"
            if largest
            else "deselect it",
        )
