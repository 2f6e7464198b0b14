"""The bound model: train flags, random streams, collections."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain import errors
from flaxtrain.train import BoundModel, call_arguments
from flaxtrain.train.keys import step_key, stream_key

X = jnp.ones((4, 3))
STEP = jax.jit(ft.train_step, static_argnums=0)


class Train(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        return x * train


class Training(nn.Module):
    @nn.compact
    def __call__(self, x: Any, training: bool = False) -> Any:
        return x * training


class IsTraining(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, is_training: bool) -> Any:
        return x * is_training


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x: Any, deterministic: bool) -> Any:
        return x * (not deterministic)


class Both(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool, deterministic: bool) -> Any:
        return x * (train and not deterministic)

    def decode(self, x: Any, train: bool = False) -> Any:
        return x * train


FLAGGED = [Train(), Training(), IsTraining(), Deterministic(), Both()]


@pytest.mark.parametrize("module", FLAGGED, ids=lambda module: type(module).__name__)
@pytest.mark.parametrize("train", [True, False])
def test_the_train_flag_is_found_under_all_its_names(module: nn.Module, train: bool) -> None:
    assert BoundModel(module, {}, train=train)(X).max() == float(train)
    assert call_arguments(module) == ("x",)


def test_an_explicit_flag_wins() -> None:
    assert BoundModel(Train(), {}, train=True)(X, train=False).max() == 0
    assert BoundModel(Train(), {}, train=False)(X, True).max() == 1
    assert BoundModel(Deterministic(), {}, train=False)(X, deterministic=False).max() == 1
    # The other flag of the call is still filled in.
    assert BoundModel(Both(), {}, train=True)(X, deterministic=True).max() == 0


def test_a_method_has_a_flag_of_its_own() -> None:
    assert BoundModel(Both(), {}, train=True)(X, method="decode").max() == 1


def test_a_method_that_is_not_there_is_named() -> None:
    with pytest.raises(errors.ModelError, match="Train has no method 'decode'"):
        BoundModel(Train(), {})(X, method="decode")


class Noise(nn.Module):
    stream: str = "dropout"

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return jax.random.normal(self.make_rng(self.stream), x.shape)


def noise(step: int = 0, *, calls: int = 1, stream: str = "dropout", seed: int = 0) -> Any:
    key = step_key(jax.random.key(seed), step)
    model = BoundModel(Noise(stream), {}, rng=key, streams=(stream,), train=True)
    return [np.asarray(model(X)) for _ in range(calls)][-1]


def test_the_bits_depend_on_seed_step_stream_and_call_and_on_nothing_else() -> None:
    assert np.array_equal(noise(step=3), noise(step=3))
    drawn = [
        noise(step=3),
        noise(step=4),
        noise(step=3, seed=1),
        noise(step=3, calls=2),
        noise(step=3, stream="augment"),
    ]
    for index, one in enumerate(drawn):
        assert not any(np.array_equal(one, other) for other in drawn[index + 1 :])


def test_a_key_is_the_same_for_a_python_and_a_traced_step() -> None:
    root = jax.random.key(0)
    traced = jax.jit(lambda step: jax.random.key_data(step_key(root, step)))(5)
    assert np.array_equal(traced, jax.random.key_data(step_key(root, 5)))


class Streams(nn.Module):
    """What two streams draw first, by one module."""

    @nn.compact
    def __call__(self) -> Any:
        return [jax.random.key_data(self.make_rng(name)) for name in ("dropout", "noise")]


@pytest.mark.parametrize("lift", [lambda module: module, nn.jit, nn.remat])
def test_streams_and_calls_are_independent_within_every_lift(lift: Any) -> None:
    """`nn.jit` takes the keys as they come: what flax would fold in later is lost there."""
    key, streams = jax.random.key(0), ("dropout", "noise")
    model = BoundModel(lift(Streams)(), {}, rng=key, streams=streams, train=True)
    drawn = [tuple(np.asarray(bits).tolist()) for _ in range(3) for bits in model()]
    assert len(set(drawn)) == 6


def test_the_layers_of_a_scan_draw_for_themselves() -> None:
    stack = nn.scan(Layer, variable_axes={}, split_rngs={"dropout": True}, length=3)
    model = BoundModel(stack(), {}, rng=jax.random.key(0), streams=("dropout",), train=True)
    _, drawn = model(jnp.zeros(()))
    assert len(set(np.asarray(drawn).tolist())) == 3


class Layer(nn.Module):
    @nn.compact
    def __call__(self, carry: Any) -> Any:
        return carry, jax.random.normal(self.make_rng("dropout"))


class Custom(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        if train:
            x = x + jax.random.normal(self.make_rng("augment"), x.shape)
        return nn.Dense(2)(x)


def test_a_stream_of_any_name_is_found_and_changes_from_step_to_step() -> None:
    batch = {"x": np.zeros((4, 3), np.float32), "label": np.array([0, 1, 0, 1], np.int32)}
    recipe = ft.make_recipe(Custom(), ft.OptSpec("sgd", 0.0), batch)
    assert "augment" in recipe.streams
    state = recipe.init(0)
    losses = []
    for _ in range(2):
        state, metrics = STEP(recipe, state, batch)
        losses.append(float(metrics["loss"].compute()))
    _, again = STEP(recipe, state.replace(step=jnp.asarray(0)), batch)
    assert losses[0] != losses[1]  # the learning rate is 0: only the noise differs
    assert float(again["loss"].compute()) == losses[0]


def test_the_loss_function_has_random_numbers_of_its_own_in_training_only() -> None:
    key = jax.random.key(0)
    model = BoundModel(nn.Dense(1), {}, rng=key, streams=("dropout",), train=True)
    own = model.rng("dropout")
    assert all(own != stream_key(key, "dropout", call) for call in range(3))
    evaluating = BoundModel(nn.Dense(1), {}, rng=jax.random.key(0))
    with pytest.raises(errors.ModelError, match="asked for in evaluation"):
        evaluating.rng("dropout")


class Counting(nn.Module):
    """Counts its calls in a collection, and sows an auxiliary loss."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        count = self.variable("seen", "calls", lambda: jnp.zeros((), jnp.int32))
        if train and not self.is_initializing():
            count.value += 1
        self.sow("losses", "auxiliary", jnp.sum(x))
        return nn.Dense(2)(x)


