"""Clipping of outliers among norms, against a float64 oracle; its memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.optim import apply_updates
from flaxtrain.params import facts_from
from flaxtrain.spec import ClipNorm, ClipZScore, Group, OptSpec, assign, build, carried
from flaxtrain.spec.build import transformation
from flaxtrain.spec.freeze import Freeze
from tests.runs import counted

PARAMS = {"a": {"w": jnp.ones((2, 3))}, "b": {"w": jnp.ones((2, 3))}}
FACTS = facts_from(lambda extra: {"params": PARAMS})


def norms_with_spikes(steps: int) -> np.ndarray:
    """Slowly falling norms with noise; every 40th is far out, by different amounts."""
    rng = np.random.default_rng(0)
    norms = (1 + np.exp(-np.arange(steps) / 100)) * (1 + 0.1 * rng.normal(size=steps))
    norms[30::40] *= np.exp(rng.uniform(0.2, 6.0, size=norms[30::40].shape))
    return norms


def oracle(norms: np.ndarray, z: float, decay: float, warmup: int) -> tuple[np.ndarray, Any]:
    """The paper's procedure, norm by norm: a list for the warm-up, then moving averages."""
    seen: list[float] = []
    mean = variance = 0.0
    found = []
    for norm in norms:
        if len(seen) < warmup:
            seen.append(float(norm))
            mean, variance = float(np.mean(seen)), float(np.var(seen))
            found.append(norm)
            continue
        sigma = np.sqrt(variance)
        score = (norm - mean) / sigma
        n = mean + z**2 / score * sigma if score > z else norm
        mean = decay * mean + (1 - decay) * n
        variance = decay * variance + (1 - decay) * (n - mean) ** 2
        found.append(n)
    return np.array(found), (mean, variance)


def run(clip: Any, norms: np.ndarray, dtype: Any) -> tuple[np.ndarray, Any]:
    """The norms after clipping, through `build`, compiled once."""
    tx = build(OptSpec("sgd", 1.0, clip=clip), FACTS)
    direction = np.random.default_rng(1).normal(size=(2, 2, 3))
    unit = direction / np.linalg.norm(direction)
    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype), PARAMS)

    def step(state: Any, norm: Any) -> Any:
        grads = {"a": {"w": norm * unit[0]}, "b": {"w": norm * unit[1]}}
        grads = jax.tree.map(lambda leaf: leaf.astype(dtype), grads)
        updates, state = tx.update(grads, state, zeros)
        return state, jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(updates)))

    state, found = jax.jit(lambda s, n: jax.lax.scan(step, s, n))(
        tx.init(zeros), jnp.asarray(norms, dtype)
    )
    return np.asarray(found), state.clip_memory["default"]["clip_z"]


@pytest.mark.parametrize(("z", "decay", "warmup"), [(2.5, 0.97, 25), (1.5, 0.9, 5)])
def test_500_steps_with_spikes_equal_the_oracle(z: float, decay: float, warmup: int) -> None:
    norms = norms_with_spikes(500)
    wanted, (mean, variance) = oracle(norms, z, decay, warmup)
    with jax.enable_x64(True):
        found, memory = run(ClipZScore(z, decay, warmup), norms, np.float64)
        assert memory.packed.dtype == np.float64
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
        np.testing.assert_allclose(
            [memory["mean"], memory["variance"]], [mean, variance], rtol=1e-11
        )
        assert memory["seen"] == warmup
    spikes = wanted < norms
    assert 10 <= np.sum(spikes) <= 100 and not np.any(spikes[:warmup])
    assert np.max(norms / wanted) > 50  # and some of them are large


def test_in_float32_the_memory_is_as_close_as_float32_allows() -> None:
    norms = norms_with_spikes(500)
    wanted, (mean, variance) = oracle(norms, 2.5, 0.97, 25)
    found, memory = run(ClipZScore(), norms, np.float32)
    assert memory.packed.dtype == np.float32
    # A spike is n' = mean + c variance / (n - mean); the variance is a sum of small squares.
    np.testing.assert_allclose(found, wanted, rtol=2e-5)
    np.testing.assert_allclose(
        [memory["mean"], memory["variance"]], [mean, variance], rtol=1e-3
    )


def test_the_further_out_the_less_is_left() -> None:
    clip = ClipZScore(z=2.0, warmup=2)
    memory = clip.memory()
    for norm in (1.0, 3.0):  # mean 2, standard deviation 1
        _, memory = clip.factor(jnp.float32(norm), jnp.float32(2.0), memory)
    left = {
        norm: norm * float(clip.factor(jnp.float32(norm), jnp.float32(2.0), memory)[0])
        for norm in (0.0, 2.0, 4.0, 4.01, 6.0, 102.0)
    }
    assert left == pytest.approx(
        {0.0: 0, 2.0: 2, 4.0: 4, 4.01: 3.99005, 6.0: 3, 102.0: 2.04}, rel=1e-5
    )


