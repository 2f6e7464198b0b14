"""Running a transformation only when a condition holds, known before or while it runs.

Arithmetic can't leave something out: `False * NaN` is NaN. So nothing here multiplies by a
condition; the branch that is not taken is not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from flaxtrain.checks import is_concrete
from flaxtrain.optim.dtypes import with_dtypes_of
from flaxtrain.optim.transform import TransformationLike
from flaxtrain.typing import ArrayLike, OptState, Params, PyTree, Updates

__all__ = ["branch", "raw_updates", "update_if", "zero_updates"]

T = TypeVar("T")


def branch(
    condition: ArrayLike, if_true: Callable[..., T], if_false: Callable[..., T], *operands: Any
) -> T:
    """Returns `if_true(*operands)` or `if_false(*operands)`, and computes only that one.

    A condition that is known is decided in Python; inside `jit` it is one `lax.cond`.

    Args:
        condition: a boolean scalar.
        if_true: a function of the operands.
        if_false: another one, with a result of the same structure, shapes and dtypes.
        *operands: trees of arrays.

    Example:
        >>> print(branch(True, jnp.exp, jnp.log, 0.0))
        1.0
    """
    if is_concrete(condition):
        return if_true(*operands) if condition else if_false(*operands)
    return jax.lax.cond(condition, if_true, if_false, *operands)


def zero_updates(updates: Updates, shapes: PyTree) -> Updates:
    """Returns zeros of the given shapes and dtypes."""
    return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)


def raw_updates(updates: Updates, shapes: PyTree) -> Updates:
    """Returns the updates as they came, in the given dtypes."""
    return with_dtypes_of(updates, shapes)


def update_if(
    condition: ArrayLike,
    tx: TransformationLike,
    updates: Updates,
    state: OptState,
    params: Params | None,
    extra_args: dict[str, Any],
    *,
    otherwise: Callable[[Updates, PyTree], Updates],
) -> tuple[Updates, OptState]:
    """Returns what `tx.update` returns if the condition holds; else keeps the state.

    Args:
        condition: a boolean scalar.
        tx: a transformation that takes extra arguments.
        updates: its updates.
        state: its state; it comes back in the same dtypes.
        params: its parameters.
        extra_args: its extra arguments.
        otherwise: makes the updates of the other case, from `updates` and the shapes and dtypes
            that `tx` gives.

    Example:
        >>> from flaxtrain.optim import trace
        >>> tx, one = trace(0.5), jnp.float32(1.0)
        >>> updates, state = update_if(
        ...     False, tx, one, tx.init(one), None, {}, otherwise=zero_updates
        ... )
        >>> print(updates, state.trace)
        0.0 0.0
    """

    def run(updates: Updates, state: OptState, params: Params | None) -> Any:
        new, after = tx.update(updates, state, params, **extra_args)
        return new, with_dtypes_of(after, state)

    def keep(updates: Updates, state: OptState, params: Params | None) -> Any:
        # Traced once more, without computing anything: the dtypes are the other branch's.
        shapes, _ = jax.eval_shape(run, updates, state, params)
        return otherwise(updates, shapes), state

    return branch(condition, run, keep, updates, state, params)
