"""Several training steps in one compiled call: a pure function over stacked batches.

The same program serves every number of steps up to that for which it is made. A step that is
not asked for changes nothing, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxtrain.loop.steps_per_call import CallForm
from flaxtrain.train import TrainState
from flaxtrain.tree import where
from flaxtrain.typing import Array

__all__ = ["StepParts", "several_steps"]

Stacked = Any
Found = tuple[TrainState, Any, Array, Array]


class StepParts(NamedTuple):
    """What one training step is made of.

    Attributes:
        make: from state, window, batch, mask and whether norms are formed to state and window.
        due: from state and the number of the last batch to whether the next step forms norms.
            Once it does, so do all that follow in a call, which ends at the next log point.
        status: from state to a few integers, `[fields]`.
    """

    make: Callable[..., tuple[TrainState, Any]]
    due: Callable[[TrainState, Array], Array]
    status: Callable[[TrainState], Array]


def several_steps(parts: StepParts, call_form: CallForm) -> Callable[..., Found]:
    """Returns the function that makes up to `call_form.steps` steps.

    Args:
        parts: what one step is made of.
        call_form: how many there are, and in what form.

    Returns:
        A function of state, window, batches and masks (leaves `[steps, rows, ...]`, masks may
        be None), the number `last` of the run's last batch, and `span`, int32 `[2]`: the first
        batch to be used, and the one behind the last. It returns state and window, the status
        after the last step, and the statuses after each, `[steps, fields]`.
    """
    form = _looped if call_form.form == "loop" else _unrolled
    return partial(form, parts, call_form.steps)


class _Carry(NamedTuple):
    """What goes from step to step within a call."""

    at: Array
    state: TrainState
    window: Any
    statuses: Array


def _looped(
    parts: StepParts,
    steps: int,
    state: TrainState,
    window: Any,
    batches: Stacked,
    masks: Stacked,
    last: Array,
    span: Array,
) -> Found:
    """One loop without norms and one with them.

    In a single loop, a conditional that has a branch for each makes XLA copy the whole state in
    every step: it changes it in place only where there are two branches.
    """

    def body(norms: bool, carry: _Carry) -> _Carry:
        at, state, window, statuses = carry
        data, mask = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, at, keepdims=False),
            (batches, masks),
        )
        state, window = parts.make(state, window, data, mask, norms)
        statuses = jax.lax.dynamic_update_index_in_dim(statuses, parts.status(state), at, 0)
        return _Carry(at + 1, state, window, statuses)

    def within(carry: _Carry) -> Array:
        return carry.at < span[1]

    def before_norms(carry: _Carry) -> Array:
        return within(carry) & ~parts.due(carry.state, last)

    status = parts.status(state)
    statuses = jnp.zeros((steps, *status.shape), status.dtype)
    carry = _Carry(span[0], state, window, statuses)
    carry = jax.lax.while_loop(before_norms, partial(body, False), carry)
    carry = jax.lax.while_loop(within, partial(body, True), carry)
    return carry.state, carry.window, parts.status(carry.state), carry.statuses


def _unrolled(
    parts: StepParts,
    steps: int,
    state: TrainState,
    window: Any,
    batches: Stacked,
    masks: Stacked,
    last: Array,
    span: Array,
) -> Found:
    """All steps written out. Those that are not asked for are made as if the run were halted.

    A conditional around a step would do without them, but as in a loop, XLA makes convolutions
    in it several times slower on a CPU.
    """
    statuses = []
    for index in range(steps):
        data, mask = jax.tree.map(lambda leaf, i=index: leaf[i], (batches, masks))
        live = (span[0] <= index) & (index < span[1])
        halted, seen = state.counters.halted, window
        norms = parts.due(state, last) & live
        state = _with_halted(state, jnp.where(live, halted, 1))
        state, window = parts.make(state, window, data, mask, norms)
        state = _with_halted(state, jnp.where(live, state.counters.halted, halted))
        window = where(live, window, seen)
        statuses.append(parts.status(state))
    return state, window, statuses[-1], jnp.stack(statuses)


def _with_halted(state: TrainState, halted: Array) -> TrainState:
    return state.replace(counters=state.counters.replace(halted=halted))
