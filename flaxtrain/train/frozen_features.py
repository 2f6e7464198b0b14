"""Which outputs of the frozen modules can be computed once per example, and what they are.

The loss function is traced and its program is read. A call of a frozen module may be cached
when neither what goes in nor what comes out depends on a trained parameter, on random numbers,
on which rows count or on a collection that changes, and when it writes to no collection.
Whether the rows depend on one another isn't read from the program but tried out, before the
features are computed (`flaxtrain/loop/row_check.py`).

Of the calls, only those outputs are cached that something else than a frozen module reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp

from flaxtrain.errors import ArgumentError, FlaxtrainError, ModelError
from flaxtrain.text import with_article
from flaxtrain.train.cached_loss import CachedLoss
from flaxtrain.train.dependencies import dependencies
from flaxtrain.train.forward_pass import forward
from flaxtrain.train.frozen_calls import (
    AS_THEY_COME,
    CACHE_FROZEN,
    AnsweredCalls,
    Calls,
    FrozenFeatures,
    SeparateCalls,
    WatchedCall,
    WatchedCalls,
)
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.rows import Rows
from flaxtrain.train.state import TrainState
from flaxtrain.tree import named_leaves, path_name
from flaxtrain.typing import Array, ArrayLike, Batch

__all__ = ["features_of", "frozen_features", "separated"]

_ROWS = "the mask or weights of the batch's rows"
_RANDOM = "random numbers"


class Source(NamedTuple):
    """Something that may differ from step to step: what kind of thing it is, and its name."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}" if self.name else self.kind


_PARAMETER, _COLLECTION = "the trained parameter", "the variable"


def frozen_features(recipe: Recipe, masked: bool = False) -> FrozenFeatures:
    """Returns what can be cached of the frozen modules, by abstract evaluation.

    Args:
        recipe: the recipe of the phase that is trained.
        masked: whether batches come with a mask of their real rows.

    Raises:
        ArgumentError: nothing is frozen.
        ModelError: no module is frozen whole, or the outputs of one are not the same each time
            that an example comes by; the message says why.

    Example:
        >>> import flax.linen as nn, numpy as np
        >>> from flaxtrain import OptSpec, make_recipe
        >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(4), nn.Dense(2)])
        >>> batch = {"x": np.ones((16, 3), "float32"), "label": np.zeros(16, "int32")}
        >>> spec = OptSpec("sgd", learning_rate=0.1, freeze=["layers_0/**", "layers_2/**"])
        >>> features = frozen_features(make_recipe(model, spec, batch))
        >>> features.names, features.shapes[0].shape, features.bytes_per_example
        (('layers_2',), (16, 4), 16)
    """
    _check_frozen(recipe)
    inputs = _inputs(recipe, masked)
    calls = _watched(recipe, inputs)
    if not calls:
        raise ModelError(
            f"the loss function calls no frozen module ({_frozen_names(recipe)})",
            where=CACHE_FROZEN,
            fix="call the frozen modules in the loss, or leave cache_frozen out",
        )
    everything = FrozenFeatures(tuple(c.described([True] * len(c.outputs)) for c in calls))
    needed = iter(_needed(recipe, everything, inputs))
    features = FrozenFeatures(
        tuple(call.described([next(needed) for _ in call.outputs]) for call in calls)
    )
    _check_shapes(features, jax.tree.leaves(recipe.example)[0].shape[0])
    return features


def features_of(
    recipe: Recipe,
    features: FrozenFeatures,
    state: TrainState,
    batch: Batch,
    mask: ArrayLike | None = None,
) -> tuple[Array, ...]:
    """Computes the features of one batch: compile it, and what they don't need is left out.

    Args:
        recipe: the recipe of the phase that is trained.
        features: what is cached.
        state: the state; only its frozen part is read.
        batch: every leaf `[rows, ...]`.
        mask: bool `[rows]` where the training batches have one.

    Returns:
        Arrays `[rows, ...]` as in `features.shapes`.

    Example:
        >>> import flax.linen as nn, numpy as np
        >>> from flaxtrain import OptSpec, make_recipe
        >>> batch = {"x": np.ones((16, 3), "float32"), "label": np.zeros(16, "int32")}
        >>> spec = OptSpec("sgd", learning_rate=0.1, freeze=["layers_0/**"])
        >>> recipe = make_recipe(nn.Sequential([nn.Dense(8), nn.Dense(2)]), spec, batch)
        >>> state, features = recipe.init(), frozen_features(recipe)
        >>> program = jax.jit(lambda *args: features_of(recipe, features, *args))
        >>> (found,) = program(state, batch)
        >>> bool(jnp.allclose(found, batch["x"] @ state.params["layers_0"]["kernel"]))
        True
    """
    calls = WatchedCalls()
    # The rows as they are: one that doesn't count here has its own features all the same.
    rows = Rows.of(batch, mask)._replace(batch=batch)
    forward(recipe, state, rows, calls=calls)
    return tuple(
        output
        for call, seen in zip(features.calls, calls.calls, strict=True)
        for output, needed in zip(seen.outputs, call.needed, strict=True)
        if needed
    )


