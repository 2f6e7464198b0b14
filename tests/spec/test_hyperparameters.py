"""Every number of every named optimizer: constant, scheduled, or computed while it runs."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError
from flaxtrain.optim import NAMED, DecayRate
from flaxtrain.params import Facts, param_facts
from flaxtrain.schedules import constant_schedule, linear_schedule
from flaxtrain.spec import OptSpec, build
from flaxtrain.spec.hyperparameters import Hyperparameters, adjustable
from tests.runs import AS_IT_COMES
from tests.spec.small import draw, gradients

STEPS = 4

OFF: dict[str, dict[str, Any]] = {
    "adafactor": {"momentum": 0.9, "min_dim_size_to_factor": 2},
    "adan": {"difference_weight": 0.9},
    "optimistic_adam": {"optimism": 0.2},
    "rmsprop": {"momentum": 0.9},
    "sgd": {"momentum": 0.9},
}
"""Numbers that are None by default, so that the method has no slot for them."""

DRAWN_INSIDE = {"rprop", "optimistic_adam"}
"""Their learning rate can't be a schedule."""


@functools.cache
def facts() -> Facts:
    return param_facts(nn.Dense(2), jnp.ones((1, 3)))


def given(name: str) -> dict[str, Any]:
    """All adjustable numbers of an optimizer with a value, and what goes with them."""
    entry = NAMED[name]
    known = {key: entry.defaults[key] for key in adjustable(entry)}
    return {k: v for k, v in {**known, **OFF.get(name, {})}.items() if v is not None}


def numbers(name: str) -> dict[str, float]:
    """Those that may follow a schedule."""
    entry = NAMED[name]
    may = set(adjustable(entry)) - set(entry.initial_only)
    found = {k: v for k, v in given(name).items() if k in may}
    if name not in DRAWN_INSIDE:
        found["learning_rate"] = 1e-2
    return found


def spec_of(name: str, **change: Any) -> OptSpec:
    return OptSpec(name, **{"learning_rate": 1e-2, **given(name), **change})


def _data(leaf: Any) -> Any:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def trained(spec: OptSpec) -> tuple[Any, Any]:
    tx = build(spec, facts())
    params = draw(0, facts=facts())
    grads = gradients(STEPS, facts=facts())

    @functools.partial(jax.jit, compiler_options=AS_IT_COMES)
    def whole(params: Any, grads: Any) -> Any:
        def step(carry: Any, grad: Any) -> Any:
            params, state = carry
            updates, state = tx.update(grad, state, params)
            return (optim.apply_updates(params, updates), state), updates

        return jax.lax.scan(step, (params, tx.init(params)), grads)

    (_, state), updates = whole(params, grads)
    # The key of noise is no array that numpy compares.
    return updates, jax.tree.map(_data, state)


def test_all_numbers_have_a_default_or_a_value_here() -> None:
    for name, entry in NAMED.items():
        assert set(adjustable(entry)) <= set(given(name)), name
    assert sum(len(adjustable(entry)) for entry in NAMED.values()) == 99


def test_flags_dtypes_and_seeds_are_no_numbers() -> None:
    others = {
        key for e in NAMED.values() for key in set(e.hyperparameters) - set(adjustable(e))
    }
    assert others == {
        *("accumulator_dtype", "mu_dtype", "dtype_momentum"),
        *("nesterov", "centered", "eps_in_sqrt", "bias_correction", "factored", "merge_axes"),
        *("bias_correction_mu", "bias_correction_nu", "multiply_by_parameter_scale"),
        *("mode", "graft", "key", "seed", "decay_offset", "min_dim_size_to_factor"),
        *("block_size", "precondition_every", "precondition_from"),
    }


@pytest.mark.parametrize("name", NAMED)
def test_a_constant_schedule_gives_the_numbers_of_the_constant(name: str) -> None:
    constant = trained(spec_of(name))
    schedules = {key: constant_schedule(value) for key, value in numbers(name).items()}
    scheduled = trained(spec_of(name, **schedules))
    assert jax.tree.structure(constant[1]) == jax.tree.structure(scheduled[1])
    # A Python number becomes the same pair b, 1 - b in both. Where it is a constant of the
    # program the compiler may join products, which moves a last place (optimistic_adam).
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8)
    jax.tree.map(close, constant, scheduled)

    def computed(value: float) -> Any:
        return lambda count: jnp.float32(value) + 0 * count

    traced = trained(spec_of(name, **{k: computed(v) for k, v in numbers(name).items()}))
    assert jax.tree.structure(constant[1]) == jax.tree.structure(traced[1])
    for ours, theirs in zip(jax.tree.leaves(traced[0]), jax.tree.leaves(constant[0])):
        # 1 - b is formed in float32 there: 6e-8 / (1 - b) of itself, 6e-5 for b = 0.999, and
        # half of it is left under a root. Momenta add a few of them.
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", NAMED)
def test_the_state_has_one_structure_whichever_number_is_scheduled(name: str) -> None:
    def structure(**change: Any) -> Any:
        init = build(spec_of(name, **change), facts()).init
        return jax.tree.structure(jax.eval_shape(init, draw(0, facts=facts())))

    plain = structure()
    for key in numbers(name):
        assert structure(**{key: constant_schedule(numbers(name)[key])}) == plain, key


