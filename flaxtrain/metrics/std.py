"""Standard deviation as a monoid, exact under padding and merging and safe in float32.

Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1. For two
sets with weights n_a, n_b, means m_a, m_b and sums of squared deviations M_a, M_b:
    n = n_a + n_b     d = m_b - m_a
    m = m_a + d n_b / n
    M = M_a + M_b + d^2 n_a n_b / n
The sum of squares minus the square of the sum, the other common form, loses all digits once the
mean is large against the deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.errors import LossError
from flaxtrain.metrics.mean import sum_dtype
from flaxtrain.typing import Array, ArrayLike

__all__ = ["Std"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Std:
    """Weight, mean and sum of squared deviations, all scalars.

    The value is `sqrt(m2 / weight)`. This is the deviation of the whole population (numpy's
    `ddof=0`). A monoid: `Std.empty()` is neutral, `merge` is associative and commutative up to
    rounding.

    Example:
        >>> import numpy as np
        >>> batch = Std.of(np.array([1.0, 3.0, 99.0]), weight=np.array([1.0, 1.0, 0.0]))
        >>> float(batch.compute())
        1.0
        >>> float(batch.merge(Std.of(np.array([5.0, 7.0]))).compute())   # of 1, 3, 5, 7
        2.2360680103302
    """

    weight: Any
    mean: Any
    m2: Any

    @classmethod
    def of(cls, values: ArrayLike, weight: ArrayLike | None = None) -> Std:
        """Returns the deviation of `values` of any shape, weighted.

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
        weight = jnp.ones((), dtype) if weight is None else weight.astype(dtype)
        if weight.shape != values.shape[: weight.ndim]:
            raise LossError(
                f"weight of shape {weight.shape} does not fit values of shape {values.shape}",
                where="Std.of(values, weight)",
                fix="give the weight the leading axes of the values: a row mask [batch], say",
            )
        weight = weight.reshape(weight.shape + (1,) * (values.ndim - weight.ndim))
        weight = jnp.broadcast_to(weight, values.shape)
        # 0 * nan is nan: what has no weight must not be looked at.
        kept = jnp.where(weight != 0, values, 0)
        total = jnp.sum(weight)
        mean = _ratio(jnp.sum(weight * kept), total)
        return cls(total, mean, jnp.sum(weight * jnp.where(weight != 0, kept - mean, 0) ** 2))

    @classmethod
    def empty(cls) -> Std:
        """Returns the neutral element; its value is NaN."""
        zero = jnp.zeros((), jnp.float32)
        return cls(zero, zero, zero)

    def merge(self, other: Std) -> Std:
        """Returns the deviation over both sets of examples."""
        weight = self.weight + other.weight
        difference = other.mean - self.mean
        share = _ratio(other.weight, weight)
        mean = self.mean + difference * share
        return Std(weight, mean, self.m2 + other.m2 + difference**2 * self.weight * share)

    def compute(self) -> Array:
        """Returns `sqrt(m2 / weight)`, NaN when the weight is 0."""
        weight = jnp.asarray(self.weight)
        return jnp.where(weight == 0, jnp.nan, jnp.sqrt(_ratio(self.m2, weight)))


def _ratio(numerator: Any, denominator: Any) -> Array:
    """Returns `numerator / denominator`, and 0 where both are 0, safe to differentiate."""
    denominator = jnp.asarray(denominator)
    return jnp.where(
        denominator == 0, 0, numerator / jnp.where(denominator == 0, 1, denominator)
    )
