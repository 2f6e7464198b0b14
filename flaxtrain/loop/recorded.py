"""How the steps of a run are made, as a checkpoint says it: data to compare, text to show."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from flaxtrain.errors import CheckpointError

__all__ = ["Change", "Recorded"]

_ARRAYS = (jax.Array, np.ndarray, np.generic)
_ADDRESS = re.compile(r" (?:object )?at 0x[0-9a-f]+")


class Recorded(NamedTuple):
    """A value that a run was made with.

    Of code (a function, an object that is no dataclass) only the name is known: two of one name
    count as the same.

    Attributes:
        data: JSON data, without arrays: those are in the state.
        text: what a person reads.

    Example:
        >>> from flaxtrain.spec import Ema
        >>> change = Change(Recorded.of(Ema(0.9)), Recorded.of(Ema(0.5)))
        >>> change.differs, change.is_other_kind, change.now.text
        (True, False, 'Ema(0.5)')
    """

    data: Any
    text: str

    @classmethod
    def of(cls, value: Any) -> Self:
        """Records a value."""
        return cls(_data_of(value), _ADDRESS.sub("", repr(value)))

    @classmethod
    def read(cls, meta: Mapping[str, Any], name: str, default: Any, *, where: str) -> Self:
        """Returns what a checkpoint says under a name; what it doesn't say is the default.

        Args:
            meta: what the checkpoint says.
            name: the name.
            default: the value, where it doesn't say it.
            where: the checkpoint, for messages.

        Raises:
            CheckpointError: it is said in another form than `as_meta` has.
        """
        if name not in meta:
            return cls.of(default)
        said = meta[name]
        if not isinstance(said, Mapping) or set(said) != set(cls._fields):
            raise CheckpointError(
                f"what the checkpoint says of {name} can't be read: it was written by an "
                "earlier version",
                where=where,
                fix="use another workdir, or an empty one",
            )
        return cls(**said)

    @property
    def kind(self) -> str | None:
        """The name of the value's class; None of what has no class of its own."""
        return self.data["kind"] if isinstance(self.data, Mapping) else None

    def as_meta(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        return self._asdict()


class Change(NamedTuple):
    """What a run was made with, and what it goes on with."""

    before: Recorded
    now: Recorded

    @property
    def differs(self) -> bool:
        """Whether anything is known to differ."""
        return self.before.data != self.now.data

    @property
    def is_other_kind(self) -> bool:
        """Whether it is of another class, and so has another state."""
        return self.before.kind != self.now.kind


def _data_of(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, (list, tuple)):
        return [_data_of(child) for child in value]
    if isinstance(value, Mapping):
        own = {
            str(key): _data_of(part)
            for key, part in value.items()
            if not isinstance(part, _ARRAYS)
        }
        return {"kind": type(value).__qualname__, "of": own}  # a key may be "kind", too
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        own = {k: _data_of(part) for k, part in parts.items() if not isinstance(part, _ARRAYS)}
        return {"kind": type(value).__qualname__, **own}
    return {"kind": getattr(value, "__qualname__", type(value).__qualname__)}
