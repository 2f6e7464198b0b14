"""Which learning rate was applied: for what a spec builds, our own objects, foreign ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from flaxtrain import optim, schedules
from flaxtrain.params import Facts, param_facts
from flaxtrain.spec import OptSpec, applied_learning_rates, build

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


@pytest.mark.parametrize(
    "spec",
    [
        OptSpec("sgd", SCHEDULE),
        OptSpec("adamw", SCHEDULE, clip_norm=1.0),
        OptSpec("adamw", lambda count: SCHEDULE(count)),
        OptSpec(optim.adam(SCHEDULE)),
        OptSpec(optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(SCHEDULE))),
        OptSpec(optim.chain(optim.trace(0.9), optim.scale_by_learning_rate(SCHEDULE))),
        OptSpec(optim.named_chain(("sgd", optim.masked(optim.sgd(SCHEDULE), True)))),
    ],
    ids=repr,
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
