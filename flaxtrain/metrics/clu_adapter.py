"""Metrics of `clu.metrics` in our training step: exact under padding, with errors that explain.

A `clu.metrics.Collection` is a class whose annotations name metric classes. Here each of them
is formed from the model's outputs on its own, and accumulated by `flaxtrain.metrics.monoid`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import clu.metrics
import jax
import jax.numpy as jnp

from flaxtrain.errors import ArgumentTypeError, LossError
from flaxtrain.metrics.monoid import is_metric
from flaxtrain.metrics.std import Std
from flaxtrain.typing import Array

__all__ = ["collection_metrics", "is_clu_metric", "is_collection", "metric_classes"]


def is_clu_metric(value: object) -> bool:
    """Whether `value` is a clu metric, class or instance.

    Example:
        >>> is_clu_metric(clu.metrics.Accuracy), is_clu_metric(clu.metrics.Accuracy.empty())
        (True, True)
    """
    return _is(value, clu.metrics.Metric)


def is_collection(value: object) -> bool:
    """Whether `value` is a clu collection, class or instance.

    Example:
        >>> is_collection(clu.metrics.Collection.create(accuracy=clu.metrics.Accuracy))
        True
    """
    return _is(value, clu.metrics.Collection)


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) or (isinstance(value, type) and issubclass(value, kind))


def metric_classes(collection: Any) -> dict[str, type[clu.metrics.Metric]]:
    """Returns the metric classes of a collection by name, inherited ones included.

    Args:
        collection: a collection, class or instance.

    Raises:
        ArgumentTypeError: it is no collection, its annotations are text, or one of them is no
            metric class.

    Example:
        >>> list(metric_classes(clu.metrics.Collection.create(accuracy=clu.metrics.Accuracy)))
        ['accuracy']
    """
    if not is_collection(collection):
        raise ArgumentTypeError(
            f"{collection!r} is no clu.metrics.Collection",
            where="metrics",
            fix='pass Collection.create(loss=clu.metrics.Average.from_output("loss"))',
        )
    cls = collection if isinstance(collection, type) else type(collection)
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, clu.metrics.Collection) and base is not clu.metrics.Collection:
            found.update(inspect.get_annotations(base))
    for name, annotation in found.items():
        _check_annotation(cls, name, annotation)
    return found


def _check_annotation(cls: type, name: str, annotation: Any) -> None:
    where = f"{cls.__name__}.{name}"
    if isinstance(annotation, str):
        raise ArgumentTypeError(
            f"the annotation is the text {annotation!r}, because the collection's file has "
            "`from __future__ import annotations`",
            where=where,
            fix=f"write Collection.create({name}={annotation}), or drop that import",
        )
    if not (isinstance(annotation, type) and issubclass(annotation, clu.metrics.Metric)):
        raise ArgumentTypeError(
            f"{annotation!r} is no metric class",
            where=where,
            fix="annotate with a clu Metric class",
        )


def collection_metrics(
    collection: Any, outputs: Mapping[str, Any], mask: Array | None = None
) -> dict[str, Any]:
    """Returns the metrics of one batch, by name, to be merged and computed.

    A metric that takes clu's `mask` gets it. One that doesn't (a user's own) is formed row by
    row and merged over the rows that count, which is the same for any metric that is a sum over
    examples. So padded rows, NaN in them included, change nothing.

    Args:
        collection: a collection, class or instance (its values are not looked at).
        outputs: what the metrics may ask for by name, such as `loss`, `logits`, `labels`;
            integer labels of any width are handed over as int32, which `clu.metrics.Accuracy`
            insists on.
        mask: `[batch]`, zero for rows that don't count; None if all do. As in clu, a row counts
            whole or not at all.

    Returns:
        `{name: metric}`. A `clu.metrics.Std` (which can't compute its value with current jax)
        comes back as `flaxtrain.metrics.Std`.

    Raises:
        LossError: an output that a metric asks for is missing; a metric collects values instead
            of summing them up; or it reads only values that are means over a batch already,
            which can't leave padded rows out.
        ArgumentTypeError: see `metric_classes`.

    Example:
        >>> loss_of = clu.metrics.Average.from_output("loss")
        >>> metrics = clu.metrics.Collection.create(loss=loss_of)
        >>> loss, mask = jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1.0, 1.0, 0.0])
        >>> float(collection_metrics(metrics, {"loss": loss}, mask)["loss"].compute())
        2.0
    """
    named = {
        name: _model_output(name, value)
        for name, value in outputs.items()
        if not is_metric(value)  # a Mean has no values per example any more
    }
    return {
        name: _std_of_ours(_form(name, cls, named, mask))
        for name, cls in metric_classes(collection).items()
    }


def _model_output(name: str, value: Any) -> Any:
    if not hasattr(value, "dtype") and not isinstance(value, (bool, int, float)):
        return value
    value = jnp.asarray(value)
    is_label = name in ("label", "labels") and jnp.issubdtype(value.dtype, jnp.integer)
    return value.astype(jnp.int32) if is_label else value


def _form(name: str, cls: Any, outputs: Mapping[str, Any], mask: Array | None) -> Any:
    if issubclass(cls, clu.metrics.CollectingMetric):
        raise LossError(
            "it keeps every value it sees: its shape changes from step to step, so a compiled "
            "step can't hold it, and it applies no row mask",
            where=f"metric {name!r}, a CollectingMetric",
            fix="compute it from trainer.predict(), or sum up in a clu Metric of your own",
        )
    _check_available(name, cls, outputs)
    if mask is None:
        return _from_outputs(name, cls, outputs)
    counts = mask != 0
    with_mask = {**outputs, "mask": _and(outputs.get("mask"), counts)}
    used = _inputs_used(name, cls, with_mask)
    if "mask" in used:
        return _from_outputs(name, cls, with_mask)
    rows = [key for key in used if jnp.shape(outputs[key])[:1] == mask.shape]
    if not rows and not issubclass(cls, clu.metrics.LastValue):
        raise LossError(
            f"it reads only {', '.join(used) or 'constants'}, which has no batch axis: padded "
            "rows can't be left out of it any more",
            where=f"metric {name!r}",
            fix="return one value per example, of shape [batch]",
        )
    return _row_by_row(cls, outputs, rows, counts) if rows else cls.from_model_output(**outputs)


def _check_available(name: str, cls: Any, outputs: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls.from_model_output).parameters.values()
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    missing = [key for key in needed if key not in outputs]
    if missing:
        raise _missing(name, missing[0], outputs)


def _from_outputs(name: str, cls: Any, outputs: Mapping[str, Any]) -> Any:
    try:
        return cls.from_model_output(**outputs)
    except KeyError as error:
        raise _missing(name, str(error.args[0]), outputs) from None


def _missing(name: str, key: str, outputs: Mapping[str, Any]) -> LossError:
    available = ", ".join(sorted(set(outputs) - {"mask"})) or "none"
    example = next(iter(outputs), "loss")
    return LossError(
        f"it asks for the model output {key!r}, which is not there",
        where=f"metric {name!r}",
        fix=f"return {key!r} among the outputs, one value per example, or read one that is "
        f"there with from_output({example!r}). Available: {available}",
    )


def _and(own: Any, counts: Array) -> Array:
    """Joins the row mask and an output named `mask`, which may be per token."""
    if own is None:
        return counts
    return (own != 0) & counts.reshape(counts.shape + (1,) * (jnp.ndim(own) - counts.ndim))


def _inputs_used(name: str, cls: Any, outputs: Mapping[str, Any]) -> list[str]:
    """Names the inputs that the metric depends on: traced, not computed."""
    arrays = {key: value for key, value in outputs.items() if hasattr(value, "dtype")}
    rest = {key: value for key, value in outputs.items() if key not in arrays}

    def form(given: dict[str, Any]) -> list[Any]:
        return jax.tree.leaves(_from_outputs(name, cls, {**rest, **given}))

    jaxpr = jax.make_jaxpr(form)(arrays).jaxpr
    wanted = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in wanted for variable in equation.outvars):
            wanted |= {id(variable) for variable in equation.invars}
    return [
        key for key, variable in zip(sorted(arrays), jaxpr.invars) if id(variable) in wanted
    ]


def _row_by_row(cls: Any, outputs: Mapping[str, Any], rows: list[str], counts: Array) -> Any:
    """Merges the metrics of single rows, leaving out those that don't count."""

    def one(row: Mapping[str, Any]) -> Any:
        return cls.from_model_output(**{**outputs, **jax.tree.map(lambda x: x[None], row)})

    metrics = jax.vmap(one)({key: outputs[key] for key in rows})

    def add(total: Any, row: tuple[Any, Array]) -> tuple[Any, None]:
        metric, counted = row
        merged = total.merge(metric)
        return jax.tree.map(lambda new, old: jnp.where(counted, new, old), merged, total), None

    like = jax.tree.map(lambda x: x[0], metrics)
    empty = jax.tree.map(lambda e, m: jnp.asarray(e, m.dtype), cls.empty(), like)
    return jax.lax.scan(add, empty, (metrics, counts))[0]


def _std_of_ours(metric: Any) -> Any:
    if not isinstance(metric, clu.metrics.Std):
        return metric
    weight = jnp.asarray(metric.count, metric.total.dtype)
    safe = jnp.where(weight == 0, 1, weight)
    squares = metric.sum_of_squares - metric.total**2 / safe
    return Std(weight, metric.total / safe, jnp.maximum(squares, 0))
