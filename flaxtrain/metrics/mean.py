"""Weighted means that stay exact under padding, accumulation and merging.

A mean over a data set is not the mean of batch means once batches have different weights. So
every loss and metric carries its numerator and its denominator, and divides once, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.errors import LossError
from flaxtrain.typing import Array, ArrayLike

__all__ = ["Mean", "Terms", "sum_dtype"]


def sum_dtype(values: Array, weight: Array | None = None) -> Any:
    """Returns the dtype in which values are summed up: float32, or float64 for float64 ones.

    Bools and integers have no precision of their own, and go by their weights.

    Args:
        values: any shape.
        weight: their weights; None for none.

    Example:
        >>> print(sum_dtype(jnp.array(True)), sum_dtype(jnp.array(1.0, jnp.bfloat16)))
        float32 float32
    """
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    if weight is None or jnp.issubdtype(values.dtype, jnp.inexact):
        return dtype
    return jnp.promote_types(dtype, weight.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean:
    """A weighted sum and the sum of its weights, both scalars: the mean is `sum / weight`.

    A monoid: `Mean.empty()` is neutral, `merge` is associative and commutative. `a + b` adds
    the two *values* (a loss of several terms, see `Terms`), which is not `a.merge(b)`.

    `weighted` is False for a mean that was formed over all rows without looking at a weight:
    such a mean is wrong for a padded batch, and the training step refuses it there.

    Example:
        >>> import numpy as np
        >>> batch = Mean.of(np.array([1.0, 3.0, 99.0]), weight=np.array([1.0, 1.0, 0.0]))
        >>> float(batch.compute()), float(batch.weight)
        (2.0, 2.0)
        >>> float(batch.merge(Mean.of(np.array([8.0]))).compute())
        4.0
    """

    sum: Any
    weight: Any
    weighted: bool = field(default=True, metadata={"static": True})

    @classmethod
    def of(cls, values: ArrayLike, weight: ArrayLike | None = None) -> Mean:
        """Returns the mean of `values` of any shape, weighted.

        Args:
            values: any shape; bool and integers count as numbers.
            weight: broadcast against `values` from the front, so that a row mask `[batch]` fits
                values `[batch, time]`. Where it is 0, `values` may be anything, NaN included.
                Default: every entry has weight 1.

        Raises:
            LossError: the shapes don't fit.
        """
        values = jnp.asarray(values)
        weight = None if weight is None else jnp.asarray(weight)
        dtype = sum_dtype(values, weight)
        values = values.astype(dtype)
        if weight is None:
            return cls(jnp.sum(values), jnp.asarray(values.size, dtype), weighted=False)
        weight = weight.astype(dtype)
        if weight.shape != values.shape[: weight.ndim]:
            raise LossError(
                f"weight of shape {weight.shape} does not fit values of shape {values.shape}",
                where="Mean.of(values, weight)",
                fix="give the weight the leading axes of the values: a row mask [batch], say",
            )
        weight = weight.reshape(weight.shape + (1,) * (values.ndim - weight.ndim))
        # 0 * nan is nan: what has no weight must not be looked at. Its gradient is 0 as well.
        kept = jnp.where(weight != 0, values, 0)
        total = jnp.sum(jnp.broadcast_to(weight, values.shape))
        return cls(jnp.sum(kept * weight), jax.lax.stop_gradient(total))

    @classmethod
    def penalty(cls, value: ArrayLike) -> Mean:
        """Returns a term that does not depend on the examples, such as a regulariser.

        It counts once per update, however many microbatches or devices there are.
        """
        value = jnp.asarray(value)
        dtype = sum_dtype(value)
        return cls(value.astype(dtype), jnp.ones((), dtype))

    @classmethod
    def empty(cls) -> Mean:
        """Returns the neutral element; its value is NaN."""
        return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

    def merge(self, other: Mean) -> Mean:
        """Returns the mean over both sets of examples."""
        both = self.weighted and other.weighted
        return Mean(self.sum + other.sum, self.weight + other.weight, both)

    def compute(self) -> Array:
        """Returns `sum / weight`, NaN when the weight is 0."""
        return jnp.where(jnp.asarray(self.weight) == 0, jnp.nan, _value_or_zero(self))

    def __add__(self, other: Mean | Terms) -> Terms:
        return Terms((self,)) + other

    def __mul__(self, factor: ArrayLike) -> Mean:
        return Mean(self.sum * factor, self.weight, self.weighted)

    __rmul__ = __mul__


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Terms:
    """A sum of means that have weights of their own: `loss = task + 0.1 * auxiliary`.

    Each term is divided by its own total weight; adding up sums and weights first would be
    wrong.

    Example:
        >>> import numpy as np
        >>> loss = Mean.of(np.array([1.0, 3.0])) + 0.5 * Mean.penalty(4.0)
        >>> float(loss.compute())
        4.0
    """

    terms: tuple[Mean, ...]

    def merge(self, other: Terms) -> Terms:
        """Merges term by term; both must have the same terms in the same order."""
        return Terms(tuple(a.merge(b) for a, b in zip(self.terms, other.terms, strict=True)))

    def compute(self) -> Array:
        """Returns the sum of the terms' values; one without weight adds nothing.

        NaN when no term has any weight.
        """
        weights = jnp.stack([jnp.asarray(term.weight) for term in self.terms])
        values = [_value_or_zero(term) for term in self.terms]
        return jnp.where(jnp.any(weights != 0), sum(values[1:], values[0]), jnp.nan)

    def __add__(self, other: Mean | Terms) -> Terms:
        return Terms(self.terms + (other.terms if isinstance(other, Terms) else (other,)))

    def __mul__(self, factor: ArrayLike) -> Terms:
        return Terms(tuple(term * factor for term in self.terms))

    __rmul__ = __mul__


def _value_or_zero(mean: Mean) -> Array:
    """Returns the mean's value, 0 without weight; its gradient is finite either way."""
    weight = jnp.asarray(mean.weight)
    value = mean.sum / jnp.where(weight == 0, 1, weight)
    return jnp.where(weight == 0, jnp.zeros((), value.dtype), value)
