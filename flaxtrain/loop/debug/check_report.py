"""What `Trainer.check` has looked at, as values and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flaxtrain.text import TextTable, counted

__all__ = ["CheckReport", "Observation"]

Verdict = Literal["ok", "finding", "expected", "not looked at"]


@dataclass(frozen=True)
class Observation:
    """One thing that was looked at.

    Attributes:
        check: its name.
        verdict: `"ok"`; `"finding"`, something that looks wrong; `"expected"`, something that
            would be one but for the kind of model; `"not looked at"`, where the model or the
            data give no occasion.
        seen: what was seen, in words.
        fix: of a finding, what can be done about it.
    """

    check: str
    verdict: Verdict
    seen: str
    fix: str = ""


@dataclass(frozen=True)
class CheckReport:
    """What `Trainer.check` has seen; print it.

    Attributes:
        observations: everything that was looked at, in order.

    Example:
        >>> report = CheckReport((Observation("labels", "ok", "labels 0 to 9 of 10 classes"),))
        >>> print(report)
        check   result  what was seen
        labels  ok      labels 0 to 9 of 10 classes
        no findings
        >>> report.ok
        True
    """

    observations: tuple[Observation, ...]

    @property
    def findings(self) -> tuple[Observation, ...]:
        """What looks wrong."""
        return tuple(o for o in self.observations if o.verdict == "finding")

    @property
    def ok(self) -> bool:
        """Whether nothing looks wrong."""
        return not self.findings

    def __str__(self) -> str:
        """Returns a table, and for each finding what can be done about it."""
        rows = tuple((o.check, o.verdict, o.seen) for o in self.observations)
        table = TextTable(("check", "result", "what was seen"), rows)
        number = len(self.findings)
        last = f"{counted(number, 'finding')}:" if number else "no findings"
        fixes = (f"  {o.check}: {o.fix}" for o in self.findings)
        return "\n".join([str(table), last, *fixes])
