"""Bad input that Optax accepts without a word: here it raises, and says what to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
import pytest

from flaxtrain.compat import optax as door
from flaxtrain.errors import FlaxtrainError

PARAMS = {"a": jnp.ones(2), "b": jnp.ones(2)}


def _unused_group(o: Any) -> Any:
    groups = {"decoder": o.sgd(0.1), "encoder": o.sgd(0.1)}
    return o.partition(groups, {"a": "decoder", "b": "decoder"}).init(PARAMS)


def _constants(o: Any, count: int) -> list[Any]:
    return [o.constant_schedule(1.0)] * count


SILENT: dict[str, Callable[[Any], Any]] = {
    "negative learning rate": lambda o: o.adam(-0.1),
    "NaN as learning rate": lambda o: o.adam(math.nan),
    "b1 = 2": lambda o: o.adam(0.1, b1=2.0),
    "negative transition_steps": lambda o: o.linear_schedule(0.0, 1.0, -5),
    "boundaries out of order": lambda o: o.join_schedules(_constants(o, 3), [20, 10]),
    "another number of boundaries": lambda o: o.join_schedules(_constants(o, 3), [10]),
    "negative boundary": lambda o: o.join_schedules(_constants(o, 2), [-10]),
    "negative weight decay": lambda o: o.adamw(0.1, weight_decay=-0.1),
    "negative clip norm": lambda o: o.clip_by_global_norm(-1.0),
    "MultiSteps of 0": lambda o: o.MultiSteps(o.sgd(0.1), 0),
    "ema(2.0)": lambda o: o.ema(2.0),
    "text as learning rate": lambda o: o.sgd("0.1"),
    "a group that no label names": _unused_group,
}


@pytest.mark.parametrize("kind", SILENT)
def test_it_raises_here_and_passes_in_optax(kind: str, unchecked_types: None) -> None:
    SILENT[kind](optax)
    with pytest.raises(FlaxtrainError) as caught:
        SILENT[kind](door)
    assert caught.value.fix


def test_all_kinds_are_there() -> None:
    assert len(SILENT) == 13
