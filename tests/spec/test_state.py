"""Which learning rate was applied: for what a spec builds, our own objects, foreign ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from flaxtrain import optim, schedules
from flaxtrain.params import Facts, param_facts
from flaxtrain.spec import OptSpec, applied_learning_rates, build, get_lr

SCHEDULE = schedules.linear_schedule(1.0, 0.0, 4)
PARAMS = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}


@pytest.fixture(scope="module")
def facts() -> Facts:
    import flax.linen as nn

    return param_facts(nn.Dense(1), jnp.ones((1, 2)))


def rates_seen(tx: Any, *, told: bool, steps: int = 3) -> list[dict[str, Any]]:
    """What is reported before the first and after each update."""
    init, update = tx
    state, seen = init(PARAMS), []
    for step in range(steps + 1):
        if step:
            _, state = jax.jit(update)(PARAMS, state, PARAMS)
        found = applied_learning_rates(state, tx if told else None)
        seen.append({k: None if v is None else float(v) for k, v in found.items()})
        assert all(v is None or v.dtype == jnp.float32 for v in found.values())
    return seen


def plain(count: Any) -> Any:
    return SCHEDULE(count)


@pytest.mark.parametrize(
    "spec",
    [
        OptSpec("sgd", SCHEDULE),
        OptSpec("adamw", SCHEDULE, clip_norm=1.0),
        OptSpec("adamw", plain),
        OptSpec(optim.adam(SCHEDULE)),
        OptSpec(optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(SCHEDULE))),
        OptSpec(optim.chain(optim.trace(0.9), optim.scale_by_learning_rate(SCHEDULE))),
        OptSpec(optim.named_chain(("sgd", optim.masked(optim.sgd(SCHEDULE), True)))),
    ],
    ids=lambda spec: repr(spec).partition(" at 0x")[0],
)
def test_what_a_spec_builds_tells_the_rate_of_the_last_update(
    spec: OptSpec, facts: Facts
) -> None:
    assert rates_seen(build(spec, facts), told=False) == [
        {"default": 0.0},
        {"default": 1.0},
        {"default": 0.75},
        {"default": 0.5},
    ]


@pytest.mark.parametrize(
    "tx",
    [
        optim.sgd(SCHEDULE),
        optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(SCHEDULE)),
    ],
    ids=repr,
)
def test_our_own_objects_tell_it_without_a_spec(tx: Any) -> None:
    seen = rates_seen(tx, told=True)
    assert seen[1:] == [{"default": 1.0}, {"default": 0.75}, {"default": 0.5}]


def test_a_constant_rate_is_known_from_the_object() -> None:
    assert rates_seen(optim.adam(0.25), told=True)[-1] == {"default": 0.25}


def test_several_rates_are_told_apart_by_name() -> None:
    tx = optim.chain(optim.sgd(0.5), optim.adam(0.25), optim.sgd(0.125))
    assert rates_seen(tx, told=True)[-1] == {"sgd_0": 0.5, "adam": 0.25, "sgd_1": 0.125}


def test_a_foreign_object_tells_it_through_its_hyperparams(facts: Facts) -> None:
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=optax.linear_schedule(1, 0, 4))
    for tx, told in ((injected, True), (optax.chain(optax.clip(1.0), injected), True)):
        assert rates_seen(tx, told=told)[1:] == [{"default": v} for v in (1.0, 0.75, 0.5)]
        built = build(OptSpec(tx), facts)
        assert rates_seen(built, told=False)[1:] == [{"default": v} for v in (1.0, 0.75, 0.5)]


def test_what_is_not_known_is_reported_as_unknown(facts: Facts) -> None:
    assert rates_seen(optax.sgd(0.1), told=True) == [{"default": None}] * 4
    assert (
        rates_seen(build(OptSpec(optax.sgd(0.1)), facts), told=False) == [{"default": None}] * 4
    )
    assert rates_seen(optim.sgd(SCHEDULE), told=False) == [{"default": None}] * 4
    assert rates_seen(optim.scale(0.1), told=True) == [{"default": None}] * 4


def test_a_scheduled_rate_without_a_count_is_unknown() -> None:
    assert applied_learning_rates((), optim.sgd(SCHEDULE)) == {"default": None}


def after(tx: Any, steps: int = 3) -> Any:
    """The state after some jitted updates."""
    init, update = tx
    state = init(PARAMS)
    for _ in range(steps):
        _, state = jax.jit(update)(PARAMS, state, PARAMS)
    return state


LABELS = {"kernel": "a", "bias": "b"}
INJECTED = optim.inject_hyperparams(optim.adam)(learning_rate=SCHEDULE)


RATES: list[tuple[Any, Any]] = [
    (optim.adam(0.25), 0.25),
    (optim.adam(SCHEDULE), 0.5),
    (optim.lion(SCHEDULE), 0.5),
    (optim.sm3(SCHEDULE), 0.5),
    (optim.adafactor(SCHEDULE), 0.5),
    (optim.chain(optim.clip(1.0), optim.adamw(SCHEDULE)), 0.5),
    (optim.named_chain(("c", optim.clip(1.0)), ("a", optim.adamw(SCHEDULE))), 0.5),
    (optim.chain(optim.scale_by_adam(), optim.scale_by_learning_rate(SCHEDULE)), 0.5),
    (
        optim.chain(
            optim.scale_by_adam(), optim.scale_by_schedule(SCHEDULE), optim.scale(-0.5)
        ),
        0.25,
    ),
    (optim.chain(optim.scale_by_adam(), optim.scale(learning_rate=-0.125)), 0.125),
    (INJECTED, 0.5),
    (optim.chain(optim.clip(1.0), optim.chain(INJECTED)), 0.5),
    (optim.masked(optim.scale_by_learning_rate(SCHEDULE), True), 0.5),
    (optim.MultiSteps(optim.adam(SCHEDULE), 2), 1.0),
    (optim.MultiSteps(INJECTED, 2), 1.0),
    (optim.apply_if_finite(optim.sgd(SCHEDULE), 3), 0.5),
    (
        optim.selective_transform(
            optim.sgd(SCHEDULE), freeze_mask={"kernel": True, "bias": False}
        ),
        0.5,
    ),
    (optim.flatten(optim.adam(SCHEDULE)), 0.5),
    (optim.partition({"a": optim.sgd(1.0), "b": INJECTED}, LABELS), {"a": 1.0, "b": 0.5}),
    (
        optim.MultiSteps(
            optim.partition({"a": optim.sgd(1.0), "b": optim.adam(SCHEDULE)}, LABELS), 2
        ),
        {"a": 1.0, "b": 1.0},
    ),
    (optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(SCHEDULE)), 0.5),
    (optim.chain(optim.clip(1.0), optax.inject_hyperparams(optax.sgd)(SCHEDULE)), 0.5),
    (optim.chain(optax.clip(1.0), optim.adam(SCHEDULE)), 0.5),
    (optax.adam(0.1), None),
    (optim.clip(1.0), None),
    (optim.chain(optim.zero_nans(), optim.scale(0.5)), None),
]


@pytest.mark.parametrize(("tx", "rate"), RATES, ids=lambda value: repr(value)[:60])
def test_get_lr_finds_the_rate_that_was_applied_last(tx: Any, rate: Any) -> None:
    if isinstance(tx, optim.MultiSteps) or rate is None or isinstance(rate, dict):
        found = get_lr(after(tx), tx)
    else:
        found = jax.jit(lambda state: get_lr(state, tx))(after(tx))
        assert found.dtype == jnp.float32
    assert jax.tree.map(float, found) == rate


@pytest.mark.parametrize(("tx", "rate"), RATES, ids=lambda value: repr(value)[:60])
def test_a_spec_around_the_object_records_the_same_rate(
    tx: Any, rate: Any, facts: Facts
) -> None:
    built = build(OptSpec(tx), facts)
    state = after(built)
    # What init could not know is not in the state: its tree never changes.
    assert jax.tree.structure(state) == jax.tree.structure(built.init(PARAMS))
    found = {} if rate is None else rate if isinstance(rate, dict) else {"default": rate}
    assert jax.tree.map(float, state.learning_rates) == found


def test_get_lr_reads_training_states_of_either_kind(facts: Facts) -> None:
    from flax.training import train_state

    import flaxtrain as ft

    tx = optim.chain(optim.clip(1.0), optim.adam(SCHEDULE))
    for kind in (ft.TrainState, train_state.TrainState):
        state = kind.create(apply_fn=lambda: None, params=PARAMS, tx=tx)
        for _ in range(3):
            state = state.apply_gradients(grads=PARAMS)
        assert ft.get_lr(state) == 0.5
    spec = build(OptSpec("adamw", SCHEDULE), facts)
    assert ft.get_lr(after(spec)) == 0.5
    warming = optim.chain(optim.scale_by_schedule(lambda count: 0.1 * count), optim.scale(-1.0))
    assert ft.get_lr(after(warming, 1), warming) == 0.0
    assert ft.get_lr(after(optim.adam(SCHEDULE))) is None  # nobody said which optimizer
    assert ft.get_lr(after(optax.inject_hyperparams(optax.adam)(0.25))) == 0.25
