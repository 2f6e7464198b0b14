"""Which micro batches an accumulation leaves out."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_number, is_concrete
from flaxtrain.optim.moments import squared_magnitude
from flaxtrain.typing import Array, ArrayLike, Params, PyTree, Updates

__all__ = ["ShouldSkipUpdateFunction", "skip_large_updates", "skip_not_finite"]


@runtime_checkable
class ShouldSkipUpdateFunction(Protocol):
    """`should_skip(updates, gradient_step, params) -> (bool scalar, tree)`."""

    def __call__(
        self, updates: Updates, gradient_step: ArrayLike, params: Params | None
    ) -> tuple[ArrayLike, PyTree]:
        """Returns whether a micro batch is left out, and what is to be remembered about it.

        Args:
            updates: the gradients of the micro batch.
            gradient_step: int32 scalar, the number of steps taken by the optimizer inside.
            params: the parameters, where `update` gets any.
        """
        ...


def skip_not_finite(
    updates: Updates, gradient_step: ArrayLike, params: Params | None
) -> tuple[Array, dict[str, Array]]:
    """Says to skip a micro batch whose gradient holds NaN or infinity.

    Args:
        updates: the gradients of the micro batch.
        gradient_step: not used.
        params: not used.

    Returns:
        The verdict, and `{"should_skip": verdict, "num_not_finite": number of such entries}`.

    Example:
        >>> verdict, found = skip_not_finite({"w": jnp.array([1.0, jnp.nan])}, 0, None)
        >>> print(verdict, found["num_not_finite"])
        True 1
    """
    counts = [jnp.sum(~jnp.isfinite(leaf)) for leaf in jax.tree.leaves(updates)]
    number = sum(counts, start=jnp.zeros([], jnp.int32))
    return number > 0, {"should_skip": number > 0, "num_not_finite": number}


def skip_large_updates(
    updates: Updates,
    gradient_step: ArrayLike,
    params: Params | None,
    max_squared_norm: ArrayLike,
) -> tuple[Array, dict[str, Array]]:
    """Says to skip a micro batch whose gradient is too large, or NaN.

    For `MultiSteps`, fix the limit with `functools.partial`.

    Args:
        updates: the gradients of the micro batch.
        gradient_step: not used.
        params: not used.
        max_squared_norm: squared L2 norm over all entries from which on it is skipped, >= 0.

    Returns:
        The verdict, and `{"should_skip": verdict, "norm_squared": the squared norm}`.

    Raises:
        ArgumentError: `max_squared_norm` is negative or NaN.

    Example:
        >>> verdict, found = skip_large_updates(jnp.array([3.0, 4.0]), 0, None, 20.0)
        >>> print(verdict, found["norm_squared"])
        True 25.0
    """
    if not (is_concrete(max_squared_norm) and max_squared_norm == jnp.inf):
        check_number(
            "max_squared_norm", max_squared_norm, minimum=0.0, where="skip_large_updates"
        )
    leaves = map(jnp.asarray, jax.tree.leaves(updates))
    norm_squared = jnp.sum(jnp.array([jnp.sum(squared_magnitude(leaf)) for leaf in leaves]))
    # Not `>=`: a NaN is to be skipped as well.
    should_skip = ~(norm_squared < max_squared_norm)
    return should_skip, {"should_skip": should_skip, "norm_squared": norm_squared}
