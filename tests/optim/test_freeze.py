"""freeze, selective_transform, set_to_zero, and the warning of masked."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentTypeError, ParameterError
from flaxtrain.optim import apply_updates
from tests.runs import bits

PARAMS = {
    "encoder": {"kernel": jnp.array([[1.0, -0.0], [0.0, 1e-30]]), "bias": jnp.zeros(2)},
    "decoder": {"kernel": jnp.ones((2, 1)), "bias": jnp.zeros(1)},
}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)
FROZEN = {"encoder": True, "decoder": False}


def test_zeros_change_no_bit_of_any_parameter() -> None:
    params = {
        "f": jnp.array([-0.0, 0.0, 3.0, jnp.inf]),
        "h": jnp.array([-0.0, 1.0], jnp.bfloat16),
        "z": jnp.array([complex(-0.0, -0.0), 1 - 2j]),
        "i": jnp.array([3, -1]),
        "absent": None,
    }
    tx = optim.set_to_zero()
    grads = jax.tree.map(lambda p: jnp.full_like(p, 7), params)
    updates, _ = tx.update(grads, tx.init(params))
    assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda p: p.dtype, params)
    assert bits(apply_updates(params, updates)) == bits(params)
    judge = optax.set_to_zero()
    zeros, _ = judge.update(params, judge.init(params))
    assert bits(optax.apply_updates(params["f"], zeros["f"])) != bits(params["f"])


def test_zeros_take_the_place_of_nan() -> None:
    tx = optim.set_to_zero()
    assert float(tx.update(jnp.float32(jnp.nan), tx.init(0.0))[0]) == 0.0


@pytest.mark.parametrize(
    "tx",
    [
        optim.selective_transform(optim.adamw(0.1, weight_decay=0.5), freeze_mask=FROZEN),
        optim.selective_transform(optim.adamw(0.1), freeze_mask=optim.mask_by_path("encoder")),
        optim.chain(optim.adamw(0.1, weight_decay=0.5), optim.freeze(FROZEN)),
        optim.chain(optim.sgd(0.1, 0.9), optim.freeze({"params": FROZEN})),
        optim.partition(
            {"on": optim.sgd(0.1, 0.9), "off": optim.set_to_zero()},
            {"encoder": "off"},
            default="on",
        ),
    ],
    ids=["selective", "selective(by_path)", "freeze", "freeze(params)", "partition"],
)
def test_frozen_parameters_keep_every_bit_and_the_others_move(tx: Any) -> None:
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(20):
        updates, state = jax.jit(tx.update)(GRADS, state, params)
        params = apply_updates(params, updates)
    assert bits(params["encoder"]) == bits(PARAMS["encoder"])
    assert all(
        jnp.all(a < b)
        for a, b in zip(*map(jax.tree.leaves, (params["decoder"], PARAMS["decoder"])))
    )


def test_frozen_parameters_have_no_optimizer_state_and_no_part_in_norms() -> None:
    clipped = optim.chain(optim.clip_by_global_norm(1.0), optim.adam(0.1))
    tx = optim.selective_transform(clipped, freeze_mask=FROZEN)
    state = tx.init(PARAMS)
    decoder = sum(leaf.size for leaf in jax.tree.leaves(PARAMS["decoder"]))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * decoder + 1
    alone = optim.selective_transform(optim.clip_by_global_norm(1.0), freeze_mask=FROZEN)
    updates, _ = alone.update(GRADS, alone.init(PARAMS))
    np.testing.assert_allclose(optim_norm(updates), 1.0, rtol=1e-6)  # a few roundings


def optim_norm(tree: Any) -> float:
    return float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))))


def test_one_bool_is_a_mask_of_everything() -> None:
    for mask, expected in ((True, 0.0), (False, 1.0), (jnp.bool_(True), 0.0)):
        tx = optim.freeze(mask)
        updates, _ = tx.update(GRADS, tx.init(PARAMS))
        assert all(jnp.all(leaf == expected) for leaf in jax.tree.leaves(updates))


def test_a_function_may_say_what_is_frozen() -> None:
    """In optax a function passed as `freeze_mask` is a leaf that is true: all is frozen."""

    def is_matrix(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    tx = optim.selective_transform(optim.sgd(1.0), freeze_mask=is_matrix)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert not jnp.any(updates["encoder"]["kernel"]) and jnp.all(updates["encoder"]["bias"] < 0)
    judge = optax.selective_transform(optax.sgd(1.0), freeze_mask=is_matrix)
    updates, _ = judge.update(GRADS, judge.init(PARAMS), PARAMS)
    assert not jnp.any(updates["encoder"]["bias"])


@pytest.mark.parametrize(
    "function",
    [
        lambda name: "enc" in name,
        lambda name: name.startswith("enc"),
        lambda n: "enc" in str(n),
    ],
    ids=["in", "method", "str"],
)
def test_a_function_of_one_name_may_say_what_is_frozen(function: Any) -> None:
    for tx in (
        optim.chain(optim.sgd(1.0), optim.freeze(function)),
        optim.selective_transform(optim.sgd(1.0), freeze_mask=function),
    ):
        updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
        frozen = jax.tree.map(lambda u: not jnp.any(u), updates)
        assert jax.tree.leaves(frozen["encoder"]) == [True, True]
        assert jax.tree.leaves(frozen["decoder"]) == [False, False]


def test_a_freeze_mask_that_does_not_fit_names_the_paths() -> None:
    tx = optim.freeze({"encodr": True, "decoder": False})
    with pytest.raises(ParameterError, match="no parameter matches 'encodr'") as caught:
        tx.init(PARAMS)
    assert "encoder" in str(caught.value.fix)
    with pytest.raises(ArgumentTypeError, match="a mask holds 'encoder'"):
        optim.freeze({"encoder": "encoder"})


def test_masked_around_an_optimizer_warns_once_and_says_what_freezes() -> None:
    """The reference's `masked(adam, trainable_mask)`: the frozen part would go uphill."""
    tx = optim.masked(optim.adam(1e-3), lambda params: {"encoder": False, "decoder": True})
    with pytest.warns(UserWarning, match=r"raw gradient of 2 parameters: encoder/bias") as log:
        state = tx.init(PARAMS)
        tx.init(PARAMS)
        jax.jit(tx.init)(PARAMS)
    assert len(log) == 1 and "selective_transform or freeze" in str(log[0].message)
    assert log[0].filename == __file__
    updates, _ = tx.update(GRADS, state, PARAMS)
    assert jnp.all(updates["encoder"]["kernel"] == 1.0), "the numbers are optax's"


