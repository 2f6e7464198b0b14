"""The recipe of a step that runs on replicas, each of which sees a part of the rows.

Gradient, loss, metrics and the statistics of `nn.BatchNorm` are those of the whole batch. What
else a model keeps of its inputs, such as a mean that it takes itself, would be that of a
replica's own rows, so that every replica had another state. Such a model is refused: the loss
function is traced for two replicas at once, and what differs between them has an axis more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from flaxtrain.errors import ModelError
from flaxtrain.train.forward_pass import forward
from flaxtrain.train.keys import step_key
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.replicas import AxisReplicas, Replicas
from flaxtrain.train.rows import Rows
from flaxtrain.train.state import TrainState
from flaxtrain.tree import Path, flatten, path_name
from flaxtrain.typing import Batch

__all__ = ["check_replicas", "with_replicas"]


def with_replicas(recipe: Recipe, replicas: Replicas) -> Recipe:
    """Returns a recipe whose steps know of other replicas.

    Args:
        recipe: for one program that sees the whole batch.
        replicas: for `AxisReplicas(axis_name)`, run the steps in `jax.pmap` with that axis.

    Raises:
        ModelError: see `check_replicas`.

    Example:
        >>> import flax.linen as nn, numpy as np
        >>> from flaxtrain import OptSpec, make_recipe
        >>> batch = {"x": np.ones((8, 3), "float32"), "label": np.zeros(8, "int32")}
        >>> recipe = make_recipe(nn.Dense(2), OptSpec("sgd", learning_rate=0.1), batch)
        >>> with_replicas(recipe, AxisReplicas("data")).replicas
        AxisReplicas(axis_name='data')
    """
    check_replicas(recipe, replicas)
    return recipe.changed(replicas=replicas)


def check_replicas(recipe: Recipe, replicas: Replicas) -> None:
    """Refuses a recipe that can't run on replicas; the step of every phase is traced.

    Args:
        recipe: for one program that sees the whole batch.
        replicas: as for `with_replicas`.

    Raises:
        ModelError: replicas would keep other variables each.

    Example:
        >>> import flax.linen as nn, numpy as np
        >>> from flaxtrain import OptSpec, make_recipe
        >>> class Keeping(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, train=False):
        ...         kept = self.variable("kept", "mean", lambda: np.zeros((), "float32"))
        ...         if train:
        ...             kept.value = x.mean()
        ...         return nn.Dense(2)(x)
        >>> batch = {"x": np.ones((8, 3), "float32"), "label": np.zeros(8, "int32")}
        >>> recipe = make_recipe(Keeping(), OptSpec("sgd", learning_rate=0.1), batch)
        >>> try:
        ...     check_replicas(recipe, AxisReplicas("data"))
        ... except ModelError as error:
        ...     print(error.found.partition(" depends")[0])
        the variable 'kept/mean'
    """
    if isinstance(replicas, AxisReplicas):
        shared = recipe.changed(replicas=replicas)
        for phase in shared.assignment.phases:
            _check_collections(shared.at(phase.start), replicas)


def _check_collections(recipe: Recipe, replicas: AxisReplicas) -> None:
    """Refuses variables that depend on rows or random numbers by other ways than sums."""

    def after(state: TrainState, batch: Batch) -> dict[Path, Any]:
        key = replicas.key(step_key(state.rng, state.step))
        return flatten(forward(recipe, state, Rows(batch), key=key)[1])

    inputs = jax.eval_shape(recipe.init), jax.tree.map(_of_two, recipe.example)

    def traced(function: Callable[..., Any], out_axes: int | None) -> Any:
        mapped = jax.vmap(function, (None, 0), out_axes, axis_name=replicas.axis_name)
        return jax.eval_shape(mapped, *inputs)

    try:
        traced(after, None)
    except ValueError:
        for path in traced(after, 0):  # which raises what is an error of the model itself
            _check_variable(path, traced, after)
        raise


def _check_variable(
    path: Path, traced: Callable[..., Any], after: Callable[..., dict[Path, Any]]
) -> None:
    try:
        traced(lambda *inputs: after(*inputs)[path], None)
    except ValueError as error:
        raise ModelError(
            f"the variable {path_name(path)!r} depends on the rows of the batch or on random "
            "numbers: each replica of pmap would have another value",
            where='backend="pmap"',
            fix='use backend="jit", where one program sees all rows, or nn.BatchNorm, whose '
            "statistics are formed over all replicas",
        ) from error


def _of_two(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype)
