"""The optimizers that have a name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.optim.adam import Adam, Nadam
from flaxtrain.optim.sgd import GradientDescent, Trace

LIST = Path(__file__).resolve().parents[1] / "compat" / "optax_names.json"
OPTIMIZERS = {
    row["name"] for row in json.loads(LIST.read_text()) if row["category"] == "optimizer"
}


def test_every_name_is_that_of_a_function_here() -> None:
    # Polyak's needs the loss at every update, which a spec does not pass on yet.
    assert set(optim.NAMED) == OPTIMIZERS - {"polyak_sgd"} | {"shampoo"}
    for name, entry in optim.NAMED.items():
        assert entry.name == name and getattr(optim, name) is entry.factory
        assert entry.doc and entry.doc.endswith(".")


def test_defaults_are_those_of_the_functions() -> None:
    decays = {name: entry.weight_decay for name, entry in optim.NAMED.items()}
    assert {name for name, decay in decays.items() if decay} == {
        *("adamaxw", "adamw", "lion", "nadamw")
    }
    assert (decays["adamw"], decays["lion"]) == (1e-4, 1e-3)
    assert optim.NAMED["adam"].stages(0.1)[0] == Adam()
    assert optim.NAMED["sgd"].stages(0.1)[0] == GradientDescent()


def test_rules_take_the_hyperparameters_of_their_optimizer_and_check_them() -> None:
    assert optim.NAMED["adamw"].stages(0.1, b2=0.95, nesterov=True)[0] == Nadam(b2=0.95)
    assert optim.NAMED["sgd"].stages(0.1, momentum=0.0)[0] == Trace(0.0)
    with pytest.raises(ArgumentError, match="b1=1"):
        optim.NAMED["adam"].stages(0.1, b1=1)[0]


@pytest.mark.parametrize("wrong", ["beta1", "weight_decay", "mask"])
def test_what_is_not_a_hyperparameter_is_refused(wrong: str) -> None:
    with pytest.raises(ArgumentTypeError, match="Arguments: b1, b2, eps, eps_root"):
        optim.NAMED["adamw"].stages(0.1, **{wrong: 0.1})


def test_a_misspelt_hyperparameter_is_answered_with_the_nearest() -> None:
    with pytest.raises(ArgumentTypeError, match="did you mean 'momentum'"):
        optim.NAMED["sgd"].stages(0.1, momentun=0.9)[0]


def test_the_table_can_not_be_changed() -> None:
    with pytest.raises(TypeError):
        optim.NAMED["adam"] = optim.NAMED["sgd"]  # type: ignore[index]
