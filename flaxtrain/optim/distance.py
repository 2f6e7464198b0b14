"""Layer-wise DoG: a step size from the distance gone and the gradients seen.

Ivgi, Hinder & Carmon 2023, "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size
Schedule", arXiv:2302.12022, equation 1 and section 4 (L-DoG: one step size for each array).

For one array x with start x_0, gradient g, t = 1, 2, ...:
    r <- max(r, ||x - x_0||)        from r_eps = reps_rel (1 + ||x_0||)
    G <- G + ||g||^2
    u  = r / sqrt(G + eps) g
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from flaxtrain.checks import check_number
from flaxtrain.optim.dtypes import check_dtype, stored_dtype
from flaxtrain.optim.moments import squared_magnitude
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.transform import GradientTransformation, named
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Updates

__all__ = [
    "DistanceOverGradients",
    "DistanceOverGradientsSlots",
    "ScaleByDistanceOverGradientsState",
    "scale_by_distance_over_gradients",
]


class DistanceOverGradientsSlots(NamedTuple):
    """Largest distance r (scalar), sum of squares G (shape (1,)), and the start x_0."""

    max_dist: Array
    grad_sum_of_squares: Array
    init_params: Array


class ScaleByDistanceOverGradientsState(NamedTuple):
    """Largest distances, sums of squared gradients, first parameters: trees like these."""

    max_dist: Updates
    grad_sum_of_squares: Updates
    init_params: Updates


@rule
class DistanceOverGradients(Rule):
    """L-DoG for one array.

    Attributes:
        reps_rel: the first distance, relative to `1 + ||x_0||`.
        eps: added under the root.
        param_dtype: dtype in which x_0 is stored.
        global_scale: factor of all updates.
    """

    reps_rel: ArrayLike = 1e-6
    eps: ArrayLike = 1e-8
    param_dtype: DTypeLike | None = jnp.float32
    global_scale: ArrayLike = 1.0

    Slots = DistanceOverGradientsSlots
    needs_params = True

    def init(self, param: Array) -> DistanceOverGradientsSlots:
        """Returns the first distance, no gradients, and the parameter."""
        # A copy, so that parameters and state can both be donated.
        start = jnp.array(param, dtype=stored_dtype(param, self.param_dtype), copy=True)
        # In the dtype that distances from the stored start will have.
        wide = jnp.result_type(param, start)
        r = jnp.asarray(self.reps_rel * (1 + _norm(param)))
        return DistanceOverGradientsSlots(
            r.astype(jnp.finfo(wide).dtype), jnp.zeros(1), init_params=start
        )

    def update(
        self, grad: Array, slots: DistanceOverGradientsSlots, param: Array | None, scalars: None
    ) -> tuple[Array, DistanceOverGradientsSlots]:
        """Returns the scaled gradient and the new slots."""
        assert param is not None
        r = jnp.maximum(slots.max_dist, _norm(param - slots.init_params))
        total = slots.grad_sum_of_squares + jnp.sum(squared_magnitude(grad))
        eta = jnp.asarray(self.global_scale * (r / jnp.sqrt(total + self.eps)))
        return eta.reshape(()) * grad, DistanceOverGradientsSlots(r, total, slots.init_params)


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(squared_magnitude(x)))


@named
def scale_by_distance_over_gradients(
    reps_rel: ArrayLike = 1e-6,
    eps: ArrayLike = 1e-8,
    param_dtype: DTypeLike = jnp.float32,
    global_scale: ArrayLike = 1.0,
) -> GradientTransformation:
    """Makes the transformation that scales gradients by L-DoG's step size (not negated).

    The authors recommend averaged weights for evaluation.

    Args:
        reps_rel: the first distance, relative to `1 + ||x_0||`, > 0; 1e-4 for models with
            batch norm, else 1e-6.
        eps: added under the root, >= 0.
        param_dtype: dtype in which the first parameters are stored.
        global_scale: factor of all updates; -1 turns them downhill.

    Returns:
        A transformation whose state is a `ScaleByDistanceOverGradientsState`. Its `update`
        needs the parameters.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> tx, x = scale_by_distance_over_gradients(0.1, global_scale=-1.0), jnp.float32(1.0)
        >>> state = tx.init(x)
        >>> for _ in range(8):
        ...     updates, state = tx.update(2 * x, state, x)
        ...     x = x + updates
        >>> print(round(float(x), 3))
        0.02
    """
    where = "scale_by_distance_over_gradients"
    check_number("reps_rel", reps_rel, minimum=0.0, exclude=(0.0,), where=where)
    check_number("eps", eps, minimum=0.0, where=where)
    check_number("global_scale", global_scale, where=where)
    dtype = check_dtype("param_dtype", param_dtype, where=where)
    chosen = DistanceOverGradients(reps_rel, eps, dtype, global_scale)
    return per_leaf(chosen, state=ScaleByDistanceOverGradientsState)
