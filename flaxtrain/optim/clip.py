"""Clipping: bounds for entries, for arrays, and for the norm of the whole gradient.

Pascanu, Mikolov & Bengio 2012, "On the difficulty of training recurrent neural networks",
arXiv:1211.5063, Algorithm 1 (`clip_by_global_norm`). For all gradients g together:
    g <- g min(1, max_norm / |g|)
Shazeer & Stern 2018, arXiv:1804.04235, Algorithm 4 (`clip_by_block_rms`). For each array u,
with RMS(u) = sqrt(mean(|u|^2)):
    u <- u / max(1, RMS(u) / threshold)
"""

from __future__ import annotations

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import check_number, is_concrete
from flaxtrain.errors import ArgumentError, ArgumentTypeError, ParameterError
from flaxtrain.optim.moments import squared_magnitude
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import NoSlots, Rule, rule
from flaxtrain.optim.transform import EmptyState, GradientTransformation, named, stateless
from flaxtrain.text import kind_of
from flaxtrain.tree import global_norm
from flaxtrain.typing import Array, ArrayLike, Params, Updates

__all__ = [
    "BlockRmsClip",
    "ClipByGlobalNormState",
    "ClipState",
    "EntryClip",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
]

ClipState = EmptyState
"""Clipping of entries and of arrays remembers nothing."""

ClipByGlobalNormState = EmptyState
"""Clipping by the norm remembers nothing."""


@rule
class EntryClip(Rule):
    """Bounds for the entries of one array.

    Attributes:
        max_delta: the largest value; without `min_delta`, of the magnitude.
        min_delta: the smallest value; None: `-max_delta`.
    """

    max_delta: ArrayLike
    min_delta: ArrayLike | None = None

    def update(
        self, grad: Array, slots: NoSlots, param: Array | None, scalars: None
    ) -> tuple[Array, NoSlots]:
        """Returns the update, clipped."""
        if jnp.iscomplexobj(grad):
            return self._shortened(grad), slots
        low = -jnp.asarray(self.max_delta) if self.min_delta is None else self.min_delta
        return jnp.clip(grad, low, self.max_delta), slots

    def _shortened(self, grad: Array) -> Array:
        if self.min_delta is not None:
            raise ParameterError(
                "complex numbers have no order, so min_delta has no meaning for them",
                where="clip(max_delta, min_delta=...)",
                fix="leave min_delta out: then magnitudes are bounded by max_delta",
            )
        size, limit = jnp.abs(grad), jnp.asarray(self.max_delta, grad.real.dtype)
        return grad * jnp.where(size > limit, limit / jnp.where(size > 0, size, 1), 1)


@rule
class BlockRmsClip(Rule):
    """A bound for the root mean square of one array.

    Attributes:
        threshold: the bound.
    """

    threshold: ArrayLike

    def update(
        self, grad: Array, slots: NoSlots, param: Array | None, scalars: None
    ) -> tuple[Array, NoSlots]:
        """Returns the update, divided where it is too large."""
        rms = jnp.sqrt(jnp.mean(squared_magnitude(grad)))
        return grad / jnp.maximum(1.0, rms / self.threshold), slots


