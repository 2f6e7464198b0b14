"""The table as a mapping."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import pytest

from flaxtrain.errors import UnknownParameterError
from flaxtrain.params import Facts, param_facts
from tests.models import MLP
from tests.params.models import ROW

FACTS = param_facts(MLP(), ROW)


def test_a_fact_is_found_by_path_and_by_name() -> None:
    assert FACTS[("Dense_1", "bias")] is FACTS["Dense_1/bias"]
    assert ("Dense_1", "bias") in FACTS
    assert "Dense_1/bias" in FACTS
    assert "Dense_9/bias" not in FACTS
    assert FACTS.get(("Dense_9", "bias")) is None


def test_a_slash_inside_a_key_is_escaped_in_the_name() -> None:
    fact = Facts(FACTS.params[:1])
    odd = dataclasses.replace(fact.params[0], path=("outer", "fc/kernel/scale"))
    assert odd.name == "outer/fc\\/kernel\\/scale"
    assert Facts((odd,))[odd.name] is odd


def test_an_unknown_parameter_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownParameterError) as caught:
        FACTS["Dense_1/bais"]
    assert isinstance(caught.value, KeyError)
    assert caught.value.found == "no parameter 'Dense_1/bais'"
    assert caught.value.fix is not None and "Dense_1/bias" in caught.value.fix
    with pytest.raises(UnknownParameterError, match="there are none"):
        Facts(())[("a",)]


def test_it_iterates_over_paths_in_the_order_of_the_params() -> None:
    assert list(FACTS) == [
        (f"Dense_{index}", leaf) for index in range(3) for leaf in ("bias", "kernel")
    ]
    assert len(FACTS) == 6
    assert [fact.path for fact in FACTS.values()] == list(FACTS)


def test_sizes_are_sums() -> None:
    kernel = FACTS["Dense_0/kernel"]
    assert (kernel.size, kernel.nbytes) == (8 * 16, 8 * 16 * 4)
    assert FACTS.size == 8 * 16 + 16 + 16 * 16 + 16 + 16 * 4 + 4
    assert repr(FACTS) == "Facts(6 parameters, 484 values)"


def test_a_tree_has_the_structure_of_the_params() -> None:
    assert FACTS.tree(lambda fact: fact.depth) == {
        "Dense_0": {"bias": 1, "kernel": 0},
        "Dense_1": {"bias": 3, "kernel": 2},
        "Dense_2": {"bias": 5, "kernel": 4},
    }


def test_it_can_not_be_changed() -> None:
    broken: Any = FACTS
    with pytest.raises(dataclasses.FrozenInstanceError):
        broken.params = ()
    with pytest.raises(TypeError):
        broken["Dense_0/kernel"] = None


def test_equal_models_have_equal_tables_and_different_ones_different() -> None:
    assert param_facts(MLP(), ROW) == FACTS
    assert param_facts(MLP((16, 4)), ROW) != FACTS
    assert len({FACTS, param_facts(MLP(), ROW)}) == 1


def test_an_unresolved_owner_prints_as_a_question_mark() -> None:
    fact = dataclasses.replace(FACTS.params[0], owner=None, resolved=False)
    assert fact.owner_name == "?"


def test_the_modules_around_are_classes_and_leave_the_owner_out() -> None:
    kernel = FACTS["Dense_0/kernel"]
    assert (kernel.around, kernel.owner) == ((MLP,), nn.Dense)


def test_owner_path_is_the_module_and_not_the_parameter() -> None:
    assert FACTS["Dense_0/kernel"].owner_path == ("Dense_0",)
    assert FACTS["Dense_0/kernel"].owner is not None
