"""Training with cached features of frozen modules is the training without a cache."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain import errors
from flaxtrain.data import as_stream
from flaxtrain.loop.feature_cache import NO_CACHE, FeatureCache, feature_cache
from flaxtrain.loop.interrupt import DeferredInterrupt
from flaxtrain.loop.row_check import check_rows, exchanges
from flaxtrain.train import make_recipe
from tests.runs import AS_IT_COMES, bits

RNG = np.random.default_rng(0)
EXAMPLES, SIZE = 26, 8
ARRAYS = {
    "x": RNG.normal(size=(EXAMPLES, 6, 6, 1)).astype("float32"),
    "label": RNG.integers(0, 3, EXAMPLES).astype("int32"),
}


class Backbone(nn.Module):
    """Convolution, BatchNorm, Dropout, pooling."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.Conv(8, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.5)(x))
        return nn.Dropout(0.2, deterministic=not train)(x).mean((1, 2))


class Tuned(nn.Module):
    """A backbone, and a head with Dropout and BatchNorm."""

    backbone: type[nn.Module] = Backbone

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = self.backbone(name="backbone")(x, train)
        x = nn.Dropout(0.3, deterministic=not train)(x)
        x = nn.relu(nn.Dense(16)(x))
        return nn.Dense(3)(nn.BatchNorm(not train)(x))


