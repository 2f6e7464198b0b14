"""Whose errors have ended which work: what is an error of all, and what ends the others."""

from __future__ import annotations

from flaxtrain.parallel.processes.notices import Notice

__all__ = ["Failures"]


class Failures:
    """What one process knows of them. Work is counted: all processes begin it equally often.

    Args:
        others: the other processes.

    Attributes:
        work: how often work was begun.

    Example:
        >>> failures = Failures({1, 2})
        >>> failures.begin()
        >>> failures.heard(Notice("failed", 1, number=1))  # while all goes well here
        True
        >>> failures.fail(), failures.heard(Notice("failed", 2, number=1))
        (1, False)
    """

    def __init__(self, others: set[int]) -> None:
        self.work, self._others = 0, frozenset(others)
        # In which work it failed last: here, and in each other process.
        self._own, self._theirs = -1, dict[int, int]()
        # Seconds in which nobody's failure ends this process, which fails itself.
        self._spared = 0.0

    def begin(self) -> None:
        """Begins the next work."""
        self.work += 1
        self._spared = 0.0

    def fail(self) -> int:
        """Notes an error of this process; returns in which work it was."""
        if self._own == self.work:
            self.work += 1  # the first error in this work was caught, by all of them
        self._own = self.work
        return self.work

    def heard(self, notice: Notice) -> bool:
        """Notes an error of another process; returns whether it ends this one."""
        self._theirs[notice.process] = notice.number
        return notice.number > self._own

    def spare(self, seconds: float) -> None:
        """From now on this process fails itself, and has so many seconds for it."""
        self._spared = seconds

    def passed(self, seconds: float) -> None:
        """Lets time pass."""
        self._spared -= seconds

    def spares(self, notice: Notice) -> bool:
        """Whether this process is not ended by a notice, since it has that error, too."""
        return self._spared > 0 and notice.kind == "failed" and notice.number == self.work

    @property
    def may_be_silent(self) -> set[int]:
        """Processes that have left, or will, after an error that this one is busy with."""
        if self._spared <= 0:
            return set()
        return {*self._others} if self._own == self.work else self._failed_too()

    @property
    def have_ended_others(self) -> bool:
        """Whether there was an error here that not all others have had, too."""
        return self._own == self.work and not self._others <= self._failed_too()

    def _failed_too(self) -> set[int]:
        return {who for who, work in self._theirs.copy().items() if work >= self.work}
