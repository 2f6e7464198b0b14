"""What is cached of frozen modules, and what stands against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain import errors
from flaxtrain.params import LoRA
from flaxtrain.train import make_recipe
from flaxtrain.train.cached_loss import batch_with_features
from flaxtrain.train.frozen_calls import AnsweredCalls, FrozenFeatures, WatchedCalls
from flaxtrain.train.frozen_features import features_of, frozen_features
from flaxtrain.train.frozen_modules import FrozenModule, FrozenModules
from flaxtrain.train.step import train_step

ROWS = 8
BATCH = {
    "x": np.random.default_rng(0).normal(size=(ROWS, 6)).astype("float32"),
    "label": np.arange(ROWS, dtype="int32") % 3,
}

Body = Callable[..., Any]


class Model(nn.Module):
    """`body(x, train)` within a compact method."""

    body: Body

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        return self.body(x, train)


class Encoder(nn.Module):
    """A Dense layer, and what a test puts after it."""

    then: Body = lambda x, train: x

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        return self.then(nn.Dense(4)(x), train)


def head(x: Any) -> Any:
    return nn.Dense(3, name="head")(x)


def encoded(then: Body) -> Body:
    """Returns a body with an encoder, frozen in these tests, and a head."""
    return lambda x, train: head(Encoder(then, name="encoder")(x, train))


def recipe_of(body: Body, freeze: Any = "encoder/**", loss: Any = None, **kwargs: Any) -> Any:
    rules = freeze if isinstance(freeze, list) else [freeze]
    spec = ft.OptSpec("sgd", learning_rate=0.1, freeze=rules)
    return make_recipe(Model(body), spec, BATCH, loss=loss, **kwargs)


def features_for(body: Body, **kwargs: Any) -> FrozenFeatures:
    return frozen_features(recipe_of(body, **kwargs))


def chain(x: Any, train: bool) -> Any:
    x = nn.relu(nn.Dense(5, name="first")(x))
    x = nn.relu(nn.Dense(4, name="second")(x))
    return head(nn.Dropout(0.5, deterministic=not train)(x))


def test_of_a_chain_only_the_last_output_is_cached() -> None:
    features = features_for(chain, freeze=["first/**", "second/**"])
    assert [call.needed for call in features.calls] == [(False,), (True,)]
    assert features.names == ("second",)
    assert [shape.shape for shape in features.shapes] == [(ROWS, 4)]
    assert features.bytes_per_example == 16
    assert features == features_for(chain, freeze=["first/**", "second/**"])


def test_an_output_that_skips_ahead_is_cached_too() -> None:
    def skip(x: Any, train: bool) -> Any:
        first = nn.Dense(4, name="first")(x)
        return head(first + nn.Dense(4, name="second")(nn.relu(first)))

    features = features_for(skip, freeze=["first/**", "second/**"])
    assert features.names == ("first", "second")


def test_of_several_outputs_those_that_are_read_are_cached() -> None:
    def two(x: Any, train: bool) -> Any:
        out = Encoder(
            lambda x, train: {"a": x[:, :1], "b": (x, None, x.sum())}, name="encoder"
        )(x)
        return head(out["b"][0])

    (call,) = features_for(two).calls
    assert call.needed == (False, True, False)


def test_a_module_may_be_called_several_times_and_by_other_methods() -> None:
    class Two(nn.Module):
        def setup(self) -> None:
            self.dense = nn.Dense(6)

        def __call__(self, x: Any) -> Any:
            return self.dense(x)

        def double(self, x: Any) -> Any:
            return 2 * self(x)

    def several(x: Any, train: bool) -> Any:
        encoder = Two(name="encoder")
        return head(nn.relu(encoder(x)) + encoder.double(nn.relu(encoder(x))))

    features = features_for(several)
    assert [call.method for call in features.calls] == ["__call__", "__call__", "double"]
    assert features.names == ("encoder", "encoder.double")
    assert [any(call.needed) for call in features.calls] == [True, False, True]


def test_a_loss_may_call_the_model_twice() -> None:
    def loss(model: Any, batch: Any) -> Any:
        return jnp.sum((model(batch["x"]) - model(-batch["x"])) ** 2, axis=1)

    features = features_for(encoded(lambda x, train: x), loss=loss)
    assert [call.needed for call in features.calls] == [(True,), (True,)]


def test_features_are_the_outputs_in_evaluation() -> None:
    def body(x: Any, train: bool) -> Any:
        x = nn.BatchNorm(not train)(x)
        return nn.Dropout(0.5, deterministic=not train)(x)

    recipe = recipe_of(encoded(body))
    state = recipe.init(3)
    features = frozen_features(recipe)
    (found,) = jax.jit(lambda s, b: features_of(recipe, features, s, b))(state, BATCH)
    variables = {"params": state.params, **state.collections}
    expected = recipe.module.apply(variables, BATCH["x"], capture_intermediates=True)[1]
    wanted = expected["intermediates"]["encoder"]["__call__"][0]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)  # one is compiled, one is not
    assert np.ptp(found) > 0


def test_a_step_with_features_does_not_run_the_frozen_modules() -> None:
    recipe = recipe_of(encoded(lambda x, train: nn.Dense(4)(jnp.sin(x))))
    cached = recipe.with_features(frozen_features(recipe))
    assert cached is recipe.with_features(frozen_features(recipe))
    state = jax.eval_shape(recipe.init)
    batch = batch_with_features(BATCH, [np.zeros((ROWS, 4), "float32")])
    with_sine = str(jax.make_jaxpr(lambda s, b: train_step(recipe, s, b))(state, BATCH))
    without = str(jax.make_jaxpr(lambda s, b: train_step(cached, s, b))(state, batch))
    assert "= sin" in with_sine
    assert "= sin" not in without


# What stands against it: the body, further arguments of `recipe_of`, and the error's text.


def trained_before(x: Any, train: bool) -> Any:
    return head(Encoder(name="encoder")(nn.Dense(4, name="stem")(x)))


def tied(x: Any, train: bool) -> Any:
    encoder = Encoder(name="encoder")
    return encoder(nn.Dense(6, name="head")(encoder(x)))


def dropout_before(x: Any, train: bool) -> Any:
    return encoded(lambda x, train: x)(nn.Dropout(0.5, deterministic=not train)(x), train)


class Counted(nn.Module):
    """Multiplies by a number that grows from step to step."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        count = self.variable("counts", "steps", lambda: jnp.ones(()))
        factor = count.value
        count.value = factor + 1
        return factor * x


