"""Where a run ends that one of its processes wants to end: after the same batch in all of them.

A notice asks all processes where they are. Each answers with the number of batches that it is
bound to make, and holds once it has made them. The greatest answer is the last batch: those who
are behind go on up to it.

The answers come from a thread. So a process gives its own while it waits in an operation for
one that holds already, and nobody waits for ever.
"""

from __future__ import annotations

import threading

__all__ = ["Ending"]


class Ending:
    """What one process knows of it. Runs are counted: all processes make the same ones.

    Example:
        >>> ending = Ending()
        >>> ending.goes_on(batches=3)
        True
        >>> ending.ask(run=1)
        >>> ending.answer, ending.goes_on(batches=4)
        ((1, 4), False)
        >>> ending.settle(run=1, batches=7)
        True
        >>> [ending.is_over(batches) for batches in (4, 6, 7)]
        [False, False, True]
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._settled = threading.Event()
        # The run that is being made, the last one that was asked for, the last one settled.
        self.run, self._asked, self._settled_run = 1, 0, 0
        self._bound = self._last = 0

    @property
    def answer(self) -> tuple[int, int]:
        """The run that was asked for, and how many batches of it this process will make."""
        with self._lock:
            return self._asked, self._bound if self._asked == self.run else 0

    @property
    def is_open(self) -> bool:
        """Whether a run was asked for whose last batch is not known yet."""
        with self._lock:
            return self._asked > self._settled_run

    @property
    def is_asked(self) -> bool:
        """Whether somebody wants to end the run that is being made."""
        with self._lock:
            return self._asked == self.run

    def begin(self) -> None:
        """Begins the next run."""
        with self._lock:
            self.run += 1
            self._bound = 0
            if self._settled_run < self.run:
                self._settled.clear()

    def goes_on(self, batches: int) -> bool:
        """Whether nobody wants to end the run: then this process is bound to the next batch.

        Calls of several steps end at the same batches everywhere: the number of the first one
        stands for all of them.

        Args:
            batches: number of batches so far.
        """
        with self._lock:
            if self._asked == self.run:
                return False
            self._bound = batches + 1
            return True

    def ask(self, run: int) -> None:
        """Notes that somebody wants to end a run, perhaps before it has begun here."""
        with self._lock:
            self._asked = max(self._asked, run)

    def settle(self, run: int, batches: int) -> bool:
        """Notes after how many batches a run ends; returns whether that is news."""
        with self._lock:
            if run <= self._settled_run:
                return False
            self._settled_run, self._last = run, batches
            if run >= self.run:
                self._settled.set()
            return True

    def is_over(self, batches: int) -> bool:
        """Waits until the last batch is known; returns whether there are as many now."""
        while not self._settled.wait(1.0):  # Ctrl-C is noticed between two of them
            pass
        return batches >= self._last
