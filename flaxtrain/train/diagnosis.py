"""Why a step was rejected: its batch is run again on the state before, and looked at.

weights, loss, gradient, collections   from one compiled function, as the step forms them
parameters                             one that is itself not finite, else the gradients
modules                                run one operation after the other, see `replay`
batch                                  statistics of its entries
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain import tree
from flaxtrain.metrics import Terms
from flaxtrain.params import Facts, ParamFact
from flaxtrain.precision import DynamicScale
from flaxtrain.train.contract import LossOutput
from flaxtrain.train.findings import BadArray, Diagnosis, EntryStats, SpikeFound
from flaxtrain.train.forward_pass import forward
from flaxtrain.train.gradient import gradient
from flaxtrain.train.keys import microbatch_key, step_key
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.replay import BadModule, ModuleCalls
from flaxtrain.train.replicas import ONE_PROGRAM
from flaxtrain.train.rows import Rows
from flaxtrain.train.spike_window import SpikeWindow
from flaxtrain.train.state import TrainState
from flaxtrain.tree import path_name
from flaxtrain.typing import Array, ArrayLike, Batch, Collections, Key, Params, PyTree, Updates

__all__ = ["diagnose_step"]

T = TypeVar("T")


def diagnose_step(
    recipe: Recipe, state: TrainState, batch: Batch, mask: ArrayLike | None = None
) -> Diagnosis:
    """Runs one batch again, and returns what is not finite in it. The state is not changed.

    Args:
        recipe: what does not change in the run.
        state: the state before the step.
        batch: every leaf `[rows, ...]`.
        mask: bool `[rows]`, False for padding rows; None for a full batch.

    Returns:
        What was found. Where a part of the replay fails, `notes` says so, and the other parts
        are there.

    Example:
        >>> import flax.linen as nn, numpy as np
        >>> from flaxtrain import OptSpec, make_recipe
        >>> batch = {"x": np.ones((4, 3), "float32"), "label": np.zeros(4, "int32")}
        >>> recipe = make_recipe(nn.Dense(2), OptSpec("sgd", learning_rate=0.1), batch)
        >>> state = recipe.init(seed=0)
        >>> print(diagnose_step(recipe, state, batch).what)
        everything is finite when the batch is run again
        >>> batch["x"][2, 1] = np.inf
        >>> print(diagnose_step(recipe, state, batch).inputs[1].rows)
        (2,)
    """
    batch, mask = jax.tree.map(jnp.asarray, (batch, mask))  # as in the compiled step
    notes: list[str] = []
    inputs = _attempt("the batch", lambda: _entries(batch, mask), notes)
    bad = _attempt("the parameters", lambda: _bad_parameters(recipe, state), notes)
    found = Diagnosis(
        step=int(state.step),
        inputs=inputs or (),
        parameter=bad[0] if bad else None,
        parameters=len({array.name for array in bad or ()}),
    )
    part = _attempt("loss and gradient", lambda: _part(recipe, state, batch, mask), notes)
    if part is not None:
        found = replace(found, **_findings(recipe, part))
    if part is not None and not found.is_finite:
        modules = _attempt("the modules", lambda: _modules(recipe, part, notes), notes) or ()
        given = any(entry.bad for entry in found.inputs)  # an infinity from the batch, likely
        kept = [module for module in modules if module.finite_arguments or not given]
        found = replace(found, modules=tuple(kept))
    return replace(found, notes=tuple(notes))


def _attempt(name: str, look: Callable[[], T], notes: list[str]) -> T | None:
    """Returns what is found; a report must not fail where the step did not."""
    try:
        return look()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        notes.append(f"{name} could not be looked at: {type(error).__name__}: {reason}")
        return None


# The batch.


def _entries(batch: Batch, mask: ArrayLike | None) -> tuple[EntryStats, ...]:
    """Returns the statistics of the real rows: padding repeats one of them."""
    leaves = {name: np.asarray(leaf) for name, leaf in tree.named_leaves(batch)}
    whole = range(min(map(len, leaves.values()), default=0))
    numbers = np.asarray(whole) if mask is None else np.flatnonzero(np.asarray(mask))
    return tuple(_entry(name, leaf[numbers], numbers) for name, leaf in leaves.items())


def _entry(name: str, array: np.ndarray, numbers: np.ndarray) -> EntryStats:
    # numpy does not know that jax's small floats are numbers.
    inexact = jnp.issubdtype(array.dtype, jnp.inexact)
    wide = np.abs(array) if array.dtype.kind == "c" else array
    wide = wide.astype(np.float64)
    good = np.isfinite(wide) if inexact else np.ones(array.shape, bool)
    values = wide[good]
    known = values.size > 0
    rows = numbers[~good.all(axis=tuple(range(1, good.ndim)))]
    with np.errstate(over="ignore"):
        mean = float(values.mean()) if known else float("nan")
    return EntryStats(
        name=name,
        shape=array.shape,
        dtype=array.dtype.name,
        minimum=float(values.min()) if known else float("nan"),
        maximum=float(values.max()) if known else float("nan"),
        mean=mean,
        bad=int(good.size - good.sum()),
        rows=tuple(map(int, rows)),
    )


# Parameters, gradients, collections.


class _Numbers(NamedTuple):
    """What the compiled replay of a batch, or of one microbatch, returns."""

    loss: Array
    weights: Array
    grad_norm: Array
    gradients: dict[str, Array]
    collections: dict[str, Array]
    after: Collections


@partial(jax.jit, static_argnums=0)
def _run(recipe: Recipe, state: TrainState, rows: Rows, key: Key) -> _Numbers:
    """Makes the step up to its gradient, and counts what is not finite."""
    trainable, _ = state.split_params()

    def objective(trainable: Params) -> tuple[Array, tuple[LossOutput, Collections]]:
        output, collections = forward(recipe, state, rows, trainable=trainable, key=key)
        return state.loss_scale.scale(output.loss.compute()), (output, collections)

    grads, (output, collections) = jax.grad(objective, has_aux=True)(trainable)
    return _numbers(recipe, state, grads, output, collections)


@partial(jax.jit, static_argnums=0)
def _run_whole(recipe: Recipe, state: TrainState, rows: Rows, key: Key) -> _Numbers:
    """Does the same with all microbatches, as the step has them."""

    def objectives(loss: Terms) -> list[Array]:
        return [loss.compute()]

    (grads,), output, collections = gradient(recipe, state, rows, objectives, key)
    return _numbers(recipe, state, grads, output, collections)


def _numbers(
    recipe: Recipe,
    state: TrainState,
    grads: Updates,
    output: LossOutput,
    collections: Collections,
) -> _Numbers:
    grads = state.loss_scale.unscale(tree.widened(grads))
    return _Numbers(
        loss=output.loss.compute(),
        weights=jnp.stack([jnp.asarray(term.weight) for term in output.loss.terms]),
        grad_norm=tree.global_norm(grads),
        gradients=_counts(grads, recipe.facts),
        collections=_counts(collections, None),
        after=collections,
    )


def _counts(arrays: PyTree, facts: Facts | None) -> dict[str, Array]:
    """Returns the number of values that are not finite by name; of a stack, for each layer."""
    counts = {}
    for path, leaf in tree.flatten(arrays).items():
        axes = () if facts is None else facts[path].lifted_axes
        others = tuple(axis for axis in range(leaf.ndim) if axis not in axes)
        inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        bad = ~jnp.isfinite(leaf) if inexact else jnp.zeros(leaf.shape, bool)
        counts[path_name(path)] = jnp.sum(bad, axis=others, dtype=jnp.int32)
    return counts


@partial(jax.jit, static_argnums=0)
def _params_counts(recipe: Recipe, params: Params) -> dict[str, Array]:
    return _counts(params, recipe.facts)


def _bad_parameters(recipe: Recipe, state: TrainState) -> list[BadArray]:
    return _located(jax.device_get(_params_counts(recipe, state.params)), recipe.facts)


class _Part(NamedTuple):
    """A batch, or the microbatch `number` of it, with its key and what its replay has shown."""

    state: TrainState
    rows: Rows
    key: Key
    number: int | None
    numbers: _Numbers

    @property
    def is_bad(self) -> bool:
        found = self.numbers
        counts = [*found.gradients.values(), *found.collections.values()]
        weights = np.isfinite(found.weights) & (found.weights >= 0)
        finite = np.isfinite(found.loss) and np.isfinite(found.grad_norm) and np.all(weights)
        return not finite or any(np.any(count) for count in counts)


def _part(recipe: Recipe, state: TrainState, batch: Batch, mask: ArrayLike | None) -> _Part:
    """Runs the microbatches in order; returns the first bad one, or else the whole batch."""
    rows = Rows.of(batch, mask)
    count = recipe.spec.accumulation.microbatches
    key = recipe.accumulation.key(step_key(state.rng, state.step), state.accumulated)
    if count == 1:
        return _Part(state, rows, key, None, jax.device_get(_run(recipe, state, rows, key)))
    now, split = state, ONE_PROGRAM.microbatches(rows, count)
    last: _Part | None = None
    for index in range(count):
        part = jax.tree.map(lambda leaf, i=index: leaf[i], split)
        if part.real is not None and not np.any(part.real):
            continue  # as the step leaves it out
        own = microbatch_key(key, index)
        numbers = _run(recipe, now, part, own)
        last = _Part(now, part, own, index, jax.device_get(numbers))
        if last.is_bad:
            return last
        if np.any(last.numbers.weights > 0):
            now = now.replace(collections=numbers.after)
    if last is None:  # a batch of padding: all of it, for what it is worth
        return _Part(state, rows, key, None, jax.device_get(_run(recipe, state, rows, key)))
    whole = jax.device_get(_run_whole(recipe, state, rows, key))
    return _Part(state, rows, key, None, whole)


def _findings(recipe: Recipe, part: _Part) -> dict[str, Any]:
    """Returns the fields of a `Diagnosis` that a part of the batch decides."""
    numbers = part.numbers
    found = _located(numbers.gradients, recipe.facts)
    scale = part.state.loss_scale
    dynamic = isinstance(scale, DynamicScale)
    sizes = map(np.size, tree.flatten(numbers.after).values())
    collections = [
        BadArray(name, int(count), size)
        for (name, count), size in zip(numbers.collections.items(), sizes, strict=True)
        if count
    ]
    return {
        "loss": float(numbers.loss),
        "weight": tuple(map(float, numbers.weights)),
        "loss_scale": float(scale.value) if dynamic else None,
        "loss_scale_minimum": float(scale.min) if dynamic else None,
        "gradient": found[0] if found else None,
        "nearest_gradient": found[-1] if found else None,
        "gradients": len({array.name for array in found}),
        "trained": len(numbers.gradients),
        "collections": tuple(collections),
        "spike": _spike(part.state, numbers),
        "microbatch": part.number,
    }


def _spike(state: TrainState, numbers: _Numbers) -> SpikeFound | None:
    window = state.spikes
    if not isinstance(window, SpikeWindow):
        return None
    values = {"loss": jnp.asarray(numbers.loss), "grad_norm": jnp.asarray(numbers.grad_norm)}
    if not window.is_spike(**values):
        return None
    score = map(float, window.score(**values))
    return SpikeFound(window.rule.of, *score, limit=window.rule.z)


def _located(counts: Mapping[str, Any], facts: Facts) -> list[BadArray]:
    """Returns the arrays with bad values, layer by layer, in the order of use."""
    found = []
    for name, layers in counts.items():
        fact, layers = facts[name], np.asarray(layers)
        for layer in np.argwhere(layers) if layers.ndim else [()] * bool(layers):
            index = tuple(map(int, layer))
            array = BadArray(name, int(layers.sum()), fact.size, index, layers.shape)
            found.append((_order(fact, index, facts), array))
    return [array for _, array in sorted(found, key=lambda pair: pair[0])]


def _order(fact: ParamFact, layer: tuple[int, ...], facts: Facts) -> tuple[Any, ...]:
    """Returns what sorts by use: in a stack, all parameters of a layer before the next one."""

    def depth(of: ParamFact) -> int:
        return len(facts) if of.depth is None else of.depth

    begins = depth(fact)
    if fact.loop is not None:
        begins = min(depth(of) for of in facts.params if of.loop == fact.loop)
    place = dict(zip(fact.lifted_axes, layer, strict=True))
    scanned = [
        fact.shape[axis] - 1 - place[axis] if axis in fact.reversed_axes else place[axis]
        for axis in fact.scan_axes
        if axis in place
    ]
    return begins, tuple(scanned), depth(fact), layer, fact.name


# Modules.


def _modules(recipe: Recipe, part: _Part, notes: list[str]) -> tuple[BadModule, ...]:
    calls, state = ModuleCalls(), part.state
    calls.watched(lambda: forward(recipe, state, part.rows, key=part.key))
    if calls.gave_up:
        notes.append(f"the modules were looked at for {calls.seconds:g} s, not to the end")
    return calls.breaks(recipe.facts)
