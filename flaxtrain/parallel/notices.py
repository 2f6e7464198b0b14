"""What processes tell one another, and what one knows of the others: values, no clock."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Literal

from flaxtrain.parallel.coordination import ServiceLost

__all__ = ["Beat", "Notice", "Peers", "may_come_from_a_peer"]

# How the errors of an operation in which others take part begin, some of them ValueErrors. Out
# of memory (RESOURCE_EXHAUSTED) and wrong arguments are a process's own doing.
_TOGETHER = re.compile(
    "(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): "
)


@dataclass(frozen=True)
class Beat:
    """A sign of life.

    Attributes:
        number: of the beat; what makes it a new one.
        step: the last step that the process reported, None before its first.
        ended: whether it has done its work and waits for the others to end, too.
        suspects: whether an operation across processes has failed in it.

    Example:
        >>> Beat.from_text(Beat(3, step=37).text()).step
        37
    """

    number: int
    step: int | None = None
    ended: bool = False
    suspects: bool = False

    def text(self) -> str:
        """Returns the beat as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Beat:
        """Reads what `text` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Notice:
    """What every process has to know.

    Attributes:
        kind: `"failed"`, an error left the process's work; `"lost"`, nothing is heard of it;
            `"ended"`, all processes have ended.
        process: whom it is about.
        step: the last step known of that process.
        fit: how many times it had begun its work: `fit` is called equally often by all.
        reason: the error's type and first line, or how long nothing was heard.

    Example:
        >>> print(Notice("failed", 1, step=37, reason="ValueError: no more disk"))
        process 1 failed at step 37: ValueError: no more disk
        >>> print(Notice("lost", 0, step=None, reason="nothing heard of it for 8.2 s"))
        process 0 is gone: nothing heard of it for 8.2 s, last known before its first step
    """

    kind: Literal["failed", "lost", "ended"]
    process: int
    step: int | None = None
    fit: int = 0
    reason: str = ""

    def __str__(self) -> str:
        step = "before its first step" if self.step is None else f"at step {self.step}"
        if self.kind == "failed":
            return f"process {self.process} failed {step}: {self.reason}"
        if self.kind == "lost":
            return f"process {self.process} is gone: {self.reason}, last known {step}"
        return "all processes have ended"

    def text(self) -> str:
        """Returns the notice as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Notice:
        """Reads what `text` wrote."""
        return cls(**json.loads(text))


@dataclass
class Peers:
    """The last beat of each process that is watched, and how long ago it came.

    Args:
        watched: numbers of the processes.

    Example:
        >>> peers = Peers([1, 2])
        >>> peers.passed(5.0); peers.heard(2, Beat(0, step=7)); peers.passed(4.0)
        >>> peers.silent(8.0), peers.silence(2), peers.step(2)
        (1, 4.0, 7)
    """

    watched: Iterable[int]
    _beats: dict[int, Beat] = field(init=False)
    _silence: dict[int, float] = field(init=False)

    def __post_init__(self) -> None:
        self._beats = {process: Beat(-1) for process in self.watched}
        self._silence = dict.fromkeys(self._beats, 0.0)

    def heard(self, process: int, beat: Beat) -> None:
        """Notes a beat; one that was there before is no news."""
        known = self._beats.get(process)
        if known is not None and known != beat:
            self._beats[process] = beat
            self._silence[process] = 0.0

    def passed(self, seconds: float) -> None:
        """Lets time pass."""
        for process in self._silence:
            self._silence[process] += seconds

    def silence(self, process: int) -> float:
        """Returns for how many seconds nothing new was heard."""
        return self._silence[process]

    def step(self, process: int) -> int | None:
        """Returns the last step known, None before the first and of who is not watched."""
        beat = self._beats.get(process)
        return None if beat is None else beat.step

    def silent(
        self, limit: float, *, start: float = 0.0, without: Collection[int] = ()
    ) -> int | None:
        """Returns who was not heard for longest, if that is longer than `limit` seconds.

        Args:
            limit: seconds of silence.
            start: seconds until the first beat, where that is more.
            without: processes that may be silent.
        """
        late = [
            process
            for process, beat in self._beats.items()
            if process not in without
            and self._silence[process] > (max(start, limit) if beat.number < 0 else limit)
        ]
        return max(late, key=self._silence.__getitem__, default=None)

    def all_ended(self) -> bool:
        """Whether every watched process waits for the end."""
        return all(beat.ended for beat in self._beats.values())

    def any_suspects(self) -> bool:
        """Whether an operation across processes has failed in one of them."""
        return any(beat.suspects for beat in self._beats.values())


def may_come_from_a_peer(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, is that of a runtime, not of a program.

    Example:
        >>> may_come_from_a_peer(ValueError("UNKNOWN: Connection closed"))
        True
    """
    seen: BaseException | None = error
    while seen is not None:
        status = isinstance(seen, (RuntimeError, ValueError)) and _TOGETHER.match(str(seen))
        if status or isinstance(seen, ServiceLost):
            return True
        seen = seen.__cause__
    return False
