"""Statistics of `nn.BatchNorm` over the rows of all replicas of `jax.pmap`.

Of replica r with n_r values that count, in which BatchNorm finds the sums s_r and q_r:
    mean = sum_r s_r / sum_r n_r,     E|x|^2 = sum_r q_r / sum_r n_r
Flax, with `axis_name`, takes the mean of the replicas' means instead: another number where
their n_r differ, and NaN where one of them is 0.

`nn.BatchNorm` runs as it is written, except that this call of it finds the function here under
the name by which it asks for statistics. Nothing is changed for anybody else.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from types import FunctionType
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxtrain.errors import ModelError
from flaxtrain.params.intercept import MethodCall, intercepted_under_jit
from flaxtrain.typing import Array, Key

__all__ = ["shared_statistics"]

_NAME = "_compute_stats"
"""The name by which flax's normalisations ask for mean and variance."""


def shared_statistics(
    axis_name: str, rngs: Mapping[str, Key]
) -> AbstractContextManager[dict[str, Key]]:
    """Lets every `nn.BatchNorm` in a context form statistics over a mapped axis.

    Enter it after all other interceptors: it makes the calls that reach it itself.

    Args:
        axis_name: the name of the mapped axis.
        rngs: the random streams of the call; the context has streams to add to them.

    Raises:
        ModelError: flax's BatchNorm is not written as it is known here.
    """
    if not _asks(inspect.unwrap(nn.BatchNorm.__call__)):
        raise ModelError(
            f"nn.BatchNorm of flax {flax.__version__} forms its statistics in another way",
            where="pmap",
            fix='use backend="jit", or another version of flax',
        )

    def intercept(call: MethodCall) -> Any:
        if not _forms_statistics(call):
            return call.run()
        compute = partial(_statistics, axis_name)
        return _with(_function(call), compute)(call.module, *call.args, **call.kwargs)

    return intercepted_under_jit(intercept, rngs, key_text=f"statistics over {axis_name}")


def _forms_statistics(call: MethodCall) -> bool:
    """Whether a call is that of the code of `nn.BatchNorm` itself."""
    return isinstance(call.module, nn.BatchNorm) and _asks(_function(call))


def _function(call: MethodCall) -> Any:
    return getattr(call.context.orig_method, "func", None)


def _asks(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and _NAME in code.co_names


def _with(function: Any, compute: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that finds `compute` under the name of flax's own."""
    found = FunctionType(
        function.__code__,
        {**function.__globals__, _NAME: compute},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    found.__kwdefaults__ = function.__kwdefaults__
    return found


def _statistics(
    shared: str,
    x: Array,
    axes: tuple[int, ...],
    *,
    dtype: Any,
    axis_name: Any,
    axis_index_groups: Any,
    use_fast_variance: bool,
    mask: Array | None,
    force_float32_reductions: bool,
) -> tuple[Array, Array]:
    """Returns mean and variance, in flax's dtypes. All but `shared` are its arguments."""
    dtype = jnp.result_type(x) if dtype is None else dtype
    if force_float32_reductions:
        dtype = jnp.promote_types(dtype, jnp.float32)
    x = jnp.asarray(x, dtype)

    def means(*values: Array) -> tuple[Array, ...]:
        found = _means(values, axes, mask, shared)
        # A mapped axis of the model's own, such as one of `nn.vmap`: as flax has it.
        if axis_name is not None and axis_name != shared:
            found = jax.lax.pmean(found, axis_name, axis_index_groups=axis_index_groups)
        return found

    if use_fast_variance:
        mean, square = means(x, _square(x))
        return mean, jnp.maximum(0.0, square - _square(mean))
    (mean,) = means(x)
    (variance,) = means(_square(x - jnp.expand_dims(mean, axes)))
    return mean, variance


def _means(
    values: tuple[Array, ...], axes: tuple[int, ...], mask: Array | None, shared: str
) -> tuple[Array, ...]:
    """Returns the means of arrays over `axes` and all replicas, each in its dtype."""
    shape = values[0].shape
    sums, dtype = [], jnp.float32
    where = None if mask is None else jnp.broadcast_to(jnp.asarray(mask, bool), shape)
    for value in values:
        wide = jnp.promote_types(value.dtype, jnp.float32)
        dtype = jnp.promote_types(dtype, jnp.finfo(wide).dtype)
        sums.append(jnp.sum(value, axes, dtype=wide, where=where))
    if where is None:
        count: Any = jnp.asarray(math.prod(shape[axis] for axis in axes), dtype)
    else:
        count = jnp.sum(where, axes, dtype=dtype)
    sums, count = jax.lax.psum((sums, count), shared)
    return tuple((s / count).astype(value.dtype) for s, value in zip(sums, values))


def _square(x: Array) -> Array:
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)
