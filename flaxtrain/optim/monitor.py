"""Looking at updates on their way through a chain.

What is measured lands in the state, where a training loop or a logger reads it. Updates pass
as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from flaxtrain.errors import ArgumentTypeError
from flaxtrain.optim.combine import chain
from flaxtrain.optim.ema import ema
from flaxtrain.optim.transform import (
    GradientTransformation,
    TransformationLike,
    named,
    stateless,
    with_extra_args,
)
from flaxtrain.text import kind_of
from flaxtrain.typing import Array, ArrayLike, DTypeLike, OptState, Params, PyTree, Updates

__all__ = [
    "Measure",
    "MonitorState",
    "SnapshotState",
    "measure_with_ema",
    "monitor",
    "snapshot",
]

Measure: TypeAlias = Callable[[Updates], PyTree]
"""From updates to an array, or a tree of arrays."""


class SnapshotState(NamedTuple):
    """The last measurement, by its name."""

    measurement: dict[str, PyTree]


class MonitorState(NamedTuple):
    """The last measurements by name, and the states of the transformations that made them."""

    measurements: dict[str, PyTree]
    measure_states: tuple[OptState, ...]


@named
def snapshot(measure_name: str, measure: Measure) -> GradientTransformation:
    """Keeps a measurement of the updates in the state.

    Args:
        measure_name: its name.
        measure: what is measured. `init` measures the parameters.

    Returns:
        A transformation whose state is a `SnapshotState`.

    Raises:
        ArgumentTypeError: an argument has the wrong type.

    Example:
        >>> from flaxtrain.optim import scale
        >>> tx = chain(scale(-0.5), snapshot("largest", lambda u: jnp.max(jnp.abs(u))))
        >>> updates, state = tx.update(jnp.array([1.0, -4.0]), tx.init(jnp.zeros(2)))
        >>> print(state[1].measurement["largest"])
        2.0
    """
    _check_name(measure_name, where="snapshot")
    _check_measure(measure, where="snapshot")

    def init(params: Params, /) -> SnapshotState:
        return SnapshotState({measure_name: _arrays(measure(params))})

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, SnapshotState]:
        return updates, SnapshotState({measure_name: _arrays(measure(updates))})

    return GradientTransformation(init, update)


@named
def monitor(measures: Mapping[str, Measure | TransformationLike]) -> GradientTransformation:
    """Keeps several measurements of the updates in the state.

    Args:
        measures: for each name a function of the updates, or a transformation that makes a
            measurement of them and may remember something, such as `measure_with_ema`.

    Returns:
        A transformation whose state is a `MonitorState`. Before the first update measurements
        are zero, in the structure that they have for updates like the parameters; one that
        needs extra arguments is not there yet.

    Raises:
        ArgumentTypeError: an argument has the wrong type.

    Example:
        >>> from flaxtrain.tree import global_norm
        >>> tx = monitor({"norm": global_norm, "norm_ema": measure_with_ema(global_norm, 0.5)})
        >>> state = tx.init(jnp.zeros(2))
        >>> print(state.measurements["norm"])
        0.0
        >>> for gradient in ([3.0, 4.0], [0.0, 2.0]):
        ...     updates, state = tx.update(jnp.array(gradient), state)
        >>> print(state.measurements["norm"], state.measurements["norm_ema"])
        2.0 3.0
    """
    parts = {name: _part(name, measure) for name, measure in _items(measures)}

    def init(params: Params, /) -> MonitorState:
        states = {name: part.init(params) for name, part in parts.items()}
        shapes = {name: _shapes(part, params, states[name]) for name, part in parts.items()}
        zeros = {
            name: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape[0])
            for name, shape in shapes.items()
            if shape is not None
        }
        return MonitorState(zeros, tuple(states.values()))

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, MonitorState]:
        found, states = {}, []
        for (name, part), before in zip(parts.items(), state.measure_states, strict=True):
            measured, after = part.update(updates, before, params, **extra_args)
            found[name] = _arrays(measured)
            states.append(after)
        return updates, MonitorState(found, tuple(states))

    return GradientTransformation(init, update)


@named
def measure_with_ema(
    measure: Measure,
    decay: ArrayLike,
    debias: bool = True,
    accumulator_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes a measurement for `monitor`: the moving average of a quantity.

    Args:
        measure: what is measured; booleans and integers are averaged as float32.
        decay: what remains of the average after one update, in [0, 1).
        debias: correct for the start at zero.
        accumulator_dtype: dtype in which the average is stored; None: that of the quantity.

    Returns:
        A transformation from updates to the average, with the state of a chain of a measurement
        and an `ema`.

    Raises:
        ArgumentError: `decay` is out of range.
        ArgumentTypeError: an argument has the wrong type.

    Example:
        >>> tx = measure_with_ema(lambda u: jnp.max(u) > 1.0, decay=0.5)
        >>> state = tx.init(jnp.zeros(1))
        >>> for update in (0.0, 3.0):
        ...     share, state = tx.update(jnp.array([update]), state)
        >>> print(round(float(share), 3))
        0.667
    """
    _check_measure(measure, where="measure_with_ema")
    average = ema(decay, debias, accumulator_dtype)

    def inexact(tree: Any) -> PyTree:
        return jax.tree.map(_inexact, measure(tree))

    def init(params: Params, /) -> OptState:
        return average.init(inexact(params))

    return chain(
        stateless(lambda updates, params: inexact(updates)), replace(average, init=init)
    )


def _shapes(part: GradientTransformation, params: Params, state: OptState) -> Any:
    """Returns the shapes of a measurement of updates like the parameters, and of its state."""
    try:
        return jax.eval_shape(part.update, params, state, params)
    except TypeError as error:
        if "required keyword-only argument" in str(error):
            return None
        raise


def _items(measures: Any) -> list[tuple[str, Any]]:
    if not isinstance(measures, Mapping):
        raise ArgumentTypeError(
            f"measures is {kind_of(measures)}, not a dict",
            where="monitor",
            fix='pass names and functions, such as {"norm": global_norm}',
        )
    for name in measures:
        _check_name(name, where="monitor")
    return list(measures.items())


def _part(name: str, measure: Any) -> GradientTransformation:
    if callable(measure):
        return stateless(lambda updates, params: measure(updates))
    if not hasattr(measure, "update"):
        _check_measure(measure, where=f"monitor({{{name!r}: ...}})")
    return with_extra_args(measure)


def _check_name(name: Any, *, where: str) -> None:
    if not isinstance(name, str):
        raise ArgumentTypeError(
            f"the name {name!r} of a measurement is {kind_of(name)}",
            where=where,
            fix="pass a string",
        )


def _check_measure(measure: Any, *, where: str) -> None:
    if not callable(measure):
        raise ArgumentTypeError(
            f"measure={measure!r} is not callable",
            where=where,
            fix="pass a function from updates to an array",
        )


def _arrays(tree: PyTree) -> PyTree:
    """Returns copies of the leaves as arrays that are not weakly typed.

    So the state keeps its type, and shares no buffer with the parameters.
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf).astype(jnp.asarray(leaf).dtype), tree)


def _inexact(leaf: ArrayLike) -> Array:
    array = jnp.asarray(leaf)
    is_inexact = jnp.issubdtype(array.dtype, jnp.inexact)
    return array.astype(array.dtype if is_inexact else jnp.float32)
