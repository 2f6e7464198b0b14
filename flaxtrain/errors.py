"""Every error of flaxtrain: what was found, where, and what to do about it.

Each class is also the builtin a caller would expect (`ValueError`, `TypeError`, ...), so code
that does not know flaxtrain still catches it. The message has up to three lines::

    unknown optimizer 'adamm'
      where: OptSpec(optimizer=...)
      fix:   did you mean 'adam'? Known: adam, adamw, sgd
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BatchError",
    "CheckpointError",
    "DataError",
    "DebugError",
    "EmptyDatasetError",
    "FlaxtrainError",
    "LossError",
    "MissingKeyError",
    "ModelError",
    "NonFiniteError",
    "ParameterError",
    "ProcessError",
    "StateError",
    "UnknownNameError",
    "UnknownParameterError",
    "nearest",
    "unknown_name",
]


class FlaxtrainError(Exception):
    """Base of all errors that flaxtrain raises on purpose.

    Args:
        found: what was found, one line, lower case, no full stop.
        where: the place: a parameter path, a batch index, an argument, a file.
        fix: what the caller can do, concretely.
        details: further lines, between the place and the fix.

    Example:
        >>> print(FlaxtrainError("the rate is -1", where="OptSpec", fix="pass a value >= 0"))
        the rate is -1
          where: OptSpec
          fix:   pass a value >= 0
    """

    def __init__(
        self,
        found: str,
        *,
        where: str | None = None,
        fix: str | None = None,
        details: Iterable[str] = (),
    ) -> None:
        self.found, self.where, self.fix, self.details = found, where, fix, tuple(details)
        lines = [] if where is None else [f"where: {where}"]
        lines += [*self.details, *([] if fix is None else [f"fix:   {fix}"])]
        super().__init__("\n  ".join([found, *lines]))


class ArgumentError(FlaxtrainError, ValueError):
    """An argument has a value outside its range."""


class ArgumentTypeError(FlaxtrainError, TypeError):
    """An argument has the wrong type, or is not accepted at all."""


class UnknownNameError(FlaxtrainError, ValueError):
    """A name (optimizer, schedule, argument, task, ...) is not known."""


class ParameterError(FlaxtrainError, ValueError):
    """A parameter, or a tree of parameters, is not what was asked for."""


class UnknownParameterError(ParameterError, KeyError):
    """There is no parameter of that path or name."""

    # KeyError prints the repr of its argument, which would show "\n" instead of line breaks.
    __str__ = Exception.__str__


class ModelError(FlaxtrainError, ValueError):
    """The Linen module can't be used as given (train flag, rng stream, row mask)."""


class LossError(FlaxtrainError, ValueError):
    """The loss or a metric breaks the loss contract, or can't be inferred."""


class DataError(FlaxtrainError, ValueError):
    """The data set can't be used as given."""


class EmptyDatasetError(DataError):
    """The data set yields no batch."""


class BatchError(DataError):
    """One batch differs from the others, or its leaves disagree with one another."""


class MissingKeyError(DataError, KeyError):
    """A batch lacks a key that the model or the loss needs."""

    # KeyError prints the repr of its argument, which would show "\n" instead of line breaks.
    __str__ = Exception.__str__


class StateError(FlaxtrainError, RuntimeError):
    """The training state can't be used: donated, of another structure, or not there yet."""


class NonFiniteError(FlaxtrainError, ArithmeticError):
    """Loss, gradient or a collection became NaN or infinite.

    Args:
        found: see `FlaxtrainError`.
        where: likewise.
        fix: likewise.
        details: likewise.
        diagnosis: what was found out when the batch was run again (a `Diagnosis`).
    """

    def __init__(
        self,
        found: str,
        *,
        where: str | None = None,
        fix: str | None = None,
        details: Iterable[str] = (),
        diagnosis: object = None,
    ) -> None:
        super().__init__(found, where=where, fix=fix, details=details)
        self.diagnosis = diagnosis


class DebugError(FlaxtrainError, RuntimeError):
    """A debugging run has found what it looks for, or didn't get where it should."""


class ProcessError(FlaxtrainError, RuntimeError):
    """The processes of a run can't be joined, or they disagree about what they are to do."""


class CheckpointError(FlaxtrainError, ValueError):
    """A checkpoint is missing, damaged, or does not fit the state it is restored into."""


def nearest(name: str, known: Iterable[str], *, count: int = 1) -> list[str]:
    """Returns the known names closest to `name`, best first, at most `count`.

    The same name in other case comes first, then those that begin with `name`: `cosine` means
    `cosine_decay_schedule`.

    Example:
        >>> nearest("adamm", ["sgd", "adam", "adamw"])
        ['adam']
        >>> nearest("cosine", ["constant_schedule", "cosine_decay_schedule"])
        ['cosine_decay_schedule']
        >>> nearest("BF16", ["bf16", "f16"])
        ['bf16']
    """
    names = sorted(known)
    same = [candidate for candidate in names if candidate.lower() == name.lower()]
    begun = [candidate for candidate in names if len(name) > 2 and candidate.startswith(name)]
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    return list(dict.fromkeys(same + begun + close))[:count]


def unknown_name(
    kind: str, name: str, known: Iterable[str], *, where: str | None = None
) -> UnknownNameError:
    """Builds (does not raise) the error for an unknown name, with the nearest valid one.

    Example:
        >>> print(unknown_name("optimizer", "adamm", ["sgd", "adam"]).fix)
        did you mean 'adam'? Known: adam, sgd
    """
    names = sorted(known)
    guess = nearest(name, names)
    hint = f"did you mean {guess[0]!r}? " if guess else ""
    return UnknownNameError(
        f"unknown {kind} {name!r}",
        where=where,
        fix=f"{hint}Known: {', '.join(names) or '(none)'}",
    )