def test_collections_are_carried_and_what_is_sown_is_not() -> None:
    batch = {"x": np.ones((4, 3), np.float32), "label": np.array([0, 1, 0, 1], np.int32)}
    sown: list[Any] = []

    def loss_fn(model: Any, batch: Any) -> Any:
        logits = model(batch["x"])
        model(batch["x"])  # the second call sees what the first one counted
        if getattr(model, "sown", None):
            sown.append(model.sown["losses"]["auxiliary"])
        return ft.losses.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    recipe = ft.make_recipe(Counting(), ft.OptSpec("sgd", 0.1), batch, loss=loss_fn)
    assert recipe.sown == ("losses",)
    state = recipe.init(0)
    assert set(state.collections) == {"seen"}
    sown.clear()
    for expected in (2, 4):
        state, _ = STEP(recipe, state, batch)
        assert int(state.collections["seen"]["calls"]) == expected
        assert set(state.collections) == {"seen"}
    assert len(sown) == 1 and len(sown[0]) == 1  # one trace, one value: the last call's


def test_evaluation_changes_no_collection() -> None:
    model = BoundModel(Counting(), {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": X[0, :2]}})
    model.collections = {"seen": {"calls": jnp.asarray(3)}}
    model(X)
    assert int(model.collections["seen"]["calls"]) == 3 and model.sown == {}


def test_inputs_of_another_shape_are_told_with_the_parameter() -> None:
    model = BoundModel(nn.Dense(2), {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)})
    with pytest.raises(errors.ModelError, match=r'"kernel" .* shape \(5, 2\)'):
        model(jnp.ones((4, 5)))


class Asking(nn.Module):
    """Asks for a variable that isn't there, or writes to one."""

    kind: str

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        if self.kind == "param":
            return x * self.param("gain", nn.initializers.ones, (3,))
        count = self.variable("seen", "count", jnp.zeros, ())
        count.value = count.value + 1
        return x


@pytest.mark.parametrize(
    ("kind", "collections", "complaint"),
    [
        ("param", {}, 'asks for a variable that was not made: .* "gain"'),
        ("variable", {}, 'asks for a variable that was not made: .* "count"'),
        ("variable", {"seen": {"other": jnp.ones(())}}, 'was not made: .* "count"'),
        ("write", {"seen": {"count": jnp.ones(())}}, 'writes to a variable in .* "count"'),
    ],
)
def test_a_variable_that_evaluation_can_not_have_is_named(
    kind: str, collections: Any, complaint: str
) -> None:
    with pytest.raises(errors.ModelError, match=complaint):
        BoundModel(Asking(kind), {}, collections)(X)


def test_what_is_sown_in_evaluation_leaves_the_collections_alone() -> None:
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            self.sow("penalties", "size", jnp.sum(x))
            return x * self.variable("seen", "count", jnp.zeros, (1, 1)).value

    model = BoundModel(Sowing(), {}, {"seen": {"count": jnp.ones((1, 1))}}, sown=("penalties",))
    assert model(X).sum() == X.size
    assert float(model.sown["penalties"]["size"][0]) == X.size
    assert model.collections.keys() == {"seen"}
