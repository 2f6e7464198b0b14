"""Whether one array fits in another's place, and what makes it fit where that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.errors import FlaxtrainError, ParameterError
from flaxtrain.params.path_patterns import shown_name
from flaxtrain.params.resampling import RESHAPES
from flaxtrain.params.restore import Reshape
from flaxtrain.text import kind_of
from flaxtrain.tree import Path

# Nothing here is public: `apply_restore` is.
__all__ = []


@dataclass(frozen=True)
class Fit:
    """An array that fits, and what was changed: `reshaped`, `cast`, `renamed`."""

    value: Any
    changes: frozenset[str] = frozenset()


class Misfit(Exception):
    """An array that does not fit: `Misfit(kind, found)`.

    Kinds are `shape`, `reshape` (the reshaping failed), `dtype` and `cast` (numbers are lost).
    """


def fitted(value: Any, here: Any, how: Reshape | None, *, exact: bool) -> Fit:
    """Returns an array of the shape and dtype of the one in its place.

    Args:
        value: a numpy or jax array.
        here: what it is to replace: an array or a `jax.ShapeDtypeStruct`.
        how: the reshaping for this path, or None.
        exact: whether another dtype is refused.

    Raises:
        Misfit: it does not fit.
    """
    changes = set()
    if how is not None:
        reshaped = _reshaped(value, how, tuple(here.shape))
        changes |= {"reshaped"} if reshaped is not value else set()
        value = reshaped
    if tuple(value.shape) != tuple(here.shape):
        raise Misfit("shape", f"{text_of(value)} in the source, {text_of(here)} here")
    if value.dtype != here.dtype:
        value = _cast(value, here, exact=exact)
        changes.add("cast")
    return Fit(value, frozenset(changes))


def _reshaped(value: Any, how: Reshape, shape: tuple[int, ...]) -> Any:
    if isinstance(how, str):
        if tuple(value.shape) == shape:
            return value
        try:
            return RESHAPES[how](np.asarray(value), shape)
        except FlaxtrainError as error:
            text = f"{text_of(value)} to shape {list(shape)} by {how}: {error.found}"
            raise Misfit("reshape", text) from None
    name = getattr(how, "__name__", type(how).__name__)
    try:
        result = how(np.asarray(value), shape)
    except Exception as error:
        raise Misfit("reshape", f"{name} raised {type(error).__name__}: {error}") from error
    if not isinstance(result, (np.ndarray, np.generic, jax.Array)):
        raise Misfit("reshape", f"{name} returned {kind_of(result)}, not an array")
    if tuple(result.shape) != shape:
        raise Misfit(
            "reshape", f"{name} returned {text_of(result)} for the shape {list(shape)}"
        )
    return result


def _cast(value: Any, here: Any, *, exact: bool) -> np.ndarray:
    """Returns the array in the wanted dtype, if that is asked for and nothing is lost."""
    if exact or not _same_kind(value.dtype, here.dtype):
        raise Misfit("dtype", f"{value.dtype} in the source, {here.dtype} here")
    array = np.asarray(value)
    with np.errstate(over="ignore"):  # told below, with the path
        cast = array.astype(here.dtype)
    if jnp.issubdtype(here.dtype, jnp.inexact):
        lost = np.isfinite(array) & ~np.isfinite(cast)
    else:
        lost = cast.astype(array.dtype) != array
        # -1 becomes 255 and -1 again: the sign tells.
        lost = lost | ((cast < 0) != (array < 0))
    if lost.any():
        what = f"{int(lost.sum())} of {array.size} numbers do not fit"
        raise Misfit("cast", f"{value.dtype} to {here.dtype}: {what}")
    return cast


def _same_kind(first: Any, second: Any) -> bool:
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer)
    return any(jnp.issubdtype(first, kind) and jnp.issubdtype(second, kind) for kind in kinds)


def placed(value: Any, here: Any, path: Path) -> Any:
    """Returns a copy, so that a step that donates its state takes nothing from the source."""
    if not isinstance(here, (jax.Array, jax.ShapeDtypeStruct)):
        return np.array(value)
    copy = jnp.array(value, copy=True) if isinstance(value, jax.Array) else np.array(value)
    # An array that was never placed must not become pinned to a device.
    sharding = here.sharding if getattr(here, "committed", True) else None
    placed = jax.device_put(copy, sharding)
    if placed.dtype != here.dtype:
        raise ParameterError(
            f"jax can't hold {here.dtype} now: it became {placed.dtype}",
            where=shown_name(path),
            fix="switch jax_enable_x64 on, or use variables of another dtype",
        )
    return placed


def text_of(array: Any) -> str:
    """Returns dtype and shape, as `float32[3,4]`."""
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"
