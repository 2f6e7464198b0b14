"""What becomes of the gradient of a batch: rejected, added to those before, or an update made.

reject   keep everything
keep     add to the batches of this update
emit     with the last one clip, precondition, decay, learning rate, apply, average
Where only log points have norms and rates, `emit` is there twice, with them and without. One
conditional. Norms are formed where the state changes, so that an update is made once. They
are formed before the new parameters are written, which then take the place of the old ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxtrain.metrics import Mean, Terms
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.state import TrainState
from flaxtrain.train.step_values import step_values, value_names
from flaxtrain.train.verdict import Verdict, accepted, counters_after
from flaxtrain.tree import global_norm, where, zeros_like
from flaxtrain.typing import Array, ArrayLike, Collections, DTypeLike, Updates

# Nothing here is public: `train_step` is.
__all__ = []

Metrics = dict[str, Mean]


class Found(NamedTuple):
    """What a batch has shown: one gradient, or one for each term of the loss.

    Attributes:
        grads: without the loss scale, float32 at least.
        norm: of their sum, a scalar: float64 where gradients are, else float32. All norms and
            rates of the step have its dtype.
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
        emits = decided.accept & self._emits
        dtype = found.norm.dtype
        vector = jnp.zeros(len(self._nothing), dtype)

        def reject(operands: tuple[TrainState, Found]) -> tuple[TrainState, Array, Array]:
            old, found = operands
            counters = counters_after(old.counters, decided, found.examples, halted)
            return old.replace(counters=counters), jnp.zeros((), dtype), vector

        def keep(operands: tuple[TrainState, Found]) -> tuple[TrainState, Array, Array]:
            old, sums = self._added(operands)
            return old.replace(accumulated=sums), jnp.zeros((), dtype), vector

        def emit(
            operands: tuple[TrainState, Found], *, measured: bool
        ) -> tuple[TrainState, Array, Array]:
            made = self._updated(operands)
            new, values = self._measured(made, dtype) if measured else (made.new, vector)
            return new.averaged(), jnp.asarray(made.grad_norm, dtype), values

        plain, measuring = (partial(emit, measured=measured) for measured in (False, True))
        branches = [reject, *([] if self._accumulation.every_batch else [keep])]
        if isinstance(norms, bool):
            # Nested: of a conditional of three branches in a loop over steps, XLA makes a copy
            # of the state in every step.
            state, norm, vector = jax.lax.cond(
                emits,
                measuring if norms else plain,
                lambda operands: jax.lax.switch(
                    decided.accept.astype(jnp.int32), branches, operands
                ),
                (self._state, found),
            )
        else:
            last = len(branches) + norms.astype(jnp.int32)
            index = jnp.where(decided.accept, jnp.where(self._emits, last, 1), 0)
            branches += [plain, measuring]
            state, norm, vector = jax.lax.switch(index, branches, (self._state, found))
        # Else the compiler has each branch return them once more, as those want them who read.
        state = state.replace(counters=jax.lax.optimization_barrier(state.counters))
        values = self._names.unflatten(list(vector))
        return state, {"grad_norm": Mean(norm, emits.astype(jnp.float32)), **values}

    def _measured(self, made: _Made, dtype: DTypeLike) -> tuple[TrainState, Array]:
        """Returns the state after an update, and norms and rates as one array.

        One array, since each number that a conditional returns is copied. The new parameters
        are made to depend on the norms, for which the old ones are read: by itself the compiler
        does not put the one before the other, and copies the parameters in every step.
        """
        old, new = made.old, made.new
        values = step_values(
            self._recipe.assignment, made.grads, made.updates, old, new, made.grad_norm
        )
        metrics = {name: single(value, dtype) for name, value in values.items()}
        # No sum of norms is -1, which the compiler doesn't know; that of NaN is not -1 either.
        never = values["update_norm"] + values["param_norm"] == -1
        trained, frozen = new.split_params()
        trained, carry = jax.lax.platform_dependent(
            never,
            (trained, new.rounding_carry),
            cpu=lambda never, written: where(never, zeros_like(written), written),
            default=lambda never, written: written,
        )
        new = new.replace(params=new.joined(trained, frozen), rounding_carry=carry)
        return new, jnp.stack(jax.tree.leaves(metrics))

    def _added(self, operands: tuple[TrainState, Found]) -> tuple[TrainState, Any]:
        old, found = operands
        sums = self._accumulation.add(old.accumulated, found.grads, found.loss)
        # Here, where `accept` is known, little is left to count.
        counters = counters_after(old.counters, accepted(), found.examples, jnp.array(False))
        return old.replace(collections=found.collections, counters=counters), sums

    def _updated(self, operands: tuple[TrainState, Found]) -> _Made:
        old, sums = self._added(operands)
        grads, value, sums = self._accumulation.emit(sums)
        # Known already, where it is that of one batch.
        known = self._accumulation.every_batch
        grad_norm = operands[1].norm if known else global_norm(grads)
        offered = {"value": value, "grad": grads, **self._functions}
        new, updates = old.updated(grads, grad_norm=grad_norm, **offered)
        return _Made(old, grads, grad_norm, new.replace(accumulated=sums), updates)


def single(value: ArrayLike, dtype: DTypeLike = jnp.float32) -> Mean:
    """Returns the metric of one value."""
    return Mean(jnp.asarray(value, dtype), jnp.ones((), jnp.float32))
