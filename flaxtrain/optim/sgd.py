"""Stochastic gradient descent, with momentum.

Polyak 1964, "Some methods of speeding up the convergence of iteration methods" (heavy ball).
Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning",
proceedings.mlr.press/v28/sutskever13.pdf (Nesterov's momentum, evaluated at the shifted point).

For one array and gradient g:
    trace <- g + decay trace
    u = trace        or, Nesterov:        u = g + decay trace
There is no dampening: a constant gradient g gives steps of g / (1 - decay) in the long run.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from flaxtrain.checks import check_flag, check_number
from flaxtrain.errors import ArgumentError
from flaxtrain.optim.combine import chain
from flaxtrain.optim.dtypes import check_dtype, stored_dtype
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import NoSlots, Rule, rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.transform import GradientTransformation, answering, identity, named
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Schedule, Updates

__all__ = [
    "GradientDescent",
    "Trace",
    "TraceSlots",
    "TraceState",
    "sgd",
    "sgd_rule",
    "trace",
]


class TraceSlots(NamedTuple):
    """The decaying sum of past gradients."""

    trace: Array


class TraceState(NamedTuple):
    """The decaying sum of past gradients, a tree like the parameters."""

    trace: Updates


@rule
class GradientDescent(Rule):
    """The gradient itself: nothing is remembered."""

    def update(
        self, grad: Array, slots: NoSlots, param: Array | None, scalars: None
    ) -> tuple[Array, NoSlots]:
        """Returns the gradient."""
        return grad, slots


@rule
class Trace(Rule):
    """Momentum for one array.

    Attributes:
        decay: what remains of the trace after one step.
        nesterov: apply the decay once more to the new trace.
        dtype: dtype in which the trace is stored; None: that of the parameter.
    """

    decay: ArrayLike
    nesterov: bool = False
    dtype: DTypeLike | None = None

    Slots = TraceSlots

    def init(self, param: Array) -> TraceSlots:
        """Returns a zero trace."""
        return TraceSlots(jnp.zeros_like(param, dtype=stored_dtype(param, self.dtype)))

    def update(
        self, grad: Array, slots: TraceSlots, param: Array | None, scalars: None
    ) -> tuple[Array, TraceSlots]:
        """Returns the direction `u` and the new trace."""
        trace = grad + self.decay * slots.trace
        u = grad + self.decay * trace if self.nesterov else trace
        return u, TraceSlots(trace.astype(stored_dtype(trace, self.dtype)))


@answering
def sgd_rule(
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
) -> Rule:
    """Returns the rule for these hyperparameters, after checking them.

    Args:
        momentum: what remains of the trace after one step, in [-1, 1]; None: no trace at all.
        nesterov: apply the momentum once more to the new trace.
        accumulator_dtype: dtype in which the trace is stored; None: that of the parameter.

    Raises:
        ArgumentError: `momentum` is out of range, or None together with `nesterov`.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> sgd_rule(), sgd_rule(momentum=0.9)
        (GradientDescent(), Trace(decay=0.9, nesterov=False, dtype=None))
    """
    if momentum is not None:
        return _trace_rule("momentum", momentum, nesterov, accumulator_dtype, where="sgd")
    if nesterov:
        raise ArgumentError(
            "nesterov=True without momentum has no effect",
            where="sgd",
            fix="pass momentum, such as momentum=0.9",
        )
    return GradientDescent()


def _trace_rule(
    name: str, decay: ArrayLike, nesterov: bool, dtype: DTypeLike | None, *, where: str
) -> Trace:
    # Negative momentum is meant by some (Gidel et al. 2018, arXiv:1807.04740, for games), and 1
    # is the plain sum of gradients; beyond that the trace grows without bound.
    check_number(name, decay, minimum=-1.0, maximum=1.0, where=where)
    check_flag("nesterov", nesterov, where=where)
    dtype = check_dtype("accumulator_dtype", dtype, where=where)
    return Trace(decay, nesterov, dtype)


@named
def trace(
    decay: ArrayLike,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation from gradients to a decaying sum of them.

    Args:
        decay: what remains of the sum after one step, in [-1, 1].
        nesterov: apply the decay once more to the new sum.
        accumulator_dtype: dtype in which the sum is stored; None: that of the parameter.
        state_dtype: the same, with arithmetic and updates in float32 or wider.

    Returns:
        A transformation whose state is a `TraceState`.

    Raises:
        ArgumentError: `decay` is out of range, or both dtypes are given.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> tx = trace(0.5)
        >>> state = tx.init(jnp.float32(0.0))
        >>> for _ in range(3):
        ...     updates, state = tx.update(jnp.float32(1.0), state)
        >>> print(updates)
        1.75
    """
    check_dtype("state_dtype", state_dtype, where="trace", instead_of=accumulator_dtype)
    rule = _trace_rule("decay", decay, nesterov, accumulator_dtype, where="trace")
    return per_leaf(rule, state=TraceState, state_dtype=state_dtype)


@named
def sgd(
    learning_rate: ArrayLike | Schedule,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Stochastic gradient descent: steps of `learning_rate` times the gradient, or its trace.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        momentum: what remains of the trace after one step, in [-1, 1]; None: no trace is kept,
            while 0.0 keeps one.
        nesterov: apply the momentum once more to the new trace; ignored without momentum.
        accumulator_dtype: dtype in which the trace is stored; None: that of the parameter.
        state_dtype: the same, with arithmetic and updates in float32 or wider.

    Raises:
        ArgumentError: a value is out of range, or both dtypes are given.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = sgd(0.25, momentum=0.5), jnp.float32(1.0)
        >>> state = tx.init(x)
        >>> for _ in range(2):
        ...     updates, state = tx.update(2 * x, state)
        ...     x = x + updates
        >>> print(x)
        0.0
    """
    check_learning_rate(learning_rate, where="sgd")
    check_dtype("state_dtype", state_dtype, where="sgd", instead_of=accumulator_dtype)
    # Also without momentum, where they have no effect, these must be valid.
    checked = 0.0 if momentum is None else momentum
    _trace_rule("momentum", checked, nesterov, accumulator_dtype, where="sgd")
    momentum_part = identity()
    if momentum is not None:
        momentum_part = trace(momentum, nesterov, accumulator_dtype, state_dtype=state_dtype)
    return chain(momentum_part, scale_by_learning_rate(learning_rate))
