"""Adding updates to parameters, and keeping slow copies of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_integer, check_number
from flaxtrain.errors import ParameterError
from flaxtrain.tree import is_none, named_leaves
from flaxtrain.typing import Array, ArrayLike, Params, PyTree, Updates

__all__ = ["apply_updates", "incremental_update", "periodic_update"]


def apply_updates(params: Params, updates: Updates) -> Params:
    """Returns `params + updates`, each leaf in the dtype of its parameter.

    The sum is formed in the wider of the two dtypes and rounded once.

    Args:
        params: any pytree of arrays; `None` leaves stay `None`.
        updates: a tree like `params`; where it has `None`, the parameter is left as it is.

    Raises:
        ParameterError: the trees differ.

    Example:
        >>> params = {"w": jnp.ones(2, jnp.bfloat16)}
        >>> apply_updates(params, {"w": jnp.array([0.5, -1.0])})
        {'w': Array([1.5, 0], dtype=bfloat16)}
    """
    fix = "pass updates made from gradients of exactly these parameters"
    return _map(_add, ("parameters", params), ("updates", updates), fix=fix)


def _add(param: ArrayLike | None, update: ArrayLike | None) -> ArrayLike | None:
    if param is None or update is None:
        return param
    return jnp.asarray(param + update).astype(jnp.asarray(param).dtype)


def incremental_update(
    new_tensors: Params, old_tensors: Params, step_size: ArrayLike
) -> Params:
    """Returns `step_size * new + (1 - step_size) * old`: one step of a moving average.

    For averages of parameters (Polyak & Juditsky 1992) and slowly moving target networks.

    Args:
        new_tensors: any pytree of arrays; `None` leaves stay `None`.
        old_tensors: a tree like `new_tensors`, the average so far.
        step_size: how far to go, in [0, 1].

    Raises:
        ArgumentError: `step_size` is out of range.
        ArgumentTypeError: `step_size` is not a number.
        ParameterError: the trees differ.

    Example:
        >>> print(incremental_update(jnp.float32(4.0), jnp.float32(0.0), 0.25))
        1.0
    """
    check_number("step_size", step_size, minimum=0.0, maximum=1.0, where="incremental_update")

    def average(new: ArrayLike | None, old: ArrayLike | None) -> ArrayLike | None:
        if new is None or old is None:
            return None
        return step_size * new + (1.0 - step_size) * old

    fix = "pass an average of exactly these parameters"
    return _map(average, ("new_tensors", new_tensors), ("old_tensors", old_tensors), fix=fix)


def periodic_update(
    new_tensors: Params, old_tensors: Params, steps: ArrayLike, update_period: ArrayLike
) -> Params:
    """Returns `new_tensors` at every `update_period`-th step, else `old_tensors`.

    For target networks that stand still in between (Mnih et al. 2015, Nature 518).

    Args:
        new_tensors: any pytree of arrays.
        old_tensors: a tree like `new_tensors`; the result has its dtypes.
        steps: integer scalar, the number of steps taken.
        update_period: the period in steps, >= 1.

    Raises:
        ArgumentError: `update_period` is below 1.
        ArgumentTypeError: `steps` or `update_period` is not an integer.
        ParameterError: the trees differ.

    Example:
        >>> new, old = jnp.float32(1.0), jnp.float32(0.0)
        >>> [float(periodic_update(new, old, step, 3)) for step in (2, 3, 4)]
        [0.0, 1.0, 0.0]
    """
    check_integer("steps", steps, where="periodic_update")
    check_integer("update_period", update_period, minimum=1, where="periodic_update")
    fix = "pass a copy of exactly these parameters"
    new = _map(
        lambda old, new: jnp.asarray(new).astype(jnp.asarray(old).dtype),
        ("old_tensors", old_tensors),
        ("new_tensors", new_tensors),
        fix=fix,
        is_leaf=None,
    )
    # Also for known numbers: the result shares no buffer with parameters that may be donated.
    return jax.lax.cond(jnp.mod(steps, update_period) == 0, _first, _second, new, old_tensors)


def _first(new: Params, old: Params) -> Params:
    return new


def _second(new: Params, old: Params) -> Params:
    return jax.tree.map(jnp.asarray, old)


def _map(
    function: Callable[[Any, Any], ArrayLike | Array | None],
    first: tuple[str, PyTree],
    second: tuple[str, PyTree],
    *,
    fix: str,
    is_leaf: Callable[[Any], bool] | None = is_none,
) -> PyTree:
    """Maps over two trees; says which leaves one of them lacks."""
    try:
        return jax.tree.map(function, first[1], second[1], is_leaf=is_leaf)
    except ValueError as error:
        want, have = ({name for name, _ in named_leaves(tree)} for _, tree in (first, second))
        if have == want:
            raise
        raise ParameterError(
            f"{first[0]} and {second[0]} are trees of different structure",
            where=f"missing {sorted(want - have)[:3]}, unexpected {sorted(have - want)[:3]}",
            fix=fix,
        ) from error
