"""The second moment as a row and a column.

Shazeer & Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
arXiv:1804.04235, Algorithms 1, 2 and 4. Zhai et al. 2021, "Scaling Vision Transformers",
arXiv:2106.04560, section 3.4, bounds the decay (`decay_rate_fn`).

For one matrix, gradient g, t = 1, 2, ...:
    beta = 1 - t^(-decay_rate)
    R <- beta R + (1 - beta) mean over columns (|g|^2 + epsilon)
    C <- beta C + (1 - beta) mean over rows (|g|^2 + epsilon)
    u = g / sqrt(R C / mean(R))
Means stand where the paper has sums; the quotient is the same. Of an array with more axes the
two longest are rows and columns, and the others stay. Arrays of one axis, or with a
second-longest axis below `min_dim_size_to_factor`, keep a moment for each entry:
    V <- beta V + (1 - beta) (|g|^2 + epsilon)        u = g / sqrt(V)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import check_flag, check_integer, check_number
from flaxtrain.errors import ArgumentTypeError
from flaxtrain.optim.dtypes import check_dtype
from flaxtrain.optim.moments import squared_magnitude
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.transform import GradientTransformation, named
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Updates

__all__ = [
    "FactoredRms",
    "FactoredScalars",
    "FactoredSlots",
    "FactoredState",
    "factored_rms_rule",
    "power_decay",
    "scale_by_factored_rms",
]


class FactoredSlots(NamedTuple):
    """Mean squares of rows and columns, or of each entry; what is unused has one zero."""

    v_row: Array
    v_col: Array
    v: Array


class FactoredScalars(NamedTuple):
    """The decay of this step, and 1 minus it, in float64 where the decay is a number."""

    beta: Any
    complement: Any


class FactoredState(NamedTuple):
    """Number of updates (int32) and the moments, trees like the parameters.

    `v_row` lacks the longest axis of a factored parameter, `v_col` the second-longest. Where
    these are in use, `v` is one zero; where `v` is in use, they are.
    """

    count: Any  # an Array; `count` is also a method of tuple, which Any does not contradict
    v_row: Updates
    v_col: Updates
    v: Updates


def power_decay(step: Any, exponent: Any = 0.8) -> Array:
    """Returns `1 - (step + 1)^(-exponent)`: the decay of the second moment.

    Args:
        step: number of updates already applied, >= 0.
        exponent: how fast the decay rises from 0 to 1.

    Example:
        >>> print(power_decay(0), power_decay(3, exponent=0.5))
        0.0 0.5
    """
    t = jnp.asarray(step + 1, jnp.result_type(float))
    return 1.0 - t ** (-exponent)


@rule
class FactoredRms(Rule):
    """Division by a factored root mean square, for one array.

    Attributes:
        factored: whether arrays are factored at all.
        decay_rate: handed to `decay_rate_fn`.
        step_offset: the count at which a second phase begins.
        min_dim_size_to_factor: smallest second-longest axis of an array that is factored.
        epsilon: added to the squared gradient.
        decay_rate_fn: from the count and `decay_rate` to the decay.
    """

    factored: bool = True
    decay_rate: ArrayLike = 0.8
    step_offset: ArrayLike = 0
    min_dim_size_to_factor: int = 128
    epsilon: ArrayLike = 1e-30
    decay_rate_fn: Callable[[Any, Any], ArrayLike] = power_decay

    Slots = FactoredSlots

    def init(self, param: Array) -> FactoredSlots:
        """Returns zero moments."""
        axes = self.axes(param.shape)
        if axes is None:
            # Two arrays: a buffer can be donated once only.
            row, col = (jnp.zeros((1,), param.dtype) for _ in range(2))
            return FactoredSlots(row, col, v=jnp.zeros_like(param))
        row, col = (jnp.zeros(_without(param.shape, axis), param.dtype) for axis in axes)
        return FactoredSlots(v_row=row, v_col=col, v=jnp.zeros((1,), param.dtype))

    def axes(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Returns the longest and the second-longest axis; None: not factored.

        Example:
            >>> FactoredRms(min_dim_size_to_factor=2).axes((3, 2, 8))
            (2, 0)
        """
        if not self.factored or len(shape) < 2:
            return None
        *_, second, longest = (int(axis) for axis in np.argsort(shape, kind="stable"))
        return None if shape[second] < self.min_dim_size_to_factor else (longest, second)

    def scalars(self, t: Array) -> FactoredScalars:
        """Returns the decay, and 1 minus it."""
        count = t - 1
        if not (isinstance(self.step_offset, int) and self.step_offset == 0):
            # The decay starts anew in the second phase; before, it is that of the first one.
            later = count >= self.step_offset
            count = jnp.where(later, count - self.step_offset, count)
        beta: Any = self.decay_rate_fn(count, self.decay_rate)
        return FactoredScalars(beta, 1.0 - beta)

    def update(
        self, grad: Array, slots: FactoredSlots, param: Array | None, scalars: FactoredScalars
    ) -> tuple[Array, FactoredSlots]:
        """Returns the direction `u` and the new moments."""
        square = squared_magnitude(grad) + self.epsilon

        def averaged(old: Array, new: Array) -> Array:
            return (scalars.beta * old + scalars.complement * new).astype(old.dtype)

        axes = self.axes(grad.shape)
        if axes is None:
            v = averaged(slots.v, square)
            return grad * v**-0.5, slots._replace(v=v)
        longest, second = axes
        row = averaged(slots.v_row, jnp.mean(square, axis=longest))
        col = averaged(slots.v_col, jnp.mean(square, axis=second))
        left = second - (second > longest)  # the second-longest axis, where the longest is gone
        row_factor = (row / jnp.mean(row, axis=left, keepdims=True)) ** -0.5
        u = grad * jnp.expand_dims(row_factor, longest) * jnp.expand_dims(col**-0.5, second)
        return u, slots._replace(v_row=row, v_col=col)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def factored_rms_rule(
    factored: bool = True,
    decay_rate: ArrayLike = 0.8,
    step_offset: ArrayLike = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: ArrayLike = 1e-30,
    decay_rate_fn: Callable[[Any, Any], ArrayLike] = power_decay,
    *,
    names: tuple[str, str] = ("step_offset", "epsilon"),
    where: str = "scale_by_factored_rms",
) -> FactoredRms:
    """Returns the rule for these hyperparameters, after checking them.

    Args:
        factored: as for `scale_by_factored_rms`, like the next five.
        decay_rate: see there.
        step_offset: see there.
        min_dim_size_to_factor: see there.
        epsilon: see there.
        decay_rate_fn: see there.
        names: how the caller names `step_offset` and `epsilon`, for messages.
        where: the function that was called, for messages.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> factored_rms_rule(decay_rate=0.5).decay_rate
        0.5
    """
    check_flag("factored", factored, where=where)
    check_number("decay_rate", decay_rate, minimum=0.0, where=where)
    check_integer(names[0], step_offset, minimum=0, where=where)
    check_integer("min_dim_size_to_factor", min_dim_size_to_factor, minimum=0, where=where)
    # With 0, a zero gradient would be 0 / 0.
    check_number(names[1], epsilon, minimum=0.0, exclude=(0.0,), where=where)
    if not callable(decay_rate_fn):
        raise ArgumentTypeError(
            f"decay_rate_fn={decay_rate_fn!r} is not callable",
            where=where,
            fix="pass a function of the count and decay_rate; for a constant, lambda i, c: c",
        )
    return FactoredRms(
        factored, decay_rate, step_offset, min_dim_size_to_factor, epsilon, decay_rate_fn
    )


