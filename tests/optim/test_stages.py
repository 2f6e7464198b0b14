"""Stages over lanes: parameters with other numbers side by side, over one dict of slots."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.optim import NAMED
from flaxtrain.optim.sgd import Trace
from flaxtrain.optim.stages import DECAY, RATE, Lane, init_stages, slot_names, update_stages
from flaxtrain.optim.transform import GradientTransformation

A, B, C = ("a", "kernel"), ("b", "kernel"), ("c",)
PARAMS = {A: jnp.array([1.0, 2.0]), B: jnp.array([3.0]), C: jnp.array([4.0])}
GRADS = {A: jnp.array([0.5, -1.0]), B: jnp.array([2.0]), C: jnp.array([1.0])}


def lane(stages: Any, paths: tuple[Any, ...], rate: float = 0.1, t: int = 1) -> Lane:
    return Lane(
        stages,
        jnp.int32(t),
        {path: GRADS[path] for path in paths},
        {path: PARAMS[path] for path in paths},
        decayed=lambda updates, sign: {p: u + sign * PARAMS[p] for p, u in updates.items()},
        rated=lambda updates: {p: -rate * u for p, u in updates.items()},
    )


def test_lanes_of_equal_numbers_give_what_one_lane_gives() -> None:
    stages = NAMED["adamw"].stages(0.1)
    slots = init_stages(stages, PARAMS)
    (whole,), after = update_stages([lane(stages, (A, B, C))], slots)
    parts, also = update_stages([lane(stages, (A,)), lane(stages, (B, C))], slots)
    jax.tree.map(np.testing.assert_array_equal, {**parts[0], **parts[1]}, whole)
    jax.tree.map(np.testing.assert_array_equal, also, after)


def test_each_lane_has_its_own_numbers_and_others_keep_their_slots() -> None:
    slow, fast = (Trace(0.5), DECAY, RATE), (Trace(0.9), DECAY, RATE)
    slots = {"trace": {path: jnp.ones_like(leaf) for path, leaf in PARAMS.items()}}
    (a, b), after = update_stages([lane(slow, (A,)), lane(fast, (B,), rate=1.0)], slots)
    np.testing.assert_allclose(after["trace"][A], 0.5 + GRADS[A], rtol=1e-6)
    np.testing.assert_allclose(after["trace"][B], 0.9 + GRADS[B], rtol=1e-6)
    assert after["trace"][C] is slots["trace"][C]
    np.testing.assert_allclose(a[A], -0.1 * (0.5 + GRADS[A] + PARAMS[A]), rtol=1e-6)
    np.testing.assert_allclose(b[B], -(0.9 + GRADS[B] + PARAMS[B]), rtol=1e-6)


def test_a_decay_behind_the_rate_is_subtracted() -> None:
    before, _ = update_stages([lane((DECAY, RATE), (B,))], {})
    behind, _ = update_stages([lane((RATE, DECAY), (B,))], {})
    np.testing.assert_allclose(before[0][B], [-0.1 * 5.0], rtol=1e-6)
    np.testing.assert_allclose(behind[0][B], [-0.1 * 2.0 - 3.0], rtol=1e-6)


def test_a_transformation_sees_the_parameters_of_all_lanes_as_nested_dicts() -> None:
    seen: list[Any] = []

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.append((jax.tree.structure(updates), jax.tree.structure(params), extra))
        return jax.tree.map(lambda leaf: 2 * leaf, updates), state + 1

    tx = GradientTransformation(lambda params: jnp.int32(0), update, name="whole")
    slots = init_stages((tx, RATE), {"a": {"kernel": PARAMS[A]}, "c": PARAMS[C]})
    lanes = [lane((tx, RATE), (A,)), lane((tx, RATE), (C,), rate=1.0)]
    (a, c), after = update_stages(lanes, slots, value=3.0)
    wanted = jax.tree.structure({"a": {"kernel": 0}, "c": 0})
    assert seen == [(wanted, wanted, {"value": 3.0})]
    assert after == {"whole": 1}
    np.testing.assert_allclose(a[A], -0.2 * GRADS[A], rtol=1e-6)
    np.testing.assert_allclose(c[C], -2.0 * GRADS[C], rtol=1e-6)


def test_without_lanes_nothing_happens() -> None:
    assert update_stages([], {"trace": {}}) == ([], {"trace": {}})


def test_stages_with_a_slot_of_one_name_have_it_under_the_name_of_the_rule() -> None:
    assert slot_names((Trace(0.9), RATE)) == [("trace",), ()]
    for name, entry in NAMED.items():
        names = [n for stage in slot_names(entry.stages(0.1)) for n in stage]
        assert len(set(names)) == len(names), name
