"""Averages of the weights as values: how they print, compare, are stored; what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError, UnknownNameError
from flaxtrain.spec import AccumulateBatches, Ema, Group, Lookahead, OptSpec, Swa

ALL = (
    Ema(),
    Ema(0.99, warmup=False, every="1ep"),
    Swa(),
    Swa("90%", every=5),
    Lookahead(),
    Lookahead(5, slow_step_size=0.8),
)


@pytest.mark.parametrize("rule", ALL, ids=repr)
def test_an_average_prints_compares_and_goes_through_json_exactly(rule: Any) -> None:
    spec = OptSpec("adam", 0.1, ema=rule)
    assert eval(repr(rule)) == rule == copy.deepcopy(rule)
    assert OptSpec.from_json(spec.to_json()) == spec
    assert OptSpec.from_json(spec.to_json()).ema == rule
    assert OptSpec.from_json(spec.to_json()).fingerprint() == spec.fingerprint()
    others = [other for other in ALL if other is not rule]
    assert all(rule != other for other in others)
    prints = {OptSpec("adam", 0.1, ema=other).fingerprint() for other in others}
    assert spec.fingerprint() not in prints | {OptSpec("adam", 0.1).fingerprint()}


def test_a_number_is_the_decay_of_a_moving_average() -> None:
    spec = OptSpec("adam", 0.1, ema=0.99)
    assert spec == OptSpec("adam", 0.1, ema=Ema(0.99))
    assert repr(spec) == "OptSpec('adam', learning_rate=0.1, ema=Ema(0.99))"
    assert spec.to_dict()["ema"] == {"kind": "Ema", "decay": 0.99}
    assert OptSpec.from_dict({**spec.to_dict(), "ema": 0.99}) == spec
    assert OptSpec("adam", 0.1).ema is None


def test_a_difference_between_two_averages_is_named() -> None:
    spec = OptSpec("adam", 0.1, ema=Ema(0.99))
    assert spec.diff(spec.replace(ema=Ema(0.9))) == ("ema.decay: 0.99 -> 0.9",)
    assert spec.diff(spec.replace(ema=Swa(5))) == ("ema: Ema(0.99) -> Swa(5)",)


def test_durations_are_resolved_in_optimizer_updates() -> None:
    horizon = Horizon(batches=200, batches_per_epoch=20, batch_size=8, batches_per_update=2)
    spec = OptSpec("adam", 0.1, ema=Swa("75%", every="1ep"), accumulate=AccumulateBatches(2))
    assert spec.resolve(horizon).ema == Swa(75, every=10)
    assert spec.replace(ema=Ema(every="5%")).resolve(horizon).ema == Ema(every=5)
    with pytest.raises(ArgumentError, match="Swa: start") as error:
        spec.resolve(Horizon())
    assert "number of batches in the run is not known yet" in error.value.found


@pytest.mark.parametrize(
    ("rule", "first"),
    [
        (Ema(every=7), 7),
        (Swa(0), 1),
        (Swa(0, every=5), 5),
        (Swa(9, every=5), 9),
        (Lookahead(4), 4),
    ],
    ids=repr,
)
def test_the_first_update_of_an_average_is_known(rule: Any, first: int) -> None:
    assert rule.first_update == first


def test_values_at_the_edge_are_accepted() -> None:
    assert Ema(0.0).decay == 0.0
    assert Swa(0).start == 0
    assert Lookahead(1, 1.0) == Lookahead(sync_period=1, slow_step_size=1)


def of(**arguments: Any) -> Callable[[], OptSpec]:
    return lambda: OptSpec("adam", 0.1, **arguments)


WRONG: dict[str, tuple[Callable[[], Any], type[FlaxtrainError], str]] = {
    "a decay of 1": (lambda: Ema(1.0), ArgumentError, "decay=1.0 is out of range"),
    "a decay below 0": (lambda: Ema(-0.1), ArgumentError, "decay=-0.1 is out of range"),
    "a decay that is text": (lambda: Ema("0.9"), ArgumentTypeError, "decay='0.9'"),  # type: ignore[arg-type]
    "a warm-up in steps": (lambda: Ema(warmup=10), ArgumentTypeError, "warmup=10"),  # type: ignore[arg-type]
    "every 0 updates": (lambda: Ema(every=0), ArgumentError, "every=0 is no period"),
    "every 0 percent": (lambda: Swa(every="0%"), ArgumentError, "every='0%' is no period"),
    "half an update": (lambda: Ema(every=0.5), ArgumentTypeError, "not a duration"),  # type: ignore[arg-type]
    "a start before the run": (lambda: Swa(-1), ArgumentError, "duration -1 is negative"),
    "a start that can't be read": (lambda: Swa("late"), ArgumentError, "'late' is not"),
    "no period": (lambda: Lookahead(0), ArgumentError, "sync_period=0 is too small"),
    "a period of half a step": (lambda: Lookahead(2.5), ArgumentTypeError, "not an integer"),  # type: ignore[arg-type]
    "slow weights that stay": (
        lambda: Lookahead(5, 0.0),
        ArgumentError,
        "slow_step_size=0.0 is out of range",
    ),
    "an argument that is not there": (
        lambda: Lookahead(k=5),  # type: ignore[call-arg]
        ArgumentTypeError,
        "unexpected keyword argument 'k'",
    ),
    "an average of 1": (of(ema=1), ArgumentError, "ema=1: decay=1 is out of range"),
    "yes": (of(ema=True), ArgumentTypeError, "ema=True is a bool, not an average"),
    "the name of an average": (of(ema="swa"), ArgumentTypeError, "ema='swa' is a str"),
    "a class": (of(ema=Ema), ArgumentTypeError, "not an average"),
    "an average of one group": (
        of(groups=[Group("**", ema=0.9)]),
        ArgumentError,
        "ema is said of all parameters together",
    ),
    "a misspelt field of data": (
        lambda: OptSpec.from_dict(
            {"optimizer": "adam", "learning_rate": 0.1, "ema": {"kind": "Ema", "decoy": 0.9}}
        ),
        UnknownNameError,
        "unknown field 'decoy'",
    ),
    "data of another kind": (
        lambda: OptSpec.from_dict(
            {"optimizer": "adam", "learning_rate": 0.1, "ema": {"kind": "Spikes"}}
        ),
        ArgumentTypeError,
        "ema=Spikes() is a Spikes",
    ),
}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_average_is_refused_by_name(name: str) -> None:
    make, kind, found = WRONG[name]
    with pytest.raises(kind) as error:
        make()
    assert found in str(error.value)
    assert error.value.where and error.value.fix