class Chain(nn.Module):
    """Frozen layers side by side, among them an Embed; the head reads two of their outputs."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = x.reshape(x.shape[0], -1)
        table = nn.Embed(2, 4, name="table")((x[:, 0] > 0).astype("int32"))
        x = nn.relu(nn.Dense(8, name="lower")(x))
        x = nn.relu(nn.Dense(4, name="upper")(x))
        return nn.Dense(3, name="head")(x + table)


BACKBONE = ("backbone/**",)
CHAIN = ("table/**", "lower/**", "upper/**")


class Rows(ft.Hook):
    """Keeps what was said and logged."""

    def __init__(self) -> None:
        self.said: tuple[str, ...] = ()

    def on_start(self, run: Any) -> None:
        self.said = run.announcements


def trainer(
    freeze: Any = BACKBONE, model: nn.Module | None = None, **kwargs: Any
) -> ft.Trainer:
    rules = list(freeze)
    spec = ft.OptSpec("sgd", learning_rate=0.05, momentum=0.9, clip_norm=1.0, freeze=rules)
    chosen = Tuned() if model is None else model
    return ft.Trainer(chosen, spec, log_every=3, verbose=False, **kwargs)


def data(arrays: Any = None, **kwargs: Any) -> Any:
    kwargs = {"shuffle": True, "seed": 3, **kwargs}
    return ft.data.batches(ARRAYS if arrays is None else arrays, SIZE, **kwargs)


def rows_of(result: Any) -> list[dict[str, float]]:
    clock = ("steps_per_sec", "examples_per_sec", "data_wait_share")
    return [{k: v for k, v in row.items() if k not in clock} for row in result.history.train]


def assert_same(freeze: Any, model: nn.Module, ds: Any, **kwargs: Any) -> ft.Trainer:
    """Trains with and without a cache; parameters, slots and metrics are equal in every bit."""
    plain, cached = trainer(freeze, model, **kwargs), trainer(freeze, model, **kwargs)
    expected = plain.fit(ds, epochs=3)
    result = cached.fit(ds, epochs=3, cache_frozen=True)
    assert bits(cached.state) == bits(plain.state)
    assert rows_of(result) == rows_of(expected)
    assert cached.compilations["train"] == 1
    assert result.timings["features"] > 0
    assert "features" not in expected.timings
    return cached


def test_shuffled_epochs_with_padding_are_bitwise_those_without_a_cache() -> None:
    start = trainer()
    start.fit(data(), steps=1)
    cached = assert_same(BACKBONE, Tuned(), data())
    assert cached.state is not None and start.state is not None
    for part in ("params", "collections"):
        held, found = getattr(start.state, part), getattr(cached.state, part)
        trees = (
            (held, found) if part == "params" else (held["batch_stats"], found["batch_stats"])
        )
        before, after = (bits(tree["backbone"]) for tree in trees)
        assert before == after


def test_weights_of_the_examples_and_bad_rows_that_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Two programs, and with weights those that are little optimized join other products.
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=AS_IT_COMES))
    counts = np.arange(EXAMPLES) % 5 != 1
    x = ARRAYS["x"].copy()
    x[~counts] = np.nan
    weight = RNG.uniform(0.5, 2.0, EXAMPLES).astype("float32")
    arrays = {**ARRAYS, "x": x, "mask": counts, "weight": weight}
    cached = assert_same(BACKBONE, Tuned(), data(arrays))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(cached.state.params))  # type: ignore[union-attr]


def test_tuples_in_order_without_the_last_batch_and_a_chain_of_layers() -> None:
    arrays = (ARRAYS["x"], ARRAYS["label"])
    assert_same(CHAIN, Chain(), data(arrays, shuffle=False, drop_remainder=True))


def test_a_loss_of_ones_own_that_returns_a_scalar() -> None:
    def loss(model: Any, batch: Any) -> Any:
        logits = model(batch["x"])
        noise = jax.random.normal(model.rng("noise"), logits.shape) if model.train else 0.0
        return jnp.mean((logits + noise) ** 2), {"largest": jnp.max(logits)}

    assert_same(CHAIN, Chain(), data(drop_remainder=True), loss=loss)


def test_evaluation_and_prediction_run_the_whole_model() -> None:
    plain, cached = trainer(), trainer()
    expected = plain.fit(data(), epochs=2, eval_ds=data())
    result = cached.fit(data(), epochs=2, eval_ds=data(), cache_frozen=True)
    assert result.history.val == expected.history.val
    assert cached.evaluate(ARRAYS) == plain.evaluate(ARRAYS)
    other = {"x": 2 * ARRAYS["x"]}
    np.testing.assert_array_equal(cached.predict(other), plain.predict(other))


def test_what_is_cached_is_said_with_its_size() -> None:
    hook = Rows()
    rule = ft.Freeze("backbone/**", until=5)
    trainer([rule], hooks=[hook]).fit(data(), steps=1, cache_frozen=True)
    said = f"cached the outputs of backbone for {EXAMPLES} examples: 832 B"
    assert f"{said}, to be dropped at step 5" in hook.said


class StopAt(ft.Hook):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_step(self, run: Any) -> None:
        if run.batches == self.batch:
            run.stop("as planned")


def test_a_run_that_is_continued_equals_the_uninterrupted_one_bitwise(tmp_path: Path) -> None:
    whole = trainer()
    whole.fit(data(), epochs=2)
    trainer(workdir=tmp_path, hooks=[StopAt(3)]).fit(data(), epochs=2, cache_frozen=True)
    second = trainer(workdir=tmp_path)
    second.fit(data(), epochs=2, cache_frozen=True)
    assert bits(second.state) == bits(whole.state)


def test_further_fits_with_and_without_a_cache_share_the_state() -> None:
    plain, mixed = trainer(), trainer()
    for cache in (True, False, True):
        plain.fit(data(), steps=3)
        mixed.fit(data(), steps=3, cache_frozen=cache)
    assert bits(mixed.state) == bits(plain.state)
    assert mixed.compilations["train"] == 2


GRADUAL = [ft.Freeze("upper/**", until="1ep"), "lower/**"]


def test_when_a_module_thaws_the_whole_model_takes_over(tmp_path: Path) -> None:
    plain = trainer(GRADUAL, Chain())
    plain.fit(data(), epochs=2)
    hooks = (StopAt(6), Rows())
    first = trainer(GRADUAL, Chain(), workdir=tmp_path, hooks=hooks[:1])
    first.fit(data(), epochs=2, cache_frozen=True)
    assert first.compilations["train"] == 2
    # Continued after the boundary, where less can be cached.
    second = trainer(GRADUAL, Chain(), workdir=tmp_path, hooks=hooks[1:])
    second.fit(data(), epochs=2, cache_frozen=True)
    assert any("cached the outputs of lower" in line for line in hooks[1].said)
    assert bits(second.state) == bits(plain.state)


def test_a_phase_that_can_not_be_cached_is_no_reason_not_to_go_on() -> None:
    spec = trainer([ft.Freeze("upper/**", until=1)]).spec
    recipe = make_recipe(Chain(), spec, {k: v[:SIZE] for k, v in ARRAYS.items()})
    cache = FeatureCache(as_stream(data()))  # type: ignore[arg-type]
    with pytest.raises(errors.ModelError, match="'upper' depends on the trained parameter"):
        cache.fill(recipe, recipe.init(), DeferredInterrupt())
    later = recipe.at(1)
    (said,) = cache.fill(later, later.init(), DeferredInterrupt())
    assert said == "frozen features are not cached in this phase: nothing is frozen"
    assert cache.recipe(later) is later


def test_dropped_features_are_freed_and_no_longer_given_out() -> None:
    model = trainer()
    model.fit(data(), steps=1)
    stream = as_stream(data())
    cache = FeatureCache(stream)  # type: ignore[arg-type]
    cache.fill(model.recipe, model.state, DeferredInterrupt())  # type: ignore[arg-type]
    batches = cache.epoch(stream, 0, 1)
    first = next(batches)
    joined = cache.data(first)
    assert len(joined) == len(first.data) + 1
    cache.drop()
    assert cache.data(first) is first.data
    assert cache.data(next(batches)).keys() == ARRAYS.keys()
    assert cache.recipe(model.recipe) is model.recipe  # type: ignore[arg-type]


class MixesRows(nn.Module):
    """Rows are centred by the mean over the batch."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.Dense(4)(x.reshape(x.shape[0], -1))
        return x - x.mean(axis=0, keepdims=True)


