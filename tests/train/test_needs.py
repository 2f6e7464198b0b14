"""Optimizers that ask for more than gradients: what the step gives them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxtrain as ft
from flaxtrain.errors import ArgumentError
from tests.models import CNN, MLP
from tests.runs import FLOAT32_BAR, deviation
from tests.train.test_gradient import BAR, ROWS, classification, state_of


class Asked(NamedTuple):
    """What an optimizer was given: the loss, the same as a function, and its slope."""

    value: Any
    again: Any
    slope: Any
    squares: Any


def asking() -> ft.optim.GradientTransformation:
    """Returns gradient descent that remembers what it was given."""

    def init(params: Any) -> Asked:
        return Asked(*(jnp.zeros(()) for _ in range(4)))

    def update(
        grads: Any, state: Any, params: Any, *, value: Any, grad: Any, value_fn: Any
    ) -> Any:
        along = jax.tree.map(jnp.ones_like, params)
        again, slope = jax.jvp(value_fn, (params,), (along,))
        expected = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(grad))
        squares = jnp.square(slope - expected)
        new = Asked(value, again, slope, squares)
        return jax.tree.map(lambda g: -0.1 * g, grads), jax.tree.map(
            lambda a, b: jnp.asarray(a, b.dtype), new, state
        )

    return ft.optim.GradientTransformation(init, update)


def one_step(
    spec: ft.OptSpec, module: Any, batch: Any, mask: Any = None, options: Any = None
) -> tuple[Any, Any]:
    recipe = ft.make_recipe(module, spec, batch, options=options)
    step = jax.jit(ft.train_step, static_argnums=0)
    start = state_of(recipe) if jax.config.jax_enable_x64 else recipe.init(0)
    return step(recipe, start, batch, mask)


@pytest.mark.parametrize(
    ("accumulate", "freeze", "scale"),
    [(1, (), None), (4, "Conv_0/**", ft.FixedScale(1024.0))],
)
def test_the_function_is_the_loss_of_the_step_with_its_dropout_and_statistics(
    accumulate: int, freeze: Any, scale: Any
) -> None:
    batch, mask = classification((8, 8, 1)), np.arange(ROWS) < 20
    with jax.enable_x64(True):
        # The clip does not reach `grad`: a line search needs the slope of the function.
        spec = ft.OptSpec(asking(), clip_norm=1e-3, accumulate=accumulate, freeze=freeze)
        state, metrics = one_step(spec, CNN(), batch, mask, ft.StepOptions(scale))
        asked = state.opt_state.slots
        loss = float(metrics["loss"].compute())
        assert abs(float(asked.value) - loss) <= BAR * loss
        assert abs(float(asked.again) - loss) <= BAR * loss
        assert float(asked.squares) <= (BAR * abs(float(asked.slope))) ** 2 * 100


def test_a_group_gets_its_part_of_gradient_and_function() -> None:
    spec = ft.OptSpec("sgd", 0.1, groups=[ft.Group("Dense_1/**", optimizer=asking())])
    with jax.enable_x64(True):
        state, metrics = one_step(spec, MLP(), classification((8,)))
        (asked,) = [slots for slots in state.opt_state.slots.values() if "value" in dir(slots)]
        loss = float(metrics["loss"].compute())
        assert abs(float(asked.again) - loss) <= BAR * loss
        assert float(asked.squares) <= (BAR * abs(float(asked.slope))) ** 2 * 100


@pytest.mark.parametrize("update", ["master", pytest.param("kahan", marks=pytest.mark.slow)])
def test_exact_values_beside_stored_ones_have_the_loss_of_the_stored_ones(update: Any) -> None:
    options = ft.StepOptions(precision=ft.Precision("p=bf16,c=f32,o=f32", update=update))
    batch = digits_like()
    recipe = ft.make_recipe(MLP(), ft.OptSpec(asking()), batch, options=options)
    step, state = jax.jit(ft.train_step, static_argnums=0), recipe.init(0)
    for _ in range(3):
        state, _ = step(recipe, state, batch)
    asked = state.opt_state.slots
    assert float(asked.value) == pytest.approx(float(asked.again), rel=1e-6)


def digits_like() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype("float32")
    return {"x": x, "label": (x[:, 0] + x[:, 1] > 0).astype("int32")}


def test_lbfgs_of_another_library_makes_its_own_updates() -> None:
    batch, tx = digits_like(), optax.lbfgs(memory_size=4)
    recipe = ft.make_recipe(MLP(), ft.OptSpec(tx), batch)
    step = jax.jit(ft.train_step, static_argnums=0)
    state = recipe.init(0)
    params, slots = state.params, tx.init(state.params)

    def loss(params: Any) -> Any:
        logits = MLP().apply({"params": params}, batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    @jax.jit
    def theirs(params: Any, slots: Any) -> Any:
        value, grad = jax.value_and_grad(loss)(params)
        updates, slots = tx.update(grad, slots, params, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(params, updates), slots

    first = None
    for number in range(6):
        state, metrics = step(recipe, state, batch)
        params, slots = theirs(params, slots)
        first = first or float(metrics["loss"].compute())
        if number < 2:  # later, a line search turns roundings into other steps
            assert deviation(state.params, params) <= 50 * FLOAT32_BAR
    assert float(loss(state.params)) < 0.2 * first


def test_polyak_steps_use_the_loss() -> None:
    batch = digits_like()
    trainer = ft.Trainer(MLP(), ft.OptSpec(ft.optim.polyak_sgd(1.0)), verbose=False)
    before = trainer.fit(batch, steps=1, batch_size=64).history.train[-1]["loss"]
    after = trainer.fit(batch, steps=40, batch_size=64).history.train[-1]["loss"]
    assert after < 0.5 * before


def test_polyak_steps_work_with_successive_batches() -> None:
    batch = classification((8,))
    halves = [jax.tree.map(lambda a, i=i: a[i::2], batch) for i in range(2)]
    tx = ft.optim.polyak_sgd(1.0)
    with jax.enable_x64(True):
        whole, _ = one_step(ft.OptSpec(tx), MLP(), batch)
        spec = ft.OptSpec(tx, accumulate=ft.AccumulateBatches(2))
        recipe = ft.make_recipe(MLP(), spec, halves[0])
        step, state = jax.jit(ft.train_step, static_argnums=0), state_of(recipe)
        for half in halves:
            state, _ = step(recipe, state, half)
        for one, other in zip(jax.tree.leaves(state.params), jax.tree.leaves(whole.params)):
            np.testing.assert_allclose(one, other, rtol=1e-10)


def test_what_is_missing_is_said_when_the_step_is_built() -> None:
    batch = classification((8,))
    several = ft.OptSpec(optax.lbfgs(), accumulate=ft.AccumulateBatches(2))
    with pytest.raises(ArgumentError, match=r"needs value_fn.*2 batches make one update"):
        ft.make_recipe(MLP(), several, batch)

    def update(grads: Any, state: Any, params: Any, *, hessian: Any) -> Any:
        return grads, state

    tx = ft.optim.GradientTransformation(lambda params: (), update)
    with pytest.raises(ArgumentError, match=r"can't make an update.*'hessian'"):
        ft.make_recipe(MLP(), ft.OptSpec(tx), batch)
