"""The spike rule on the device: a window of accepted values, and the judgement of the next one.

With the n values w that the window holds, `m = median(w)` and `s = 1.4826 median(|w - m|)`, a
value v is a spike where `v - m > z s` and `s > 0`. The factor makes s the standard deviation of
normally distributed values: Hampel 1974, The Influence Curve and its Role in Robust Estimation
(JASA 69), section 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from flaxtrain.spec.spikes import Spikes
from flaxtrain.typing import Array

__all__ = ["NO_SPIKES", "NoSpikes", "Score", "SpikeRule", "SpikeWindow", "spike_rule"]

SIGMA = 1.4826
"""1 / (the 0.75 quantile of the normal distribution): from a median deviation to a standard
deviation."""


class Score(NamedTuple):
    """How far a value is above the usual; float32 scalars.

    Attributes:
        value: the value.
        median: the median of the window.
        z: robust standard deviations above it; 0 where nothing is known.
    """

    value: Array
    median: Array
    z: Array


@runtime_checkable
class SpikeRule(Protocol):
    """What the training step asks of a spike rule; a pytree, kept in the state."""

    def is_spike(self, loss: Array, grad_norm: Array) -> Array:
        """Returns whether a step with these values is to be rejected, a bool scalar."""
        ...

    def after(self, loss: Array, grad_norm: Array, accept: Array) -> SpikeRule:
        """Returns the rule for the next step; only an accepted step changes it."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoSpikes:
    """No rule: nothing is a spike, and the state has no leaves for it.

    Example:
        >>> one = jnp.ones(())
        >>> bool(NoSpikes().is_spike(one, one))
        False
        >>> NoSpikes().after(one, one, accept=one > 0), jax.tree.leaves(NoSpikes())
        (NoSpikes(), [])
    """

    def is_spike(self, loss: Array, grad_norm: Array) -> Array:
        """Returns False."""
        return jnp.array(False)

    def after(self, loss: Array, grad_norm: Array, accept: Array) -> NoSpikes:
        """Returns itself."""
        return self


NO_SPIKES = NoSpikes()
"""The default: no rule."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SpikeWindow:
    """The last accepted values, as a ring.

    Args:
        values: float32 `[window]`, infinite where there is none yet.
        count: number of accepted values so far, int32; it stops at 2^31 - 1.
        rule: the rule, with its warm-up in steps.

    Example:
        >>> window = spike_rule(Spikes(z=3.0, window=4, warmup=3))
        >>> for value in (1.0, 2.0, 1.5, 9.0):
        ...     value = jnp.array(value)
        ...     print(bool(window.is_spike(value, value)))
        ...     window = window.after(value, value, accept=value < 9)
        False
        False
        False
        True
        >>> print(window.values, window.count)
        [1.  2.  1.5 inf] 3
    """

    values: Array
    count: Array
    rule: Spikes = field(metadata={"static": True})

    def score(self, loss: Array, grad_norm: Array) -> Score:
        """Returns how far the value that the rule looks at is above the window's median."""
        value = self._value(loss, grad_norm)
        kept = jnp.minimum(self.count, self.rule.window)
        # Of an empty window 0: an infinity less itself is NaN, which debugging would report.
        middle = jnp.where(kept > 0, _median(self.values, kept), 0.0)
        spread = SIGMA * _median(jnp.abs(self.values - middle), kept)
        known = (kept > 0) & (spread > 0)
        z = jnp.where(known, (value - middle) / jnp.where(known, spread, 1), 0)
        return Score(value, jnp.where(kept > 0, middle, value), z)

    def is_spike(self, loss: Array, grad_norm: Array) -> Array:
        """Returns whether the value is more than `rule.z` deviations above the median."""
        judged = self.count >= self.rule.first_judged
        return judged & (self.score(loss, grad_norm).z > self.rule.z)

    def after(self, loss: Array, grad_norm: Array, accept: Array) -> SpikeWindow:
        """Returns the window with the value of this step in place of the oldest one.

        Args:
            loss: of this step, a scalar.
            grad_norm: of this step, a scalar.
            accept: a bool scalar; where it is False, nothing changes.
        """
        place = self.count % self.rule.window
        value = jnp.where(accept, self._value(loss, grad_norm), self.values[place])
        most = jnp.iinfo(jnp.int32).max
        return replace(
            self,
            values=self.values.at[place].set(value),
            count=jnp.minimum(self.count, most - 1) + accept,
        )

    def _value(self, loss: Array, grad_norm: Array) -> Array:
        value = {"loss": loss, "grad_norm": grad_norm}[self.rule.of]
        return jnp.asarray(value, jnp.float32)


def _median(values: Array, kept: Array) -> Array:
    """Returns the median of the `kept` smallest values, at least one."""
    ordered = jnp.sort(values)
    low, high = ordered[jnp.maximum(kept - 1, 0) // 2], ordered[kept // 2]
    return 0.5 * low + 0.5 * high


def spike_rule(rule: Spikes | None) -> SpikeRule:
    """Returns the state of a spike rule before the first step.

    Args:
        rule: with its warm-up in steps; None for no rule.

    Raises:
        ArgumentError: the warm-up is relative, and not resolved.

    Example:
        >>> spike_rule(None), spike_rule(Spikes(window=64)).values.shape
        (NoSpikes(), (64,))
    """
    if rule is None:
        return NO_SPIKES
    _ = rule.first_judged  # raises for a warm-up that isn't resolved
    values = jnp.full((rule.window,), jnp.inf, jnp.float32)
    return SpikeWindow(values, jnp.zeros((), jnp.int32), rule)
