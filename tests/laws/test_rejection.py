"""A law about bad batches: a run that meets one ends with the bits of a run without it."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from tests.cases import CASES, Case
from tests.runs import counted, differing_leaves

RNG = np.random.default_rng(0)
ROWS, STEPS = 8, 5
KEPT = ("step", "params", "opt_state", "collections", "ema", "rng")


class Rest(nn.Module):
    """The end of the model; parameters have the names of the rows' own masks and labels."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        normal, zeros = nn.initializers.normal(), nn.initializers.zeros
        bias, scalar = self.param("bias", zeros, (4,)), self.param("scalar", zeros, ())
        return (x + bias[None]) @ self.param("conv", normal, (4, 2)) * (1 + scalar)


class Model(nn.Module):
    """Statistics and dropout: what a rejected step could leave behind."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = x @ self.param("w", nn.initializers.normal(), (3, 4))
        norm = nn.BatchNorm(
            use_running_average=not train, momentum=0.5, use_bias=False, use_scale=False
        )
        x = nn.Dropout(0.3, deterministic=not train)(nn.tanh(norm(x)))
        return Rest(name="rest")(x)


def good() -> dict[str, np.ndarray]:
    x = RNG.normal(size=(ROWS, 3)).astype("float32")
    return {"x": x, "label": RNG.integers(0, 2, ROWS).astype("int32")}


BATCHES = [good() for _ in range(STEPS)]
NAN = {**good(), "x": np.full((ROWS, 3), np.nan, np.float32)}
# Loss and gradient stay finite: BatchNorm divides by the variance, and only stores infinity.
HUGE = {**good(), "x": (1e30 * RNG.normal(size=(ROWS, 3))).astype("float32")}


def run(step: Any, state: Any, batches: list[Any]) -> Any:
    for batch in batches:
        state, _ = step(state, batch)
    return jax.device_get(state.replace(rng=jax.random.key_data(state.rng)))


def assert_as_if_never_met(spec: ft.OptSpec, scale: Any = None) -> tuple[Any, Any]:
    options = ft.StepOptions() if scale is None else ft.StepOptions(loss_scale=scale)
    recipe = ft.make_recipe(Model(), spec, BATCHES[0], options=options)
    step, traces = counted(lambda state, batch: ft.train_step(recipe, state, batch))
    start = recipe.init(0)
    without = run(step, start, BATCHES)
    # Where two batches make an update, the second one comes within it.
    poisoned = run(step, start, [NAN, BATCHES[0], HUGE, *BATCHES[1:3], HUGE, *BATCHES[3:], NAN])
    assert int(without.counters.skipped) == 0
    assert int(poisoned.counters.skipped) == 4
    for name in KEPT:
        assert differing_leaves(getattr(poisoned, name), getattr(without, name)) == [], name
    assert not np.array_equal(without.params["w"], start.params["w"])
    assert len(traces) == 1
    return poisoned, without


def is_slow(number: int) -> tuple[pytest.MarkDecorator, ...]:
    """Each row compiles a step; the sample of the fast suite takes every twenty-fifth."""
    return () if number % 25 == 0 else (pytest.mark.slow,)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.name, marks=is_slow(i)) for i, c in enumerate(CASES)],
)
def test_every_optimizer_ends_as_if_it_had_never_met_the_batch(case: Case) -> None:
    spec = ft.OptSpec(case.ours(1e-2), nonfinite="skip", max_skips=None, ema=0.9)
    assert_as_if_never_met(spec)


def test_clips_with_a_memory_and_spike_rules_do_not_remember_the_batch() -> None:
    spec = ft.OptSpec(
        "adamw",
        1e-2,
        nonfinite="skip",
        max_skips=None,
        ema=ft.Ema(0.9, every=2),
        clip=ft.ClipZScore(2.0, warmup=2),
        spikes=ft.Spikes(z=50.0, window=4),
    )
    poisoned, without = assert_as_if_never_met(spec)
    assert differing_leaves(poisoned.spikes, without.spikes) == []


def test_a_fixed_scale_changes_nothing_and_a_dynamic_one_only_itself() -> None:
    spec = ft.OptSpec("adamw", 1e-2, nonfinite="skip", max_skips=None, ema=0.9)
    assert_as_if_never_met(spec, ft.FixedScale(8.0))
    scale = ft.DynamicScale(init=64.0, growth_interval=3, min=4.0)
    # Powers of two: what the scale multiplies, it takes away to the last bit.
    poisoned, without = assert_as_if_never_met(spec, scale)
    assert float(without.loss_scale.value) == 128.0
    # 64, bad 32, good, bad 16, 2 good, bad 8, 2 good, bad 4
    assert float(poisoned.loss_scale.value) == 4.0


@pytest.mark.parametrize(
    "accumulate", [2, ft.AccumulateBatches(2), ft.AccumulateBatches(2, microbatches=2)]
)
def test_so_it_is_with_microbatches_and_several_batches_to_an_update(accumulate: Any) -> None:
    spec = ft.OptSpec(
        "adamw",
        1e-2,
        nonfinite="skip",
        max_skips=None,
        ema=0.9,
        clip=ft.ClipZScore(2.0, warmup=2),
        spikes=ft.Spikes(z=50.0, window=4),
        accumulate=accumulate,
    )
    poisoned, without = assert_as_if_never_met(spec)
    for name in ("accumulated", "spikes"):
        assert differing_leaves(getattr(poisoned, name), getattr(without, name)) == [], name
    assert jnp.all(poisoned.step == (STEPS if accumulate == 2 else STEPS // 2))
