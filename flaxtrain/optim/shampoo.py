"""Shampoo: a preconditioner that is a Kronecker product of one matrix per axis.

Gupta, Koren & Singer 2018, "Shampoo: Preconditioned Stochastic Tensor Optimization",
arXiv:1802.09568, Algorithms 1 and 2.
Anil et al. 2020, "Scalable Second Order Optimization for Deep Learning", arXiv:2002.09018:
blocks, roots every few steps, the step length of another method (grafting).

For one block of k axes, G_t its gradient, G_(i) its matrix along axis i, t = 1, 2, ...:
    L_i <- b2 L_i + (1 - b2) G_(i) G_(i)^H      (with b2 = 1: L_i + G_(i) G_(i)^H, as in 2018)
    X_i <- ((L_i + ridge |L_i| I) / (1 - b2^t))^(-1/2k)     every few steps
    S   = mu_hat x_1 X_1 x_2 X_2 ...            product along every axis
    u   = S |D| / |S|                           norms over the whole parameter
where D is the step of the grafted method from the moments of `adam`:
    adam: mu_hat / (sqrt(nu_hat) + eps)   rmsprop: g / (sqrt(nu_hat) + eps)   sgd: mu_hat
The variant that averages gradients before the preconditioner (Shi et al. 2023,
arXiv:2309.06497). Before the first roots, and for vectors and scalars, u = D.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from flaxtrain.checks import check_choice, check_flag, check_integer, check_number, is_concrete
from flaxtrain.optim.blocks import Blocks, block_gram, block_product, blocks_of, by_block_size
from flaxtrain.optim.combine import Mask, chain
from flaxtrain.optim.dtypes import check_dtype
from flaxtrain.optim.matrix_root import inverse_pth_root
from flaxtrain.optim.moments import (
    Decay,
    DecayRate,
    bias_correction,
    check_decays,
    complement,
    debiased,
    moving_average,
    squared_magnitude,
    value,
)
from flaxtrain.optim.per_leaf import in_float32, per_leaf, safe_increment
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.optim.weight_decay import add_decayed_weights
from flaxtrain.tree import widened
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Schedule, Updates

__all__ = [
    "ScaleByShampooState",
    "Shampoo",
    "ShampooScalars",
    "ShampooSlots",
    "scale_by_shampoo",
    "shampoo",
    "shampoo_rule",
]


class ShampooSlots(NamedTuple):
    """Moments as in Adam; for every axis of the blocks a stack of `L_i` and of `X_i`."""

    mu: Array
    nu: Array
    statistics: tuple[Array, ...]
    roots: tuple[Array, ...]


class ScaleByShampooState(NamedTuple):
    """Number of updates (int32); trees like the parameters.

    In `statistics` and `roots`, a parameter has a tuple with one array `[blocks, n, n]` for
    each axis; a vector or scalar has `()`.
    """

    count: Any  # an Array
    mu: Updates
    nu: Updates
    statistics: Updates
    roots: Updates


class ShampooScalars(NamedTuple):
    """What depends on the step: Adam's corrections, and what is to be done now."""

    now: Array
    mu: Array
    nu: Array
    active: Array
    refresh: Array


