"""The trainer end to end, on real models and small real data."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu_metrics

import flaxtrain as ft
from tests.models import CNN, MLP
from tests.runs import same


@pytest.fixture(scope="module")
def digits() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    train, val = ft.data.digits()
    return {k: v[:300] for k, v in train.items()}, {k: v[:100] for k, v in val.items()}


def mlp(**kwargs: Any) -> ft.Trainer:
    kwargs = {"verbose": False, "log_every": 10, **kwargs}
    return ft.Trainer(MLP((32, 10)), ft.OptSpec("adam", learning_rate=3e-3), **kwargs)


def test_a_trainer_learns_digits_and_evaluates_exactly(digits: Any) -> None:
    train, val = digits
    trainer = mlp()
    result = trainer.fit(ft.data.batches(train, 64, shuffle=True), epochs=20, eval_ds=val)
    assert result.stopped_because == "finished"
    assert int(result.state.step) == 20 * 5
    by_hand = np.argmax(trainer.predict(val), axis=-1) == val["label"]
    for batch_size in (7, 100, 128):
        metrics = trainer.evaluate(val, batch_size=batch_size)
        assert metrics["accuracy"] == pytest.approx(by_hand.mean(), abs=1e-6)
    assert by_hand.mean() > 0.8
    assert result.best == min(result.history.val, key=lambda row: row["loss"])
    assert [row["step"] for row in result.history.val] == [5 * k for k in range(1, 21)]


def test_one_compilation_for_train_and_one_for_eval_with_ragged_ends(digits: Any) -> None:
    train, val = digits  # 300 = 4 * 64 + 44 and 100 = 64 + 36
    trainer = mlp()
    trainer.fit(ft.data.batches(train, 64), epochs=3, eval_ds=ft.data.batches(val, 64))
    trainer.fit(ft.data.batches(train, 64), epochs=1, eval_ds=ft.data.batches(val, 64))
    assert trainer.compilations == {"train": 1, "eval": 1}


def test_jax_itself_compiles_each_step_function_once(digits: Any) -> None:
    train, val = digits
    compiled: list[str] = []

    def note(event: str, duration: float, **kwargs: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    trainer = mlp()
    trainer.fit(ft.data.batches(train, 64), epochs=1, eval_ds=ft.data.batches(val, 64))
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        trainer.fit(ft.data.batches(train, 64), epochs=2, eval_ds=ft.data.batches(val, 64))
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compiled


def test_fit_in_two_parts_equals_fit_in_one(digits: Any) -> None:
    train, _ = digits
    data = ft.data.batches(train, 64, shuffle=True, seed=3)
    whole, parts = mlp(), mlp()
    whole.fit(data, steps=13)
    parts.fit(data, steps=6)  # in the middle of the second epoch
    parts.fit(data, steps=7)
    assert same(whole.state, parts.state)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(digits: Any) -> None:
    train, _ = digits
    states = []
    for seed in (0, 0, 1):
        trainer = ft.Trainer(
            CNN(classes=10), ft.OptSpec("sgd", learning_rate=0.1), seed=seed, verbose=False
        )
        trainer.fit(train, steps=3, batch_size=32)
        states.append(trainer.state)
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_state_is_donated_and_the_result_holds_the_last_one(digits: Any) -> None:
    train, _ = digits
    trainer = mlp()
    first = trainer.fit(train, steps=1).state
    second = trainer.fit(train, steps=1).state
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.params))
    assert trainer.state is second


def test_the_host_runs_ahead_of_a_slow_device_but_never_far(digits: Any) -> None:
    """A step multiplies matrices a hundred times.

    A host that waited for each step would never be ahead; one without a bound would end 30
    ahead.
    """
    train, _ = digits
    ahead: list[int] = []

    def slow_loss(model: ft.BoundModel, batch: Any) -> Any:
        logits = model(batch["image"])
        loss = ft.losses.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        square = jnp.eye(256) + 1e-6 * jax.lax.stop_gradient(loss.mean())
        power = jax.lax.fori_loop(0, 100, lambda _, x: jnp.tanh(x @ square), square)
        return loss + 0 * power.mean()

    class Look(ft.Hook):
        def on_step(self, run: Any) -> None:
            ahead.append(sum(not step.status.is_ready() for step in run._in_flight))

    mlp(loss=slow_loss, hooks=[Look()], log_every=100).fit(train, steps=30, batch_size=16)
    assert 2 <= max(ahead) <= 8


def test_a_custom_loss_with_named_metrics_is_used(digits: Any) -> None:
    train, val = digits

    def loss_fn(model: ft.BoundModel, batch: Any) -> Any:
        logits = model(batch["image"])
        loss = ft.losses.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        right = logits.argmax(-1) == batch["label"]
        weight = sum((leaf**2).sum() for leaf in jax.tree.leaves(model.params))
        total = ft.Mean.of(loss, model.mask) + 1e-4 * ft.Mean.penalty(weight)
        return total, {"right": right, "error": ft.Mean.of(~right, model.mask)}

    trainer = mlp(loss=loss_fn)
    trainer.fit(ft.data.batches(train, 64), epochs=4)
    metrics = trainer.evaluate(val)
    assert metrics["right"] == pytest.approx(1 - metrics["error"], abs=1e-6)
    assert metrics["right"] > 0.3


def test_a_clu_collection_gives_the_same_numbers(digits: Any) -> None:
    train, val = digits
    collection = clu_metrics.Collection.create(
        acc=clu_metrics.Accuracy, mean_loss=clu_metrics.Average.from_output("loss")
    )
    ours, clus = mlp(), mlp(metrics=collection)
    for trainer in (ours, clus):
        trainer.fit(ft.data.batches(train, 64), epochs=2)
    one, other = ours.evaluate(val, batch_size=64), clus.evaluate(val, batch_size=64)
    assert other["acc"] == pytest.approx(one["accuracy"], abs=1e-6)
    assert other["mean_loss"] == pytest.approx(one["loss"], rel=1e-5)  # float32 sums


def test_a_generator_is_trained_on_for_one_epoch(digits: Any) -> None:
    train, _ = digits

    def generate() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, 300, 50):
            yield {name: leaf[start : start + 50] for name, leaf in train.items()}

    trainer = mlp()
    assert int(trainer.fit(generate()).state.step) == 6
    assert int(trainer.fit(generate, epochs=2).state.step) == 18
    with pytest.raises(ft.FlaxtrainError, match="once"):
        trainer.fit(generate(), epochs=2)
    assert int(trainer.state.step) == 18  # type: ignore[union-attr]


def test_nan_in_a_batch_leaves_the_last_good_state(digits: Any) -> None:
    train, _ = digits
    good = mlp()
    good.fit(ft.data.batches(train, 50), steps=4)
    poisoned = {"image": train["image"].copy(), "label": train["label"]}
    poisoned["image"][4 * 50] = np.nan
    bad = mlp()
    with pytest.raises(ft.errors.NonFiniteError, match="batch 4 of the run, after 4 updates"):
        bad.fit(ft.data.batches(poisoned, 50), steps=6)
    assert bad.state is not None and good.state is not None
    assert same(good.state.params, bad.state.params)
    assert same(good.state.opt_state, bad.state.opt_state)


def test_skipping_a_bad_batch_equals_a_run_without_it(digits: Any) -> None:
    train, _ = digits
    batches = [{k: v[i : i + 50] for k, v in train.items()} for i in range(0, 300, 50)]
    poisoned = {"image": np.full_like(batches[2]["image"], 1e30), "label": batches[2]["label"]}
    spec = ft.OptSpec("adam", learning_rate=3e-3, nonfinite="skip")
    runs = []
    for ds in ([*batches[:2], poisoned, *batches[2:]], batches):
        trainer = ft.Trainer(CNN(classes=10), spec, verbose=False)
        trainer.fit(ds, epochs=1)
        runs.append(trainer.state)
    skipped, plain = runs
    assert int(skipped.counters.skipped) == 1 and int(skipped.counters.batches) == 7
    for field in ("step", "params", "collections", "opt_state", "rng"):
        assert same(getattr(skipped, field), getattr(plain, field)), field


def test_ctrl_c_leaves_a_usable_state(digits: Any, tmp_path: Any) -> None:
    train, val = digits

    class Press(ft.Hook):
        def on_step(self, run: Any) -> None:
            if run.batches == 7:
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    trainer = mlp(hooks=[Press()], workdir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(ft.data.batches(train, 64), steps=50)
    assert trainer.state is not None and int(trainer.state.step) == 7
    assert trainer.evaluate(val)["loss"] > 0
    assert signal.getsignal(signal.SIGINT) is before
    assert ft.checkpoint.latest(tmp_path / "checkpoints").name == "7"  # type: ignore[union-attr]


def test_fit_works_outside_the_main_thread(digits: Any) -> None:
    trainer = mlp()
    thread = threading.Thread(target=lambda: trainer.fit(digits[0], steps=2))
    thread.start()
    thread.join(60)
    assert trainer.state is not None and int(trainer.state.step) == 2


def test_a_hook_can_stop_the_run_and_a_failing_hook_leaves_the_state(digits: Any) -> None:
    train, _ = digits

    class Stop(ft.Hook):
        def on_step(self, run: Any) -> None:
            if run.batches == 3:
                run.stop("enough")

    class Fail(ft.Hook):
        def on_step(self, run: Any) -> None:
            raise RuntimeError("my own mistake")

    stopping = mlp(hooks=[Stop()])
    assert stopping.fit(train, steps=10).stopped_because == "enough"
    failing = mlp(hooks=[Fail()])
    with pytest.raises(RuntimeError, match="my own mistake"):
        failing.fit(train, steps=10)
    assert failing.state is not None and int(failing.state.step) == 1


def test_the_plan_says_what_will_happen_and_trains_nothing(digits: Any) -> None:
    train, _ = digits
    trainer = ft.Trainer(
        CNN(classes=10),
        ft.OptSpec(
            "adamw",
            learning_rate=ft.schedules.warmup_cosine_decay_schedule(0.0, 1e-3, "10%", "100%"),
            weight_decay=0.1,
        ),
        verbose=False,
    )
    plan = trainer.plan(ft.data.batches(train, 50), epochs=5)
    assert trainer.state is None and trainer.recipe is None
    assert plan.horizon.batches == 30
    assert plan.memory["slots"] >= 2 * plan.memory["parameters"]
    assert plan.learning_rate[0] == 0.0
    text = str(plan)
    for expected in (
        "Conv_0/kernel",
        "norm_scale",
        "softmax_cross_entropy",
        "30 (6 per epoch)",
    ):
        assert expected in text


def test_logged_values_are_those_of_the_steps(digits: Any) -> None:
    """The loss is the mean over the window's examples; norms and rate are the last step's."""
    train, _ = digits
    schedule = ft.schedules.linear_schedule(0.1, 0.0, 10)
    data = [{k: v[i : i + 50] for k, v in train.items()} for i in range(0, 300, 50)]
    spec = ft.OptSpec("sgd", learning_rate=schedule)
    trainer = ft.Trainer(MLP((32, 10)), spec, log_every=3, verbose=False)
    rows = trainer.fit(data, epochs=1).history.train

    recipe = ft.make_recipe(MLP((32, 10)), spec, data[0])
    state = recipe.init(0)
    step = jax.jit(ft.train_step, static_argnums=0)
    losses, last = [], {}
    for batch in data:
        state, last = step(recipe, state, batch)
        losses.append(float(last["loss"].compute()))
        if len(losses) == 3:
            assert rows[0]["update_norm"] == pytest.approx(
                float(last["update_norm"].compute()), rel=1e-5
            )
    assert [row["step"] for row in rows] == [3, 6]
    assert rows[0]["loss"] == pytest.approx(np.mean(losses[:3]), rel=1e-5)
    assert rows[1]["loss"] == pytest.approx(np.mean(losses[3:]), rel=1e-5)
    assert rows[1]["param_norm"] == pytest.approx(float(last["param_norm"].compute()), rel=1e-5)
    assert rows[0]["learning_rate"] == pytest.approx(float(schedule(2)), rel=1e-6)
    assert rows[1]["learning_rate"] == pytest.approx(float(schedule(5)), rel=1e-6)
