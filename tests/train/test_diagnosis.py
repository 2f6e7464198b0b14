"""The report about a rejected step: the right parameter, module, collection and rows."""

from __future__ import annotations

import itertools
import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

import flaxtrain as ft
from flaxtrain.train import Diagnosis, diagnose_step
from flaxtrain.train.replay import ModuleCalls
from flaxtrain.train.spike_window import SpikeWindow
from tests.models import GPT, TransformerBlock

LAYERS = 3
SCAN: Any = nn.scan  # whose annotations know no nn.broadcast
VMAP: Any = nn.vmap
STEP = jax.jit(ft.train_step, static_argnums=0)
TOKENS = {
    "tokens": np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int32),
    "label": np.array([[2, 3, 4, 5], [6, 7, 8, 9]], np.int32),
}


def next_token(model: Any, batch: Any) -> Any:
    values = ft.losses.softmax_cross_entropy_with_integer_labels(
        model(batch["tokens"]), batch["label"]
    )
    return jnp.mean(values, axis=-1)


def recipe_of(
    model: nn.Module, batch: Any, loss: Any = None, *, options: Any = None, **spec: Any
) -> ft.Recipe:
    declared = ft.OptSpec("sgd", 0.1, **spec)
    return ft.make_recipe(model, declared, batch, loss=loss, options=options)


def loss_of(found: Diagnosis) -> float:
    assert found.loss is not None
    return found.loss


def planted(state: ft.TrainState, name: str, index: tuple[int, ...]) -> ft.TrainState:
    """Returns the state with a NaN in one parameter."""
    params = jax.tree.map(lambda leaf: leaf, state.params)
    *around, last = name.split("/")
    node = params
    for key in around:
        node = node[key]
    node[last] = node[last].at[index].set(jnp.nan)
    return state.replace(params=params)


@pytest.fixture(scope="module")
def gpt() -> tuple[ft.Recipe, ft.TrainState]:
    # Without dropout, which takes a hundred small operations to compile.
    recipe = recipe_of(GPT(layers=LAYERS, width=4, dropout=0.0), TOKENS, next_token)
    return recipe, recipe.init(0)


STACKED = [
    f"blocks/{name}"
    for name in (
        *(
            f"attn/{part}/{kind}"
            for part in ("query", "key", "value", "out")
            for kind in ("kernel", "bias")
        ),
        *(f"{part}/{kind}" for part in ("up", "down") for kind in ("kernel", "bias")),
        *(f"{part}/{kind}" for part in ("ln_1", "ln_2") for kind in ("scale", "bias")),
    )
]
EVERYWHERE = [(name, layer) for name, layer in itertools.product(STACKED, range(LAYERS))] + [
    (name, None) for name in ("wte/embedding", "wpe/embedding", "ln_f/scale", "ln_f/bias")
]
SAMPLE = [
    ("blocks/attn/query/kernel", 1),
    ("blocks/attn/key/kernel", 0),
    ("blocks/attn/value/bias", 2),
    ("blocks/attn/out/kernel", 2),
    ("blocks/ln_1/scale", 1),
    ("blocks/up/kernel", 0),
    ("blocks/down/bias", 2),
    ("wte/embedding", None),
    ("ln_f/scale", None),
]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        pytest.param(*case, marks=() if case in SAMPLE else pytest.mark.slow)
        for case in EVERYWHERE
    ],
)
def test_a_nan_in_a_parameter_of_the_transformer_is_found_where_it_is(
    gpt: tuple[ft.Recipe, ft.TrainState], name: str, layer: int | None
) -> None:
    recipe, state = gpt
    rank = len(recipe.facts[name].shape)
    # The token and the position 1 occur in the batch.
    index = (1, *(0,) * (rank - 1)) if layer is None else (layer, *(0,) * (rank - 1))
    found = diagnose_step(recipe, planted(state, name, index), TOKENS)
    assert np.isnan(loss_of(found))
    assert found.parameter is not None and found.module is not None
    assert (found.parameter.name, found.parameter.bad, found.parameters) == (name, 1, 1)
    assert found.module.name == name.rpartition("/")[0]
    if layer is not None:
        assert found.parameter.layer == found.module.layer == (layer,)
        assert found.parameter.layers == found.module.layers == (LAYERS,)
    assert len(found.modules) == 1 and found.notes == ()
    assert found.module.values == "NaN" and found.module.dtype == "float32"
    assert found.what == "a parameter is NaN or infinite"


