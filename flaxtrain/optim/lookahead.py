"""Lookahead: slow parameters that follow the fast ones.

Zhang, Lucas, Hinton & Ba 2019, "Lookahead Optimizer: k steps forward, 1 step back",
arXiv:1907.08610, Algorithm 1. Fast parameters theta take k steps of any optimizer; then slow
parameters phi move towards them, and the fast ones start from there:
    phi <- phi + alpha (theta - phi)        theta <- phi
As updates to be added, with u the last fast update and d = theta + u - phi:
    for phi: alpha d        for theta: u - (1 - alpha) d
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_flag, check_integer, check_number
from flaxtrain.errors import ParameterError
from flaxtrain.optim.dtypes import with_dtypes_of
from flaxtrain.optim.transform import (
    GradientTransformation,
    TransformationLike,
    named,
    require_params,
    with_extra_args,
)
from flaxtrain.typing import Array, ArrayLike, OptState, Params, Updates

__all__ = ["LookaheadParams", "LookaheadState", "lookahead"]


class LookaheadParams(NamedTuple):
    """Two sets of parameters.

    Attributes:
        fast: gradients are taken at these.
        slow: the model to evaluate.
    """

    fast: Params
    slow: Params

    @classmethod
    def init_synced(cls, params: Params) -> LookaheadParams:
        """Returns a pair in which both are `params`; the slow ones are copies of the arrays.

        Example:
            >>> LookaheadParams.init_synced(1.0)
            LookaheadParams(fast=1.0, slow=1.0)
        """
        # With buffers of their own, since a pair with one buffer twice can't be donated.
        slow = jax.tree.map(
            lambda leaf: jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf, params
        )
        return cls(fast=params, slow=slow)


class LookaheadState(NamedTuple):
    """The state of the fast optimizer, and its steps since the slow parameters moved, int32."""

    fast_state: OptState
    steps_since_sync: Any  # an Array


@named
def lookahead(
    fast_optimizer: TransformationLike,
    sync_period: ArrayLike,
    slow_step_size: ArrayLike,
    reset_state: bool = False,
) -> GradientTransformation:
    """Makes the optimizer that moves slow parameters towards fast ones every few steps.

    Parameters are `LookaheadParams`; gradients are those at the fast ones, a tree like
    `params.fast`. Updates have to be added as they are. What is not finite in a fast update
    reaches the slow parameters only when they move.

    Args:
        fast_optimizer: moves the fast parameters; extra arguments of `update` are handed to it.
        sync_period: number of fast steps k between two moves of the slow parameters, >= 1.
        slow_step_size: step size alpha of the slow parameters, in [0, 1].
        reset_state: start the state of the fast optimizer anew after each move.

    Returns:
        A transformation whose state is a `LookaheadState`, and whose updates are a pair like
        the parameters. `init` also accepts the fast parameters alone.

    Raises:
        ArgumentError: a number is out of range.
        ArgumentTypeError: an argument has the wrong type.
        ParameterError: (from `update`) the parameters are not a pair.

    Example:
        >>> from flaxtrain.optim import apply_updates, sgd
        >>> tx = lookahead(sgd(1.0), sync_period=2, slow_step_size=0.5)
        >>> params = LookaheadParams.init_synced(jnp.float32(0.0))
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update(jnp.float32(-1.0), state, params)
        ...     params = apply_updates(params, updates)
        ...     print(params.fast, params.slow)
        1.0 0.0
        1.0 1.0
    """
    check_integer("sync_period", sync_period, minimum=1, where="lookahead")
    check_number("slow_step_size", slow_step_size, minimum=0.0, maximum=1.0, where="lookahead")
    check_flag("reset_state", reset_state, where="lookahead")
    fast = with_extra_args(fast_optimizer)

    def init(params: Params, /) -> LookaheadState:
        return LookaheadState(
            fast_state=fast.init(getattr(params, "fast", params)),
            steps_since_sync=jnp.zeros([], jnp.int32),
        )

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, LookaheadState]:
        pair = _checked_pair(params)
        ahead, fast_state = fast.update(updates, state.fast_state, pair.fast, **extra_args)
        syncs = state.steps_since_sync >= sync_period - 1
        if reset_state:
            start = with_dtypes_of(fast.init(pair.fast), fast_state)
            fast_state = jax.tree.map(
                lambda new, old: jnp.where(syncs, new, old), start, fast_state
            )
        steps = jnp.where(syncs, 0, state.steps_since_sync + 1)
        moves = _moves(syncs, slow_step_size, ahead, pair)
        return moves, LookaheadState(fast_state, steps)

    return GradientTransformation(init, update)


def _moves(syncs: Array, slow_step_size: ArrayLike, ahead: Updates, params: Any) -> Any:
    """Returns the updates of both sets, in a pair of the class of `params`."""
    gap = jax.tree.map(lambda f, u, s: f + u - s, params.fast, ahead, params.slow)
    slow = jax.tree.map(lambda d: jnp.where(syncs, slow_step_size * d, jnp.zeros_like(d)), gap)
    fast = jax.tree.map(
        lambda u, d: jnp.where(syncs, u - (1 - slow_step_size) * d, u), ahead, gap
    )
    return params._replace(fast=fast, slow=slow)


def _checked_pair(params: Any) -> Any:
    require_params(params, "lookahead")
    if not (
        hasattr(params, "fast") and hasattr(params, "slow") and hasattr(params, "_replace")
    ):
        raise ParameterError(
            f"lookahead needs a pair of fast and slow parameters, and got {type(params)}",
            where="lookahead: update(updates, state, params)",
            fix="make the parameters with LookaheadParams.init_synced(params)",
        )
    return params