def counted_before(x: Any, train: bool) -> Any:
    return encoded(lambda x, train: x)(Counted(name="counted")(x), train)


class Sows(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        self.sow("losses", "size", jnp.sum(x**2))
        return nn.Dense(4)(x)


def sows(x: Any, train: bool) -> Any:
    return head(Sows(name="encoder")(x))


def augmented(model: Any, batch: Any) -> Any:
    x = batch["x"]
    if model.train:
        x = x + jax.random.normal(model.rng("noise"), x.shape)
    return jnp.sum(model(x) ** 2, axis=1)


def mapped(model: Any, batch: Any) -> Any:
    return jnp.sum(jax.vmap(lambda x: model(x[None])[0])(batch["x"]) ** 2, axis=1)


def dropout(x: Any, train: bool) -> Any:
    return nn.Dropout(0.5, deterministic=not train)(x)


def norm(x: Any, train: bool) -> Any:
    return nn.BatchNorm(not train)(x)


PLAIN = encoded(lambda x, train: x)
IN_TRAINING = ft.Freeze("encoder/**", mode="train")
REFUSED: dict[str, tuple[Body, dict[str, Any], str]] = {
    "nothing frozen": (PLAIN, {"freeze": []}, "nothing is frozen"),
    "no whole module": (PLAIN, {"freeze": "**/kernel"}, "no module with all of its own"),
    "trained module before": (
        trained_before,
        {},
        "an input of the frozen module 'encoder' depends on the trained parameter 'stem/bias'",
    ),
    "called again after": (tied, {}, "depends on the trained parameter 'head/bias'"),
    "dropout before": (dropout_before, {}, "an input of .*'encoder' depends on random numbers"),
    "augmentation": (PLAIN, {"loss": augmented}, "an input of .* depends on random numbers"),
    "a count before": (counted_before, {}, "depends on the variable 'counts/counted/steps'"),
    "dropout inside": (
        encoded(dropout),
        {"freeze": IN_TRAINING},
        r"the output of the frozen module 'encoder' \(mode='train'\) depends on random numbers",
    ),
    "statistics updated": (
        encoded(norm),
        {"freeze": ft.Freeze("encoder/**", stats="update")},
        r"\(stats='update', mode='eval'\) writes to the collection 'batch_stats'",
    ),
    "sowing": (sows, {}, "writes to the collection 'losses'"),
    "a transformation around": (
        PLAIN,
        {"loss": mapped},
        "'encoder' is called within a transformation",
    ),
    "a lifted class": (
        lambda x, train: head(nn.remat(Encoder)(name="encoder")(x)),
        {},
        "'encoder' is called within a transformation",
    ),
    "no batch axis": (
        lambda x, train: head(x + Encoder(lambda x, train: x[:1, :1], name="encoder")(x)),
        {"loss": lambda model, batch: jnp.sum(model(batch["x"]) ** 2, axis=1)},
        r"'encoder' returns an array of shape \(1, 1\)",
    ),
    "no array": (
        lambda x, train: head(Encoder(lambda x, train: (x, "text"), name="encoder")(x)[0]),
        {},
        "returns a str from '__call__'",
    ),
    "not read": (
        lambda x, train: head(x + 0 * len(Encoder(name="encoder")(x).shape)),
        {},
        "doesn't depend on what the frozen modules return",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_cached_is_refused_by_name(name: str) -> None:
    body, arguments, text = REFUSED[name]
    with pytest.raises((errors.ModelError, errors.ArgumentError), match=text) as caught:
        features_for(body, **arguments)
    assert caught.value.fix


def test_an_input_that_depends_on_the_mask_is_refused() -> None:
    def loss(model: Any, batch: Any) -> Any:
        x = batch["x"]
        x = x if model.mask is None else jnp.where(model.mask[:, None], x, 0)
        return jnp.sum(model(x) ** 2, axis=1)

    recipe = recipe_of(PLAIN, loss=loss)
    assert frozen_features(recipe, masked=False).names == ("encoder",)
    with pytest.raises(errors.ModelError, match="mask or weights of the batch's rows"):
        frozen_features(recipe, masked=True)


def test_frozen_modules_that_the_loss_does_not_call_are_refused() -> None:
    class Two(nn.Module):
        def setup(self) -> None:
            self.encoder, self.head = Encoder(), nn.Dense(3)

        def __call__(self, x: Any) -> Any:
            return self.head(x if self.has_variable("params", "nothing") else self.ahead(x))

        def ahead(self, x: Any) -> Any:
            return x if not self.is_initializing() else (self.encoder(x), x)[1]

    spec = ft.OptSpec("sgd", learning_rate=0.1, freeze=["encoder/**"])
    recipe = make_recipe(Two(), spec, BATCH)
    with pytest.raises(errors.ModelError, match=r"calls no frozen module \(encoder\)"):
        frozen_features(recipe)


def test_adapters_in_a_frozen_module_are_trained_parameters() -> None:
    spec = ft.OptSpec("sgd", learning_rate=0.1)
    recipe = make_recipe(Model(PLAIN), spec, BATCH, adapters=LoRA("encoder/**/kernel", rank=2))
    with pytest.raises(errors.FlaxtrainError, match="the trained parameter 'lora/encoder"):
        frozen_features(recipe)


def test_other_calls_than_before_are_refused() -> None:
    model = nn.Sequential([nn.Dense(2), nn.Dense(3)])
    x = jnp.ones((4, 5))
    variables = model.init(jax.random.key(0), x)
    first = FrozenModules((FrozenModule(("layers_0",)),))
    watched = WatchedCalls()
    with watched.applied(first, {}) as rngs:
        model.apply(variables, x, rngs=rngs)
    features = FrozenFeatures(tuple(call.described([True]) for call in watched.calls))
    answer = jnp.full((4, 2), 7.0)
    with AnsweredCalls(features, [answer]).applied(first, {}) as rngs:
        y = model.apply(variables, x, rngs=rngs)
        with pytest.raises(errors.ModelError, match="it made no further call"):
            model.apply(variables, x, rngs=rngs)
    second: Any = variables["params"]["layers_1"]
    expected = answer @ second["kernel"] + second["bias"][None]
    np.testing.assert_allclose(np.asarray(y), expected, rtol=1e-6)
    other = FrozenModules((FrozenModule(("layers_1",)),))
    text = r"calls 'layers_1'.*a call of 'layers_0'"
    answered = AnsweredCalls(features, [answer]).applied(other, {})
    with answered as rngs, pytest.raises(errors.ModelError, match=text):
        model.apply(variables, x, rngs=rngs)