@pytest.mark.parametrize("name", NAMED)
def test_schedules_that_leave_the_range_of_a_decay_are_refused(name: str) -> None:
    decays = [key for key, is_decay in adjustable(NAMED[name]).items() if is_decay]
    for key in decays:
        with pytest.raises(ArgumentError, match=f"{key}.* is out of range"):
            spec_of(name, **{key: linear_schedule(0.5, 1.5, 10)})
        with pytest.raises(ArgumentError, match=f"{key}.* is out of range"):
            spec_of(name, **{key: linear_schedule(-0.5, 0.5, "10%")})
    for key in set(adjustable(NAMED[name])) & {"eps", "eps_root", "ridge", "min_norm", "eta"}:
        with pytest.raises(ArgumentError, match=f"{key}.* is out of range"):
            spec_of(name, **{key: linear_schedule(1.0, -1.0, 10)})


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("argument", "schedule", "error"),
    [
        ("weight_decay", linear_schedule(0.1, -0.1, 10), ArgumentError),
        ("clip_norm", linear_schedule(1.0, 0.0, 10), ArgumentError),
        ("learning_rate", linear_schedule(1.0, -1.0, 10), ArgumentError),
        ("b1", lambda count: 1.5, ArgumentError),
        ("b1", lambda count: float("nan"), ArgumentError),
        ("b1", lambda count: jnp.ones(3), ArgumentTypeError),
        ("weight_decay", lambda count: "0.1", ArgumentTypeError),
        ("nesterov", lambda count: True, ArgumentTypeError),
        ("mu_dtype", linear_schedule(0.1, 0.2, 10), ArgumentTypeError),
    ],
)
def test_schedules_that_make_no_sense_are_refused(
    argument: str, schedule: Any, error: type[FlaxtrainError]
) -> None:
    with pytest.raises(error) as caught:
        OptSpec("adamw", **{"learning_rate": 0.1, argument: schedule})
    assert "OptSpec('adamw')" in str(caught.value.where)
    assert caught.value.fix


@pytest.mark.parametrize("name", ["adagrad", "rmsprop", "yogi"])
def test_what_is_read_once_follows_no_schedule(name: str) -> None:
    for key in NAMED[name].initial_only:
        with pytest.raises(ArgumentError, match="is read only when slots begin"):
            spec_of(name, **{key: constant_schedule(0.1)})


def test_numbers_follow_their_schedules() -> None:
    rise = linear_schedule(0.0, 0.4, 4)
    tx = build(
        OptSpec("sgd", 1.0, momentum=rise, weight_decay=rise, clip_norm=lambda c: 9.0 + c),
        facts(),
    )
    params = draw(0, facts=facts())
    state, seen = tx.init(params), []
    for _ in range(3):
        _, state = jax.jit(tx.update)(params, state, params)
        seen.append({k: round(float(v), 6) for k, v in state.hyperparams["default"].items()})
    assert seen == [
        {"clip_norm": 9.0 + t, "learning_rate": 1.0, "momentum": m, "weight_decay": m}
        for t, m in enumerate((0.0, 0.1, 0.2))
    ]


def test_the_complement_of_a_decay_is_formed_in_float64() -> None:
    found = Hyperparameters.of(NAMED["adam"], {"b2": 0.999, "eps": 1e-8, "mu_dtype": None})
    assert found.decays == {"b2"}
    value = found.initial()["b2"]
    assert isinstance(value, DecayRate)
    assert value.complement == np.float32(0.001) != np.float32(1) - np.float32(0.999)
    with jax.enable_x64(True):
        wide = found.initial()
        assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {np.dtype("float64")}


def test_a_decay_of_one_stays_a_switch() -> None:
    # Shampoo with b2 = 1 sums its statistics; an average with b2 = 1 would stay zero.
    assert "b2" not in Hyperparameters.of(NAMED["shampoo"], {"b2": 1.0}).numbers
    arguments = {"b2": 1.0, "precondition_every": 1, "precondition_from": 1}
    ours, _ = trained(OptSpec("shampoo", 1e-2, **arguments))
    tx = optim.shampoo(1e-2, **arguments)
    params = wanted = draw(0, facts=facts())
    state = tx.init(params)
    for t in range(STEPS):
        grads = jax.tree.map(lambda leaf, t=t: leaf[t], gradients(STEPS, facts=facts()))
        wanted, state = jax.jit(tx.update)(grads, state, params)
        params = optim.apply_updates(params, wanted)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted)):
        # Compiled as a scan and step by step: a few roundings, through a matrix root.
        np.testing.assert_allclose(a[-1], b, rtol=1e-4, atol=1e-7)
