"""How many batches, or parts of one, an optimizer update is made of."""

from __future__ import annotations

from dataclasses import dataclass

from flaxtrain.answering import answering
from flaxtrain.checks import INT32_MAX, check_integer
from flaxtrain.errors import BatchError
from flaxtrain.spec.declaration import Declaration, plain

__all__ = ["AccumulateBatches"]


@dataclass(frozen=True, init=False, repr=False, eq=False)
class AccumulateBatches(Declaration):
    """Makes one optimizer update of several successive batches.

    The update is that of one batch that holds all their rows. A batch with a loss or gradient
    that is not finite is left out, and the next one takes its place. The sums are float32 at
    least, and as large as the trained parameters, once for each term of the loss.

    `OptSpec(accumulate=4)` splits each batch instead, and keeps nothing from step to step.

    Args:
        count: batches to an update, at least 1.
        microbatches: parts that each of these batches is split into, at least 1.

    Raises:
        ArgumentError: a number is less than 1, or no int32.
        ArgumentTypeError: a number is not an integer.

    Example:
        >>> AccumulateBatches(4)
        AccumulateBatches(4)
        >>> AccumulateBatches(4).count
        4
    """

    count: int
    microbatches: int

    @answering
    def __init__(self, count: int, *, microbatches: int = 1) -> None:
        where = f"AccumulateBatches({count!r})"
        check_integer("count", count, minimum=1, maximum=INT32_MAX, where=where)
        check_integer("microbatches", microbatches, minimum=1, where=where)
        self._set(count=plain(count), microbatches=plain(microbatches))

    def check_rows(self, rows: int) -> None:
        """Refuses a number of rows that doesn't divide into microbatches.

        Raises:
            BatchError: it does not.
        """
        if rows % self.microbatches:
            raise BatchError(
                f"batches of {rows} rows do not divide into {self.microbatches} microbatches",
                where="accumulate="
                + (f"{self.microbatches}" if self.count == 1 else f"{self!r}"),
                fix=f"choose a batch size that is a multiple of {self.microbatches}",
            )

    def describe(self, rows: int) -> str:
        """Returns what differs from one update for each batch, as text; empty if nothing does.

        Args:
            rows: of a batch.

        Example:
            >>> AccumulateBatches(2, microbatches=4).describe(32)
            'an update of 2 batches; 4 microbatches of 8 rows each'
        """
        parts = []
        if self.count > 1:
            parts.append(f"an update of {self.count} batches")
        if self.microbatches > 1:
            size = rows // self.microbatches
            parts.append(f"{self.microbatches} microbatches of {size} rows each")
        return "; ".join(parts)


def as_accumulation(accumulate: int | AccumulateBatches, *, where: str) -> AccumulateBatches:
    """Returns the argument `accumulate` of a spec in its long form.

    Raises:
        ArgumentError: a number less than 1.
        ArgumentTypeError: something else than an integer or `AccumulateBatches`.

    Example:
        >>> as_accumulation(4, where="OptSpec")
        AccumulateBatches(1, microbatches=4)
    """
    if isinstance(accumulate, AccumulateBatches):
        return accumulate
    check_integer("accumulate", accumulate, minimum=1, where=where)
    return AccumulateBatches(1, microbatches=accumulate)
