"""Two models with parameters of all kinds: stacked, annotated, square, indivisible, small."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxtrain.params import Facts, param_facts


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        y = nn.relu(nn.Dense(96, name="up")(nn.LayerNorm(name="norm")(x)))
        return x + nn.Dense(x.shape[-1], name="down")(y), None


class Stack(nn.Module):
    """Tokens; an embedding, eight scanned blocks, a square kernel, an indivisible head."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(50, 32, name="embed")(tokens)
        stack = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=8
        )
        x, _ = stack(name="blocks")(x, None)
        x = nn.Dense(32, name="square")(x)
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * nn.Dense(7, name="head", use_bias=False)(nn.Dense(9, name="odd")(x))


class Named(nn.Module):
    """An MLP whose kernels name their axes."""

    names: tuple[str | tuple[str, ...] | None, ...] = ("embed", "mlp")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal()
        x = nn.relu(nn.Dense(64, kernel_init=nn.with_partitioning(init, self.names))(x))
        return nn.Dense(16)(x)


@functools.cache
def stack_facts() -> Facts:
    return param_facts(Stack(), jnp.zeros((2, 4), jnp.int32))


@functools.cache
def named_facts(names: tuple[str | tuple[str, ...] | None, ...] = ("embed", "mlp")) -> Facts:
    return param_facts(Named(names), jnp.zeros((2, 32)))