@rule
class Shampoo(Rule):
    """Shampoo for one array.

    Fields are the arguments of `shampoo`.
    """

    block_size: int = 256
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: ArrayLike = 1e-8
    ridge: ArrayLike = 1e-6
    graft: str = "adam"
    nesterov: bool = False
    precondition_every: int = 10
    precondition_from: int = 10
    merge_axes: bool = True

    Slots = ShampooSlots

    def init(self, param: Array) -> ShampooSlots:
        """Returns zero moments and statistics, and the identity for every root."""
        blocks = self.blocks(param)
        wide = jnp.promote_types(param.dtype, jnp.float32)
        moment = jnp.zeros_like(param, dtype=wide)
        if blocks is None:
            return ShampooSlots(moment, moment.real, (), ())
        ones = [jnp.eye(n, dtype=wide) for n in blocks.sizes]
        roots = tuple(jnp.broadcast_to(one, (blocks.number, *one.shape)) for one in ones)
        return ShampooSlots(moment, moment.real, tuple(map(jnp.zeros_like, roots)), roots)

    def blocks(self, array: Array) -> Blocks | None:
        """Returns how an array is cut; None: it is a vector, a scalar or empty."""
        blocks = blocks_of(array.shape, self.block_size, merge_axes=self.merge_axes)
        return blocks if blocks.order > 1 and array.size else None

    @property
    def sums(self) -> bool:
        """Whether the second moments are sums, not averages."""
        return isinstance(self.b2, (int, float)) and self.b2 == 1

    def scalars(self, t: Array) -> ShampooScalars:
        """Returns the bias corrections and whether roots are used and computed."""
        now = bias_correction(self.b1, t)
        ahead = bias_correction(self.b1, safe_increment(t)) if self.nesterov else now
        nu = jnp.ones_like(now) if self.sums else bias_correction(self.b2, t)
        active = t >= self.precondition_from
        due = (t - self.precondition_from) % self.precondition_every == 0
        return ShampooScalars(now, ahead, nu, active, active & due)

    def update(
        self, grad: Array, slots: ShampooSlots, param: Array | None, scalars: ShampooScalars
    ) -> tuple[Array, ShampooSlots]:
        """Returns the direction `u` and the new slots."""
        g = widened(grad)
        mu = moving_average(self.b1, g, slots.mu)
        nu = self.accumulated(squared_magnitude(g), slots.nu)
        mu_hat = debiased(mu, scalars.mu)
        if self.nesterov:
            mu_hat = value(self.b1) * mu_hat + complement(self.b1) * debiased(g, scalars.now)
        step = self.grafted_step(g, mu_hat, debiased(nu, scalars.nu))
        blocks, statistics, roots = self.blocks(grad), slots.statistics, slots.roots
        if blocks is not None:
            grams = (block_gram(blocks.cut(g), i) for i in range(blocks.order))
            statistics = tuple(map(self.accumulated, grams, statistics))
            roots = self.new_roots(statistics, roots, scalars)
            s = blocks.join(block_product(blocks.cut(mu_hat), roots))
            u = s if self.graft == "none" else s * _ratio(step, s)
            step = jnp.where(scalars.active, u, step)
        return step.astype(grad.dtype), ShampooSlots(mu, nu, statistics, roots)

    def grafted_step(self, g: Array, mu_hat: Array, nu_hat: Array) -> Array:
        """Returns `D`; without grafting that of Adam, for what is not preconditioned."""
        if self.graft == "sgd":
            return mu_hat
        return (g if self.graft == "rmsprop" else mu_hat) / (jnp.sqrt(nu_hat) + self.eps)

    def accumulated(self, new: Array, old: Array) -> Array:
        """Returns the moving average, or the sum."""
        return old + new if self.sums else moving_average(self.b2, new, old)

    def new_roots(
        self, statistics: tuple[Array, ...], old: tuple[Array, ...], scalars: ShampooScalars
    ) -> tuple[Array, ...]:
        """Returns every `X_i`: computed now if it is time, else the old ones."""
        p = 2 * len(old)

        def computed(statistics: tuple[Array, ...]) -> tuple[Array, ...]:
            new = by_block_size(lambda a: inverse_pth_root(a, p, self.ridge), statistics)
            factor = (scalars.nu ** (1.0 / p)).astype(new[0].dtype)
            # Statistics that overflowed have no root; the last good one is still a metric.
            return tuple(jnp.where(jnp.isnan(x), y, factor * x) for x, y in zip(new, old))

        return lax.cond(scalars.refresh, computed, lambda _: old, statistics)


def _ratio(step: Array, s: Array) -> Array:
    """Returns `|D| / |S|`, and 0 where S is 0."""
    step_size, size = (jnp.sum(squared_magnitude(x)) for x in (step, s))
    return jnp.sqrt(step_size) / jnp.where(size > 0, jnp.sqrt(size), jnp.inf)


@answering
def shampoo_rule(
    block_size: int = 256,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: ArrayLike = 1e-8,
    ridge: ArrayLike = 1e-6,
    graft: str = "adam",
    nesterov: bool = False,
    precondition_every: int = 10,
    precondition_from: int = 10,
    merge_axes: bool = True,
) -> Shampoo:
    """Returns the rule for these hyperparameters, after checking them.

    Arguments are those of `shampoo`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.
        UnknownNameError: there is no such `graft`.

    Example:
        >>> shampoo_rule(128, graft="sgd").graft
        'sgd'
    """
    where = "shampoo"
    check_decays(b1=b1, where=where)
    check_number("b2", value(b2), minimum=0.0, maximum=1.0, where=where)
    check_number("eps", eps, minimum=0.0, where=where)
    check_number("ridge", ridge, minimum=0.0, exclude=(0.0,), where=where)
    check_choice("graft", graft, ("adam", "rmsprop", "sgd", "none"), where=where)
    for name, flag in (("nesterov", nesterov), ("merge_axes", merge_axes)):
        check_flag(name, flag, where=where)
    check_integer("block_size", block_size, minimum=1, where=where)
    check_integer("precondition_every", precondition_every, minimum=1, where=where)
    check_integer("precondition_from", precondition_from, minimum=1, where=where)
    if not isinstance(b2, DecayRate) and is_concrete(b2) and b2 == 1:
        b2 = 1.0  # an array would be a tracer by the time that sums are chosen
    return Shampoo(
        *(int(block_size), b1, b2, eps, ridge, graft, bool(nesterov)),
        *(precondition_every, precondition_from, bool(merge_axes)),
    )


