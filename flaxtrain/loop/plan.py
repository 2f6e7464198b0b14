"""What a run will do, before it does it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.data import Stream
from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentTypeError
from flaxtrain.params import Table, overview, readable_bytes
from flaxtrain.spec import OptSpec
from flaxtrain.train import CollectionLoss, Recipe

__all__ = ["Plan", "spec_data", "spec_text"]


@dataclass(frozen=True)
class Plan:
    """Everything that will happen in a run; print it.

    Attributes:
        table: the table of parameters: class, role, shape, decay, trainable.
        horizon: length of the run, of an epoch, of a batch.
        memory: bytes of the state by kind: `parameters`, `slots`, `collections`, `total`.
        loss: the loss, by name.
        spec: the optimizer spec, with all durations resolved.
        learning_rate: the learning rate at the first, middle and last update, by update number.
        batch: shape and dtype of every leaf of a batch.
        notes: what was decided without being asked for, and what looks wrong.
    """

    table: Table
    horizon: Horizon
    memory: dict[str, int]
    loss: str
    spec: str
    learning_rate: dict[int, float]
    batch: dict[str, str]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, recipe: Recipe, stream: Stream, horizon: Horizon, notes: tuple[str, ...]
    ) -> Plan:
        """Makes the plan of a recipe on a data stream, by abstract evaluation only."""
        state = jax.eval_shape(recipe.init)
        kinds = {
            "parameters": state.params,
            "slots": state.opt_state,
            "collections": state.collections,
            "total": state,
        }
        leaves = jax.tree_util.tree_leaves_with_path(recipe.example)
        return cls(
            table=overview(recipe.facts, decay=recipe.decay, trainable=recipe.trains),
            horizon=horizon,
            memory={kind: _bytes(tree) for kind, tree in kinds.items()},
            loss=_loss_name(recipe),
            spec=spec_text(recipe.spec),
            learning_rate=_learning_rates(recipe, horizon),
            batch={
                jax.tree_util.keystr(
                    path, simple=True, separator="/"
                ): f"{leaf.dtype}{list(leaf.shape)}"
                for path, leaf in leaves
            },
            notes=notes + _warnings(recipe, stream),
        )

    def __str__(self) -> str:
        total, length = self.horizon.total_steps, self.horizon.steps_per_epoch
        rates = ", ".join(f"{rate:.3g} at {step}" for step, rate in self.learning_rate.items())
        batch = ", ".join(f"{name} {form}" for name, form in self.batch.items())
        lines = [
            str(self.table),
            "",
            f"loss           {self.loss}",
            f"batch          {batch}",
            f"steps          {'unknown' if total is None else total}"
            f" ({'unknown' if length is None else length} per epoch)",
            f"learning rate  {rates or 'set in the optimizer object'}",
            "state          "
            + ", ".join(f"{k} {readable_bytes(v)}" for k, v in self.memory.items()),
            "spec           " + self.spec.replace("\n", "\n" + " " * 15),
            *(f"note           {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def spec_data(spec: OptSpec) -> dict[str, Any] | None:
    """Returns a spec as JSON data; None when it holds code (a function, a foreign object)."""
    try:
        return spec.to_dict()
    except ArgumentTypeError:
        return None


def spec_text(spec: OptSpec) -> str:
    """Returns a spec as JSON text, or its `repr` when it holds code."""
    data = spec_data(spec)
    return repr(spec) if data is None else json.dumps(data, indent=2)


def _bytes(tree: Any) -> int:
    return sum(
        leaf.size * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if _plain(leaf)
    )


def _plain(leaf: Any) -> bool:
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def _loss_name(recipe: Recipe) -> str:
    if recipe.supervised is not None:
        return recipe.supervised.name
    loss_fn = recipe.loss_fn
    if isinstance(loss_fn, CollectionLoss):
        loss_fn = loss_fn.loss_fn
    return getattr(loss_fn, "__name__", type(loss_fn).__name__)


def _learning_rates(recipe: Recipe, horizon: Horizon) -> dict[int, float]:
    rate = recipe.spec.learning_rate
    if rate is None:
        return {}
    last = max(0, (horizon.total_steps or 1) - 1)
    steps = sorted({0, last // 2, last})
    return {step: float(np.asarray(rate(step) if callable(rate) else rate)) for step in steps}


def _warnings(recipe: Recipe, stream: Stream) -> tuple[str, ...]:
    found = []
    if recipe.padding_problem is not None and stream.may_be_padded:
        found.append(
            f"a batch with fewer rows would be refused: {recipe.padding_problem.found}"
        )
    return tuple(found)
