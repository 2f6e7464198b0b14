"""Writes `docs/parity.md`, how close every row is to Optax: `make parity`, half an hour.

Both libraries get the same recorded gradients. Deviations are the largest over leaves of
`max|a - b| / max|a|`, over all updates, the final parameters and the final state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxtrain import optim
from tests.cases import CASES, Case
from tests.cases.base import PREFIX_MASK, halving
from tests.parity.names import name_tables
from tests.runs import FLOAT32_BAR, at, deviation, differing_leaves, moved, run, ulps, walk

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parity.md"
STEPS = 1000
FEW = 20
"""Updates in bfloat16: beyond, single last places of difference feed on themselves."""

Pair = tuple[Any, Any]

HEAD = """# Parity with Optax

Made by `make parity`; `tests/parity/test_report.py` checks that no name or row is missing and
that every figure keeps its bar. The column float32 is asserted in `make test` as well.
"""

COLUMNS = ("row", "float64", "float32", "noise", "bitwise", "eager", "schedule", "mask", "bf16")

LEGEND = f"""## Numbers

{STEPS:,} updates with recorded gradients over a matrix, a vector, a scalar, a convolution
kernel and a complex vector; learning rate 0.01. A figure is `max|a - b| / max|a|`, the largest
over the leaves of parameters, state and all updates; 0 is bit for bit.

- float64, float32: under `jit`. Bars: 1e-12, and the larger of {FLOAT32_BAR:.0e} and 3 times
  *noise*.
- noise: how far Optax gets from itself when every gradient moves by one last place (measured
  where another figure is above {FLOAT32_BAR:.0e}).
- bitwise: leaves that are equal bit for bit in float32, of all.
- eager: float32 without `jit`; the bar of float32. {FEW} updates where Optax compiles something
  at every call (conditions), which takes it a second each time.
- schedule: float32 under `jit`, the learning rate a function of the count; mask: inside
  `masked`, on a part of the tree; the bar of float32. "only here": Optax raises. A dash: there
  is no learning rate that could be a schedule.
- bf16: {FEW} updates in bfloat16 under `jit`, in last places of the leaf's largest entry. The
  bar is 2.
"""


def measured(case: Case) -> dict[str, str]:
    """Returns one row of the table."""
    if "in_optax" in case.lacks:
        return {"row": case.name, **dict.fromkeys(COLUMNS[1:], "only here")}
    single = Compared(case, jnp.float32, *pair(case))
    with jax.enable_x64(True):
        double = Compared(case, jnp.float64, *pair(case)).deviation
    params, low = case.recorded(FEW, jnp.bfloat16)
    bf16 = [walk(tx, params, low, jit=True, extra=case.extra) for tx in pair(case)]
    few = at(single.grads, slice(FEW if compiles_at_every_call(case) else STEPS))
    eager = [
        stacked(*walk(tx, single.params, few, jit=False, extra=case.extra)) for tx in pair(case)
    ]
    found = {
        "float64": figure(double),
        "float32": figure(single.deviation),
        "eager": figure(deviation(*eager)),
        "schedule": variant(case, lambda lib: case.build(lib, lambda c: 1e-2 * halving(c))),
        "mask": variant(case, lambda lib: lib.masked(case.build(lib, 1e-2), PREFIX_MASK)),
    }
    loud = any(float(value) > FLOAT32_BAR for value in found.values() if value[0].isdigit())
    leaves = len(jax.tree.leaves(single.ours))
    return found | {
        "row": case.name,
        "noise": figure(noise(case, single)) if loud else "",
        "bitwise": f"{leaves - single.differing}/{leaves}",
        "bf16": f"{ulps(*bf16):g}",
    }


def stacked(params: Any, state: Any, updates: list[Any]) -> Any:
    """Returns the parts of a run with all updates of a leaf in one array, as `run` does."""
    return params, state, jax.tree.map(lambda *leaves: np.stack(leaves), *updates)


def compiles_at_every_call(case: Case) -> bool:
    """Whether Optax compiles something at every eager call, which takes a second each time."""
    params, grads = case.recorded(3, jnp.float32)
    tx, compiled = case.judge(), []
    state = tx.init(params)

    def listen(event: str, seconds: float, **kwargs: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    for index in range(3):
        compiled.clear()
        grad = at(grads, index)
        _, state = tx.update(grad, state, params, **case.extra(grad))
    jax.monitoring.unregister_event_duration_listener(listen)
    return bool(compiled)


class Compared:
    """Both libraries over the same gradients."""

    def __init__(self, case: Case, dtype: Any, ours: Any, judge: Any) -> None:
        self.params, self.grads = case.recorded(STEPS, dtype)
        self.ours, self.judge = (
            run(tx, self.params, self.grads, case.extra) for tx in (ours, judge)
        )
        self.deviation = deviation(self.ours, self.judge)
        self.differing = len(differing_leaves(self.ours, self.judge))


def pair(case: Case) -> Pair:
    return case.ours(), case.judge()


def noise(case: Case, single: Compared) -> float:
    return deviation(
        run(case.judge(), single.params, moved(single.grads), case.extra), single.judge
    )


def variant(case: Case, build: Callable[[Any], Any]) -> str:
    """Returns the deviation of a variant of the row, or which library can't do it."""
    params, grads = case.recorded(2, jnp.float32)
    works = [_works(case, lambda lib=lib: build(lib), params, grads) for lib in (optim, optax)]
    if not all(works):
        return "only here" if works[0] else "-"
    return figure(Compared(case, jnp.float32, build(optim), build(optax)).deviation)


def _works(case: Case, make: Callable[[], Any], params: Any, grads: Any) -> bool:
    try:
        run(make(), params, grads, case.extra)
    except (TypeError, ValueError, AttributeError, IndexError):
        return False
    return True


def figure(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def lines(rows: list[dict[str, str]]) -> Iterator[str]:
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    for row in rows:
        yield f"| {' | '.join(row[column] for column in COLUMNS)} |"


def main() -> None:
    """Measures every row and writes the page."""
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # `masked` around an optimizer
        for case in CASES:
            rows.append(measured(case))
            print(" | ".join(rows[-1][column] for column in COLUMNS), flush=True)
    stack = ", ".join(f"{name} {version(name)}" for name in ("jax", "optax"))
    numbers = "\n".join([LEGEND, f"Measured with {stack}, on CPU.", "", *lines(rows)])
    PAGE.write_text("\n".join([HEAD, name_tables(), numbers, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
