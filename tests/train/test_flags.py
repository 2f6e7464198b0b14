"""A flag is set to evaluation in whatever form it reaches a frozen module."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import pytest

from flaxtrain.train.frozen_modules import FrozenModule, FrozenModules
from tests.runs import same
from tests.train.frozen_models import (
    ENCODERS,
    AskingForStreams,
    Form,
    Model,
    start,
    train,
)

ENCODER = FrozenModules((FrozenModule(("encoder",)),))


@pytest.mark.parametrize("name", ENCODERS)
def test_a_frozen_module_is_the_one_built_for_evaluation(name: str) -> None:
    model = Model(ENCODERS[name])
    variables = start(model)
    place = (set(variables["params"]) - {"beside", "head"}).pop()  # its scope may be elsewhere
    outputs, collections = train(model, variables, FrozenModules((FrozenModule((place,)),)))
    expected, stats = train(Model(ENCODERS[name], frozen=True), variables)
    assert same(outputs, expected)
    assert same(collections, stats)
    before, after = dict(variables["batch_stats"]), dict(collections["batch_stats"])
    assert not same(after.pop("beside"), before.pop("beside"))
    assert same(after, before)
    assert not same(outputs[:1], train(model, variables, steps=1)[0]), "no flag, no difference"


def test_a_frozen_module_is_told_that_there_are_no_streams() -> None:
    model = Model(Form(lambda train: AskingForStreams()))
    variables = start(model)
    model_output = train(model, variables, ENCODER, steps=1)[0]
    off = Model(Form(lambda train: AskingForStreams(off=True)))
    assert same(model_output, train(off, variables, steps=1)[0])
    assert not same(model_output, train(model, variables, steps=1)[0])


def test_the_users_module_stays_as_it_is() -> None:
    inner: Any = ENCODERS["attribute read in setup"].make(True)

    class Holder(nn.Module):
        inner: Any

        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            return self.inner(x)

    model = Holder(inner)
    whole = FrozenModules((FrozenModule(()),))
    outputs, _ = train(model, start(model), whole, steps=1)
    assert model.inner is inner
    assert inner.train is True
    assert not same(outputs, train(model, start(model), steps=1)[0])
