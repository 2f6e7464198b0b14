"""The end of a run whose step was rejected for good: what happened, and the batch it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from flaxtrain.checks import check_instance
from flaxtrain.data import Stream
from flaxtrain.data.batch_file import save_batch
from flaxtrain.data.host import Place, count_rows, to_host
from flaxtrain.data.local_rows import as_given
from flaxtrain.data.stream import ArrayStream
from flaxtrain.errors import NonFiniteError, StateError
from flaxtrain.loop.in_flight import Dispatched
from flaxtrain.parallel import is_writer
from flaxtrain.spec import OptSpec
from flaxtrain.text import counted, numbered_rows
from flaxtrain.train import NO_AVERAGE, Diagnosis, Recipe, TrainState, diagnose_step
from flaxtrain.train.arguments import check_mask
from flaxtrain.typing import ArrayLike, Batch

if TYPE_CHECKING:
    from flaxtrain.loop.trainer import Trainer

__all__ = ["BAD_BATCHES", "bad_step_error", "diagnose", "for_diagnosis"]

BAD_BATCHES = "bad_batches"
"""The folder in a workdir that the batches of rejected steps go to."""


def diagnose(
    run: Trainer | Recipe,
    state: TrainState | None,
    batch: Batch,
    mask: ArrayLike | None = None,
) -> Diagnosis:
    """Runs one batch again on a state, and returns what is not finite in it, and where.

    Modules are run one operation after the other, which takes a while: compiled code does not
    tell what is in it.

    Args:
        run: a trainer that was fitted, or a recipe.
        state: the state to run it on, which is not changed; None for the trainer's own.
        batch: such as those of the data set, or from `ft.data.load_batch`.
        mask: bool `[rows]`, False for padding rows; None for a full batch.

    Raises:
        StateError: the trainer was not fitted yet.
        ArgumentTypeError: `run` or `state` is something else.
        ArgumentError: the mask does not fit the batch.
        BatchError: it can't be a batch.

    Example:
        >>> import flax.linen as nn, numpy as np, flaxtrain as ft
        >>> model = nn.Sequential([nn.Dense(2), nn.LayerNorm(), nn.Dense(2)])
        >>> data = {"x": np.ones((8, 3), "float32"), "label": np.zeros(8, "int32")}
        >>> trainer = ft.Trainer(model, ft.OptSpec("sgd", learning_rate=0.1), verbose=False)
        >>> state = trainer.fit(data, steps=1).state
        >>> state.params["layers_1"]["scale"] *= np.nan
        >>> print(ft.diagnose(trainer, state, data).parameter)
        layers_1/scale (2 of 2 values)
    """
    recipe: Any = run if isinstance(run, Recipe) else getattr(run, "recipe", run)
    if recipe is None:
        raise StateError(
            "the trainer has no recipe yet", where="diagnose", fix="call fit first"
        )
    state = getattr(run, "state", None) if state is None else state
    for name, value, kind in (("run", recipe, Recipe), ("state", state, TrainState)):
        fix = "pass ft.diagnose(trainer, state, batch), or a recipe in place of it"
        check_instance(name, value, kind, where="diagnose", fix=fix, show=False)
    assert isinstance(state, TrainState)
    place = Place("diagnose(batch=...)")
    data = to_host(batch, place)
    if mask is not None:
        check_mask(mask, (count_rows(data, place),), where="diagnose(mask=...)")
    return diagnose_step(recipe.at(int(state.step)), state, data, mask)


def bad_step_error(
    recipe: Recipe,
    state: TrainState,
    stream: Stream,
    step: Dispatched,
    workdir: Path | None,
) -> NonFiniteError:
    """Looks at the step that ended a run, saves its batch, and returns the error to raise.

    Args:
        recipe: that of the step.
        state: the last good state, or what `for_diagnosis` leaves of it.
        stream: the training data.
        step: the step, with its batch.
        workdir: where the batch and the report are saved; None: nowhere.
    """
    diagnosis = diagnose_step(recipe, state, step.data, step.mask)
    what = diagnosis.what if diagnosis.was_run else f"{_UNKNOWN}; {diagnosis.what}"
    facts = _Facts.of(state, stream, step)
    details = [*diagnosis.lines]
    if workdir is not None and is_writer():
        details.append(_saved(workdir, step, diagnosis, facts))
    many = facts.skips > 1 or diagnosis.spike is not None
    found = f"{what}; rejected in a row: {counted(facts.skips, 'step')}"
    return NonFiniteError(
        found if many else what,
        where=facts.where(diagnosis),
        details=details,
        fix=_fix(recipe.spec, diagnosis),
        diagnosis=diagnosis,
    )


def for_diagnosis(state: TrainState) -> TrainState:
    """Returns what is read of a state to look at a step: not slots, averages or sums."""
    sums = state.accumulated
    if sums:  # several batches make an update
        sums = sums.replace(grads=())
    return state.replace(opt_state=(), ema=NO_AVERAGE, rounding_carry={}, accumulated=sums)


_UNKNOWN = "the loss, its gradient or a collection became NaN or infinite"


@dataclass(frozen=True)
class _Facts:
    """What is known about the step beside its numbers.

    `examples` are the numbers of the examples in the batch, where they have numbers.
    """

    step: int
    skips: int
    number: int
    epoch: int
    index: int
    examples: tuple[int, ...]

    @classmethod
    def of(cls, state: TrainState, stream: Stream, step: Dispatched) -> _Facts:
        updates, skips = jax.device_get((state.step, state.counters.consecutive_skipped))
        return cls(
            step=int(updates),
            skips=int(skips),
            number=step.number,
            epoch=step.epoch,
            index=step.place,
            examples=_examples(stream, step.epoch, step.place),
        )

    def where(self, diagnosis: Diagnosis) -> str:
        """Returns the place of the batch, with the examples that hold bad values."""
        rows = sorted({row for entry in diagnosis.inputs for row in entry.rows})
        known = [self.examples[row] for row in rows if row < len(self.examples)]
        which = f", {numbered_rows(tuple(known), 'example')}" if known else ""
        return (
            f"batch {self.number} of the run, after {counted(self.step, 'update')} "
            f"(epoch {self.epoch}, batch {self.index}{which})"
        )


def _examples(stream: Stream, epoch: int, index: int) -> tuple[int, ...]:
    stream = as_given(stream)
    if not isinstance(stream, ArrayStream):
        return ()
    order, rows = stream.source.order(epoch), stream.rows
    return tuple(map(int, order[index * rows : (index + 1) * rows]))


def _saved(workdir: Path, step: Dispatched, diagnosis: Diagnosis, facts: _Facts) -> str:
    """Saves batch and report; returns a line that says where, or why not."""
    path = workdir / BAD_BATCHES / f"step-{facts.step}-batch-{facts.number}.npz"
    report: Mapping[str, Any] = {
        "step": facts.step,
        "batch": facts.number,
        "epoch": facts.epoch,
        "index": facts.index,
        "examples": facts.examples,
        "rejected_in_a_row": facts.skips,
        "diagnosis": diagnosis.to_dict(),
        "text": str(diagnosis),
    }
    try:
        save_batch(path, step.data, step.mask)
        path.with_suffix(".json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    except Exception as error:  # whatever it is, the report must not be lost for it
        why = str(error).partition("\n")[0]
        return f"saved: the batch could not be saved, {type(error).__name__}: {why}"
    return f"saved: {path}, read it with ft.data.load_batch"


def _fix(spec: OptSpec, diagnosis: Diagnosis) -> str:
    otherwise = (
        "skip such steps with OptSpec(nonfinite='skip')"
        if spec.nonfinite == "raise"
        else f"let more of them be skipped in a row than max_skips={spec.max_skips}"
    )
    advice = f"lower the learning rate, set clip_norm, look at that batch, or {otherwise}"
    if diagnosis.weights_are_bad:
        advice = "give each example a finite weight >= 0"
    elif any(entry.bad for entry in diagnosis.inputs):
        advice = f"repair those rows, or {otherwise}"
    elif diagnosis.is_finite and diagnosis.spike is not None:
        advice = (
            "values that stay high are no spikes: lower the learning rate, pass a larger z "
            "or max_skips=None"
        )
    return f"trainer.state is the last good state; {advice}"
