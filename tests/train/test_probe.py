"""What the probe finds out, for variables that exist in evaluation only above all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain import errors
from flaxtrain.train import predict_step
from flaxtrain.train.probe import Probe
from flaxtrain.tree import named_leaves
from tests.runs import bits

RNG = np.random.default_rng(0)
X, LABEL = RNG.normal(size=(11, 4)).astype(np.float32), RNG.integers(0, 3, 11).astype(np.int32)
DATA = {"x": X, "label": LABEL}
SGD = ft.OptSpec("sgd", learning_rate=0.1)
STEP = jax.jit(ft.train_step, static_argnums=0)
BOTH = ("calibrate/bias", "calibrate/kernel")


class Calibrated(nn.Module):
    """Has an auxiliary layer in training, and a calibration in evaluation."""

    calibrated: bool = True

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.Dense(4, name="body")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        if train:
            x = x + nn.Dense(1, name="auxiliary")(x)
        elif self.calibrated:
            x = nn.Dense(4, name="calibrate")(x)
            # A collection that training has as well, and one that it hasn't.
            x = x + self.variable("batch_stats", "shift", jnp.ones, (1, 4)).value
            x = x * self.variable("constants", "scale", jnp.ones, (1, 4)).value
        return nn.Dense(3, name="head")(x)


def trainer_of(module: nn.Module, spec: ft.OptSpec = SGD, **kwargs: Any) -> ft.Trainer:
    return ft.Trainer(module, spec, verbose=False, **kwargs)


def names(recipe: ft.Recipe) -> set[str]:
    return {fact.name for fact in recipe.facts.params}


def on_shapes(step: Callable[..., Any], recipe: ft.Recipe, batch: Any = DATA) -> Any:
    """Runs a step on its initial state, without compiling it."""
    return jax.eval_shape(lambda: step(recipe, recipe.init(0), batch))


def test_parameters_of_both_modes_are_in_facts_decay_and_plan() -> None:
    spec = ft.OptSpec("adamw", learning_rate=0.1, weight_decay=0.1)
    recipe = ft.make_recipe(Calibrated(), spec, DATA)
    assert {"auxiliary/kernel", *BOTH} <= names(recipe)
    kernel = recipe.facts["calibrate/kernel"]
    assert (kernel.role, kernel.owner, kernel.local_shape) == ("kernel", nn.Dense, (4, 4))
    # The loss of training doesn't depend on it, so it has no place in the order.
    assert (kernel.uses, kernel.depth) == (0, None)
    assert recipe.facts["auxiliary/kernel"].uses == 1
    assert recipe.decay is not None
    assert recipe.decay["calibrate"] == {"kernel": True, "bias": False}
    rows = trainer_of(Calibrated(), spec).plan(DATA, steps=1).table.rows
    assert {row.path for row in rows} == names(recipe)


def test_values_of_training_are_those_without_evaluation_and_the_rest_those_of_init() -> None:
    state = ft.make_recipe(Calibrated(), SGD, DATA).init(seed=3)
    alone = ft.make_recipe(Calibrated(calibrated=False), SGD, DATA).init(seed=3)
    found, expected = bits(state.params), bits(alone.params)
    assert found.keys() - expected.keys() == set(BOTH)
    assert {name: found[name] for name in expected} == expected
    by_flax = jax.jit(lambda key: Calibrated().init(key, X, train=False))(jax.random.key(3))
    in_evaluation = bits(by_flax["params"])
    assert [found[name] for name in BOTH] == [in_evaluation[name] for name in BOTH]
    assert set(bits(state.collections)) == {
        "batch_stats/norm/mean",
        "batch_stats/norm/var",
        "batch_stats/shift",
        "constants/scale",
    }


def test_such_a_model_is_trained_and_evaluated_with_ragged_ends() -> None:
    trainer = trainer_of(Calibrated())
    # 11 rows in batches of 4: the last one is padded, in training and in evaluation.
    result = trainer.fit(DATA, epochs=2, batch_size=4, eval_ds=DATA)
    state = result.state
    variables = {"params": state.params, **state.collections}
    logits = np.asarray(Calibrated().apply(variables, X, train=False))
    # Sums of the same numbers in another order.
    np.testing.assert_allclose(trainer.predict(DATA, batch_size=4), logits, rtol=1e-5)
    found = trainer.evaluate(DATA, batch_size=4)
    assert found["accuracy"] == pytest.approx((logits.argmax(-1) == LABEL).mean(), abs=1e-6)
    for batch_size in (3, 11):
        again = trainer.evaluate(DATA, batch_size=batch_size)
        assert again["loss"] == pytest.approx(found["loss"], rel=1e-5)
    # Training moves what its loss depends on, and nothing else.
    assert trainer.recipe is not None
    before, after = bits(trainer.recipe.init(0).params), bits(state.params)
    assert {name for name in before if before[name] == after[name]} == set(BOTH)
    assert (np.asarray(state.collections["batch_stats"]["shift"]) == 1).all()


def test_their_gradient_is_zero_and_a_trust_ratio_makes_no_nan_of_it() -> None:
    recipe = ft.make_recipe(Calibrated(), ft.OptSpec("lamb", learning_rate=0.1), DATA)
    before = recipe.init(0)
    after, _ = STEP(recipe, before, DATA)
    assert int(after.step) == 1
    old, new = bits(before.params), bits(after.params)
    assert [new[name] for name in BOTH] == [old[name] for name in BOTH]


def test_a_frozen_module_uses_what_only_evaluation_has_while_others_are_trained() -> None:
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.Dense(4, name="inner")(x)
            return x if train else x * self.param("gain", nn.initializers.zeros, (1, 4))

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            return nn.Dense(3, name="head")(Body(name="body")(x, train))

    spec = ft.OptSpec("sgd", learning_rate=0.1, freeze="body/**")
    recipe = ft.make_recipe(Model(), spec, DATA)
    before = recipe.init(0)
    after, _ = STEP(recipe, before, DATA)
    old, new = bits(before.params), bits(after.params)
    moved = {name for name in old if new[name] != old[name]}
    # With a gain of 0 the features of evaluation are 0, and so is the gradient of the kernel.
    assert moved == {"head/bias"}


def test_adapters_know_the_kernels_of_both_modes() -> None:
    lora = ft.LoRA("**/kernel", rank=1)
    batch = {**DATA, "label": X}  # the kernels of a head with 4 outputs are large enough
    recipe = ft.make_recipe(_Wide(), SGD, batch, adapters=lora)
    assert {"lora/body/kernel/lora_a", "lora/calibrate/kernel/lora_a"} <= names(recipe)
    assert "loss" in on_shapes(ft.eval_step, recipe, batch)


class _Wide(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.Dense(4, name="body")(x)
        return x if train else nn.Dense(4, name="calibrate")(x)


def test_a_stack_that_only_evaluation_has_is_known_by_its_lifted_axis() -> None:
    class Ensemble(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.Dense(3, name="body")(x)
            if train:
                return x
            members = nn.vmap(
                nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}
            )
            return members(3, name="members")(jnp.stack([x, x])).mean(0)

    fact = ft.make_recipe(Ensemble(), SGD, DATA).facts["members/kernel"]
    assert (fact.shape, fact.local_shape, fact.lifted_axes) == ((2, 3, 3), (3, 3), (0,))


# How often the model runs.


@dataclass
class Counted:
    """Counts the runs of a loss function, in training and in evaluation."""

    reads_mode: bool
    training: int = 0
    evaluation: int = 0

    def __call__(self, model: Any, batch: Any) -> Any:
        prediction = model(batch["x"])
        if not self.reads_mode or model.train:
            self.training += 1
        else:
            self.evaluation += 1
        return jnp.square(prediction).sum(-1)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(2)(x)


def counted(module: nn.Module, reads_mode: bool = True) -> tuple[int, int]:
    loss = Counted(reads_mode)
    jax.eval_shape(ft.make_recipe(module, SGD, DATA, loss=loss).init)
    return loss.training, loss.evaluation


def test_evaluation_is_looked_at_once_and_only_if_somebody_asks_for_the_mode() -> None:
    training, nothing = counted(Plain(), reads_mode=False)
    assert nothing == 0
    assert counted(Plain()) == (training, 1)
    # With a train flag but nothing new in evaluation, the look is all.
    assert counted(Calibrated(calibrated=False)) == (training, 1)
    # Else it runs for the table and for the values: 3 in all.
    assert counted(_Wide()) == (training, 3)


def test_a_train_flag_is_reason_enough_to_look() -> None:
    runs: list[bool] = []

    class Noting(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            runs.append(train)
            return nn.Dense(2)(x)

    ft.make_recipe(Noting(), SGD, {"x": X, "label": LABEL % 2})
    assert runs.count(False) == 1


# Loss functions that can't be evaluated.


def fails_before(model: Any, batch: Any) -> Any:
    if not model.train:
        raise RuntimeError("only for training")
    return _squares(model, batch)


def fails_behind(model: Any, batch: Any) -> Any:
    loss = _squares(model, batch)
    return loss + jax.random.normal(model.rng("noise"), loss.shape)


def _squares(model: Any, batch: Any) -> Any:
    return jnp.square(model(batch["x"])).sum(-1)


@pytest.mark.parametrize(
    ("loss", "complaint", "has_both"),
    [
        (fails_before, "only for training", False),
        (fails_behind, "'noise' was asked for in evaluation", True),
    ],
)
def test_a_loss_for_training_only_trains_and_fails_when_it_is_evaluated(
    loss: Callable[..., Any], complaint: str, has_both: bool
) -> None:
    recipe = ft.make_recipe(Calibrated(), SGD, DATA, loss=loss)
    state, _ = on_shapes(ft.train_step, recipe)
    with pytest.raises((RuntimeError, errors.ModelError), match=complaint):
        on_shapes(ft.eval_step, recipe)
    # What the calls have created before the loss function failed is there.
    assert ("calibrate" in state.params) == has_both
    if has_both:
        assert on_shapes(predict_step, recipe).shape == (11, 3)
        return
    with pytest.raises(errors.ModelError, match=r"not made: .* fails with RuntimeError: only"):
        on_shapes(predict_step, recipe)


def test_an_error_of_the_training_run_is_explained_as_before() -> None:
    class Broken(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            raise RuntimeError("broken")

    with pytest.raises(errors.ModelError, match=r"model\.init fails: RuntimeError: broken"):
        ft.make_recipe(Broken(), SGD, DATA, loss=_squares)


def test_a_loss_may_call_another_method_in_evaluation_and_read_all_parameters() -> None:
    class TwoMethods(nn.Module):
        def setup(self) -> None:
            self.first, self.second = nn.Dense(2), nn.Dense(3)

        def __call__(self, x: Any) -> Any:
            return self.first(x)

        def other(self, x: Any) -> Any:
            return self.second(x)

    def loss(model: Any, batch: Any) -> Any:
        output = model(batch["x"]) if model.train else model(batch["x"], method="other")
        return jnp.square(output).sum(-1) + jnp.square(model.params["first"]["kernel"]).sum()

    recipe = ft.make_recipe(TwoMethods(), SGD, DATA, loss=loss)
    assert {fact.path[0] for fact in recipe.facts.params} == {"first", "second"}
    assert "loss" in on_shapes(ft.eval_step, recipe)


# Collections, padding.


def test_a_variable_that_evaluation_writes_is_refused_when_it_is_evaluated() -> None:
    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            if not train:
                self.variable("seen", "rows", jnp.zeros, ()).value = jnp.ones(())
            return nn.Dense(3)(x)

    recipe = ft.make_recipe(Counting(), SGD, DATA)
    with pytest.raises(errors.ModelError, match=r'writes to a variable .* "rows"'):
        on_shapes(ft.eval_step, recipe)


def test_what_is_sown_in_evaluation_only_reaches_the_loss() -> None:
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
            if not train:
                self.sow("penalties", "size", jnp.square(x).sum(-1))
                self.sow("batch_stats", "also", x)
            return nn.Dense(1)(x)

    def loss(model: Any, batch: Any) -> Any:
        output = model(batch["x"])[:, 0]
        return output if model.train else output + model.sown["penalties"]["size"][0]

    recipe = ft.make_recipe(Sowing(), SGD, DATA, loss=loss)
    # A collection that training keeps isn't given away.
    assert recipe.sown == ("penalties",)
    assert "loss" in on_shapes(ft.eval_step, recipe)
    state, _ = on_shapes(ft.train_step, recipe)
    kept = {name for name, _ in named_leaves(state.collections)}
    assert kept == {"batch_stats/norm/mean", "batch_stats/norm/var"}


def test_padding_is_judged_with_the_variables_of_both_modes() -> None:
    def mean(model: Any, batch: Any) -> Any:
        return _squares(model, batch).mean()

    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), DATA)
    assert Probe(Calibrated(), _squares, example).padding_problem() is None
    problem = Probe(Calibrated(), mean, example).padding_problem()
    assert isinstance(problem, errors.LossError)
    assert "is a scalar" in problem.found
