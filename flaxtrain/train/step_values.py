"""What a step says about its update at log points: norms, rates and decays, also by group."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.spec import Assignment, OptState
from flaxtrain.spec.clipping import clipped_gradient, clips_anything
from flaxtrain.train.state import TrainState
from flaxtrain.tree import Path, flatten, global_norm, split, widened
from flaxtrain.typing import Array, Params, Updates

# Nothing here is public: `train_step` returns these values.
__all__ = []


def step_values(
    assignment: Assignment,
    grads: Updates,
    updates: Updates,
    old: TrainState,
    new: TrainState,
    grad_norm: Array,
) -> dict[str, Array]:
    """Returns the values of one accepted step by name, float scalars.

    Args:
        assignment: the groups.
        grads: gradients of the trained parameters, before clipping.
        updates: what was added to the trained parameters.
        old: the state before the update.
        new: the state after the update.
        grad_norm: the norm of `grads`.
    """
    params = old.split_params()[0]
    trees = {"update_norm": updates, "param_norm": params}
    if _clips(assignment, old):
        # What the update has just computed, too: the compiler does it once.
        exact = old.rounding.exact(params, old.rounding_carry)
        trees["clipped_grad_norm"] = clipped_gradient(
            assignment, grads, exact, old.opt_state, grad_norm
        )
    values = {name: _norm(tree) for name, tree in trees.items()}
    for group, paths in _groups(assignment, params).items():
        for name, tree in {"grad_norm": grads, **trees}.items():
            values[f"{name}/{group}"] = _norm(split(tree, paths)[0])
    return {**values, **_numbers(assignment, new)}


def _norm(tree: Updates) -> Array:
    """Returns the norm of all arrays together, the smallest first.

    In that order a TPU's compiler forms their sums, and each that waits has memory of its own.
    """
    return global_norm(sorted(jax.tree.leaves(widened(tree)), key=jnp.size))


def value_names(assignment: Assignment, state: TrainState) -> tuple[str, ...]:
    """Returns the names of what `step_values` returns."""
    groups = _groups(assignment, state.split_params()[0])
    clipped = ("clipped_grad_norm",) if _clips(assignment, state) else ()
    norms = ("update_norm", "param_norm", *clipped)
    by_group = (f"{name}/{group}" for group in groups for name in ("grad_norm", *norms))
    return (*norms, *by_group, *_numbers(assignment, state))


def _clips(assignment: Assignment, state: TrainState) -> bool:
    """Whether there is a norm after clipping to tell."""
    return clips_anything(assignment) and isinstance(state.opt_state, OptState)


def _groups(assignment: Assignment, params: Params) -> dict[str, frozenset[Path]]:
    """Returns the trained parameters of each group; nothing where there is one group only."""
    if sum(bool(group.paths) for group in assignment.groups) < 2:
        return {}
    trained = frozenset(flatten(params))
    return {
        group.name: group.paths & trained
        for group in assignment.groups
        if group.paths & trained
    }


def _numbers(assignment: Assignment, state: TrainState) -> dict[str, Any]:
    """Returns the known learning rates and weight decays; one group alone needs no name."""
    rates = {name: rate for name, rate in state.learning_rates.items() if rate is not None}
    decays: dict[str, Any] = {}
    if isinstance(state.opt_state, OptState):
        trained = frozenset(flatten(state.split_params()[0]))
        decays = {
            group.name: state.opt_state.hyperparams[group.name]["weight_decay"]
            if any(assignment.params[path].decays for path in group.paths & trained)
            else jnp.zeros((), jnp.float32)
            for group in assignment.groups
            if group.paths and "weight_decay" in group.hyperparameters.numbers
        }
    several = sum(bool(group.paths) for group in assignment.groups) > 1 or len(rates) > 1
    tables = (("learning_rate", rates), ("weight_decay", decays))
    return {
        f"{kind}/{name}" if several else kind: value
        for kind, table in tables
        for name, value in table.items()
    }
