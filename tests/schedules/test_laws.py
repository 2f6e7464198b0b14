"""Laws that hold for every schedule in `tests/schedule_cases.py`."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain.schedules import FACTORIES, Schedule, from_dict
from tests.schedule_cases import CASES, Case

LARGEST = 2**31 - 1

every_case = pytest.mark.parametrize("case", CASES, ids=repr)


def counts(case: Case) -> np.ndarray:
    """10,000 counts: each boundary and its neighbours, 0, the largest int32, and a sweep."""
    special = {0, 1, 2**24 + 1, LARGEST - 1, LARGEST}
    special |= {b + d for b in case.boundaries for d in (-1, 0, 1)}
    sweep = np.setdiff1d(np.arange(10_000 + len(special)), sorted(special))
    return np.concatenate([sorted(special), sweep])[:10_000].astype(np.int32)


def deviation(a: object, b: object) -> float:
    """Largest absolute difference as a fraction of the largest entry."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-300))


def values(schedule: object, count: np.ndarray) -> np.ndarray:
    return np.broadcast_to(schedule(jnp.asarray(count)), count.shape)  # type: ignore[operator]


@every_case
def test_equals_the_closed_form_in_float64(case: Case) -> None:
    count = counts(case)
    with jax.enable_x64(True):
        ours = values(case.ours, count)
    assert ours.dtype == np.float64
    # A handful of float64 roundings, near 1 where two values of size 1 are subtracted.
    assert deviation(ours, case.closed_form(count.astype(np.float64))) <= 1e-12


@every_case
def test_equals_optax_in_float32(case: Case) -> None:
    count = counts(case)
    theirs = case.theirs(optax)
    ours = jax.jit(case.ours)(jnp.asarray(count))
    # Both round to float32 a few times; 2e-6 is 17 units in the last place. Some of theirs take
    # scalar counts only.
    assert deviation(ours, jax.jit(jax.vmap(theirs))(jnp.asarray(count))) <= 2e-6
    for point in (0, *case.boundaries):
        assert deviation(case.ours(point), theirs(point)) <= 2e-6


@every_case
def test_three_points_worked_out_by_hand(case: Case) -> None:
    for count, value in case.points:
        # One float32 rounding of values below 2 is at most 1.2e-7; a few of them add up.
        assert float(case.ours(count)) == pytest.approx(value, abs=5e-7)


@every_case
def test_traced_array_and_python_counts_agree(case: Case) -> None:
    traced = jax.jit(case.ours)
    for count in (0, 1, 7, *case.boundaries, LARGEST):
        wanted = float(case.ours(count))
        for other in (np.int64(count), np.int32(count), jnp.int32(count), jnp.uint32(count)):
            assert float(case.ours(other)) == wanted
        # XLA may contract a multiplication and an addition into one: one rounding less.
        assert float(traced(jnp.int32(count))) == pytest.approx(wanted, rel=3e-7, abs=3e-7)


@every_case
def test_python_counts_beyond_int32_are_accepted(case: Case) -> None:
    wanted = float(case.closed_form(np.array([2.0**40]))[0])
    assert float(case.ours(2**40)) == pytest.approx(wanted, rel=5e-7, abs=1e-30)


@every_case
def test_one_compilation_serves_all_counts(case: Case) -> None:
    traces = []

    @jax.jit
    def value(count: jax.Array) -> object:
        traces.append(count)
        return case.ours(count)

    for count in range(3):
        value(jnp.int32(count))
    assert len(traces) == 1


@every_case
def test_a_schedule_never_widens_what_it_multiplies(case: Case) -> None:
    for dtype in (jnp.bfloat16, jnp.float32):
        assert (case.ours(jnp.int32(3)) * jnp.ones(2, dtype)).dtype == dtype


@every_case
def test_json_round_trip_is_exact(case: Case) -> None:
    text = json.dumps(case.ours.to_dict())
    back = from_dict(json.loads(text))
    assert back == case.ours
    assert hash(back) == hash(case.ours)
    assert json.dumps(back.to_dict()) == text
    assert type(back) is type(case.ours)


@every_case
def test_prints_as_the_call_that_makes_it(case: Case) -> None:
    again = eval(repr(case.ours), dict(FACTORIES))
    assert again == case.ours
    assert "Schedule object" not in repr(case.ours)


@every_case
def test_extremes_bound_all_values(case: Case) -> None:
    extremes = case.ours.extremes()
    assert extremes is not None
    seen = values(case.ours, counts(case))
    # Rounding to float32.
    assert extremes[0] - 1e-6 <= seen.min() <= seen.max() <= extremes[1] + 1e-6


@every_case
def test_a_resolved_schedule_resolves_to_itself(case: Case) -> None:
    from flaxtrain.durations import Horizon

    assert case.ours.is_resolved
    assert case.ours.resolve(Horizon()) is case.ours


def test_cases_are_different_from_one_another() -> None:
    assert len({case.ours for case in CASES}) == len(CASES)
    assert all(a.ours != b.ours for a in CASES for b in CASES if a is not b)


def test_every_factory_has_a_case() -> None:
    kinds = {case.ours.kind for case in CASES}
    assert kinds | {"linear_schedule"} == set(FACTORIES)  # a line is a polynomial of power 1
    assert all(isinstance(case.ours, Schedule) for case in CASES)