@named
def scale_by_shampoo(
    block_size: int = 256,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    ridge: ArrayLike = 1e-6,
    graft: str = "adam",
    nesterov: bool = False,
    precondition_every: int = 10,
    precondition_from: int = 10,
    merge_axes: bool = True,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation from gradients to Shampoo's direction `u` (not negated).

    Arguments are those of `shampoo`.

    Returns:
        A transformation whose state is a `ScaleByShampooState`.

    Raises:
        ArgumentError: a value is out of range, or there is no such `graft`.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx = scale_by_shampoo(graft="none", precondition_from=1)
        >>> g = jnp.array([[3.0, 0.0], [0.0, 4.0]])
        >>> updates, state = tx.update(g, tx.init(g))
        >>> print(updates.round(3), state.roots[0].shape)
        [[1. 0.]
         [0. 1.]] (1, 2, 2)
    """
    check_dtype("state_dtype", state_dtype, where="scale_by_shampoo")
    rule = shampoo_rule(
        *(block_size, b1, b2, eps, ridge, graft, nesterov),
        *(precondition_every, precondition_from, merge_axes),
    )
    return per_leaf(rule, state=ScaleByShampooState, state_dtype=state_dtype)


@named
def shampoo(
    learning_rate: ArrayLike | Schedule,
    block_size: int = 256,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike | Schedule = 0.0,
    mask: Mask | None = None,
    *,
    ridge: ArrayLike = 1e-6,
    graft: str = "adam",
    nesterov: bool = False,
    precondition_every: int = 10,
    precondition_from: int = 10,
    merge_axes: bool = True,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Shampoo in blocks, with the step length of Adam.

    With the default graft, learning rate and weight decay mean what they mean for `adamw`, and
    the first `precondition_from - 1` updates are its own. A square block of n x n entries has
    two statistics and two roots of n x n.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        block_size: the largest matrix; longer axes are cut into blocks of equal size, >= 1.
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment and of the statistics, in [0, 1]; 1: they are sums.
        eps: added to the denominator of the grafted method, >= 0.
        weight_decay: a number >= 0, or a schedule; it is multiplied by the learning rate.
        mask: a tree of bools like the parameters or a prefix of it, or a function from the
            parameters to one: which of them decay. None: all.
        ridge: added to the eigenvalues of a statistic, relative to its largest, > 0.
        graft: whose step length is taken and who stands in where there is no preconditioner:
            "adam", "rmsprop", "sgd" or "none" (its own length; "adam" stands in).
        nesterov: look one step ahead, as `nadam` does.
        precondition_every: steps between two computations of the roots, >= 1. Other steps don't
            pay for them, unless the count itself is under `vmap`. On busy CPUs LAPACK's threads
            get in each other's way: set `OPENBLAS_NUM_THREADS=1`.
        precondition_from: first step (they count from 1) that is preconditioned, >= 1.
        merge_axes: precondition arrays of three and more axes as matrices, see `blocks_of`;
            False: with one matrix per axis.
        state_dtype: dtype in which moments, statistics and roots are stored, with arithmetic
            and updates in float32 or wider. Averages in bfloat16 stall where b2 > 0.99. None:
            state in float32 or wider, updates in the dtype of the gradients.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.
        UnknownNameError: there is no such `graft`.

    Example:
        >>> tx, x = shampoo(0.1, precondition_from=1), jnp.array([[3.0, 1.0], [0.0, 1.0]])
        >>> updates, state = tx.update(2 * x, tx.init(x), x)
        >>> print((x + updates).round(2))
        [[2.8799999  0.96999997]
         [0.03       0.88      ]]
    """
    check_learning_rate(learning_rate, where="shampoo")
    direction = scale_by_shampoo(
        *(block_size, b1, b2, eps, ridge, graft, nesterov),
        *(precondition_every, precondition_from, merge_axes),
        state_dtype=state_dtype,
    )
    decay = add_decayed_weights(weight_decay, mask)
    tx = chain(direction, decay, scale_by_learning_rate(learning_rate))
    return in_float32(tx, state_dtype)
