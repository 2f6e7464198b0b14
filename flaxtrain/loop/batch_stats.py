"""Statistics of BatchNorm for the averaged weights, formed anew over batches of data."""

from __future__ import annotations

import itertools
from typing import Any

import jax

from flaxtrain.checks import check_integer
from flaxtrain.data import Stream, prefetch
from flaxtrain.errors import DataError, NonFiniteError, StateError
from flaxtrain.loop.evaluation import checked, for_evaluation, with_weights
from flaxtrain.loop.in_flight import Bounded
from flaxtrain.loop.padding import checked_mask
from flaxtrain.loop.several_processes import agree_on_batches
from flaxtrain.loop.step_programs import seeing_all
from flaxtrain.parallel.compile import Compiled
from flaxtrain.parallel.engine import Engine
from flaxtrain.train import BatchStatistics, Recipe, TrainState, add_batch, no_batches
from flaxtrain.tree import all_finite
from flaxtrain.typing import Array, ArrayLike, Batch

__all__ = ["statistics_program", "with_batch_stats"]

WHERE = "recompute_batch_stats"


def with_batch_stats(
    recipe: Recipe,
    program: Compiled,
    engine: Engine,
    state: TrainState,
    stream: Stream,
    count: int | None,
) -> TrainState:
    """Returns the state whose averaged weights have statistics of their own.

    Evaluation with the averaged weights reads them. If training goes on, so does the average of
    the statistics, from there.

    Args:
        recipe: what does not change in the run.
        program: see `statistics_program`.
        engine: where it runs.
        state: the training state. Its parameters and collections stay as they are.
        stream: the data.
        count: number of batches; None: one epoch.

    Raises:
        ArgumentError: `count` is less than 1.
        StateError: there is no average (yet), or none with statistics.
        DataError: there are fewer batches than `count`.
        ModelError: the model has no BatchNorm.
        NonFiniteError: a statistic is NaN or infinite.
        ProcessError: not all processes have equally many batches.
    """
    if count is not None:
        check_integer("n_batches", count, minimum=1, where=WHERE)
    averaged = with_weights(state, "ema", where=WHERE)
    if state.collections and not state.ema.collections:
        raise StateError(
            f"{state.ema.rule!r} is evaluated with the statistics of training, and has none",
            where=WHERE,
            fix="leave the call out, or pass OptSpec(ema=ft.Ema(...)) or ft.Swa(...)",
        )
    own = _formed(recipe, program, engine, for_evaluation(averaged), stream, count)
    return state.replace(ema=state.ema.with_collections(own))


def statistics_program(recipe: Recipe, engine: Engine) -> Compiled:
    """Returns the compiled function that adds a batch, and says whether all is finite."""

    recipe = seeing_all(recipe, engine)

    def add(
        state: TrainState, found: BatchStatistics, batch: Batch, mask: ArrayLike | None
    ) -> tuple[BatchStatistics, Array]:
        found = add_batch(recipe, state, found, batch, mask)
        return found, all_finite(found.values)

    return engine.compiled(add, donate=(1,))


def _formed(
    recipe: Recipe,
    program: Compiled,
    engine: Engine,
    state: TrainState,
    stream: Stream,
    count: int | None,
) -> dict[str, Any]:
    first, state = stream.example(), engine.place_state(state)
    none = no_batches(recipe, state, first.data, checked_mask(recipe, stream, first))
    found = engine.place_state(none)
    in_flight: Bounded[Array] = Bounded()
    finite: Any = True  # there is a first batch
    known = stream.batches_per_epoch
    agree_on_batches(known if known is None or count is None else min(known, count), WHERE)
    batches = itertools.islice(checked(recipe, stream.epoch(0), WHERE), count)
    seen = 0
    for batch in prefetch(batches, program.place):
        seen += 1
        mask = checked_mask(recipe, stream, batch)
        found, finite = program(state, found, batch.data, mask)
        for oldest in in_flight.add(finite):
            oldest.block_until_ready()
    agree_on_batches(seen, WHERE, list(in_flight))
    if count is not None and seen < count:
        raise DataError(
            f"there are {seen} batches, and {count} are asked for",
            where=f"{WHERE}(n_batches={count})",
            fix="pass a smaller n_batches, or None for all of them",
        )
    if not jax.device_get(finite):
        raise NonFiniteError(
            "a statistic became NaN or infinite",
            where=WHERE,
            fix="look for such values in the data; the state is as it was",
        )
    return found.values
