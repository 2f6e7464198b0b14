"""Multipliers by layer, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError, ParameterError
from flaxtrain.params import Facts, ParamFact, facts_from, param_facts
from flaxtrain.params.layers import layers
from flaxtrain.spec.layer_decay import LayerDecay, multipliers
from tests.models import MLP
from tests.params.models import KINDS, ROW, TOKENS, Block, facts_of_example

Array = jax.Array


class Deep(nn.Module):
    """Four blocks: one after the other, in a scan, or in a scan of scans."""

    kind: str
    axis: int = 0

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        embed = nn.Embed(7, 8, name="embed")
        x = embed(tokens)
        axes: Any = {"params": self.axis}
        if self.kind == "unrolled":
            for index in range(4):
                x = Block(name=f"block_{index}")(x)[0]
        elif self.kind == "scanned":
            scan = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=4)
            x = scan(name="blocks")(x, None)[0]
        else:
            x = Nested(name="blocks", axis=self.axis)(x)[0]
        x = nn.LayerNorm(name="norm")(x)
        return embed.attend(x) + nn.Dense(7, name="head")(x)


class Nested(nn.Module):
    axis: int

    @nn.compact
    def __call__(self, x: Array) -> Any:
        def inner(module: nn.Module, x: Array, _: Any) -> Any:
            scan = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=2,
            )
            return scan(name="inner")(x, None)

        axes: Any = {"params": self.axis}
        scan = nn.scan(inner, variable_axes=axes, split_rngs={"params": True}, length=2)
        return scan(self, x, None)


@functools.cache
def deep(kind: str, axis: int = 0) -> Facts:
    return param_facts(Deep(kind, axis), TOKENS)


@pytest.mark.parametrize(
    ("kind", "axis"), [("scanned", 0), ("scanned", 1), ("nested", 0), ("nested", 1)]
)
def test_each_slice_of_a_stack_has_what_the_unrolled_model_has(kind: str, axis: int) -> None:
    decay = LayerDecay(0.7, min_scale=0.2)
    unrolled = multipliers(decay, deep("unrolled"))
    facts = deep(kind, axis)
    stacked = multipliers(decay, facts)
    compared = set()
    for fact in facts.params:
        scale = np.broadcast_to(stacked[fact.path], fact.shape)
        if not fact.scan_axes:
            assert stacked[fact.path] == unrolled[fact.path]
            compared.add(fact.path)
            continue
        outside_in = np.moveaxis(scale, fact.scan_axes, range(len(fact.scan_axes)))
        slices = outside_in.reshape(4, *fact.local_shape)
        own = fact.path[2:] if kind == "nested" else fact.path[1:]
        for index in range(4):
            path = (f"block_{index}", *own)
            np.testing.assert_array_equal(slices[index], unrolled[path], strict=False)
            compared.add(path)
    assert compared == set(unrolled)


def test_the_last_layer_keeps_its_learning_rate_and_the_first_has_the_least() -> None:
    found = multipliers(LayerDecay(0.5), facts_of_example("GPT"))
    assert found["ln_f", "scale"] == 1.0
    assert found["wte", "embedding"] == 0.5**4
    stack = found["blocks", "up", "kernel"]
    assert isinstance(stack, np.ndarray) and stack.dtype == np.float64
    assert stack.shape == (3, 1, 1)
    assert stack.ravel().tolist() == [0.5**3, 0.5**2, 0.5]
    assert list(found) == list(facts_of_example("GPT"))


def test_multipliers_broadcast_along_the_scan_axes_and_not_along_experts() -> None:
    found = multipliers(LayerDecay(0.5), KINDS["MoE"]())
    w1 = found["deep", "stack", "experts", "w1"]
    assert isinstance(w1, np.ndarray) and w1.shape == (3, 1, 1, 1)
    assert w1.ravel().tolist() == [0.5**4, 0.5**3, 0.5**2]
    assert found["last", "experts", "w1"] == 0.5


def test_no_multiplier_is_below_min_scale() -> None:
    facts = facts_of_example("GPT")
    found = multipliers(LayerDecay(0.5, min_scale=0.2), facts)
    assert found["wte", "embedding"] == 0.2
    assert np.ravel(found["blocks", "up", "bias"]).tolist() == [0.2, 0.25, 0.5]
    same = multipliers(LayerDecay(0.5, min_scale=1.0), facts)
    assert {float(value) for scale in same.values() for value in np.ravel(scale)} == {1.0}


def test_a_rate_of_1_changes_nothing_and_numbers_may_be_of_numpy() -> None:
    one: Any = np.float32(1)
    three: Any = np.int64(3)
    found = multipliers(LayerDecay(one, min_scale=0), facts_of_example("MLP"))
    assert set(found.values()) == {1.0}
    decay = LayerDecay(np.float64(0.5), layer_of={"**": three})
    assert (type(decay.rate), decay.layer_of) == (float, {"**": 3})


def test_a_model_without_parameters_has_no_multipliers() -> None:
    assert multipliers(LayerDecay(0.5), Facts(())) == {}


# Layers that are given.


def by_module(found: dict[Any, Any]) -> dict[str, Any]:
    return {path[0]: scale for path, scale in found.items()}


def test_the_first_selector_that_matches_decides_and_the_rest_keep_their_layer() -> None:
    given = LayerDecay(0.5, layer_of={"Dense_0/**": 1, "#kernel | #bias & Dense_0/*": 2})
    found = multipliers(given, facts_of_example("MLP"))
    assert found["Dense_0", "kernel"] == 0.5
    assert found["Dense_1", "kernel"] == 1.0
    assert found["Dense_1", "bias"] == 0.5  # from the facts: layer 1 of 3
    assert found["Dense_2", "bias"] == 1.0


def test_a_mapping_for_all_parameters_needs_no_order_of_use() -> None:
    model, key = MLP(), jax.random.key(0)
    facts = facts_from(lambda extra: model.init({"params": key, **extra}, ROW))
    given = LayerDecay(0.1, layer_of={"Dense_2": 1, "**": 0})
    assert by_module(multipliers(given, facts)) == {
        "Dense_0": 0.1,
        "Dense_1": 0.1,
        "Dense_2": 1,
    }
    with pytest.raises(ParameterError, match="in which order the parameters are used"):
        multipliers(LayerDecay(0.1, layer_of={"Dense_2": 1}), facts)


def test_a_layer_for_a_whole_stack_is_one_number() -> None:
    found = multipliers(LayerDecay(0.5, layer_of={"blocks": 2}), facts_of_example("GPT"))
    assert found["blocks", "up", "kernel"] == 0.25


def test_a_function_gives_layers_and_those_of_slices() -> None:
    def pairs(fact: ParamFact) -> Any:
        return (0, 0, 1) if fact.scan_axes else 2 * (fact.owner_name == "LayerNorm")

    found = multipliers(LayerDecay(0.5, layer_of=pairs), facts_of_example("GPT"))
    assert np.ravel(found["blocks", "ln_1", "scale"]).tolist() == [0.25, 0.25, 0.5]
    assert (found["ln_f", "scale"], found["wte", "embedding"]) == (1.0, 0.25)


def test_a_function_that_returns_the_layers_of_the_facts_changes_nothing() -> None:
    facts = deep("nested", axis=1)
    of = layers(facts).of
    found = multipliers(LayerDecay(0.7, layer_of=lambda fact: of[fact.path]), facts)
    inferred = multipliers(LayerDecay(0.7), facts)
    assert all(np.array_equal(found[path], scale) for path, scale in inferred.items())
    kernel = ("blocks", "inner", "up", "kernel")
    assert np.shape(inferred[kernel]) == (2, 2, 1, 1)


# As a value.


def test_it_is_plain_data() -> None:
    given = {"Dense_0": 0, "**": 1}
    decay = LayerDecay(0.75, 0.01, given)
    given["Dense_1"] = 5
    assert decay.layer_of == {"Dense_0": 0, "**": 1}
    data = json.loads(json.dumps(dataclasses.asdict(decay)))
    assert LayerDecay(**data) == decay
    assert list(data["layer_of"]) == ["Dense_0", "**"]
    assert hash(LayerDecay(**data)) == hash(decay)
    assert LayerDecay(0.75) != decay
    with pytest.raises(dataclasses.FrozenInstanceError):
        decay.rate = 0.1  # pyright: ignore[reportAttributeAccessIssue] -- the mistake under test


# What is refused.


def made(*arguments: Any, **keywords: Any) -> Callable[[], Any]:
    return lambda: LayerDecay(*arguments, **keywords)


def answering(answer: Any) -> Callable[[], Any]:
    decay = LayerDecay(0.5, layer_of=lambda fact: answer)
    return lambda: multipliers(decay, facts_of_example("GPT"))


def applied(layer_decay: Any, facts: Any = None) -> Callable[[], Any]:
    table = facts_of_example("MLP") if facts is None else facts
    return lambda: multipliers(layer_decay, table)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (made(0), ArgumentError, "rate=0 is out of range"),
        (made(1.1), ArgumentError, "rate=1.1 is out of range"),
        (made(float("nan")), ArgumentError, "rate=nan is out of range"),
        (made("0.5"), ArgumentTypeError, "rate='0.5' is a str, not a number"),
        (made(True), ArgumentTypeError, "rate=True is a bool"),
        (made(0.5, -0.1), ArgumentError, "min_scale=-0.1 is out of range"),
        (made(0.5, 1.5), ArgumentError, "min_scale=1.5 is out of range"),
        (made(0.5, layer_of=3), ArgumentTypeError, "layer_of=3 is an int"),
        (made(0.5, layer_of=[3]), ArgumentTypeError, "is no list of pairs"),
        (made(0.5, layer_of={("a",): 3}), ArgumentTypeError, "not the text of a selector"),
        (made(0.5, layer_of={"a": -1}), ArgumentError, "the layer=-1 is too small"),
        (made(0.5, layer_of={"a": 1.0}), ArgumentTypeError, "the layer=1.0 is a float"),
        (made(0.5, layer_of={"a": True}), ArgumentTypeError, "the layer=True is a bool"),
        (answering(-1), ArgumentError, "-1 is no layer of this parameter"),
        (answering((0, 1)), ArgumentError, "(0, 1) is no layer of this parameter"),
        (answering("first"), ArgumentTypeError, "'first' is no layer"),
        (answering(None), ArgumentTypeError, "None is no layer"),
        (answering(1.0), ArgumentTypeError, "1.0 is no layer"),
        (answering(True), ArgumentTypeError, "True is no layer"),
        (answering(((0, 1), 2)), ArgumentTypeError, "((0, 1), 2) is no layer"),
        (applied(0.5), ArgumentTypeError, "layer_decay is a float, not a LayerDecay"),
        (
            applied(LayerDecay(0.5), {}),
            ArgumentTypeError,
            "facts is a dict, not a table of facts",
        ),
        (
            applied(LayerDecay(0.5, layer_of={"Dense_0": 0, "Dense_7": 1})),
            ParameterError,
            "no parameter matches 'Dense_7'",
        ),
    ],
)
def test_what_is_wrong_is_answered(
    call: Callable[[], Any], kind: type[FlaxtrainError], text: str
) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert text in caught.value.found
    assert caught.value.where and caught.value.fix


def test_the_error_of_an_answer_names_the_parameter_and_the_shape() -> None:
    decay = LayerDecay(0.5, layer_of=lambda fact: (0, 1) if fact.scan_axes else 0)
    with pytest.raises(ArgumentError) as caught:
        multipliers(decay, facts_of_example("GPT"))
    assert caught.value.where == "LayerDecay(layer_of=...), parameter 'blocks/attn/key/bias'"
    assert caught.value.fix is not None and "of shape (3,)" in caught.value.fix


def test_the_error_of_a_selector_says_which_entry_it_is() -> None:
    decay = LayerDecay(0.5, layer_of={"Dense_7": 1})
    with pytest.raises(ParameterError) as caught:
        multipliers(decay, facts_of_example("MLP"))
    assert caught.value.where == "LayerDecay(layer_of={'Dense_7': ...})"


def test_of_two_layers_for_one_selector_the_first_counts() -> None:
    assert LayerDecay(0.5, layer_of=[("a/**", 0), ("a/**", 3)]).layer_of == {"a/**": 0}
