"""Interceptors of modules whose methods are compiled by `nn.jit`."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from flaxtrain.params.intercept import (
    MethodCall,
    attribute,
    intercepted,
    intercepted_under_jit,
)
from tests.params.models import ROW, Jitted, Scanned

RNGS = {"params": jax.random.key(0)}


@pytest.mark.parametrize(("model", "inner"), [(Jitted(), "fc"), (Scanned(Jitted), "stack/fc")])
def test_modules_are_met_again_in_every_context(model: nn.Module, inner: str) -> None:
    model.init(RNGS, ROW)  # from here on `nn.jit` knows a program for it
    for _ in range(2):
        met = []

        def note(call: MethodCall, met: list[str] = met) -> Any:
            met.append("/".join(call.path))
            return call.run()

        with intercepted_under_jit(note, RNGS) as streams:
            model.init({**RNGS, **streams}, ROW)
        assert inner in met


def test_only_interceptors_of_the_same_text_share_programs() -> None:
    traces = []

    def note(call: MethodCall) -> Any:
        traces.append(call.method)
        return call.run()

    def run(key_text: str | None) -> int:
        before = len(traces)
        with intercepted_under_jit(note, RNGS, key_text) as streams:
            Jitted().init({**RNGS, **streams}, ROW)
        return len(traces) - before

    first, again, other, fresh = run("a"), run("a"), run("b"), run(None)
    assert again < first == other == fresh


def test_arguments_and_results_can_be_exchanged() -> None:
    def doubled(call: MethodCall) -> Any:
        (x,) = call.args
        return call._replace(args=(2 * x,)).run() + 1

    variables = nn.Dense(2).init(RNGS, ROW)
    plain = nn.Dense(2).apply(variables, 2 * ROW)
    with intercepted(doubled):
        found = nn.Dense(2).apply(variables, ROW)
    assert jnp.array_equal(jnp.asarray(found), jnp.asarray(plain) + 1)


def test_an_attribute_is_set_back_after_an_error() -> None:
    norm = nn.BatchNorm(momentum=0.9)
    with pytest.raises(KeyError), attribute(norm, "momentum", 0.0):
        assert norm.momentum == 0.0
        raise KeyError
    assert norm.momentum == 0.9
