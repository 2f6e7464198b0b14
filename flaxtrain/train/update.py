"""What becomes of the gradient of a batch: rejected, added to those before, or an update made.

values   where only log points have them: the update is made, and its norms and rates are kept
change   reject: keep everything
         keep:   add to the batches of this update
         emit:   with the last one clip, precondition, decay, learning rate, apply, average
Two conditionals, one after the other. Were the norms formed where the state changes, the arrays
from which they are formed would have to be kept beside the new state. Made for the norms alone,
an update leaves nothing behind, and the one that is kept is made in place. Norms of every step
are formed with the change: an update is then made once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxtrain.metrics import Mean, Terms
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.state import TrainState
from flaxtrain.train.step_values import step_values, value_names
from flaxtrain.train.verdict import Verdict, accepted, counted
from flaxtrain.tree import global_norm
from flaxtrain.typing import Array, ArrayLike, Collections, Updates

# Nothing here is public: `train_step` is.
__all__ = []

Metrics = dict[str, Mean]


class Found(NamedTuple):
    """What a batch has shown: one gradient, or one for each term of the loss.

    Attributes:
        grads: without the loss scale, float32 at least.
        norm: of their sum, a scalar.
        loss: of the batch, with its weights.
        collections: those after the batch.
        examples: number of real rows in the batch, an int32 scalar.
    """

    grads: list[Updates]
    norm: Array
    loss: Terms
    collections: Collections
    examples: Array


class _Made(NamedTuple):
    """State, gradient and its norm before an update; state and updates after it."""

    old: TrainState
    grads: Updates
    grad_norm: Array
    new: TrainState
    updates: Updates


class Change:
    """The change of the state by one batch.

    Args:
        recipe: what does not change in the run.
        state: the state before.
        functions: what optimizers may call, by the name of the argument.
    """

    def __init__(self, recipe: Recipe, state: TrainState, functions: Mapping[str, Any]) -> None:
        self._recipe, self._functions = recipe, functions
        self._state, self._accumulation = state, recipe.accumulation
        self._emits = self._accumulation.emits(state.accumulated)
        nothing = {name: Mean.empty() for name in value_names(recipe.assignment, state)}
        self._nothing, self._names = jax.tree.flatten(nothing)

    def made(
        self, found: Found, decided: Verdict, halted: Array, norms: bool | Array
    ) -> tuple[TrainState, Metrics]:
        """Accepts or rejects a batch whole; a select would copy the state.

        Args:
            found: what the batch has shown.
            decided: whether it is accepted.
            halted: whether the run ends with it.
            norms: whether to form norms and rates, if there is an update: True or False for
                all steps, or a bool scalar.

        Returns:
            The state after, and the metrics of the update: `grad_norm`, and those of
            `step_values`. Without an update they have no weight.
        """
        always = self._emits is True
        accept = decided.accept
        emits = accept & self._emits
        vector = jnp.zeros(len(self._nothing), jnp.float32)
        if not isinstance(norms, bool):
            vector, accept = self._apart(found, accept, emits & norms)

        def reject(operands: tuple[TrainState, Found]) -> tuple[TrainState, Array, Array]:
            old, found = operands
            counters = counted(old.counters, decided, found.examples, halted)
            return old.replace(counters=counters), _zero(), vector

        def keep(operands: tuple[TrainState, Found]) -> tuple[TrainState, Array, Array]:
            old, sums = self._added(operands)
            return old.replace(accumulated=sums), _zero(), vector

        def emit(operands: tuple[TrainState, Found]) -> tuple[TrainState, Array, Array]:
            made = self._updated(operands)
            values = self._formed(made)[0] if norms is True else vector
            return made.new.averaged(), jnp.asarray(made.grad_norm, jnp.float32), values

        branches = [reject, *([] if always else [keep]), emit]
        index = jnp.where(accept, jnp.where(self._emits, len(branches) - 1, 1), 0)
        state, norm, vector = jax.lax.switch(index, branches, (self._state, found))
        values = self._names.unflatten(list(vector))
        return state, {"grad_norm": Mean(norm, emits.astype(jnp.float32)), **values}

    def _apart(self, found: Found, accept: Array, due: Array) -> tuple[Array, Array]:
        """Returns the norms and rates of the update where they are due, and `accept` itself.

        The latter as a result of what reads the state here: with it the update waits until the
        old state has been read, and may overwrite it. By itself the compiler does not put the
        one before the other, and copies the state instead.
        """

        def form(operands: tuple[TrainState, Found]) -> tuple[Array, Array]:
            vector, update_norm = self._formed(self._updated(operands))
            # A norm is never below 0, which the compiler doesn't know; of NaN this is True.
            return vector, ~(update_norm < 0)

        def leave_out(operands: tuple[TrainState, Found]) -> tuple[Array, Array]:
            return jnp.zeros(len(self._nothing), jnp.float32), accept

        return jax.lax.cond(due, form, leave_out, (self._state, found))

    def _formed(self, made: _Made) -> tuple[Array, Array]:
        """Returns norms and rates as one array, and the norm of the update.

        One array, since each number that a conditional returns is copied.
        """
        assignment = self._recipe.assignment
        values = step_values(
            assignment, made.grads, made.updates, made.old, made.new, made.grad_norm
        )
        metrics = {name: single(value) for name, value in values.items()}
        return jnp.stack(jax.tree.leaves(metrics)), values["update_norm"]

    def _added(self, operands: tuple[TrainState, Found]) -> tuple[TrainState, Any]:
        old, found = operands
        sums = self._accumulation.add(old.accumulated, found.grads, found.loss)
        # Here, where `accept` is known, little is left to count.
        counters = counted(old.counters, accepted(), found.examples, jnp.array(False))
        return old.replace(collections=found.collections, counters=counters), sums

    def _updated(self, operands: tuple[TrainState, Found]) -> _Made:
        old, sums = self._added(operands)
        grads, value, sums = self._accumulation.emit(sums)
        grad_norm = operands[1].norm if self._emits is True else global_norm(grads)
        offered = {"value": value, "grad": grads, **self._functions}
        new, updates = old.updated(grads, grad_norm=grad_norm, **offered)
        return _Made(old, grads, grad_norm, new.replace(accumulated=sums), updates)


def _zero() -> Array:
    return jnp.zeros((), jnp.float32)


def single(value: ArrayLike) -> Mean:
    """Returns the metric of one value."""
    return Mean(jnp.asarray(value, jnp.float32), jnp.ones((), jnp.float32))
