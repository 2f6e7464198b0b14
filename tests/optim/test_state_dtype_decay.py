"""With `state_dtype`, the whole optimizer computes in float32: the weight decay too."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain import optim
from tests.runs import deviation

DECAY = 0.37  # not a number of bfloat16

FACTORIES: dict[str, dict[str, Any]] = {
    "adabelief": {"weight_decay": DECAY},
    "adadelta": {"weight_decay": DECAY},
    "adafactor": {"weight_decay_rate": DECAY},
    "adamaxw": {"weight_decay": DECAY},
    "adamw": {"weight_decay": DECAY},
    "adan": {"weight_decay": DECAY},
    "lamb": {"weight_decay": DECAY},
    "lars": {"weight_decay": DECAY},
    "lion": {"weight_decay": DECAY},
    "nadamw": {"weight_decay": DECAY},
}


def arrays(dtype: Any) -> tuple[Any, Any]:
    """Returns parameters and gradients whose values are exact in bfloat16."""
    rng = np.random.default_rng(0)
    values = (jnp.asarray(rng.normal(size=(3, 4)), jnp.bfloat16) for _ in range(4))
    w, b, grad_w, grad_b = (value.astype(dtype) for value in values)
    return {"w": w, "b": b, "none": None}, {"w": grad_w, "b": grad_b, "none": None}


def second_update(tx: Any, params: Any, grads: Any) -> Any:
    _, state = tx.update(grads, tx.init(params), params)
    return jax.jit(tx.update)(grads, state, params)[0]


@pytest.mark.parametrize("name", FACTORIES)
def test_weight_decay_of_bfloat16_parameters_is_added_in_float32(name: str) -> None:
    factory: Any = getattr(optim, name)
    arguments = {"learning_rate": 1.0, **FACTORIES[name]}
    found = second_update(factory(**arguments, state_dtype="float32"), *arrays(jnp.bfloat16))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32"}
    with jax.enable_x64(True):
        truth = second_update(factory(**arguments), *arrays(jnp.float64))
    # Roundings of float32; 0.37 in bfloat16 alone is off by 1e-3 of itself.
    assert deviation(found, truth) < 1e-5


@pytest.mark.parametrize("name", FACTORIES)
def test_states_are_those_of_the_chain(name: str) -> None:
    factory: Any = getattr(optim, name)
    params, grads = arrays(jnp.float32)
    one, other = (
        factory(learning_rate=1.0, **FACTORIES[name], **more)
        for more in ({}, {"state_dtype": "float32"})
    )
    before, after = (tx.update(grads, tx.init(params), params)[1] for tx in (one, other))
    assert jax.tree.structure(before) == jax.tree.structure(after)
