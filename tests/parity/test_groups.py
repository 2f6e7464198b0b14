"""A run in groups against `optax.multi_transform`, partitioned by hand, over 200 updates."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain.params import Facts
from flaxtrain.schedules import warmup_cosine_decay_schedule
from flaxtrain.spec import Group, OptSpec, build
from flaxtrain.tree import flatten
from tests.params.models import facts_of_example
from tests.runs import FLOAT32_BAR, deviation, run

STEPS = 200

OURS = warmup_cosine_decay_schedule(0.0, 1e-2, 20, STEPS, 1e-4)
THEIRS = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 20, STEPS, 1e-4)
FALL = optax.linear_schedule(5e-2, 1e-3, 150)


@functools.cache
def facts_of(name: str) -> Facts:
    return facts_of_example(name)


def draw(facts: Facts, steps: int = 0) -> Any:
    """Parameters, or recorded gradients whose size changes from step to step."""
    rng = np.random.default_rng(len(facts) + steps)
    sizes = 0.1 * 2.0 ** rng.integers(-3, 4, steps)

    def one(fact: Any) -> Any:
        noise = rng.normal(size=((steps,) if steps else ()) + fact.shape)
        scale = sizes.reshape((-1,) + (1,) * len(fact.shape)) if steps else 0.1
        return jnp.asarray(scale * noise, jnp.float32)

    return facts.tree(one)


def grouped(third: str) -> OptSpec:
    """AdamW with four groups: another rate, no decay, other betas, and SGD with momentum."""
    return OptSpec(
        "adamw",
        OURS,
        weight_decay=0.1,
        groups=[
            Group("head", lr_mult=10.0, weight_decay=0.3, decay="all"),
            Group(
                "#norm_scale | #norm_bias",
                name="norms",
                optimizer="sgd",
                learning_rate=FALL,
                momentum=0.9,
            ),
            Group(third, name="third", b1=0.8, b2=0.95, learning_rate=3e-3, weight_decay=0.0),
        ],
    )


def by_hand(facts: Facts, third: str) -> Any:
    """The same, with labels and masks written as a user of Optax would."""

    def label(fact: Any) -> str:
        if fact.path[0] == "head":
            return "head"
        if fact.role in ("norm_scale", "norm_bias"):
            return "norms"
        in_third = fact.role == "bias" if third == "#bias" else fact.path[0] == third
        return "third" if in_third else "default"

    def kernels(params: Any) -> Any:
        roles = {fact.path: fact.role for fact in facts.params}
        return jax.tree_util.tree_map_with_path(
            lambda keys, _: roles[tuple(key.key for key in keys)] == "kernel", params
        )

    parts = {
        "head": optax.adamw(lambda count: 10.0 * THEIRS(count), weight_decay=0.3),
        "norms": optax.sgd(FALL, momentum=0.9),
        "third": optax.adamw(3e-3, b1=0.8, b2=0.95, weight_decay=0.0),
        "default": optax.adamw(THEIRS, weight_decay=0.1, mask=kernels),
    }
    return optax.multi_transform(parts, facts.tree(label))


@functools.cache
def reference(name: str, third: str) -> Any:
    facts = facts_of(name)
    params, _, updates = run(by_hand(facts, third), draw(facts), draw(facts, STEPS))
    return params, updates


@pytest.mark.parametrize(("name", "third"), [("ViT", "#bias"), ("ResNet", "block1")])
def test_a_grouped_run_equals_the_one_partitioned_by_hand(name: str, third: str) -> None:
    facts = facts_of(name)
    params = draw(facts)
    ours, state, updates = run(build(grouped(third), facts), params, draw(facts, STEPS))
    theirs, their_updates = reference(name, third)
    assert deviation(ours, theirs) <= FLOAT32_BAR
    assert deviation(updates, their_updates) <= FLOAT32_BAR
    assert state.count == STEPS
    # Every group has moved its parameters, so that nothing is compared with itself.
    for path, leaf in flatten(ours).items():
        assert np.any(np.asarray(leaf) != np.asarray(flatten(params)[path])), path


def test_without_its_groups_the_run_is_another_one() -> None:
    facts = facts_of("ViT")
    spec = grouped("#bias").replace(groups=())
    plain, _, _ = run(build(spec, facts), draw(facts), draw(facts, STEPS))
    theirs, _ = reference("ViT", "#bias")
    apart = {
        path[0]
        for path, leaf in flatten(plain).items()
        if deviation(leaf, flatten(theirs)[path]) > 1e-2
    }
    assert {"head", "ln", "block0"} <= apart
    assert deviation(plain["cls"], theirs["cls"]) <= FLOAT32_BAR
