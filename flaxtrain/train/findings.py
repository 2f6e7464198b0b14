"""What is found out about a rejected step, as values that print."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from flaxtrain.text import numbered_rows
from flaxtrain.train.replay import BadModule, place_in_stack

__all__ = ["BadArray", "Diagnosis", "EntryStats", "SpikeFound"]


@dataclass(frozen=True)
class BadArray:
    """A parameter, gradient or collection that holds values that are not finite.

    Attributes:
        name: its path.
        bad: number of such values.
        size: number of all values.
        layer: the place in its stack where the first one is, for what `nn.scan` or `nn.vmap`
            stacked; else empty.
        layers: the size of that stack.
    """

    name: str
    bad: int
    size: int
    layer: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()

    def __str__(self) -> str:
        place = place_in_stack(self.layer, self.layers)
        return f"{self.name}{place} ({self.bad:,} of {self.size:,} values)"


@dataclass(frozen=True)
class EntryStats:
    """Statistics of one entry of a batch; those of values that are not finite are left out.

    Attributes:
        name: its path in the batch; empty for a batch that is one array.
        shape: with the rows first.
        dtype: by name.
        minimum: NaN where there is no finite value.
        maximum: likewise.
        mean: likewise.
        bad: number of values that are not finite.
        rows: the rows that hold them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    minimum: float
    maximum: float
    mean: float
    bad: int
    rows: tuple[int, ...]

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        text = (
            f"{self.name or 'the batch'} {shape} {self.dtype}, {self.minimum:.6g} to "
            f"{self.maximum:.6g}, mean {self.mean:.6g}"
        )
        if not self.bad:
            return text
        total = math.prod(self.shape)
        return (
            f"{text}; {self.bad:,} of {total:,} values are not finite, in "
            f"{numbered_rows(self.rows)}"
        )


@dataclass(frozen=True)
class SpikeFound:
    """A finite step that the spike rule rejected.

    Attributes:
        of: what the rule looks at.
        value: of this step.
        median: of the window.
        z: robust standard deviations above the median.
        limit: what the rule allows.
    """

    of: str
    value: float
    median: float
    z: float
    limit: float

    def __str__(self) -> str:
        return (
            f"{self.of} {self.value:.6g} is {self.z:.3g} robust standard deviations above the "
            f"median {self.median:.6g} ({self.limit:g} are allowed)"
        )


