"""What a tree of gradients looks like, by the names of its parameters, computed inside `jit`.

Both functions take any tree (gradients, updates, parameters) and give scalars, so that a step
can return them; names become text only on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import is_concrete
from flaxtrain.errors import StateError
from flaxtrain.tree import named_leaves, sum_of_squares, widened
from flaxtrain.typing import Array, Updates

__all__ = ["NonFiniteReport", "gradient_stats", "nonfinite_report"]


def gradient_stats(grads: Updates) -> dict[str, Any]:
    """Returns norm, mean and standard deviation of all entries together, and each leaf's norm.

    Sums are taken in float32 at least. The deviation is that of the whole population, and of
    complex entries that of their distance to the mean.

    Args:
        grads: any tree of arrays; `None` and integers are left out.

    Returns:
        `{"norm": scalar, "mean": scalar, "std": scalar, "norms": {name: scalar}}`, with names
        such as `"encoder/Dense_0/kernel"`. Without any entry all are 0.

    Example:
        >>> grads = {"w": jnp.array([3.0, -3.0]), "b": jnp.array([4.0])}
        >>> stats = jax.jit(gradient_stats)(grads)
        >>> print({name: round(float(norm), 4) for name, norm in stats["norms"].items()})
        {'b': 4.0, 'w': 4.2426}
        >>> print(round(float(stats["norm"]), 4), round(float(stats["mean"]), 4))
        5.831 1.3333
    """
    leaves = [
        (name, widened(leaf))
        for name, leaf in named_leaves(grads)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    ]
    size = max(sum(leaf.size for _, leaf in leaves), 1)
    if not leaves:
        zero = jnp.zeros(())
        return {"norm": zero, "mean": zero, "std": zero, "norms": {}}
    # One vector of sums, and scalar arithmetic once on it.
    squares = jnp.stack([sum_of_squares(leaf) for _, leaf in leaves])
    mean = sum(jnp.sum(leaf) for _, leaf in leaves) / size
    spread = sum(sum_of_squares(leaf - mean) for _, leaf in leaves)
    norms = jnp.sqrt(squares)
    return {
        "norm": jnp.sqrt(jnp.sum(squares)),
        "mean": mean,
        "std": jnp.sqrt(jnp.asarray(spread) / size),
        "norms": {name: norms[index] for index, (name, _) in enumerate(leaves)},
    }


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NonFiniteReport:
    """How many entries of each leaf are NaN or infinite; a pytree, names apart.

    Attributes:
        counts: name to number of entries that are not finite, int32.
    """

    counts: dict[str, Array]

    @property
    def total(self) -> Array:
        """The number of all entries that are not finite, int32."""
        return jnp.asarray(sum(self.counts.values()), jnp.int32)

    def names(self) -> dict[str, int]:
        """Returns the leaves that have such entries, with their numbers; on the host only.

        Raises:
            StateError: the counts are tracers, inside `jit`.
        """
        if not all(map(is_concrete, self.counts.values())):
            raise StateError(
                "the counts are not known yet",
                where="NonFiniteReport.names",
                fix="return the report from the jitted function, and ask for names outside",
            )
        counts: dict[str, Any] = jax.device_get(self.counts)
        return {name: int(count) for name, count in counts.items() if np.any(count)}

    def __str__(self) -> str:
        if not all(map(is_concrete, self.counts.values())):
            return repr(self)
        found = self.names()
        if not found:
            return "all entries are finite"
        listed = ", ".join(f"{name} ({count})" for name, count in found.items())
        return f"not finite: {listed}"


def nonfinite_report(grads: Updates) -> NonFiniteReport:
    """Returns how many entries of each leaf are NaN or infinite.

    Args:
        grads: any tree of arrays; `None` and integers are left out.

    Example:
        >>> grads = {"a": {"w": jnp.array([1.0, jnp.nan])}, "b": jnp.array([0.0])}
        >>> report = jax.jit(nonfinite_report)(grads)
        >>> print(report.total, report)
        1 not finite: a/w (1)
        >>> report.names()
        {'a/w': 1}
    """
    return NonFiniteReport(
        {
            name: jnp.sum(~jnp.isfinite(leaf), dtype=jnp.int32)
            for name, leaf in named_leaves(grads)
            if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        }
    )
