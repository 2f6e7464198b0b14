"""What a leaf of a training state is, by its path: a parameter, a slot of one, or neither."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

from jax.tree_util import GetAttrKey, SequenceKey

from flaxtrain.tree import Path, key_of

# Nothing here is public: `Layout.state` is.
__all__ = []

SLOT_FIELDS = frozenset({"opt_state", "ema", "accumulated", "rounding_carry"})
"""The fields of a state that hold arrays beside those of parameters."""

WHOLE_FIELDS = frozenset({"collections", "counters", "loss_scale", "spikes", "rng", "step"})
"""The fields of a state, and of an average in it, that every device has whole."""


class Role(NamedTuple):
    """What a leaf is.

    Attributes:
        kind: a parameter, a slot, or something that every device has whole.
        path: the parameter that it is or belongs to; None if there is no such parameter.
        item: where it stands in a list of slots of that parameter, or None.
    """

    kind: Literal["params", "slots", "other"]
    path: Path | None = None
    item: int | None = None


def role_of(keys: Sequence[Any], paths: Collection[Path]) -> Role:
    """Returns what the leaf at a path of jax keys is.

    Args:
        keys: the path in the state.
        paths: those of the parameters.
    """
    fields = {key.name for key in keys if isinstance(key, GetAttrKey)}
    if fields & WHOLE_FIELDS:
        return Role("other")
    names = tuple(map(key_of, keys))
    below = names[names.index("params") + 1 :] if "params" in names else None
    at_root = names[sum(isinstance(key, SequenceKey) for key in keys[:1]) :]
    if not fields & SLOT_FIELDS:
        for path in (names, at_root, below):
            if path in paths:
                return Role("params", path)
        if below is not None:
            return Role("params")
    run = _owner(names, paths)
    if run is None:
        return Role("slots")
    rest = keys[run.stop :]
    is_item = len(rest) == 1 and isinstance(rest[0], SequenceKey)
    return Role("slots", names[run], rest[0].idx if is_item else None)


def _owner(names: Path, paths: Collection[Path]) -> slice | None:
    """Returns where in a slot's path the path of its parameter is.

    Of several, the longest counts, and of these the last: `("mu", "encoder", "kernel")` belongs
    to `("encoder", "kernel")`, also where there is a parameter `("kernel",)`.
    """
    ends = range(len(names), 0, -1)
    runs = [slice(i, j) for j in ends for i in range(j) if names[i:j] in paths]
    return max(runs, key=lambda run: run.stop - run.start, default=None)
