"""Whether the rows of a batch are by themselves, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from flaxtrain.data import pad
from flaxtrain.loop.debug.check_report import Observation
from flaxtrain.loop.debug.check_subject import Examined, Program
from flaxtrain.loop.row_check import column_of, exchanges, nearly_equal
from flaxtrain.typing import HostTree

__all__ = ["evaluations", "rows_in_training"]

_FIX = (
    "look for statistics, sums or attention over the batch axis, and for reshapes that mix it "
    "with others; it is right where examples are to be compared (contrastive losses)"
)


def rows_in_training(examined: Examined) -> Observation:
    """Looks whether an output in training depends on other rows; BatchNorm's is expected to."""
    name = "rows in training"
    run, seen = examined.outputs()
    found = _leak(run, examined.batch, name)
    if found.verdict != "finding" or not seen.batch_norm:
        return found
    without, _ = examined.outputs(hold=True)
    rest = _leak(without, examined.batch, name)
    if rest.verdict == "finding":
        return Observation(name, "finding", f"{rest.seen}, BatchNorm aside", _FIX)
    return Observation(name, "expected", f"{found.seen}: BatchNorm")


def _leak(run: Program, data: HostTree, name: str) -> Observation:
    """Exchanges rows for others, and compares what the rows that stay have as output.

    For any two rows, in some run the one is exchanged and the other stays. One program on the
    same values gives the same bits, so a single bit that differs is a leak.
    """
    rows = jax.tree.leaves(data)[0].shape[0]
    others = jax.tree.map(lambda leaf: np.roll(leaf, 1, axis=0), data)
    if rows < 2 or _same(data, others):
        seen = "there is one row only" if rows < 2 else "all rows are equal"
        return Observation(name, "not looked at", seen)
    before = run(data)
    if not before:
        return Observation(name, "not looked at", "no output has a row for each example")
    leaks, largest = np.zeros(rows, bool), 0.0
    for exchanged in exchanges(rows):
        mixed = jax.tree.map(
            lambda leaf, other, e=exchanged: np.where(column_of(e, leaf), other, leaf),
            data,
            others,
        )
        for one, other in zip(before, run(mixed), strict=True):
            for row in np.flatnonzero(~exchanged):
                if one[row].tobytes() != other[row].tobytes():
                    leaks[row] = True
                    largest = max(largest, _gap(one[row], other[row]))
    if not leaks.any():
        return Observation(name, "ok", "the output of a row depends on that row only")
    seen = (
        f"the output of {leaks.sum()} of {rows} rows changes when other rows are exchanged, by "
        f"up to {largest:.2g}"
    )
    return Observation(name, "finding", seen, _FIX)


def evaluations(examined: Examined) -> Iterator[Observation]:
    """Yields what evaluations depend on, and should not: chance, other rows, order, padding."""
    first = examined.evaluated(examined.batch)
    again = _again(examined, first)
    yield again
    names = ("rows in evaluation", "order of rows", "padding")
    if again.verdict == "finding":
        yield from (Observation(n, "not looked at", "evaluations differ anyway") for n in names)
        return
    apart = _leak(lambda batch: examined.evaluated(batch)[1], examined.batch, names[0])
    yield apart
    yield _in_another_order(examined, first, names[1])
    yield _padded(examined, first, names[2], apart)


def _in_another_order(examined: Examined, first: Any, name: str) -> Observation:
    if examined.rows < 2:
        return Observation(name, "not looked at", "there is one row only")
    turned = jax.tree.map(lambda leaf: np.roll(leaf, 1, axis=0), examined.batch)
    metrics, outputs = examined.evaluated(turned)
    if _equal(first, (metrics, [np.roll(output, -1, axis=0) for output in outputs])):
        seen = "another order gives the same numbers, but for roundings"
        return Observation(name, "ok", seen)
    fix = "look for positions along the batch axis, and for statistics over it"
    return Observation(name, "finding", "in another order, rows have other outputs", fix)


def _padded(examined: Examined, first: Any, name: str, apart: Observation) -> Observation:
    problem, rows = examined.recipe.padding_problem, examined.rows
    if problem is not None:
        return Observation(name, "not looked at", problem.found)
    if apart.verdict == "finding":
        return Observation(name, "not looked at", "rows depend on one another anyway")
    padded = pad(examined.batch, rows + max(1, rows // 4))
    metrics, outputs = examined.evaluated(padded.data, padded.mask)
    if _equal(first, (metrics, [output[:rows] for output in outputs])):
        return Observation(name, "ok", "padding changes nothing, but for roundings")
    fix = "form every mean with the row mask: ft.Mean.of(values, model.mask)"
    return Observation(name, "finding", "rows of padding change loss, metrics or outputs", fix)


def _again(examined: Examined, first: Any) -> Observation:
    name = "evaluation again"
    second = examined.evaluated(examined.batch)
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    if any(one.tobytes() != other.tobytes() for one, other in pairs):
        return Observation(
            name,
            "finding",
            "two evaluations of the same batch differ",
            "look for callbacks that draw random numbers or keep a state",
        )
    if _is_drawn_anew(examined):
        return Observation(
            name,
            "finding",
            "the model is another one each time that it is compiled",
            "draw random numbers with self.make_rng, not with numpy or a global state",
        )
    return Observation(name, "ok", "two evaluations are equal bit for bit")


def _is_drawn_anew(examined: Examined) -> bool:
    """Whether tracing the evaluation twice gives two programs: numbers drawn while tracing."""
    texts = []
    for _ in range(2):
        lowered = jax.jit(examined.evaluation()).lower(examined.state, examined.batch, None)
        texts.append(lowered.as_text())
    # A callback has an address of its own in each program.
    return texts[0] != texts[1] and "callback" not in texts[0]


def _equal(one: Any, other: Any) -> bool:
    """Whether metrics and outputs are equal but for roundings.

    Another place in the batch, or another size of the batch, may sum in another order; half
    the digits of the dtype is far above that, and far below any real dependence.
    """
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(nearly_equal(np.atleast_1d(a), np.atleast_1d(b)) for a, b in pairs)


def _same(one: HostTree, other: HostTree) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def _gap(one: Any, other: Any) -> float:
    if one.dtype.kind not in "fc":
        one, other = one.astype(np.float32), other.astype(np.float32)
    return float(np.max(np.abs(one - other)))
