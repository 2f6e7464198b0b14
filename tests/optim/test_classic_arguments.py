"""The classic families refuse what can't be meant, where the optimizer is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flaxtrain import optim
from flaxtrain.errors import (
    ArgumentError,
    ArgumentTypeError,
    FlaxtrainError,
    UnknownNameError,
)
from flaxtrain.optim.adadelta import adadelta_stages
from flaxtrain.optim.adagrad import adagrad_rule
from flaxtrain.optim.noise import noisy_sgd_stages
from flaxtrain.optim.optimistic import optimistic_gradient_descent_rule
from flaxtrain.optim.optimistic_adam import optimistic_adam_stages, optimistic_adam_v2_stages
from flaxtrain.optim.rmsprop import rmsprop_stages
from flaxtrain.optim.rprop import rprop_stages
from flaxtrain.optim.sign import sign_sgd_rule, signum_stages
from flaxtrain.optim.sm3 import sm3_rule
from tests.runs import refused


def schedule(count: Any) -> Any:
    return 0.1


WRONG: list[tuple[Callable[[], Any], type[FlaxtrainError], str]] = [
    (lambda: optim.adagrad(-0.1), ArgumentError, "learning_rate=-0.1"),
    (lambda: optim.adagrad(0.1, -0.1), ArgumentError, "initial_accumulator_value=-0.1"),
    (lambda: optim.scale_by_rss(eps=-1e-7), ArgumentError, "eps=-1e-07"),
    (lambda: adagrad_rule(epss=1.0), ArgumentTypeError, "did you mean 'eps'"),
    (lambda: optim.adagrad(0.1, state_dtype=int), ArgumentTypeError, "state_dtype"),
    (lambda: optim.rmsprop("0.1"), ArgumentTypeError, "learning_rate='0.1'"),
    (lambda: optim.rmsprop(0.1, decay=1.0), ArgumentError, "decay=1.0"),
    (lambda: optim.scale_by_rms(decay=-0.1), ArgumentError, "decay=-0.1"),
    (lambda: optim.scale_by_rms(eps=math.nan), ArgumentError, "eps=nan"),
    (lambda: optim.scale_by_stddev(eps=-1.0), ArgumentError, "eps=-1.0"),
    (lambda: optim.scale_by_stddev(initial_scale=-1.0), ArgumentError, "initial_scale=-1.0"),
    (lambda: optim.scale_by_rms(eps_in_sqrt="yes"), ArgumentTypeError, "eps_in_sqrt='yes'"),
    (lambda: optim.scale_by_stddev(bias_correction=1), ArgumentTypeError, "bias_correction=1"),
    (lambda: optim.scale_by_rms(state_dtype="int8"), ArgumentTypeError, "state_dtype='int8'"),
    (lambda: optim.scale_by_stddev(state_dtype=1.5), ArgumentTypeError, "state_dtype=1.5"),
    (lambda: optim.rmsprop(0.1, centered="no"), ArgumentTypeError, "centered='no'"),
    (lambda: optim.rmsprop(0.1, momentum=1.5), ArgumentError, "momentum=1.5"),
    (lambda: optim.rmsprop(0.1, momentum=-1.1), ArgumentError, "momentum=-1.1"),
    (lambda: optim.rmsprop(0.1, nesterov="no"), ArgumentTypeError, "nesterov='no'"),
    (lambda: rmsprop_stages(nesterov=True), ArgumentError, "without momentum"),
    (lambda: rmsprop_stages(momentun=0.1), ArgumentTypeError, "mean 'momentum'"),
    (lambda: optim.adadelta(-1.0), ArgumentError, "learning_rate=-1.0"),
    (lambda: optim.adadelta(rho=1.0), ArgumentError, "rho=1.0"),
    (lambda: optim.scale_by_adadelta(rho=-0.5), ArgumentError, "rho=-0.5"),
    (lambda: adadelta_stages(eps=-1.0), ArgumentError, "eps=-1.0"),
    (lambda: optim.adadelta(weight_decay=-1.0), ArgumentError, "weight_decay=-1.0"),
    (lambda: optim.adadelta(weight_decay_mask="w"), ArgumentTypeError, "a mask holds 'w'"),
    (lambda: optim.scale_by_adadelta(state_dtype=int), ArgumentTypeError, "state_dtype"),
    (lambda: optim.rprop(-0.1), ArgumentError, "learning_rate=-0.1"),
    (lambda: optim.rprop(schedule), ArgumentTypeError, "not a number"),
    (lambda: rprop_stages(schedule), ArgumentTypeError, "not a number"),
    (lambda: optim.rprop(0.1, eta_minus=0.0), ArgumentError, "eta_minus=0.0"),
    (lambda: optim.rprop(0.1, eta_minus=1.5), ArgumentError, "eta_minus=1.5"),
    (lambda: optim.rprop(0.1, eta_plus=0.9), ArgumentError, "eta_plus=0.9"),
    (lambda: optim.rprop(0.1, min_step_size=-1.0), ArgumentError, "min_step_size=-1.0"),
    (lambda: optim.rprop(0.1, max_step_size=0.0), ArgumentError, "max_step_size=0.0"),
    (
        lambda: optim.rprop(0.1, min_step_size=2.0, max_step_size=1.0),
        ArgumentError,
        "min_step_size=2.0 is above max_step_size=1.0",
    ),
    (lambda: optim.scale_by_rprop(0.1, state_dtype=int), ArgumentTypeError, "state_dtype"),
    (lambda: optim.sign_sgd(math.inf), ArgumentError, "learning_rate=inf"),
    (lambda: sign_sgd_rule(beta=0.9), ArgumentTypeError, "'beta'"),
    (lambda: optim.signum(0.1, beta=1.0), ArgumentError, "beta=1.0"),
    (lambda: signum_stages(beta=-1.0), ArgumentError, "beta=-1.0"),
    (lambda: optim.signum(0.1, accumulator_dtype=int), ArgumentTypeError, "accumulator_dtype"),
    (
        lambda: optim.signum(0.1, accumulator_dtype="float32", state_dtype="bfloat16"),
        ArgumentError,
        "both say how slots are stored",
    ),
    (lambda: optim.ema(1.0), ArgumentError, "decay=1.0"),
    (lambda: optim.ema(2.0), ArgumentError, "decay=2.0"),
    (lambda: optim.ema(0.9, debias=0.5), ArgumentTypeError, "debias=0.5"),
    (lambda: optim.ema(0.9, accumulator_dtype="int32"), ArgumentTypeError, "accumulator_dtype"),
    (lambda: optim.sm3(math.nan), ArgumentError, "learning_rate=nan"),
    (lambda: optim.sm3(0.1, momentum=1.0), ArgumentError, "momentum=1.0"),
    (lambda: sm3_rule(momentum=-0.1), ArgumentError, "momentum=-0.1"),
    (lambda: optim.scale_by_sm3(b1=1.0), ArgumentError, "b1=1.0"),
    (lambda: optim.scale_by_sm3(b2=1.1), ArgumentError, "b2=1.1"),
    (lambda: optim.scale_by_sm3(eps=-1.0), ArgumentError, "eps=-1.0"),
    (lambda: optim.scale_by_sm3(state_dtype=int), ArgumentTypeError, "state_dtype"),
    (lambda: optim.add_noise(-0.1, 0.5), ArgumentError, "eta=-0.1"),
    (lambda: optim.add_noise(0.1, -0.5), ArgumentError, "gamma=-0.5"),
    (lambda: optim.add_noise(0.1, 0.5, 0.5), ArgumentTypeError, "key=0.5"),
    (lambda: optim.add_noise(0.1, 0.5, True), ArgumentTypeError, "key=True"),
    (lambda: optim.add_noise(0.1, 0.5, "a"), ArgumentTypeError, "key='a'"),
    (
        lambda: optim.add_noise(0.1, 0.5, jax.random.split(jax.random.key(0))),
        ArgumentTypeError,
        "is neither an integer nor a key",
    ),
    (lambda: optim.noisy_sgd(0.1, seed=0.5), ArgumentTypeError, "seed=0.5"),
    (lambda: optim.noisy_sgd(0.1, key=1, seed=1), ArgumentError, "both say how to draw"),
    (lambda: optim.noisy_sgd(-0.1), ArgumentError, "learning_rate=-0.1"),
    (lambda: noisy_sgd_stages(gama=0.5), ArgumentTypeError, "did you mean 'gamma'"),
    (lambda: optim.scale_by_optimistic_gradient(-1.0), ArgumentError, "alpha=-1.0"),
    (lambda: optim.optimistic_gradient_descent(-1.0), ArgumentError, "learning_rate=-1.0"),
    (
        lambda: optim.optimistic_gradient_descent(0.1, beta=schedule),
        ArgumentTypeError,
        "not a number",
    ),
    (
        lambda: optimistic_gradient_descent_rule(beta=math.inf),
        ArgumentError,
        "beta=inf",
    ),
    (lambda: optim.optimistic_adam(schedule), ArgumentTypeError, "is a schedule"),
    (lambda: optim.optimistic_adam(0.1, math.nan), ArgumentError, "optimism=nan"),
    (lambda: optimistic_adam_stages(-0.1), ArgumentError, "learning_rate=-0.1"),
    (lambda: optim.optimistic_adam(0.1, b1=1.0), ArgumentError, "b1=1.0"),
    (lambda: optim.optimistic_adam_v2(-0.1), ArgumentError, "learning_rate=-0.1"),
    (lambda: optim.optimistic_adam_v2(0.1, b2=1.0), ArgumentError, "b2=1.0"),
    (lambda: optimistic_adam_v2_stages(eps=-1.0), ArgumentError, "eps=-1.0"),
    (
        lambda: optim.optimistic_adam_v2(0.1, mu_dtype="float32", state_dtype="float32"),
        ArgumentError,
        "both say how slots are stored",
    ),
    (lambda: optim.polyak_sgd(-1.0), ArgumentError, "max_learning_rate=-1.0"),
    (lambda: optim.polyak_sgd(math.nan), ArgumentError, "max_learning_rate=nan"),
    (lambda: optim.polyak_sgd(scaling=-1.0), ArgumentError, "scaling=-1.0"),
    (lambda: optim.polyak_sgd(f_min=math.nan), ArgumentError, "f_min=nan"),
    (lambda: optim.scale_by_polyak(eps=-1.0), ArgumentError, "eps=-1.0"),
    (lambda: optim.scale_by_polyak(variant="sps++"), UnknownNameError, "mean 'sps+'"),
    (lambda: optim.polyak_sgd(variant=1), ArgumentTypeError, "variant=1"),
]


@pytest.mark.parametrize(("call", "kind", "text"), WRONG, ids=[text for *_, text in WRONG])
def test_a_wrong_argument_of_a_classic_family_raises(
    call: Callable[[], Any], kind: type[FlaxtrainError], text: str, unchecked_types: None
) -> None:
    refused(call, kind, text)


@pytest.mark.parametrize(
    "tx",
    [
        optim.adagrad(0.0, 0, 0.0),
        optim.rmsprop(0.1, 0.0, 0, momentum=-1.0, nesterov=True),
        optim.rmsprop(0.1, nesterov=True),
        optim.adadelta(None, 0.0),
        optim.rprop(0.0, 1.0, 1.0, 0.0, 1e-3),
        optim.signum(0.1, 0.0),
        optim.sm3(0.1, 0.0),
        optim.scale_by_sm3(b2=0.0),
        optim.noisy_sgd(0.1, 0.0, 0.0, seed=-1),
        optim.optimistic_gradient_descent(0.1, 0.0, -0.5),
        optim.polyak_sgd(math.inf, 0.0, -2.0),
    ],
    ids=repr,
)
def test_a_value_at_the_edge_is_accepted_by_a_classic_family(tx: Any) -> None:
    params = jnp.ones(2)
    updates, _ = tx.update(params, tx.init(params), params, value=1.0)
    assert updates.shape == (2,) and bool(jnp.all(jnp.isfinite(updates)))
