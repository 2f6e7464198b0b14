"""What all schedules share: durations, resolution, equality, tracers and arrays as fields."""

from __future__ import annotations

import copy
import inspect
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.schedules import (
    FACTORIES,
    Schedule,
    constant_schedule,
    cooldown_schedule,
    cosine_decay_schedule,
    cosine_onecycle_schedule,
    cosine_restarts_schedule,
    exponential_decay,
    from_dict,
    inverse_sqrt_schedule,
    join_schedules,
    linear_onecycle_schedule,
    linear_schedule,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
    polynomial_schedule,
    sgdr_schedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
    wsd_schedule,
)

RUN = Horizon(batches=1000, batches_per_epoch=50, batch_size=100)
CYCLE = {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 10}


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
        (exponential_decay(1.0, "1ep", 0.5, "10%"), exponential_decay(1.0, 50, 0.5, 100)),
        (
            warmup_exponential_decay_schedule(0.0, 1.0, "5%", "1ep", 2.0, "1ep", True, 3.0),
            warmup_exponential_decay_schedule(0.0, 1.0, 50, 50, 2.0, 50, True, 3.0),
        ),
        (
            piecewise_constant_schedule(1.0, {"75%": 0.5, 100: 0.25}),
            piecewise_constant_schedule(1.0, {100: 0.25, 750: 0.5}),
        ),
        (
            piecewise_interpolate_schedule("cosine", 1.0, {"1ep": 0.5}),
            piecewise_interpolate_schedule("cosine", 1.0, {50: 0.5}),
        ),
        (linear_onecycle_schedule("100%", 0.1), linear_onecycle_schedule(1000, 0.1)),
        (cosine_onecycle_schedule("2ep", 0.1), cosine_onecycle_schedule(100, 0.1)),
        (
            sgdr_schedule([{**CYCLE, "decay_steps": "20%"}, {**CYCLE, "decay_steps": "1ep"}]),
            sgdr_schedule([{**CYCLE, "decay_steps": 200}, {**CYCLE, "decay_steps": 50}]),
        ),
        (
            cosine_restarts_schedule(1.0, "1ep", t_mult=2.0, peak_decay=0.5),
            cosine_restarts_schedule(1.0, 50, t_mult=2.0, peak_decay=0.5),
        ),
        (cooldown_schedule(1.0, "20%", "1-sqrt"), cooldown_schedule(1.0, 200, "1-sqrt")),
        (wsd_schedule(1.0, "5%", "75%", "20%"), wsd_schedule(1.0, 50, 750, 200)),
        (
            inverse_sqrt_schedule(
                1.0, "5%", "10k ex", cooldown_steps="1ep", total_steps="100%"
            ),
            inverse_sqrt_schedule(1.0, 50, 100, cooldown_steps=50, total_steps=1000),
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
        "  fix:   call resolve(Horizon(batches=...)) first, or give durations in steps"
    )
    nested = join_schedules([linear_schedule(0, 1, "2ep"), constant_schedule(1)], [5])
    with pytest.raises(ArgumentError, match="transition_steps='2ep'"):
        jax.jit(nested)(3)


