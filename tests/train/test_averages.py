"""Averaged weights against NumPy, and their place in the training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict

import flaxtrain as ft
from flaxtrain import optim
from flaxtrain.errors import ArgumentTypeError
from flaxtrain.precision.rounding import rounding_rule
from flaxtrain.train import NO_AVERAGE, Average, begin_average
from flaxtrain.tree import named_leaves
from tests.runs import FLOAT32_BAR, differing_leaves

STEPS = 200
# Everything is float64; an average of 200 terms is formed in another order.
BAR = 1e-12


# The slow and obvious versions: x holds the weights after 0, 1, ... updates.


def numpy_ema(
    x: np.ndarray, decay: float, warmup: bool = True, every: int = 1
) -> tuple[np.ndarray, int]:
    average, count = x[0], 0
    for step in range(every, len(x), every):
        d = min(decay, (1 + count) / (10 + count)) if warmup else decay
        average, count = d * average + (1 - d) * x[step], count + 1
    return average, count


def numpy_swa(x: np.ndarray, start: int, every: int = 1) -> tuple[np.ndarray, int]:
    taken = [x[s] for s in range(start, len(x), every) if s >= 1]
    return (np.mean(taken, axis=0) if taken else x[-1]), len(taken)


def numpy_lookahead(
    x: np.ndarray, period: int, alpha: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Takes the differences of `x` as fast updates; returns slow and fast weights."""
    slow, fast, count = x[0], x[0], 0
    for step in range(1, len(x)):
        fast = fast + (x[step] - x[step - 1])
        if step % period == 0:
            slow = slow + alpha * (fast - slow)
            fast, count = slow, count + 1
    return slow, fast, count


def walk(seed: int) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).normal(size=(STEPS + 1, 3)), axis=0)


Walked = tuple[Any, dict[str, Any], dict[str, Any]]


def walked(rule: Any) -> Walked:
    """Returns the average, the parameters and the collections after all updates."""
    x, y = walk(1), walk(2)
    counts = np.arange(STEPS + 1, dtype=np.int32)

    def step(carry: Any, entry: Any) -> tuple[Any, None]:
        (average, params, _), (number, move, stats, seen) = carry, entry
        params = {"layer": {"w": params["layer"]["w"] + move}, "fixed": params["fixed"]}
        collections = {"stats": {"mean": stats, "seen": seen}}
        average, params = average.update(params, collections, number, None)
        return (average, params, collections), None

    params = {"layer": {"w": jnp.asarray(x[0])}, "fixed": jnp.asarray(x[0])}
    collections = {"stats": {"mean": jnp.asarray(y[0]), "seen": jnp.asarray(counts[0])}}
    average = begin_average(rule, params, collections, {("layer", "w")})
    numbers = jnp.arange(1, STEPS + 1, dtype=jnp.int32)
    entries = (numbers, np.diff(x, axis=0), y[1:], counts[1:])
    return jax.jit(lambda *a: jax.lax.scan(step, *a)[0])(
        (average, params, collections), entries
    )


Oracle = Callable[[np.ndarray], tuple[np.ndarray, int]]