def test_a_planted_parameter_that_no_row_uses_is_still_named(
    gpt: tuple[ft.Recipe, ft.TrainState],
) -> None:
    recipe, state = gpt
    found = diagnose_step(recipe, planted(state, "wpe/embedding", (7, 0)), TOKENS)
    assert found.parameter is not None and found.parameter.name == "wpe/embedding"
    assert found.modules == () and np.isfinite(loss_of(found))


@pytest.mark.parametrize("layer", range(LAYERS))
def test_an_overflow_of_finite_numbers_is_found_in_its_layer(
    gpt: tuple[ft.Recipe, ft.TrainState], layer: int
) -> None:
    recipe, state = gpt
    up = state.params["blocks"]["up"]
    large = up["kernel"].at[layer].set(3e38)
    blocks = {**state.params["blocks"], "up": {**up, "kernel": large}}
    state = state.replace(params={**state.params, "blocks": blocks})
    found = diagnose_step(recipe, state, TOKENS)
    assert found.parameter is None and found.module is not None
    assert (found.module.name, found.module.layer) == ("blocks/up", (layer,))
    assert "inf" in found.module.values and len(found.modules) == 1
    assert found.what == "the loss became NaN or infinite"
    assert f"blocks/up (Dense), layer {layer} of 0..2: finite arguments, " in str(found)


class Fuse(nn.Module):
    """Puts out what it is given, until its finite parameter is set to 1."""

    kind: str

    @nn.compact
    def __call__(self, x: Any) -> Any:
        fuse = self.param("fuse", nn.initializers.zeros, ())
        return x + (jnp.log1p(-2 * fuse) if self.kind == "NaN" else jnp.exp(1000 * fuse) - 1)


class FusedBlock(nn.Module):
    """A transformer block behind a fuse."""

    kind: str
    train: bool

    @nn.compact
    def __call__(self, x: Any, mask: Any) -> Any:
        x = Fuse(self.kind, name="fuse")(x)
        return TransformerBlock(2, 0.1, self.train, name="block")(x, mask)


class FusedGPT(nn.Module):
    """Tokens `[batch, time] -> [batch, time, 11]`; scan + remat."""

    kind: str

    @nn.compact
    def __call__(self, tokens: Any, train: bool = False) -> Any:
        embed = nn.Embed(11, 4, name="wte")
        stack = SCAN(
            nn.remat(FusedBlock, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=LAYERS,
        )
        x, _ = stack(self.kind, train, name="blocks")(
            embed(tokens), nn.make_causal_mask(tokens)
        )
        return embed.attend(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "layer"), list(itertools.product(("NaN", "inf"), range(LAYERS)))
)
def test_a_module_that_makes_nan_or_inf_of_finite_values_is_named_with_its_layer(
    kind: str, layer: int
) -> None:
    recipe = recipe_of(FusedGPT(kind), TOKENS, next_token)
    state = recipe.init(0)
    fuse = state.params["blocks"]["fuse"]["fuse"].at[layer].set(1.0)
    params = {**state.params, "blocks": {**state.params["blocks"], "fuse": {"fuse": fuse}}}
    state = state.replace(params=params)
    assert int(STEP(recipe, state, TOKENS)[0].counters.halted) == 1
    found = diagnose_step(recipe, state, TOKENS)
    assert found.parameter is None and found.module is not None
    assert (found.module.name, found.module.class_name) == ("blocks/fuse", "Fuse")
    assert (found.module.values, found.module.layer) == (kind, (layer,))
    assert found.gradients > 0 and found.gradient is not None
    assert found.what == "the loss became NaN or infinite"
    assert f"blocks/fuse (Fuse), layer {layer} of 0..2: finite arguments" in str(found)


X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


def rows_of(x: Any) -> dict[str, np.ndarray]:
    return {"x": np.array(x, np.float32), "label": np.array([0, 1, 0, 1], np.int32)}


