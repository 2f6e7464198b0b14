"""Which steps are accepted, and when a run ends: against the rules in plain Python."""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.metrics import Mean, Terms
from flaxtrain.train.state import Counters
from flaxtrain.train.verdict import Verdict, counters_after, halts, verdict

STEP = jax.jit(ft.train_step, static_argnums=0)
X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


def batch(weight: Any) -> dict[str, np.ndarray]:
    return {"x": X, "target": X[:, :1], "weight": np.asarray(weight, np.float32)}


RECIPES = {
    count: ft.make_recipe(
        nn.Dense(1), ft.OptSpec("sgd", 0.1, nonfinite="skip", accumulate=count), batch([1] * 4)
    )
    for count in (1, 2)
}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("weight", "accepted", "skipped"),
    [
        ([1, 1, 0, 2], 1, 0),
        ([0, 0, 0, 0], 0, 0),
        ([1, np.nan, 1, 1], 0, 1),
        ([1, np.inf, 1, 1], 0, 1),
        ([-1, -1, -1, -1], 0, 1),
        ([-3, 1, 1, 0], 0, 1),
    ],
)
def test_weights_that_are_nan_or_negative_make_a_bad_step_and_none_at_all_a_void_one(
    weight: list[float], accepted: int, skipped: int, count: int
) -> None:
    recipe = RECIPES[count]
    state = recipe.init(0)
    after, _ = STEP(recipe, state, batch(weight))
    assert [int(after.step), int(after.counters.skipped)] == [accepted, skipped]
    same = np.array_equal(after.params["kernel"], state.params["kernel"])
    assert same != bool(accepted)
    assert int(after.counters.batches) == 1


def test_each_term_of_a_loss_is_looked_at() -> None:
    state, one = RECIPES[1].init(0), jnp.ones(())

    def decided(*weights: float) -> Verdict:
        loss = Terms(tuple(Mean(one, jnp.array(weight)) for weight in weights))
        return verdict(state, loss, one, {})

    assert decided(1.0, 0.0).accept and decided(0.0, 2.0).accept
    assert decided(1.0, -1.0).bad and decided(1.0, float("nan")).bad
    assert not decided(0.0, 0.0).tried


def test_hundreds_of_histories_halt_where_the_rules_say() -> None:
    rng = np.random.default_rng(1)
    compiled = {}
    for nonfinite, limit in itertools.product(("raise", "skip"), (None, 1, 3)):
        spec = ft.OptSpec("sgd", 0.1, nonfinite=nonfinite, max_skips=limit)

        def step(counters: Counters, event: Any, spec: ft.OptSpec = spec) -> Any:
            tried, finite, spike, lowest = event
            tried = tried & (counters.halted == 0)
            found = Verdict(tried, finite, spike & finite)
            ends = halts(spec, counters, found, lowest)
            after = counters_after(counters, found, jnp.int32(2), ends)
            return after, after

        compiled[nonfinite, limit] = jax.jit(
            jax.vmap(lambda events, step=step: jax.lax.scan(step, Counters(), events)[1])
        )
    events = tuple(rng.random((400, 20)) < p for p in (0.9, 0.7, 0.2, 0.5))
    for (nonfinite, limit), run in compiled.items():
        found = np.stack(jax.tree.leaves(jax.device_get(run(events))), axis=-1)
        ended = 0
        for history in range(400):
            skips = halted = skipped = spikes = batches = examples = 0
            for i in range(20):
                tried, finite, spike, lowest = (e[history, i] for e in events)
                batches += not halted
                if tried and not halted:
                    if finite and not spike:
                        skips, examples = 0, examples + 2
                    else:
                        skips, skipped, spikes = skips + 1, skipped + 1, spikes + finite
                        fatal = nonfinite == "raise" and not finite
                        often = limit is not None and skips >= limit
                        halted = int((lowest or finite) and (fatal or often))
                wanted = (batches, examples, skipped, spikes, skips, halted)
                assert tuple(found[history, i]) == wanted
            ended += halted
        assert ended == 0 if (nonfinite, limit) == ("skip", None) else ended > 40
