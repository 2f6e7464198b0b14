"""Masks of weight decay."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from flaxtrain.errors import ArgumentTypeError, ParameterError, UnknownNameError
from flaxtrain.params import DECAY_PRESETS, ROLES, decay_mask, param_facts
from flaxtrain.tree import flatten, path_name
from tests.models import MLP, example
from tests.params.models import ROW, facts_of_example

FACTS = param_facts(MLP((4, 2)), ROW)


def decayed(facts: Any, preset: Any = "kernels") -> set[str]:
    return {
        path_name(path) for path, flag in flatten(decay_mask(facts, preset)).items() if flag
    }


def test_the_default_decays_kernels_and_recurrent_kernels_only() -> None:
    for name in ("CNN", "ViT", "GPT", "LSTM"):
        facts = facts_of_example(name)
        expected = {f.name for f in facts.params if f.role in ("kernel", "recurrent")}
        assert decayed(facts) == expected
        assert all(name.endswith("kernel") for name in expected)
    assert {"cell/hf/kernel", "cell/if/kernel"} <= decayed(facts_of_example("LSTM"))


def test_attention_biases_and_scanned_norms_are_left_alone_where_ndim_takes_them() -> None:
    facts = facts_of_example("GPT")
    taken_by_ndim = decayed(facts, "ndim") - decayed(facts, "kernels")
    assert {"blocks/attn/query/bias", "blocks/ln_1/scale", "wte/embedding"} <= taken_by_ndim
    assert "ln_f/scale" not in taken_by_ndim


def test_all_decays_everything() -> None:
    facts = facts_of_example("ViT")
    assert decayed(facts, "all") == {fact.name for fact in facts.params}


@pytest.mark.parametrize("name", ["ViT", "GPT"])
@pytest.mark.parametrize("preset", DECAY_PRESETS)
def test_a_mask_has_the_structure_of_the_params(name: str, preset: str) -> None:
    model, inputs = example(name)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs))["params"]
    mask = decay_mask(facts_of_example(name), preset)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    assert {type(flag) for flag in jax.tree.leaves(mask)} == {bool}


def test_a_function_of_the_fact_decides() -> None:
    assert decayed(FACTS, lambda fact: fact.owner_path == ("Dense_1",)) == {
        "Dense_1/bias",
        "Dense_1/kernel",
    }


def no_bias_no_norm(name: Any) -> bool:
    return "bias" not in name and "norm" not in name


def test_a_function_of_names_goes_by_the_class_of_the_module_too() -> None:
    """In this model norms are called `ln_1`, `ln_2` and `ln_f`."""
    facts = facts_of_example("GPT")
    roles = ("bias", "norm_scale", "norm_bias")
    expected = {f.name for f in facts.params if f.role not in roles}
    assert decayed(facts, no_bias_no_norm) == expected
    assert not any("norm" in name for name in expected)


def test_a_function_of_names_that_also_answers_for_facts_is_asked_again() -> None:
    assert decayed(FACTS, lambda name: str(name).endswith("kernel")) == {
        "Dense_0/kernel",
        "Dense_1/kernel",
    }


def test_a_function_that_fails_for_facts_and_names_fails_with_the_first_error() -> None:
    with pytest.raises(AttributeError, match="'ParamFact' object has no attribute 'roll'"):
        decay_mask(FACTS, lambda fact: fact.roll == "kernel")


def test_nested_dicts_are_taken_as_they_are() -> None:
    tree = {
        "Dense_1": {"kernel": np.bool_(True), "bias": False},
        "Dense_0": {"kernel": True, "bias": True},
    }
    assert decay_mask(FACTS, tree) == {
        "Dense_0": {"bias": True, "kernel": True},
        "Dense_1": {"bias": False, "kernel": True},
    }


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'kernels'"):
        decay_mask(FACTS, "kernel")


def test_another_structure_is_refused_with_the_paths() -> None:
    tree = {
        "Dense_0": {"kernel": True, "bias": False},
        "Dense_1": {"kernal": True, "bias": False},
    }
    with pytest.raises(ParameterError) as caught:
        decay_mask(FACTS, tree)
    assert "1 missing: Dense_1/kernel; 1 unknown: Dense_1/kernal" in caught.value.found
    with pytest.raises(ParameterError, match="4 missing: Dense_0/bias"):
        decay_mask(FACTS, {})
    with pytest.raises(ParameterError, match="unknown: Dense_0"):
        decay_mask(FACTS, {"Dense_0": True})


@pytest.mark.parametrize("value", [1, 0.5, None, "yes"])
def test_values_that_are_no_booleans_are_refused_with_the_parameter(value: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="not a bool") as caught:
        decay_mask(FACTS, lambda fact: value)
    assert caught.value.where == "decay_mask(facts, preset), parameter 'Dense_0/bias'"
    with pytest.raises(ArgumentTypeError):
        decay_mask(FACTS, FACTS.tree(lambda fact: value))


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_mask_at_all_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="neither nested dicts nor a function"):
        decay_mask(FACTS, 3)  # pyright: ignore[reportArgumentType] -- the mistake under test


def test_roles_that_decay_are_roles() -> None:
    assert {"kernel", "recurrent"} <= set(ROLES)
