"""Metrics as monoids, whoever wrote them: `merge`, `compute` and `empty_like` for all of them.

A metric is any pytree with `merge(other)`, `compute()` and a class method `empty()`: our `Mean`
and `Std`, a clu `Metric`, a user's own class. A mapping of metrics is one, entry by entry.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.errors import LossError
from flaxtrain.metrics.mean import Mean, Terms
from flaxtrain.metrics.std import Std
from flaxtrain.text import kind_of

__all__ = ["compute", "empty_like", "is_metric", "merge", "merge_over"]

_ZERO_IS_NEUTRAL = (Mean, Terms, Std)


def is_metric(value: object) -> bool:
    """Whether `value` can be merged and computed.

    Example:
        >>> is_metric(Mean.of(1.0)), is_metric(1.0)
        (True, False)
    """
    return callable(getattr(value, "merge", None)) and callable(getattr(value, "compute", None))


def merge(a: Any, b: Any) -> Any:
    """Returns the metric over both sets of examples.

    Args:
        a: a metric, or a mapping of metrics.
        b: a metric of the same class, or a mapping with the same keys.

    Raises:
        LossError: classes or keys differ, or merging changes a shape: such a metric collects
            values instead of summing them up, and can't be accumulated in a compiled step.

    Example:
        >>> both = merge({"loss": Mean.of(1.0)}, {"loss": Mean.of(3.0)})
        >>> float(both["loss"].compute())
        2.0
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
        return {name: merge(a[name], b[name]) for name in a}
    if isinstance(a, Mapping) or not is_metric(a) or type(a) is not type(b):
        raise LossError(
            f"can't merge {_named(a)} with {_named(b)}",
            where="merge(a, b)",
            fix="merge metrics of one class, or mappings of metrics with the same names",
        )
    merged = a.merge(b)
    if _shapes(merged) != _shapes(a):
        raise _not_fixed_size(a)
    return merged


def merge_over(metric: Any, add: Callable[[Any], Any], gather: Callable[[Any], Any]) -> Any:
    """Merges the metrics of several programs, each of which holds one.

    Args:
        metric: that of this program: a metric, or a mapping of metrics.
        add: returns the sum of an array over all programs.
        gather: returns an array of all programs, `[programs, ...]`.

    Example:
        >>> def gather(x):  # two programs that hold the same
        ...     return jnp.stack([x, x])
        >>> both = merge_over(Mean.of(3.0), lambda x: sum(gather(x)), gather)
        >>> float(both.compute()), float(both.weight)
        (3.0, 2.0)
    """
    if isinstance(metric, Mapping):
        return {name: merge_over(child, add, gather) for name, child in metric.items()}
    if isinstance(metric, (Mean, Terms)):
        return jax.tree.map(add, metric)
    first, *others = _unstacked(jax.tree.map(gather, metric))
    return functools.reduce(merge, others, first)


def _unstacked(stacked: Any) -> list[Any]:
    count = jax.tree.leaves(stacked)[0].shape[0]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(count)]


def compute(metric: Any) -> Any:
    """Returns the value of a metric, or of every metric of a mapping.

    Raises:
        LossError: `metric` is no metric.

    Example:
        >>> {name: float(value) for name, value in compute({"loss": Mean.of(3.0)}).items()}
        {'loss': 3.0}
    """
    if isinstance(metric, Mapping):
        return {name: compute(child) for name, child in metric.items()}
    if not is_metric(metric):
        raise _no_metric(metric)
    return metric.compute()


def empty_like(metric: Any) -> Any:
    """Returns the neutral element with the structure, shapes and dtypes of `metric`.

    So it can be the start of a `lax.scan` or `lax.cond` that merges into it.

    Raises:
        LossError: `metric` is no metric, or has no neutral element of its own size.

    Example:
        >>> start = empty_like(Mean.of(3.0))
        >>> float(merge(start, Mean.of(3.0)).compute())
        3.0
    """
    if isinstance(metric, Mapping):
        return {name: empty_like(child) for name, child in metric.items()}
    if isinstance(metric, _ZERO_IS_NEUTRAL):
        return jax.tree.map(jnp.zeros_like, metric)
    if not is_metric(metric) or not callable(getattr(metric, "empty", None)):
        raise _no_metric(metric)
    empty = type(metric).empty()
    if _shapes(empty) != _shapes(metric):
        raise _not_fixed_size(metric)
    leaves, structure = jax.tree.flatten(metric)
    return jax.tree.unflatten(
        structure,
        [jnp.asarray(e, jnp.result_type(m)) for e, m in zip(jax.tree.leaves(empty), leaves)],
    )


def _shapes(metric: Any) -> list[tuple[int, ...]]:
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(metric)]


def _named(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping of {sorted(map(str, value))}"
    return kind_of(value)


def _no_metric(value: Any) -> LossError:
    return LossError(
        f"{_named(value)} is no metric",
        where="a metric",
        fix="use flaxtrain.metrics.Mean, or a pytree with merge(other), compute() and empty()",
    )


def _not_fixed_size(metric: Any) -> LossError:
    return LossError(
        "the metric changes shape when it is merged, so a compiled step can't accumulate it",
        where=type(metric).__name__,
        fix="sum up in the metric (as Mean does), or compute it from trainer.predict()",
    )
