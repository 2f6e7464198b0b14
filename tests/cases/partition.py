"""Rows of groups of parameters: labels, freezing, masks, factors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.cases.base import (
    FUNCTION,
    ONLY_W,
    PREFIX_MASK,
    Case,
    Lack,
    Oracle,
    halving,
    per_array,
)
from tests.oracles.adam import adam
from tests.oracles.sgd import sgd


def top_level(tree: Any) -> Any:
    """Labels every parameter with its key at the top."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, tree)


def by_key(w: Oracle, rest: Oracle) -> Oracle:
    """One oracle for the key `w` and another for the key `rest`."""
    return lambda params, grads: {
        "w": w(params["w"], grads["w"]),
        "rest": rest(params["rest"], grads["rest"]),
    }


def still(x: np.ndarray, gradients: np.ndarray, **unused: Any) -> np.ndarray:
    return np.stack([x] * len(gradients))


def _optax_holds_the_rest_too(case: Case) -> None:
    tx, params = case.judge(), {"w": jnp.ones(2), "rest": {"b": jnp.ones(2)}}
    updates, _ = tx.update(params, tx.init(params), params)
    assert not jnp.any(updates["rest"]["b"]) and jnp.all(updates["w"])


def _plus_zero_flips_a_bit(case: Case) -> None:
    tx, params = case.judge(), {"w": jnp.ones(2), "rest": {"b": -jnp.zeros(2)}}
    updates, _ = tx.update(params, tx.init(params), params)
    moved = optax.apply_updates(params, updates)["rest"]["b"]
    assert bool(jnp.all(jnp.signbit(params["rest"]["b"]) & ~jnp.signbit(moved)))


def _optax_has_no_factors(case: Case) -> None:
    assert not hasattr(optax, "scale_by_multipliers")


FROZEN = Lack("half of the parameters are frozen", _optax_holds_the_rest_too)
FREEZES = {
    "bitwise": Lack(
        "frozen updates are -0.0: optax's +0.0 changes parameters that are -0.0",
        _plus_zero_flips_a_bit,
    ),
    "parabola": FROZEN,
    "rosenbrock": FROZEN,
}

CASES = (
    Case(
        "partition(adam, sgd)",
        lambda o, lr: o.partition(
            {"a": o.adam(lr), "b": o.sgd(lr, 0.9)}, {"w": "a", "rest": "b"}
        ),
        0.02,
        5e-4,
        oracle=by_key(per_array(adam), per_array(sgd, momentum=0.9)),
    ),
    Case(
        "multi_transform(function of paths, schedule)",
        lambda o, lr: o.multi_transform(
            {"w": o.adamw(lr), "rest": o.sgd(lambda count: lr * halving(count), 0.9)}, top_level
        ),
        0.05,
        1e-3,
        weight_decay=1e-4,
        needs_params=True,
        lacks={"prints": FUNCTION},
    ),
    Case(
        "selective_transform(adam)",
        lambda o, lr: o.selective_transform(o.adam(lr), freeze_mask={"w": False, "rest": True}),
        oracle=by_key(per_array(adam), per_array(still)),
        lacks=FREEZES,
    ),
    Case(
        "chain(adamw, freeze)",
        lambda o, lr: o.chain(o.adamw(lr), o.freeze({"w": False, "rest": True})),
        weight_decay=1e-4,
        needs_params=True,
        lacks=FREEZES,
    ),
    Case(
        "chain(scale_by_adam, masked(add_decayed_weights), scale)",
        lambda o, lr: o.chain(
            o.scale_by_adam(),
            o.masked(o.add_decayed_weights(1e-2), PREFIX_MASK),
            o.scale(-lr),
        ),
        rosenbrock=1e-2,
        weight_decay=1e-2,
        needs_params=True,
        oracle=per_array(adam, decayed=ONLY_W, weight_decay=lambda step: 1e-2),
    ),
    Case(
        "chain(sgd, scale_by_multipliers)",
        lambda o, lr: o.chain(o.sgd(lr, 0.9), o.scale_by_multipliers({"rest": 0.5})),
        0.02,
        5e-4,
        oracle=by_key(
            per_array(sgd, momentum=0.9),
            per_array(sgd, momentum=0.9, learning_rate=lambda step: 5e-3),
        ),
        lacks={"in_optax": Lack("optax has no such transformation", _optax_has_no_factors)},
    ),
)
