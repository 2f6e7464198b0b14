"""inject_hyperparams: hyperparameters in the state."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError, UnknownNameError
from flaxtrain.optim.injectable import is_static_integer, may_be_scheduled
from tests import gradients
from tests.runs import counted, deviation, differing_leaves, layout, nodes, walk

PARAMS = {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.array([1.0])}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def recorded(steps: int, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    return (
        gradients.cast(gradients.params(complex_leaf=False), dtype),
        gradients.cast(gradients.gradients(steps, complex_leaf=False), dtype),
    )


def falling(count: Any) -> Any:
    return 0.1 / (1.0 + count)


def kernels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: o.inject_hyperparams(o.adam)(0.01),
        lambda o: o.inject_hyperparams(o.adamw)(falling, b1=0.8, weight_decay=1e-3),
        lambda o: o.inject_hyperparams(o.sgd, static_args="nesterov")(falling, momentum=0.9),
        lambda o: o.inject_hyperparams(o.adam)(falling, b2=lambda count: 1 - 0.1 / (2 + count)),
    ],
    ids=["adam", "adamw", "sgd", "b2"],
)
def test_every_bit_is_optax_s(make: Any) -> None:
    params, grads = recorded(20)
    ours, judge = (walk(make(lib), params, grads, jit=True) for lib in (optim, optax))
    assert nodes(ours[1]) == nodes(judge[1]) and differing_leaves(ours, judge) == []
    assert nodes(make(optim).init(params)) == nodes(make(optax).init(params))


def test_a_mask_function_is_no_schedule() -> None:
    def decayed(lib: Any, **arguments: Any) -> list[float]:
        make = lib.inject_hyperparams(lib.adamw, **arguments)
        tx = make(0.5, weight_decay=0.1, mask=kernels)
        updates, _ = tx.update(ZEROS, tx.init(PARAMS), PARAMS)
        return [float(updates["kernel"][0, 1]), float(updates["bias"][0])]

    assert decayed(optax) == [0.0, 0.0], "optax decays nothing, in silence"
    expected = decayed(optax, static_args="mask")
    assert decayed(optim) == decayed(optim, static_args=("mask",)) == expected
    # Ours inside, theirs outside and the other way round: the parameters' annotations decide.
    theirs = optim.inject_hyperparams(optax.adamw)(0.5, weight_decay=0.1, mask=kernels)
    assert theirs.update(ZEROS, theirs.init(PARAMS), PARAMS)[0]["bias"] == 0.0
    assert list(theirs.init(PARAMS).hyperparams_states) == []


def make_annotated(rate: float, seen: Any = None, choose: Any = len, mask: Any = None) -> Any:
    return optim.scale(rate)


@pytest.mark.parametrize(
    ("factory", "name", "expected"),
    [
        (optim.adamw, "learning_rate", True),
        (optim.adamw, "weight_decay", True),
        (optim.adamw, "b1", True),
        (optim.adamw, "mask", False),
        (optax.adamw, "learning_rate", True),
        (optax.adamw, "b1", True),
        (optax.adamw, "mask", False),
        (optim.scale_by_schedule, "step_size_fn", False),
        (optim.conditionally_mask, "should_transform_fn", False),
        (make_annotated, "rate", True),
        (make_annotated, "seen", True),
        (make_annotated, "mask", False),
        (lambda rate, decay_mask=None, label_fn=None: optim.scale(rate), "rate", True),
        (lambda rate, decay_mask=None, label_fn=None: optim.scale(rate), "decay_mask", False),
        (lambda rate, decay_mask=None, label_fn=None: optim.scale(rate), "label_fn", False),
    ],
)
def test_annotation_default_and_name_say_what_may_be_scheduled(
    factory: Any, name: str, expected: bool
) -> None:
    assert may_be_scheduled(factory, name, falling) is expected


def test_low_precision_parameters_keep_exact_hyperparameters() -> None:
    params, grads = recorded(20, jnp.bfloat16)
    judge = optax.inject_hyperparams(optax.adam)(0.01).init(params)
    assert judge.hyperparams["b2"] == 1.0, "optax rounds 0.999 to 1"
    tx = optim.inject_hyperparams(optim.adam)(0.01)
    state = tx.init(params)
    assert {leaf.dtype.name for leaf in state.hyperparams.values()} == {"float32"}
    assert state.hyperparams["b2"] == jnp.float32(0.999)
    ours = walk(tx, params, grads, jit=True)
    plain = walk(optim.adam(0.01), params, grads, jit=True)
    assert layout(ours[1]) == layout(state)
    assert layout(ours[1].inner_state) == layout(plain[1]) and layout(ours[2]) == layout(
        plain[2]
    )
    # Arithmetic in float32 against bfloat16, whose last place is 2^-8, over 20 updates.
    assert deviation(ours[0], plain[0]) < 0.05


def test_a_dtype_for_hyperparameters_can_be_given_and_b2_must_not_become_1() -> None:
    make = optim.inject_hyperparams(optim.adam, hyperparam_dtype=jnp.bfloat16)
    state = make(0.01, b2=0.99).init(PARAMS)
    assert {leaf.dtype.name for leaf in state.hyperparams.values()} == {"bfloat16"}
    judge = optax.inject_hyperparams(optax.adam, hyperparam_dtype=jnp.bfloat16)
    assert nodes(state) == nodes(judge(0.01, b2=0.99).init(PARAMS))
    with pytest.raises(ArgumentError, match="b2=1"):
        make(0.01).init(PARAMS)


def test_float64_parameters_have_float64_hyperparameters_and_complex_ones_real() -> None:
    wave = optim.inject_hyperparams(optim.adam)(0.1).init(jnp.array([1j]))
    assert wave.hyperparams["learning_rate"].dtype == jnp.float32
    with jax.enable_x64(True):
        state = optim.inject_hyperparams(optim.adam)(0.1).init(jnp.ones(1, jnp.float64))
        assert state.hyperparams["b2"].dtype == jnp.float64


def test_an_edited_value_is_used_without_recompiling() -> None:
    tx = optim.inject_hyperparams(optim.sgd)(learning_rate=0.5, momentum=falling)
    (update, traces), state = counted(tx.update), tx.init(PARAMS)
    for rate in (0.5, 0.25, 0.125):
        state.hyperparams["learning_rate"] = jnp.float32(rate)
        _, state = update(ZEROS, state, PARAMS)
        assert state.hyperparams["learning_rate"] == rate
    assert len(traces) == 1
    state.hyperparams["learning_rate"] = 1.0
    _, state = update(ZEROS, state, PARAMS)
    assert state.hyperparams["learning_rate"].dtype == jnp.float32


def test_the_state_shows_what_was_applied_last() -> None:
    tx = optim.inject_hyperparams(optim.sgd)(falling)
    state = tx.init(PARAMS)
    for count in range(3):
        updates, state = tx.update({"kernel": 1.0, "bias": 1.0}, state)
        assert updates["bias"] == -state.hyperparams["learning_rate"]
        np.testing.assert_allclose(updates["bias"], -0.1 / (1 + count), rtol=1e-6)


def test_an_integer_assigned_to_a_float_is_a_float() -> None:
    def step(state: Any, _: None) -> Any:
        updates, state = tx.update(1.0, state, 0.0)
        return state, updates

    tx = optim.inject_hyperparams(optim.sgd)(0.5, momentum=falling)
    for value in (1, jnp.int32(1), np.int64(1)):
        state = tx.init(0.0)
        before = layout(state.hyperparams)
        state.hyperparams.update(learning_rate=value, momentum=value)
        state = tx.update(1.0, state, 0.0)[1]
        assert layout(state.hyperparams) == before and state.hyperparams["learning_rate"] == 1
        np.testing.assert_allclose(state.hyperparams["momentum"], 0.1, rtol=1e-6)
    jax.lax.scan(step, state, length=3)
    # An integer from the start stays one, as in optax, until a float is assigned.
    whole = optim.inject_hyperparams(optim.sgd)(1)
    state = whole.init(0.0)
    assert nodes(state) == nodes(optax.inject_hyperparams(optax.sgd)(1).init(0.0))
    state.hyperparams["learning_rate"] = 0.5
    assert whole.update(1.0, state)[0] == -0.5


def test_a_misspelt_hyperparameter_in_the_state_is_refused() -> None:
    tx = optim.inject_hyperparams(optim.sgd)(0.5)
    state = tx.init(0.0)
    state.hyperparams["learning_rat"] = 0.1
    with pytest.raises(UnknownNameError, match="did you mean 'learning_rate'"):
        tx.update(1.0, state)
    # What is missing is what the factory was given.
    updates, after = tx.update(1.0, state._replace(hyperparams={}))
    assert updates == -0.5 and after.hyperparams["learning_rate"] == 0.5


@pytest.mark.parametrize("make", [optim.adafactor, optim.shampoo, optax.adafactor])
def test_sizes_that_are_python_integers_stay_static(make: Any) -> None:
    tx, plain = optim.inject_hyperparams(make)(0.1), make(0.1)
    state = tx.init(PARAMS)
    assert {"block_size", "min_dim_size_to_factor"}.isdisjoint(state.hyperparams)
    updates, _ = jax.jit(tx.update)(PARAMS, state, PARAMS)
    expected, _ = jax.jit(plain.update)(PARAMS, plain.init(PARAMS), PARAMS)
    assert jax.tree.structure(updates) == jax.tree.structure(expected)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    ("factory", "name", "value", "expected"),
    [
        (optim.shampoo, "block_size", 8, True),
        (optim.shampoo, "block_size", jnp.int32(8), False),
        (optim.shampoo, "learning_rate", 1, False),
        (optim.add_noise, "seed", 1, True),
        (optim.apply_every, "k", 2, False),
        (functools.partial(optim.shampoo, 0.1), "block_size", 8, True),
        (functools.partial(optim.shampoo, 0.1), "learning_rate", 1, False),
        (lambda rate, size: optim.scale(rate), "size", 8, False),
    ],
)
def test_the_annotation_says_which_integers_stay_static(
    factory: Any, name: str, value: Any, expected: bool
) -> None:
    assert is_static_integer(factory, name, value) is expected


@pytest.mark.parametrize("name", ["adagrad", "rmsprop", "rprop", "yogi"])
def test_a_state_with_scalar_parameters_can_be_donated(name: str) -> None:
    params = {"a": jnp.float32(1.0), "b": jnp.float32(2.0)}
    for make in (getattr(optim, name), getattr(optax, name)):
        tx = optim.inject_hyperparams(make)(0.1)
        state = tx.init(params)
        update = jax.jit(tx.update, donate_argnums=1)
        for _ in range(2):
            _, state = update(jax.tree.map(jnp.ones_like, params), state, params)
        assert state.count == 2


@pytest.mark.parametrize(
    ("dtype", "wider"), [(jnp.bfloat16, jnp.float32), (jnp.float16, jnp.bfloat16)]
)
def test_a_wider_dtype_for_hyperparameters_does_not_widen_slots_or_updates(
    dtype: Any, wider: Any
) -> None:
    params, grads = recorded(3, dtype)
    tx = optim.inject_hyperparams(optim.adam, hyperparam_dtype=wider)(0.01, b2=0.99)
    state = tx.init(params)
    assert state.hyperparams["b2"].dtype == wider
    moved, after, updates = walk(tx, params, grads, jit=True)
    plain = walk(optim.adam(0.01, b2=0.99), params, grads, jit=True)
    assert layout(after) == layout(state) and layout(after.inner_state) == layout(plain[1])
    assert layout(moved) == layout(plain[0]) and layout(updates) == layout(plain[2])


class HalvesWhenTold:
    """A schedule whose state follows an extra argument."""

    def init(self) -> Any:
        return jnp.float32(1.0)

    def update(self, state: Any, *, worse: Any, **extra_args: Any) -> Any:
        return jnp.where(worse, state / 2, state)

    def __call__(self, state: Any, **extra_args: Any) -> Any:
        return state


def test_a_stateful_schedule_sees_extra_arguments() -> None:
    assert isinstance(HalvesWhenTold(), optim.StatefulSchedule)
    assert isinstance(optim.WrappedSchedule(falling), optim.StatefulSchedule)
    for lib in (optim, optax):
        tx = lib.inject_hyperparams(lib.sgd)(HalvesWhenTold())
        update, state, rates = jax.jit(tx.update), tx.init(0.0), []
        for worse in (False, True, False):
            updates, state = update(jnp.float32(1.0), state, worse=worse)
            rates.append(float(updates))
        assert rates == [-1.0, -1.0, -0.5]


def test_factories_with_open_arguments_work() -> None:
    def make(*parts: Any, rate: float, **more: float) -> Any:
        return optim.chain(*parts, optim.scale(rate), *map(optim.scale, more.values()))

    tx = optim.inject_hyperparams(make)(optim.scale(2.0), rate=3.0, extra=falling)
    state = tx.init(0.0)
    assert sorted(state.hyperparams) == ["extra", "rate"]
    assert list(state.hyperparams_states) == ["extra"]
    np.testing.assert_allclose(tx.update(1.0, state)[0], 0.6, rtol=1e-6)


def test_wrong_arguments_are_answered_at_the_call(unchecked_types: None) -> None:
    make = optim.inject_hyperparams(optim.adam)
    with pytest.raises(ArgumentTypeError, match="did you mean 'learning_rate'"):
        make(learning_rat=0.1)
    with pytest.raises(ArgumentError, match="b1=2"):
        make(0.1, b1=2.0)
    with pytest.raises(UnknownNameError, match="did you mean 'mask'"):
        optim.inject_hyperparams(optim.adamw, static_args="masks")
    with pytest.raises(ArgumentTypeError, match="static_args=3"):
        optim.inject_hyperparams(optim.adamw, static_args=3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="is not callable"):
        optim.inject_hyperparams(optim.sgd(0.1))  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="hyperparam_dtype='float23'"):
        optim.inject_hyperparams(optim.adam, hyperparam_dtype="float23")
    with pytest.raises(ArgumentTypeError, match="is not callable"):
        optim.WrappedSchedule(0.1)  # type: ignore[arg-type]


def test_it_prints_and_compares() -> None:
    tx = optim.inject_hyperparams(optim.adam)(0.1, b2=0.99)
    assert repr(tx) == "inject_hyperparams(adam)(learning_rate=0.1, b2=0.99)"
    assert eval(repr(tx), dict(vars(optim))) == tx != optim.adam(0.1, b2=0.99)
    static = optim.inject_hyperparams(optim.adamw, "mask", jnp.float32)(0.1)
    assert eval(repr(static), dict(vars(optim))) == static
    foreign = optim.inject_hyperparams(functools.partial(optax.sgd))(0.1)
    assert foreign != optim.inject_hyperparams(functools.partial(optax.sgd))(0.1)


def test_the_former_name_warns() -> None:
    with pytest.warns(DeprecationWarning):
        tx = optim.inject_stateful_hyperparams(optim.sgd)(0.1)
    assert tx == optim.inject_hyperparams(optim.sgd)(0.1)
