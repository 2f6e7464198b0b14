"""The table as a mapping."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from flaxtrain.errors import UnknownParameterError
from flaxtrain.params import Facts, facts_from, param_facts
from flaxtrain.params.adapters import LoRA
from tests.models import GPT, MLP, example
from tests.params.models import KINDS, ROW, SEQUENCE, TOKENS, facts_of_example

Array = jax.Array

FACTS = param_facts(MLP(), ROW)
KEY = jax.random.key(0)


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


# What is hidden, written by hand.

BLOCK = ["attn/query", "attn/key", "attn/value", "attn/out", "up", "down"]
HIDDEN = {
    "MLP": "Dense_1/kernel",
    "CNN": "Conv_1/kernel",
    "ResNet": """
        block0/conv1/kernel block0/conv2/kernel
        block1/conv1/kernel block1/conv2/kernel block1/proj/kernel
        """,
    "ViT": " ".join(f"block{i}/{module}/kernel" for i in (0, 1) for module in BLOCK),
    # The embedding is the readout too, so the last block is followed by a table.
    "GPT": " ".join(f"blocks/{module}/kernel" for module in BLOCK),
    "LSTM": " ".join(f"cell/{source}{gate}/kernel" for source in "ih" for gate in "ifgo"),
    # Routers weigh what goes on.
    "MoE": """
        deep/stack/router/kernel deep/stack/experts/w1 deep/stack/experts/w2
        last/router/kernel last/experts/w1 last/experts/w2
        """,
    "Coder": "encoder/kernel decoder/kernel",
    "NormedWeights": "conv2/kernel fc1/kernel",
    # The stack comes first, but its layers follow one another.
    "Mapped": "deep/layer/mlp/w",
    # Adapters that the model has itself are kernels of it; those of the head are not hidden.
    "Adapted": "deep/stack/proj/kernel deep/stack/proj/lora_a deep/stack/proj/lora_b",
}


def hidden(facts: Facts) -> set[str]:
    return {fact.name for fact in facts.params if fact.hidden}


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_matrices_are_those_written_by_hand(name: str) -> None:
    facts = KINDS[name]() if name in KINDS else facts_of_example(name)
    assert hidden(facts) == set(HIDDEN[name].split())


class Translator(nn.Module):
    """Sound frames and tokens to tokens, and a second head that says how long the answer is."""

    @nn.compact
    def __call__(self, frames: Array, tokens: Array) -> tuple[Array, Array]:
        x = nn.relu(nn.Dense(8, name="frames")(frames))
        x = x + self.param("positions", nn.initializers.ones, (1, 4, 8))
        x = nn.LayerNorm(name="norm")(nn.Dense(8, name="encoder")(x))
        y = nn.Embed(7, 8, name="embed")(tokens)
        y = y + nn.MultiHeadDotProductAttention(2, name="cross")(y, x)
        y = nn.Dense(8, name="decoder")(y)
        return nn.Dense(7, name="words")(y), nn.Dense(2, name="length")(y[:, 0])


def test_hidden_matrices_of_an_encoder_and_a_decoder_with_two_heads() -> None:
    facts = param_facts(Translator(), SEQUENCE, TOKENS)
    cross = {f"cross/{name}/kernel" for name in ("query", "key", "value", "out")}
    assert hidden(facts) == cross | {"encoder/kernel", "decoder/kernel"}


class Narrow(nn.Module):
    """Through a single feature and back; depthwise convolutions are no vectors."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for name in ("first", "second"):
            x = nn.Conv(8, (3,), feature_group_count=8, name=name)(x)
        x = nn.Dense(8, name="out")(nn.Dense(1, name="gate")(x))
        return nn.Dense(3, name="head")(x)


def test_a_kernel_with_one_axis_to_it_is_not_hidden_but_counts_as_one_between() -> None:
    assert hidden(param_facts(Narrow(), SEQUENCE)) == {"second/kernel"}
    assert hidden(param_facts(nn.Sequential([nn.Dense(4), nn.Dense(4), nn.Dense(1)]), ROW)) == {
        "layers_1/kernel"
    }


def test_with_a_loss_and_a_penalty_on_all_weights_the_same_is_hidden() -> None:
    model = MLP()

    def loss(params: Any, x: Array) -> Array:
        penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        outputs: Any = model.apply({"params": params}, x)
        return jnp.mean(outputs**2) + 0.1 * penalty

    facts = facts_from(lambda rngs: model.init({"params": KEY, **rngs}, ROW), loss, ROW)
    assert facts["Dense_2/kernel"].uses == 2
    assert hidden(facts) == {"Dense_1/kernel"}


def test_without_a_use_role_and_axes_decide_what_is_hidden() -> None:
    model, tokens = example("GPT")
    facts = facts_from(lambda rngs: model.init({"params": KEY, **rngs}, tokens))
    assert facts["wte/embedding"].uses is None
    assert hidden(facts) == set(HIDDEN["GPT"].split())
    facts = facts_from(lambda rngs: MLP((4, 1)).init({"params": KEY, **rngs}, ROW))
    assert hidden(facts) == {"Dense_0/kernel"}


def test_a_given_role_decides_what_is_hidden() -> None:
    facts = param_facts(MLP(), ROW, roles={"Dense_0/kernel": "other"})
    assert hidden(facts) == set()
    facts = param_facts(MLP(), ROW, roles={"Dense_1/kernel": "other"})
    assert hidden(facts) == set()


def test_what_is_dead_is_not_hidden() -> None:
    class Unused(nn.Module):
        @nn.compact
        def __call__(self, x: Array) -> Array:
            x = nn.Dense(8)(x)
            _ = nn.Dense(8, name="dead")(x)
            return nn.Dense(2)(nn.Dense(8, name="alive")(x))

    assert hidden(param_facts(Unused(), ROW)) == {"alive/kernel"}


def test_adapters_of_hidden_kernels_are_not_hidden() -> None:
    model, tokens = GPT(), jnp.ones((2, 6), jnp.int32)

    def initialise(rngs: Any) -> Any:
        return model.init({"params": KEY, **rngs}, tokens)

    adapters = LoRA(rank=2, select="blocks/up/kernel").bind(facts_of_example("GPT"), initialise)
    rows = [fact for fact in adapters.facts.params if fact.role == "lora"]
    assert len(rows) == 2 and not any(row.hidden for row in rows)
    assert adapters.pairs[0].kernel.hidden
