"""One small model with a parameter of each kind, and gradients for it."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.optim import apply_updates
from flaxtrain.params import Facts, param_facts
from flaxtrain.tree import flatten

Tree = dict[str, Any]


class Net(nn.Module):
    """Embedding, two blocks, a norm, a head."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(7, 6, name="embed")(tokens)
        x = nn.LayerNorm(name="norm")(nn.Dense(5, name="body")(x))
        return nn.Dense(3, name="head")(x)


@functools.cache
def net_facts() -> Facts:
    return param_facts(Net(), jnp.zeros((2, 4), jnp.int32))


def draw(seed: int, dtype: Any = np.float32, facts: Facts | None = None) -> Tree:
    rng = np.random.default_rng(seed)
    table = net_facts() if facts is None else facts
    return table.tree(lambda fact: jnp.asarray(rng.normal(size=fact.shape), dtype))


def gradients(steps: int, dtype: Any = np.float32, facts: Facts | None = None) -> Tree:
    """Recorded gradients, stacked along a first axis."""
    rows = (draw(1000 + t, dtype, facts) for t in range(steps))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def first_update(tx: Any, params: Tree, grads: Tree) -> dict[Any, np.ndarray]:
    """The first update by path."""
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    return {path: np.asarray(leaf) for path, leaf in flatten(updates).items()}


def zeros() -> Tree:
    return jax.tree.map(jnp.zeros_like, draw(0))


def stepped(tx: Any, params: Tree, state: Any, grads: Tree) -> tuple[Tree, Any]:
    updates, state = tx.update(grads, state, params)
    return apply_updates(params, updates), state
