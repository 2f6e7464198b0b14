"""Handing the row mask to `nn.BatchNorm`, whatever the model around it looks like."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxtrain.errors import ModelError
from flaxtrain.typing import Array, Key

__all__ = ["row_mask"]

_fresh = itertools.count()


@contextmanager
def row_mask(mask: Array | None, rngs: Mapping[str, Key]) -> Iterator[dict[str, Key]]:
    """Hands the row mask to every `nn.BatchNorm` that forms batch statistics in this context.

    The mask is no argument of the model, so `nn.jit` would not see that it changes and would
    take a program that it compiled with another mask. A random stream with a name that was
    never used before makes each context a call of its own.

    The rows are looked for on the first axis. A model that moves the time axis to the front has
    to pass `mask=` to its BatchNorm itself: where both axes have the same length, nothing here
    can tell them apart.

    Args:
        mask: bool `[rows]`, or None for a full batch: then nothing happens.
        rngs: the random streams of the call.

    Yields:
        Streams to add to `rngs`.

    Raises:
        ModelError: (from within) the rows that BatchNorm sees are not those of the batch.
    """
    if mask is None:
        yield {}
        return
    stream = f"_rows_{next(_fresh)}"
    key = next(iter(rngs.values()), None)
    key = jax.random.key(0) if key is None else key

    def hand_over(
        following: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Any,
    ) -> Any:
        module = context.module
        scope = module.scope
        if scope is not None and scope.rngs and stream not in scope.rngs:
            # nn.scan and nn.vmap pass on only the streams that they split.
            scope.rngs[stream] = next(iter(scope.rngs.values()))
            scope.rng_counters[stream] = 0
        if isinstance(module, nn.BatchNorm) and context.method_name == "__call__":
            kwargs = {**kwargs, **_mask_argument(context, mask, args, kwargs)}
        return following(*args, **kwargs)

    with nn.intercept_methods(hand_over):
        yield {stream: key}


def _mask_argument(
    context: Any, mask: Array, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Array]:
    """Returns `{"mask": ...}` for a call that forms statistics and has no mask of its own."""
    module, signature = context.module, inspect.signature(context.orig_method)
    if "mask" not in signature.parameters:
        return {}  # a subclass with a `__call__` of its own, which calls nn.BatchNorm's in turn
    given = signature.bind_partial(*args, **kwargs).arguments
    frozen = given.get("use_running_average")
    if (module.use_running_average if frozen is None else frozen) or given.get(
        "mask"
    ) is not None:
        return {}
    x, rows = given["x"], mask.shape[0]
    if x.shape[0] != rows:
        raise ModelError(
            f"BatchNorm sees {x.shape[0]} rows, the row mask of the batch has {rows}",
            where="/".join(module.path),
            fix="normalise before rows are reshaped, pass mask= to nn.BatchNorm yourself, "
            "or make every batch full (drop_remainder=True)",
        )
    return {"mask": jnp.reshape(mask, (rows,) + (1,) * (x.ndim - 1))}