CASES: dict[str, tuple[Any, Oracle]] = {
    "warm-up": (ft.Ema(0.9), lambda x: numpy_ema(x, 0.9)),
    "warm-up for longer than the run": (ft.Ema(0.9999), lambda x: numpy_ema(x, 0.9999)),
    "no warm-up": (ft.Ema(0.97, warmup=False), lambda x: numpy_ema(x, 0.97, False)),
    "every 7": (ft.Ema(0.9, every=7), lambda x: numpy_ema(x, 0.9, every=7)),
    "no memory": (ft.Ema(0.0, warmup=False), lambda x: (x[-1], STEPS)),
    "swa of all": (ft.Swa(0), lambda x: numpy_swa(x, 0)),
    "swa from 50 on": (ft.Swa(50), lambda x: numpy_swa(x, 50)),
    "swa every 30": (ft.Swa(50, every=30), lambda x: numpy_swa(x, 50, 30)),
    "swa of the last weights": (ft.Swa(STEPS), lambda x: numpy_swa(x, STEPS)),
    "swa that never begins": (ft.Swa(STEPS + 1), lambda x: numpy_swa(x, STEPS + 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_200_updates_give_the_average_that_numpy_forms(name: str) -> None:
    rule, oracle = CASES[name]
    with jax.enable_x64(True):
        average, params, collections = walked(rule)
        mean, mean_stats = jax.device_get(average.weights(params, collections))
        # The trained weights are theirs, whatever is averaged.
        assert np.abs(params["layer"]["w"] - walk(1)[-1]).max() <= BAR * np.abs(walk(1)).max()
        np.testing.assert_array_equal(params["fixed"], walk(1)[0])
        for found, x in ((mean["layer"]["w"], walk(1)), (mean_stats["stats"]["mean"], walk(2))):
            expected, count = oracle(x)
            assert np.abs(found - expected).max() <= BAR * np.abs(x).max()
            assert int(average.count) == count
            assert found.dtype == np.float64
        np.testing.assert_array_equal(mean["fixed"], walk(1)[0])
        assert mean_stats["stats"]["seen"] == STEPS  # an integer is that of training
    assert bool(average.begun) is (name != "swa that never begins")


def test_with_the_period_of_a_cyclic_rate_the_ends_of_the_cycles_are_averaged() -> None:
    rates = ft.schedules.cosine_restarts_schedule(1.0, 5)
    average = begin_average(ft.Swa(10, every=5), {"w": jnp.zeros(())}, {})
    for step in range(1, 21):
        params = {"w": rates(step - 1)}  # the rate of this update, in place of the weights
        average, _ = average.update(params, {}, jnp.int32(step))
    lowest = np.min([np.asarray(rates(count)) for count in range(20)])
    # A mean of three equal numbers, each with a few roundings of a rate of 1.
    found = float(average.params["w"])
    assert int(average.count) == 3 and found == pytest.approx(lowest, rel=0, abs=FLOAT32_BAR)


@pytest.mark.parametrize(("period", "alpha"), [(6, 0.5), (5, 0.8), (1, 0.3), (7, 1.0)])
def test_lookahead_moves_slow_and_trained_weights_as_numpy_does(
    period: int, alpha: float
) -> None:
    with jax.enable_x64(True):
        average, params, collections = walked(ft.Lookahead(period, alpha))
        slow, fast, count = numpy_lookahead(walk(1), period, alpha)
        mean, stats = average.weights(params, collections)
        size = np.abs(walk(1)).max()
        assert np.abs(mean["layer"]["w"] - slow).max() <= BAR * size
        assert np.abs(params["layer"]["w"] - fast).max() <= BAR * size
        assert int(average.count) == count
        # It is evaluated with the statistics of training.
        np.testing.assert_array_equal(stats["stats"]["mean"], walk(2)[-1])


@pytest.mark.parametrize("kind", ["ours", "optax"])
def test_lookahead_equals_the_optimizer_that_wraps_another(kind: str) -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        params = {"w": jnp.asarray(rng.normal(size=(4, 3)))}
        grads = {"w": jnp.asarray(rng.normal(size=(50, 4, 3)))}
        library: Any = optim if kind == "ours" else optax
        wrapped = library.lookahead(library.adam(0.1), sync_period=6, slow_step_size=0.5)
        state = ft.TrainState.create(
            apply_fn=None,
            params=params,
            tx=optim.adam(0.1),
            ema=begin_average(ft.Lookahead(6, 0.5), params, {}),
        )

        def both(carry: Any, grad: Any) -> tuple[Any, None]:
            state, pair, inner = carry
            updates, inner = wrapped.update(grad, inner, pair)
            pair = library.apply_updates(pair, updates)
            return (state.apply_gradients(grads=grad), pair, inner), None

        pair = library.LookaheadParams.init_synced(params)
        first = (state, pair, wrapped.init(pair))
        state, pair, _ = jax.jit(lambda *a: jax.lax.scan(both, *a)[0])(first, grads)
        for ours, theirs in ((state.params, pair.fast), (ft.eval_params(state), pair.slow)):
            gap = np.abs(np.asarray(ours["w"]) - np.asarray(theirs["w"])).max()
            assert gap <= BAR * np.abs(np.asarray(theirs["w"])).max()


def test_what_is_no_state_has_no_weights_to_evaluate(unchecked_types: None) -> None:
    for verb in (ft.eval_params, ft.eval_state):
        for found, name in (({}, "dict"), (None, "NoneType")):
            with pytest.raises(ArgumentTypeError, match=f"a {name}, not a TrainState") as error:
                verb(found)  # type: ignore[arg-type]
            assert error.value.where == verb.__name__ and error.value.fix


def test_every_kind_is_an_average(unchecked_types: None) -> None:
    for rule in (None, ft.Ema(), ft.Swa(1), ft.Lookahead()):
        assert isinstance(begin_average(rule, {"w": jnp.ones(1)}, {}), Average)


def test_what_is_off_has_no_leaves_and_changes_nothing() -> None:
    params = FrozenDict({"w": jnp.ones(2)})
    assert jax.tree.leaves(NO_AVERAGE) == [] and not NO_AVERAGE.begun
    state = ft.TrainState.create(apply_fn=None, params=params, tx=optim.sgd(0.1))
    assert state.averaged().params is params and state.exact_params is params
    assert NO_AVERAGE.with_collections({"batch_stats": {}}) is NO_AVERAGE
    assert ft.eval_params(state) is params


def test_averages_of_16_bit_weights_are_float32_and_evaluated_in_their_own_dtype() -> None:
    params = {"w": jnp.ones(3, jnp.bfloat16), "z": jnp.ones(2, jnp.complex64)}
    stats = {"batch_stats": {"mean": jnp.zeros(2, jnp.float16)}}
    for rule in (ft.Ema(0.99, warmup=False), ft.Swa(1)):
        average = begin_average(rule, params, stats)
        moved = {"w": params["w"] + 0.5, "z": params["z"] * 2j}
        for step in range(1, 4):
            average, _ = average.update(moved, stats, jnp.int32(step))
        assert [leaf.dtype for leaf in jax.tree.leaves(average.params)] == [
            "float32",
            "complex64",
        ]
        assert average.collections["batch_stats"]["mean"].dtype == jnp.float32
        value, own = average.weights(params, stats)
        assert jax.tree.map(jnp.result_type, value) == jax.tree.map(jnp.result_type, params)
        assert own["batch_stats"]["mean"].dtype == jnp.float16
    # bfloat16 has no number between 1 and 1.0078: there an average with this decay would stay.
    ema = begin_average(ft.Ema(0.99, warmup=False), params, {})
    ema, _ = ema.update({"w": params["w"] + 0.0078125, "z": params["z"]}, {}, jnp.int32(1))
    assert float(ema.params["w"][0]) > 1.0


@pytest.mark.parametrize("rule", [ft.Ema(0.5, warmup=False), ft.Lookahead(1)], ids=repr)
def test_with_float32_copies_of_16_bit_weights_the_copies_are_averaged(rule: Any) -> None:
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    state = ft.TrainState.create(
        apply_fn=None,
        params=params,
        tx=optim.sgd(1.0),
        rounding=rounding_rule("master"),
        ema=begin_average(rule, params, {}),
    )
    state = state.apply_gradients(grads={"w": jnp.full(3, 1e-3)})
    # bfloat16 has no number between 0.996 and 1.
    np.testing.assert_array_equal(state.params["w"], params["w"])
    np.testing.assert_allclose(state.ema.params["w"], 1 - 0.5e-3, rtol=1e-7)
    copies = 1 - 0.5e-3 if isinstance(rule, ft.Lookahead) else 1 - 1e-3
    np.testing.assert_allclose(state.rounding_carry["w"], copies, rtol=1e-7)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("f64", "float64"), ("p=bf16,c=bf16", "float32")]
)
def test_an_average_is_as_wide_as_the_parameters_are_stored_and_at_least_float32(
    precision: str, dtype: str
) -> None:
    spec, options = ft.OptSpec("sgd", 0.1, ema=0.9), ft.StepOptions(precision=precision)
    with jax.enable_x64(True):
        recipe = ft.make_recipe(nn.Dense(3), spec, ROWS, options=options)
        average = jax.eval_shape(recipe.init).ema.params
    assert {leaf.dtype.name for leaf in jax.tree.leaves(average)} == {dtype}


# In the step.


ROWS = {
    "x": np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32),
    "label": (np.arange(12) % 3).astype(np.int32),
}