_borders: WeakKeyDictionary[Recipe, dict[bool, FrozenFeatures | None]] = WeakKeyDictionary()


def separated(recipe: Recipe, masked: bool) -> Calls:
    """Returns what a training step does at the calls of frozen modules.

    Where their outputs could be cached the compiler is kept from merging them with what
    follows, so that it makes no difference to any bit whether they are.

    Args:
        recipe: the recipe of the phase that is trained.
        masked: whether batches come with a mask of their real rows.
    """
    if not recipe.frozen.modules or isinstance(recipe.loss_fn, CachedLoss):
        return AS_THEY_COME
    known = _borders.setdefault(recipe, {})
    if masked not in known:
        try:
            known[masked] = frozen_features(recipe, masked)
        except FlaxtrainError:
            known[masked] = None
    border = known[masked]
    return AS_THEY_COME if border is None else SeparateCalls(border)


class _Inputs(NamedTuple):
    """What a run of the loss function depends on, as shapes."""

    state: TrainState
    rows: Rows


def _inputs(recipe: Recipe, masked: bool) -> _Inputs:
    count = jax.tree.leaves(recipe.example)[0].shape[0]
    mask = jax.ShapeDtypeStruct((count,), jnp.bool_) if masked else None
    rows = jax.eval_shape(Rows.of, recipe.example, mask)
    return _Inputs(jax.eval_shape(recipe.init), rows)


def _watched(recipe: Recipe, inputs: _Inputs) -> list[WatchedCall]:
    """Returns the calls of frozen modules, none of which depends on anything that changes."""
    calls: list[WatchedCall] = []

    def trace(inputs: _Inputs) -> Any:
        watched = WatchedCalls()
        _, collections = forward(recipe, *inputs, calls=watched)
        calls[:] = watched.calls
        return [(call.inputs, call.outputs) for call in watched.calls], collections

    closed, shapes = jax.make_jaxpr(trace, return_shape=True)(inputs)
    sources = _sources(recipe, inputs, closed.jaxpr, len(jax.tree.leaves(shapes[1])))
    flows = dependencies(closed.jaxpr, [1 << i for i in range(len(sources))])
    found = jax.tree.unflatten(jax.tree.structure(shapes), flows)[0]

    def first(masks: Sequence[int]) -> Source | None:
        hit = [source for i, source in enumerate(sources) if any(m >> i & 1 for m in masks)]
        return next((source for source in hit if source is not None), None)

    for call, (before, after) in zip(calls, found, strict=True):
        _check_call(call, first(before), first(after))
    return calls


def _sources(
    recipe: Recipe, inputs: _Inputs, jaxpr: Any, collections: int
) -> list[Source | None]:
    """Returns for each input of the program what it is, where it may differ between steps."""
    trained = {path_name(path) for path in recipe.trainable or ()}
    # A collection that the program returns as it came is constant. They are returned last.
    constant = {id(variable) for variable in jaxpr.outvars[len(jaxpr.outvars) - collections :]}

    def source(name: str, variable: Any) -> Source | None:
        part, _, rest = name.partition("/")
        field, _, path = rest.partition("/")
        if part == "rows":
            return None if field == "batch" else Source(_ROWS)
        if part == "state" and field == "params" and path in trained:
            return Source(_PARAMETER, path)
        if part == "state" and field == "collections" and id(variable) not in constant:
            return Source(_COLLECTION, path)
        return Source(_RANDOM) if part == "state" and field in ("rng", "step") else None

    names = [name for name, _ in named_leaves(inputs)]
    return [source(*pair) for pair in zip(names, jaxpr.invars, strict=True)]


