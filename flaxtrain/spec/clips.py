"""Kinds of clipping, each declared as data with its formula.

Of a gradient g with norm |g| (of all that is clipped together) and parameter x:
    ClipNorm        g <- g min(1, limit / |g|)              Pascanu et al. 2012, arXiv:1211.5063
    ClipZScore      the same, with a limit from the norms before   Kumar et al. 2025, 2504.02507
    ClipValue       g_i <- min(limit, max(-limit, g_i))                              every entry
    ClipBlockRms    g <- g min(1, limit / RMS(g))           Shazeer & Stern 2018, 1804.04235, 4
    AdaptiveClip    G <- G min(1, ratio max(|X|, eps) / |G|)       Brock et al. 2021, 2102.06171
The first two know one norm and return one factor. The others look at one parameter at a time:
at each array of it (a layer of a scanned stack) for `ClipBlockRms`, at each unit (what leads
into one output) for `AdaptiveClip`.

Comparisons are such that NaN reaches the result, so that a step can be rejected for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from flaxtrain.answering import answering
from flaxtrain.checks import check_number
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.optim.moments import squared_magnitude
from flaxtrain.params.facts import ParamFact
from flaxtrain.params.units import own_axes, unit_axes
from flaxtrain.spec.clip import Clip, LimitClip
from flaxtrain.spec.clip_z_score import ClipZScore
from flaxtrain.spec.declaration import as_float, plain
from flaxtrain.spec.hyperparameters import Number
from flaxtrain.spec.packed_numbers import PackedNumbers
from flaxtrain.text import kind_of
from flaxtrain.typing import Array, ArrayLike

__all__ = ["AdaptiveClip", "ClipBlockRms", "ClipNorm", "ClipValue"]


@dataclass(frozen=True, init=False, repr=False, eq=False)
class ClipNorm(LimitClip):
    """Scales the whole gradient down to a largest norm; the same as `clip_norm=`.

    Args:
        limit: the largest L2 norm > 0, over all parameters together; a number or a schedule.

    Raises:
        ArgumentError: `limit` is out of range.
        ArgumentTypeError: `limit` is no number.

    Example:
        >>> norm, limit = jnp.float32(5.0), jnp.float32(1.0)
        >>> print(ClipNorm(1.0).factor(norm, limit, ClipNorm(1.0).memory())[0])
        0.2
    """

    limit: Number

    number = "clip_norm"

    def factor(
        self, norm: Array, bound: Array, memory: PackedNumbers
    ) -> tuple[Array, PackedNumbers]:
        """Returns `min(1, limit / norm)`; nothing is remembered."""
        # A zero gradient stays one, also under a limit that has come down to 0.
        return jnp.where(norm < bound, 1.0, bound / jnp.where(norm == 0, 1, norm)), memory


@dataclass(frozen=True, init=False, repr=False, eq=False)
class ClipValue(LimitClip):
    """Bounds every entry of the gradient.

    Args:
        limit: the largest magnitude > 0 of an entry; a number or a schedule. A complex entry
            keeps its direction.

    Raises:
        ArgumentError: `limit` is out of range.
        ArgumentTypeError: `limit` is no number.

    Example:
        >>> ClipValue(0.5)
        ClipValue(0.5)
    """

    limit: Number

    number = "clip_value"

    def clip(self, grad: Array, bound: Array, param: Array, fact: ParamFact) -> Array:
        """Returns the gradient with entries in `[-limit, limit]`."""
        if not jnp.iscomplexobj(grad):
            return jnp.clip(grad, -bound, bound)
        size = jnp.abs(grad)
        return grad * jnp.where(size > bound, bound / jnp.where(size > 0, size, 1), 1)


@dataclass(frozen=True, init=False, repr=False, eq=False)
class ClipBlockRms(LimitClip):
    """Scales the gradient of each parameter down to a largest root mean square.

    Each layer of a scanned stack counts by itself, as if it were not stacked.

    Args:
        limit: the largest root mean square > 0; a number or a schedule.

    Raises:
        ArgumentError: `limit` is out of range.
        ArgumentTypeError: `limit` is no number.

    Example:
        >>> ClipBlockRms(1)
        ClipBlockRms(1.0)
    """

    limit: Number

    number = "clip_block_rms"

    def clip(self, grad: Array, bound: Array, param: Array, fact: ParamFact) -> Array:
        """Returns the gradient, each array of it scaled."""
        squares = squared_magnitude(grad)
        rms = jnp.sqrt(jnp.mean(squares, axis=own_axes(fact), keepdims=True))
        return jnp.where(rms < bound, 1.0, bound / jnp.where(rms == 0, 1, rms)) * grad


@dataclass(frozen=True, init=False, repr=False, eq=False)
class AdaptiveClip(Clip):
    """Adaptive gradient clipping (AGC): each unit's gradient is at most a share of the unit.

    Brock et al. 2021, arXiv:2102.06171, equation 3. A unit of a kernel is what leads into one
    output, over the axes that the module sums over: for each layer of a scanned stack, each
    expert, each head and feature of a query by itself. Biases and scales of norms are one unit
    each.

    Args:
        ratio: the largest ratio > 0 of the norm of a unit's gradient to that of the unit; a
            number or a schedule.
        eps: the smallest norm >= 0 of a unit that is taken into account, so that zeros can
            start.

    Raises:
        ArgumentError: a number is out of range.
        ArgumentTypeError: a value is no number.

    Example:
        >>> AdaptiveClip(), AdaptiveClip(0.02)
        (AdaptiveClip(), AdaptiveClip(0.02))
    """

    ratio: Number
    eps: float

    number = "clip_ratio"

    @answering
    def __init__(
        self, ratio: ArrayLike | Callable[[ArrayLike], ArrayLike] = 0.01, eps: float = 1e-3
    ) -> None:
        check_number("eps", eps, minimum=0.0, where="AdaptiveClip")
        self._set(ratio=self._check(ratio), eps=as_float(plain(eps)))

    def clip(self, grad: Array, bound: Array, param: Array, fact: ParamFact) -> Array:
        """Returns the gradient, each unit of it scaled."""
        axes = unit_axes(fact)
        of_param, of_grad = (
            jnp.sqrt(jnp.sum(squared_magnitude(array), axis=axes, keepdims=True))
            for array in (param, grad)
        )
        limit = bound * jnp.maximum(of_param.astype(of_grad.dtype), self.eps)
        # A norm of 0 is no divisor: with eps = 0 the limit may be 0, too.
        shorter = limit / jnp.where(of_grad == 0, 1, of_grad)
        return jnp.where(of_grad < limit, 1.0, shorter) * grad


CLIPS: tuple[type[Clip], ...] = (ClipNorm, ClipValue, ClipBlockRms, AdaptiveClip, ClipZScore)


def as_clips(clips: Any, clip_norm: Any, *, where: str) -> tuple[Clip, ...]:
    """Returns what is said as `clip=`, in order; one alone is a sequence of one.

    Args:
        clips: the argument.
        clip_norm: the argument of that name beside it.
        where: the call, for the message.

    Raises:
        ArgumentTypeError: it is no clip, and no sequence of them.
        ArgumentError: a kind is said twice, as `clip_norm` perhaps.

    Example:
        >>> as_clips(ClipValue(1.0), 2.0, where="OptSpec")
        (ClipValue(1.0),)
    """
    found = (clips,) if isinstance(clips, Clip) else clips
    known = ", ".join(f"{kind.__name__}(...)" for kind in CLIPS)
    several = isinstance(found, Sequence) and not isinstance(found, str)
    wrong = [clip for clip in found if not isinstance(clip, CLIPS)] if several else [clips]
    if wrong:
        raise ArgumentTypeError(
            f"clip={wrong[0]!r} is {kind_of(wrong[0])}, not a kind of clipping",
            where=where,
            fix=f"pass one, or a list, of {known}",
        )
    kinds = [type(clip).__name__ for clip in found]
    twice = [kind for kind in kinds if kinds.count(kind) > 1]
    if twice:
        raise ArgumentError(
            f"clip= holds {twice[0]} twice", where=where, fix="say each kind once, in one place"
        )
    if clip_norm is not None and ClipNorm.__name__ in kinds:
        raise ArgumentError(
            f"both clip_norm={clip_norm} and {found[kinds.index('ClipNorm')]!r} limit the norm",
            where=where,
            fix="leave clip_norm out: it comes first, ClipNorm where it stands in the list",
        )
    return tuple(found)
