"""What is split over devices, as a value: the user's choice, without a model or a mesh."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from jax.sharding import PartitionSpec

from flaxtrain.answering import answering
from flaxtrain.checks import check_choice, check_instance, check_integer
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.parallel.mesh import AnyMesh
from flaxtrain.params import SelectorLike
from flaxtrain.spec.declaration import Declaration, as_choice
from flaxtrain.text import kind_of

__all__ = ["KINDS", "AxisNames", "Sharding"]

KINDS = ("replicated", "zero1", "fsdp")
"""The kinds of sharding."""

AxisNames: TypeAlias = str | tuple[str, ...] | None
"""What one axis of an array is split over: a mesh axis, several, or none."""

_FORM = 'pass None, the name of a mesh axis, or a tuple of names, such as (None, "model")'


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Sharding(Declaration):
    """What the devices of a mesh share out among them.

    - `"replicated"`: every device has all parameters and all slots of the optimizer.
    - `"zero1"`: every device has all parameters, and its share of the slots (Rajbhandari et al.
      2020, "ZeRO", arXiv:1910.02054, section 5.1). Slots are split over the axes `data` and
      `fsdp` together.
    - `"fsdp"`: a device has its share of both (section 5.3). They are split over the axis
      `fsdp`, and over `data` in a mesh without it. In a mesh with both, groups of `fsdp`
      devices each have everything once.

    Each array is split along its longest axis that the number of devices divides, the last one
    of equal axes; along an axis of stacked layers (`nn.scan`) only if it is the only one. An
    array that is small, or has no such axis, stays whole. `Layout` tells where it all went.

    Tensor parallelism is what `rules` and `logical` say: they are the first to choose the axes
    of a parameter, and the kind splits one of those that are left.

    Args:
        kind: see above.
        min_size: arrays with fewer entries stay whole, >= 0.
        rules: pairs of a selector and what each axis of the parameters is split over: None, the
            name of a mesh axis or a tuple of names, as many as there are axes. The first rule
            that selects a parameter counts. `()` leaves it whole, whatever the kind.
        logical: pairs, or a dict: what the names in `nn.with_partitioning` mean, None for not
            split. Names of mesh axes mean themselves. On a mesh that has no axes but `data` and
            `fsdp`, names that are neither are passed over.

    Raises:
        ArgumentError: a value is out of range, or a name stands twice.
        ArgumentTypeError: a value has the wrong type.
        UnknownNameError: there is no such kind.

    Example:
        >>> Sharding("fsdp", rules=[("head/kernel", (None, "model"))])
        Sharding('fsdp', rules=(('head/kernel', (None, 'model')),))
    """

    kind: str
    min_size: int
    rules: tuple[tuple[SelectorLike, tuple[AxisNames, ...]], ...]
    logical: tuple[tuple[str, AxisNames], ...]

    @answering
    def __init__(
        self,
        kind: str = "replicated",
        *,
        min_size: int = 2**16,
        rules: Iterable[tuple[SelectorLike, Iterable[AxisNames]]] = (),
        logical: Mapping[str, AxisNames] | Iterable[tuple[str, AxisNames]] = (),
    ) -> None:
        check_choice("kind", kind, KINDS, where="Sharding(kind)")
        check_integer("min_size", min_size, minimum=0, where="Sharding(min_size=...)")
        pairs = logical.items() if isinstance(logical, Mapping) else logical
        self._set(
            kind=kind,
            min_size=int(min_size),
            rules=tuple(_rule(pair) for pair in _pairs(rules, "rules")),
            logical=tuple(_logical(pair) for pair in _pairs(pairs, "logical")),
        )
        _check_once((name for name, _ in self.logical), "Sharding(logical=...)")

    @classmethod
    def of(cls, choice: Sharding | str | None, mesh: AnyMesh) -> Sharding:
        """Returns the sharding that somebody means.

        Args:
            choice: a kind; None for `"fsdp"` where the mesh has an axis of that name with more
                than one device, else `"replicated"`; or a sharding.
            mesh: the mesh.

        Raises:
            UnknownNameError: there is no such kind.
            ArgumentTypeError: it is something else.

        Example:
            >>> from flaxtrain.parallel import abstract_mesh
            >>> Sharding.of(None, abstract_mesh({"data": 2, "fsdp": 4}, 8))
            Sharding('fsdp')
        """
        if choice is None:
            return cls("fsdp" if mesh.shape.get("fsdp", 1) > 1 else "replicated")
        if isinstance(choice, str):
            return cls(choice)
        fix = f"pass one of {', '.join(map(repr, KINDS))}, or a flaxtrain.parallel.Sharding"
        check_instance("sharding", choice, Sharding, where="sharding=...", fix=fix)
        return choice


def _pairs(given: Any, name: str) -> list[tuple[Any, Any]]:
    fix = 'pass pairs, such as rules=[("head/kernel", (None, "model"))]'
    if name == "logical":
        fix = 'pass pairs, such as logical=[("mlp", "model"), ("embed", None)]'
    where = f"Sharding({name}=...)"
    iterable = isinstance(given, Iterable) and not isinstance(given, str)
    listed = list(given) if iterable else [given]
    for pair in listed:
        if not iterable or not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ArgumentTypeError(f"{pair!r} is no pair", where=where, fix=fix)
    return [(first, second) for first, second in listed]


def _rule(pair: tuple[Any, Any]) -> tuple[SelectorLike, tuple[AxisNames, ...]]:
    choice, axes = pair
    where = f"Sharding(rules=...): {choice!r}"
    if not isinstance(axes, (tuple, list, PartitionSpec)):
        raise ArgumentTypeError(
            f"{axes!r} is {kind_of(axes)}, not a tuple with an entry for each axis",
            where=where,
            fix=_FORM,
        )
    names = tuple(_names(entry, where) for entry in axes)
    _check_once((name for entry in names for name in each(entry)), where)
    return as_choice(choice, where=where), names


def _logical(pair: tuple[Any, Any]) -> tuple[str, AxisNames]:
    name, axes = pair
    where = f"Sharding(logical=...): {name!r}"
    if not isinstance(name, str):
        raise ArgumentTypeError(f"{name!r} is {kind_of(name)}", where=where, fix="pass a name")
    return name, _names(axes, where)


def _names(entry: Any, where: str) -> AxisNames:
    names = list(entry) if isinstance(entry, (tuple, list)) else [entry]
    if entry is None or (names == [entry] and isinstance(entry, str)):
        return entry
    if names == [entry] or not all(isinstance(name, str) for name in names):
        raise ArgumentTypeError(
            f"{entry!r} is {kind_of(entry)}, not what an axis is split over",
            where=where,
            fix=_FORM,
        )
    return tuple(names) or None


def each(entry: AxisNames) -> tuple[str, ...]:
    """Returns what an axis is split over as a tuple of names."""
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


def _check_once(names: Iterable[str], where: str) -> None:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ArgumentError(
            f"{twice[0]!r} stands there twice",
            where=where,
            fix="name it once: one axis of an array is split over it",
        )
