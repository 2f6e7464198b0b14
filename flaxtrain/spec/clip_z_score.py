"""Clipping of outliers among gradient norms: ZClip.

Kumar et al. 2025, "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", arXiv:2504.02507,
with "reciprocal" clipping. The deviation of the newest norm in the running variance is that
from the newest mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp

from flaxtrain.answering import answering
from flaxtrain.checks import check_number
from flaxtrain.durations import DurationLike, Horizon, parse, to_steps
from flaxtrain.errors import ArgumentError
from flaxtrain.optim import DecayRate
from flaxtrain.optim.moments import moving_average
from flaxtrain.spec.clip import Clip
from flaxtrain.spec.declaration import as_float, plain
from flaxtrain.spec.hyperparameters import Number
from flaxtrain.spec.packed_numbers import PackedNumbers
from flaxtrain.typing import Array, ArrayLike

__all__ = ["ClipZScore"]


@dataclass(frozen=True, init=False, repr=False, eq=False)
class ClipZScore(Clip):
    """Clips a norm that is an outlier among the norms before it (ZClip).

    Kumar et al. 2025, arXiv:2504.02507. With mean mu and standard deviation sigma of the norms
    so far, a norm n above mu + z sigma has the score s = (n - mu) / sigma and is scaled down to
        n' = mu + (z^2 / s) sigma
    the less, the further out it was. Then, with n' = n for a norm that is no outlier,
        mu <- decay mu + (1 - decay) n'
        sigma^2 <- decay sigma^2 + (1 - decay) (n' - mu)^2
    During warm-up nothing is clipped; mu and sigma^2 are mean and variance of those norms.

    Args:
        z: the largest score > 0 of a norm that is left alone; a number or a schedule.
        decay: the decay of mu and sigma^2, in [0, 1).
        warmup: the updates of the warm-up, at least 2, or a duration such as `"1%"`.

    Raises:
        ArgumentError: a number is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> clip = ClipZScore(z=2.0, warmup=2)
        >>> memory = clip.memory()
        >>> for norm in (1.0, 3.0, 6.0):
        ...     factor, memory = clip.factor(jnp.float32(norm), jnp.float32(2.0), memory)
        ...     print(norm * factor)  # mu = 2, sigma = 1: 6 has the score 4
        1.0
        3.0
        3.0
    """

    z: Number
    decay: float
    warmup: DurationLike

    number = "clip_z"

    @answering
    def __init__(
        self,
        z: ArrayLike | Callable[[ArrayLike], ArrayLike] = 2.5,
        decay: float = 0.97,
        warmup: DurationLike = 25,
    ) -> None:
        where = "ClipZScore"
        check_number("decay", decay, minimum=0.0, maximum=1.0, exclude=(1.0,), where=where)
        duration = parse(warmup, where=f"{where}(warmup={warmup!r})")
        warmup = plain(warmup)
        if not duration.is_relative and duration.amount < 2:
            raise ArgumentError(
                f"warmup={warmup}: one norm has no variance",
                where=where,
                fix="pass at least 2 updates",
            )
        self._set(z=self._check(z), decay=as_float(plain(decay)), warmup=warmup)

    def memory(self) -> PackedNumbers:
        """Returns the number of norms seen (up to the end of the warm-up), mu and sigma^2."""
        zero = jnp.zeros((), jax.dtypes.canonicalize_dtype(float))
        return PackedNumbers.of({"seen": zero, "mean": zero, "variance": zero})

    def resolve(self, horizon: Horizon) -> Self:
        """Returns the clip with every relative duration turned into steps."""
        where = "ClipZScore(warmup=...)"
        steps = max(2, to_steps(self.warmup, horizon, where=where))
        return super().resolve(horizon).replace(warmup=steps)

    def factor(
        self, norm: Array, bound: Array, memory: PackedNumbers
    ) -> tuple[Array, PackedNumbers]:
        """Returns `n' / n`, and the statistics with the norm in them."""
        seen, mean, variance = (jnp.asarray(memory[name]) for name in memory)
        warmup: Any = self.warmup  # steps, once it is resolved
        n, is_warm = norm.astype(mean.dtype), seen >= warmup
        away = n - mean
        is_spike = is_warm & (away > bound * jnp.sqrt(variance))
        # z^2 / s sigma = z^2 sigma^2 / (n - mu); where it is used, the divisor is positive.
        limit = mean + jnp.square(bound) * variance / jnp.where(is_spike, away, 1)
        factor = jnp.where(is_spike, limit / jnp.where(is_spike, n, 1), 1)
        n = jnp.where(is_spike, limit, n)
        first, later = self._first(n, seen, mean, variance), self._later(n, mean, variance)
        new = tuple(jnp.where(is_warm, b, a) for a, b in zip(first, later, strict=True))
        seen = jnp.minimum(seen + 1, warmup)
        return factor, PackedNumbers.of(dict(zip(memory, (seen, *new), strict=True)))

    def _later(self, n: Array, mean: Array, variance: Array) -> tuple[Array, Array]:
        rate = DecayRate.of(self.decay, n.dtype)
        new = moving_average(rate, n, mean)
        return new, moving_average(rate, jnp.square(n - new), variance)

    @staticmethod
    def _first(n: Array, seen: Array, mean: Array, variance: Array) -> tuple[Array, Array]:
        """Mean and variance of all norms so far, from those of one less (Welford 1962)."""
        new = mean + (n - mean) / (seen + 1)
        return new, variance + ((n - mean) * (n - new) - variance) / (seen + 1)
