"""Ours inside optax and flax, optax's inside ours."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import flaxtrain as ft
from flaxtrain import optim

PARAMS = {"kernel": jnp.array([[1.0, 2.0], [3.0, -4.0]]), "bias": jnp.array([0.5, 0.0])}
GRADS = jax.tree.map(lambda p: 2 * p + 1, PARAMS)


def after(tx: Any, steps: int = 3) -> Any:
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_same(a: Any, b: Any) -> None:
    # Eager mode: the same operations up to a few roundings of parameters of size 1.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7), a, b)


EXPECTED = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(optim.clip_by_global_norm(1.0), optim.adamw(0.1)),
        optax.chain(optax.clip_by_global_norm(1.0), optim.adamw(0.1)),
        optim.chain(optax.clip_by_global_norm(1.0), optim.adamw(0.1)),
        optim.chain(optim.clip_by_global_norm(1.0), optax.adamw(0.1)),
        optim.named_chain(
            ("clip", optax.clip_by_global_norm(1.0)), ("adamw", optim.adamw(0.1))
        ),
        optax.named_chain(
            ("clip", optim.clip_by_global_norm(1.0)), ("adamw", optax.adamw(0.1))
        ),
    ],
    ids=["optax(ours, ours)", "optax(o, ours)", "ours(o, ours)", "ours(ours, o)", "nc", "onc"],
)
def test_chains_mix(tx: Any) -> None:
    assert_same(after(tx), after(EXPECTED))


def test_masked_and_partition_of_optax_accept_ours() -> None:
    mask = {"kernel": True, "bias": False}
    assert_same(
        after(optax.masked(optim.adam(0.1), mask)), after(optim.masked(optax.adam(0.1), mask))
    )
    labels = {"kernel": "a", "bias": "b"}
    ours = optax.partition({"a": optim.adam(0.1), "b": optim.sgd(0.1, 0.9)}, labels)
    theirs = optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.1, 0.9)}, labels)
    assert_same(after(ours), after(theirs))


def test_optax_finds_and_maps_our_states() -> None:
    state = optim.adamw(0.1, mask={"kernel": True, "bias": False}).init(PARAMS)
    assert optax.tree_utils.tree_get(state, "count") == 0
    doubled = optax.tree_map_params(optim.adam(0.1), lambda x: x + 2, state[:1] + state[2:])
    assert_same(doubled[0].mu, jax.tree.map(lambda p: jnp.full_like(p, 2.0), PARAMS))
    assert doubled[0].count == 0


def test_extra_arguments_reach_only_those_that_name_them() -> None:
    def update(updates: Any, state: Any, params: Any = None, *, value: Any) -> Any:
        return jax.tree.map(lambda u: u * value, updates), state

    by_value = optax.GradientTransformationExtraArgs(lambda params: (), update)
    tx = optim.chain(optax.scale(1.0), by_value, optim.sgd(1.0))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, value=3.0, other=1)
    assert_same(updates, jax.tree.map(lambda g: -3.0 * g, GRADS))


def test_flax_s_train_state_runs_with_ours() -> None:
    def final(tx: Any) -> Any:
        state = TrainState.create(apply_fn=lambda: None, params=PARAMS, tx=tx)
        step = jax.jit(lambda state: state.apply_gradients(grads=GRADS))
        for _ in range(3):
            state = step(state)
        assert state.step == 3
        return state.params

    assert_same(final(optim.adamw(0.1)), final(optax.adamw(0.1)))


def test_nnx_optimizer_runs_with_ours() -> None:
    def final(tx: Any) -> Any:
        model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for _ in range(2):
            grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 2))) ** 2))(model)
            optimizer.update(model, grads)
        return nnx.to_pure_dict(nnx.state(model))

    assert_same(final(optim.adam(0.1)), final(optax.adam(0.1)))


def schedule(count: Any) -> Any:
    return 0.1 / (1 + count)


FAMILIES = {
    "adafactor": {"learning_rate": schedule},
    "lion": {"learning_rate": schedule, "weight_decay": 0.1},
    "lamb": {"learning_rate": 0.1, "weight_decay": 0.1},
    "lars": {"learning_rate": schedule, "weight_decay": 0.1},
    "rmsprop": {"learning_rate": 0.1, "momentum": 0.9, "centered": True},
    "novograd": {"learning_rate": 0.1},
    "sm3": {"learning_rate": 0.1},
    "yogi": {"learning_rate": schedule},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_run_inside_optax_flax_and_nnx(name: str) -> None:
    ours, theirs = (getattr(module, name)(**FAMILIES[name]) for module in (optim, optax))
    clip = optax.clip_by_global_norm(1.0)
    assert_same(after(optax.chain(clip, ours)), after(optax.chain(clip, theirs)))

    def trained(tx: Any) -> Any:
        state = TrainState.create(apply_fn=lambda: None, params=PARAMS, tx=tx)
        for _ in range(3):
            state = state.apply_gradients(grads=GRADS)
        return state.params

    assert_same(trained(ours), trained(theirs))

    def fitted(tx: Any) -> Any:
        model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 2))) ** 2))(model)
        optimizer.update(model, grads)
        return nnx.to_pure_dict(nnx.state(model))

    assert_same(fitted(ours), fitted(theirs))


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda m, tx: m.MultiSteps(tx, 3).gradient_transformation(),
        lambda m, tx: m.apply_if_finite(tx, 2),
        lambda m, tx: m.masked(m.chain(m.scale(0.5), tx), {"kernel": True, "bias": True}),
        lambda m, tx: m.partition(
            {"a": tx, "b": m.set_to_zero()}, {"kernel": "a", "bias": "b"}
        ),
        lambda m, tx: m.flatten(tx),
        lambda m, tx: m.conditionally_transform(tx, lambda step: step < 2),
    ],
    ids=["MultiSteps", "apply_if_finite", "masked", "partition", "flatten", "conditionally"],
)
def test_wrappers_of_either_library_take_optimizers_of_the_other(wrapped: Any) -> None:
    pairs = [(optim, optim), (optim, optax), (optax, optim), (optax, optax)]
    results = [after(wrapped(outer, inner.lamb(0.1))) for outer, inner in pairs]
    for result in results[:3]:
        assert_same(result, results[3])


def test_hyperparameters_are_injected_into_factories_of_either_library() -> None:
    pairs = [(optim, optim), (optim, optax), (optax, optim), (optax, optax)]
    results = [
        after(outer.inject_hyperparams(inner.adamw)(learning_rate=schedule))
        for outer, inner in pairs
    ]
    for result in results[:3]:
        assert_same(result, results[3])


def test_schedules_of_either_library_drive_the_other_s_optimizers() -> None:
    def cosine(module: Any) -> Any:
        return module.warmup_cosine_decay_schedule(0.0, 0.1, 1, 5)

    expected = after(optax.adamw(cosine(optax)))
    assert_same(after(optax.adamw(cosine(ft.schedules))), expected)
    assert_same(after(optim.adamw(cosine(optax))), expected)


def test_objects_of_optax_run_in_a_spec_and_in_the_trainer() -> None:
    import flax.linen as nn

    data = {"x": np.eye(4, dtype=np.float32), "label": np.arange(4) % 2}

    def final(tx: Any) -> Any:
        trainer = ft.Trainer(nn.Dense(2), ft.OptSpec(tx), verbose=False)
        trainer.fit(ft.data.batches(data, batch_size=4), steps=4)
        return trainer.state.params

    expected = final(optax.chain(optax.clip_by_global_norm(0.1), optax.lamb(schedule)))
    mixed = optax.chain(optax.clip_by_global_norm(0.1), optim.lamb(schedule))
    assert_same(final(mixed), expected)
    assert_same(
        final(optim.chain(optim.clip_by_global_norm(0.1), optax.lamb(schedule))), expected
    )
    several = [m.MultiSteps(m.adam(schedule), 2) for m in (optim, optax)]
    assert_same(final(several[0]), final(several[1].gradient_transformation()))
