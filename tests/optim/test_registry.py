"""The optimizers that have a name."""

from __future__ import annotations

import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError


def test_every_name_is_that_of_a_function_here() -> None:
    assert set(optim.NAMED) == {"adam", "adamw", "sgd"}
    for name, entry in optim.NAMED.items():
        assert entry.name == name and getattr(optim, name) is entry.factory
        assert entry.doc and entry.doc.endswith(".")


def test_defaults_are_those_of_the_functions() -> None:
    assert {name: entry.weight_decay for name, entry in optim.NAMED.items()} == {
        "adam": 0.0,
        "adamw": 1e-4,
        "sgd": 0.0,
    }
    assert optim.NAMED["adam"].stages(0.1)[0] == optim.Adam()
    assert optim.NAMED["sgd"].stages(0.1)[0] == optim.GradientDescent()


def test_rules_take_the_hyperparameters_of_their_optimizer_and_check_them() -> None:
    assert optim.NAMED["adamw"].stages(0.1, b2=0.95, nesterov=True)[0] == optim.Nadam(b2=0.95)
    assert optim.NAMED["sgd"].stages(0.1, momentum=0.0)[0] == optim.Trace(0.0)
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
