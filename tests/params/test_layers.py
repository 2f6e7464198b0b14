"""The layers of models of many kinds, written by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from flaxtrain.errors import ArgumentTypeError, ParameterError
from flaxtrain.params import Facts, facts_from, param_facts
from flaxtrain.params.layers import Layers, layers
from flaxtrain.tree import path_name
from tests.models import MLP, TransformerBlock, example
from tests.params.models import KINDS, ROW, SEQUENCE, TOKENS, Adapted, Scanned, facts_of_example
from tests.params.models import Block as ResidualMLP

Array = jax.Array
ones = nn.initializers.ones


def check(facts: Facts, expected: dict[str, Any], count: int) -> Layers:
    """Compares the layers with a table: the layer of all parameters whose names begin so."""
    found = layers(facts)
    assert found.count == count
    assert list(found.of) == list(facts)
    remaining = set(expected)
    for path, layer in found.of.items():
        name = path_name(path)
        begins = max((key for key in expected if name.startswith(key)), key=len, default=None)
        assert begins is not None, f"{name} is not in the table"
        assert layer == expected[begins], name
        remaining.discard(begins)
    assert not remaining
    return found


# Blocks that are modules.


class Decoder(nn.Module):
    """A GPT that isn't scanned; `setup` declares the blocks in the wrong order."""

    layers: int = 3

    def setup(self) -> None:
        self.ln_f = nn.LayerNorm()
        self.h = [TransformerBlock(2, 0.0, False) for _ in range(self.layers)]
        self.wpe, self.wte = nn.Embed(8, 8), nn.Embed(11, 8)

    def __call__(self, tokens: Array) -> Array:
        x = self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[1])[None])
        for block in self.h[::-1]:
            x = block(x)[0]
        return self.wte.attend(self.ln_f(x))


def test_blocks_are_numbered_by_first_use_between_embeddings_and_head() -> None:
    expected = {"wte": 0, "wpe": 0, "h_2": 1, "h_1": 2, "h_0": 3, "ln_f": 4}
    found = check(param_facts(Decoder(), TOKENS), expected, 5)
    assert found.modules == (("wte", "wpe"), ("h_2",), ("h_1",), ("h_0",), ("ln_f",))


