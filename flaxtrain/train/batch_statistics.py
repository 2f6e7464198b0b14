"""Statistics of BatchNorm formed anew: means over batches, for weights that were never trained.

Averaged weights have other activations than those which they are an average of, so BatchNorm's
running statistics don't fit them (Izmailov et al. 2018, arXiv:1803.05407, section 3.2). Of
batches i with n_i rows, in which BatchNorm finds the mean m_i and the variance v_i:
    mean = sum_i n_i m_i / sum_i n_i        var = sum_i n_i v_i / sum_i n_i
as running means, N_i being the rows so far: a <- a + (n_i / N_i) (m_i - a).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxtrain.errors import ModelError
from flaxtrain.train.contract import call_loss
from flaxtrain.train.frozen_calls import Calls
from flaxtrain.train.frozen_modules import FrozenModules
from flaxtrain.train.keys import fold_key
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.rows import row_weights
from flaxtrain.train.state import TrainState
from flaxtrain.tree import Path, flatten, unflatten, widened
from flaxtrain.typing import Array, ArrayLike, Batch, Key

__all__ = ["BatchStatistics", "add_batch", "no_batches"]

_fresh = itertools.count()


class BatchStatistics(NamedTuple):
    """Means over the batches so far.

    Attributes:
        batches: int32 scalar, the number of batches.
        rows: int32 scalar, the rows in them; padding does not count.
        means: BatchNorm's part of the collections, nested dicts, float32 or wider.
    """

    batches: Array
    rows: Array
    means: dict[str, Any]


def no_batches(
    recipe: Recipe, state: TrainState, batch: Batch, mask: ArrayLike | None = None
) -> BatchStatistics:
    """Returns the statistics of no batch, from an example of one; nothing is computed.

    Raises:
        ModelError: the model has no BatchNorm.
    """
    shapes = jax.eval_shape(partial(_formed, recipe), state, batch, mask)
    means = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), shapes
    )
    return BatchStatistics(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), means)


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
        >>> print(found.rows, found.means["batch_stats"]["mean"])
        2 [2.]
    """
    own = state.replace(rng=fold_key(state.rng, "batch_statistics", statistics.batches))
    found = widened(_formed(recipe, own, batch, mask))
    _, real, _ = row_weights(batch, mask)
    length = jax.tree.leaves(batch)[0].shape[0]
    size = jnp.asarray(length if real is None else jnp.sum(real), jnp.int32)
    rows = statistics.rows + size

    def move(mean: Array, new: Array) -> Array:
        return mean + size.astype(mean.dtype) / rows.astype(mean.dtype) * (new - mean)

    means = jax.tree.map(move, statistics.means, found)
    return BatchStatistics(statistics.batches + 1, rows, means)


def _formed(
    recipe: Recipe, state: TrainState, batch: Batch, mask: ArrayLike | None
) -> dict[str, Any]:
    """Returns what BatchNorm finds in one batch, at the places where it stores it."""
    batch, real, weight = row_weights(batch, mask)
    model = recipe.bind(state, state.params, train=True, mask=real, weight=weight)
    model.frozen_calls = calls = _WithoutMomentum()
    call_loss(recipe.loss_fn, model, batch)
    table = flatten(model.collections)
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

    @contextmanager
    def applied(
        self, frozen: FrozenModules, rngs: Mapping[str, Key]
    ) -> Iterator[dict[str, Key]]:
        # A method under `nn.jit` would take a program that was traced with the momentum: a
        # stream with a name that was never used makes it another call.
        stream = f"_statistics_{next(_fresh)}"
        key = next(iter(rngs.values()), None)
        with nn.intercept_methods(partial(self._intercept, stream)):
            yield {stream: jax.random.key(0) if key is None else key}

    def _intercept(
        self,
        stream: str,
        following: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Any,
    ) -> Any:
        module, scope = context.module, context.module.scope
        if scope is not None and scope.rngs and stream not in scope.rngs:
            # nn.scan and nn.vmap pass on only the streams that they split.
            scope.rngs[stream] = next(iter(scope.rngs.values()))
            scope.rng_counters[stream] = 0
        forms = isinstance(module, nn.BatchNorm) and context.method_name == "__call__"
        if scope is None or not forms:
            return following(*args, **kwargs)
        self.found.add(tuple(scope.path))
        momentum = module.momentum
        object.__setattr__(module, "momentum", 0.0)
        try:
            return following(*args, **kwargs)
        finally:
            object.__setattr__(module, "momentum", momentum)
