"""Saving what a fine-tuning with adapters has learnt, without the model that it started from.

A checkpoint like any other: it holds the trained parameters only, and its `meta` describes the
adapters, `{"lora": {"select": ..., "rank": ..., ...}}`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxtrain.checkpoint.compare import check_fits
from flaxtrain.checkpoint.manifest import read_manifest
from flaxtrain.checkpoint.named import name_keys
from flaxtrain.checkpoint.steps import check_path
from flaxtrain.checkpoint.storage import restore, save
from flaxtrain.errors import (
    ArgumentTypeError,
    CheckpointError,
    FlaxtrainError,
    ParameterError,
)
from flaxtrain.params import Adapters, LoRA, join_adapters, selector, split_adapters
from flaxtrain.params.low_rank import LORA
from flaxtrain.text import kind_of
from flaxtrain.tree import Path as Keys
from flaxtrain.tree import flatten, graft, path_name, split, unflatten
from flaxtrain.typing import Params

__all__ = ["load_adapters", "read_lora", "save_adapters"]

_WHERE = "save_adapters(path, params, adapters)"


def save_adapters(
    path: str | os.PathLike[str],
    params: Params,
    adapters: Adapters,
    *,
    overwrite: bool = False,
) -> Path:
    """Writes the adapters, and the parameters trained beside them, to the directory `path`.

    The frozen parameters are not written, and no collections: where batch statistics were
    updated (their module was trained beside the adapters), keep the whole state with `save`.

    Args:
        path: the checkpoint's directory; its parents are made as needed.
        params: the parameters with adapters: `trainer.state.params`.
        adapters: what they were made with: `trainer.recipe.adapters`.
        overwrite: replace a checkpoint that is there already.

    Returns:
        The absolute path.

    Raises:
        ArgumentTypeError: `adapters` is not what `LoRA.bind` returned.
        ParameterError: the params lack one of the trained parameters, or its shape is another.
        CheckpointError: `path` exists, or writing failed.

    Example:
        >>> import tempfile, flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import facts_from
        >>> model, x = nn.Sequential([nn.Dense(8), nn.Dense(2)]), jnp.ones((1, 6))
        >>> def initialise(extra):
        ...     return model.init({"params": jax.random.key(0), **extra}, x)
        >>> lora = LoRA("layers_0/kernel", rank=2, train="layers_1/bias")
        >>> adapters = lora.bind(facts_from(initialise), initialise)
        >>> base = initialise({})["params"]
        >>> params = join_adapters(base, adapters.init(jax.random.key(1)))
        >>> params = jax.tree.map(lambda x: x + 1, params)  # instead of training
        >>> path = save_adapters(tempfile.mkdtemp() + "/adapters", params, adapters)
        >>> loaded = load_adapters(path, base)
        >>> loaded["layers_1"]["bias"], base["layers_1"]["bias"]
        (Array([1., 1.], dtype=float32), Array([0., 0.], dtype=float32))
        >>> jnp.array_equal(loaded["lora"]["layers_0"]["kernel"]["lora_b"], jnp.ones((1, 8, 2)))
        Array(True, dtype=bool)
    """
    if not isinstance(adapters, Adapters):
        raise ArgumentTypeError(
            f"adapters is {kind_of(adapters)}, not the adapters of a model",
            where=_WHERE,
            fix="pass trainer.recipe.adapters, or what LoRA.bind returned",
        )
    _check_params(params, _WHERE)
    learnt = split(params, adapters.trainable)[0]
    _check_complete(learnt, adapters)
    return save(path, learnt, meta={LORA: _described(adapters)}, overwrite=overwrite)


def load_adapters(
    path: str | os.PathLike[str], params: Params, lora: LoRA | None = None
) -> dict[str, Any]:
    """Returns a model's params with adapters, as `save_adapters` was given them.

    Args:
        path: the checkpoint's directory.
        params: the parameters that the fine-tuning started from, without adapters.
        lora: compared with what was saved, where given: the same numbers mean another kernel
            with another rank or scale. `read_lora` returns the one that was saved.

    Returns:
        Nested dicts: the adapters under `lora`, the parameters trained beside them in their
        place, and all others as the same arrays. Adapters are where their kernel is.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, or holds something else;
            `lora` has another rank or scale; or the params don't fit.
        ParameterError: the params have adapters already.
        ArgumentTypeError: an argument has the wrong type.

    Example:
        >>> import tempfile, flax.linen as nn, flaxtrain as ft
        >>> batch, lora = {"x": np.ones((4, 3)), "label": np.zeros(4, int)}, LoRA("kernel", 1)
        >>> recipe = ft.make_recipe(nn.Dense(2), ft.OptSpec("sgd", 0.1), batch, adapters=lora)
        >>> base, adapters = split_adapters(recipe.init().params)
        >>> params = join_adapters(base, adapters)
        >>> path = save_adapters(tempfile.mkdtemp() + "/adapters", params, recipe.adapters)
        >>> sorted(base), sorted(load_adapters(path, base))
        (['bias', 'kernel'], ['bias', 'kernel', 'lora'])
    """
    target = check_path(path)
    saved = read_lora(target)
    if lora is not None:
        _check_same(saved, lora, target)
    _check_params(params, "load_adapters(path, params)")
    if LORA in params:
        raise ParameterError(
            f"the params have something called {LORA!r} already",
            where="load_adapters(path, params)",
            fix="take the adapters off first: base, _ = split_adapters(params)",
        )
    like = _like(target, params)
    _check_fits(saved, params, like, target)
    beside, adapters = split_adapters(restore(target, like=like))
    return join_adapters(graft(beside, params), adapters)


def read_lora(path: str | os.PathLike[str]) -> LoRA:
    """Returns the `LoRA` that adapters were saved with.

    A selector that asks a function comes back as the paths that it selected.

    Raises:
        CheckpointError: there is no checkpoint of adapters.

    Example:
        >>> import tempfile
        >>> meta = {"lora": {"select": "attn/**", "rank": 2}}
        >>> read_lora(save(tempfile.mkdtemp() + "/1", {}, meta=meta))
        LoRA('attn/**', rank=2)
    """
    target = check_path(path)
    meta = read_manifest(target).meta.get(LORA)
    if not isinstance(meta, Mapping):
        raise CheckpointError(
            "the checkpoint is not one of adapters",
            where=str(target),
            fix="pass what save_adapters wrote; restore reads a checkpoint of a whole state",
        )
    try:
        return LoRA(**meta)
    except (TypeError, FlaxtrainError) as error:
        raise CheckpointError(
            f"what it says about its adapters can't be read: {error}",
            where=str(target),
            fix="use the version of flaxtrain that it was written with",
        ) from None


def _check_params(params: Any, where: str) -> None:
    if not isinstance(params, Mapping):
        raise ArgumentTypeError(
            f"params is {kind_of(params)}, not nested dicts",
            where=where,
            fix="pass the parameters, such as trainer.state.params",
        )


def _check_complete(learnt: Params, adapters: Adapters) -> None:
    found = {path: tuple(leaf.shape) for path, leaf in flatten(learnt).items()}
    for fact in adapters.facts.params:
        if fact.path in adapters.trainable and found.get(fact.path) != fact.shape:
            shape = found.get(fact.path)
            raise ParameterError(
                f"{fact.name!r} has the shape {shape}, not {fact.shape}"
                if shape is not None
                else f"there is no {fact.name!r} in the params",
                where=_WHERE,
                fix="pass the params and the adapters of one training, such as "
                "trainer.state.params and trainer.recipe.adapters",
            )


def _described(adapters: Adapters) -> dict[str, Any]:
    """Returns the arguments of `LoRA` as JSON values; what is None is left out."""
    lora = adapters.lora
    given = {field.name: getattr(lora, field.name) for field in fields(lora)}
    kernels = [pair.kernel.path for pair in adapters.pairs]
    given["select"] = _text(lora.select, kernels)
    if lora.train is not None:
        given["train"] = _text(lora.train, sorted(adapters.trained_beside))
    return {name: value for name, value in given.items() if value is not None}


def _text(choice: Any, paths: list[Keys]) -> str:
    """Returns a selector as text; where it asks a function, as what it has selected."""
    try:
        return choice if isinstance(choice, str) else str(selector(choice, where="LoRA"))
    except ArgumentTypeError:
        return "re:" + "|".join(re.escape(path_name(path)) for path in paths)


def _check_same(saved: LoRA, lora: Any, target: Path) -> None:
    if not isinstance(lora, LoRA):
        raise ArgumentTypeError(
            f"lora is {kind_of(lora)}, not a LoRA",
            where="load_adapters(lora=...)",
            fix="leave it out, or pass the LoRA(...) of the training",
        )
    if (saved.rank, saved.scale) != (lora.rank, lora.scale):
        raise CheckpointError(
            f"the adapters have rank {saved.rank} and scale {saved.scale:g}, and lora= says "
            f"rank {lora.rank} and scale {lora.scale:g} (alpha / rank)",
            where=str(target),
            fix=f"pass {saved!r}, or leave lora= out",
        )


def _like(target: Path, params: Params) -> dict[str, Any]:
    """Returns what the checkpoint is to be restored as.

    The parameters beside are as in `params`; adapters, of which `params` know nothing, as they
    were saved, on the devices of their kernels.
    """
    own = flatten(params)
    like: dict[Keys, Any] = {}
    for name, record in read_manifest(target).leaves.items():
        path = name_keys(name)
        if path[:1] == (LORA,) and record.kind == "array":
            form = jax.ShapeDtypeStruct(record.shape, np.dtype(record.dtype))
            like[path] = _as_beside(form, own.get(path[1:-1]))
        elif path in own:
            like[path] = own[path]
    return unflatten(like)


def _as_beside(form: jax.ShapeDtypeStruct, kernel: Any) -> Any:
    """Returns the shape as one of an array of the kernel's kind, on its device."""
    if isinstance(kernel, np.ndarray):
        return np.broadcast_to(np.zeros((), form.dtype), form.shape)
    if not isinstance(kernel, jax.Array) or not getattr(kernel, "committed", True):
        return form
    # How a kernel is cut into pieces for several devices says nothing about its adapters.
    whole = len(kernel.sharding.device_set) == 1
    sharding = kernel.sharding if whole else None
    return jax.ShapeDtypeStruct(form.shape, form.dtype, sharding=sharding)


def _check_fits(saved: LoRA, params: Params, like: Params, target: Path) -> None:
    """Refuses params that the checkpoint was not made for; nothing is computed."""
    try:
        check_fits(read_manifest(target).leaves, like, where=str(target))
        adapters = split_adapters(like)[1]
        whole = _shapes(join_adapters(params, adapters))
        jax.eval_shape(saved.merge, whole)
    except (CheckpointError, ParameterError) as error:
        raise CheckpointError(
            f"the adapters are not for these params: {error.found}",
            where=str(target),
            fix="pass the params that the fine-tuning started from",
        ) from None


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
