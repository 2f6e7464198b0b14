"""How a training step is made, beside what the optimizer does."""

from __future__ import annotations

from dataclasses import dataclass, field

from flaxtrain.answering import answering_class
from flaxtrain.errors import ArgumentTypeError
from flaxtrain.params import selector
from flaxtrain.precision import UNSCALED, DynamicScale, LossScale, NoScale, Policy, Precision
from flaxtrain.spec.validate import SPEC_ARGUMENTS
from flaxtrain.text import kind_of

__all__ = ["StepOptions"]


@answering_class(**SPEC_ARGUMENTS)
@dataclass(frozen=True)
class StepOptions:
    """How a training step is made.

    Args:
        loss_scale: what the loss is multiplied by while it is differentiated; None, the
            default, is `DynamicScale()` where the precision has float16, else nothing.
        precision: the dtypes of the model: a policy such as `"bf16"`, or a `Precision`.

    Attributes:
        notes: what was decided without being asked for, as sentences.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        FlaxtrainError: the policy, or a selector in it, can't be read.

    Example:
        >>> import flaxtrain as ft
        >>> StepOptions(ft.FixedScale(1024.0), "bf16").precision
        Precision('p=f32,c=bf16,o=f32')
    """

    loss_scale: LossScale | None = None
    precision: str | Policy | Precision = "f32"
    notes: tuple[str, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        precision = Precision.of(self.precision)
        for choice, _ in precision.rules:
            selector(choice, where=f"Precision(overrides={{{choice!r}: ...}})")
        object.__setattr__(self, "precision", precision)
        if self.loss_scale is None:
            default = DynamicScale() if precision.needs_loss_scale else UNSCALED
            object.__setattr__(self, "loss_scale", default)
            if precision.needs_loss_scale:
                note = f"loss_scale= was not given, and float16 needs one: {default!r}"
                object.__setattr__(self, "notes", (note,))
        if isinstance(self.loss_scale, type) or not isinstance(self.loss_scale, LossScale):
            raise ArgumentTypeError(
                f"loss_scale={self.loss_scale!r} is {kind_of(self.loss_scale)}, "
                "not a loss scale",
                where="loss_scale=...",
                fix="pass ft.NoScale(), ft.FixedScale(2.0**15) or ft.DynamicScale()",
            )

    def __hash__(self) -> int:
        # A dynamic scale holds arrays, which don't hash.
        return hash((type(self.loss_scale), self.precision))

    def describe(self) -> str:
        """Returns what differs from a plain step, as text; empty where nothing does.

        Example:
            >>> import flaxtrain as ft
            >>> StepOptions(ft.FixedScale(2.0)).describe()
            'loss scale FixedScale(value=2.0)'
        """
        parts = []
        if not isinstance(self.loss_scale, NoScale):
            parts.append(f"loss scale {self.loss_scale!r}")
        return "; ".join(parts)