class MixesPairs(MixesRows):
    """Every row sees the one before it."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.Dense(4)(x.reshape(x.shape[0], -1))
        return x + 1e-6 * jnp.roll(x, 1, axis=0)


class CountsRows(nn.Module):
    """What a row gives depends on its number in the batch."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.Dense(4)(x.reshape(x.shape[0], -1))
        return x + jnp.arange(x.shape[0], dtype=x.dtype)[:, None]


class TimeFirst(nn.Module):
    """The first axis has the length of the batch and is another one."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        return nn.Dense(SIZE)(x.reshape(x.shape[0], -1)).T


@pytest.mark.parametrize("backbone", [MixesRows, MixesPairs, TimeFirst])
def test_rows_that_depend_on_one_another_are_refused(backbone: type[nn.Module]) -> None:
    failing = trainer(model=Tuned(backbone))
    with pytest.raises(errors.ModelError, match="depends on the other rows of its batch"):
        failing.fit(data(), epochs=1, cache_frozen=True)
    assert failing.state is None


def test_rows_that_depend_on_their_place_are_refused() -> None:
    with pytest.raises(errors.ModelError, match="depends on its place in the batch"):
        trainer(model=Tuned(CountsRows)).fit(data(), epochs=1, cache_frozen=True)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 64, 70])
def test_any_row_is_exchanged_while_any_other_one_stays(rows: int) -> None:
    runs = np.array(list(exchanges(rows)))
    told_apart = np.any(runs[:, :, None] & ~runs[:, None, :], axis=0)
    assert np.array_equal(told_apart, ~np.eye(rows, dtype=bool))
    assert len(runs) <= 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "complex64"])
def test_the_row_check_knows_every_dtype(dtype: str) -> None:
    batch = {"x": np.arange(6.0).reshape(6, 1)}
    check_rows(lambda data: [np.asarray(jnp.asarray(data["x"], dtype))], batch)
    with pytest.raises(errors.ModelError, match="its place"):
        place = np.arange(6)[:, None]
        check_rows(lambda data: [np.asarray(jnp.asarray(data["x"] + place, dtype))], batch)
    with pytest.raises(errors.ModelError, match="its place"):
        nan = np.where(np.arange(6) > 2, np.nan, 0.0)[:, None]
        check_rows(lambda data: [data["x"] + nan], batch)


def test_a_fit_that_is_refused_leaves_no_trace() -> None:
    refused = trainer((), Chain())
    with pytest.raises(errors.ArgumentError, match="nothing is frozen"):
        refused.fit(data(), epochs=1, cache_frozen=True)
    assert refused.state is None
    refused.fit(data(), steps=1)
    assert int(refused.state.step) == 1  # type: ignore[union-attr]


def test_examples_without_numbers_are_refused() -> None:
    batches = [{k: v[:SIZE] for k, v in ARRAYS.items()}]
    with pytest.raises(errors.ArgumentError, match="only arrays have one") as caught:
        trainer().fit(batches, epochs=1, cache_frozen=True)
    assert "ft.data.batches" in str(caught.value)
    assert feature_cache(False, as_stream(batches)) is NO_CACHE


@pytest.mark.usefixtures("unchecked_types")
def test_the_argument_is_true_or_false() -> None:
    with pytest.raises(errors.ArgumentTypeError, match="cache_frozen='yes'"):
        trainer().fit(data(), epochs=1, cache_frozen="yes")  # type: ignore[arg-type]


def test_an_interrupt_while_features_are_computed_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "flaxtrain.loop.interrupt.DeferredInterrupt.__enter__", lambda self: pressed(self)
    )

    def pressed(interrupt: Any) -> Any:
        interrupt.requested = True
        return interrupt

    stopped = trainer()
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(data(), epochs=1, cache_frozen=True)
    assert stopped.state is None


def test_microbatches_read_the_features_of_their_own_rows() -> None:
    """One output of the frozen module is used in its shape only, so it is not kept."""

    class Pair(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            hidden = nn.Dense(4)(x)
            return hidden, nn.Dense(5)(hidden)

    class Head(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            hidden, beside = Pair(name="pair")(x.reshape(x.shape[0], -1))
            _ = beside + jnp.ones((x.shape[0], 5))
            return nn.Dense(3)(hidden)

    kernels = []
    for cached in (False, True):
        run = ft.Trainer(
            Head(), ft.OptSpec("sgd", 0.1, freeze=["pair/**"], accumulate=2), verbose=False
        )
        run.fit(data(), epochs=1, cache_frozen=cached)
        assert run.state is not None
        kernels.append(np.asarray(run.state.params["Dense_0"]["kernel"]))
    np.testing.assert_allclose(*kernels, rtol=1e-5, atol=1e-6)
