"""Layer-wise learning-rate decay trains a scanned stack as it trains the unrolled model."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import flaxtrain as ft
from flaxtrain.tree import flatten

LAYERS, STEPS = 3, 10
RNG = np.random.default_rng(0)
BATCH = {
    "x": RNG.integers(0, 7, (4, 5)).astype("int32"),
    "label": RNG.integers(0, 3, 4).astype("int32"),
}
X64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


class Block(nn.Module):
    """Attention and two dense layers, each with a norm before it and a path around it.

    The keys have no bias: softmax doesn't depend on it, so its gradient is rounding errors.
    """

    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        y = nn.LayerNorm(**X64, name="norm_1")(x)
        x = x + nn.MultiHeadDotProductAttention(2, **X64, use_bias=False, name="attention")(y)
        y = nn.LayerNorm(**X64, name="norm_2")(x)
        y = nn.gelu(nn.Dense(16, **X64, name="up")(y))
        return x + nn.Dense(8, **X64, name="down")(y), None


class Transformer(nn.Module):
    scanned: bool

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = nn.Embed(7, 8, **X64, name="embed")(tokens)
        if self.scanned:
            stack = nn.scan(
                Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS
            )
            x, _ = stack(name="blocks")(x, None)
        else:
            for index in range(LAYERS):
                x, _ = Block(name=f"block_{index}")(x)
        return nn.Dense(3, **X64, name="head")(jnp.mean(x, axis=1))


def unrolled(params: dict[str, Any]) -> dict[str, Any]:
    """Returns what a scanned stack holds as the parameters of the unrolled model."""
    blocks = {
        f"block_{index}": jax.tree.map(lambda leaf: leaf[index], params["blocks"])  # noqa: B023
        for index in range(LAYERS)
    }
    return {**{name: tree for name, tree in params.items() if name != "blocks"}, **blocks}


def recipe_of(scanned: bool, spec: ft.OptSpec) -> ft.Recipe:
    return ft.make_recipe(Transformer(scanned), spec, BATCH)


def trained(recipe: ft.Recipe, params: Any) -> Any:
    state = recipe.state(params, {}, jax.random.key(0))

    @jax.jit
    def run(state: Any, batch: Any) -> Any:
        def step(state: Any, _: None) -> Any:
            state, metrics = ft.train_step(recipe, state, batch, norms=False)
            return state, metrics["loss"].compute()

        return jax.lax.scan(step, state, None, length=STEPS)

    return run(state, BATCH)


def largest_gap(one: Any, other: Any) -> float:
    """Returns the largest difference of any two entries, relative to their array's largest."""
    a, b = flatten(one), flatten(other)
    assert a.keys() == b.keys()
    gaps = [
        np.max(np.abs(a[path] - b[path])) / max(np.max(np.abs(a[path])), 1e-300) for path in a
    ]
    return float(max(gaps))


def check_factors(stack: ft.Recipe, blocks: ft.Recipe) -> None:
    """Slice by slice, the stack has the factors of the unrolled model."""
    table, alone = stack.assignment.params, blocks.assignment.params
    for path, about in alone.items():
        if path[0].startswith("block_"):
            scale = np.ravel(table[("blocks", *path[1:])].scale)[int(path[0][-1])]
        else:
            scale = table[path].scale
        assert scale == about.scale, path
    scales = [alone[(f"block_{index}", "up", "kernel")].scale for index in range(LAYERS)]
    np.testing.assert_allclose(scales, [0.7**3, 0.7**2, 0.7], rtol=1e-15)
    assert alone[("embed", "embedding")].scale == 0.7**4
    assert alone[("head", "kernel")].scale == 1.0


def test_every_slice_of_a_scanned_stack_is_trained_as_its_block_alone() -> None:
    with jax.enable_x64(True):
        spec = ft.OptSpec("adamw", 1e-2, weight_decay=0.1, clip_norm=1.0, layer_decay=0.7)
        stack, blocks = recipe_of(True, spec), recipe_of(False, spec)
        start = stack.init(0).params
        assert {leaf.dtype.name for leaf in jax.tree.leaves(start)} == {"float64"}
        (one, losses), (other, same) = trained(stack, start), trained(blocks, unrolled(start))
        check_factors(stack, blocks)
        # float64 has 2e-16; ten steps of Adam, whose quotients amplify it where gradients are
        # small, stay below 1e-12.
        assert largest_gap(unrolled(one.params), other.params) <= 1e-12
        np.testing.assert_allclose(losses, same, rtol=1e-12)
        assert losses[-1] < losses[0]
        # The rate falls from block to block: without the decay they would move alike.
        gaps = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), one.params, start)
        assert gaps["head"]["kernel"] > 2 * gaps["embed"]["embedding"]
        up = np.abs(one.params["blocks"]["up"]["kernel"] - start["blocks"]["up"]["kernel"])
        assert list(up.max((1, 2))) == sorted(up.max((1, 2)))