def test_a_horizon_that_lacks_a_number_is_named() -> None:
    with pytest.raises(ArgumentError) as caught:
        cosine_decay_schedule(1.0, "10ep").resolve(Horizon(batches=100))
    assert str(caught.value) == (
        "the number of batches per epoch is not known yet: '10ep' can't be turned into steps\n"
        "  where: cosine_decay_schedule(decay_steps='10ep')\n"
        "  fix:   give the duration in steps, or a horizon with batches_per_epoch="
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


def test_any_other_callable_is_itself_only_and_no_data() -> None:
    def mine(count: Any) -> Any:
        return 0.5

    joined = join_schedules([mine, constant_schedule(0.1)], [10])
    assert joined == join_schedules([mine, constant_schedule(0.1)], [10])
    assert joined != join_schedules([lambda count: 0.5, constant_schedule(0.1)], [10])
    assert hash(joined) == hash(join_schedules([mine, constant_schedule(0.1)], [10]))
    with pytest.raises(ArgumentTypeError) as caught:
        joined.to_dict()
    assert "the function test_any_other_callable" in str(caught.value)
    assert "mine can't be written as data" in str(caught.value)


def test_factories_keep_their_signatures() -> None:
    for name, factory in FACTORIES.items():
        if hasattr(optax.schedules, name):
            ours = inspect.signature(factory).parameters
            theirs = inspect.signature(getattr(optax.schedules, name)).parameters
            assert [(p.name, p.kind, p.default) for p in ours.values()] == [
                (p.name, p.kind, p.default) for p in theirs.values()
            ]


def test_every_schedule_of_optax_is_there() -> None:
    names = {name for name in vars(optax.schedules) if name.endswith(("_schedule", "_decay"))}
    assert len(names) > 10 and names - {"_schedule"} <= set(FACTORIES)


def test_a_table_of_steps_may_be_pairs_or_have_keys_of_text() -> None:
    table = piecewise_constant_schedule(1.0, {100: 0.5, "50%": 0.1})
    assert table == piecewise_constant_schedule(1.0, [(100, 0.5), ("50%", 0.1)])
    assert table == piecewise_constant_schedule(1.0, {"50%": 0.1, "100": 0.5})
    data = {
        "schedule": "piecewise_constant_schedule",
        "init_value": 1.0,
        "boundaries_and_scales": {"100": 0.5, "50%": 0.1},
    }
    assert from_dict(json.loads(json.dumps(data))) == table
    assert repr(table) == (
        "piecewise_constant_schedule(init_value=1.0, "
        "boundaries_and_scales={100: 0.5, '50%': 0.1})"
    )
    assert copy.deepcopy(table) == table and hash(copy.deepcopy(table)) == hash(table)


def test_a_table_is_not_changed_by_changing_what_it_was_made_of() -> None:
    steps = {100: 0.5}
    schedule = piecewise_constant_schedule(1.0, steps)
    steps[100] = 0.1
    assert float(schedule(100)) == 0.5


def test_the_extremes_of_an_unordered_table_are_not_told() -> None:
    mixed = piecewise_constant_schedule(1.0, {"50%": 4.0, 100: 0.5})
    assert mixed.extremes() is None
    assert mixed.resolve(RUN).extremes() == (0.5, 2.0)


def test_growth_without_a_limit_has_no_extremes() -> None:
    assert exponential_decay(1.0, 10, 2.0).extremes() is None
    assert warmup_exponential_decay_schedule(0.0, 1.0, 5, 10, 2.0).extremes() is None
    assert exponential_decay(1.0, 10, 2.0, end_value=8.0).extremes() == (1.0, 8.0)
    assert exponential_decay(-1.0, 10, 0.5).extremes() == (-1.0, 0.0)


def test_stairs_are_at_their_steps_exactly_also_under_jit() -> None:
    count = jnp.arange(20_000, dtype=jnp.int32)
    ours = exponential_decay(1.0, 41, 0.5, staircase=True, end_value=1e-6)
    theirs = optax.exponential_decay(1.0, 41, 0.5, staircase=True, end_value=1e-6)
    wanted = np.maximum(0.5 ** (np.arange(20_000) // 41), 1e-6).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(ours)(count), wanted)
    # XLA multiplies with a rounded reciprocal, and then rounds down.
    assert np.any(np.asarray(jax.jit(theirs)(count)) != wanted)


def test_the_last_value_is_exact_and_never_nan_under_jit() -> None:
    for steps in (1, 3, 7, 41, 83):
        root = polynomial_schedule(1.0, 0.0, 0.5, steps)
        tail = cooldown_schedule(1.0, steps)
        assert float(jax.jit(root)(jnp.int32(steps))) == 0.0
        assert float(jax.jit(tail)(jnp.int32(steps))) == 0.0
    theirs = jax.jit(optax.polynomial_schedule(1.0, 0.0, 0.5, 3))
    assert np.isnan(theirs(jnp.int32(3)))


def test_the_end_of_a_cycle_is_exact_next_to_a_large_peak() -> None:
    cycle = linear_onecycle_schedule(1000, 1.0)
    # As a formula, (v1 - v0) x + v0 would leave the rounding of v0 = 0.04, a thousandth of v1.
    assert float(jax.jit(cycle)(jnp.int32(1000))) == pytest.approx(4e-6, rel=1e-7)


def test_values_of_schedules_may_be_tracers() -> None:
    def values(x: Any) -> Any:
        return jnp.stack(
            [
                exponential_decay(x, 10, 0.25)(5),
                exponential_decay(1.0, 10, x, end_value=0.5)(20),
                piecewise_constant_schedule(x, {3: x})(4),
                piecewise_interpolate_schedule("linear", x, {10: x})(5),
                cosine_onecycle_schedule(10, x, div_factor=2.0)(3),
                cosine_restarts_schedule(x, 10, peak_decay=x)(10),
                wsd_schedule(x, 2, 3, 4)(3),
                inverse_sqrt_schedule(x, 4)(16),
            ]
        )

    found = jax.vmap(values)(jnp.array([0.5, 2.0]))
    np.testing.assert_allclose(
        found,
        [
            [0.25, 0.5, 0.25, 0.375, 0.5, 0.25, 0.5, 0.25],
            [1.0, 0.5, 4.0, 3.0, 2.0, 4.0, 2.0, 1.0],
        ],
        rtol=1e-6,
    )


def test_restarts_of_fractional_growth_are_at_whole_steps() -> None:
    restarts = cosine_restarts_schedule(1.0, 10, t_mult=1.5)
    # Cycles of 10, 15, 22.5, 33.75 steps begin at 0, 10, 25, 47.5 and 81.25.
    begins = [0, 10, 25, 48, 81]
    count = np.arange(100)
    values = np.asarray(restarts(jnp.asarray(count)))
    assert list(count[values == 1.0]) == begins
    assert [n for n in range(100) if float(restarts(n)) == 1.0] == begins
    np.testing.assert_allclose(values, [float(restarts(int(n))) for n in count], atol=1e-6)
