"""How many steps one compiled call makes: as asked for, as a checkpoint says, or as timed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flaxtrain.checks import check_choice, check_integer
from flaxtrain.errors import ArgumentError, CheckpointError
from flaxtrain.text import listed, readable_bytes
from flaxtrain.train import Recipe

__all__ = [
    "LONGEST_UNROLLED",
    "ONE_STEP",
    "CallForm",
    "StepTimes",
    "StepsPerCall",
    "best_call_form",
    "check_steps_per_call",
    "next_stop",
]

AUTO = "auto"
_NAME = "steps_per_call"

LONGEST_UNROLLED = 64
"""The most steps that are written out in one program: compiling takes as many times as long."""

_CALL_SECONDS, _STEP_SECONDS = 0.05, 0.005
"""The longest call that `"auto"` chooses, and the longest step that is worth it: what a call
costs beside its steps is about 0.1 ms, so of longer steps it is less than 2%."""

_CALL_BYTES = 64 * 2**20
"""The most that `"auto"` lets the batches of one call take."""

_CALL_UNROLLED = 8
"""The most steps that `"auto"` has written out."""

_TIMED = 5
"""How many steps are timed."""

_CHOSEN = "steps_per_call='auto' has chosen"


@dataclass(frozen=True)
class CallForm:
    """How many steps a call makes, and how the program has them.

    Args:
        steps: at most so many.
        form: `"single"`, one step; `"loop"`, a loop on the device; `"unrolled"`, written out,
            for convolutions on a CPU, which XLA makes several times slower inside of a loop.
    """

    steps: int
    form: Literal["single", "loop", "unrolled"]

    @classmethod
    def of(cls, steps: int, recipe: Recipe) -> CallForm:
        """Returns calls of so many steps in the form that suits a model.

        Raises:
            ArgumentError: more steps are to be written out than can be compiled.
        """
        if steps == 1:
            return ONE_STEP
        if not recipe.unroll:
            return cls(steps, "loop")
        if steps > LONGEST_UNROLLED:
            raise ArgumentError(
                f"steps_per_call={steps}, and on a CPU the steps of a model with convolutions "
                "are written out",
                where="Trainer(steps_per_call=...)",
                fix=f"pass at most {LONGEST_UNROLLED}, or 'auto'",
            )
        return cls(steps, "unrolled")

    @classmethod
    def read(cls, meta: Mapping[str, Any], *, where: str) -> CallForm | None:
        """Returns what a checkpoint says; None where it doesn't say it.

        Args:
            meta: what the checkpoint says.
            where: the checkpoint, for messages.

        Raises:
            CheckpointError: it is said in another form than `as_meta` has.

        Example:
            >>> CallForm.read({"steps_per_call": {"steps": 8, "form": "loop"}}, where="step 3")
            CallForm(steps=8, form='loop')
        """
        said = meta.get(_NAME)
        match said:
            case None:
                return None
            case {"steps": bool()}:
                pass
            case {"steps": 1, "form": "single"} if len(said) == 2:
                return ONE_STEP
            case {"steps": int(steps), "form": "loop" | "unrolled" as form} if len(said) == 2:
                if steps > 0:
                    return cls(steps, form)
        raise CheckpointError(
            f"what the checkpoint says of {_NAME} can't be read: {said!r}",
            where=where,
            fix="use the version of flaxtrain that it was written with, or another workdir; "
            f"a loop of 8 steps is {cls(8, 'loop').as_meta()}",
        )

    def as_meta(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        return asdict(self)


ONE_STEP = CallForm(1, "single")
"""One step per call."""


def check_steps_per_call(value: Any, log_every: int) -> None:
    """Refuses what is no number of steps.

    Raises:
        ArgumentTypeError: it is neither an integer nor a text.
        ArgumentError: it is less than 1, or more than lie between two log points.
        UnknownNameError: it is a text, and not `"auto"`.
    """
    where = "Trainer(steps_per_call=...)"
    if isinstance(value, str):
        check_choice("steps_per_call", value, (AUTO,), where=where)
        return
    check_integer("steps_per_call", value, minimum=1, where=where)
    if value > log_every:
        raise ArgumentError(
            f"steps_per_call={value}, but log_every={log_every}: a call ends at each log point",
            where=where,
            fix=f"pass at most {log_every}, or a larger log_every=",
        )


class StepsPerCall:
    """What a trainer was asked for, and what it has settled on.

    Args:
        asked: a number of steps, or `"auto"`.

    Attributes:
        call_form: what was settled on; None until `"auto"` has chosen.
    """

    def __init__(self, asked: int | str = 1) -> None:
        self.asked = asked
        self.call_form: CallForm | None = None

    def forget(self) -> None:
        """Drops what was settled on: the next run is of another model."""
        self.call_form = None

    def as_meta(self) -> dict[str, Any]:
        """Returns what a checkpoint says about it, as JSON data; nothing while undecided."""
        return {} if self.call_form is None else {_NAME: self.call_form.as_meta()}

    def resume(self, before: CallForm | None) -> list[str]:
        """Takes over what a run was made with that is continued; returns what is to be said.

        Args:
            before: as the checkpoint says it; None where it doesn't.
        """
        if before is None:
            return []
        if self.asked in (AUTO, before.steps):
            self.call_form = before
            said = f"{_CHOSEN} {before.steps}: the run in the workdir has it"
            return [said] if self.asked == AUTO else []
        return [
            f"steps_per_call was {before.steps} and is {self.asked}: what follows agrees up to "
            "rounding, not bit for bit"
        ]

    def settled(self, recipe: Recipe) -> CallForm | None:
        """Returns what a run is to be made with; None: it has to be timed.

        Raises:
            ArgumentError: there are too many steps for a model with convolutions.
        """
        if self.call_form is None and not isinstance(self.asked, str):
            self.call_form = CallForm.of(self.asked, recipe)
        return self.call_form


class StepTimes:
    """The times of the first few steps of a run, each waited for."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def add(self, seconds: float) -> bool:
        """Notes the time of a step; returns whether there are enough."""
        self._seconds.append(seconds)
        return len(self._seconds) >= _TIMED

    @property
    def seconds(self) -> float:
        """The time of a step. The median: a log point or a page fault may be in one of them."""
        return statistics.median(self._seconds)


