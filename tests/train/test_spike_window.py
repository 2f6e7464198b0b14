"""The spike rule on the device, against NumPy."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.spec import Spikes
from flaxtrain.train.spike_window import SIGMA, SpikeWindow, spike_rule

STEP = jax.jit(ft.train_step, static_argnums=0)


class Oracle:
    """The rule over a Python list."""

    def __init__(self, rule: Spikes) -> None:
        self.rule, self.values = rule, []
        self.seen = 0

    def score(self, value: np.float32) -> float:
        if not self.values:
            return 0.0
        middle = np.median(self.values)
        spread = SIGMA * np.median(np.abs(np.array(self.values) - middle))
        return float((value - middle) / spread) if spread > 0 else 0.0

    def is_spike(self, value: np.float32) -> bool:
        return self.seen >= self.rule.first_judged and self.score(value) > self.rule.z

    def accept(self, value: np.float32) -> None:
        self.seen += 1
        self.values = [*self.values, np.float64(value)][-self.rule.window :]


@pytest.mark.parametrize(
    "rule",
    [
        Spikes(3.0, window=16),
        Spikes(4.0, window=7, of="loss", warmup=40),
        pytest.param(Spikes(5.0, window=6), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_thousands_of_values_are_judged_as_numpy_judges_them(rule: Spikes) -> None:
    rng = np.random.default_rng(5)
    count = 4000
    level = 1 + 0.5 * np.sin(np.arange(count) / 300)
    values = level * np.exp(0.3 * rng.standard_t(2, count))
    values[500:530] = 2.0  # more than half of the window alike: no scale
    values[700:703] = [np.nan, np.inf, -np.inf]
    values = values.astype(np.float32)

    def step(
        window: SpikeWindow, value: jax.Array
    ) -> tuple[SpikeWindow, tuple[jax.Array, jax.Array]]:
        other = jnp.full((), 7.0)
        pair = (value, other) if rule.of == "loss" else (other, value)
        spike = jnp.isfinite(value) & window.is_spike(*pair)
        accept = jnp.isfinite(value) & ~spike
        return window.after(*pair, accept), (spike, window.score(*pair).z)

    window = spike_rule(rule)
    assert isinstance(window, SpikeWindow)
    last, (spikes, scores) = jax.jit(lambda w, v: jax.lax.scan(step, w, v))(window, values)
    oracle, near = Oracle(rule), 0
    for value, spike, score in zip(values, np.asarray(spikes), np.asarray(scores), strict=True):
        if np.isfinite(value):
            wanted = oracle.score(value)
            # float32: a few roundings of the value, seen through a small scale.
            assert score == pytest.approx(wanted, rel=1e-3, abs=1e-3)
            near += abs(wanted - rule.z) < 1e-3
            if abs(wanted - rule.z) >= 1e-3:
                assert spike == oracle.is_spike(value)
            if not spike:
                oracle.accept(value)
        else:
            assert not spike
    assert near < 5 and 20 < np.sum(spikes) < 1000
    assert int(last.count) == oracle.seen
    kept = np.array(oracle.values, np.float32)
    assert np.array_equal(np.sort(last.values), np.sort(kept))


def batch(factor: float = 1.0) -> dict[str, np.ndarray]:
    x = np.random.default_rng(int(factor * 8)).normal(size=(8, 3)).astype("float32")
    return {"x": x * np.float32(factor), "target": x[:, :1] * np.float32(factor)}


def recipe_of(**arguments: object) -> ft.Recipe:
    spec = ft.OptSpec("sgd", 1e-3, **arguments)  # type: ignore[arg-type]
    return ft.make_recipe(nn.Dense(1), spec, batch())


def test_a_spike_is_rejected_whole_and_counted_apart() -> None:
    recipe = recipe_of(spikes=Spikes(8.0, window=8))
    state = recipe.init(0)
    for index in range(8):
        state, _ = STEP(recipe, state, batch(1 + index / 16))
    before = jax.device_get((state.params, state.opt_state, state.step, state.spikes))
    state, metrics = STEP(recipe, state, batch(100.0))
    after = jax.device_get((state.params, state.opt_state, state.step, state.spikes))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    counters = state.counters
    assert [int(counters.skipped), int(counters.spikes), int(counters.halted)] == [1, 1, 0]
    assert float(metrics["loss"].terms[0].weight) == 0
    state, _ = STEP(recipe, state, batch(1.25))
    assert int(state.step) == 9 and int(state.counters.consecutive_skipped) == 0
    assert int(state.spikes.count) == 9


def test_values_that_stay_high_halt_after_max_skips_under_both_policies() -> None:
    for nonfinite in ("raise", "skip"):
        recipe = recipe_of(spikes=Spikes(8.0, window=4), max_skips=3, nonfinite=nonfinite)
        state = recipe.init(0)
        for index in range(4):
            state, _ = STEP(recipe, state, batch(1 + index / 16))
        halted = []
        for _ in range(4):
            state, _ = STEP(recipe, state, batch(100.0))
            halted.append(int(state.counters.halted))
        assert halted == [0, 0, 1, 1]
        assert int(state.step) == 4 and int(state.counters.spikes) == 3


def test_without_a_rule_the_state_has_no_leaf_for_it() -> None:
    plain, ruled = recipe_of().init(0), recipe_of(spikes=Spikes()).init(0)
    assert jax.tree.leaves(plain.spikes) == []
    assert len(jax.tree.leaves(ruled)) == len(jax.tree.leaves(plain)) + 2