class Eleven(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        for index in range(11):
            x = HasShift(name=f"h_{index}")(x, x)[0]
        return x


def test_ten_comes_after_nine() -> None:
    found = layers(param_facts(Eleven(), ROW))
    assert found.modules[1:3] + found.modules[9:] == (("h_1",), ("h_2",), ("h_9",), ("h_10",))


def test_a_residual_network_has_its_projections_in_the_blocks() -> None:
    expected = {"stem": 0, "block0": 1, "block1": 2, "head": 3}
    check(param_facts(*example("ResNet"), train=True), expected, 4)


def test_a_vision_transformer_has_its_tokens_in_the_stem() -> None:
    expected = {"patches": 0, "cls": 0, "pos_embedding": 0, "block0": 1, "block1": 2}
    found = check(facts_of_example("ViT"), {**expected, "ln": 3, "head": 3}, 4)
    assert found.modules[0] == ("patches", "cls", "pos_embedding")
    assert found.modules[3] == ("ln", "head")


class LayerCollection(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        for index in range(2):
            x = TransformerBlock(2, 0.0, False, name=str(index))(x)[0]
        return x


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return LayerCollection(name="layer")(x)


class Bert(nn.Module):
    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        x = nn.LayerNorm(name="norm")(nn.Embed(7, 8, name="word_embeddings")(tokens))
        return nn.Dense(8, name="pooler")(Encoder(name="encoder")(x)[:, 0])


def test_blocks_deep_inside_are_found() -> None:
    expected = {"norm": 0, "word": 0, "encoder/layer/0": 1, "encoder/layer/1": 2, "pooler": 3}
    found = check(param_facts(Bert(), TOKENS), expected, 4)
    assert found.modules[1] == ("encoder/layer/0",)


class CrossBlock(nn.Module):
    """Two attentions of the same class, which share the block's layer."""

    @nn.compact
    def __call__(self, x: Array, context: Array, bias: Array) -> Array:
        x = x + ResidualMLP(name="Attention_0")(x)[0] + bias
        return x + ResidualMLP(name="Attention_1")(x + context)[0]


class Stack(nn.Module):
    """The same class for encoder and decoder; its blocks share a table of biases."""

    @nn.compact
    def __call__(self, x: Array, context: Array) -> Array:
        bias = self.param("relative_bias", ones, (1, 1, 8))
        for index in range(2):
            x = CrossBlock(name=f"block_{index}")(x, context, bias)
        return nn.LayerNorm(name="final")(x)


class EncoderDecoder(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Stack(name="encoder")(x, x)
        z = nn.Dense(8, name="bridge")(x)
        return nn.Dense(3, name="head")(Stack(name="decoder")(z, y))


def test_encoder_and_decoder_of_one_class_are_searched_inside() -> None:
    expected = {
        "encoder/block_0": 0,
        "encoder/relative_bias": 0,
        "encoder/block_1": 1,
        "encoder/final": 1,
        "bridge": 1,
        "decoder/block_0": 2,
        "decoder/relative_bias": 2,
        "decoder/block_1": 3,
        "decoder/final": 4,
        "head": 4,
    }
    found = check(param_facts(EncoderDecoder(), SEQUENCE), expected, 5)
    assert found.modules[1] == ("encoder/block_1", "encoder/final", "bridge")


class Siamese(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        second = ResidualMLP(name="second")(ResidualMLP(name="first")(x)[0])[0]
        return nn.Dense(2, name="head")(second)


def test_siblings_without_numbers_are_blocks_if_there_are_no_others() -> None:
    check(param_facts(Siamese(), SEQUENCE), {"first": 0, "second": 1, "head": 2}, 3)


class WithHeads(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Any:
        x = ResidualMLP(name="time")(x)[0]
        for index in range(2):
            x = ResidualMLP(name=f"h_{index}")(x)[0]
        return Siamese(name="policy")(x), Siamese(name="value")(x)


def test_siblings_without_numbers_are_no_blocks_beside_numbered_ones() -> None:
    expected = {"time": 0, "h_0": 1, "h_1": 2, "policy": 3, "value": 3}
    facts = param_facts(WithHeads(), SEQUENCE)
    # `time` is of the same class as the blocks: it is one of them, named or not.
    check(facts, expected, 4)


class HalfDead(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        first = nn.Dense(8, name="stem")(x)
        self.param("unused", ones, (3,))
        for index in range(3):
            y = ResidualMLP(name=f"h_{index}")(first if index == 1 else x)[0]
            x = x if index == 1 else y  # the second goes nowhere
        return x


def test_dead_parameters_are_of_layer_0_and_dead_blocks_are_not_counted() -> None:
    expected = {"stem": 0, "unused": 0, "h_0": 0, "h_1": 0, "h_2": 1}
    found = check(param_facts(HalfDead(), SEQUENCE), expected, 2)
    assert found.modules[0][0] == "h_0" and set(found.modules[0][1:]) > {"stem", "unused"}


class SharedBlock(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        first, second = ResidualMLP(name="h_0"), ResidualMLP(name="h_1")
        return first(second(first(x)[0])[0])[0]


def test_a_block_that_is_used_twice_counts_where_it_is_used_first() -> None:
    check(param_facts(SharedBlock(), SEQUENCE), {"h_0": 0, "h_1": 1}, 2)


class NameScopes(nn.Module):
    """The classes around a parameter don't align with its path: the scope has no module."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(2, name="head")(self.trunk(x))

    @nn.compact_name_scope
    def trunk(self, x: Array) -> Array:
        for index in range(2):
            x = ResidualMLP(name=f"h_{index}")(x)[0]
        return x


def test_modules_of_unknown_class_are_compared_by_what_they_contain() -> None:
    expected = {"trunk/h_0": 0, "trunk/h_1": 1, "head": 2}
    check(param_facts(NameScopes(), SEQUENCE), expected, 3)


# Blocks that own kernels.


def test_a_plain_network_has_a_layer_per_kernel() -> None:
    check(facts_of_example("MLP"), {"Dense_0": 0, "Dense_1": 1, "Dense_2": 2}, 3)
    expected = {"Conv_0": 0, "BatchNorm_0": 0, "Conv_1": 1, "BatchNorm_1": 1, "Dense_0": 2}
    found = check(param_facts(*example("CNN"), train=True), expected, 3)
    assert found.modules[0] == ("Conv_0", "BatchNorm_0")


def test_a_recurrent_cell_and_an_attention_are_one_layer_each() -> None:
    check(facts_of_example("LSTM"), {"embed": 0, "cell": 1, "head": 2}, 3)

    class Attends(nn.Module):
        @nn.compact
        def __call__(self, x: Array) -> Array:
            x = nn.MultiHeadDotProductAttention(2, name="attn")(nn.Dense(8, name="in")(x))
            return nn.Dense(8, name="out")(x)

    check(param_facts(Attends(), SEQUENCE), {"in": 0, "attn": 1, "out": 2}, 3)


def test_weight_norms_are_of_the_layer_they_wrap() -> None:
    expected = {"conv1": 0, "weight1": 0, "conv2": 1, "fc1": 2, "weight2": 2, "fc2": 3}
    check(KINDS["NormedWeights"](), expected, 4)


def test_a_model_of_one_layer_and_one_without_kernels_have_one() -> None:
    found = check(param_facts(nn.Dense(4), ROW), {"kernel": 0, "bias": 0}, 1)
    assert found.modules == (("(model)",),)
    check(param_facts(nn.LayerNorm(), ROW), {"scale": 0, "bias": 0}, 1)
    assert layers(Facts(())) == Layers(0, {}, ())


# Blocks that are slices.


def test_the_slices_of_a_scanned_transformer_are_layers() -> None:
    expected = {"wte": 0, "wpe": 0, "blocks": (1, 2, 3), "ln_f": 4}
    found = check(facts_of_example("GPT"), expected, 5)
    assert found.modules[1:4] == (("blocks[0]",), ("blocks[1]",), ("blocks[2]",))


def test_experts_share_the_layer_of_their_block() -> None:
    expected = {"embed": 0, "deep": (1, 2, 3), "last": 4, "final": 5}
    check(KINDS["MoE"](), expected, 6)


def test_adapters_share_the_layer_of_what_they_adapt() -> None:
    check(param_facts(Adapted(), SEQUENCE), {"deep": (0, 1, 2), "head": 3}, 4)


def test_nested_scans_have_nested_layers() -> None:
    found = check(KINDS["Mapped"](), {"deep": ((0, 1, 2), (3, 4, 5)), "head": 6}, 7)
    assert found.modules[3] == ("deep[1, 0]",)
    model = nn.remat_scan(nn.Dense, lengths=(2, 3))(8)
    found = check(param_facts(model, ROW), {"": ((0, 1, 2), (3, 4, 5))}, 6)
    assert found.modules[0] == ("(model)[0, 0]",)


class Group(nn.Module):
    """The body of a scan in which there is a scan."""

    own: bool = True

    @nn.compact
    def __call__(self, x: Array, _: Any = None) -> tuple[Array, None]:
        x = nn.LayerNorm(name="ln")(x) if self.own else x
        return Scanned(ResidualMLP, length=2, name="inner")(x)[0], None


class ScannedGroups(nn.Module):
    own: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def body(module: nn.Module, x: Array, _: Any) -> tuple[Array, None]:
            return Group(self.own, name="group")(x)

        scan = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return scan(self, x, None)[0]


def test_an_outer_body_with_parameters_of_its_own_is_the_block() -> None:
    expected = {"group/ln": (0, 1, 2), "group/inner": ((0, 0), (1, 1), (2, 2))}
    check(param_facts(ScannedGroups(True), SEQUENCE), expected, 3)
    expected = {"group/inner": ((0, 1), (2, 3), (4, 5))}
    check(param_facts(ScannedGroups(False), SEQUENCE), expected, 6)


class UnrolledGroups(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        for index in range(2):
            x = Group(name=f"group_{index}")(x)[0]
        return x


def test_a_scan_inside_a_block_makes_no_layers() -> None:
    expected = {
        "group_0/ln": 0,
        "group_0/inner": (0, 0),
        "group_1/ln": 1,
        "group_1/inner": (1, 1),
    }
    check(param_facts(UnrolledGroups(), SEQUENCE), expected, 2)


class TwoStacks(nn.Module):
    """Two scans of the same length over modules of the same class, in numbered siblings."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        second, first = (Scanned(ResidualMLP, name=f"stage_{i}") for i in range(2))
        x = nn.Dense(8, name="down")(first(nn.Dense(8, name="stem")(x))[0])
        return second(x)[0]


def test_stacks_of_one_class_stay_apart_and_come_in_the_order_of_use() -> None:
    expected = {"stem": 0, "stage_1": (1, 2, 3), "down": 3, "stage_0": (4, 5, 6)}
    check(param_facts(TwoStacks(), SEQUENCE), expected, 7)


class Backwards(nn.Module):
    reverse: tuple[bool, bool]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def body(module: nn.Module, x: Array, _: Any) -> tuple[Array, None]:
            inner = nn.scan(
                ResidualMLP,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
                reverse=self.reverse[1],
            )
            return inner(name="inner")(x, None)

        outer = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
            reverse=self.reverse[0],
        )
        return outer(self, x, None)[0]


@pytest.mark.parametrize(
    ("reverse", "expected", "first"),
    [
        ((True, False), ((3, 4, 5), (0, 1, 2)), "inner[1, 0]"),
        ((False, True), ((2, 1, 0), (5, 4, 3)), "inner[0, 2]"),
        ((True, True), ((5, 4, 3), (2, 1, 0)), "inner[1, 2]"),
    ],
)
def test_in_a_reverse_scan_the_last_slice_is_the_first_layer(
    reverse: tuple[bool, bool], expected: Any, first: str
) -> None:
    found = check(param_facts(Backwards(reverse), SEQUENCE), {"inner": expected}, 6)
    assert found.modules[0] == (first,)


class HasShift(nn.Module):
    @nn.compact
    def __call__(self, x: Array, shift: Array) -> tuple[Array, None]:
        return nn.Dense(8, name="fc")(x) * shift, None


class SharesShift(nn.Module):
    """The last thing in each block is a parameter that all blocks share."""

    scanned: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shift = self.param("shift", ones, (1, 8))
        x = x + self.param("start", ones, (1, 8))
        if self.scanned:
            whole: Any = nn.broadcast
            scan = nn.scan(
                HasShift,
                in_axes=whole,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=2,
            )
            x = scan(name="h")(x, shift)[0]
        else:
            for index in range(2):
                x = HasShift(name=f"h_{index}")(x, shift)[0]
        return nn.Dense(2, name="head")(x)


def test_what_all_slices_share_is_of_the_layer_that_uses_it_first() -> None:
    around = {"start": 0, "shift": 1, "head": 3}
    check(param_facts(SharesShift(False), ROW), {**around, "h_0": 1, "h_1": 2}, 4)
    check(param_facts(SharesShift(True), ROW), {**around, "h": (1, 2)}, 4)


class ByHand(nn.Module):
    """Stacked by hand, several stacks in one loop; the names say nothing of it."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Dense(8, name="stem")(x)
        kernels = self.param("kernels", nn.initializers.lecun_normal(), (8, 3, 8))
        shifts = self.param("shifts", ones, (3, 1, 8))

        def body(x: Array, layer: Any) -> tuple[Array, None]:
            return jnp.tanh(x @ layer[0] + layer[1]), None

        stack = (kernels.astype(jnp.bfloat16).astype(x.dtype).transpose(1, 0, 2), shifts)
        return nn.Dense(2, name="head")(lax.scan(body, x, stack)[0])


def test_stacks_by_hand_that_share_a_loop_are_one_stack() -> None:
    expected = {"stem": 0, "kernels": (1, 2, 3), "shifts": (1, 2, 3), "head": 4}
    found = check(param_facts(ByHand(), ROW), expected, 5)
    assert found.modules[2] == ("(model)[1]",)


# What is refused.


def test_facts_without_the_order_of_use_are_refused() -> None:
    model, key = MLP(), jax.random.key(0)
    facts = facts_from(lambda extra: model.init({"params": key, **extra}, ROW))
    with pytest.raises(ParameterError, match="in which order the parameters are used"):
        layers(facts)


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_table_is_refused() -> None:
    wrong: Any = {"kernel": 1}
    with pytest.raises(ArgumentTypeError, match="not a table of facts"):
        layers(wrong)


def test_layers_can_not_be_changed() -> None:
    found: Any = layers(facts_of_example("MLP"))
    with pytest.raises(TypeError):
        found.of[("Dense_0", "bias")] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.count = 1
