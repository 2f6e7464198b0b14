"""Belief, Adamax, AMSGrad, RAdam, Yogi, Adan, NovoGrad, Lion: what the laws do not say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.errors import (
    ArgumentError,
    ArgumentTypeError,
    FlaxtrainError,
    ParameterError,
    UnknownNameError,
)
from flaxtrain.optim.adamax import adamax_rule
from flaxtrain.optim.adan import adan_rule
from flaxtrain.optim.amsgrad import amsgrad_rule
from flaxtrain.optim.belief import adabelief_rule
from flaxtrain.optim.lion import lion_rule
from flaxtrain.optim.novograd import novograd_stages
from flaxtrain.optim.radam import radam_rule
from flaxtrain.optim.yogi import yogi_rule
from tests import gradients
from tests.oracles.adan import adan
from tests.runs import at, deviation, differing_leaves, nodes, ulps, walk

FACTORIES = ("adabelief", "adamax", "amsgrad", "radam", "yogi", "adan", "novograd", "lion")

RULES: dict[str, Callable[..., Any]] = {
    "adabelief": adabelief_rule,
    "adamax": adamax_rule,
    "amsgrad": amsgrad_rule,
    "radam": radam_rule,
    "yogi": yogi_rule,
    "adan": adan_rule,
    "lion": lion_rule,
}

factories = pytest.mark.parametrize("name", FACTORIES)

OUTSIDE = [
    *((name, b, value) for name in FACTORIES for b in ("b1", "b2") for value in (1.0, -0.1)),
    *((name, "eps", -1e-8) for name in FACTORIES if name != "lion"),
    *((name, "learning_rate", -1.0) for name in (*FACTORIES, "adamaxw")),
    *((name, "weight_decay", -0.1) for name in ("adabelief", "adamaxw", "adan", "lion")),
    *((name, "eps_root", -1.0) for name in ("adabelief", "amsgrad", "radam", "adan")),
    *(("novograd", "eps_root", -1.0), ("novograd", "weight_decay", -0.1)),
    *(("adan", "b3", 1.5), ("adan", "difference_weight", -0.5), ("radam", "threshold", 3.9)),
    *(("scale_by_yogi", "initial_accumulator_value", -1e-6), ("scale_by_yogi", "eps_root", -1)),
    *(("scale_by_lion", "smooth_beta", 0.0), ("scale_by_lion", "smooth_beta", -1.0)),
]

WRONG_TYPE = [
    *((name, "b2", "0.9") for name in FACTORIES),
    *((name, "learning_rate", None) for name in (*FACTORIES, "adamaxw")),
    *((name, "state_dtype", int) for name in (*FACTORIES, "adamaxw")),
    *((name, "beta1", 0.9) for name in FACTORIES),
    *((name, "mu_dtype", "float23") for name in ("amsgrad", "lion", "scale_by_novograd")),
    *((name, "nesterov", "yes") for name in ("adabelief", "radam")),
    *(("amsgrad", "bias_correction_mu", 1.5), ("amsgrad", "bias_correction_nu", None)),
    *(("scale_by_lion", "mode", 1), ("adan", "mask", "kernels"), ("lion", "mask", 2)),
    *(("adamaxw", "mask", "kernels"), ("adan", "weight_decay", "0.1")),
]


def make(name: str, **arguments: Any) -> Any:
    if not name.startswith("scale_by"):
        arguments = {"learning_rate": 0.1} | arguments
    return getattr(optim, name)(**arguments)


@pytest.mark.parametrize(("name", "key", "value"), OUTSIDE)
def test_a_value_out_of_range_is_refused(name: str, key: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"{key}={value}") as caught:
        make(name, **{key: value})
    assert caught.value.fix and caught.value.where


@pytest.mark.parametrize(("name", "key", "value"), WRONG_TYPE)
def test_a_value_of_the_wrong_type_is_refused(
    name: str, key: str, value: Any, unchecked_types: None
) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        make(name, **{key: value})
    assert (key in str(caught.value) or key == "mask") and caught.value.fix


OTHERWISE_WRONG: list[tuple[Callable[[], Any], type[FlaxtrainError], str]] = [
    (
        lambda: optim.adabelief(0.1, weight_decay_mask=True),
        ArgumentError,
        "mask without weight_decay",
    ),
    (
        lambda: optim.amsgrad(0.1, mu_dtype="bfloat16", state_dtype="float32"),
        ArgumentError,
        "both say how slots are stored",
    ),
    (
        lambda: optim.lion(0.1, mu_dtype="bfloat16", state_dtype="float32"),
        ArgumentError,
        "both say how slots are stored",
    ),
    (
        lambda: optim.scale_by_novograd(mu_dtype="bfloat16", state_dtype="float32"),
        ArgumentError,
        "both say how slots are stored",
    ),
    (lambda: novograd_stages(b1=1.0), ArgumentError, "b1=1.0"),
    (lambda: optim.scale_by_lion(mode="smoth"), UnknownNameError, "did you mean 'smooth'"),  # type: ignore[arg-type]  # misspelt
]


@pytest.mark.parametrize(("call", "kind", "text"), OTHERWISE_WRONG)
def test_what_makes_no_sense_together_is_refused(
    call: Callable[[], Any], kind: type[FlaxtrainError], text: str, unchecked_types: None
) -> None:
    with pytest.raises(kind, match=text):
        call()


@factories
def test_state_dtype_stores_in_it_and_computes_in_float32(name: str) -> None:
    """bfloat16 parameters with float32 slots: bit for bit the run in float32."""
    params = {"w": jnp.array([1.0, -2.0, 0.5])}
    grads = {"w": jnp.array([[0.5, -1.0, 2.0], [0.25, 3.0, 0.0], [1.0, 1.0, -1.0]])}
    low, low_grads = gradients.cast(params, jnp.bfloat16), gradients.cast(grads, jnp.bfloat16)
    own = {"lion": {"weight_decay": 0.0}}.get(name, {})  # decay is added in bfloat16
    if name == "yogi":  # a start that bfloat16 can hold
        name, own = "scale_by_yogi", {"initial_accumulator_value": 2.0**-20}
    tx, judge = make(name, state_dtype="float32", **own), make(name, **own)
    state, expected = tx.init(low), judge.init(params)
    for index in range(3):
        updates, state = tx.update(at(low_grads, index), state, low)
        wanted, expected = judge.update(at(grads, index), expected, params)
        assert updates["w"].dtype == jnp.float32
        assert differing_leaves(updates, wanted) == []
    half = make(name, state_dtype="bfloat16").init(params)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(half)}
    assert dtypes <= {"bfloat16", "int32"} and "bfloat16" in dtypes


@factories
def test_the_state_can_be_donated(name: str) -> None:
    """One array in two slots could not."""
    tx, params = make(name), {"w": jnp.ones(3)}
    update = jax.jit(lambda state, grads: tx.update(grads, state, grads), donate_argnums=0)
    updates, state = update(tx.init(params), params)
    assert jnp.all(updates["w"] < 0) and jnp.all(jnp.isfinite(update(state, params)[0]["w"]))


OWN = dict.fromkeys(FACTORIES, "weight_decay") | {"radam": "threshold"}
OWN |= dict.fromkeys(("adamax", "amsgrad", "yogi"), "eps")


@factories
def test_tracers_are_accepted_for_every_hyperparameter(name: str) -> None:
    def update(value: Any) -> Any:
        numbers = {"b1": 0.5, "b2": 0.75, OWN[name]: 8.0 if name == "radam" else 0.5}
        arguments = {key: value * number for key, number in numbers.items()}
        tx = make(name, learning_rate=value, **arguments)
        return tx.update(jnp.ones(3), tx.init(jnp.ones(3)), jnp.ones(3))[0]

    together = jax.vmap(update)(jnp.array([0.75, 1.0]))
    # Batched and single programs round differently in the last places.
    np.testing.assert_allclose(together[1], update(1.0), rtol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_a_decay_given_as_an_array_with_its_complement_keeps_the_numbers(name: str) -> None:
    constant, edited = RULES[name](), RULES[name](*map(optim.DecayRate.of, _decays(name)))
    for rule in (constant, edited):
        assert (jax.tree.leaves(rule) == []) == (rule is constant)
    results = []
    for rule in (constant, edited):
        slots, update = optim.init_slots(rule, jnp.ones(2)), None
        for t in range(1, 8):
            grad = jnp.array([1.0 / t, -2.0])
            update, slots = optim.update_slots(rule, jnp.int32(t), grad, slots)
        results.append(update)
    # A few roundings; the ro of RAdam is a small difference of numbers near 2 / (1 - b2).
    np.testing.assert_allclose(*results, rtol=1e-4 if name == "radam" else 1e-6)


def _decays(name: str) -> tuple[float, ...]:
    rule = RULES[name]()
    return tuple(getattr(rule, b) for b in ("b1", "b2", "b3") if hasattr(rule, b))


@pytest.mark.parametrize("name", ["amsgrad", "scale_by_novograd", "lion"])
def test_a_complex_moment_keeps_its_imaginary_part_whatever_its_dtype(name: str) -> None:
    tx, z = make(name, mu_dtype=jnp.bfloat16), jnp.array([2j, -1j])
    updates, state = tx.update(z, tx.init(z), z)
    assert updates.dtype == jnp.complex64
    mu = (state if name.startswith("scale") else state[0]).mu
    assert mu.dtype == jnp.complex64 and jnp.all(mu.imag != 0)


def test_adabelief_with_decay_is_the_chain_with_decay_before_the_rate() -> None:
    params = {"w": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}
    mask = {"w": True, "b": False}
    tx = optim.adabelief(0.1, weight_decay=0.5, weight_decay_mask=mask)
    chained = optim.chain(
        optim.scale_by_belief(),
        optim.add_decayed_weights(0.5, mask),
        optim.scale_by_learning_rate(0.1),
    )
    ours, expected = (t.update(params, t.init(params), params) for t in (tx, chained))
    assert differing_leaves(ours, expected) == []
    plain = optim.adabelief(0.1)
    updates, state = plain.update(params, plain.init(params))
    assert (
        len(state) == 2 and updates["b"] == ours[0]["b"] and updates["w"][0] > ours[0]["w"][0]
    )


def test_adabelief_takes_larger_steps_where_gradients_are_as_expected() -> None:
    def last(grads: list[float]) -> float:
        tx = optim.scale_by_belief(b2=0.9)
        state, updates = tx.init(jnp.float32(0.0)), 0.0
        for grad in grads:
            updates, state = tx.update(jnp.float32(grad), state)
        return float(updates)

    steady, shaking = last([1.0] * 50), last([4.0, -2.0] * 25)
    assert steady > 10 > 1 > abs(shaking)


def test_adamax_never_steps_further_than_the_rate_while_gradients_grow() -> None:
    tx = optim.adamax(0.1)
    state = tx.init(jnp.float32(0.0))
    for grad in (1.0, 2.0, 5.0, -100.0, 1000.0):
        updates, state = tx.update(jnp.float32(grad), state)
        assert abs(updates) <= 0.1 * (1 + 1e-6)  # a few roundings
    assert state[0].nu == 1000.0


def test_the_denominator_of_amsgrad_never_falls() -> None:
    tx = optim.scale_by_amsgrad(b2=0.5)
    state, seen = tx.init(jnp.float32(0.0)), []
    for grad in (1.0, 3.0, 0.1, 0.0, 2.0):
        _, state = tx.update(jnp.float32(grad), state)
        seen.append(float(state.nu_max))
    assert seen == sorted(seen) and float(state.nu) < seen[-1]


def test_yogi_changes_its_second_moment_by_bounded_amounts() -> None:
    tx = optim.scale_by_yogi(b2=0.9, initial_accumulator_value=100.0)
    state = tx.init(jnp.float32(0.0))
    for grad in (1.0, 3.0, 20.0, 0.0):
        before = state.nu
        _, state = tx.update(jnp.float32(grad), state)
        # One rounding of numbers near 100.
        np.testing.assert_allclose(abs(state.nu - before), 0.1 * grad**2, atol=2e-5)


def test_radam_waits_for_its_threshold_and_then_divides() -> None:
    tx = optim.scale_by_radam(b1=0.0)
    state, seen = tx.init(jnp.float32(0.0)), []
    for _ in range(6):
        updates, state = tx.update(jnp.float32(100.0), state)
        seen.append(float(updates))
    assert seen[:5] == [100.0] * 5 and 0 < seen[5] < 0.1


def _third_update(o: Any, grad: Any) -> Any:
    tx = o.scale_by_radam(eps_root=1e-8)
    state = tx.init(grad)
    for _ in range(2):
        _, state = tx.update(grad, state)
    return tx.update(grad, state)[0]


def test_the_gradient_through_an_early_update_of_radam_is_a_number() -> None:
    slope = jax.grad(lambda g: _third_update(optim, g))(jnp.float32(2.0))
    # mu_hat is the constant gradient itself, up to a few roundings.
    np.testing.assert_allclose(slope, 1.0, rtol=1e-6)
    assert jnp.isnan(jax.grad(lambda g: _third_update(optax, g))(jnp.float32(2.0)))


def test_a_threshold_of_radam_below_four_gives_nan_in_optax() -> None:
    tx = optax.scale_by_radam(threshold=3.0)
    state, seen = tx.init(jnp.float32(0.0)), []
    for _ in range(5):
        updates, state = tx.update(jnp.float32(1.0), state)
        seen.append(updates)
    assert any(jnp.isnan(jnp.array(seen)))


def test_adan_sees_no_difference_at_its_first_gradient() -> None:
    tx = optim.scale_by_adan()
    _, state = tx.update(jnp.float32(5.0), tx.init(jnp.float32(0.0)))
    assert state.v == 0 and state.g == 5.0 and state.t == 1


def test_adan_follows_the_paper_with_its_weight_of_the_difference() -> None:
    """One minus the paper's beta2 is b2, where optax has 1 - b2."""
    x = gradients.params(complex_leaf=False)["w"]
    grads = gradients.gradients(50, complex_leaf=False)["w"]
    arguments = {"learning_rate": lambda step: 1e-2, "eps_root": 0.0}
    expected = adan(x, grads, difference_weight=1 - 0.08, **arguments)[-1]
    with jax.enable_x64(True):
        recorded = {"w": jnp.asarray(x)}, {"w": jnp.asarray(grads)}
        tx = optim.adan(1e-2, eps_root=0.0, difference_weight=0.92)
        ours, *_ = walk(tx, *recorded, jit=True)
        judge, *_ = walk(optax.adan(1e-2, eps_root=0.0), *recorded, jit=True)
    assert deviation(ours, {"w": expected}) < 1e-13
    assert deviation(judge, {"w": expected}) > 1e-3


