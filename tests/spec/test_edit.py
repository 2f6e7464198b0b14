"""Editing numbers between updates: other numbers, the same program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxtrain as ft
from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError, UnknownNameError
from flaxtrain.optim import NAMED
from flaxtrain.schedules import linear_schedule
from flaxtrain.spec import Group, OptSpec, build, set_hyperparameters
from tests.spec.small import draw, net_facts, stepped

SPEC = OptSpec("adamw", 0.1, weight_decay=0.2, clip_norm=3.0, groups=[Group("head", b1=0.5)])


def built(spec: OptSpec = SPEC) -> Any:
    return build(spec, net_facts())


def test_edits_change_the_numbers_and_compile_nothing() -> None:
    tx, params, grads = built(), draw(0), draw(1)
    traces = []

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        traces.append(1)
        return stepped(tx, params, state, grads)

    fresh = tx.init(params)
    assert step(params, fresh)
    edits: dict[str, Any] = {
        "learning_rate": 0.05,
        "weight_decay": np.float32(0.4),
        "clip_norm": jnp.float32(1.0),
        "b1": 0.8,
        "b2": 0.99,
        "eps": 1e-3,
    }
    edited = set_hyperparameters(fresh, tx, **edits)
    both = set_hyperparameters(edited, tx, group="head", learning_rate=0.7)
    for one in (edited, both):
        assert jax.tree.structure(one) == jax.tree.structure(fresh)
    new, _ = step(params, edited)
    other, _ = step(params, both)
    assert len(traces) == 1
    # What was edited is what a run with these numbers has from its beginning, bit for bit.
    group = Group("head", b1=0.5, **{k: getattr(SPEC, k) for k in ("learning_rate",)})
    inherited = group.replace(weight_decay=0.2, b2=0.999, eps=1e-8)
    wanted = built(SPEC.replace(**edits, groups=[inherited]))
    expected, _ = jax.jit(lambda p, s: stepped(wanted, p, s, grads))(
        params, wanted.init(params)
    )
    jax.tree.map(np.testing.assert_array_equal, new, expected)
    # And an edit of one group is one of that group.
    jax.tree.map(np.testing.assert_array_equal, new["body"], other["body"])
    assert np.any(new["head"]["kernel"] != other["head"]["kernel"])


def test_edited_numbers_stay_and_are_of_the_states_dtype() -> None:
    tx, params = built(), draw(0)
    state = set_hyperparameters(tx.init(params), tx, b2=0.999, learning_rate=1)
    rate = state.hyperparams["default"]["b2"]
    # In float32, 1 - 0.999 is off by 1e-5 of itself.
    assert rate.complement == np.float32(0.001)
    _, after = jax.jit(tx.update)(params, state, params)
    for one in (state, after):
        held = one.hyperparams["default"]
        assert held["learning_rate"] == 1.0
        assert {leaf.dtype for leaf in jax.tree.leaves(held)} == {np.dtype("float32")}
    assert after.learning_rates["default"] == 1.0


def test_a_train_state_is_edited_too() -> None:
    tx, params = built(), draw(0)
    state = ft.TrainState.create(apply_fn=lambda: None, params=params, tx=tx)
    edited = set_hyperparameters(state, group="head", learning_rate=0.5)
    assert edited.opt_state.hyperparams["head"]["learning_rate"] == 0.5
    assert state.opt_state.hyperparams["head"]["learning_rate"] == np.float32(0.1)
    assert edited.tx is tx


REFUSED: list[tuple[OptSpec, dict[str, Any], type[FlaxtrainError], str]] = [
    (SPEC, {"group": "haed", "b1": 0.5}, UnknownNameError, "unknown group 'haed'"),
    (SPEC, {"learning_rat": 0.5}, UnknownNameError, "did you mean 'learning_rate'?"),
    (SPEC, {"momentum": 0.5}, UnknownNameError, "unknown hyperparameter 'momentum'"),
    (SPEC, {"mu_dtype": 0.5}, ArgumentError, "'mu_dtype' is not among the numbers"),
    (SPEC, {"group": "head", "clip_norm": 1.0}, ArgumentError, "what is None or off"),
    (SPEC.replace(weight_decay=0.0), {"weight_decay": 0.1}, ArgumentError, "None or off"),
    (SPEC.replace(b2=linear_schedule(0.5, 0.9, 5)), {"b2": 0.1}, ArgumentError, "a schedule"),
    (SPEC, {"b1": 1.0}, ArgumentError, "b1=1.0 is out of range"),
    (SPEC, {"learning_rate": -1.0}, ArgumentError, "learning_rate=-1.0 is out of range"),
    (SPEC, {"clip_norm": 0.0}, ArgumentError, "clip_norm=0.0 is out of range"),
    (SPEC, {"weight_decay": float("nan")}, ArgumentError, "weight_decay=nan is out of range"),
    (SPEC, {"eps": "small"}, ArgumentTypeError, "eps='small' is a str, not a number"),
    (SPEC, {"b1": jnp.ones(2)}, ArgumentTypeError, "b1 has shape (2,)"),
    (OptSpec("shampoo", 0.1), {"b2": 1.0}, ArgumentError, "sums instead of averages"),
    (OptSpec(optim.adam(0.1)), {"learning_rate": 1.0}, ArgumentError, "not among the numbers"),
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("spec", "edit", "error", "text"), REFUSED)
def test_edits_that_cannot_be_are_refused(
    spec: OptSpec, edit: dict[str, Any], error: type[FlaxtrainError], text: str
) -> None:
    tx = built(spec)
    state = tx.init(draw(0))
    with pytest.raises(error) as caught:
        set_hyperparameters(state, tx, **edit)
    assert text in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    "make",
    [
        lambda: (built().init(draw(0)), None),
        lambda: (built().init(draw(0)), optim.adam(0.1)),
        lambda: (optim.adam(0.1).init(draw(0)), optim.adam(0.1)),
        lambda: (optax.adam(0.1).init(draw(0)), built()),
    ],
)
def test_states_that_no_spec_made_are_refused(make: Callable[[], Any]) -> None:
    state, tx = make()
    with pytest.raises(ArgumentTypeError, match="was not built from a spec"):
        set_hyperparameters(state, tx, learning_rate=0.1)


@pytest.mark.parametrize(
    "values",
    [
        {"weight_decay": None},
        {"clip_norm": linear_schedule(1.0, 2.0, 5)},
        {"b1": lambda c: 0.1},
    ],
    ids=["none", "schedule", "function"],
)
@pytest.mark.usefixtures("unchecked_types")
def test_only_numbers_can_be_edited(values: Any) -> None:
    tx = built()
    with pytest.raises(ArgumentTypeError, match="not a number"):
        set_hyperparameters(tx.init(draw(0)), tx, **values)


@pytest.mark.parametrize("name", [name for name, entry in NAMED.items() if entry.initial_only])
def test_what_is_read_only_when_slots_begin_is_not_edited(name: str) -> None:
    tx = built(OptSpec(name, 0.1))
    state = tx.init(draw(0))
    for key in NAMED[name].initial_only:
        with pytest.raises(ArgumentError, match=f"{name} reads '{key}' only when slots begin"):
            set_hyperparameters(state, tx, **{key: 0.01})


@pytest.mark.parametrize("group", ["default", "head"])
def test_numbers_that_a_method_has_only_once_change_for_all_of_its_groups(group: str) -> None:
    tx = built(OptSpec("noisy_sgd", 0.1, eta=0.01, groups=[Group("head", lr_mult=2.0)]))
    state = set_hyperparameters(tx.init(draw(0)), tx, group=group, eta=100.0)
    assert {float(numbers["eta"]) for numbers in state.hyperparams.values()} == {100.0}
    updates, _ = jax.jit(tx.update)(draw(1), state, draw(0))
    # Noise of variance 100 is added everywhere, to gradients of about 1.
    assert all(float(jnp.std(leaf)) > 0.3 for leaf in jax.tree.leaves(updates))