def _needed(recipe: Recipe, features: FrozenFeatures, inputs: _Inputs) -> list[bool]:
    """Returns for each output of the frozen calls whether loss or collections depend on it."""

    def trace(arrays: Sequence[Array], inputs: _Inputs) -> Any:
        return forward(recipe, *inputs, calls=AnsweredCalls(features, arrays))

    closed = jax.make_jaxpr(trace)(features.shapes, inputs)
    count = len(features.shapes)
    rest = len(closed.jaxpr.invars) - count
    flows = dependencies(closed.jaxpr, [1 << i for i in range(count)] + [0] * rest)
    return [any(flow >> index & 1 for flow in flows) for index in range(count)]


# What stands against caching.


def _check_frozen(recipe: Recipe) -> None:
    if not recipe.phase.frozen or recipe.trainable is None:
        raise ArgumentError(
            "nothing is frozen",
            where=CACHE_FROZEN,
            fix="pass OptSpec(freeze=[...]), or leave it out",
        )
    if not recipe.frozen.modules:
        raise ModelError(
            "parameters are frozen, but no module with all of its own",
            where=CACHE_FROZEN,
            fix="freeze whole modules (freeze=['backbone/**']), or leave cache_frozen out",
        )


def _frozen_names(recipe: Recipe) -> str:
    return ", ".join(path_name(module.path) for module in recipe.frozen.modules)


def _check_call(call: WatchedCall, before: Source | None, after: Source | None) -> None:
    """Refuses a call with an input that may change, or that doesn't return the same for it."""
    path = path_name(call.path)
    name = f"the frozen module {path!r}" if path else "the frozen model"
    if before is not None:
        raise _depends(f"an input of {name}", before, _INPUT_FIXES)
    if call.wrote:
        raise ModelError(
            f"{name} (stats={call.frozen.stats!r}, mode={call.frozen.mode!r}) writes to the "
            f"collection {call.wrote[0]!r}: statistics of the batch, or something sown",
            where=CACHE_FROZEN,
            fix="freeze it with stats='hold' and mode='eval' and sow nothing in it, or leave "
            "cache_frozen out",
        )
    if after is not None:
        raise _depends(f"the output of {name} (mode={call.frozen.mode!r})", after, _FIXES)
    if call.opaque:
        raise ModelError(
            f"{name} returns {with_article(call.opaque[0])} from {call.method!r}, not arrays",
            where=CACHE_FROZEN,
            fix="return arrays, or leave cache_frozen out",
        )


_FIXES = {
    _PARAMETER: "freeze that parameter too, or leave cache_frozen out",
    _COLLECTION: "freeze the module that it belongs to, or leave cache_frozen out",
    _RANDOM: "freeze it with mode='eval', which turns dropout off, or leave cache_frozen out",
    _ROWS: "freeze it with stats='hold' and mode='eval', or leave cache_frozen out",
}
_INPUT_FIXES = {
    **_FIXES,
    _PARAMETER: "freeze the modules before it too (only a prefix of the model can be cached), "
    "or leave cache_frozen out",
    _RANDOM: "do without augmentation in the loss (model.rng) and dropout before it, or leave "
    "cache_frozen out",
    _ROWS: "call the model without model.mask and model.weight, or leave cache_frozen out",
}


def _depends(what: str, source: Source, fixes: dict[str, str]) -> FlaxtrainError:
    return ModelError(
        f"{what} depends on {source}, so it is not the same in every epoch",
        where=CACHE_FROZEN,
        fix=fixes[source.kind],
    )


def _check_shapes(features: FrozenFeatures, rows: int) -> None:
    if not features.shapes:
        raise ModelError(
            "the loss doesn't depend on what the frozen modules return",
            where=CACHE_FROZEN,
            fix="leave cache_frozen out",
        )
    for call in features.calls:
        for shape, needed in zip(call.shapes, call.needed, strict=True):
            if needed and shape.shape[:1] != (rows,):
                raise ModelError(
                    f"the frozen module {call.name!r} returns an array of shape {shape.shape}, "
                    f"without the batch's {rows} rows in front",
                    where=CACHE_FROZEN,
                    fix="return one row for each example, or leave cache_frozen out",
                )
