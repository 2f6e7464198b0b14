"""Several batches to an update: the numbers of one batch with all their rows."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest

import flaxtrain as ft
from flaxtrain.errors import CheckpointError
from tests.models import CNN, GPT, MLP
from tests.runs import FLOAT32_BAR, deviation
from tests.train.test_gradient import (
    BAR,
    ROWS,
    classification,
    language,
    several_terms,
    state_of,
    weighted,
)

COUNT = 4
SIZE = ROWS // COUNT


def parts(tree: Any) -> list[Any]:
    slices = [slice(i * SIZE, (i + 1) * SIZE) for i in range(COUNT)]
    return [jax.tree.map(lambda a, s=s: a[s], tree) for s in slices]


def stepper(
    module: Any, batch: Any, spec: ft.OptSpec, loss: Any = None, scale: Any = None
) -> tuple[Any, Any]:
    """Returns a compiled step and the state before the first one."""
    options = ft.StepOptions(scale)
    recipe = ft.make_recipe(module, spec, batch, loss=loss, options=options)
    step = jax.jit(ft.train_step, static_argnums=0)
    start = state_of(recipe) if jax.config.jax_enable_x64 else recipe.init(seed=0)
    return lambda *args, **options: step(recipe, *args, **options), start


def assert_close(one: Any, other: Any, bar: float) -> None:
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(other))
    worst = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one, other)
    assert max(jax.tree.leaves(worst)) <= bar * largest, worst


def test_terms_weights_and_padding_of_several_batches_are_those_of_one() -> None:
    batch, mask = language(), np.arange(ROWS) < 17  # of the last batch no row counts
    # Clips that act on the gradient of the update, and remember its norm.
    spec = ft.OptSpec(
        "sgd",
        1.0,
        clip=[ft.ClipNorm(0.5), ft.ClipZScore(warmup=2)],
        groups=[ft.Group("blocks/**", clip=ft.ClipNorm(0.01))],
    )
    with jax.enable_x64(True):
        step, start = stepper(GPT(dropout=0.0), batch, spec, several_terms)
        whole, expected = step(start, batch, mask)
        several = spec.replace(accumulate=ft.AccumulateBatches(3))
        step, state = stepper(GPT(dropout=0.0), parts(batch)[0], several, several_terms)
        for number, (part, rows) in enumerate(zip(parts(batch), parts(mask))):
            assert int(state.step) == number // 3
            state, found = step(state, part, rows)
            if number == 2:
                for name in ("grad_norm", "clipped_grad_norm", "update_norm"):
                    one, other = (float(m[name].compute()) for m in (found, expected))
                    assert one == pytest.approx(other, rel=1e-6), name  # float32
                assert float(expected["grad_norm"].compute()) > 0.5
        assert int(state.step) == 1
        assert int(state.accumulated.count) == 0
        assert float(found["grad_norm"].weight) == 0
        assert_close(state.params, whole.params, BAR)
        assert_close(state.opt_state.clip_memory, whole.opt_state.clip_memory, BAR)


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("scale", [ft.NoScale(), ft.DynamicScale(init=4.0, growth_interval=1)])
def test_weighted_rows_of_any_number_of_batches(count: int, scale: ft.LossScale) -> None:
    size = ROWS // count
    with jax.enable_x64(True):
        step, start = stepper(MLP(), weighted(), ft.OptSpec("sgd", 1.0))
        whole, _ = step(start, weighted())
        spec = ft.OptSpec("sgd", 1.0, accumulate=ft.AccumulateBatches(count))
        batches = [
            jax.tree.map(lambda a, i=i: a[i * size : (i + 1) * size], weighted())
            for i in range(count)
        ]
        # The scale doubles with each batch of the update.
        step, state = stepper(MLP(), batches[0], spec, scale=scale)
        # A batch of rows without weight is none.
        known = [batch for batch in batches if np.any(batch["weight"])]
        for batch in [*known, *known[:1]][:count]:
            state, _ = step(state, batch)
        if len(known) == count:
            assert int(state.step) == 1
            assert_close(state.params, whole.params, BAR)
        else:
            assert count == 8 and int(state.step) == 1


def test_the_norm_that_is_judged_is_that_of_the_batch() -> None:
    def loss(model: Any, batch: Any) -> Any:
        out = model(batch["x"])
        small = ft.Mean.of((out[:, 1] - 1) ** 2, model.mask)
        return (
            1000 * ft.Mean.of(out[:, 0], model.mask) + (-1000) * ft.Mean.of(out[:, 0]) + small
        )

    batch = {"x": classification((8,), SIZE)["x"]}
    values = []
    for count in (1, 2):
        spec = ft.OptSpec(
            "sgd", 0.1, spikes=ft.Spikes(window=4), accumulate=ft.AccumulateBatches(count)
        )
        step, state = stepper(MLP(), batch, spec, loss)
        state, _ = step(state, batch)
        values.append(float(state.spikes.values[0]))
    assert values[0] == pytest.approx(values[1], rel=1e-3)  # differences of large numbers


@pytest.mark.parametrize("microbatches", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_batch_statistics_and_dropout_are_those_of_microbatches(microbatches: int) -> None:
    batch = classification((8, 8, 1))
    with jax.enable_x64(True):
        step, start = stepper(CNN(), batch, ft.OptSpec("sgd", 1.0, accumulate=COUNT))
        at_once, _ = step(start, batch)
        several = ft.AccumulateBatches(COUNT, microbatches=microbatches)
        step, state = stepper(
            CNN(), parts(batch)[0], ft.OptSpec("sgd", 1.0, accumulate=several)
        )
        for part in parts(batch):
            state, _ = step(state, part)
        same = microbatches == 1
        for name in ("params", "collections"):
            one, other = getattr(state, name), getattr(at_once, name)
            if same:
                assert_close(one, other, BAR)
            else:  # other statistics, other masks
                with pytest.raises(AssertionError):
                    assert_close(one, other, BAR)


def test_nothing_but_sums_collections_and_counters_changes_before_the_last_batch() -> None:
    batch = classification((8, 8, 1), SIZE)
    spec = ft.OptSpec("adamw", 0.1, accumulate=ft.AccumulateBatches(2))
    step, start = stepper(CNN(), batch, spec)
    state, metrics = step(start, batch)
    for name in ("step", "params", "opt_state", "loss_scale"):
        before, after = getattr(start, name), getattr(state, name)
        jax.tree.map(np.testing.assert_array_equal, before, after)
    assert int(state.counters.batches) == 1
    assert float(metrics["loss"].terms[0].weight) == SIZE
    assert deviation(state.collections, start.collections) > 0


def test_a_bad_batch_is_left_out_and_the_next_one_takes_its_place() -> None:
    batches = parts(classification((8,)))
    bad = {**batches[0], "x": np.full_like(batches[0]["x"], np.nan)}
    spec = ft.OptSpec("adam", 0.1, nonfinite="skip", accumulate=ft.AccumulateBatches(2))
    step, start = stepper(MLP(), batches[0], spec)
    ends = []
    for run in (batches, [batches[0], bad, *batches[1:]]):
        state = start
        for batch in run:
            state, _ = step(state, batch)
        ends.append(state)
    for name in ("step", "params", "opt_state", "accumulated"):
        jax.tree.map(np.testing.assert_array_equal, *(getattr(state, name) for state in ends))
    assert [int(state.counters.skipped) for state in ends] == [0, 1]


def test_the_numbers_are_those_of_multi_steps() -> None:
    batches = [classification((8,), SIZE) for _ in range(6)]
    for number, batch in enumerate(batches):
        batch["x"] = (batch["x"] * (1 + number)).astype("float32")
    schedule = ft.schedules.linear_schedule(0.1, 0.0, 3)
    spec = ft.OptSpec("adam", schedule, accumulate=ft.AccumulateBatches(2))
    step, state = stepper(MLP(), batches[0], spec)
    tx = optax.MultiSteps(optax.adam(optax.linear_schedule(0.1, 0.0, 3)), 2)
    params, slots = state.params, tx.init(state.params)

    @jax.jit
    def theirs(params: Any, slots: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            logits = MLP().apply({"params": params}, batch["x"])
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, batch["label"]
            ).mean()

        updates, slots = tx.update(jax.grad(loss)(params), slots, params)
        return optax.apply_updates(params, updates), slots

    for batch in batches:
        state, _ = step(state, batch)
        params, slots = theirs(params, slots, batch)
        assert deviation(state.params, params) <= 10 * FLOAT32_BAR  # adam divides small numbers
    assert int(state.step) == 3


def test_the_optimizer_is_not_run_before_the_last_batch() -> None:
    runs: list[int] = []

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        jax.debug.callback(lambda: runs.append(1))
        return jax.tree.map(lambda g: -g, updates), state

    tx = ft.optim.GradientTransformation(lambda params: (), update)
    batch = classification((8,), SIZE)
    step, state = stepper(MLP(), batch, ft.OptSpec(tx, accumulate=ft.AccumulateBatches(3)))
    seen = []
    for _ in range(7):
        state, _ = step(state, batch)
        jax.effects_barrier()
        seen.append(len(runs))
    assert seen == [0, 0, 1, 1, 1, 2, 2]


def test_the_trainer_logs_the_rate_of_updates_and_thaws_by_them() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 8)).astype("float32")
    data = {"x": x, "label": (x[:, 0] > 0).astype("int32")}
    schedule = ft.schedules.linear_schedule(0.4, 0.0, "100%")
    spec = ft.OptSpec(
        "sgd",
        schedule,
        freeze=ft.Freeze("Dense_0/**", until="50%"),
        accumulate=ft.AccumulateBatches(3),
    )
    trainer = ft.Trainer(MLP(), spec, log_every=4, verbose=False)
    plan = str(trainer.plan(data, epochs=2, batch_size=8))
    assert "an update of 3 batches" in plan
    assert "24 (12 per epoch), 8 updates" in plan
    result = trainer.fit(data, epochs=2, batch_size=8)
    assert int(result.state.step) == 8
    assert trainer.recipe is not None and trainer.recipe.phase.start == 4
    rows = [(row["step"], row["learning_rate"]) for row in result.history.train]
    # Each row has the last update of its window, and its rate.
    for step, rate in rows:
        assert rate == pytest.approx(0.4 * (1 - (step - 1) / 8), rel=1e-6)
    assert [step for step, _ in rows] == [1, 2, 4, 5, 6, 8]
    assert trainer.compilations["train"] == 2


def test_a_run_stopped_within_an_update_goes_on_to_the_same_bits(tmp_path: Any) -> None:
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    data = {"x": x, "label": (x[:, 0] > 0).astype("int32")}
    spec = ft.OptSpec("adamw", 0.1, accumulate=ft.AccumulateBatches(3))

    def run(workdir: Any, *lengths: int) -> Any:
        for steps in lengths:
            trainer = ft.Trainer(MLP(), spec, workdir=workdir, verbose=False, log_every=4)
            state = trainer.fit(data, steps=steps, batch_size=8).state
        return state

    whole, continued = run(tmp_path / "a", 10), run(tmp_path / "b", 4, 10)
    assert int(whole.step) == 3 and int(whole.accumulated.count) == 1
    for name in ("step", "params", "opt_state", "accumulated"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(whole, name), getattr(continued, name)
        )


def test_a_run_goes_on_with_other_microbatches_and_not_with_other_updates(
    tmp_path: Any,
) -> None:
    batch = classification((8,))

    def fit(accumulate: Any, steps: int) -> Any:
        spec = ft.OptSpec("sgd", 0.1, accumulate=accumulate)
        heard = Heard()
        trainer = ft.Trainer(MLP(), spec, workdir=tmp_path, verbose=False, hooks=[heard])
        trainer.fit(batch, steps=steps, batch_size=8)
        return heard.notes

    fit(2, 2)
    assert any("accumulate was" in note for note in fit(4, 4))
    assert not any(
        "accumulate was" in n for n in fit(ft.AccumulateBatches(1, microbatches=4), 5)
    )
    with pytest.raises(CheckpointError, match="another optimizer spec"):
        fit(ft.AccumulateBatches(2), 6)


def test_so_it_is_where_the_spec_holds_code(tmp_path: Any) -> None:
    batch = classification((8,))

    def fit(count: int) -> None:
        spec = ft.OptSpec(optax.sgd(0.1), accumulate=ft.AccumulateBatches(count))
        trainer = ft.Trainer(MLP(), spec, workdir=tmp_path, verbose=False)
        trainer.fit(batch, steps=3, batch_size=8)

    fit(4)
    with pytest.raises(CheckpointError, match=r"4 batches make an update.* 2"):
        fit(2)


def test_a_run_that_ends_within_an_update_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    batch = classification((8,))
    spec = ft.OptSpec("sgd", 0.1, accumulate=ft.AccumulateBatches(4))
    trainer = ft.Trainer(MLP(), spec, log_every=4)
    assert "nothing is learnt" in str(trainer.plan(batch, steps=3, batch_size=8))
    trainer.fit(batch, steps=18, batch_size=8)
    told = capsys.readouterr().out
    assert "the last 2 of 18 batches make no update" in told
    assert "4/4" in told and "100%" in told and "/18" not in told


class Heard(ft.Hook):
    """Notes what a run announces."""

    def on_start(self, run: Any) -> None:
        self.notes = run.announcements