class Net(nn.Module):
    """Two layers and BatchNorm."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.BatchNorm(not train, momentum=0.9, name="norm")(nn.Dense(5, name="body")(x))
        return nn.Dense(3, name="head")(nn.relu(x))


def steps_of(spec: ft.OptSpec, count: int, **arguments: Any) -> list[ft.TrainState]:
    """Returns the states after 0, 1, ... batches; the run enters its phases."""
    recipe = ft.make_recipe(Net(), spec, ROWS, **arguments)
    states = [recipe.init(0)]
    step = jax.jit(ft.train_step, static_argnums=0)
    for _ in range(count):
        state = states[-1]
        if recipe.at(int(state.step)) is not recipe:
            recipe = recipe.at(int(state.step))
            state = recipe.enter(state)
        states.append(step(recipe, state, ROWS)[0])
    return states


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree)}


def test_the_step_averages_parameters_and_batch_statistics() -> None:
    states = steps_of(ft.OptSpec("adam", 0.1, ema=ft.Ema(0.9, every=2)), 7)
    trained = [leaves({"params": s.params, **s.collections}) for s in states]
    last = ft.eval_state(states[-1])
    assert jax.tree.structure(last) == jax.tree.structure(states[-1])
    for name, found in leaves({"params": last.params, **last.collections}).items():
        expected, count = numpy_ema(np.stack([t[name] for t in trained]), 0.9, every=2)
        # float32: a dozen roundings.
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
        assert count == int(states[-1].ema.count) == 3
    assert differing_leaves(states[3].ema, states[2].ema) == []
    assert differing_leaves(states[4].ema, states[3].ema) != []


def test_an_average_is_no_part_of_training() -> None:
    spec = ft.OptSpec("sgd", 0.1)
    plain = steps_of(spec, 3)[-1]
    with_ema = steps_of(spec.replace(ema=0.5), 3)[-1]
    for name, found in leaves(with_ema.params).items():
        expected = leaves(plain.params)[name]
        # Two programs: sums may be fused differently.
        np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT32_BAR)
    assert int(plain.step) == int(with_ema.step)


def test_a_step_without_an_average_compiles_to_what_it_would_be_without_the_feature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def program() -> str:
        recipe = ft.make_recipe(Net(), ft.OptSpec("adam", 0.1), ROWS)
        state = jax.eval_shape(recipe.init)
        step = jax.jit(lambda state, batch: ft.train_step(recipe, state, batch))
        return step.lower(state, ROWS).as_text()

    as_is = program()
    monkeypatch.setattr(ft.TrainState, "averaged", lambda self: self)
    assert program() == as_is


@pytest.mark.parametrize("rule", [ft.Ema(0.9), ft.Lookahead(1)], ids=repr)
def test_a_rejected_step_leaves_the_average_as_it_was(rule: Any) -> None:
    recipe = ft.make_recipe(Net(), ft.OptSpec("sgd", 0.1, nonfinite="skip", ema=rule), ROWS)
    step = jax.jit(ft.train_step, static_argnums=0)
    state, _ = step(recipe, recipe.init(0), ROWS)
    bad = {**ROWS, "x": np.where(np.arange(48).reshape(12, 4) == 7, np.nan, ROWS["x"])}
    after, _ = step(recipe, state, bad)
    assert int(after.counters.skipped) == 1
    assert differing_leaves(after.ema, state.ema) == []
    again, _ = step(recipe, after, ROWS)
    straight, _ = step(recipe, state, ROWS)
    assert differing_leaves(again.ema, straight.ema) == []
    assert differing_leaves(again.params, straight.params) == []


def test_with_several_batches_to_an_update_only_updates_count() -> None:
    spec = ft.OptSpec("sgd", 0.1, ema=0.9, accumulate=ft.AccumulateBatches(3))
    states = steps_of(spec, 6)
    assert [int(s.ema.count) for s in states] == [0, 0, 0, 1, 1, 1, 2]
    assert differing_leaves(states[5].ema, states[3].ema) == []


def test_what_is_never_trained_has_no_average_and_what_thaws_has_one_all_along() -> None:
    freeze = [ft.Freeze("head/bias"), ft.Freeze("body", until=2)]
    spec = ft.OptSpec("sgd", 0.1, ema=ft.Ema(0.5, warmup=False), freeze=freeze)
    states = steps_of(spec, 4)
    assert set(leaves(states[0].ema.params)) == {
        *("body/bias", "body/kernel", "head/kernel", "norm/bias", "norm/scale")
    }
    kernels = [np.asarray(s.params["body"]["kernel"]) for s in states]
    averages = [np.asarray(s.ema.params["body"]["kernel"]) for s in states]
    for step in (1, 2):
        np.testing.assert_array_equal(averages[step], kernels[0])
    expected = numpy_ema(np.stack(kernels), 0.5, warmup=False)[0]
    np.testing.assert_allclose(averages[-1], expected, rtol=1e-6)
    # The frozen ones are read from the state.
    head = ft.eval_params(states[-1])["head"]["bias"]
    np.testing.assert_array_equal(head, states[0].params["head"]["bias"])


def test_lookahead_never_writes_a_frozen_parameter() -> None:
    freeze = ft.Freeze("body", start=2, slots="drop")
    spec = ft.OptSpec("sgd", 0.1, ema=ft.Lookahead(3), freeze=freeze)
    states = steps_of(spec, 7)
    kernels = [np.asarray(s.params["body"]["kernel"]) for s in states]
    for kernel in kernels[3:]:
        np.testing.assert_array_equal(kernel, kernels[2])
    # The slow ones follow: half of the way at step 3, three quarters at step 6.
    slow = np.asarray(ft.eval_params(states[-1])["body"]["kernel"])
    expected = kernels[2] + 0.25 * (kernels[0] - kernels[2])
    np.testing.assert_allclose(slow, expected, rtol=0, atol=1e-6)
    head = [np.asarray(s.params["head"]["kernel"]) for s in states]
    np.testing.assert_array_equal(head[6], states[6].ema.params["head"]["kernel"])


def test_an_average_does_not_share_its_arrays_with_the_parameters_it_begins_with() -> None:
    recipe = ft.make_recipe(nn.Dense(3), ft.OptSpec("sgd", 0.1, ema=0.9), ROWS)
    step = jax.jit(ft.train_step, static_argnums=0, donate_argnums=1)
    state, _ = step(recipe, recipe.init(0), ROWS)
    assert int(state.step) == int(state.ema.count) == 1