def test_equal_norms_have_no_outliers_and_no_nan() -> None:
    norms = np.full(60, 2.0)
    found, memory = run(ClipZScore(warmup=5), norms, np.float32)
    np.testing.assert_allclose(found, norms, rtol=1e-6)
    found, _ = run(ClipZScore(warmup=5), np.concatenate([norms, [9.0]]), np.float32)
    assert found[-1] == pytest.approx(2.0, rel=1e-3)  # no variance: down to the mean
    zero, memory = run(ClipZScore(warmup=5), np.zeros(20), np.float32)
    assert not np.any(zero) and not np.any(memory.packed[1:])


def test_it_remembers_what_comes_out_of_the_clips_before_it() -> None:
    norms = norms_with_spikes(100)
    found, memory = run([ClipNorm(2.2), ClipZScore(warmup=5)], norms, np.float32)
    wanted, (mean, _) = oracle(np.minimum(norms, 2.2), 2.5, 0.97, 5)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    np.testing.assert_allclose(memory["mean"], mean, rtol=1e-5)


def test_only_this_kind_adds_leaves_to_the_state() -> None:
    bare = build(OptSpec("sgd", 0.1, clip_norm=1.0), FACTS).init(PARAMS)
    assert bare.clip_memory == {}
    groups = [Group("a", clip=ClipZScore()), Group("b", clip_norm=2.0)]
    state = build(OptSpec("sgd", 0.1, clip=ClipZScore(), groups=groups), FACTS).init(PARAMS)
    assert {name: list(own) for name, own in state.clip_memory.items()} == {
        "a": ["clip_z"],
        "default": ["clip_z"],
    }
    assert len(jax.tree.leaves(state.clip_memory)) == 2


def test_a_group_has_statistics_of_its_own() -> None:
    group = Group("a", clip=ClipZScore(warmup=2))
    tx = build(OptSpec("sgd", 1.0, groups=[group]), FACTS)
    state = tx.init(PARAMS)
    update, traces = counted(tx.update)
    for size in (1.0, 3.0, 100.0):
        grads = jax.tree.map(lambda leaf, s=size: s * leaf / np.sqrt(6), PARAMS)
        updates, state = update(grads, state, PARAMS)
    assert len(traces) == 1
    assert float(jnp.linalg.norm(updates["b"]["w"])) == pytest.approx(100.0, rel=1e-5)
    # Mean 2, standard deviation 1: the score is 98.
    left = 2 + 2.5**2 / 98
    assert float(jnp.linalg.norm(updates["a"]["w"])) == pytest.approx(left, rel=1e-5)


def test_the_memory_goes_on_when_parameters_thaw() -> None:
    spec = OptSpec("sgd", 0.1, clip=ClipZScore(warmup=3), freeze=Freeze("a", until=2))
    table = assign(spec, FACTS)
    before, after = (transformation(table, phase) for phase in table.phases)
    part = {"b": PARAMS["b"]}
    state = before.init(part)
    for _ in range(2):
        _, state = jax.jit(before.update)(part, state, part)
    fresh = after.init(PARAMS)
    thawed = carried(fresh, state)
    assert jax.tree.structure(thawed) == jax.tree.structure(fresh)
    memory = thawed.clip_memory["default"]["clip_z"]
    np.testing.assert_allclose(memory.packed, [2.0, np.sqrt(6), 0.0], rtol=1e-6)


def test_a_batch_of_states_is_clipped_state_by_state() -> None:
    tx = build(OptSpec("sgd", 1.0, clip=ClipZScore(warmup=2)), FACTS)
    scales = jnp.array([1.0, 2.0])

    def two(scale: Any) -> Any:
        state, params = tx.init(PARAMS), PARAMS
        for size in (1.0, 3.0, 50.0):
            grads = jax.tree.map(lambda leaf, s=size: scale * s * jnp.ones_like(leaf), PARAMS)
            updates, state = tx.update(grads, state, params)
            params = apply_updates(params, updates)
        return updates, state.clip_memory

    many = jax.jit(jax.vmap(two))(scales)
    for index, scale in enumerate((1.0, 2.0)):
        one = two(scale)
        jax.tree.map(
            lambda a, b, i=index: np.testing.assert_allclose(a[i], b, rtol=1e-5), many, one
        )
