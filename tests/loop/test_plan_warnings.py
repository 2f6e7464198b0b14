"""What looks wrong in a plan: each warning where it belongs, and not where it doesn't."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain import schedules
from flaxtrain.data import as_stream
from flaxtrain.durations import Horizon
from flaxtrain.loop.plan_warnings import warnings_of
from flaxtrain.params import Facts
from flaxtrain.spec import assign
from flaxtrain.train import Recipe, make_recipe

DATA = {"x": np.ones((8, 3), "float32"), "label": np.zeros(8, "int32")}
STREAM = as_stream(DATA, batch_size=4, shuffle=False, seed=0)

Model = nn.Sequential((nn.Dense(4), nn.Dense(2)))


class Dead(nn.Module):
    """A parameter that no output depends on."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        self.param("unused", nn.initializers.ones, (3, 3))
        return nn.Dense(2)(x)


@functools.cache
def traced(model: nn.Module) -> Recipe:
    return make_recipe(model, ft.OptSpec("sgd", 0.1), DATA)


def recipe_of(spec: ft.OptSpec, model: nn.Module = Model, steps: int = 100) -> Recipe:
    """Returns a recipe that is traced once for each model: warnings read the assignment."""
    recipe = traced(model)
    assignment = assign(spec, recipe.facts, Horizon(steps, 2, 4))
    return replace(recipe, spec=assignment.spec, assignment=assignment)


def warned(
    spec: ft.OptSpec, model: nn.Module = Model, steps: int | None = 100
) -> tuple[str, ...]:
    recipe = recipe_of(spec, model, steps or 100)
    return warnings_of(recipe, STREAM, Horizon(steps, 2, 4))


def sgd(rate: Any = 0.1, **arguments: Any) -> ft.OptSpec:
    return ft.OptSpec("sgd", rate, **arguments)


def test_a_plain_run_has_no_warning() -> None:
    assert warned(ft.OptSpec("adamw", 1e-3, weight_decay=0.1, layer_decay=0.5)) == ()


# About parameters.


def changed(recipe: Recipe, name: str, **changes: Any) -> Recipe:
    facts = [replace(f, **changes) if f.name == name else f for f in recipe.facts.params]
    return replace(recipe, facts=Facts(tuple(facts)))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"resolved": False},
            "no module was seen declaring layers_0/kernel: decay, groups and layers go by its "
            "path and shape only",
        ),
        (
            {"role": "other"},
            "role other has 46% of the weights (layers_0/kernel): the default decay leaves "
            "them out; say with decay= or a group what they need",
        ),
    ],
)
def test_a_parameter_that_little_is_known_about(changes: dict[str, Any], text: str) -> None:
    recipe = changed(recipe_of(sgd()), "layers_0/kernel", **changes)
    assert warnings_of(recipe, STREAM, Horizon(100)) == (text,)


def test_a_hundredth_of_the_weights_may_have_role_other() -> None:
    wide = nn.Sequential((nn.Dense(400), nn.Dense(2)))  # 2,402 values, of which 2 are a bias
    recipe = changed(recipe_of(sgd(), wide), "layers_1/bias", role="other")
    assert warnings_of(recipe, STREAM, Horizon(100)) == ()


def test_a_dead_parameter_that_is_trained() -> None:
    (text,) = warned(sgd(), Dead())
    assert text.startswith("the loss of training does not depend on unused, and they")
    assert warned(sgd(freeze="unused"), Dead()) == ()


def test_decay_of_nothing() -> None:
    spec = sgd(weight_decay=0.1, decay=lambda fact: False)
    (text,) = warned(spec)
    assert text.startswith("weight_decay=0.1, and no trained parameter decays")
    (text,) = warned(sgd(weight_decay=0.1, freeze="#kernel"))  # what decays is never trained
    assert text.startswith("weight_decay=0.1, and no trained parameter decays")
    assert warned(sgd(weight_decay=0.1, freeze="layers_0/**")) == ()
    assert warned(sgd(decay=lambda fact: False)) == ()
    assert warned(sgd(weight_decay=0.0, decay=lambda fact: False)) == ()
    # AdamW has a decay of its own, which nobody asked for here.
    assert warned(ft.OptSpec("adamw", 0.1, freeze="#kernel")) == ()


def test_layer_decay_where_the_depth_is_not_known() -> None:
    dead, text = warned(sgd(layer_decay=0.5), Dead())
    assert dead.startswith("the loss of training does not depend on")
    assert text.startswith("layer_decay: the depth of unused is not known")
    assert len(warned(sgd(layer_decay=ft.LayerDecay(0.5, layer_of={"unused": 0})), Dead())) == 1
    assert len(warned(sgd(layer_decay=ft.LayerDecay(0.5, layer_of=lambda f: 0)), Dead())) == 1
    assert warned(sgd(layer_decay=0.5, freeze="unused"), Dead()) == ()


# About learning rates.


