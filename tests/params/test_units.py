"""Which axes make one array of a stack, and one unit of a layer."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from flaxtrain.params import LoRA, facts_from, param_facts
from flaxtrain.params.kernel_axes import KernelAxes
from flaxtrain.params.units import own_axes, unit_axes
from flaxtrain.tree import path_name
from tests.models import GPT, ViT

RNGS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}


def units(model: nn.Module, *inputs: Any) -> dict[str, tuple[Any, Any]]:
    facts = param_facts(model, *inputs, rngs=RNGS)
    return {fact.name: (own_axes(fact), unit_axes(fact)) for fact in facts.params}


def test_layers_and_heads_of_a_scanned_transformer_are_units_of_their_own() -> None:
    found = units(GPT(), jnp.ones((2, 6), jnp.int32))
    # Shapes: (3, 8, 2, 4), (3, 2, 4, 8), (3, 8, 16), (3, 2, 4), (3, 8), (11, 8), (8,).
    assert found["blocks/attn/query/kernel"] == ((1, 2, 3), (1,))
    assert found["blocks/attn/out/kernel"] == ((1, 2, 3), (1, 2))
    assert found["blocks/up/kernel"] == ((1, 2), (1,))
    assert found["blocks/attn/query/bias"] == ((1, 2), (1, 2))
    assert found["blocks/ln_1/scale"] == ((1,), (1,))
    assert found["wte/embedding"] == ((0, 1), (0,))
    assert found["ln_f/scale"] == ((0,), (0,))


def test_axes_of_length_one_are_no_inputs() -> None:
    found = units(ViT(), jnp.ones((2, 8, 8, 3)))
    assert found["patches/kernel"] == ((0, 1, 2, 3), (0, 1, 2))  # (4, 4, 3, 8)
    assert found["pos_embedding"] == ((0, 1, 2), (1,))  # (1, 5, 8)
    assert found["cls"] == ((0, 1, 2), (0, 1, 2))  # (1, 1, 8)


class Experts(nn.Module):
    """Four experts by `nn.vmap`, stacked along the last axis; a scan written by hand."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        expert = nn.vmap(
            nn.Dense,
            variable_axes={"params": -1},
            split_rngs={"params": True},
            in_axes=None,  # type: ignore[arg-type]
            axis_size=4,
        )
        x = jnp.mean(expert(5, name="experts")(x), axis=0)
        layers = self.param("layers", nn.initializers.normal(), (3, 5, 5))
        x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, layers)
        return nn.ConvTranspose(2, (3,), name="up")(x[:, None])


def test_experts_and_stacks_by_hand_are_arrays_of_their_own() -> None:
    found = units(Experts(), jnp.ones((2, 6)))
    assert found["experts/kernel"] == ((0, 1), (0,))  # (6, 5, 4)
    assert found["experts/bias"] == ((0,), (0,))
    assert found["layers"] == ((1, 2), (1,))
    assert found["up/kernel"] == ((0, 1, 2), (0,))  # not known: by its rank


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Conv(4, 3), (1, 5, 2), (0, 1)),
        (nn.DenseGeneral(3, axis=-1, batch_dims=(0,)), (2, 4, 5), (1,)),
        (nn.DenseGeneral((3, 2), axis=(1, -1)), (2, 4, 5, 6), (0, 1)),
        (nn.Einsum((2, 6, 4), "btd,hdk->bthk"), (2, 3, 6), (1,)),
    ],
)
def test_units_follow_what_the_module_sums_over(
    module: nn.Module, shape: Any, expected: Any
) -> None:
    assert units(module, jnp.ones(shape))["kernel"][1] == expected


def test_adapters_have_the_inputs_of_their_kernel() -> None:
    def initialise(extra: Any) -> Any:
        return GPT().init({**RNGS, **extra}, jnp.ones((2, 6), jnp.int32))

    facts = facts_from(initialise)
    query, out = facts["blocks/attn/query/kernel"], facts["blocks/attn/out/kernel"]
    assert (query.kernel_axes, out.kernel_axes) == (KernelAxes((0,)), KernelAxes((0, 1)))
    table = LoRA("**/query/kernel | **/out/kernel", rank=1).bind(facts, initialise).facts
    found = {path_name(f.path[-3:]): (f.shape, unit_axes(f)) for f in table.params}
    assert found["query/kernel/lora_a"] == ((3, 8, 1, 1, 1), (1,))
    assert found["query/kernel/lora_b"] == ((3, 1, 2, 4, 1), (4,))
    assert found["out/kernel/lora_a"] == ((3, 2, 4, 1, 1), (1, 2))
    assert found["out/kernel/lora_b"] == ((3, 1, 1, 8, 1), (4,))