@dataclass(frozen=True)
class Diagnosis:
    """Why a step was rejected.

    Attributes:
        step: number of updates that the state had.
        loss: of the batch, or of its first bad microbatch; None where it is not known.
        weight: the total weights of the loss's terms.
        loss_scale: what the loss was multiplied by; None where there is no dynamic scale.
        loss_scale_minimum: the lowest value that the scale takes; likewise.
        parameter: the first parameter that is itself not finite, in the order of use.
        parameters: how many are.
        gradient: the first parameter whose gradient is not finite, in the order of use.
        nearest_gradient: the one nearest to the loss.
        gradients: how many are.
        trained: number of trained parameters.
        modules: where values stop being finite, in the order of execution.
        collections: the collections that the step would have made not finite.
        inputs: statistics of the batch.
        spike: what the spike rule says about a finite step, or None.
        microbatch: the number of the first bad microbatch; None where a batch is not split.
        notes: what could not be looked at, and why.
    """

    step: int
    loss: float | None = None
    weight: tuple[float, ...] = ()
    loss_scale: float | None = None
    loss_scale_minimum: float | None = None
    parameter: BadArray | None = None
    parameters: int = 0
    gradient: BadArray | None = None
    nearest_gradient: BadArray | None = None
    gradients: int = 0
    trained: int = 0
    modules: tuple[BadModule, ...] = ()
    collections: tuple[BadArray, ...] = ()
    inputs: tuple[EntryStats, ...] = ()
    spike: SpikeFound | None = None
    microbatch: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def module(self) -> BadModule | None:
        """The first module with finite arguments and a result that is not finite."""
        return self.modules[0] if self.modules else None

    @property
    def weights_are_bad(self) -> bool:
        """Whether a total weight of the loss is negative or not finite."""
        return any(not 0 <= weight < math.inf for weight in self.weight)

    @property
    def was_run(self) -> bool:
        """Whether loss and gradient could be formed again; else `notes` says why not."""
        return self.loss is not None

    @property
    def is_void(self) -> bool:
        """Whether the batch has no weight, so that there is no step to make."""
        return self.was_run and not any(self.weight)

    @property
    def _loss_is_finite(self) -> bool:
        return self.loss is None or self.is_void or math.isfinite(self.loss)

    @property
    def is_finite(self) -> bool:
        """Whether the batch was run again, and nothing found that is not finite."""
        found = self.parameter or self.gradient or self.modules or self.collections
        finite = self.was_run and self._loss_is_finite and not self.weights_are_bad
        return finite and not found

    @property
    def what(self) -> str:
        """What happened, in one line."""
        if self.weights_are_bad:
            weights = ", ".join(f"{weight:g}" for weight in self.weight)
            return f"the weights of the loss add up to {weights}"
        if self.parameter is not None:
            return "a parameter is NaN or infinite"
        if not self._loss_is_finite:
            given = any(entry.bad for entry in self.inputs)
            batch = ": the batch holds values that are not finite" if given else ""
            return f"the loss became NaN or infinite{batch}"
        if self.gradient is not None:
            return f"the gradient became NaN or infinite, the loss is {self.loss or 0:.6g}"
        if self.collections:
            return "a collection became NaN or infinite, loss and gradient are finite"
        if self.modules:
            return "a module's output became NaN or infinite, loss and gradient are finite"
        if self.spike is not None:
            return f"{self.spike}"
        if not self.was_run:
            return "the batch could not be run again"
        if self.is_void:
            return "the batch has no weight, so that no step is made of it"
        return "everything is finite when the batch is run again"

    @property
    def lines(self) -> tuple[str, ...]:
        """Everything else, one thing a line."""
        lines = [*self._parameter_lines(), *self._module_lines()]
        lines += [f"collection: {found}" for found in self.collections[:3]]
        if len(self.collections) > 3:
            lines.append(f"collection: and {len(self.collections) - 3} more")
        if self.microbatch is not None and not self.is_finite:
            lines.append(f"microbatch: {self.microbatch}, the first bad one")
        if self.loss_scale is not None and self.loss_scale_minimum is not None:
            lines.append(
                f"loss scale: {self.loss_scale:g}, its minimum is {self.loss_scale_minimum:g}"
            )
        lines += [f"batch: {entry}" for entry in _shown(self.inputs)]
        return (*lines, *(f"note: {note}" for note in self.notes))

    def _parameter_lines(self) -> list[str]:
        if self.parameter is not None:
            more = f"; {self.parameters} parameters are" if self.parameters > 1 else ""
            return [f"parameter: {self.parameter} is itself not finite{more}"]
        if self.gradient is None or self.nearest_gradient is None:
            return []
        first = f"gradient: of {self.gradients} of {self.trained} parameters not finite"
        if self.gradients == 1:
            return [f"{first}: {self.gradient}"]
        return [f"{first}, first {self.gradient}, nearest to the loss {self.nearest_gradient}"]

    def _module_lines(self) -> list[str]:
        if self.modules:
            return [f"module: {found}" for found in self.modules[:3]]
        looked = self.was_run and not any("modules" in note for note in self.notes)
        if self.is_finite or not looked:
            return []
        if any(entry.bad for entry in self.inputs):
            return ["module: none, what is not finite was in the batch already"]
        if not self._loss_is_finite:
            return ["module: all outputs are finite, the loss function itself is not"]
        if self.gradient is not None and self.parameter is None:
            return ["module: all outputs are finite, the gradient is not"]
        return []

    def __str__(self) -> str:
        return "\n  ".join([self.what, *self.lines])

    def to_dict(self) -> dict[str, Any]:
        """Returns the same as JSON data; numbers that JSON has not are texts."""
        return _as_json({**dataclasses.asdict(self), "what": self.what})


def _shown(inputs: tuple[EntryStats, ...]) -> tuple[EntryStats, ...]:
    """Returns the first eight entries, those with bad values before all others."""
    return tuple(sorted(inputs, key=lambda entry: entry.bad == 0))[:8]


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(child) for key, child in value.items()}
    if isinstance(value, (tuple, list)):
        return [_as_json(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
