"""What processes have to have in common, in threads that share a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.data import as_stream
from flaxtrain.errors import ProcessError
from flaxtrain.loop import several_processes
from flaxtrain.loop.several_processes import (
    agree_on_batches,
    agree_on_the_end,
    agree_on_the_run,
    agree_on_the_source,
    wait_for_all,
)
from flaxtrain.parallel import NoPeers
from flaxtrain.parallel.processes.coordination import ServiceLost
from tests.parallel.processes.together import in_each_process

DATA = {"x": np.ones((20, 3), "float32"), "label": np.arange(20) % 2}


def arguments(
    *,
    data: Any = DATA,
    rows: int = 4,
    shuffle: int = 0,
    seed: int = 0,
    features: int = 2,
    rate: float = 0.1,
    policy: str = "f32",
    done: int = 0,
    **lengths: Any,
) -> Callable[[], None]:
    """Returns the call that a process makes."""
    stream = as_stream(ft.data.batches(data, rows, shuffle=True, seed=shuffle))
    spec = ft.OptSpec("sgd", learning_rate=rate)
    options = ft.StepOptions(precision=policy)
    recipe = ft.make_recipe(nn.Dense(features), spec, stream.example().data, options=options)
    state = recipe.init(seed=0)
    state = state.replace(counters=state.counters.replace(batches=jnp.asarray(done)))
    lengths = {"total": 10, "log_every": 5, "steps_per_call": 1, **lengths}
    return lambda: agree_on_the_run(recipe, state, stream, seed, **lengths)


CASES: list[tuple[dict[str, Any], str]] = [
    ({"seed": 1}, "seed"),
    ({"rate": 0.2}, "spec"),
    ({"policy": "bf16"}, "options"),
    ({"shuffle": 7}, "order of examples"),
    ({"features": 3}, "parameters"),
    ({"data": {**DATA, "x": np.ones((20, 5), "float32")}}, "parameters, batch"),
    ({"data": {**DATA, "weight": np.ones(20, "float32")}}, "batch"),
    ({"rows": 5}, "batch, batches per epoch"),
    ({"rows": 6}, "masks, batch, batches per epoch"),
    ({"done": 3}, "batches done"),
    ({"total": 11}, "total"),
    ({"log_every": 2}, "log_every"),
    ({"steps_per_call": 8}, "steps_per_call"),
]


@pytest.mark.parametrize(("other", "what"), CASES, ids=[what for _, what in CASES])
def test_runs_that_differ_are_refused_by_all(
    other: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [arguments(), arguments(**other)]
    found = in_each_process(2, lambda index: calls[index](), monkeypatch)
    assert str(found[0]) == str(found[1]) and isinstance(found[0], ProcessError)
    title = str(found[0]).partition("\n")[0]
    assert title == f"the processes disagree about {what}"


def test_runs_that_are_alike_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [arguments(), arguments()]
    assert in_each_process(2, lambda index: calls[index](), monkeypatch) == [None, None]


@pytest.mark.parametrize("without", [0, 1])
def test_a_workdir_that_one_process_lacks_is_refused_by_all(
    without: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begins(index: int) -> None:
        agree_on_the_source(None if index == without else Path(f"/run/{index}"), None)

    found = in_each_process(2, begins, monkeypatch)
    assert str(found[0]) == str(found[1]) and isinstance(found[0], ProcessError)
    assert "the processes disagree about workdir\n" in str(found[0])


def test_paths_of_one_workdir_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    agree_on_the_source(Path("/run"), None)
    found = in_each_process(
        2, lambda index: agree_on_the_source(Path(f"/run/{index}"), None), monkeypatch
    )
    assert found == [None, None]


# The end.

Said = tuple[int, str | None, bool]


def end_of(said: list[Said], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return in_each_process(len(said), lambda index: agree_on_the_end(*said[index]), monkeypatch)


def test_one_process_ends_as_it_wants() -> None:
    assert agree_on_the_end(7, "enough", False) == ("enough", None)
    reason, error = agree_on_the_end(7, None, True)
    assert reason is None and isinstance(error, KeyboardInterrupt) and error.args == ()


@pytest.mark.parametrize(
    ("reasons", "common"),
    [
        ([None, None, None], None),
        ([None, None, "enough"], "enough"),
        ([None, "enough", "too much"], "enough"),
    ],
)
def test_the_reason_is_that_of_the_first_process_that_has_one(
    reasons: list[str | None], common: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = end_of([(7, reason, False) for reason in reasons], monkeypatch)
    assert found == [(common, None)] * 3


def test_an_interrupt_of_one_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = end_of([(7, None, False), (7, "enough", False), (7, None, True)], monkeypatch)
    assert [type(error) for _, error in found] == [KeyboardInterrupt] * 3
    assert {str(error) for _, error in found} == {"in process 2"}


def test_ends_after_different_batches_are_an_error_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = end_of([(7, None, False), (8, None, False)], monkeypatch)
    (text,) = {str(error) for error in found}
    assert "disagree about last batch" in text and "after the last step" in text
    assert "last batch: 7 (process 0); 8 (process 1)" in text


def test_who_has_no_more_batches_does_not_wait_for_one_that_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def together(index: int) -> None:
        if index == 0:  # the other one hangs in the step after that
            agree_on_the_end(7, None, False)

    watch = NoPeers()
    monkeypatch.setattr(watch, "ahead", lambda batches: 1 if batches == 7 else None)
    monkeypatch.setattr(several_processes, "peer_watch", lambda: watch)
    error, _ = in_each_process(2, together, monkeypatch)
    assert "has made all of its 7 batches, and process 1 goes on" in str(error)


def test_an_error_of_all_waits_for_all_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wait_for_all()
    assert in_each_process(2, lambda _: wait_for_all(), monkeypatch) == [None, None]
    monkeypatch.setattr(several_processes, "_ERROR_SECONDS", 0.1)
    found = in_each_process(2, lambda index: None if index else wait_for_all(), monkeypatch)
    assert found == [None, None]


# A pass over data.


def test_passes_with_unequally_many_batches_are_an_error_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def together(counts: list[int | None]) -> list[Any]:
        def call(index: int) -> None:
            agree_on_batches(counts[index], "evaluate")

        return in_each_process(len(counts), call, monkeypatch)

    agree_on_batches(4, "evaluate")  # one process alone
    assert together([4, 4, 4]) == together([4, None, 3]) == [None] * 3
    (text,) = {str(error) for error in together([4, 3, 4])}
    assert "batches: 4 (processes 0, 2); 3 (process 1)" in text
    assert "equally many batches in each process" in text


@pytest.mark.parametrize("together", [True, False])
def test_who_has_made_all_steps_of_a_pass_does_not_wait_for_ever(
    together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "_PATIENCE" if together else "_APART_PATIENCE"
    monkeypatch.setattr(several_processes, name, 0.1)

    def call(index: int) -> None:
        if index == 0:  # the other one hangs in the step after that
            agree_on_batches(7, "evaluate", [(jnp.ones(2), None)], together=together)

    error, _ = in_each_process(2, call, monkeypatch)
    assert isinstance(error, ProcessError)
    assert "this process has made all of its 7 batches" in str(error)


def test_the_others_are_waited_for_while_a_step_is_not_done() -> None:
    class Step:
        done = False

        def is_ready(self) -> bool:
            return self.done

    step = Step()
    look = several_processes._patience(7, "evaluate", [step], -1.0)
    look()
    step.done = True
    with pytest.raises(ProcessError, match="all of its 7 batches"):
        look()


def test_an_error_of_all_is_not_replaced_by_the_loss_of_process_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(*args: Any, **kwargs: Any) -> None:
        raise ServiceLost("UNAVAILABLE")

    monkeypatch.setattr(several_processes, "decided", lost)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    wait_for_all()
