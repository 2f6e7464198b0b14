"""Clipping of the gradients of single examples, for differential privacy.

Abadi et al. 2016, "Deep Learning with Differential Privacy", arXiv:1607.00133, Algorithm 1. For
the gradient g_i of example i over all parameters, with the bound C:
    sum over i of g_i min(1, C / |g_i|)
McMahan et al. 2017, "Learning Differentially Private Recurrent Language Models",
arXiv:1710.06963, section 3, clips each of K layers by a bound of its own, C_k:
    C_k = C / sqrt(K)        or by the number of parameters:        C_k = C sqrt(D_k / D)
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import check_flag, check_number, is_concrete
from flaxtrain.errors import ParameterError
from flaxtrain.tree import global_norm, named_leaves
from flaxtrain.typing import Array, ArrayLike, PyTree, Updates

__all__ = ["per_example_global_norm_clip", "per_example_layer_norm_clip"]


def per_example_global_norm_clip(
    grads: Updates, l2_norm_clip: ArrayLike
) -> tuple[Updates, Array]:
    """Returns the sum of the examples' gradients, each bounded in its joint L2 norm.

    Args:
        grads: gradients with a leading axis of examples, any tree.
        l2_norm_clip: the largest norm of one example's gradient, >= 0; infinity: no bound.

    Returns:
        The sum over examples, a tree like `grads` without the leading axis, and how many
        examples were clipped, int32.

    Raises:
        ParameterError: an array has no leading axis, or another number of examples.
        ArgumentError: `l2_norm_clip` is negative or NaN.
        ArgumentTypeError: `l2_norm_clip` is not a number.

    Example:
        >>> grads = {"w": jnp.array([[0.0, 3.0], [6.0, 0.0]]), "b": jnp.array([4.0, 8.0])}
        >>> total, clipped = per_example_global_norm_clip(grads, 5.0)
        >>> print(total["w"], total["b"], clipped)
        [3. 3.] 8.0 1
    """
    _check_bound("l2_norm_clip", l2_norm_clip, where="per_example_global_norm_clip")
    return _clipped_sum(_batched(grads, where="per_example_global_norm_clip"), l2_norm_clip)


def per_example_layer_norm_clip(
    grads: Updates, global_l2_norm_clip: ArrayLike, uniform: bool = True
) -> tuple[Updates, PyTree]:
    """Returns the sum of the examples' gradients, each bounded array by array.

    Args:
        grads: gradients with a leading axis of examples, any tree; each leaf is a layer.
        global_l2_norm_clip: the largest norm C of one example's gradient that the bounds of all
            layers allow together, >= 0; infinity: no bound.
        uniform: the same bound for every layer; False: by the number of its parameters.

    Returns:
        The sum over examples, a tree like `grads` without the leading axis, and a tree of how
        many examples were clipped in each layer, int32.

    Raises:
        ParameterError: an array has no leading axis, or another number of examples.
        ArgumentError: `global_l2_norm_clip` is negative or NaN.
        ArgumentTypeError: `global_l2_norm_clip` is not a number, or `uniform` not a bool.

    Example:
        >>> grads = {"w": jnp.array([[0.0, 3.0], [6.0, 0.0]]), "b": jnp.array([2.0, 8.0])}
        >>> total, clipped = per_example_layer_norm_clip(grads, 4.0 * 2**0.5)
        >>> print(total["w"], total["b"], clipped["w"], clipped["b"])
        [4. 3.] 6.0 1 1
    """
    where = "per_example_layer_norm_clip"
    _check_bound("global_l2_norm_clip", global_l2_norm_clip, where=where)
    check_flag("uniform", uniform, where=where)
    leaves, structure = jax.tree.flatten(_batched(grads, where=where))
    sizes = [1 if uniform else math.prod(leaf.shape[1:]) for leaf in leaves]
    shares = [(size / sum(sizes)) ** 0.5 for size in sizes]
    results = [_clipped_sum(g, global_l2_norm_clip * share) for g, share in zip(leaves, shares)]
    totals, counts = ([result[i] for result in results] for i in (0, 1))
    return jax.tree.unflatten(structure, totals), jax.tree.unflatten(structure, counts)


def _clipped_sum(grads: Updates, bound: ArrayLike) -> tuple[Updates, Array]:
    if not jax.tree.leaves(grads):
        return grads, jnp.zeros([], jnp.int32)
    norms = jax.vmap(global_norm)(grads)
    # A gradient of zeros has the factor 0 / 0 under a bound of 0.
    factors = jnp.nan_to_num(jnp.minimum(bound / norms, 1.0), nan=1.0)
    total = jax.tree.map(lambda g: jnp.tensordot(factors, g, axes=1), grads)
    return total, jnp.sum(factors < 1.0)


def _check_bound(name: str, bound: Any, *, where: str) -> None:
    unbounded = (
        is_concrete(bound) and isinstance(bound, (float, np.floating)) and bound == math.inf
    )
    if not unbounded:
        check_number(name, bound, minimum=0.0, where=where)


def _batched(grads: Updates, *, where: str) -> Updates:
    """Returns `grads` as arrays, after checking their leading axes."""
    arrays = jax.tree.map(jnp.asarray, grads)
    shapes = {name: leaf.shape for name, leaf in named_leaves(arrays)}
    batches = {shape[:1] for shape in shapes.values()}
    if len(batches) > 1 or () in batches:
        raise ParameterError(
            f"the gradients do not share a leading axis of examples: {shapes}",
            where=where,
            fix="pass the gradient of every example: jax.vmap(jax.grad(loss), (None, 0))",
        )
    return arrays
