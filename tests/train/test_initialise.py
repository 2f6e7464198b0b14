"""The model that initialises itself, in training and then in evaluation."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain import errors
from flaxtrain.train.initialise import InitialisingModel

X = jnp.ones((2, 3))
KEYS = {"params": jax.random.key(0)}


class TwoModes(nn.Module):
    """Each mode has parameters of its own, both have `shared`; in evaluation it sows, too."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.Dense(3, name="shared", use_bias=False)(x)
        if train:
            return nn.Dense(2, name="training")(x)
        self.sow("seen", "x", x)
        return nn.Dense(2, name="evaluation")(x)


def test_evaluation_adds_what_init_makes_and_keeps_what_is_there() -> None:
    training = InitialisingModel(TwoModes(), KEYS)
    training(X)
    training.variables["params"]["shared"]["kernel"] = kept = jnp.full((3, 3), 7.0)
    evaluation = training.evaluation()
    evaluation(X)
    params = evaluation.variables["params"]
    assert params.keys() == {"shared", "training", "evaluation"}
    assert params["shared"]["kernel"] is kept
    alone: Any = TwoModes().init(KEYS, X, train=False)["params"]
    assert np.array_equal(params["evaluation"]["kernel"], alone["evaluation"]["kernel"])
    # The model that was trained is as it was.
    assert training.variables["params"].keys() == {"shared", "training"}
    assert (training.sown_collections, evaluation.sown_collections) == (set(), {"seen"})


def test_a_model_in_evaluation_knows_all_params_and_draws_nothing() -> None:
    training = InitialisingModel(TwoModes(), KEYS)
    training(X)
    evaluation = training.evaluation()
    assert evaluation.params.keys() == {"shared", "training"}
    assert training.train and not evaluation.train
    with pytest.raises(errors.ModelError, match="asked for in evaluation"):
        evaluation.rng("noise")
    assert jnp.issubdtype(training.rng("noise").dtype, jax.dtypes.prng_key)


def test_the_question_for_the_mode_is_noted() -> None:
    flagged, given, plain, read = (
        InitialisingModel(module, KEYS)
        for module in (TwoModes(), TwoModes(), nn.Dense(2), nn.Dense(2))
    )
    assert not flagged.asked_for_mode
    flagged(X)
    given(X, train=True)  # the caller has decided
    plain(X)
    plain.rng("noise")
    assert read.train
    asked = [model.asked_for_mode for model in (flagged, given, plain, read)]
    assert asked == [True, False, False, True]


@nn.jit
class SowsUnderJit(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        self.sow("losses", "size", jnp.sum(x))
        return nn.Dense(2)(x)


def test_what_a_module_under_jit_sows_is_noted_in_every_run() -> None:
    for _ in range(2):  # for the second one `nn.jit` knows a program
        model = InitialisingModel(SowsUnderJit(), KEYS)
        model(X)
        assert model.sown_collections == {"losses"} and model.variables.keys() == {"params"}
