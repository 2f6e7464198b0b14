"""What every process has to know: a list of notices, which all of them read in one order."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Literal

from flaxtrain.parallel.processes.coordination import ServiceLost, Store

__all__ = ["Notice", "Notices", "may_come_from_a_peer"]

_NOTICES = "flaxtrain/notices"

# How the errors of an operation in which others take part begin, some of them ValueErrors. Out
# of memory (RESOURCE_EXHAUSTED) and wrong arguments are a process's own doing.
_TOGETHER = re.compile(
    "(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): "
)


@dataclass(frozen=True)
class Notice:
    """What every process has to know.

    Attributes:
        kind: `"failed"`, an error left the process's work; `"lost"`, nothing is heard of it;
            `"asks"`, it wants to end a run; `"ends"`, the last batch of a run is known;
            `"ended"`, all processes have ended.
        process: whom it is about.
        batches: how many that process is known to have taken; of a run that ends, all.
        number: in `"failed"`, how often it had begun work under the guard, which all processes
            begin equally often; in `"asks"` and `"ends"`, that of the run.
        reason: the error's type and first line, or how long nothing was heard.

    Example:
        >>> print(Notice("failed", 1, batches=37, reason="ValueError: no more disk"))
        process 1 failed at batch 37: ValueError: no more disk
        >>> print(Notice("lost", 0, batches=None, reason="nothing heard of it for 8.2 s"))
        process 0 is gone: nothing heard of it for 8.2 s, last known before its first batch
    """

    kind: Literal["failed", "lost", "asks", "ends", "ended"]
    process: int
    batches: int | None = None
    number: int = 0
    reason: str = ""

    def __str__(self) -> str:
        number = self.batches
        batch = "before its first batch" if number is None else f"at batch {number}"
        if self.kind == "failed":
            return f"process {self.process} failed {batch}: {self.reason}"
        if self.kind == "lost":
            return f"process {self.process} is gone: {self.reason}, last known {batch}"
        return f"process {self.process} {self.kind} {batch}"

    def text(self) -> str:
        """Returns the notice as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Notice:
        """Reads what `text` wrote."""
        return cls(**json.loads(text))


class Notices:
    """The list of notices, as one process reads it.

    Args:
        store: where it is.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._read = store, 0

    def publish(self, notice: Notice) -> None:
        """Puts a notice at the end of the list; does nothing if the service is lost."""
        number = self._read
        with contextlib.suppress(ServiceLost):
            while not self._store.add(f"{_NOTICES}/{number}", notice.text()):
                number += 1

    def next(self, seconds: float) -> Notice | None:
        """Returns the first one that was not read yet; None if there is none in time."""
        text = self._store.get(f"{_NOTICES}/{self._read}", seconds)
        if text is None:
            return None
        self._read += 1
        return Notice.from_text(text)


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
