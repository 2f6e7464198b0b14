"""Runs in which parameters thaw: what is compiled, what is continued, what is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import flaxtrain as ft
from flaxtrain.durations import Horizon
from flaxtrain.spec import Freeze, Group, OptSpec, set_hyperparameters
from flaxtrain.tree import global_norm, path_name
from tests.loop.test_resume import StopAt
from tests.runs import bits, differing_leaves

FIRST, EVERY, STEPS = 4, 3, 10
"""Layer b thaws at step 4 and layer a at step 7 of 10."""

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 3)).astype("float32")
LABEL = RNG.integers(0, 3, 64).astype("int32")
RATE = 1e-2


class Net(nn.Module):
    """Two layers with BatchNorm and dropout, and a head."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        for name in ("a", "b"):
            x = nn.Dense(4, name=name)(x)
            x = nn.BatchNorm(use_running_average=not train, name=f"norm_{name}")(x)
            x = nn.Dropout(0.1, deterministic=not train)(nn.tanh(x))
        return nn.Dense(3, name="head")(x)


NET = Net()


class Small(nn.Module):
    """The same layers without statistics and noise."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for name in ("a", "b"):
            x = nn.tanh(nn.Dense(4, name=name)(x))
        return nn.Dense(3, name="head")(x)


class Seen(ft.Hook):
    """Notes what a run announces, and the state after every step."""

    def __init__(self) -> None:
        self.phases: list[tuple[int, str]] = []
        self.states: list[Any] = []

    def on_start(self, run: Any) -> None:
        self.states.append(jax.device_get(run.state))

    def on_phase(self, run: Any, step: int) -> None:
        self.phases.append((step, run.phase_text()))

    def on_step(self, run: Any) -> None:
        self.states.append(jax.device_get(run.state))


BACKBONE = Freeze("a | b | norm_a | norm_b", until=FIRST, every=EVERY, rewarm=2)


def spec(*rules: Freeze, **changes: Any) -> OptSpec:
    groups = [Group("head/**", lr_mult=2.0)]
    given = {
        "clip_norm": 1.0,
        "groups": groups,
        "freeze": list(rules or (BACKBONE,)),
        **changes,
    }
    return OptSpec("adamw", RATE, **given)


def trainer(
    opt_spec: OptSpec, *hooks: ft.Hook, model: nn.Module = NET, **kwargs: Any
) -> ft.Trainer:
    kwargs = {"log_every": 3, "verbose": False, **kwargs}
    return ft.Trainer(model, opt_spec, hooks=hooks, **kwargs)


def plain(*rules: Freeze, **changes: Any) -> OptSpec:
    """Adam and nothing else."""
    return spec(*rules, **{"weight_decay": 0.0, "clip_norm": None, "groups": (), **changes})


def followed(opt_spec: OptSpec, steps: int, **kwargs: Any) -> list[Any]:
    """Returns the states of a run of the small model, the one before it first."""
    seen = Seen()
    trainer(opt_spec, seen, model=Small(), **kwargs).fit(data(), steps=steps)
    return seen.states


def data() -> Any:
    return ft.data.batches({"x": X, "label": LABEL}, 16, shuffle=True, seed=1)


class Whole:
    """A run that nothing interrupts."""

    def __init__(self, workdir: Path) -> None:
        self.workdir, self.seen = workdir, Seen()
        self.trainer = trainer(spec(), self.seen, workdir=workdir)
        self.result = self.trainer.fit(data(), steps=STEPS, eval_ds=data(), eval_every=2)
        self.bits = bits(self.trainer.state)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"))


def trained(state: Any) -> set[str]:
    assert state.trainable is not None
    return {path_name(path[:1]) for path in state.trainable}


def first(state: Any, *layers: str) -> dict[str, Any]:
    """Returns the parameters of some layers."""
    return {layer: state.params[layer] for layer in layers}


def mu_of(state: Any) -> set[str]:
    return set(state.opt_state.slots["mu"])


# One program and one announcement for each phase.


def test_each_phase_is_compiled_once_and_evaluation_only_once(whole: Whole) -> None:
    assert whole.trainer.compilations == {"train": 3, "eval": 1}


def test_each_thawing_is_announced_once_with_its_step(whole: Whole) -> None:
    (first_step, first_text), (second_step, second_text) = whole.seen.phases
    assert (first_step, second_step) == (FIRST, FIRST + EVERY)
    assert first_text.startswith(f"phase 2 of 3, from step {FIRST}, trains ")
    assert "b/bias" in first_text and "a/" not in first_text.replace("norm_a", "")
    assert "phase 3 of 3, from step 7" in second_text and "a/bias" in second_text


def test_parameters_move_from_the_step_on_that_the_phase_says(whole: Whole) -> None:
    states = whole.seen.states
    for layer, start in {"a": FIRST + EVERY, "b": FIRST, "head": 0}.items():
        for step in range(STEPS):
            before, after = (first(states[step + n], layer) for n in (0, 1))
            assert bool(differing_leaves(after, before)) == (step >= start), (layer, step)


def test_held_statistics_move_only_once_their_layer_is_trained(whole: Whole) -> None:
    for layer, start in {"norm_a": FIRST + EVERY, "norm_b": FIRST}.items():
        means = [state.collections["batch_stats"][layer]["mean"] for state in whole.seen.states]
        moved = [not np.array_equal(means[step], means[step + 1]) for step in range(STEPS)]
        assert moved == [step >= start for step in range(STEPS)], layer


# Stopping and continuing.


@pytest.mark.parametrize("stop", [FIRST - 1, FIRST, FIRST + 1])
def test_a_run_stopped_around_a_boundary_continues_bitwise(
    stop: int, whole: Whole, tmp_path: Path
) -> None:
    trainer(spec(), StopAt(stop), workdir=tmp_path).fit(data(), steps=STEPS)
    seen = Seen()
    second = trainer(spec(), seen, workdir=tmp_path)
    second.fit(data(), steps=STEPS)
    assert int(seen.states[0].step) == stop
    assert bits(second.state) == whole.bits
    left = [step for step in (FIRST, FIRST + EVERY) if step > stop]
    assert [step for step, _ in seen.phases] == left, "a boundary behind it isn't told again"
    assert second.compilations["train"] == len(left) + 1


def test_a_run_that_passed_a_boundary_continues_from_a_checkpoint_before_it(
    whole: Whole, tmp_path: Path
) -> None:
    hooks = (ft.SaveEvery(FIRST - 1), StopAt(FIRST + 1))
    trainer(spec(), *hooks, workdir=tmp_path).fit(data(), steps=STEPS)
    # It is found where it stopped; forget that, as if it had been killed there.
    shutil.rmtree(tmp_path / "checkpoints" / str(FIRST + 1))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(FIRST - 1)]
    seen = Seen()
    second = trainer(spec(), seen, workdir=tmp_path)
    second.fit(data(), steps=STEPS)
    assert int(seen.states[0].step) == FIRST - 1
    assert bits(second.state) == whole.bits


@pytest.mark.slow  # the test above goes the same way, and test_resume.py kills a process
def test_a_run_killed_behind_a_boundary_continues_from_a_checkpoint_before_it(
    whole: Whole, tmp_path: Path
) -> None:
    script = textwrap.dedent(
        f"""
        import os, sys, flaxtrain as ft
        from tests.loop.test_phases import data, spec, trainer

        class Die(ft.Hook):
            def on_step(self, run):
                if run.batches == {FIRST + 1}:
                    os.kill(os.getpid(), 9)

        hooks = (ft.SaveEvery({FIRST - 1}), Die())
        trainer(spec(), *hooks, workdir=sys.argv[1]).fit(data(), steps={STEPS})
        """
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, cwd=root, check=False
    )
    assert killed.returncode == -9
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(FIRST - 1)]
    second = trainer(spec(), workdir=tmp_path)
    second.fit(data(), steps=STEPS)
    assert bits(second.state) == whole.bits


def test_numbers_that_were_edited_survive_stopping_and_a_boundary(tmp_path: Path) -> None:
    opt_spec = spec(Freeze("a", until=3), groups=[Group("head", weight_decay=0.5)])
    run = trainer(opt_spec, model=Small(), workdir=tmp_path)
    run.fit(data(), steps=2)
    run.state = set_hyperparameters(run.state, group="head", weight_decay=0.25)
    run.state = set_hyperparameters(run.state, learning_rate=1e-4)
    run.fit(data(), steps=2)  # behind the boundary
    again = trainer(opt_spec, model=Small(), workdir=tmp_path)
    again.fit(data(), steps=6)
    assert again.state is not None and int(again.state.step) == 6
    numbers = again.state.opt_state.hyperparams
    assert float(numbers["head"]["weight_decay"]) == 0.25
    assert float(numbers["default"]["learning_rate"]) == np.float32(1e-4)
    assert float(again.state.learning_rates["default"]) == np.float32(1e-4)  # type: ignore[arg-type]


def test_a_second_fit_goes_on_in_the_phase_of_the_state(whole: Whole) -> None:
    seen = Seen()
    twice = trainer(spec(), seen)
    twice.fit(data(), steps=FIRST + 1)
    twice.fit(data(), steps=STEPS - FIRST - 1)
    assert bits(twice.state) == whole.bits
    assert twice.compilations["train"] == 3
    assert [step for step, _ in seen.phases] == [FIRST, FIRST + EVERY]


def test_a_phase_that_begins_where_a_run_ends_is_ready_for_the_next_fit() -> None:
    seen = Seen()
    run = trainer(plain(Freeze("a", until=3)), seen, model=Small())
    run.fit(data(), steps=3)
    assert run.state is not None and run.recipe is not None
    assert run.recipe.phase.index == 1 and run.state.trainable is None
    assert "a" in mu_of(run.state)
    assert differing_leaves(first(run.state, "a"), first(seen.states[0], "a")) == []
    assert run.compilations["train"] == 1
    run.fit(data(), steps=1)
    assert differing_leaves(first(run.state, "a"), first(seen.states[0], "a"))
    assert len(seen.phases) == 1


# Rejected steps.


def test_phases_follow_updates_and_not_batches() -> None:
    bad = X.copy()
    bad[16:48] = np.nan  # batches 1 and 2 of each pass of 4
    batches = ft.data.batches({"x": bad, "label": LABEL}, 16)
    seen = Seen()
    run = trainer(plain(Freeze("a", until=3), nonfinite="skip"), seen, model=Small())
    run.fit(batches, steps=9)
    # Batches 0, 3, 4, 7 and 8 are accepted: the third update is batch 4.
    assert [int(state.step) for state in seen.states] == [0, 1, 1, 1, 2, 3, 3, 3, 4, 5]
    assert [step for step, _ in seen.phases] == [3]
    moved = [
        bool(differing_leaves(first(seen.states[n], "a"), first(seen.states[n + 1], "a")))
        for n in range(9)
    ]
    assert moved == [False] * 7 + [True] * 2
    assert run.compilations["train"] == 2


# Slots and learning rates after thawing.


def largest_step(before: Any, after: Any, *layers: str) -> float:
    gaps = jax.tree.map(
        lambda a, b: np.max(np.abs(b - a)), first(before, *layers), first(after, *layers)
    )
    return float(max(jax.tree.leaves(gaps)))


def late(slots: Any, start: int = 3, until: int = 6, **kwargs: Any) -> Freeze:
    return Freeze("a", start=start, until=until, slots=slots, **kwargs)


def check_first_step(before: Any, after: Any, share: float = 1.0) -> None:
    """|m / sqrt(v)| = 1 at t = 1, whatever the gradient; epsilon takes a little.

    With the count of the run and slots of zeros it would be, at t = 7,
    0.1 / (1 - 0.9**7) / sqrt(0.001 / (1 - 0.999**7)) = 0.51.
    """
    step = largest_step(before, after, "a")
    assert 0.9 * RATE * share < step <= 1.001 * RATE * share


def test_the_first_adam_update_after_thawing_is_at_most_one_learning_rate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    states = followed(plain(Freeze("a", until=6)), 7, verbose=True)
    check_first_step(states[6], states[7])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines if "phase" in line] == ["phase 2 of 2"]


def test_dropped_slots_are_gone_while_frozen_and_begin_anew() -> None:
    states = followed(plain(late("drop")), 7)
    there = ["a" in mu_of(state) for state in states]
    assert there == [True] * 3 + [False] * 3 + [True] * 2
    old, fresh = (jax.tree.leaves(states[n].opt_state.slots["mu"]["a"]) for n in (2, 6))
    assert all(map(np.any, old)) and not any(map(np.any, fresh))
    check_first_step(states[6], states[7])


def test_kept_slots_rest_while_frozen_and_go_on_with_their_own_count() -> None:
    states = followed(plain(late("keep")), 7)
    kernels = [
        (
            state.params["a"]["kernel"],
            *(state.opt_state.slots[n]["a"]["kernel"] for n in ("mu", "nu")),
        )
        for state in states
    ]
    assert np.any(kernels[3][1])
    for step in (4, 5, 6):
        assert differing_leaves(kernels[step], kernels[3]) == []
    # The update after thawing is the fourth one that these slots have seen.
    (before, _, _), (after, mu, nu) = kernels[6:]
    expected = -RATE * (mu / (1 - 0.9**4)) / (np.sqrt(nu / (1 - 0.999**4)) + 1e-8)
    # Parameters of size 1 are rounded to 6e-8, against steps of 1e-2.
    np.testing.assert_allclose(after - before, expected, rtol=1e-4, atol=1e-7)
    wrong = -RATE * (mu / (1 - 0.9**7)) / (np.sqrt(nu / (1 - 0.999**7)) + 1e-8)
    assert np.max(np.abs(wrong - expected)) > 1e-4, "the count of the run would be seen"


def test_the_learning_rate_of_thawed_parameters_rises_again_and_that_of_others_does_not() -> (
    None
):
    rule = Freeze("a", until=2, rewarm=3)
    states = followed(plain(rule, groups=[Group("a", name="a")]), 6)
    rates = [state.opt_state.learning_rates for state in states]
    expected = [0, 0, 0, RATE / 3, 2 * RATE / 3, RATE, RATE]
    np.testing.assert_allclose([rate["a"] for rate in rates], expected, rtol=1e-6)  # float32
    assert [float(rate["default"]) for rate in rates] == [0.0] + [np.float32(RATE)] * 6
    check_first_step(states[2], states[3], share=1 / 3)


@pytest.mark.parametrize(
    ("order", "expected"), [("top_down", ["b", "a"]), ("bottom_up", ["a", "b"])]
)
def test_layers_thaw_one_by_one_in_the_order_that_is_asked_for(
    order: Any, expected: list[str]
) -> None:
    rule = Freeze("a | b", until="20%", every="1ep", order=order)  # 2 and 4 of 10 steps
    batch = {"x": X[:16], "label": LABEL[:16]}
    horizon = Horizon(batches=10, batches_per_epoch=4)
    recipe = ft.make_recipe(Net(), spec(rule), batch, horizon=horizon)
    phases = recipe.assignment.phases
    assert [phase.start for phase in phases] == [0, 2, 6]
    layers = [{path[0] for path in phase.trained} - {"head"} for phase in phases]
    norms = {"norm_a", "norm_b"}
    assert [layer - norms for layer in layers] == [set(), {expected[0]}, {"a", "b"}]


# What TensorBoard is told.


def events(whole: Whole) -> EventAccumulator:
    found = EventAccumulator(str(whole.workdir / "train"))
    found.Reload()
    return found


def curve(whole: Whole, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in events(whole).Scalars(tag)}


def test_tensorboard_has_a_note_at_each_thawing(whole: Whole) -> None:
    notes = events(whole).Tensors("phase/text_summary")
    assert [(note.step, note.tensor_proto.string_val[0].decode()) for note in notes] == (
        whole.seen.phases
    )


def test_tensorboard_has_the_rates_and_decays_of_each_group_as_applied(whole: Whole) -> None:
    head, default = (curve(whole, f"learning_rate/{name}") for name in ("head", "default"))
    assert "learning_rate" not in events(whole).Tags()["scalars"]
    # Log points: every third batch, the end of each phase (4 and 7), and the end of the run.
    assert head.keys() == default.keys() == {3, FIRST, 6, FIRST + EVERY, 9, STEPS}
    assert set(head.values()) == {np.float32(2 * RATE)}
    # The backbone is frozen at first; after a thawing it is its largest rate that is told.
    frozen = {step: value for step, value in default.items() if step <= FIRST}
    assert set(frozen.values()) == {0.0}
    assert default[6] == default[9] == default[10] == np.float32(RATE)
    decays = {name: curve(whole, f"weight_decay/{name}") for name in ("head", "default")}
    assert set(decays["head"].values()) == {np.float32(1e-4)}, "the default of adamw"
    assert {value for step, value in decays["default"].items() if step <= FIRST} == {0.0}
    assert decays["default"][6] == decays["default"][10] == np.float32(1e-4)


def test_tensorboard_has_the_norms_of_each_group_over_what_is_trained(whole: Whole) -> None:
    tags = set(events(whole).Tags()["scalars"])
    for name in ("grad_norm", "update_norm", "param_norm"):
        assert {name, f"{name}/head", f"{name}/default"} <= tags
        all_of, head, default = (curve(whole, name + end) for end in ("", "/head", "/default"))
        shared = all_of.keys() & head.keys()
        assert {3, 6, 9, 10} <= shared
        assert min(default) > FIRST, "nothing of the group was trained before"
        for step in shared:
            if name == "grad_norm" and step != STEPS:
                continue  # of the whole gradient it is the mean of the window's steps
            parts = head[step] ** 2 + default.get(step, 0.0) ** 2
            assert all_of[step] == pytest.approx(np.sqrt(parts), rel=1e-5)  # float32 sums
    # The parameters before the update, and the update, from the states themselves.
    for step, layers in {3: ["head"], 6: ["head", "b", "norm_b"]}.items():
        before, after = whole.seen.states[step - 1 : step + 1]
        difference = jax.tree.map(
            lambda a, b: b - a, first(before, *layers), first(after, *layers)
        )
        norm = float(global_norm(first(before, *layers)))
        assert curve(whole, "param_norm")[step] == pytest.approx(norm, rel=1e-5)
        # Differences of parameters: 6e-8 of a parameter against steps of 1e-2.
        norm = float(global_norm(difference))
        assert curve(whole, "update_norm")[step] == pytest.approx(norm, rel=1e-4)


def test_no_row_of_metrics_mixes_two_phases(whole: Whole) -> None:
    steps = Counter(row["step"] for row in whole.result.history.train)
    assert set(steps) >= {FIRST, FIRST + EVERY} and set(steps.values()) == {1}


def test_the_last_row_of_a_phase_is_of_all_metrics(whole: Whole) -> None:
    names = ("grad_norm", "update_norm", "param_norm", "learning_rate", "weight_decay")
    found = {
        row["step"]: {name for name in row if name.startswith(names)}
        for row in whole.result.history.train
    }
    assert found[FIRST] == found[3], "the head alone is trained"
    assert found[FIRST + EVERY] == found[6] > found[3]


def test_what_is_edited_at_a_step_that_is_saved_already_is_saved(tmp_path: Path) -> None:
    def trainer() -> ft.Trainer:
        plain = OptSpec("adamw", RATE, nonfinite="skip")
        return ft.Trainer(Small(), plain, workdir=tmp_path, verbose=False)

    first = trainer()
    first.fit((X, LABEL), steps=2, batch_size=16)
    first.state = set_hyperparameters(first.state, learning_rate=0.5)
    bad = (np.full_like(X[:16], np.nan), LABEL[:16])
    first.fit([bad], steps=1)  # rejected: the step stays, and so does the checkpoint's name
    again = trainer()
    again.fit((X, LABEL), steps=4, batch_size=16)
    assert float(again.state.opt_state.hyperparams["default"]["learning_rate"]) == 0.5
    assert int(again.state.counters.skipped) == 1


def test_a_group_that_nothing_decays_reports_no_decay() -> None:
    groups = [Group("**/bias", name="bias"), Group("a", name="a")]
    run = ft.Trainer(
        Small(), OptSpec("adamw", RATE, groups=groups, freeze=["a"]), verbose=False
    )
    row = run.fit((X, LABEL), steps=1, batch_size=16).history.train[-1]
    decays = {name: value for name, value in row.items() if name.startswith("weight_decay")}
    assert decays == {
        "weight_decay/default": pytest.approx(1e-4),
        "weight_decay/bias": 0.0,
        "weight_decay/a": 0.0,
    }
