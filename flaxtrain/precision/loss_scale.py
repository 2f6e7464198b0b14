"""Loss scaling: one interface, so that the step has no `if`.

scaled loss = scale(loss);  gradient = unscale(gradient of the scaled loss);  next =
adjust(finite)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax

from flaxtrain.typing import Array, Updates

__all__ = ["LossScale", "NoScale"]


@runtime_checkable
class LossScale(Protocol):
    """What the training step asks of a loss scale; a pytree, kept in the state."""

    def scale(self, loss: Array) -> Array:
        """Multiplies the loss before it is differentiated."""
        ...

    def unscale(self, grads: Updates) -> Updates:
        """Divides gradients by what `scale` multiplied."""
        ...

    def adjust(self, finite: Array) -> LossScale:
        """Returns the scale for the next step, given whether this one was finite."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoScale:
    """The scale 1, for float32 and bfloat16: every verb is the identity.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = jnp.array(2.0)
        >>> float(NoScale().scale(loss)), NoScale().adjust(finite=jnp.isfinite(loss))
        (2.0, NoScale())
    """

    def scale(self, loss: Array) -> Array:
        """Returns `loss`."""
        return loss

    def unscale(self, grads: Updates) -> Updates:
        """Returns `grads`."""
        return grads

    def adjust(self, finite: Array) -> NoScale:
        """Returns itself."""
        return self