@named
def clip(max_delta: ArrayLike, *, min_delta: ArrayLike | None = None) -> GradientTransformation:
    """Makes the transformation that bounds every entry of the updates.

    Entries become at most `max_delta` and at least `min_delta`. A complex entry keeps its
    direction, and its magnitude becomes at most `max_delta`. NaN stays NaN.

    Args:
        max_delta: the upper bound; >= 0 if it is the only one. A number, or an array that
            broadcasts against every update.
        min_delta: the lower bound, <= `max_delta`, of the same kinds; None: `-max_delta`. For
            real updates only.

    Returns:
        A transformation without state.

    Raises:
        ArgumentError: a bound is NaN, `max_delta` alone is negative, or the lower bound is
            above the upper one.
        ArgumentTypeError: a bound is not a real number.

    Example:
        >>> grads = jnp.array([-3.0, 0.5, 3.0])
        >>> print(clip(1.0).update(grads, ClipState())[0])
        [-1.   0.5  1. ]
        >>> print(clip(max_delta=1.0, min_delta=-2.0).update(grads, ClipState())[0])
        [-2.   0.5  1. ]
    """
    _check_bound("max_delta", max_delta)
    low: Any = 0.0
    if min_delta is not None:
        _check_bound("min_delta", min_delta)
        low = min_delta
    if is_concrete(low) and is_concrete(max_delta) and np.any(np.asarray(max_delta) < low):
        found = f"max_delta={max_delta}"
        raise ArgumentError(
            f"{found} is negative" if min_delta is None else f"{found} is below {min_delta=}",
            where="clip",
            fix="pass bounds with min_delta <= max_delta, or a max_delta >= 0 alone",
        )
    return per_leaf(EntryClip(max_delta, min_delta), state=ClipState)


def _check_bound(name: str, bound: Any) -> None:
    if not is_concrete(bound):
        return
    known = isinstance(bound, (numbers.Real, np.ndarray, np.generic, jax.Array))
    if not known or isinstance(bound, bool) or np.asarray(bound).dtype.kind in "bc":
        raise ArgumentTypeError(
            f"{name}={bound!r} is {kind_of(bound)}, not a real number",
            where="clip",
            fix=f"pass a number for {name}",
        )
    if np.any(np.isnan(np.asarray(bound).astype(float))):
        raise ArgumentError(f"{name}={bound} is NaN", where="clip", fix="pass a number")


_BOUND: dict[str, Any] = {"minimum": 0.0, "exclude": (0.0,), "finite": False}


@named
def clip_by_block_rms(threshold: ArrayLike) -> GradientTransformation:
    """Makes the transformation that bounds the root mean square of each array.

    Args:
        threshold: the largest root mean square of an update, > 0; infinity: any.

    Returns:
        A transformation without state.

    Raises:
        ArgumentError: `threshold` is not positive.
        ArgumentTypeError: `threshold` is not a number.

    Example:
        >>> tx = clip_by_block_rms(1.0)
        >>> updates, state = tx.update(jnp.array([1.0, 7.0]), tx.init(None))
        >>> print(updates)
        [0.2 1.4]
    """
    check_number("threshold", threshold, **_BOUND, where="clip_by_block_rms")
    return per_leaf(BlockRmsClip(threshold), state=ClipState)


@named
def clip_by_global_norm(max_norm: ArrayLike) -> GradientTransformation:
    """Makes the transformation that bounds the joint L2 norm of all updates.

    One factor multiplies every array. NaN anywhere makes every update NaN; an infinity makes
    the entry itself NaN and all others 0.

    Args:
        max_norm: the largest L2 norm over all updates together, > 0; infinity: any.

    Returns:
        A transformation without state.

    Raises:
        ArgumentError: `max_norm` is not positive.
        ArgumentTypeError: `max_norm` is not a number.

    Example:
        >>> tx = clip_by_global_norm(1.0)
        >>> updates, state = tx.update({"w": jnp.array([3.0, 4.0])}, tx.init(None))
        >>> print(updates["w"])
        [0.6 0.8]
    """
    check_number("max_norm", max_norm, **_BOUND, where="clip_by_global_norm")

    def clip(updates: Updates, params: Params | None) -> Updates:
        updates = jax.tree.map(jnp.asarray, updates)
        norm = global_norm(updates)
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda update: _times(factor, update), updates)

    return stateless(clip)


def _times(factor: Array, update: Array) -> Array:
    # An integer would round the factor to 0.
    inexact = jnp.issubdtype(update.dtype, jnp.inexact)
    return (factor.astype(update.real.dtype) if inexact else factor) * update
