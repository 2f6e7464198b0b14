"""Accumulating gradients over several calls before the optimizer takes a step.

With k micro batches and their gradients g_1, ..., g_k the mean is a running one:
    acc <- acc + (g_n - acc) / n,    n = 1, ..., k
The optimizer inside sees it at every k-th call; in between updates are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_flag, check_integer
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.optim.branch import branch, update_if, zero_updates
from flaxtrain.optim.dtypes import check_dtype, with_dtypes_of
from flaxtrain.optim.per_leaf import safe_increment
from flaxtrain.optim.skip import ShouldSkipUpdateFunction
from flaxtrain.optim.transform import (
    GradientTransformation,
    TransformationLike,
    answering,
    named,
    same_value,
    with_extra_args,
)
from flaxtrain.tree import is_none
from flaxtrain.typing import (
    Array,
    ArrayLike,
    DTypeLike,
    OptState,
    Params,
    PyTree,
    Schedule,
    Updates,
)

__all__ = [
    "ApplyEvery",
    "MultiSteps",
    "MultiStepsState",
    "apply_every",
]


class MultiStepsState(NamedTuple):
    """Where an accumulation stands.

    Attributes:
        mini_step: number of micro batches in `acc_grads`, int32.
        gradient_step: number of steps taken by the optimizer inside, int32.
        inner_opt_state: its state.
        acc_grads: mean or sum of the gradients so far, a tree like the parameters.
        skip_state: what the skip function said about the last micro batch.
    """

    mini_step: Any  # an Array
    gradient_step: Any  # an Array
    inner_opt_state: OptState
    acc_grads: Updates
    skip_state: PyTree = ()


class ApplyEvery(NamedTuple):
    """Position in the period, int32, and the sum of updates since it began."""

    count: Any  # an Array
    grad_acc: Updates


class MultiSteps(GradientTransformation):
    """Takes one step of an optimizer for every k calls, with the mean of their gradients.

    It is a transformation like any other. In between updates are zero and the optimizer
    inside is not run, so that its counts and schedules advance once for k calls. A gradient
    that is not finite shows at the k-th call, once.

    Args:
        opt: the optimizer inside; extra arguments of `update` are handed to it, at the k-th
            call those of that call.
        every_k_schedule: k, an integer >= 1, or a function from the number of steps taken
            (int32 scalar) to one.
        use_grad_mean: take the mean of the gradients; False: their sum.
        should_skip_update_fn: decides which micro batches are left out as if they had not
            been; see `ShouldSkipUpdateFunction`.
        accumulator_dtype: dtype of the accumulated gradients (complex ones stay complex);
            None: that of the parameters.

    Raises:
        ArgumentError: `every_k_schedule` is below 1.
        ArgumentTypeError: an argument has the wrong type.

    Example:
        >>> from flaxtrain.optim import sgd
        >>> tx = MultiSteps(sgd(1.0), every_k_schedule=2)
        >>> state = tx.init(jnp.float32(0.0))
        >>> for gradient in (1.0, 3.0):
        ...     updates, state = tx.update(jnp.float32(gradient), state)
        ...     print(updates, tx.has_updated(state))
        0.0 False
        -2.0 True
    """

    @answering
    def __init__(
        self,
        opt: TransformationLike,
        every_k_schedule: ArrayLike | Schedule,
        use_grad_mean: bool = True,
        should_skip_update_fn: ShouldSkipUpdateFunction | None = None,
        accumulator_dtype: DTypeLike | None = jnp.float32,
    ) -> None:
        check_flag("use_grad_mean", use_grad_mean, where="MultiSteps")
        if should_skip_update_fn is not None and not callable(should_skip_update_fn):
            raise ArgumentTypeError(
                f"should_skip_update_fn={should_skip_update_fn!r} is not callable",
                where="MultiSteps",
                fix="pass a function such as skip_not_finite, or None",
            )
        if not callable(every_k_schedule):
            check_integer("every_k_schedule", every_k_schedule, minimum=1, where="MultiSteps")
        dtype = check_dtype("accumulator_dtype", accumulator_dtype, where="MultiSteps")
        given = {
            "use_grad_mean": (use_grad_mean, True),
            "should_skip_update_fn": (should_skip_update_fn, None),
            "accumulator_dtype": (None if dtype is None else dtype.name, "float32"),
        }
        changed = {
            n: value for n, (value, usual) in given.items() if not same_value(value, usual)
        }
        made = _accumulating(
            with_extra_args(opt), every_k_schedule, use_grad_mean, should_skip_update_fn, dtype
        )
        super().__init__(
            made.init,
            made.update,
            "MultiSteps",
            {"opt": opt, "every_k_schedule": every_k_schedule} | changed,
        )

    @property
    def inner_opt(self) -> GradientTransformation:
        """The optimizer inside."""
        return with_extra_args(self.arguments["opt"])

    def has_updated(self, state: OptState) -> Array:
        """Returns whether the call that returned `state` took a step, a boolean scalar.

        A skipped micro batch keeps the answer before it: after a step it is still True, though
        no second step was taken (so it is in optax too). Count steps by `gradient_step`.
        """
        return jnp.logical_and(state.mini_step == 0, state.gradient_step > 0)

    def gradient_transformation(self) -> GradientTransformation:
        """Returns the pair of `init` and `update` alone."""
        return GradientTransformation(self.init, self.update, self.name, self.arguments)


def _accumulating(
    opt: GradientTransformation,
    every_k: Any,
    mean: bool,
    should_skip: Callable[..., Any] | None,
    dtype: DTypeLike | None,
) -> GradientTransformation:
    def init(params: Params, /) -> MultiStepsState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        step = jnp.zeros([], jnp.int32)
        return MultiStepsState(
            mini_step=jnp.zeros([], jnp.int32),  # a buffer of its own: states are donated
            gradient_step=step,
            inner_opt_state=opt.init(params),
            acc_grads=jax.tree.map(lambda leaf: _zeros(leaf, dtype), params),
            skip_state=() if should_skip is None else should_skip(zeros, step, params)[1],
        )

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, MultiStepsState]:
        def take(updates: Updates, state: Any, params: Params | None) -> Any:
            return _taken(opt, every_k, mean, updates, state, params, extra_args)

        def skip(updates: Updates, state: Any, params: Params | None) -> Any:
            shapes, _ = jax.eval_shape(take, updates, state, params)
            return zero_updates(updates, shapes), state

        if should_skip is None:
            return take(updates, state, params)
        verdict, found = should_skip(updates, state.gradient_step, params)
        state = state._replace(skip_state=found)
        return branch(_verdict(verdict), skip, take, updates, state, params)

    return GradientTransformation(init, update)


def _taken(
    opt: GradientTransformation,
    every_k: Any,
    mean: bool,
    updates: Updates,
    state: Any,
    params: Params | None,
    extra_args: dict[str, Any],
) -> tuple[Updates, MultiStepsState]:
    """Takes one more micro batch in, and a step with the last one."""
    k: Any = every_k(state.gradient_step) if callable(every_k) else every_k
    acc = _accumulated(updates, state, mean)
    emits = state.mini_step >= k - 1
    new, inner = update_if(
        emits,
        opt,
        _read(acc, updates),
        state.inner_opt_state,
        params,
        extra_args,
        otherwise=zero_updates,
    )
    kept = jax.tree.map(
        lambda a, old: jnp.where(emits, 0, a).astype(old.dtype), acc, state.acc_grads
    )
    step = state.gradient_step
    return new, MultiStepsState(
        mini_step=jnp.where(emits, 0, state.mini_step + 1),
        gradient_step=jnp.where(emits, safe_increment(step), step),
        inner_opt_state=inner,
        acc_grads=kept,
        skip_state=state.skip_state,
    )


def _zeros(param: ArrayLike, dtype: DTypeLike | None) -> Array:
    param = jnp.asarray(param)
    if dtype is not None and jnp.iscomplexobj(param):
        dtype = jnp.promote_types(dtype, jnp.complex64)
    return jnp.zeros_like(param, dtype=dtype)


def _accumulated(updates: Updates, state: Any, mean: bool) -> Updates:
    """Returns the accumulated gradients with those of one more micro batch."""

    def add(grad: Any, acc: Any) -> ArrayLike | None:
        if grad is None or acc is None:
            return acc
        return acc + (grad - acc) / (state.mini_step + 1) if mean else grad + acc

    return jax.tree.map(add, updates, state.acc_grads, is_leaf=is_none)


def _read(acc: Updates, updates: Updates) -> Updates:
    """Returns the accumulated gradients in the dtypes of the updates; None where those are."""
    return jax.tree.map(
        lambda grad, a: None if grad is None else with_dtypes_of(a, grad),
        updates,
        acc,
        is_leaf=is_none,
    )


def _verdict(verdict: ArrayLike) -> Array:
    flag = jnp.asarray(verdict)
    if flag.shape or flag.dtype != bool:
        raise ArgumentError(
            f"should_skip_update_fn returned shape {flag.shape} and dtype {flag.dtype}",
            where="MultiSteps: update(updates, state, params)",
            fix="return a boolean scalar and a tree",
        )
    return flag


@named
def apply_every(k: ArrayLike = 1) -> GradientTransformation:
    """Emits the sum of `k` updates at every k-th call, and zero in between.

    For the end of a chain: the transformations before it see every gradient. That is not a
    batch k times as large; see `MultiSteps`.

    Args:
        k: the period, >= 1.

    Returns:
        A transformation whose state is an `ApplyEvery`.

    Raises:
        ArgumentError: `k` is below 1.
        ArgumentTypeError: `k` is not an integer.

    Example:
        >>> tx = apply_every(2)
        >>> state = tx.init(jnp.float32(0.0))
        >>> for update in (1.0, 3.0):
        ...     emitted, state = tx.update(jnp.float32(update), state)
        ...     print(emitted)
        0.0
        4.0
    """
    check_integer("k", k, minimum=1, where="apply_every")

    def init(params: Params, /) -> ApplyEvery:
        return ApplyEvery(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, ApplyEvery]:
        position = state.count % k
        begins, emits = position == 0, position == k - 1

        def add(update: ArrayLike | None, total: ArrayLike | None) -> ArrayLike | None:
            if update is None or total is None:
                return total
            return jnp.where(begins, 0, total) + update

        total = jax.tree.map(add, updates, state.grad_acc, is_leaf=is_none)
        emitted = jax.tree.map(
            lambda update, acc: None if update is None else jnp.where(emits, acc, 0),
            updates,
            total,
            is_leaf=is_none,
        )
        return emitted, ApplyEvery(safe_increment(state.count) % k, total)

    return GradientTransformation(init, update)