def test_novograd_does_not_see_the_size_of_a_gradient() -> None:
    grads = gradients.cast(gradients.gradients(5), jnp.float32)
    larger = jax.tree.map(lambda g: 1024 * g, grads)  # a power of two: no rounding
    params = gradients.cast(gradients.params(), jnp.float32)
    tx = optim.novograd(0.1, eps=0.0)
    ours, scaled = (walk(tx, params, g, jit=True)[2] for g in (grads, larger))
    assert differing_leaves(ours, scaled) == []
    assert all(leaf.shape == () for leaf in jax.tree.leaves(tx.init(params)[0].nu))


def test_novograd_without_decay_needs_no_parameters_and_with_decay_says_so() -> None:
    grad = jnp.array([3.0, 4.0])
    plain, decayed = optim.novograd(1.0, eps=0.0), optim.novograd(1.0, weight_decay=0.1)
    np.testing.assert_allclose(plain.update(grad, plain.init(grad))[0], [-0.6, -0.8], rtol=1e-6)
    with pytest.raises(ParameterError, match="needs the parameters"):
        decayed.update(grad, decayed.init(grad))
    judge = optax.novograd(1.0)
    with pytest.raises(TypeError):
        judge.update(grad, judge.init(grad))


def test_the_decay_of_novograd_may_be_a_schedule() -> None:
    x, zero = jnp.ones(2, jnp.bfloat16), jnp.zeros(2, jnp.bfloat16)
    tx = optim.scale_by_novograd(b1=0.0, weight_decay=lambda count: 0.25 * (count + 1))
    state = tx.init(x)
    for expected in (0.25, 0.5, 0.75):
        updates, state = tx.update(zero, state, x)
        assert updates.dtype == jnp.bfloat16 and jnp.all(updates == expected)
    judge = optax.scale_by_novograd(weight_decay=lambda count: 0.25)  # type: ignore[arg-type]  # as annotated in novograd
    with pytest.raises(TypeError):
        judge.update(zero, judge.init(x), x)


