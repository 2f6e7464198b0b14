"""Adafactor: a factored second moment, and steps relative to the size of the parameter.

Shazeer & Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
arXiv:1804.04235, Algorithms 4 and 5.

For one array x, with `u = g / sqrt(V)` of `factored` and RMS(x) = sqrt(mean(|x|^2)):
    u <- u / max(1, RMS(u) / clipping_threshold)
    u <- learning_rate max(1e-3, RMS(x)) u
    m <- momentum m + (1 - momentum) u        u = m
    x <- x - u - weight_decay_rate x
This is the order of T5's Adafactor and of Optax: the momentum is an average of whole steps, not
corrected for its start, and the weight decay is not multiplied by the learning rate. The
learning rate is given; the paper's own, min(1e-2, 1/sqrt(t)), is a schedule to be passed.
Parameters that start at zero move by 1e-3 of the learning rate.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from flaxtrain.checks import check_flag, check_number
from flaxtrain.optim.clip import BlockRmsClip, ClipState
from flaxtrain.optim.combine import Mask, chain
from flaxtrain.optim.dtypes import check_dtype
from flaxtrain.optim.ema import Ema, EmaState
from flaxtrain.optim.factored import FactoredRms, FactoredState, factored_rms_rule
from flaxtrain.optim.moments import check_decays
from flaxtrain.optim.norms import safe_norm, safe_root_mean_squares
from flaxtrain.optim.per_leaf import in_float32, per_leaf
from flaxtrain.optim.rule import NoSlots, Rule, rule
from flaxtrain.optim.scale import check_learning_rate, scale, scale_by_learning_rate
from flaxtrain.optim.stages import DECAY, RATE, Stage
from flaxtrain.optim.transform import EmptyState, GradientTransformation, answering, named
from flaxtrain.optim.weight_decay import add_decayed_weights
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Schedule

__all__ = [
    "ParamBlockNorm",
    "ParamBlockRms",
    "adafactor",
    "adafactor_stages",
    "scale_by_param_block_norm",
    "scale_by_param_block_rms",
]


@rule
class ParamBlockRms(Rule):
    """Multiplies the update of one array by the root mean square of the parameter.

    Attributes:
        min_scale: the smallest factor.
    """

    min_scale: ArrayLike = 1e-3

    needs_params = True

    def update(
        self, grad: Array, slots: NoSlots, param: Array | None, scalars: None
    ) -> tuple[Array, NoSlots]:
        """Returns the update, scaled."""
        assert param is not None
        return grad * self.size(param), slots

    def size(self, param: Array) -> Array:
        """Returns the factor."""
        return safe_root_mean_squares(param, self.min_scale)


@rule
class ParamBlockNorm(ParamBlockRms):
    """Multiplies by the L2 norm of the parameter. The field is that of `ParamBlockRms`."""

    def size(self, param: Array) -> Array:
        """Returns the factor."""
        return safe_norm(param, self.min_scale)


@named
def scale_by_param_block_norm(min_scale: ArrayLike = 1e-3) -> GradientTransformation:
    """Makes the transformation that multiplies updates by the norm of their parameter.

    Args:
        min_scale: the smallest factor, >= 0.

    Returns:
        A transformation without state. Its `update` needs the parameters.

    Raises:
        ArgumentError: `min_scale` is negative, NaN or infinite.
        ArgumentTypeError: `min_scale` is not a number.

    Example:
        >>> tx, params = scale_by_param_block_norm(), jnp.array([3.0, 4.0])
        >>> print(tx.update(jnp.ones(2), tx.init(params), params)[0])
        [5. 5.]
    """
    check_number("min_scale", min_scale, minimum=0.0, where="scale_by_param_block_norm")
    return per_leaf(ParamBlockNorm(min_scale), state=EmptyState)


@named
def scale_by_param_block_rms(min_scale: ArrayLike = 1e-3) -> GradientTransformation:
    """Makes the transformation that multiplies updates by the RMS of their parameter.

    Args:
        min_scale: the smallest factor, >= 0.

    Returns:
        A transformation without state. Its `update` needs the parameters.

    Raises:
        ArgumentError: `min_scale` is negative, NaN or infinite.
        ArgumentTypeError: `min_scale` is not a number.

    Example:
        >>> tx, params = scale_by_param_block_rms(), jnp.array([1.0, 7.0])
        >>> print(tx.update(jnp.ones(2), tx.init(params), params)[0])
        [5. 5.]
    """
    check_number("min_scale", min_scale, minimum=0.0, where="scale_by_param_block_rms")
    return per_leaf(ParamBlockRms(min_scale), state=EmptyState)


@answering
def adafactor_stages(
    min_dim_size_to_factor: int = 128,
    decay_rate: ArrayLike = 0.8,
    decay_offset: ArrayLike = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: ArrayLike | None = 1.0,
    momentum: ArrayLike | None = None,
    dtype_momentum: DTypeLike | None = jnp.float32,
    eps: ArrayLike = 1e-30,
    factored: bool = True,
) -> tuple[Stage, ...]:
    """Returns the stages of Adafactor; the decay is behind the learning rate.

    Args:
        min_dim_size_to_factor: as for `adafactor`, like all others.
        decay_rate: see there.
        decay_offset: see there.
        multiply_by_parameter_scale: see there.
        clipping_threshold: see there.
        momentum: see there.
        dtype_momentum: see there.
        eps: see there.
        factored: see there.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> [getattr(stage, "name", type(stage).__name__) for stage in adafactor_stages()]
        ['FactoredRms', 'BlockRmsClip', 'RATE', 'ParamBlockRms', 'DECAY']
    """
    where = "adafactor"
    check_flag("multiply_by_parameter_scale", multiply_by_parameter_scale, where=where)
    dtype = check_dtype("dtype_momentum", dtype_momentum, where=where)
    rms = factored_rms_rule(
        *(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps),
        names=("decay_offset", "eps"),
        where=where,
    )
    before: list[Rule] = [rms]
    behind: list[Rule] = []
    if clipping_threshold is not None:
        above_zero: dict[str, Any] = {"minimum": 0.0, "exclude": (0.0,), "finite": False}
        check_number("clipping_threshold", clipping_threshold, **above_zero, where=where)
        before.append(BlockRmsClip(clipping_threshold))
    if multiply_by_parameter_scale:
        behind.append(ParamBlockRms())
    if momentum is not None:
        check_decays(momentum=momentum, where=where)
        behind.append(Ema(momentum, dtype))
    return (*before, RATE, *behind, DECAY)


@named
def adafactor(
    learning_rate: ArrayLike | Schedule | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: ArrayLike = 0.8,
    decay_offset: ArrayLike = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: ArrayLike | None = 1.0,
    momentum: ArrayLike | None = None,
    dtype_momentum: DTypeLike | None = jnp.float32,
    weight_decay_rate: ArrayLike | Schedule | None = None,
    eps: ArrayLike = 1e-30,
    factored: bool = True,
    weight_decay_mask: Mask | None = None,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Adafactor: the memory of Adam's second moment for a row and a column of each matrix.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied;
            None: 1. With `multiply_by_parameter_scale`, the relative length of a step.
        min_dim_size_to_factor: an array is factored if its second-longest axis has this size or
            more, >= 0.
        decay_rate: the exponent c of the second moment's decay `1 - t^(-c)`, >= 0.
        decay_offset: the count at which a second phase (fine-tuning) begins, >= 0: from there
            on the decay starts anew.
        multiply_by_parameter_scale: multiply steps by the RMS of the parameter, or by 1e-3
            where that is smaller.
        clipping_threshold: largest RMS of a direction, > 0; None: no bound.
        momentum: what remains of the average of steps, in [0, 1); None: no average.
        dtype_momentum: dtype in which that average is stored; None: that of the parameter.
        weight_decay_rate: a number >= 0, or a schedule; not multiplied by the learning rate.
            None: no decay.
        eps: added to the squared gradient, > 0.
        factored: whether arrays are factored at all.
        weight_decay_mask: a tree of bools like the parameters or a prefix of it, or a function
            from the parameters to one: which of them decay. None: all.
        state_dtype: dtype in which moments and average are stored, with arithmetic and updates
            in float32 or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is that of a chain of the parts in use. Its `update` needs
        the parameters, unless neither scale nor decay look at them.

    Raises:
        ArgumentError: a value is out of range, or `state_dtype` and a `dtype_momentum` other
            than float32 are given.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = adafactor(0.1), jnp.array([1.0, -7.0])
        >>> updates, state = tx.update(jnp.array([0.3, -20.0]), tx.init(x), x)
        >>> print(x + updates)
        [ 0.5 -6.5]
    """
    if learning_rate is not None:
        check_learning_rate(learning_rate, where="adafactor")
    if weight_decay_rate is not None and not callable(weight_decay_rate):
        check_number("weight_decay_rate", weight_decay_rate, minimum=0.0, where="adafactor")
    is_default = check_dtype("dtype_momentum", dtype_momentum, where="adafactor") == jnp.float32
    other = None if is_default else dtype_momentum
    check_dtype("state_dtype", state_dtype, where="adafactor", instead_of=other)
    parts: list[GradientTransformation] = []
    for stage in adafactor_stages(
        *(min_dim_size_to_factor, decay_rate, decay_offset, multiply_by_parameter_scale),
        *(clipping_threshold, momentum, dtype_momentum, eps, factored),
    ):
        if stage is RATE and learning_rate is not None:
            parts.append(scale_by_learning_rate(learning_rate, flip_sign=False))
        elif stage is DECAY and weight_decay_rate is not None:
            parts.append(add_decayed_weights(weight_decay_rate, weight_decay_mask))
        elif isinstance(stage, Rule):
            state = _STATES[type(stage)]
            parts.append(per_leaf(stage, state=state, state_dtype=state_dtype))
    return in_float32(chain(*parts, scale(-1)), state_dtype)


_STATES: dict[type[Rule], Any] = {
    FactoredRms: FactoredState,
    BlockRmsClip: ClipState,
    ParamBlockRms: EmptyState,
    Ema: EmaState,
}