def best_call_form(
    seconds: float, nbytes: int, cadences: Sequence[tuple[str, int]], recipe: Recipe
) -> tuple[CallForm, str]:
    """Chooses the calls of a run, and returns a sentence about the choice.

    Args:
        seconds: time of a step.
        nbytes: bytes of a batch.
        cadences: the numbers of batches at which calls have to end, and what asks for each.
        recipe: what does not change in the run.
    """
    step = f"a step takes {seconds * 1e3:.2g} ms"
    if seconds > _STEP_SECONDS:
        return ONE_STEP, f"{_CHOSEN} 1: {step}, beside which a call costs next to nothing"
    size = f"a batch {readable_bytes(nbytes)}"
    most = min(int(_CALL_SECONDS / max(seconds, 1e-9)), _CALL_BYTES // max(nbytes, 1))
    if most < 2:
        limit = readable_bytes(_CALL_BYTES)
        return ONE_STEP, f"{_CHOSEN} 1: {size}, and those of a call are to take {limit} at most"
    if recipe.unroll:
        most = min(most, _CALL_UNROLLED)
    common = math.gcd(*(period for _, period in cadences))
    steps = max(n for n in range(1, min(most, common) + 1) if common % n == 0)
    every = listed([f"{name} {period}" for name, period in cadences])
    if steps == 1:
        return ONE_STEP, (
            f"{_CHOSEN} 1: {step}, and no number from 2 to {most} divides {every}; make these "
            "multiples of one number, or pass a number: a call then ends early at each of them"
        )
    call_form = CallForm.of(steps, recipe)
    form = ", written out" if call_form.form == "unrolled" else ""
    return call_form, f"{_CHOSEN} {steps}{form}: {step}, {size}, and {steps} divides {every}"


def next_stop(number: int, cadences: Sequence[int]) -> int:
    """Returns how many batches after number `number` a call has to end.

    Example:
        >>> next_stop(48, (50, 120)), next_stop(100, (50, 120))
        (2, 20)
    """
    return min(period - number % period for period in cadences)
