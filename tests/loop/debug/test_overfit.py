"""`fit(debug="overfit")`: the first batch alone, until its loss is near zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.errors import DebugError
from flaxtrain.loop.in_flight import IN_FLIGHT

X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
DATA = {"x": X, "label": (np.arange(20) % 3).astype(np.int32)}
MODEL = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)])
SPEC = ft.OptSpec("adam", learning_rate=0.05)


def test_the_batch_is_learnt_and_nothing_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = ft.Trainer(MODEL, SPEC, workdir=tmp_path / "run")
    result = trainer.fit(DATA, epochs=1000, batch_size=8, eval_ds=DATA, debug="overfit")
    losses = result.history.column("train", "loss")
    accuracy = result.history.column("train", "accuracy")
    assert result.stopped_because == "the batch is learnt"
    low = (
        next(i for i, loss in enumerate(losses) if loss < 0.01 * losses[0])
        if (losses[-1] < 0.01 * losses[0])
        else len(losses)
    )
    right = next(i for i in range(len(losses)) if accuracy[max(0, i - 9) : i + 1] == [1.0] * 10)
    # The losses are read at most eight steps late.
    assert min(low, right) < len(losses) <= min(low, right) + 10
    assert len(losses) < 200 and int(result.state.counters.examples) == 8 * len(losses)
    assert trainer.state is None and trainer.recipe is None
    assert not (tmp_path / "run").exists()
    printed = capsys.readouterr().out
    assert "on one batch the loss went from" in printed and "nothing of it is kept" in printed


def failure(model: Any, spec: ft.OptSpec, data: Any = DATA, **kwargs: Any) -> DebugError:
    trainer = ft.Trainer(model, spec, verbose=False, **kwargs)
    with pytest.raises(DebugError) as caught:
        trainer.fit(data, steps=40, batch_size=8, debug="overfit")
    assert trainer.state is None
    return caught.value


def test_what_was_reached_is_said_with_the_rate() -> None:
    error = failure(MODEL, SPEC.replace(learning_rate=1e-7))
    assert "on one batch the loss went from" in error.found and "in 40 steps" in error.found
    assert (
        error.fix is not None and "the learning rate (the last one: default 1e-07)" in error.fix
    )


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.Dropout(0.9, deterministic=not train)(nn.Dense(4, name="body")(x))
        return nn.Dense(3, name="head")(x)


@pytest.mark.slow
def test_frozen_parameters_and_dropout_are_named_where_there_are_some() -> None:
    error = failure(Noisy(), SPEC.replace(freeze="body/**", learning_rate=1e-3))
    assert error.fix is not None
    assert "frozen (20 of 35 values)" in error.fix
    assert "dropout or other noise in training (random streams: dropout)" in error.fix


def test_equal_inputs_with_different_targets_are_not_learnt() -> None:
    error = failure(MODEL, SPEC, {**DATA, "x": np.ones_like(X)})
    assert error.fix is not None and "equal inputs with different targets" in error.fix
    assert "frozen" not in error.fix and "dropout" not in error.fix


@pytest.mark.slow
def test_a_loss_below_zero_has_no_way_to_zero() -> None:
    def loss(model: Any, batch: Any) -> Any:
        return -(model(batch["x"]) ** 2).sum(-1)

    assert "no way to zero" in failure(MODEL, SPEC, loss=loss).found


@pytest.mark.slow
def test_several_batches_to_an_update_are_given_as_many_updates() -> None:
    spec = SPEC.replace(accumulate=ft.AccumulateBatches(2))
    results = [
        ft.Trainer(MODEL, one, verbose=False).fit(DATA, batch_size=16, debug="overfit")
        for one in (SPEC, spec)
    ]
    steps = [int(result.state.step) for result in results]
    # It is stopped a few steps late: metrics arrive when nothing waits for them.
    assert abs(steps[0] - steps[1]) <= IN_FLIGHT and steps[1] > 0


def test_rows_that_do_not_fill_the_microbatches_are_left_out() -> None:
    data = {key: value[:10] for key, value in DATA.items()}
    trainer = ft.Trainer(MODEL, SPEC.replace(accumulate=4), verbose=False)
    result = trainer.fit(data, batch_size=16, debug="overfit")
    assert result.stopped_because == "the batch is learnt"
    assert int(result.state.counters.examples) == 8 * int(result.state.step)
