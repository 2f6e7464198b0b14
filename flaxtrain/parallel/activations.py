"""Keeping rows where they are, so that parameters come to them.

Where a parameter is split over the mesh axis that rows are spread over (FSDP), there are two
ways to multiply them: each device gathers the parameter for its own rows, or gathers all rows
for its part of the parameter. What comes out of the second is split along the features, and
XLA's partitioner carries that on to the next layer: from the embedding on, every device works
on all rows of the batch, and each layer sends activations around. The result is the same, but
memory and communication grow with the batch. So the partitioner is told, after each call of a
module, that the rows lie where they lay. What is left to it is to gather the parameters of a
layer when the layer runs, in a scan over layers those of one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from flaxtrain.parallel.layout import Layout
from flaxtrain.parallel.mesh import batch_axes, batch_shards
from flaxtrain.params.intercept import MethodCall, intercepted_under_jit
from flaxtrain.typing import Key

__all__ = ["keep_rows"]


def keep_rows(
    layout: Layout, rngs: Mapping[str, Key]
) -> AbstractContextManager[dict[str, Key]]:
    """Keeps the rows of all outputs of modules on their devices, in a context around a model.

    No number changes. Rows are looked for on the first axis: those as long as the first axis of
    an argument of the model. Where no parameter is split over `data` or `fsdp`, nothing is
    done.

    Args:
        layout: where parameters lie.
        rngs: the random streams of the model; the context has streams to add to them.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.parallel import abstract_mesh
        >>> from flaxtrain.parallel import Sharding
        >>> from flaxtrain.params import param_facts
        >>> x, mesh = jnp.ones((8, 256)), abstract_mesh({"fsdp": 4}, 4)
        >>> layout = Layout(mesh, Sharding("fsdp"), param_facts(nn.Dense(512), x))
        >>> def apply(params, x):
        ...     with keep_rows(layout, {}) as streams:
        ...         return nn.Dense(512).apply({"params": params}, x, rngs=streams)
        >>> params = layout.facts.tree(lambda fact: jnp.zeros(fact.shape))
        >>> "sharding_constraint" in str(jax.make_jaxpr(apply)(params, x))
        True
    """
    if not layout.splits_like_rows:
        return nullcontext({})
    names, count = batch_axes(layout.mesh), batch_shards(layout.mesh)
    rows: set[int] = set()

    def keep(leaf: Any) -> Any:
        if not _lengths(leaf) & rows or leaf.shape[0] % count:
            return leaf
        # Other axes stay open: tensor parallelism may split them.
        open_axes = (PartitionSpec.UNCONSTRAINED,) * (leaf.ndim - 1)
        spec = PartitionSpec(names, *open_axes)
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(layout.mesh, spec))

    def run(call: MethodCall) -> Any:
        if not rows:  # the first call is that of the model
            rows.update(*map(_lengths, jax.tree.leaves((call.args, call.kwargs))))
        return jax.tree.map(keep, call.run())

    return intercepted_under_jit(run, rngs, f"keep_rows {layout.mesh} {names}")


def _lengths(leaf: Any) -> set[int]:
    """Returns the length of an array's first axis, as a set; of all else, none."""
    is_array = isinstance(leaf, jax.Array) and leaf.ndim > 0
    return {leaf.shape[0]} if is_array and not _is_key(leaf) else set()


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