def test_novograd_keeps_the_dtype_of_its_norms_when_gradients_are_wider() -> None:
    x, grad = jnp.ones(2, jnp.bfloat16), jnp.array([3.0, 4.0])
    tx, judge = optim.scale_by_novograd(), optax.scale_by_novograd()
    _, state = tx.update(grad, tx.init(x), x)
    assert state.nu.dtype == jnp.bfloat16 and state.nu == 25
    with pytest.raises(TypeError):
        judge.update(grad, judge.init(x), x)


def test_the_sum_of_novograd_may_be_wider_or_narrower_than_the_parameters() -> None:
    x, grad = jnp.ones(2, jnp.bfloat16), jnp.array([3.0, 4.0], jnp.bfloat16)
    wider = {"mu_dtype": jnp.float32}
    tx, judge = optim.scale_by_novograd(**wider), optax.scale_by_novograd(**wider)
    updates, state = tx.update(grad, tx.init(x))
    assert updates.dtype == state.mu.dtype == jnp.float32
    with pytest.raises(TypeError):
        judge.update(grad, judge.init(x), x)
    params = gradients.cast(gradients.params(complex_leaf=False), jnp.float32)
    grads = gradients.cast(gradients.gradients(5, complex_leaf=False), jnp.float32)
    ours, theirs = (
        walk(o.scale_by_novograd(mu_dtype=jnp.bfloat16), params, grads, jit=True)
        for o in (optim, optax)
    )
    # The sum is rounded to bfloat16 at the end, in both.
    assert nodes(ours) == nodes(theirs) and ulps(ours, theirs) <= 1


