"""The fixed recorded gradients, and the mixed tree of parameters that they belong to.

Drawn by numpy from a seed: independent of jax's version, precision and random bits. The scale
of the gradients moves over three decades in the course of a run, so that slow averages,
clipping and small denominators are all exercised.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SHAPES: dict[str, Any] = {
    "w": (16, 12),
    "rest": {"bias": (12,), "conv": (3, 3, 2, 4), "scalar": ()},
}


def params(*, complex_leaf: bool = True, seed: int = 1) -> Any:
    """Returns the parameters in float64 (and complex128)."""
    rng = np.random.default_rng(seed)
    tree = jax.tree.map(rng.normal, *_zeros_and_ones(), SHAPES, is_leaf=_is_shape)
    if complex_leaf:
        tree["rest"]["wave"] = rng.normal(size=5) + 1j * rng.normal(size=5)
    return tree


def gradients(steps: int, *, complex_leaf: bool = True, seed: int = 0) -> Any:
    """Returns gradients with a leading axis of `steps`, in float64 (and complex128)."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** np.sin(np.arange(steps) / 40.0 * np.pi) * rng.uniform(0.1, 1.0, steps)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        noise = rng.normal(size=(steps, *shape)) + 0.3
        return noise * scale.reshape(steps, *[1] * len(shape))

    tree = jax.tree.map(draw, SHAPES, is_leaf=_is_shape)
    if complex_leaf:
        tree["rest"]["wave"] = draw((5,)) + 1j * draw((5,))
    return tree


def cast(tree: Any, dtype: Any) -> Any:
    """Returns jax arrays of a real dtype, or of its complex partner for complex leaves."""

    def one(leaf: np.ndarray) -> jax.Array:
        wanted = jnp.promote_types(dtype, jnp.complex64) if np.iscomplexobj(leaf) else dtype
        return jnp.asarray(leaf, wanted)

    return jax.tree.map(one, tree)


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple)


def _zeros_and_ones() -> tuple[Any, Any]:
    zeros = jax.tree.map(lambda _: 0.0, SHAPES, is_leaf=_is_shape)
    return zeros, jax.tree.map(lambda _: 1.0, SHAPES, is_leaf=_is_shape)
