"""What all schedules share: durations, resolution, equality, tracers and arrays as fields."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.schedules import (
    Schedule,
    constant_schedule,
    cosine_decay_schedule,
    from_dict,
    join_schedules,
    linear_schedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
)

RUN = Horizon(total_steps=1000, steps_per_epoch=50, batch_size=100)


@pytest.mark.parametrize(
    ("relative", "resolved"),
    [
        (linear_schedule(0.0, 1.0, "10%", "1ep"), linear_schedule(0.0, 1.0, 100, 50)),
        (cosine_decay_schedule(1.0, "100%"), cosine_decay_schedule(1.0, 1000)),
        (cosine_decay_schedule(1.0, "100k ex"), cosine_decay_schedule(1.0, 1000)),
        (warmup_constant_schedule(0.0, 1.0, "0.5ep"), warmup_constant_schedule(0.0, 1.0, 25)),
        (
            warmup_cosine_decay_schedule(0.0, 1.0, "5%", "100%"),
            warmup_cosine_decay_schedule(0.0, 1.0, 50, 1000),
        ),
        (
            warmup_cosine_decay_schedule(0.0, 1.0, 7, "100%"),
            warmup_cosine_decay_schedule(0.0, 1.0, 7, 1000),
        ),
        (
            join_schedules([linear_schedule(0, 1, "5%"), constant_schedule(1.0)], ["5%"]),
            join_schedules([linear_schedule(0, 1, 50), constant_schedule(1.0)], [50]),
        ),
        (
            join_schedules(
                [
                    constant_schedule(0.1),
                    join_schedules([constant_schedule(0.2), constant_schedule(0.3)], ["1ep"]),
                ],
                [10],
            ),
            join_schedules(
                [
                    constant_schedule(0.1),
                    join_schedules([constant_schedule(0.2), constant_schedule(0.3)], [50]),
                ],
                [10],
            ),
        ),
    ],
)
def test_resolve_turns_durations_into_steps(relative: Schedule, resolved: Schedule) -> None:
    assert not relative.is_resolved
    assert relative.resolve(RUN) == resolved
    assert relative.resolve(RUN).is_resolved
    assert relative != resolved
    assert from_dict(json.loads(json.dumps(relative.to_dict()))) == relative
    # What is told of a schedule before it is resolved holds afterwards.
    assert relative.extremes() == resolved.extremes()


def test_an_unresolved_schedule_says_what_is_missing() -> None:
    schedule = warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps="5%", decay_steps="100%")
    with pytest.raises(ArgumentError) as caught:
        schedule(3)
    assert str(caught.value) == (
        "durations of this schedule are still relative: warmup_steps='5%', decay_steps='100%'\n"
        "  where: warmup_cosine_decay_schedule(init_value=0.0, peak_value=1.0, "
        "warmup_steps='5%', decay_steps='100%')\n"
        "  fix:   call resolve(Horizon(total_steps=...)) first, or give durations in steps"
    )
    nested = join_schedules([linear_schedule(0, 1, "2ep"), constant_schedule(1)], [5])
    with pytest.raises(ArgumentError, match="transition_steps='2ep'"):
        jax.jit(nested)(3)


def test_a_horizon_that_lacks_a_number_is_named() -> None:
    with pytest.raises(ArgumentError) as caught:
        cosine_decay_schedule(1.0, "10ep").resolve(Horizon(total_steps=100))
    assert str(caught.value) == (
        "the number of steps per epoch is not known yet: '10ep' can't be turned into steps\n"
        "  where: cosine_decay_schedule(decay_steps='10ep')\n"
        "  fix:   give the duration in steps, or a horizon with steps_per_epoch="
    )


def test_durations_that_do_not_fit_together_are_found_when_resolved() -> None:
    schedule = warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=500, decay_steps="10%")
    with pytest.raises(ArgumentError, match="decay_steps=100 is not above warmup_steps=500"):
        schedule.resolve(RUN)
    joined = join_schedules([constant_schedule(v) for v in (1.0, 2.0, 3.0)], ["50%", 100])
    with pytest.raises(ArgumentError, match=r"boundaries=\[500, 100\] are not in order"):
        joined.resolve(RUN)


def test_texts_that_need_no_horizon_are_steps_at_once() -> None:
    schedule = cosine_decay_schedule(1.0, "2k")
    assert schedule.decay_steps == 2000
    assert schedule == cosine_decay_schedule(1.0, 2000)


def test_scalars_of_numpy_and_jax_become_numbers() -> None:
    ours = linear_schedule(np.float64(0.1), jnp.float32(0.5), np.int64(10))
    assert ours == linear_schedule(0.1, 0.5, 10)
    assert [type(v) for v in (ours.init_value, ours.end_value, ours.transition_steps)] == [
        float,
        float,
        int,
    ]


def test_values_may_be_arrays_and_are_no_data_then() -> None:
    start, end = jnp.zeros(3), jnp.array([1.0, 2.0, 3.0])
    schedule = linear_schedule(start, end, 10)
    np.testing.assert_allclose(schedule(5), [0.5, 1.0, 1.5], rtol=1e-6)
    assert schedule == linear_schedule(np.zeros(3), np.array([1.0, 2.0, 3.0]), 10)
    assert schedule != linear_schedule(start, jnp.ones(3), 10)
    assert hash(schedule) == hash(linear_schedule(start, end, 10))
    with pytest.raises(ArgumentTypeError, match="can't be written as data"):
        schedule.to_dict()


def test_a_schedule_may_be_made_of_tracers() -> None:
    def value(peak: Any, steps: Any) -> Any:
        return warmup_cosine_decay_schedule(0.0, peak, 2, steps)(3)

    peaks, steps = jnp.array([1.0, 2.0]), jnp.array([4, 6])
    # c = (1 + cos(pi / 2)) / 2 and (1 + cos(pi / 4)) / 2
    wanted = [0.5, 2 * (1 + np.cos(np.pi / 4)) / 2]
    np.testing.assert_allclose(jax.vmap(value)(peaks, steps), wanted, rtol=1e-6)
    slope = jax.grad(lambda end: linear_schedule(0.0, end, 10)(5))(1.0)
    assert float(slope) == pytest.approx(0.5)


def test_integer_counts_are_exact_beyond_the_precision_of_float32() -> None:
    begin = 2**24
    schedule = linear_schedule(0.0, 1.0, 4, begin)
    for count in (jnp.int32(begin + 1), jnp.uint32(begin + 1), begin + 1):
        assert float(schedule(count)) == 0.25


def test_limits_beyond_the_type_of_the_count_are_accepted() -> None:
    far = 10**12
    joined = join_schedules([linear_schedule(0.0, 1.0, far), constant_schedule(5.0)], [far])
    late = 2**31 - 2  # 1 - t / T is formed first: a rounding of 1 in float32
    assert float(jax.jit(joined)(jnp.int32(late))) == pytest.approx(late / far, abs=1e-7)
    assert float(joined(far // 2)) == 0.5
    assert float(joined(far)) == 5.0


def test_later_schedules_never_see_a_negative_count() -> None:
    seen: list[Any] = []

    def spy(count: Any) -> Any:
        seen.append(count)
        return 1.0

    joined = join_schedules([constant_schedule(0.0), spy], [10])
    for count in (3, jnp.int32(3), jnp.uint32(3), 12):
        joined(count)
    assert [int(count) for count in seen] == [0, 0, 0, 2]


def test_an_unknown_part_makes_the_extremes_unknown() -> None:
    assert join_schedules([constant_schedule(0.0), lambda count: 1.0], [10]).extremes() is None


def test_the_constant_is_returned_as_it_is() -> None:
    value = constant_schedule(0.1)(jnp.int32(3))
    assert type(value) is float
    assert value == 0.1


def test_a_schedule_is_frozen() -> None:
    with pytest.raises(AttributeError):
        constant_schedule(0.1).value = 0.2  # type: ignore[misc]
