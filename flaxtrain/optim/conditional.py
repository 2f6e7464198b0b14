"""Applying a transformation only at some steps, or only to finite gradients.

The transformation inside runs in one branch of a `lax.cond`: steps that leave it out cost
nothing, and its state stays bit for bit as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_flag, check_integer
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.optim.branch import raw_updates, update_if, zero_updates
from flaxtrain.optim.per_leaf import safe_increment
from flaxtrain.optim.transform import (
    GradientTransformation,
    TransformationLike,
    named,
    with_extra_args,
)
from flaxtrain.tree import all_finite
from flaxtrain.typing import Array, ArrayLike, OptState, Params, PyTree, Updates

__all__ = [
    "ApplyIfFiniteState",
    "ConditionFn",
    "ConditionallyMaskState",
    "ConditionallyTransformState",
    "apply_if_finite",
    "conditionally_mask",
    "conditionally_transform",
]


@runtime_checkable
class ConditionFn(Protocol):
    """`condition(step, **extra_args) -> bool scalar`."""

    def __call__(self, step: ArrayLike, **extra_args: Any) -> ArrayLike:
        """Returns whether the transformation is applied at this step.

        Args:
            step: int32 scalar, the number of updates before this one.
            **extra_args: the extra arguments of `update`, if they are forwarded.
        """
        ...


class ConditionallyTransformState(NamedTuple):
    """The state of the transformation inside, and the number of updates, int32."""

    inner_state: OptState
    step: Any  # an Array


class ConditionallyMaskState(NamedTuple):
    """The number of updates, int32, and the state of the transformation inside."""

    step: Any  # an Array
    inner_state: OptState


class ApplyIfFiniteState(NamedTuple):
    """What is known about gradients that were not finite.

    Attributes:
        notfinite_count: how many were left out in a row, int32; 0 after every applied one.
        last_finite: whether the last one was finite.
        total_notfinite: how many there were in all, int32.
        inner_state: the state of the transformation inside.
    """

    notfinite_count: Any  # an Array
    last_finite: Any  # an Array
    total_notfinite: Any  # an Array
    inner_state: OptState


@named
def conditionally_transform(
    inner: TransformationLike,
    should_transform_fn: ConditionFn,
    forward_extra_args: bool = False,
) -> GradientTransformation:
    """Applies `inner` at some steps; at the others updates pass through as they are.

    Args:
        inner: the transformation; its state changes only when it is applied.
        should_transform_fn: maps the number of updates before this one (int32 scalar) to a
            boolean scalar.
        forward_extra_args: hand the extra arguments of `update` to it as well.

    Returns:
        A transformation whose state is a `ConditionallyTransformState`.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: (from `update`) the condition is not a scalar.

    Example:
        >>> from flaxtrain.optim import scale
        >>> tx = conditionally_transform(scale(10.0), lambda step: step >= 1)
        >>> first, state = tx.update(jnp.float32(1.0), tx.init(None))
        >>> second, state = tx.update(jnp.float32(1.0), state)
        >>> print(first, second)
        1.0 10.0
    """
    return _conditionally(
        inner,
        should_transform_fn,
        forward_extra_args,
        state=ConditionallyTransformState,
        otherwise=raw_updates,
        where="conditionally_transform",
    )


@named
def conditionally_mask(
    inner: TransformationLike,
    should_transform_fn: ConditionFn,
    forward_extra_args: bool = False,
) -> GradientTransformation:
    """Applies `inner` at some steps; at the others updates are zero.

    Args:
        inner: the transformation; its state changes only when it is applied.
        should_transform_fn: maps the number of updates before this one (int32 scalar) to a
            boolean scalar.
        forward_extra_args: hand the extra arguments of `update` to it as well.

    Returns:
        A transformation whose state is a `ConditionallyMaskState`.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: (from `update`) the condition is not a scalar.

    Example:
        >>> from flaxtrain.optim import scale
        >>> tx = conditionally_mask(scale(10.0), lambda step: step % 2 == 1)
        >>> first, state = tx.update(jnp.float32(1.0), tx.init(None))
        >>> second, state = tx.update(jnp.float32(1.0), state)
        >>> print(first, second)
        0.0 10.0
    """
    return _conditionally(
        inner,
        should_transform_fn,
        forward_extra_args,
        state=ConditionallyMaskState,
        otherwise=zero_updates,
        where="conditionally_mask",
    )


def _conditionally(
    inner: TransformationLike,
    condition: ConditionFn,
    forward_extra_args: bool,
    *,
    state: Callable[..., Any],
    otherwise: Callable[[Updates, PyTree], Updates],
    where: str,
) -> GradientTransformation:
    part, make = with_extra_args(inner), state
    check_flag("forward_extra_args", forward_extra_args, where=where)
    if not callable(condition):
        raise ArgumentTypeError(
            f"should_transform_fn={condition!r} is not callable",
            where=where,
            fix="pass a function from the step to a boolean scalar",
        )

    def init(params: Params, /) -> OptState:
        return make(step=jnp.zeros([], jnp.int32), inner_state=part.init(params))

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, OptState]:
        decided = condition(state.step, **(extra_args if forward_extra_args else {}))
        updates, inner_state = update_if(
            _flag(decided, where),
            part,
            updates,
            state.inner_state,
            params,
            extra_args,
            otherwise=otherwise,
        )
        return updates, make(step=safe_increment(state.step), inner_state=inner_state)

    return GradientTransformation(init, update)


def _flag(decided: ArrayLike, where: str) -> Array:
    flag = jnp.asarray(decided)
    if flag.ndim or not (flag.dtype == bool or jnp.issubdtype(flag.dtype, jnp.number)):
        raise ArgumentError(
            f"should_transform_fn returned shape {flag.shape} and dtype {flag.dtype}",
            where=where,
            fix="return one boolean, such as step >= 100",
        )
    return flag.astype(bool)


@named
def apply_if_finite(
    inner: TransformationLike, max_consecutive_errors: ArrayLike
) -> GradientTransformation:
    """Leaves out updates that are not finite, a limited number of times in a row.

    The update after that many is applied all the same, so that a model that is lost shows it;
    then the count starts again.

    Args:
        inner: the transformation; its state changes only when it is applied.
        max_consecutive_errors: how many updates in a row may be left out, >= 0.

    Returns:
        A transformation whose state is an `ApplyIfFiniteState`.

    Raises:
        ArgumentError: `max_consecutive_errors` is negative.
        ArgumentTypeError: an argument has the wrong type.

    Example:
        >>> from flaxtrain.optim import sgd
        >>> tx = apply_if_finite(sgd(0.1), max_consecutive_errors=5)
        >>> updates, state = tx.update(jnp.float32(jnp.nan), tx.init(jnp.float32(0.0)))
        >>> print(updates, state.notfinite_count, state.last_finite)
        0.0 1 False
    """
    check_integer(
        "max_consecutive_errors", max_consecutive_errors, minimum=0, where="apply_if_finite"
    )
    part = with_extra_args(inner)

    def init(params: Params, /) -> ApplyIfFiniteState:
        return ApplyIfFiniteState(
            notfinite_count=jnp.zeros([], jnp.int32),
            last_finite=jnp.array(True),
            total_notfinite=jnp.zeros([], jnp.int32),
            inner_state=part.init(params),
        )

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, ApplyIfFiniteState]:
        finite = all_finite(jax.tree.map(jnp.asarray, updates))
        in_a_row = safe_increment(state.notfinite_count)
        total = safe_increment(state.total_notfinite)
        applied = finite | (in_a_row > max_consecutive_errors)
        updates, inner_state = update_if(
            applied,
            part,
            updates,
            state.inner_state,
            params,
            extra_args,
            otherwise=zero_updates,
        )
        return updates, ApplyIfFiniteState(
            notfinite_count=jnp.where(applied, 0, in_a_row),
            last_finite=finite,
            total_notfinite=jnp.where(finite, state.total_notfinite, total),
            inner_state=inner_state,
        )

    return GradientTransformation(init, update)
