"""Averaged weights as part of the training state: they tell by themselves what becomes of them.

A state holds one of four: nothing (no array, no operation), or the average of a
`flaxtrain.spec.Ema`, `Swa` or `Lookahead`, where the formulas are. All have the same methods,
which are pure. After each optimizer update, x being the trained weights:
    Ema:        a <- a + w (x - a)           w = 1 - d
    Swa:        a <- a + (x - a) / (n + 1)   n weights are in it so far
    Lookahead:  a <- a + alpha (x - a)       then x <- a
The difference form leaves what never changes as it is, to the last bit.

An average covers the parameters that are trained at some time of the run and, but for
lookahead, the floating leaves of the collections. It is float32 at least.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct

from flaxtrain.spec.averaging import Averaging, Ema, Lookahead, Swa
from flaxtrain.tree import Path, flatten, graft, key_of, unflatten, where, widened, zeros_like
from flaxtrain.typing import Array, Collections, Params, PyTree

__all__ = ["NO_AVERAGE", "Average", "NoAverage", "begin_average"]


@runtime_checkable
class Average(Protocol):
    """What the training step asks of an average of the weights; a pytree, kept in the state."""

    @property
    def params(self) -> Params:
        """The averaged parameters, nested dicts, float32 or wider."""
        ...

    @property
    def collections(self) -> Collections:
        """The averaged collections likewise; empty for lookahead."""
        ...

    @property
    def count(self) -> Any:
        """How often the average was updated, an int32 scalar."""
        ...

    @property
    def rule(self) -> Averaging | None:
        """What is averaged, with durations in steps."""
        ...

    @property
    def begun(self) -> Array:
        """Whether there is an average yet, a bool scalar."""
        ...

    def update(
        self,
        params: Params,
        collections: Collections,
        step: Array,
        trainable: Collection[Path] | None = None,
    ) -> tuple[Average, Params]:
        """Brings the average up to date after an optimizer update.

        Args:
            params: the parameters after the update.
            collections: the collections after it.
            step: int32 scalar, the number of updates made, this one included.
            trainable: the paths that are trained now; None means all.

        Returns:
            The average after, and the parameters to go on with.
        """
        ...

    def weights(self, params: Params, collections: Collections) -> tuple[Params, Collections]:
        """Returns the parameters and collections to evaluate with.

        Args:
            params: the trained parameters, of which the dtypes and what isn't averaged is
                taken.
            collections: the collections of training, likewise.
        """
        ...

    def with_collections(self, part: Mapping[str, Any]) -> Average:
        """Returns the average with these collections, or parts of them, in place of its own."""
        ...


class NoAverage(struct.PyTreeNode):
    """There is no average: no array, and nothing happens."""

    params: Params = struct.field(default_factory=dict)
    collections: Collections = struct.field(default_factory=dict)
    count: Any = ()
    rule: None = struct.field(pytree_node=False, default=None)

    @property
    def begun(self) -> Array:
        """False: there never is one."""
        return jnp.array(False)

    def update(
        self,
        params: Params,
        collections: Collections,
        step: Array,
        trainable: Collection[Path] | None = None,
    ) -> tuple[Average, Params]:
        """Returns itself and the parameters."""
        return self, params

    def weights(self, params: Params, collections: Collections) -> tuple[Params, Collections]:
        """Returns the parameters and collections."""
        return params, collections

    def with_collections(self, part: Mapping[str, Any]) -> Average:
        """Returns itself."""
        return self


NO_AVERAGE = NoAverage()
"""The average of a run that keeps none."""


class _Moving(struct.PyTreeNode, ABC):
    """An average that moves towards the trained weights when it is due."""

    params: Params
    collections: Collections
    count: Any  # an Array
    rule: Any = struct.field(pytree_node=False)

    @property
    def begun(self) -> Array:
        """True: it begins as the weights that training begins with."""
        return jnp.array(True)

    def update(
        self,
        params: Params,
        collections: Collections,
        step: Array,
        trainable: Collection[Path] | None = None,
    ) -> tuple[Average, Params]:
        """Moves the average when it is time; the trained weights stay as they are."""

        def moved() -> Average:
            return self.replace(
                params=self._towards(self.params, params),
                collections=self._towards(self.collections, collections),
                count=self.count + 1,
            )

        due = self._is_due(step)
        # A select, in one pass with the average itself: a conditional would copy the average.
        return moved() if due is True else where(due, moved(), self), params

    def weights(self, params: Params, collections: Collections) -> tuple[Params, Collections]:
        """Returns the average, in the dtypes of training."""
        return _with(params, self.params), _with(collections, self.collections)

    def with_collections(self, part: Mapping[str, Any]) -> Average:
        """Returns the average with these collections, or parts of them, in place of its own."""
        return self.replace(collections=graft(part, self.collections))

    def _is_due(self, step: Array) -> Array | bool:
        """Whether the average is updated after this step; a bool where that is always so."""
        every = int(self.rule.every)
        return every == 1 or step % every == 0

    @abstractmethod
    def _weight(self, count: Array) -> Any:
        """Returns how far the average moves; `count` is a float of its precision."""

    def _towards(self, average: PyTree, new: PyTree) -> PyTree:
        def move(mean: Array, leaf: Array) -> Array:
            count = self.count.astype(jnp.finfo(mean.dtype).dtype)
            return mean + self._weight(count) * (leaf.astype(mean.dtype) - mean)

        return jax.tree.map(move, average, _chosen(new, flatten(average)))


class EmaAverage(_Moving):
    """An exponential moving average."""

    rule: Ema = struct.field(pytree_node=False)

    def _weight(self, count: Array) -> Any:
        rest = 1.0 - self.rule.decay
        # 1 - (1 + t) / (10 + t), without the difference of two numbers that are almost equal.
        return jnp.maximum(9.0 / (10.0 + count), rest) if self.rule.warmup else rest


class SwaAverage(_Moving):
    """A mean that begins at some step; before, it is zero, and its weights the trained ones."""

    rule: Swa = struct.field(pytree_node=False)

    @property
    def begun(self) -> Array:
        """Whether there is an average yet, a bool scalar."""
        return self.count > 0

    def weights(self, params: Params, collections: Collections) -> tuple[Params, Collections]:
        """Returns the mean, or the trained weights before it begins."""
        mean, raw = super().weights(params, collections), (params, collections)
        return jax.tree.map(lambda new, old: jnp.where(self.begun, new, old), mean, raw)

    def _is_due(self, step: Array) -> Array | bool:
        start, every = int(self.rule.start), int(self.rule.every)
        if start <= 1 and every == 1:
            return True
        return (step >= start) & ((step - start) % every == 0)

    def _weight(self, count: Array) -> Any:
        return 1.0 / (count + 1.0)


class LookaheadAverage(_Moving):
    """Slow weights. A frozen parameter is followed too, and never written."""

    rule: Lookahead = struct.field(pytree_node=False)

    def update(
        self,
        params: Params,
        collections: Collections,
        step: Array,
        trainable: Collection[Path] | None = None,
    ) -> tuple[Average, Params]:
        """Moves the slow weights when it is time, and sets the trained ones back to them."""

        def synced() -> tuple[Average, Params]:
            slow = self._towards(self.params, params)
            table = flatten(slow)
            paths = table.keys() if trainable is None else table.keys() & set(trainable)
            new = self.replace(params=slow, count=self.count + 1)
            return new, _with(params, unflatten({path: table[path] for path in paths}))

        due = self._is_due(step)
        # Not a select, which would keep the parameters before and after at the same time.
        return synced() if due is True else jax.lax.cond(due, synced, lambda: (self, params))

    def _is_due(self, step: Array) -> Array | bool:
        period = self.rule.sync_period
        return period == 1 or step % period == 0

    def _weight(self, count: Array) -> Any:
        return self.rule.slow_step_size


_KINDS: dict[type[Any], type[_Moving]] = {
    Ema: EmaAverage,
    Swa: SwaAverage,
    Lookahead: LookaheadAverage,
}


def begin_average(
    rule: Averaging | None,
    params: Params,
    collections: Collections,
    averaged: Collection[Path] | None = None,
) -> Average:
    """Returns the average with which a run begins.

    Args:
        rule: what is averaged, with durations in steps; None: nothing.
        params: the parameters at that time, nested dicts; they are copied.
        collections: the collections.
        averaged: the paths of the parameters that are averaged; None: all.

    Example:
        >>> params = {"w": jnp.array([1.0])}
        >>> average = begin_average(Ema(0.5, warmup=False), params, {})
        >>> average, _ = average.update({"w": jnp.array([3.0])}, {}, jnp.int32(1))
        >>> print(average.weights(params, {})[0]["w"])
        [2.]
    """
    if rule is None:
        return NO_AVERAGE
    paths = {path for path in flatten(params) if averaged is None or path in averaged}
    first = (_chosen(params, paths), _floating(collections))
    if isinstance(rule, Lookahead):
        first = (first[0], {})
    # Copies: an array that is in the state twice can't be donated.
    first = widened(jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), first))
    if isinstance(rule, Swa):
        first = zeros_like(first)
    kind = _KINDS[type(rule)]
    return kind(
        params=first[0], collections=first[1], count=jnp.zeros((), jnp.int32), rule=rule
    )


def _table(tree: PyTree) -> dict[Path, Any]:
    """Returns the leaves of any tree by path: collections may hold more than dicts."""
    return {
        tuple(map(key_of, keys)): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _chosen(tree: PyTree, paths: Collection[Path]) -> dict[str, Any]:
    """Returns the leaves at these paths as nested dicts."""
    return unflatten({path: leaf for path, leaf in _table(tree).items() if path in paths})


def _floating(collections: Collections) -> dict[str, Any]:
    table = _table(collections)
    return _chosen(
        collections, {p for p, leaf in table.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    )


def _with(tree: PyTree, part: Mapping[str, Any]) -> PyTree:
    """Returns a tree with the leaves of `part` in place of its own, in their dtypes."""
    table = flatten(part)
    entries, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = []
    for keys, leaf in entries:
        new = table.get(tuple(map(key_of, keys)))
        leaves.append(leaf if new is None else new.astype(leaf.dtype))
    return jax.tree.unflatten(structure, leaves)
