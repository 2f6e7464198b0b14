"""Lion: the sign of an interpolated momentum.

Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675,
Algorithm 2.

For one array, gradient g:
    c = b1 mu + (1 - b1) g          mu <- b2 mu + (1 - b2) g
    u = sign(c)
The direction is formed from the momentum before this step's gradient enters it with its own,
longer memory. Softer variants of the sign, which tell small entries from large ones:
    smooth: u = tanh(smooth_beta c)         refined: u = c where |c| < 1, else sign(c)
The sign of a complex number z is z / |z|. Weight decay is decoupled as in the paper.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from flaxtrain.checks import check_choice, check_number
from flaxtrain.optim.combine import Mask, chain
from flaxtrain.optim.dtypes import check_dtype, stored_dtype
from flaxtrain.optim.moments import Decay, check_decays, moving_average
from flaxtrain.optim.per_leaf import in_float32, per_leaf
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.optim.weight_decay import add_decayed_weights
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Schedule, Updates

__all__ = [
    "Lion",
    "LionSlots",
    "RefinedLion",
    "ScaleByLionState",
    "SmoothLion",
    "lion",
    "lion_rule",
    "scale_by_lion",
]


class LionSlots(NamedTuple):
    """The momentum."""

    mu: Array


class ScaleByLionState(NamedTuple):
    """Number of updates (int32), and the momentum, a tree like the parameters."""

    count: Any  # an Array
    mu: Updates


@rule
class Lion(Rule):
    """Lion for one array.

    Attributes:
        b1: the momentum's share of the direction.
        b2: decay of the momentum.
        mu_dtype: dtype in which the momentum is stored; None: that of the parameter.
    """

    b1: Decay = 0.9
    b2: Decay = 0.99
    mu_dtype: DTypeLike | None = None

    Slots = LionSlots

    def init(self, param: Array) -> LionSlots:
        """Returns a zero momentum."""
        return LionSlots(jnp.zeros_like(param, dtype=stored_dtype(param, self.mu_dtype)))

    def update(
        self, grad: Array, slots: LionSlots, param: Array | None, scalars: None
    ) -> tuple[Array, LionSlots]:
        """Returns the direction `u` and the new momentum."""
        u = self.limited(moving_average(self.b1, grad, slots.mu))
        mu = moving_average(self.b2, grad, slots.mu)
        return u, LionSlots(mu.astype(stored_dtype(mu, self.mu_dtype)))

    def limited(self, c: Array) -> Array:
        """Returns `c` with every entry brought to size 1; zero stays zero."""
        return jnp.sign(c)


@rule
class SmoothLion(Lion):
    """Lion with a smooth sign, for one array. Fields are those of `Lion`, and one more.

    Attributes:
        smooth_beta: the steepness of the sign at zero.
    """

    smooth_beta: ArrayLike = 1.0

    def limited(self, c: Array) -> Array:
        """Returns `tanh(smooth_beta c)`."""
        return jnp.tanh(self.smooth_beta * c)


@rule
class RefinedLion(Lion):
    """Lion with a sign that is linear below 1, for one array. Fields are those of `Lion`."""

    def limited(self, c: Array) -> Array:
        """Returns `c` with every entry larger than 1 brought to size 1."""
        return jnp.where(jnp.abs(c) < 1.0, c, jnp.sign(c))


@answering
def lion_rule(
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    mu_dtype: DTypeLike | None = None,
    *,
    mode: Literal["hard", "smooth", "refined"] = "hard",
    smooth_beta: ArrayLike = 1.0,
) -> Lion:
    """Returns the rule for these hyperparameters, after checking them.

    Args:
        b1: the momentum's share of the direction, in [0, 1).
        b2: decay of the momentum, in [0, 1).
        mu_dtype: dtype in which the momentum is stored; None: that of the parameter.
        mode: which sign: `"hard"`, `"smooth"` (`SmoothLion`) or `"refined"` (`RefinedLion`).
        smooth_beta: steepness of the smooth sign at zero, > 0; the other modes ignore it.

    Raises:
        ArgumentError: a value is out of range.
        UnknownNameError: there is no such mode.
        ArgumentTypeError: a value is not a number, not a dtype, or not a string.

    Example:
        >>> lion_rule(mode="smooth", smooth_beta=100.0)
        SmoothLion(b1=0.9, b2=0.99, mu_dtype=None, smooth_beta=100.0)
    """
    check_decays(b1=b1, b2=b2, where="lion")
    mu_dtype = check_dtype("mu_dtype", mu_dtype, where="lion")
    check_choice("mode", mode, ("hard", "smooth", "refined"), where="lion")
    check_number("smooth_beta", smooth_beta, minimum=0.0, exclude=(0.0,), where="lion")
    if mode == "smooth":
        return SmoothLion(b1, b2, mu_dtype, smooth_beta)
    return (Lion if mode == "hard" else RefinedLion)(b1, b2, mu_dtype)


@named
def scale_by_lion(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.99,
    mu_dtype: DTypeLike | None = None,
    *,
    mode: Literal["hard", "smooth", "refined"] = "hard",
    smooth_beta: ArrayLike = 1.0,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation from gradients to Lion's direction `u` (not negated).

    Args:
        b1: the momentum's share of the direction, in [0, 1).
        b2: decay of the momentum, in [0, 1).
        mu_dtype: dtype in which the momentum is stored; None: that of the parameter.
        mode: which sign: `"hard"` as in the paper, `"smooth"` (tanh), or `"refined"` (linear
            for entries below 1).
        smooth_beta: steepness of the smooth sign at zero, > 0; the other modes ignore it.
        state_dtype: dtype in which the momentum is stored, with arithmetic and updates in
            float32 or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is a `ScaleByLionState`.

    Raises:
        ArgumentError: a value is out of range, or both dtypes are given.
        UnknownNameError: there is no such mode.
        ArgumentTypeError: a value is not a number, not a dtype, or not a string.

    Example:
        >>> for mode in ("hard", "refined"):
        ...     tx = scale_by_lion(b1=0.5, mode=mode)
        ...     updates, state = tx.update(jnp.array([0.5, -8.0]), tx.init(jnp.zeros(2)))
        ...     print(updates)
        [ 1. -1.]
        [ 0.25 -1.  ]

    Source:
        Chen et al. 2023, Algorithm 2.
    """
    check_dtype("state_dtype", state_dtype, where="scale_by_lion", instead_of=mu_dtype)
    rule = lion_rule(b1, b2, mu_dtype, mode=mode, smooth_beta=smooth_beta)
    return per_leaf(rule, state=ScaleByLionState, state_dtype=state_dtype)


@named
def lion(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.99,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ArrayLike | Schedule = 1e-3,
    mask: Mask | None = None,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Lion: steps of exactly the learning rate, in the direction of the momentum's sign.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied;
            the paper recommends 3 to 10 times less than for `adamw`.
        b1: the momentum's share of the direction, in [0, 1).
        b2: decay of the momentum, in [0, 1).
        mu_dtype: dtype in which the momentum is stored; None: that of the parameter.
        weight_decay: a number >= 0, or a schedule; it is multiplied by the learning rate. The
            default decays: pass 0.0 for none.
        mask: a tree of bools like the parameters or a prefix of it, or a function from the
            parameters to one: which of them decay. None: all.
        state_dtype: as for `scale_by_lion`.

    Returns:
        A transformation whose `update` needs the parameters.

    Raises:
        ArgumentError: a value is out of range, or both dtypes are given.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = lion(0.25, weight_decay=0.0), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x), x)
        >>> print(x + updates)
        0.75

    Source:
        Chen et al. 2023, Algorithm 2.
    """
    check_learning_rate(learning_rate, where="lion")
    parts = chain(
        scale_by_lion(b1, b2, mu_dtype, state_dtype=state_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
    return in_float32(parts, state_dtype)