def test_every_step_of_lion_is_the_rate_itself() -> None:
    tx = optim.lion(0.25, weight_decay=0.0)
    x = jnp.array([1e-20, -1e20, 0.0])
    updates, _ = tx.update(x, tx.init(x), x)
    assert updates.tolist() == [-0.25, 0.25, 0.0]


def test_the_memory_of_lion_is_longer_than_its_direction_s() -> None:
    tx = optim.scale_by_lion(b1=0.5, b2=0.75)
    _, state = tx.update(jnp.float32(4.0), tx.init(jnp.float32(0.0)))
    updates, state = tx.update(jnp.float32(-1.5), state)
    # c = (1 - 1.5) / 2 and mu = 0.75 * 1 - 0.25 * 1.5.
    assert updates == -1 and state.mu == 0.375


@pytest.mark.parametrize(
    ("mode", "small"), [("hard", -1), ("smooth", -0.125), ("refined", -0.125)]
)
def test_softer_signs_tell_small_entries_from_large_ones(mode: Any, small: float) -> None:
    tx = optim.scale_by_lion(b1=0.5, mode=mode)
    updates, _ = tx.update(jnp.array([64.0, -0.25]), tx.init(jnp.zeros(2)))
    np.testing.assert_allclose(updates, [1.0, small], rtol=6e-3)  # tanh x = x (1 - x^2 / 3)


def test_an_unknown_mode_of_lion_fails_in_optax_only_at_the_first_update() -> None:
    tx = optax.scale_by_lion(mode="smoth")  # type: ignore[arg-type]  # misspelt
    with pytest.raises(ValueError, match="smoth"):
        tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
