"""What every loss does with its arguments before the mathematics starts.

Inputs are jax or numpy arrays; a loss never guesses: dtypes and shapes are judged by name here.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.errors import ArgumentTypeError, LossError
from flaxtrain.typing import Array, ArrayLike

# Nothing here is public: the losses raise what these functions raise.
__all__ = []

Axes = int | tuple[int, ...] | None


def real(name: str, **arrays: ArrayLike) -> list[Array]:
    """Returns the arrays as jax arrays; real floating-point ones, or an error by name."""
    found = []
    for argument, value in arrays.items():
        array = jnp.asarray(value)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ArgumentTypeError(
                f"{argument} has dtype {array.dtype}, not a real floating-point one",
                where=name,
                fix=f"cast it first: {argument}.astype(jnp.float32)",
            )
        found.append(array)
    return found


def same_shape(name: str, **arrays: Array) -> None:
    """Refuses arrays of different shapes."""
    shapes = {argument: array.shape for argument, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise LossError(
            "shapes differ: " + ", ".join(f"{k} {shape}" for k, shape in shapes.items()),
            where=name,
            fix="give all of them the same shape; nothing is broadcast",
        )


def pair(name: str, **arrays: ArrayLike) -> tuple[Array, Array]:
    """Returns two arrays broadcast to one shape.

    Arrays of one rank, `(1, n, d)` against `(m, 1, d)`, say what they mean: both may grow. With
    different ranks only one may: `(n,)` against `(n, 1)` is a mistake that runs, and refused.
    """
    first, second = (jnp.asarray(value) for value in arrays.values())
    if first.shape == second.shape:
        return first, second
    try:
        shape = jnp.broadcast_shapes(first.shape, second.shape)
    except ValueError:
        shape = None
    fits = shape in (first.shape, second.shape) or first.ndim == second.ndim
    if shape is None or not fits:
        a, b = arrays
        raise LossError(
            f"{a} of shape {first.shape} and {b} of shape {second.shape} don't fit",
            where=name,
            fix=f"reshape {b} to {first.shape}",
        )
    return jnp.broadcast_to(first, shape), jnp.broadcast_to(second, shape)


def selection(
    name: str, where: ArrayLike | None, like: Array, axis: Axes = None
) -> Array | None:
    """Returns `where` in the shape of `like`; one without the axes `axis` is given them."""
    if where is None:
        return None
    where = jnp.asarray(where, bool)
    if axis is not None and where.ndim != like.ndim and where.ndim:
        where = jnp.expand_dims(where, axis)
    try:
        return jnp.broadcast_to(where, like.shape)
    except ValueError:
        raise LossError(
            f"`where` of shape {where.shape} does not fit values of shape {like.shape}",
            where=name,
            fix="give it the shape of the values, or that without the axes of the loss",
        ) from None


def known_label(labels: Array, classes: int) -> tuple[Array, Array]:
    """Returns labels that can be used as indices, and which of them were in range.

    The labels come from `class_indices`: `classes` must be a number of their dtype.
    """
    known = (labels >= 0) & (labels < classes)
    return jnp.where(known, labels, 0), known


def class_indices(
    name: str, labels: ArrayLike, fix: str = "pass class indices: labels.astype(jnp.int32)"
) -> Array:
    """Returns integer labels, of 32 bits at least: a `uint8` can't be compared with 256."""
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ArgumentTypeError(
            f"labels have dtype {labels.dtype}, not an integer one", where=name, fix=fix
        )
    return labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels


def integer_labels(name: str, scores: Array, labels: ArrayLike) -> Array:
    """Returns integer labels, one for every row of `scores`, whose last axis is the classes."""
    labels = class_indices(name, labels)
    if scores.ndim == 0 or labels.shape != scores.shape[:-1]:
        raise LossError(
            f"labels have shape {labels.shape}, scores {scores.shape}",
            where=name,
            fix=f"give one index for every row: shape {scores.shape[:-1]}",
        )
    return labels


def at_label(scores: Array, labels: Array) -> Array:
    """Returns the score of every row's label; NaN for a label outside `[0, classes)`."""
    index, known = known_label(labels, scores.shape[-1])
    found = jnp.take_along_axis(scores, index[..., None], axis=-1)[..., 0]
    return jnp.where(known, found, jnp.nan).astype(scores.dtype)


@jax.custom_jvp
def weighted(weight: Array, value: Array) -> Array:
    """Returns `weight * value` where 0 times anything is 0, as in `0 log 0 = 0`.

    A `jnp.where` alone keeps the value finite, but hides the derivative by the weight.
    """
    return jnp.where(weight == 0, jnp.zeros_like(value), weight * value)


def _weighted_jvp(
    primals: tuple[Array, Array], tangents: tuple[Any, Any]
) -> tuple[Array, Array]:
    (weight, value), (weight_dot, value_dot) = primals, tangents
    out = weighted(weight, value)
    tangent = jnp.zeros_like(out)
    # A weight that is not differentiated must not meet log 0: 0 * -inf is NaN.
    if not isinstance(value_dot, jax.custom_derivatives.SymbolicZero):
        tangent = weighted(weight, value_dot)
    if not isinstance(weight_dot, jax.custom_derivatives.SymbolicZero):
        tangent = tangent + weight_dot * value
    return out, tangent


weighted.defjvp(_weighted_jvp, symbolic_zeros=True)
