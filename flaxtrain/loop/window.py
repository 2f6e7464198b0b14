"""Metrics between two log points: merged on the device, read once, a little late.

Nothing here waits for the device except `Report.collect`, which is called when the steps it
asks about have long been finished, or at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.errors import LossError
from flaxtrain.metrics import Mean, Terms
from flaxtrain.metrics.monoid import compute, empty_like, merge
from flaxtrain.train import STEP_METRICS
from flaxtrain.typing import Array

__all__ = ["Metrics", "Packed", "Report", "Status", "Window", "as_numbers"]

Metrics = dict[str, Any]
"""Metrics by name, as a step returns them."""


class Status(NamedTuple):
    """Where the device was after a step, as host integers."""

    step: int
    batches: int
    skipped: int
    spikes: int
    halted: int

    def rejected(self) -> dict[str, float]:
        """Returns the numbers of rejected steps that are not 0, by name."""
        counts = {"skipped": float(self.skipped), "spikes": float(self.spikes)}
        return {name: count for name, count in counts.items() if count}


class Report(NamedTuple):
    """The metrics of one window and the status at its end, still on the device."""

    values: Metrics
    weighted: dict[str, Array]
    status: Array

    def collect(self) -> tuple[Status, dict[str, float]]:
        """Waits for the window's last step and returns plain numbers.

        A metric without any weight is left out: a rejected step has none.
        """
        values, weighted, status = jax.device_get(tuple(self))
        numbers = as_numbers({name: values[name] for name in values if weighted[name]})
        return Status(*map(int, status)), numbers


def as_numbers(values: Metrics) -> dict[str, float]:
    """Turns computed metrics into Python floats.

    Raises:
        LossError: a metric is not one number.
    """
    for name, value in values.items():
        if np.size(value) != 1:
            raise LossError(
                f"metric {name!r} has shape {np.shape(value)}",
                where="metrics",
                fix="return one number per metric name",
            )
    # Compiled functions return dicts sorted by key; the loss is what a reader looks for first.
    order = sorted(
        values, key=lambda name: (name != "loss", name.partition("/")[0] in STEP_METRICS)
    )
    return {name: float(np.asarray(values[name]).reshape(())) for name in order}


def _empty(metrics: Metrics) -> Metrics:
    return {name: empty_like(metric) for name, metric in metrics.items()}


def _has_weight(metric: Any, otherwise: Array) -> Array:
    """Whether a metric saw an example; of metrics that don't tell, `otherwise` is taken."""
    terms = metric.terms if isinstance(metric, Terms) else (metric,)
    known = [jnp.asarray(term.weight) != 0 for term in terms if isinstance(term, Mean)]
    return jnp.any(jnp.stack(known)) if known else otherwise


Packed = tuple[Array, tuple[Any, ...]]
"""A window as it travels: a vector of its float32 scalars, and its other arrays."""


class Window:
    """The form of a window of metrics: found once, and few arrays on its way through a step.

    Every array that a compiled function takes or returns costs a microsecond or two of
    dispatch, and metrics are mostly float32 scalars: these travel as one vector.

    Args:
        metrics_of: from the arguments of a step to its metrics; only evaluated abstractly.
    """

    def __init__(self, metrics_of: Callable[..., Metrics]) -> None:
        self._metrics_of = metrics_of
        self._template: Metrics | None = None
        self._tree: Any = None
        self._scalar: tuple[bool, ...] = ()
        self._adds = False  # whether merging these metrics is adding their arrays

    def empty(self, *args: Any) -> Packed:
        """Returns an empty window for steps with such arguments."""
        template = self._template
        if template is None:
            shapes = jax.eval_shape(self._metrics_of, *args)
            zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
            template = self._template = jax.device_get(_empty(zeros))
            leaves, self._tree = jax.tree.flatten(template)
            self._adds = all(isinstance(metric, (Mean, Terms)) for metric in template.values())
            self._scalar = tuple(
                np.ndim(leaf) == 0 and leaf.dtype == np.float32 for leaf in leaves
            )
        return jax.tree.map(jnp.array, self.pack(template))  # a copy: it is donated

    def pack(self, window: Metrics) -> Packed:
        """Returns a window as a vector of its float32 scalars, and its other arrays."""
        leaves = jax.tree.leaves(window)
        scalars = [leaf for leaf, scalar in zip(leaves, self._scalar, strict=True) if scalar]
        others = [leaf for leaf, scalar in zip(leaves, self._scalar, strict=True) if not scalar]
        vector = jnp.stack(scalars) if scalars else jnp.zeros(0, jnp.float32)
        return vector, tuple(others)

    def unpack(self, packed: Packed) -> Metrics:
        """Returns the window that was packed."""
        scalars, others = iter(packed[0]), iter(packed[1])
        return self._tree.unflatten(
            [next(scalars) if scalar else next(others) for scalar in self._scalar]
        )

    def merged(self, packed: Packed, metrics: Metrics) -> Packed:
        """Returns the window with the metrics of one more step."""
        if self._adds:  # which in one vector is one operation
            return jax.tree.map(jnp.add, packed, self.pack(metrics))
        window = self.unpack(packed)
        return self.pack({name: merge(window[name], metrics[name]) for name in metrics})

    def finish(self, packed: Packed) -> tuple[Metrics, dict[str, Array], Packed]:
        """Returns the values of a window, which have weight, and the empty one that follows."""
        window = self.unpack(packed)
        values = {name: compute(metric) for name, metric in window.items()}
        some = _has_weight(window["loss"], jnp.array(True))
        weighted = {name: _has_weight(metric, some) for name, metric in window.items()}
        return values, weighted, self.pack(_empty(window))