@pytest.mark.parametrize(
    "tx",
    [
        optim.masked(optim.add_decayed_weights(0.1), FROZEN),
        optim.masked(optim.adam(0.1), True),
        optim.masked(optim.chain(optim.clip_by_global_norm(1.0), optim.trace(0.9)), FROZEN),
        optim.adamw(0.1, mask=FROZEN),
        optim.selective_transform(optim.adam(0.1), freeze_mask=True),
    ],
    ids=repr,
)
def test_masks_that_do_what_is_meant_do_not_warn(tx: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tx.init(PARAMS)


def test_the_learning_rate_is_seen_inside_chains() -> None:
    inner = optim.chain(optim.clip_by_global_norm(1.0), optim.sgd(lambda count: 0.1))
    with pytest.warns(UserWarning, match="passes on the raw gradient") as log:
        jax.jit(optim.chain(optim.masked(inner, FROZEN)).init)(PARAMS)
    assert log[0].filename == __file__, "the line that called init, though jit and chain did"


def test_the_warning_can_be_silenced_where_another_part_takes_the_rest() -> None:
    tx = optim.chain(
        optim.masked(optim.sgd(0.1), {"encoder": False, "decoder": True}),
        optim.masked(optim.set_to_zero(), FROZEN),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="masked")
        tx.init(PARAMS)