@pytest.mark.parametrize(
    "spec",
    [
        sgd(0.0),
        sgd(0.1, groups=[ft.Group("**", name="default2", lr_mult=0.0)]),
        sgd(schedules.constant_schedule(0.0)),
        ft.OptSpec(ft.optim.sgd(0.0)),
    ],
)
def test_a_learning_rate_of_zero(spec: ft.OptSpec) -> None:
    (text,) = warned(spec)
    assert "is 0 in the whole run" in text


def test_a_frozen_group_may_have_a_learning_rate_of_zero() -> None:
    groups = [ft.Group("layers_0/**", learning_rate=0.0)]
    assert len(warned(sgd(groups=groups))) == 1
    assert warned(sgd(groups=groups, freeze="layers_0/**")) == ()


COSINE = schedules.warmup_cosine_decay_schedule


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (
            COSINE(0.0, 0.1, 5, 60),
            "the learning rate has a schedule shorter than the run: it is over after 60 of 100 "
            "updates; for the other 40 it is 0, and nothing changes",
        ),
        (
            schedules.linear_schedule(0.1, 0.01, 50),
            "the learning rate has a schedule shorter than the run: it is over after 50 of 100 "
            "updates; for the other 50 it is 0.01",
        ),
        (
            lambda count: 0.1 * jnp.maximum(0.0, 1 - count / 50),
            "the learning rate has a schedule shorter than the run: it is over after 50 of 100 "
            "updates; for the other 50 it is 0, and nothing changes",
        ),
        (
            COSINE(0.0, 0.1, 5, 400),
            "the learning rate has a schedule longer than the run: 400 updates, the run has "
            "100; it ends at 0.0867 instead of 0",
        ),
        (
            COSINE(0.0, 0.1, 150, 400),
            "the learning rate still rises when the run ends: its warm-up takes 150 updates, "
            "the run has 100",
        ),
        (
            schedules.warmup_constant_schedule(0.0, 0.1, 1000),
            "the learning rate still rises when the run ends: its warm-up takes 1000 updates, "
            "the run has 100",
        ),
    ],
)
def test_a_schedule_that_does_not_fit_the_run(rate: Any, text: str) -> None:
    assert warned(sgd(rate)) == (text,)
    assert warned(sgd(rate), steps=None) == ()  # the length of the run is not known


@pytest.mark.parametrize(
    "rate",
    [
        COSINE(0.0, 0.1, "5%", "100%"),
        COSINE(0.0, 0.1, 5, 99),
        COSINE(0.0, 0.1, 5, 110),
        schedules.warmup_constant_schedule(0.0, 0.1, 50),
        schedules.piecewise_constant_schedule(0.1, {60: 0.1, 80: 0.1}),
        schedules.exponential_decay(0.1, 100, 0.5),
        schedules.cosine_restarts_schedule(0.1, 30),
        schedules.inverse_sqrt_schedule(0.1, 10),
        lambda count: 0.1,
    ],
    ids=lambda rate: str(rate).partition(" at 0x")[0],
)
def test_a_schedule_that_fits(rate: Any) -> None:
    assert warned(sgd(rate)) == ()


def test_the_groups_that_share_a_learning_rate_are_named_once() -> None:
    short = COSINE(0.0, 0.1, 5, 50)
    inherits = ft.Group("layers_0/bias", name="a", weight_decay=0.0)
    (text,) = warned(sgd(short, groups=[inherits]))
    assert text.startswith("the learning rate has a schedule shorter")
    other = ft.Group("layers_1/bias", name="b", learning_rate=0.1)
    (text,) = warned(sgd(short, groups=[inherits, other]))
    assert text.startswith("the learning rate of group 'a' and 'default' has a schedule")


def test_the_schedule_of_an_optimizer_object_is_looked_at() -> None:
    (text,) = warned(ft.OptSpec(ft.optim.adam(COSINE(0.0, 0.1, 5, 50))))
    assert "shorter than the run" in text


# About phases.


def test_a_change_after_the_end_of_the_run() -> None:
    late = sgd(freeze=ft.Freeze("layers_0/**", until=100))
    (text,) = warned(late)
    assert text == (
        "the run ends after 100 updates, before the change at step 100 from which 2 parameters "
        "would be trained (layers_0/bias, layers_0/kernel)"
    )
    assert warned(late, steps=101) == ()
    assert warned(late, steps=None) == ()
    gradual = sgd(freeze=ft.Freeze("**/kernel", until=200, every=50))
    (text,) = warned(gradual)
    assert text.endswith(", and 1 more")


def test_nearly_everything_may_be_frozen() -> None:
    assert warned(sgd(freeze="~layers_1/bias")) == ()


def test_a_batch_that_could_not_be_padded() -> None:
    def loss(model: Any, batch: Any) -> Any:
        return jnp.mean(model(batch["x"]) ** 2)

    recipe = make_recipe(Model, sgd(), DATA, loss=loss)
    rows = as_stream(iter([DATA, DATA]), batch_size=None, shuffle=False, seed=0)
    (text,) = warnings_of(recipe, rows, Horizon(2))
    assert text.startswith("a batch with fewer rows would be refused: ")
    assert warnings_of(recipe, STREAM, Horizon(2)) == ()