@named
def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: ArrayLike = 0.8,
    step_offset: ArrayLike = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: ArrayLike = 1e-30,
    decay_rate_fn: Callable[[Any, Any], ArrayLike] = power_decay,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation that divides by the root of a factored second moment.

    Args:
        factored: whether arrays are factored at all.
        decay_rate: the exponent c of the decay `1 - t^(-c)`, >= 0.
        step_offset: the count at which a second phase (fine-tuning) begins, >= 0: from there
            on the decay starts anew, at 0. Before, it is that of the first phase.
        min_dim_size_to_factor: an array is factored if its second-longest axis has this size or
            more.
        epsilon: added to the squared gradient, > 0.
        decay_rate_fn: from the number of updates already applied (in this phase) and
            `decay_rate` to the decay.
        state_dtype: dtype in which the moments are stored, with arithmetic and updates in
            float32 or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is a `FactoredState`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, grad = scale_by_factored_rms(min_dim_size_to_factor=2), jnp.ones((2, 3))
        >>> updates, state = tx.update(5 * grad, tx.init(grad))
        >>> print(updates[0], state.v_row, state.v_col)
        [1. 1. 1.] [25. 25.] [25. 25. 25.]
    """
    check_dtype("state_dtype", state_dtype, where="scale_by_factored_rms")
    rule = factored_rms_rule(
        factored, decay_rate, step_offset, min_dim_size_to_factor, epsilon, decay_rate_fn
    )
    return per_leaf(rule, state=FactoredState, state_dtype=state_dtype)
