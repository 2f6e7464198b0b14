"""The classic families: faults of optax that are mended, and what the papers promise."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentTypeError
from tests import gradients
from tests.runs import differing_leaves, nodes, run


def steps(tx: Any, grads: Any, params: Any = None, **extra: Any) -> list[Any]:
    """Returns the updates for one gradient after another."""
    grads = list(grads)
    state, record = tx.init(grads[0] if params is None else params), []
    for grad in grads:
        update, state = tx.update(grad, state, params, **extra)
        record.append(update)
    return record


@pytest.mark.parametrize(
    "tx",
    [
        optim.adagrad(0.1, state_dtype="bfloat16"),
        optim.rmsprop(0.1, momentum=0.9, state_dtype="bfloat16"),
        optim.rmsprop(0.1, centered=True, bias_correction=True, state_dtype="bfloat16"),
        optim.adadelta(0.1, state_dtype="bfloat16"),
        optim.rprop(0.1, state_dtype="bfloat16"),
        optim.signum(0.1, state_dtype="bfloat16"),
        optim.sm3(0.1, state_dtype="bfloat16"),
        optim.optimistic_gradient_descent(0.1, state_dtype="bfloat16"),
        optim.optimistic_adam(0.1, state_dtype="bfloat16"),
        optim.optimistic_adam_v2(0.1, state_dtype="bfloat16"),
    ],
    ids=repr,
)
def test_slots_are_stored_in_state_dtype_and_updates_computed_in_float32(tx: Any) -> None:
    params = {"w": jnp.ones((2, 3), jnp.bfloat16)}
    state = tx.init(params)
    updates, after = tx.update(params, state, params)
    assert updates["w"].dtype == jnp.float32
    for tree in (state, after):
        slots = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim]
        assert slots and {slot.dtype.name for slot in slots} == {"bfloat16"}


def test_every_number_of_a_classic_family_may_be_a_tracer() -> None:
    def update(v: Any) -> Any:
        tx = optim.chain(
            optim.scale_by_rss(v, v),
            optim.scale_by_rms(v, v, v, bias_correction=True),
            optim.scale_by_stddev(v, v, v, eps_in_sqrt=False),
            optim.scale_by_adadelta(v, v),
            optim.scale_by_rprop(v, v, 1 + v, v, 1 + v),
            optim.ema(v),
            optim.scale_by_sm3(v, v, v),
            optim.scale_by_optimistic_gradient(v, v),
            optim.add_noise(v, v, 0),
            optim.polyak_sgd(v, v, v, v),
            optim.scale_by_sm3(b2=2 * v),
        )
        state = tx.init(jnp.ones(3))
        _, state = tx.update(jnp.ones(3), state, jnp.ones(3), value=2.0)
        return tx.update(2 * jnp.ones(3), state, jnp.ones(3), value=2.0)[0]

    together = jax.vmap(update)(jnp.array([0.25, 0.5]))
    # Batched and single programs round differently in the last places.
    np.testing.assert_allclose(together[1], update(0.5), rtol=1e-4)
    assert np.all(np.isfinite(together)) and not np.allclose(together[0], together[1])


def test_adagrad_divides_a_constant_gradient_by_the_root_of_the_step() -> None:
    updates = steps(optim.scale_by_rss(0.0, 0.0), [jnp.array([3.0, 0.0])] * 9)
    # rsqrt and one product: two roundings.
    np.testing.assert_allclose(updates[8], [1 / 3, 0.0], rtol=2e-7)


def test_the_first_update_of_rmsprop_is_3_16_learning_rates() -> None:
    update = steps(optim.rmsprop(0.1), [jnp.array([100.0, -100.0])])[0]
    # (1 - 0.9)^-0.5; a few roundings.
    np.testing.assert_allclose(update, [-0.1 * 10**0.5, 0.1 * 10**0.5], rtol=5e-7)
    corrected = steps(optim.rmsprop(0.1, bias_correction=True), [jnp.array([100.0])])[0]
    np.testing.assert_allclose(corrected, [-0.1], rtol=5e-7)


@pytest.mark.parametrize("eps_in_sqrt", [True, False])
def test_a_variance_that_rounding_made_negative_counts_as_zero(eps_in_sqrt: bool) -> None:
    arguments = {"decay": 0.9, "eps": 1e-12, "eps_in_sqrt": eps_in_sqrt}
    grads = [jnp.linspace(0.1, 9.0, 50)] * 300
    judge = steps(optax.scale_by_stddev(**arguments), grads)[-1]
    assert np.isnan(judge).any(), "the variance of a constant is 0, give or take a rounding"
    ours = steps(optim.scale_by_stddev(**arguments), grads)[-1]
    assert np.isfinite(ours).all() and (ours > 0).all()


def test_a_constant_complex_gradient_has_no_variance_either() -> None:
    grads = [jnp.linspace(0.1, 9.0, 50) * (1 + 2j)] * 300
    update = steps(optim.scale_by_stddev(eps=1e-12, eps_in_sqrt=False), grads)[-1]
    np.testing.assert_allclose(update.imag, 2 * update.real, rtol=1e-6)  # along the gradient
    assert (update.real > 0).all()
    judge = steps(optax.scale_by_stddev(eps=1e-12, eps_in_sqrt=False), grads)[-1] / grads[0]
    assert (abs(judge.imag) > abs(judge.real)).any(), "optax turns some by a right angle"


def test_the_steps_of_adadelta_do_not_depend_on_the_unit_of_the_loss() -> None:
    grads = [jnp.array([0.5, -2.0]), jnp.array([1.5, 1.0])]
    tx = optim.scale_by_adadelta(eps=1e-6)
    plain, scaled = steps(tx, grads), steps(tx, [1e3 * g for g in grads])
    # eps = 1e-6 stands beside squares of at least (1 - rho) 0.5^2 = 0.025.
    np.testing.assert_allclose(scaled[1], plain[1], rtol=1e-4)


def test_adadelta_follows_a_complex_gradient() -> None:
    g = jnp.array([2j, 1 + 1j])
    ours = steps(optim.scale_by_adadelta(), [g])[0] / g
    assert (ours.real > 0).all() and np.allclose(ours.imag, 0)
    judge = steps(optax.scale_by_adadelta(), [g])[0] / g
    assert (abs(judge.imag) > 0.3 * abs(judge)).all(), "optax turns it"


def test_adadelta_without_a_learning_rate_is_not_negated() -> None:
    g = jnp.array([1.0])
    assert steps(optim.adadelta(), [g], g)[0] > 0 > steps(optim.adadelta(1.0), [g], g)[0]


def test_decay_of_adadelta_is_part_of_the_gradient() -> None:
    x, g = {"w": jnp.array([2.0]), "b": jnp.array([2.0])}, {"w": jnp.zeros(1), "b": jnp.ones(1)}
    arguments: dict[str, Any] = {
        "weight_decay": 0.1,
        "weight_decay_mask": {"w": True, "b": False},
    }
    ours, judge = (steps(o.adadelta(1.0, **arguments), [g, g], x) for o in (optim, optax))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, judge)
    assert ours[0]["w"] < 0


def test_step_sizes_of_rprop_grow_shrink_and_stay_in_bounds() -> None:
    tx = optim.scale_by_rprop(1.0, max_step_size=2.0, min_step_size=0.7)
    state, sizes = tx.init(0.0), []
    for g in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0):
        _, state = tx.update(jnp.float32(g), state)
        sizes.append(float(state.step_sizes))
    # After a change of sign one gradient is not judged: that is the "-" of iRprop-.
    np.testing.assert_allclose(sizes, [1, 1.2, 1.44, 1.728, 2, 2, 1, 1, 0.7], rtol=1e-6)


def test_rprop_sees_the_sign_of_gradients_whose_product_underflows() -> None:
    grads = [jnp.array([1e-30]), jnp.array([1e-30])]

    def second_size(tx: Any) -> Any:
        state = tx.init(grads[0])
        for grad in grads:
            _, state = tx.update(grad, state)
        return state.step_sizes

    small = {"learning_rate": 1e-20, "min_step_size": 0.0}
    assert second_size(optax.scale_by_rprop(**small)) == np.float32(1e-20)
    assert second_size(optim.scale_by_rprop(**small)) == np.float32(1.2) * np.float32(1e-20)


def test_rprop_passes_nan_on_at_once() -> None:
    grads = [jnp.array([1.0, 1.0]), jnp.array([jnp.nan, 1.0])]
    ours, judge = (steps(o.rprop(0.1), grads)[1] for o in (optim, optax))
    assert np.isnan(ours[0]) and ours[1] == judge[1] == np.float32(-0.1)
    assert not np.isnan(judge).any(), "optax returns the step of the gradient before"


def test_both_parts_of_a_complex_entry_are_entries_for_rprop() -> None:
    grads = [1.0 + 2.0j, 1.0 - 2.0j, 1.0 - 2.0j, 3.0 - 1.0j]
    together = steps(optim.rprop(0.1), [jnp.array([g]) for g in grads])
    real = steps(optim.rprop(0.1), [jnp.array([g.real]) for g in grads])
    imag = steps(optim.rprop(0.1), [jnp.array([g.imag]) for g in grads])
    for z, x, y in zip(together, real, imag):
        assert z.real == x and z.imag == y


def test_sign_descent_moves_every_entry_by_the_learning_rate() -> None:
    update = steps(optim.sign_sgd(0.25), [jnp.array([1e-9, -1e9, 0.0])])[0]
    np.testing.assert_array_equal(update, [-0.25, 0.25, 0.0])
    complex_update = steps(optim.sign_sgd(1.0), [jnp.array([3 - 4j])])[0]
    np.testing.assert_allclose(complex_update, [-0.6 + 0.8j], rtol=2e-7)  # one rounding


def test_signum_takes_the_sign_of_the_average() -> None:
    updates = steps(optim.signum(1.0, 0.5), [jnp.array([g]) for g in (4.0, -1.0, -1.0, -3.0)])
    assert [float(u[0]) for u in updates] == [-1.0, -1.0, 1.0, 1.0]


def test_a_debiased_average_of_a_constant_is_the_constant() -> None:
    updates = steps(optim.ema(0.9), [jnp.array([3.0])] * 20)
    # 1 - 0.9^t in float32 is off by 6e-8 / 0.1 of itself at t = 1.
    np.testing.assert_allclose(np.stack(updates), 3.0, rtol=1e-6)
    raw = steps(optim.ema(0.9, debias=False), [jnp.array([3.0])] * 20)
    np.testing.assert_allclose(raw[1], [3.0 * (1 - 0.81)], rtol=1e-6)


def test_a_complex_average_stays_complex_in_a_real_dtype() -> None:
    tx, z = optim.ema(0.5, accumulator_dtype="bfloat16"), jnp.array([2j])
    _, state = tx.update(z, tx.init(z))
    assert state.ema.dtype == jnp.complex64 and state.ema == 1j


@pytest.mark.parametrize("name", ["signum(beta)", "ema", "ema(debias=False)"])
def test_an_average_in_bfloat16_has_the_bits_of_optax(name: str) -> None:
    make = {
        "signum(beta)": lambda o: o.signum(0.1, 0.5, jnp.bfloat16),
        "ema": lambda o: o.ema(0.9, accumulator_dtype=jnp.bfloat16),
        "ema(debias=False)": lambda o: o.ema(0.9, False, jnp.bfloat16),
    }[name]
    params = gradients.cast(gradients.params(complex_leaf=False), jnp.float32)
    grads = gradients.cast(gradients.gradients(50, complex_leaf=False), jnp.float32)
    ours, judge = (run(make(o), params, grads) for o in (optim, optax))
    assert differing_leaves(ours, judge) == [] and nodes(ours[1]) == nodes(judge[1])


def test_sm3_works_on_scalars_as_on_vectors_of_one() -> None:
    grads = [jnp.array([3.0]), jnp.array([-1.0])]
    vectors = steps(optim.sm3(0.1), grads)
    scalars = steps(optim.sm3(0.1), [g[0] for g in grads])
    np.testing.assert_array_equal([v[0] for v in vectors], scalars)
    with pytest.raises(IndexError):
        steps(optax.sm3(0.1), [jnp.float32(3.0)])


def test_sm3_takes_a_schedule() -> None:
    tx = optim.sm3(lambda count: 0.1 * (count + 1), momentum=0.0)
    updates = steps(tx, [jnp.array([2.0]), jnp.array([0.0]), jnp.array([0.0])])
    # The first step has the size of the learning rate, up to a rounding and eps.
    np.testing.assert_allclose(updates[0], [-0.1], rtol=2e-7)
    two = steps(tx, [jnp.array([2.0]), jnp.array([2.0])])[1]
    np.testing.assert_allclose(two, [-0.2 / 2**0.5], rtol=5e-7)


def test_sm3_follows_a_complex_gradient_and_stores_real_sums() -> None:
    g = jnp.array([[3 + 4j, 1j], [2.0, 0.0]])
    tx = optim.scale_by_sm3(b1=0.0, eps=0.0)
    u, state = tx.update(g, tx.init(g))
    np.testing.assert_allclose(u, [[0.6 + 0.8j, 1j], [1.0, 0.0]], rtol=2e-7)
    assert [s.tolist() for s in state.mu] == [[25.0, 4.0], [25.0, 1.0]]
    assert state.mu[0].dtype == jnp.float32


def test_the_sums_of_sm3_lie_above_those_of_adagrad_and_are_equal_for_vectors() -> None:
    rng = np.random.default_rng(0)
    grads = [{"m": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)} for _ in range(20)]
    for grad in grads:
        grad["v"] = grad["m"][0]
    sm3, adagrad = (
        steps(tx, grads) for tx in (optim.scale_by_sm3(0.0), optim.scale_by_rss(0.0, 1e-8))
    )
    # Claim 2 of the paper: larger sums are smaller steps. Two roundings are allowed.
    for a, b in zip(sm3, adagrad):
        assert (abs(a["m"]) <= abs(b["m"]) * (1 + 2e-7)).all()
        np.testing.assert_allclose(a["v"], b["v"], rtol=2e-7)
    assert (abs(sm3[-1]["m"]) < 0.99 * abs(adagrad[-1]["m"])).any()


def test_sm3_passes_over_arrays_without_entries() -> None:
    g = jnp.zeros((0, 3))
    assert steps(optim.sm3(0.1), [g, g])[1].shape == (0, 3)


def test_noise_has_the_variance_of_the_paper() -> None:
    updates = steps(optim.add_noise(4.0, 0.5, key=1), [jnp.zeros(40_000)] * 16)
    # The standard deviation of 40,000 draws is known to 0.35%; five of those.
    for t in (1, 4, 16):
        np.testing.assert_allclose(jnp.std(updates[t - 1]), 2.0 / t**0.25, rtol=0.018)
    assert abs(np.corrcoef(updates[0], updates[1])[0, 1]) < 0.025  # five of 1 / 200


def test_key_and_seed_draw_what_optax_draws_and_nothing_warns() -> None:
    grads = [jnp.zeros(5)] * 2
    key = jax.random.key(7)
    calls: list[tuple[Any, Any]] = [
        ((), {"key": 7}),
        ((), {"seed": 7}),
        ((np.uint32(7),), {}),
        ((key,), {}),
        ((jax.random.key_data(key),), {}),
    ]
    expected = steps(optax.noisy_sgd(0.1, key=7), grads)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for args, kwargs in calls:
            found = steps(optim.noisy_sgd(0.1, 0.01, 0.55, *args, **kwargs), grads)
            np.testing.assert_array_equal(found, expected)
        default = steps(optim.noisy_sgd(0.1), grads)
    np.testing.assert_array_equal(default, steps(optax.noisy_sgd(0.1, key=0), grads))


def test_the_state_of_noise_is_that_of_optax() -> None:
    ours, judge = (o.add_noise(0.1, 0.5, key=3).init(jnp.ones(2)) for o in (optim, optax))
    assert ours._fields == judge._fields and ours.rng_key == judge.rng_key
    assert ours.rng_key.dtype == judge.rng_key.dtype and ours.count.dtype == judge.count.dtype


def test_an_integer_gamma_does_not_overflow() -> None:
    sizes = []
    for o in (optim, optax):
        tx = o.add_noise(1.0, 2, key=0)
        late = tx.init(jnp.zeros(2))._replace(count=jnp.int32(49_999))
        sizes.append(float(jnp.max(jnp.abs(tx.update(jnp.zeros(2), late)[0]))))
    assert 0 < sizes[0] < 1e-4, "a few times sqrt(1 / 50,000^2)"
    assert math.isnan(sizes[1]), "50,000^2 is not an int32"


def test_optimism_converges_in_a_game_where_gradient_descent_does_not() -> None:
    def after(tx: Any) -> Any:
        game = jnp.array([1.0, 1.0])  # x y: one player wants the least, one the most
        state = tx.init(game)
        for _ in range(100):
            updates, state = tx.update(jnp.array([game[1], -game[0]]), state)
            game = game + updates
        return jnp.linalg.norm(game)

    assert after(optim.optimistic_gradient_descent(0.3)) < 0.1 < 10 < after(optim.sgd(0.3))


def test_optimistic_adam_does_not_warn_and_points_schedules_to_the_second_version() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update = steps(optim.optimistic_adam(0.1), [jnp.array([2.0])])[0]
    np.testing.assert_allclose(
        update, steps(optim.optimistic_adam_v2(0.1), [jnp.array([2.0])])[0], rtol=1e-6
    )


def test_the_step_of_polyak_halves_the_way_on_a_parabola() -> None:
    x = {"a": jnp.array([3.0, 1.0]), "b": jnp.float32(-2.0)}
    loss = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x))
    update = steps(optim.polyak_sgd(), [jax.tree.map(lambda v: 2 * v, x)], value=loss)[0]
    # 14 / (4 * 14) of 2 x, exact in binary.
    jax.tree.map(lambda u, v: np.testing.assert_array_equal(u, -v / 2), update, x)


def test_polyak_without_a_limit_without_a_gradient_and_below_the_minimum() -> None:
    g = jnp.array([1e-3])
    limited, free = (
        steps(optim.polyak_sgd(limit), [g], value=1.0)[0] for limit in (2.0, math.inf)
    )
    np.testing.assert_allclose([limited[0], free[0]], [-2e-3, -1e3], rtol=1e-6)
    assert steps(optim.polyak_sgd(), [0 * g], value=1.0)[0] == 0
    above = steps(optim.polyak_sgd(f_min=1.0), [g], value=0.0)[0]
    assert above > 0, "a loss below its minimum: uphill"
    assert steps(optim.polyak_sgd(f_min=1.0, variant="sps+"), [g], value=0.0)[0] == 0


def test_polyak_says_what_it_needs_and_where_extra_arguments_are_lost() -> None:
    g = jnp.ones(2)
    for tx in (optim.polyak_sgd(), optax.chain(optim.polyak_sgd(), optax.scale(2.0))):
        extra = {"value": 1.0} if isinstance(tx, optax.GradientTransformation) else {}
        with pytest.raises(ArgumentTypeError, match=r"ft\.optim\.chain passes them"):
            tx.update(g, tx.init(g), **extra)
    chained = optim.chain(optim.polyak_sgd(), optax.scale(2.0))
    np.testing.assert_allclose(steps(chained, [g], value=1.0)[0], [-1.0, -1.0], rtol=1e-6)
    with pytest.raises(ArgumentTypeError, match=r"shape \(2,\)"):
        steps(optim.polyak_sgd(), [g], value=g)
