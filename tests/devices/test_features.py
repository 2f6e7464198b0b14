"""What a spec can ask for works under every sharding and under pmap, with the same numbers.

One run asks for all of it: two phases, groups of different optimizers, clipping, an average of
the weights, a loss scale, several batches and microbatches to an update, batches that don't
divide, and one with a NaN, which is skipped.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import flaxtrain as ft
from flaxtrain.tree import named_leaves
from tests.devices.runs import LAYOUTS, Net, assert_close, data, numbers_of

EXACT = 1e-10  # float64: sums over rows are formed in another order, in ten batches
# What is float32 always: the running statistics of nn.BatchNorm, which flax makes so, and
# with them what evaluation says.
NARROW = 2e-6
HALF = 2e-2  # float16: 2^-11 for each rounding, in sums of 12 rows over five updates

SPEC = ft.OptSpec(
    "sgd",
    learning_rate=0.1,
    momentum=0.9,
    clip_norm=1.0,
    weight_decay=1e-2,
    nonfinite="skip",
    accumulate=ft.AccumulateBatches(2, microbatches=2),
    ema=0.9,
    groups=[ft.Group("mid/**", optimizer="adamw", learning_rate=1e-2), ft.Group("head/**")],
    freeze=[ft.Freeze("body/** | norm/**", until=2)],
)
ROWS = 12


def spoiled() -> dict[str, np.ndarray]:
    """Returns data in which the third batch has a NaN; the fourth one has 4 rows."""
    found = data()
    found["x"][2 * ROWS + 3, 5] = np.nan
    return found


class Shardings(ft.Hook):
    """Notes how slots and parameters are split, at every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, P]] = []

    def on_step(self, run: Any) -> None:
        self.seen.append({n: leaf.sharding.spec for n, leaf in named_leaves(run.state)})


def run(precision: str, **arguments: Any) -> tuple[ft.Trainer, dict[str, np.ndarray]]:
    trainer = ft.Trainer(
        Net(),
        SPEC,
        precision=precision,
        loss_scale=ft.DynamicScale(2.0**10, growth_interval=3),
        log_every=2,
        verbose=False,
        **arguments,
    )
    held_out = data(21, seed=1)
    with jax.enable_x64(precision == "f64"):
        result = trainer.fit(
            ft.data.batches(spoiled(), ROWS, shuffle=False),
            steps=10,
            eval_ds=ft.data.batches(held_out, ROWS),
            eval_every=5,
        )
        found = numbers_of(trainer, result)
        both = trainer.evaluate(held_out, batch_size=ROWS, weights="both")
        found |= {f"evaluate/{name}": np.asarray(value) for name, value in both.items()}
        predicted = trainer.predict({"x": held_out["x"]}, batch_size=ROWS, weights="ema")
    return trainer, {**found, "state/predicted": predicted}


@functools.cache
def on_one_device(precision: str) -> dict[str, np.ndarray]:
    return run(precision)[1]


def split(name: str) -> tuple[dict[str, P], dict[str, P]]:
    """Returns what parameters and their slots are split over, of those that are split."""
    columns = {"body/kernel": P(None, "model"), "mid/kernel": P("model")}
    by = {
        "zero1": {"body/kernel": P(None, "data"), "mid/kernel": P("data")},
        "fsdp": {"body/kernel": P(None, "fsdp"), "mid/kernel": P("fsdp")},
        "tensor": columns,
    }
    by["data and fsdp"] = by["fsdp"]
    slots = by.get(name, {})
    # 64 entries, the smallest array that is split.
    if name not in ("tensor", "replicated", "pmap"):
        slots = {**slots, "head/kernel": P(*slots["mid/kernel"])}
    return ({} if name == "zero1" else slots), slots


# Of the slow ones each is half of a fast one.
SLOW = ("replicated", "fsdp")
CASES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in LAYOUTS
]


@pytest.mark.parametrize("name", CASES)
def test_one_run_with_everything_has_the_numbers_of_one_device(name: str) -> None:
    shardings = Shardings()
    trainer, found = run("f64", **LAYOUTS[name], hooks=[shardings])
    alone = on_one_device("f64")
    assert_close(alone, found, EXACT, NARROW)
    assert int(alone["state/counters/skipped"]) == 2
    assert trainer.compilations == {"train": 2, "eval": 1}
    params, slots = split(name)
    phases = (shardings.seen[0], shardings.seen[-1])
    for phase, seen in enumerate(phases):
        for path, spec in params.items():
            assert seen[f"params/{path}"] == spec
            assert seen[f"ema/params/{path}"] == spec
        kept = [n for n in seen if n.startswith("opt_state") and n.endswith("kernel")]
        assert any("body" in n for n in kept) == (phase == 1), kept
        for full in kept:
            path = "/".join(full.split("/")[-2:])
            assert seen[full] == slots.get(path, P()), full


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LAYOUTS))
def test_float16_with_a_loss_scale_skips_and_scales_as_on_one_device(name: str) -> None:
    _, found = run("f16", **LAYOUTS[name])
    assert_close(on_one_device("f16"), found, HALF, HALF)
    assert float(found["state/loss_scale/value"]) < 2.0**12
