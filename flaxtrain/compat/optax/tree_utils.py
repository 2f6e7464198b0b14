"""Optax's `tree_utils`: the same functions as in `tree`, with a prefix."""

from __future__ import annotations

from flaxtrain.compat.optax.absent import answer_for, listing
from flaxtrain.optim import (
    tree_bias_correction,
    tree_map_params,
    tree_update_infinity_moment,
    tree_update_moment,
    tree_update_moment_per_elem_norm,
)
from flaxtrain.tree import NamedTupleKey
from flaxtrain.tree import add as tree_add
from flaxtrain.tree import add_scale as tree_add_scale
from flaxtrain.tree import allclose as tree_allclose
from flaxtrain.tree import batch_shape as tree_batch_shape
from flaxtrain.tree import cast as tree_cast
from flaxtrain.tree import cast_like as tree_cast_like
from flaxtrain.tree import clip as tree_clip
from flaxtrain.tree import conj as tree_conj
from flaxtrain.tree import div as tree_div
from flaxtrain.tree import dtype as tree_dtype
from flaxtrain.tree import full_like as tree_full_like
from flaxtrain.tree import get as tree_get
from flaxtrain.tree import get_all_with_path as tree_get_all_with_path
from flaxtrain.tree import max as tree_max
from flaxtrain.tree import min as tree_min
from flaxtrain.tree import mul as tree_mul
from flaxtrain.tree import norm as tree_norm
from flaxtrain.tree import ones_like as tree_ones_like
from flaxtrain.tree import random_like as tree_random_like
from flaxtrain.tree import real as tree_real
from flaxtrain.tree import scale as tree_scale
from flaxtrain.tree import set as tree_set
from flaxtrain.tree import size as tree_size
from flaxtrain.tree import split_key_like as tree_split_key_like
from flaxtrain.tree import sub as tree_sub
from flaxtrain.tree import sum as tree_sum
from flaxtrain.tree import unwrap_random_key_data as tree_unwrap_random_key_data
from flaxtrain.tree import vdot as tree_vdot
from flaxtrain.tree import where as tree_where
from flaxtrain.tree import zeros_like as tree_zeros_like

__all__ = [
    "NamedTupleKey",
    "tree_add",
    "tree_add_scale",
    "tree_allclose",
    "tree_batch_shape",
    "tree_bias_correction",
    "tree_cast",
    "tree_cast_like",
    "tree_clip",
    "tree_conj",
    "tree_div",
    "tree_dtype",
    "tree_full_like",
    "tree_get",
    "tree_get_all_with_path",
    "tree_map_params",
    "tree_max",
    "tree_min",
    "tree_mul",
    "tree_norm",
    "tree_ones_like",
    "tree_random_like",
    "tree_real",
    "tree_scale",
    "tree_set",
    "tree_size",
    "tree_split_key_like",
    "tree_sub",
    "tree_sum",
    "tree_unwrap_random_key_data",
    "tree_update_infinity_moment",
    "tree_update_moment",
    "tree_update_moment_per_elem_norm",
    "tree_vdot",
    "tree_where",
    "tree_zeros_like",
]

__getattr__ = answer_for("tree_utils", __all__)
__dir__ = listing(__all__)
