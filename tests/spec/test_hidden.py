"""Shampoo for the hidden matrices of a transformer, and AdamW for the rest."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.optim import apply_updates
from flaxtrain.params import Facts, param_facts, selector
from flaxtrain.spec import Group, OptSpec, build
from flaxtrain.tree import flatten, unflatten
from tests.models import GPT
from tests.spec.small import draw

# Preconditioned from the first step: before that, Shampoo with its default graft is Adam.
AT_ONCE: dict[str, Any] = {"precondition_from": 1, "precondition_every": 1}
SPEC = OptSpec("adamw", 1e-3, groups=[Group("#hidden", optimizer="shampoo", **AT_ONCE)])
Tree = dict[str, Any]


@functools.cache
def facts() -> Facts:
    return param_facts(GPT(width=4, layers=2), jnp.zeros((2, 4), jnp.int32))


def hidden() -> set[str]:
    """The kernels of the blocks, by their names."""
    return {fact.name for fact in facts().params if fact.path[-1] == "kernel"}


def part(of_hidden: bool) -> Facts:
    return Facts(tuple(f for f in facts().params if (f.name in hidden()) == of_hidden))


def updates(spec: OptSpec, table: Facts, steps: int = 2) -> tuple[list[dict[Any, Any]], Any]:
    """Returns the updates by path, and the last state; gradients don't depend on the table."""

    def pruned(tree: Tree) -> Tree:
        return unflatten({path: flatten(tree)[path] for path in table})

    tx, params = build(spec, table), pruned(draw(0, facts=facts()))
    state, found, step_of = tx.init(params), [], jax.jit(tx.update)
    for step in range(steps):
        update, state = step_of(pruned(draw(1 + step, facts=facts())), state, params)
        params = apply_updates(params, update)
        found.append({path: np.asarray(leaf) for path, leaf in flatten(update).items()})
    return found, state


def test_each_parameter_changes_as_the_optimizer_of_its_group_alone_would_have_it() -> None:
    together, state = updates(SPEC, facts())
    shampoo, _ = updates(OptSpec("shampoo", 1e-3, **AT_ONCE), part(of_hidden=True))
    adamw, _ = updates(OptSpec("adamw", 1e-3), part(of_hidden=False))
    for both, matrices, rest in zip(together, shampoo, adamw, strict=True):
        assert both.keys() == matrices.keys() | rest.keys() == set(facts())
        for path, alone in (matrices | rest).items():
            np.testing.assert_array_equal(both[path], alone, err_msg=str(path))
    assert int(state.count) == 2
    # And AdamW would have done something else to them.
    other, _ = updates(OptSpec("adamw", 1e-3), part(of_hidden=True), steps=1)
    assert all(np.any(shampoo[0][path] != update) for path, update in other[0].items())


def test_states_of_both_optimizers_are_keyed_by_the_names_of_the_groups() -> None:
    state = build(SPEC, facts()).init(draw(0, facts=facts()))
    assert state.slots.keys() == state.hyperparams.keys() == {"hidden", "default"}
    moments = {"/".join(path) for path in flatten(state.slots["default"]["mu"])}
    assert moments == {fact.name for fact in facts().params} - hidden()
    assert selector(SPEC.groups[0].select) == selector("#hidden")
