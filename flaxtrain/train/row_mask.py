"""Handing the row mask to `nn.BatchNorm`, whatever the model around it looks like."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxtrain.errors import ModelError
from flaxtrain.params.intercept import MethodCall, intercepted_under_jit
from flaxtrain.typing import Array, Key

__all__ = ["row_mask"]


def row_mask(
    mask: Array | None, rngs: Mapping[str, Key]
) -> AbstractContextManager[dict[str, Key]]:
    """Hands the row mask to every `nn.BatchNorm` that forms batch statistics in a context.

    The rows are looked for on the first axis. A model that moves the time axis to the front has
    to pass `mask=` to its BatchNorm itself: where both axes have the same length, nothing here
    can tell them apart.

    Args:
        mask: bool `[rows]`, or None for a full batch: then nothing happens.
        rngs: the random streams of the call; the context has streams to add to them.

    Raises:
        ModelError: (from within) the rows that BatchNorm sees are not those of the batch.
    """
    if mask is None:
        return nullcontext({})

    def hand_over(call: MethodCall) -> Any:
        if isinstance(call.module, nn.BatchNorm) and call.method == "__call__":
            kwargs = {**call.kwargs, **_mask_argument(call, mask)}
            return call.following(*call.args, **kwargs)
        return call.run()

    return intercepted_under_jit(hand_over, rngs)


def _mask_argument(call: MethodCall, mask: Array) -> dict[str, Array]:
    """Returns `{"mask": ...}` for a call that forms statistics and has no mask of its own."""
    module, signature = call.module, inspect.signature(call.context.orig_method)
    if "mask" not in signature.parameters:
        return {}  # a subclass with a `__call__` of its own, which calls nn.BatchNorm's in turn
    given = signature.bind_partial(*call.args, **call.kwargs).arguments
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
