"""Optax's `tree`: arithmetic on trees, and a state searched by name."""

from __future__ import annotations

from flaxtrain.compat.optax.absent import answer_for, listing
from flaxtrain.optim import tree_bias_correction as bias_correction
from flaxtrain.optim import tree_map_params as map_params
from flaxtrain.optim import tree_update_infinity_moment as update_infinity_moment
from flaxtrain.optim import tree_update_moment as update_moment
from flaxtrain.optim import tree_update_moment_per_elem_norm as update_moment_per_elem_norm
from flaxtrain.tree import (
    add,
    add_scale,
    allclose,
    batch_shape,
    cast,
    cast_like,
    clip,
    conj,
    div,
    dtype,
    full_like,
    get,
    get_all_with_path,
    max,
    min,
    mul,
    norm,
    ones_like,
    random_like,
    real,
    scale,
    set,
    size,
    split_key_like,
    sub,
    sum,
    unwrap_random_key_data,
    vdot,
    where,
    zeros_like,
)

__all__ = [
    "add",
    "add_scale",
    "allclose",
    "batch_shape",
    "bias_correction",
    "cast",
    "cast_like",
    "clip",
    "conj",
    "div",
    "dtype",
    "full_like",
    "get",
    "get_all_with_path",
    "map_params",
    "max",
    "min",
    "mul",
    "norm",
    "ones_like",
    "random_like",
    "real",
    "scale",
    "set",
    "size",
    "split_key_like",
    "sub",
    "sum",
    "unwrap_random_key_data",
    "update_infinity_moment",
    "update_moment",
    "update_moment_per_elem_norm",
    "vdot",
    "where",
    "zeros_like",
]

__getattr__ = answer_for("tree", __all__)
__dir__ = listing(__all__)
