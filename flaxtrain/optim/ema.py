"""A moving average of the updates.

For one array, update g, t = 1, 2, ...:
    ema <- decay ema + (1 - decay) g
    u    = ema / (1 - decay^t)        or, debias=False:        u = ema
The correction is that of Kingma & Ba 2014, arXiv:1412.6980, section 3: the average starts at
zero, and 1 - decay^t is the total weight of what is in it. What is stored is not corrected.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from flaxtrain.checks import check_flag
from flaxtrain.optim.dtypes import check_dtype, stored_dtype
from flaxtrain.optim.moments import (
    Decay,
    bias_correction,
    check_decays,
    debiased,
    moving_average,
)
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.transform import GradientTransformation, named
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Updates

__all__ = ["DebiasedEma", "Ema", "EmaSlots", "EmaState", "ema"]


class EmaSlots(NamedTuple):
    """The moving average."""

    ema: Array


class EmaState(NamedTuple):
    """Number of updates (int32) and the moving average, a tree like the updates."""

    count: Any  # an Array
    ema: Updates


@rule
class Ema(Rule):
    """A moving average that starts at zero, for one array.

    Attributes:
        decay: what remains of the average after one step.
        accumulator_dtype: dtype in which it is stored; None: that of the parameter.
    """

    decay: Decay
    accumulator_dtype: DTypeLike | None = None

    Slots = EmaSlots

    def init(self, param: Array) -> EmaSlots:
        """Returns a zero average."""
        return EmaSlots(jnp.zeros_like(param, stored_dtype(param, self.accumulator_dtype)))

    def update(
        self, grad: Array, slots: EmaSlots, param: Array | None, scalars: Array | None
    ) -> tuple[Array, EmaSlots]:
        """Returns the average and stores it; `scalars` is the bias correction."""
        average = moving_average(self.decay, grad, slots.ema)
        u = average if scalars is None else debiased(average, scalars)
        return u, EmaSlots(average.astype(stored_dtype(average, self.accumulator_dtype)))


@rule
class DebiasedEma(Ema):
    """A moving average corrected for its start, for one array. Fields are those of `Ema`."""

    def scalars(self, t: Array) -> Array:
        """Returns the bias correction."""
        return bias_correction(self.decay, t)


@named
def ema(
    decay: ArrayLike,
    debias: bool = True,
    accumulator_dtype: DTypeLike | None = None,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation from updates to a moving average of them.

    Args:
        decay: what remains of the average after one step, in [0, 1).
        debias: correct what is returned for the start at zero; what is stored is not corrected.
        accumulator_dtype: dtype in which the average is stored; None: that of the parameter.
        state_dtype: the same, with arithmetic and updates in float32 or wider.

    Returns:
        A transformation whose state is an `EmaState`.

    Raises:
        ArgumentError: `decay` is out of range, or both dtypes are given.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx = ema(0.5)
        >>> state = tx.init(jnp.float32(0.0))
        >>> for g in (3.0, 6.0):
        ...     updates, state = tx.update(jnp.float32(g), state)
        >>> print(updates, state.ema)
        5.0 3.75
    """
    check_decays(decay=decay, where="ema")
    check_flag("debias", debias, where="ema")
    check_dtype("state_dtype", state_dtype, where="ema", instead_of=accumulator_dtype)
    dtype = check_dtype("accumulator_dtype", accumulator_dtype, where="ema")
    rule = (DebiasedEma if debias else Ema)(decay, dtype)
    return per_leaf(rule, state=EmaState, state_dtype=state_dtype)
