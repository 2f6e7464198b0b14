"""Bad values are refused where the optimizer is made, with the place and the fix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError
from flaxtrain.optim.sgd import sgd_rule
from tests.runs import refused

WRONG: list[tuple[Callable[[], Any], type[FlaxtrainError], str]] = [
    (lambda: optim.sgd(-0.1), ArgumentError, "learning_rate=-0.1"),
    (lambda: optim.adam(math.nan), ArgumentError, "learning_rate=nan"),
    (lambda: optim.adamw(math.inf), ArgumentError, "learning_rate=inf"),
    (lambda: optim.adam("0.1"), ArgumentTypeError, "learning_rate='0.1' is a str"),
    (lambda: optim.adam(None), ArgumentTypeError, "learning_rate=None"),
    (lambda: optim.sgd(True), ArgumentTypeError, "learning_rate=True"),
    (lambda: optim.scale_by_learning_rate(-1.0), ArgumentError, "learning_rate=-1.0"),
    (lambda: optim.adam(0.1, b1=1.0), ArgumentError, "b1=1.0"),
    (lambda: optim.adam(0.1, b1=-0.1), ArgumentError, "b1=-0.1"),
    (lambda: optim.adamw(0.1, b2=2), ArgumentError, "b2=2"),
    (lambda: optim.adam(0.1, eps=-1e-8), ArgumentError, "eps=-1e-08"),
    (lambda: optim.adam(0.1, eps_root=math.nan), ArgumentError, "eps_root=nan"),
    (lambda: optim.adam(0.1, mu_dtype="float23"), ArgumentTypeError, "mu_dtype='float23'"),
    (lambda: optim.adam(0.1, mu_dtype=jnp.int8), ArgumentTypeError, "not a floating dtype"),
    (
        lambda: optim.adam(0.1, mu_dtype="bfloat16", state_dtype="float32"),
        ArgumentError,
        "both say how slots are stored",
    ),
    (lambda: optim.adamw(0.1, weight_decay=-1e-4), ArgumentError, "weight_decay=-0.0001"),
    (lambda: optim.add_decayed_weights("0.1"), ArgumentTypeError, "weight_decay='0.1'"),
    (lambda: optim.adamw(0.1, mask="kernels"), ArgumentTypeError, "a mask holds 'kernels'"),
    (lambda: optim.masked(optim.sgd(0.1), {"a": 2}), ArgumentTypeError, "a mask holds 2"),
    (lambda: optim.sgd(0.1, momentum=1.5), ArgumentError, "momentum=1.5"),
    (lambda: optim.trace(math.nan), ArgumentError, "decay=nan"),
    (
        lambda: optim.sgd(0.1, 0.9, accumulator_dtype=int),
        ArgumentTypeError,
        "accumulator_dtype",
    ),
    (lambda: optim.clip_by_global_norm(0.0), ArgumentError, "max_norm=0.0"),
    (lambda: optim.clip_by_global_norm(-1.0), ArgumentError, "max_norm=-1.0"),
    (lambda: optim.clip_by_global_norm(math.nan), ArgumentError, "max_norm=nan"),
    (lambda: optim.scale("0.1"), ArgumentTypeError, "step_size='0.1'"),
    (lambda: optim.scale(math.nan), ArgumentError, "step_size=nan"),
    (lambda: optim.scale(jnp.array([1.0, jnp.inf])), ArgumentError, "is not finite"),
    (lambda: optim.scale_by_schedule(0.1), ArgumentTypeError, "is not callable"),
    (lambda: optim.chain(optim.sgd(0.1), 0.1), ArgumentTypeError, "is not a gradient"),
    (
        lambda: optim.named_chain(("a", optim.sgd(0.1)), ("a", optim.sgd(0.1))),
        ArgumentError,
        "a, a",
    ),
    (lambda: optim.named_chain(optim.sgd(0.1)), ArgumentTypeError, "is not a pair"),
    (lambda: optim.adam(learning_rat=0.1), ArgumentTypeError, "did you mean 'learning_rate'"),
    (lambda: sgd_rule(nesterov=True), ArgumentError, "without momentum"),
]


@pytest.mark.parametrize(("call", "kind", "text"), WRONG, ids=[text for *_, text in WRONG])
def test_a_wrong_argument_raises(
    call: Callable[[], Any], kind: type[FlaxtrainError], text: str, unchecked_types: None
) -> None:
    refused(call, kind, text)


@pytest.mark.parametrize(
    "tx",
    [
        optim.sgd(0.0),
        optim.sgd(1, momentum=-0.5),
        optim.trace(1.0),
        optim.adam(np.float32(0.1), b1=0.0, eps=0.0),
        optim.adamw(jnp.float32(0.1), weight_decay=0),
        optim.adam(0.1, mu_dtype=np.dtype("float16")),
        optim.scale(-2),
        optim.scale(1j),
    ],
    ids=repr,
)
def test_a_value_at_the_edge_is_accepted(tx: optim.GradientTransformation) -> None:
    params = jnp.ones(2, jnp.complex64 if "1j" in repr(tx) else jnp.float32)
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates.shape == (2,)


def test_tracers_are_accepted_for_every_hyperparameter() -> None:
    def update(value: Any) -> Any:
        tx = optim.chain(
            optim.clip_by_global_norm(value),
            optim.trace(value),
            optim.adamw(value, value, value, value, value, weight_decay=value),
            optim.scale(value),
        )
        return tx.update(jnp.ones(3), tx.init(jnp.ones(3)), jnp.ones(3))[0]

    together = jax.vmap(update)(jnp.array([0.25, 0.5]))
    # Batched and single programs round differently in the last places.
    np.testing.assert_allclose(together[1], update(0.5), rtol=1e-5)