def test_statistics_that_overflow_alone_are_named() -> None:
    class Large(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            nn.BatchNorm(use_running_average=not train, name="bn")(x)
            return nn.Dense(2)(jnp.clip(x, -1, 1))

    batch = rows_of(np.sign(X) * 1e30)
    recipe = recipe_of(Large(), batch)
    found = diagnose_step(recipe, recipe.init(0), batch)
    assert [bad.name for bad in found.collections] == ["batch_stats/bn/var"]
    assert np.isfinite(loss_of(found)) and found.gradient is None and found.parameter is None
    assert "a collection became NaN or infinite" in found.what
    assert "collection: batch_stats/bn/var (3 of 3 values)" in str(found)


def test_a_float16_activation_that_is_too_large_is_named() -> None:
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(4, dtype=jnp.float16, name="first")(x)
            x = nn.Dense(4, dtype=jnp.float16, name="second")(x)
            return nn.Dense(2)(x.astype(jnp.float32))

    batch = rows_of(np.abs(X) + 1)
    scale = ft.StepOptions(loss_scale=ft.DynamicScale(init=4.0))
    recipe = recipe_of(Half(), batch, options=scale)
    state = recipe.init(0)
    kernels = {
        name: {"kernel": jnp.full((n, 4), 200.0)} for name, n in (("first", 3), ("second", 4))
    }
    params = {**state.params, **{k: {**state.params[k], **v} for k, v in kernels.items()}}
    found = diagnose_step(recipe, state.replace(params=params), batch)
    assert found.module is not None and found.module.name == "second"
    assert (found.module.values, found.module.dtype) == ("inf", "float16")
    assert found.loss_scale == 4.0


def test_layers_of_a_vmap_are_told_apart() -> None:
    class Experts(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            dense = VMAP(
                nn.Dense,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=None,
                out_axes=0,
                axis_size=3,
            )
            return dense(2, name="experts")(x).sum(0)

    recipe = recipe_of(Experts(), rows_of(X))
    state = planted(recipe.init(0), "experts/kernel", (2, 0, 0))
    found = diagnose_step(recipe, state, rows_of(X))
    assert found.parameter is not None and found.module is not None
    assert found.parameter.layer == found.module.layer == (2,)
    assert found.module.name == "experts"


class Ratio(nn.Module):
    """Divides by zero where its parameter is large."""

    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> tuple[Any, None]:
        scale = self.param("scale", nn.initializers.zeros, ())
        return Inverse(name="inverse")(x, jnp.where(scale > 5, 0.0, 1.0)), None


class Inverse(nn.Module):
    @nn.compact
    def __call__(self, x: Any, by: Any) -> Any:
        return x / by


def lifted(lift: Any, body: Any, **more: Any) -> Any:
    return lift(body, variable_axes={"params": 0}, split_rngs={"params": True}, **more)


class Towers(nn.Module):
    """Three towers side by side, each of two layers that run from the last to the first."""

    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        return lifted(SCAN, Ratio, length=2, reverse=True)(name="layers")(x, None)


def test_layers_inside_of_a_vmap_and_in_reverse_are_told_apart() -> None:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            towers = lifted(VMAP, Towers, in_axes=None, out_axes=0, axis_size=3)
            return nn.Dense(2)(towers(name="towers")(x, None)[0].sum(0))

    recipe = recipe_of(Model(), rows_of(X))
    state = recipe.init(0)
    for place in ((1, 1), (2, 0)):
        state.params["towers"]["layers"]["scale"] = jnp.zeros((3, 2)).at[place].set(9.0)
        module = diagnose_step(recipe, state, rows_of(X)).module
        assert module is not None and module.name == "towers/layers/inverse"
        assert (module.layer, module.layers) == (place, (3, 2))


class Masked(nn.Module):
    """Attends to nothing at all, by a mask of minus infinity."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return Weights(name="weights")(x, jnp.full(x.shape, -jnp.inf))


class Weights(nn.Module):
    @nn.compact
    def __call__(self, x: Any, mask: Any) -> Any:
        return nn.softmax(x + mask)


def test_a_module_that_makes_nan_of_an_infinite_mask_is_named() -> None:
    calls = ModuleCalls()
    calls.watched(lambda: Masked().apply({}, jnp.ones((2, 3))))
    assert [str(found) for found in calls.breaks()] == [
        "the model itself (Masked): finite arguments, NaN in its float32 result",
        "weights (Weights): infinite arguments, NaN in its float32 result",
    ]


def test_a_replay_that_takes_too_long_is_given_up_and_what_was_seen_is_kept() -> None:
    seconds = itertools.count()
    calls = ModuleCalls(seconds=4.0, clock=lambda: float(next(seconds)))
    model = nn.Sequential([nn.Dense(2), Masked(), *[nn.Dense(2)] * 9])
    variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
    assert calls.watched(lambda: model.apply(variables, jnp.ones((1, 2)))) is None
    assert calls.gave_up and [found.class_name for found in calls.breaks()] == [
        "Masked",
        "Weights",
    ]


def test_an_infinity_of_the_batch_is_not_laid_to_a_module() -> None:
    batch = rows_of(X)
    batch["x"][1, 0] = np.inf
    recipe = recipe_of(nn.Sequential([nn.Dense(3), nn.LayerNorm(), nn.Dense(2)]), batch)
    found = diagnose_step(recipe, recipe.init(0), batch)
    assert found.modules == () and "was in the batch already" in str(found)


class Lottery(nn.Module):
    """Overflows where its dropout key says so."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.Dense(2)(x)
        if train:
            drawn = jax.random.uniform(self.make_rng("dropout"))
            x = nn.Dropout(0.2, deterministic=False)(x) * jnp.exp(
                jnp.where(drawn > 0.6, 1000.0, 0.0)
            )
        return x


@pytest.mark.parametrize(
    "accumulate", [2, pytest.param(ft.AccumulateBatches(2), marks=pytest.mark.slow)]
)
def test_the_replay_draws_the_random_numbers_of_the_step(accumulate: Any) -> None:
    recipe = recipe_of(Lottery(), rows_of(X), nonfinite="skip", accumulate=accumulate)
    state, outcomes = recipe.init(0), []
    for step in range(8):
        state = state.replace(step=jnp.int32(step))
        after, _ = STEP(recipe, state, rows_of(X))
        rejected = int(after.counters.skipped)
        found = diagnose_step(recipe, state, rows_of(X))
        assert found.is_finite == (not rejected)
        outcomes.append((rejected, found.microbatch))
        state = state.replace(accumulated=after.accumulated)
    assert {rejected for rejected, _ in outcomes} == {0, 1}
    numbers = {number for rejected, number in outcomes if rejected}
    assert numbers and numbers <= ({0, 1} if accumulate == 2 else {None})


@pytest.mark.slow
def test_the_microbatch_with_the_overflow_is_named_and_statistics_are_carried() -> None:
    class Square(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
            return nn.Dense(2, name="head")(x)

    x = X.copy()
    x[3, 2] = 3e38
    recipe = recipe_of(Square(), rows_of(x), accumulate=2)
    found = diagnose_step(recipe, recipe.init(0), rows_of(x))
    assert found.microbatch == 1 and "microbatch: 1" in str(found)
    assert found.collections and found.collections[0].name == "batch_stats/bn/var"
    # Rows of the whole batch, not of the microbatch.
    assert [entry.maximum for entry in found.inputs if entry.name == "x"] == [np.float32(3e38)]


def test_padding_is_left_out_of_the_replay() -> None:
    batch = rows_of(X)
    batch["x"][2:] = np.nan
    recipe = recipe_of(nn.Dense(2), batch, accumulate=2)
    mask = np.array([True, True, False, False])
    found = diagnose_step(recipe, recipe.init(0), batch, mask)
    # Statistics are those of the real rows, and rows keep their numbers.
    assert found.is_finite and [entry.bad for entry in found.inputs] == [0, 0]
    found = diagnose_step(recipe, recipe.init(0), batch, ~mask)
    assert found.microbatch == 1 and not found.is_finite
    assert [entry.rows for entry in found.inputs if entry.bad] == [(2, 3)]


def test_a_loss_function_that_is_itself_to_blame_is_said() -> None:
    def loss(model: Any, batch: Any) -> Any:
        return jnp.log(-jnp.square(model(batch["x"])[:, 0]) - 1)

    recipe = recipe_of(nn.Dense(2), rows_of(X), loss)
    found = diagnose_step(recipe, recipe.init(0), rows_of(X))
    assert found.modules == () and not np.isfinite(loss_of(found))
    assert "module: all outputs are finite, the loss function itself is not" in str(found)


def test_a_gradient_that_is_alone_in_not_being_finite_is_said() -> None:
    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(3, use_bias=False, name="first")(x)
            size = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))
            return nn.Dense(2, name="head")(size)

    recipe = recipe_of(Norm(), rows_of(X * 0))
    found = diagnose_step(recipe, recipe.init(0), rows_of(X * 0))
    assert np.isfinite(loss_of(found)) and found.modules == ()
    assert found.gradient is not None and found.gradient.name == "first/kernel"
    assert (found.gradients, found.trained) == (1, 3)
    assert "module: all outputs are finite, the gradient is not" in str(found)
    assert found.what.startswith("the gradient became NaN or infinite, the loss is 0.69")


def test_values_in_the_batch_are_told_by_row_and_no_module_is_blamed() -> None:
    x = X.copy()
    x[1, 0], x[3, 2] = np.nan, -np.inf
    recipe = recipe_of(nn.Dense(2), rows_of(x))
    found = diagnose_step(recipe, recipe.init(0), rows_of(x))
    entry = {entry.name: entry for entry in found.inputs}["x"]
    good = x[np.isfinite(x)].astype(np.float64)
    assert (entry.rows, entry.bad, entry.shape) == ((1, 3), 2, (4, 3))
    assert (entry.minimum, entry.maximum) == (good.min(), good.max())
    assert entry.mean == pytest.approx(good.mean(), rel=1e-12)
    assert found.modules == () and "was in the batch already" in str(found)
    assert "2 of 12 values are not finite, in rows 1, 3" in str(found)


def test_where_all_is_finite_that_is_said_and_the_state_is_left_alone() -> None:
    recipe = recipe_of(nn.Dense(2), rows_of(X))
    state = recipe.init(0)
    found = diagnose_step(recipe, state, rows_of(X))
    assert found.is_finite and found.what == "everything is finite when the batch is run again"
    assert int(state.step) == 0 and jax.tree.leaves(state.params)[0].shape == (2,)


def test_weights_that_are_no_weights_are_said() -> None:
    batch = {**rows_of(X), "weight": np.array([1, np.nan, 1, 1], np.float32)}
    recipe = recipe_of(nn.Dense(2), batch)
    found = diagnose_step(recipe, recipe.init(0), batch)
    assert found.weights_are_bad and found.what == "the weights of the loss add up to nan"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_spike_is_told_with_its_numbers(accumulate: int) -> None:
    rule = ft.Spikes(5.0, window=8, of="loss")
    recipe = recipe_of(nn.Dense(2), rows_of(X), spikes=rule, accumulate=accumulate)
    state = recipe.init(0)
    for index in range(8):
        state, _ = STEP(recipe, state, rows_of(X * (1 + index / 50)))
    x = X.copy()
    x[:2] *= -100  # the first microbatch; the last one is as usual
    found = diagnose_step(recipe, state, rows_of(x))
    assert found.microbatch is None
    assert found.spike is not None and found.spike.of == "loss"
    assert isinstance(state.spikes, SpikeWindow)
    values = np.asarray(state.spikes.values, np.float64)
    middle = np.median(values)
    z = (loss_of(found) - middle) / (1.4826 * np.median(np.abs(values - middle)))
    assert found.spike.value == found.loss and found.spike.limit == 5.0
    assert found.spike.median == pytest.approx(middle, rel=1e-6)
    assert found.spike.z == pytest.approx(z, rel=1e-3)  # float32 through a small scale
    assert "robust standard deviations above the median" in found.what
    assert diagnose_step(recipe, state, rows_of(X)).spike is None


def test_a_replay_that_fails_says_so_and_keeps_the_rest() -> None:
    def loss(model: Any, batch: Any) -> Any:
        value = model(batch["x"])[:, 0]
        if not isinstance(value, Tracer):
            raise RuntimeError("only under jit\nsecond line")
        return jnp.log(value * 0 - 1)

    recipe = recipe_of(nn.Dense(2), rows_of(X), loss)
    found = diagnose_step(recipe, recipe.init(0), rows_of(X))
    assert found.notes == ("the modules could not be looked at: RuntimeError: only under jit",)
    assert not np.isfinite(loss_of(found)) and found.inputs


def test_a_batch_that_does_not_fit_the_model_is_not_called_finite() -> None:
    recipe = recipe_of(nn.Dense(2), rows_of(X))
    found = diagnose_step(recipe, recipe.init(0), {"x": X})
    assert found.what == "the batch could not be run again"
    assert not found.is_finite and "has no target" in found.notes[0]


def test_a_batch_without_weight_is_no_bad_one() -> None:
    batch = {**rows_of(X), "weight": np.zeros(len(X), np.float32)}
    recipe = recipe_of(nn.Dense(2), batch)
    found = diagnose_step(recipe, recipe.init(0), batch)
    assert found.is_finite and found.what.startswith("the batch has no weight")


def test_a_report_is_json() -> None:
    x = X.copy()
    x[0] = np.nan
    recipe = recipe_of(nn.Dense(2), rows_of(x))
    found = diagnose_step(recipe, recipe.init(0), rows_of(x))
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["loss"] == "nan" and data["what"] == found.what
    assert data["inputs"][1]["rows"] == [0] and data["gradients"] == found.gradients
