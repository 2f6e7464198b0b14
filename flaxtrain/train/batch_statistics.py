"""Statistics of BatchNorm formed anew, over the rows of all batches, for averaged weights.

Averaged weights have other activations than those which they are an average of, so BatchNorm's
running statistics don't fit them (Izmailov et al. 2018, arXiv:1803.05407, section 3.2). Of
batches i with n_i rows, in which BatchNorm finds the mean m_i and the variance v_i:
    mean = sum_i n_i m_i / sum_i n_i
    var  = sum_i n_i (v_i + m_i^2) / sum_i n_i - mean^2
which are those of all rows, however they are divided into batches (Wu & Johnson 2021,
arXiv:2105.07576, section 3). Batch by batch, with s = n_i / N_i and N_i the rows so far:
    var <- var + s (v_i - var + (1 - s) (m_i - mean)^2),   mean <- mean + s (m_i - mean)
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxtrain.errors import ModelError
from flaxtrain.params.intercept import MethodCall, attribute, intercepted_under_jit
from flaxtrain.train.forward_pass import forward
from flaxtrain.train.frozen_calls import Calls
from flaxtrain.train.frozen_modules import FrozenModules
from flaxtrain.train.keys import fold_key
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.rows import Rows
from flaxtrain.train.state import TrainState
from flaxtrain.tree import Path, flatten, unflatten, widened
from flaxtrain.typing import Array, ArrayLike, Batch, Key

__all__ = ["BatchStatistics", "add_batch", "no_batches"]


class BatchStatistics(NamedTuple):
    """The statistics of the rows of all batches so far.

    Attributes:
        batches: int32 scalar, the number of batches.
        rows: int32 scalar, the rows in them; padding does not count.
        values: BatchNorm's part of the collections, nested dicts, float32 or wider.
    """

    batches: Array
    rows: Array
    values: dict[str, Any]


def no_batches(
    recipe: Recipe, state: TrainState, batch: Batch, mask: ArrayLike | None = None
) -> BatchStatistics:
    """Returns the statistics of no batch, from an example of one; nothing is computed.

    Raises:
        ModelError: the model has no BatchNorm.
    """
    shapes = jax.eval_shape(partial(_formed, recipe), state, batch, mask)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), shapes
    )
    return BatchStatistics(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), zeros)


def add_batch(
    recipe: Recipe,
    state: TrainState,
    statistics: BatchStatistics,
    batch: Batch,
    mask: ArrayLike | None = None,
) -> BatchStatistics:
    """Returns the statistics with those of one more batch, run as in training. Pure.

    Dropout is as in training too, with keys of its own. Where a step calls one BatchNorm
    several times, its last call counts.

    Args:
        recipe: what does not change in the run.
        state: the state whose `params` are run.
        statistics: those of the batches before.
        batch: every leaf `[rows, ...]`.
        mask: bool `[rows]`, False for padding rows; None for a full batch.

    Example:
        >>> import numpy as np
        >>> from flaxtrain import OptSpec, make_recipe
        >>> batch = {"x": np.array([[1.0], [3.0]], "float32"), "target": np.zeros((2, 1), "f")}
        >>> recipe = make_recipe(nn.BatchNorm(False), OptSpec("sgd", 0.1), batch)
        >>> state = recipe.init(seed=0)
        >>> found = add_batch(recipe, state, no_batches(recipe, state, batch), batch)
        >>> print(found.rows, found.values["batch_stats"]["mean"])
        2 [2.]
    """
    replicas = recipe.replicas
    key = replicas.key(fold_key(state.rng, "batch_statistics", statistics.batches))
    own = state.replace(rng=key)
    new = flatten(widened(_formed(recipe, own, batch, mask)))
    size = replicas.sum(Rows.of(batch, mask, replicas).examples)
    rows = statistics.rows + size
    apart = {path: new[path] - leaf for path, leaf in flatten(statistics.values).items()}

    def moved(path: Path, old: Array) -> Array:
        share = size.astype(old.dtype) / rows.astype(old.dtype)
        between = jnp.abs(apart[*path[:-1], "mean"]) ** 2 if path[-1] == "var" else 0.0
        return old + share * (apart[path] + (1 - share) * between)

    found = {path: moved(path, leaf) for path, leaf in flatten(statistics.values).items()}
    return BatchStatistics(statistics.batches + 1, rows, unflatten(found))


def _formed(
    recipe: Recipe, state: TrainState, batch: Batch, mask: ArrayLike | None
) -> dict[str, Any]:
    """Returns what BatchNorm finds in one batch, at the places where it stores it."""
    calls = _WithoutMomentum()
    rows = Rows.of(batch, mask, recipe.replicas)
    table = flatten(forward(recipe, state, rows, calls=calls)[1])
    chosen = {path: leaf for path, leaf in table.items() if path[1:-1] in calls.found}
    if not chosen:
        raise ModelError(
            "the model has no BatchNorm with running statistics",
            where="recompute_batch_stats",
            fix="leave the call out: there is nothing to compute anew",
        )
    return unflatten(chosen)


class _WithoutMomentum(Calls):
    """Lets every `nn.BatchNorm` store the statistics of the batch themselves.

    Attributes:
        found: the paths of the modules it met.
    """

    def __init__(self) -> None:
        self.found: set[Path] = set()

    def applied(
        self, frozen: FrozenModules, rngs: Mapping[str, Key]
    ) -> AbstractContextManager[dict[str, Key]]:
        return intercepted_under_jit(self._intercept, rngs)

    def _intercept(self, call: MethodCall) -> Any:
        if not isinstance(call.module, nn.BatchNorm) or call.method != "__call__":
            return call.run()
        self.found.add(tuple(call.path))
        with attribute(call.module, "momentum", 0.0):
            return call.run()
