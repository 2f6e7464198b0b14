"""Processes watch one another: when one is killed, stopped or fails, all the others end.

Each process publishes a beat once a second. Process 0 watches all others, and tells everybody
what it finds; the others watch process 0, which hosts the service. Several threads, since any
call of the service can hang when process 0 does:

- beat: publishes, and reads what the watched processes published;
- listen: waits for notices, a list that all processes read;
- line: holds a connection to process 0, which breaks when that dies (`lifeline.py`);
- watch: calls nobody, measures silence, and ends the process.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from flaxtrain.parallel.processes.beats import Beats
from flaxtrain.parallel.processes.coordination import ServiceLost, Store
from flaxtrain.parallel.processes.ending import Ending
from flaxtrain.parallel.processes.failures import Failures
from flaxtrain.parallel.processes.leaving import ENDED_BY_A_PEER, exit_code, leave
from flaxtrain.parallel.processes.notices import Notice, Notices, may_come_from_a_peer

__all__ = ["PeerWatch"]

# How often silence is measured; also the pace of beats while somebody waits for them.
_TICK = 0.1
# For process 0 before it ends: until then the service hands out what it said last.
_LINGER = 1.0
# JAX, too, waits for five minutes at the end of a process.
_END_SECONDS = 300.0
# For the first beat of a process: it may come to its work later than this one.
_START_SECONDS = 120.0


class PeerWatch:
    """Tells the other processes how this one is, and ends it when one of them is lost.

    Args:
        store: the texts that all processes see.
        index: the number of this process.
        count: how many there are, 2 or more.
        timeout: seconds of silence after which a process is lost; half of that when an
            operation across processes has failed.
        interval: seconds between two beats.
        grace: seconds that this process has, after another one failed, to fail by itself: an
            error that all of them raise is reported as each one's own.
        leave: what ends the process; called as `leave(message, code, flushes, linger)`.

    Attributes:
        batches: how many the process has begun, None before the first.
    """

    alone = False  # there are others

    def __init__(
        self,
        store: Store,
        index: int,
        count: int,
        *,
        timeout: float = 8.0,
        interval: float = 1.0,
        grace: float = 2.0,
        leave: Callable[[str, int, Sequence[Callable[[], object]], float], None] = leave,
    ) -> None:
        self.batches: int | None = None
        self._index, self._leave = index, leave
        self._timeout, self._interval, self._grace = timeout, interval, grace
        self._beats, self._notices = Beats(store, index, count), Notices(store)
        self._failures, self._ending = Failures({*range(count)} - {index}), Ending()
        self._flushes: tuple[Callable[[], object], ...] = ()
        self._error: BaseException | None = None
        self._exit_code: int | None = None
        self._suspects = self._ended = False
        # Why this process ends, and how many seconds from now.
        self._doom: Notice | None = None
        self._respite = 0.0
        self._done, self._wake, self._alarm = (threading.Event() for _ in range(3))
        self._lock, self._last_words = threading.Lock(), threading.Lock()
        self._threads: list[threading.Thread] = []

    def progress(self, batches: int) -> None:
        """Notes how many batches the process has taken; costs one assignment."""
        self.batches = batches

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """A context for a run, one of those that all processes make."""
        self._ending.begin()
        try:
            yield
        finally:
            self._ending.begin()  # what is left of a run around this one

    def ends(self, batches: int, wanted: bool) -> bool:
        """Whether the run ends with its last batch so far, in all processes.

        When one of them wants that, each waits in here until it is known which of them has
        got farthest: they all end with that one's batch.

        Args:
            batches: number of batches so far.
            wanted: whether this process wants to end.
        """
        if wanted and not self._ending.is_asked:
            self._notices.publish(Notice("asks", self._index, batches, self._ending.run))
            self._ending.ask(self._ending.run)
        return not self._ending.goes_on(batches) and self._ending.is_over(batches)

    def ahead(self, batches: int) -> int | None:
        """Returns which process is known to have gone further in this run, if one has."""
        return self._beats.peers.ahead(self._ending.run, batches)

    def failing(self, error: BaseException | None = None) -> None:
        """Says that an error will leave the guard, and that there is something to do before.

        The others are told of `error`, unless it can come from one of them, and may end. If
        they fail in the same guard, that does not end this process for five minutes.
        """
        if error is not None and not may_come_from_a_peer(error):
            self.report(error)
        self._failures.spare(_END_SECONDS)

    @contextlib.contextmanager
    def guard(self, *flushes: Callable[[], object]) -> Iterator[None]:
        """A context whose errors the other processes are told of; the work is done within.

        An error that leaves it ends the others, unless they raise one of their own in the same
        context. All processes enter the same ones; one may be within another.

        Args:
            *flushes: what is called when another process ends this one within the context, in
                a thread of its own: what else would be lost is to be on disk then.
        """
        self._failures.begin()
        outer = self._flushes
        self._flushes = (*outer, *flushes)
        try:
            yield
        except BaseException as error:
            self.report(error)
            if isinstance(error, SystemExit):
                self._exit_code = exit_code(error)
            raise
        finally:
            self._flushes = outer

    def report(self, error: BaseException) -> None:
        """Tells the others of an error that ends the work of this process.

        When the error can be the consequence of another's death, waits until that is known.
        Then this process ends in here, with a message that names the other one.
        """
        if error is self._error:
            return
        self._error = error
        if may_come_from_a_peer(error):
            self._suspects = True
            self._failures.spare(0.0)
            self._wake.set()
            self._wait_for_a_verdict()
        line = str(error).partition("\n")[0]
        reason = f"{type(error).__name__}: {line}" if line else type(error).__name__
        with self._lock:
            work = self._failures.fail()
            if self._doom is not None and self._doom.kind == "failed":
                self._doom = None
        self._notices.publish(Notice("failed", self._index, self.batches, work, reason))
        self._suspects = False  # nobody was lost: it is an error like any other

    def _wait_for_a_verdict(self) -> None:
        until = time.monotonic() + self._timeout / 2 + 3 * self._interval
        while time.monotonic() < until or self._doom is not None:
            self._respite = min(self._respite, 0.0)
            time.sleep(_TICK)

    def uncaught(self, error: BaseException, show: Callable[[], None]) -> None:
        """Prints an error that ends this process, and tells the others (`sys.excepthook`)."""
        if may_come_from_a_peer(error):
            self.report(error)
        show()
        self.report(error)
        self._exit_code = exit_code(error)

    def close(self) -> None:
        """Ends the watch: at once after an error, else when all processes have come here.

        Called when the interpreter ends, before JAX waits for the others.
        """
        if self._exit_code is not None:
            self._go("", self._exit_code, self._grace + _LINGER)
            return
        self._ended = True
        self._wake.set()
        # An error that was caught here; the others may be about to raise it, too.
        if self._failures.have_ended_others:
            self._done.wait(self._grace + _LINGER)
        if self._failures.have_ended_others and not self._done.is_set():
            self._go("", 1, 0.0)
        if not self._done.wait(_END_SECONDS):
            self._condemn_who_is_late()
        for thread in self._threads:
            thread.join(2 * self._interval)

    def _condemn_who_is_late(self) -> None:
        for process, batches in self._beats.at_work().items():
            reason = f"not at its end {_END_SECONDS:g} s after this process"
            self._condemn(Notice("lost", process, batches, reason=reason))
        self._done.wait()

    def start(self) -> PeerWatch:
        """Starts the threads."""
        targets = {"beat": self._beat_on, "listen": self._listen_on, "watch": self._watch_on}
        self._threads = [
            threading.Thread(target=target, name=f"flaxtrain-{name}", daemon=True)
            for name, target in targets.items()
        ]
        for thread in self._threads:
            thread.start()
        return self

    def _beat_on(self) -> None:
        with self._service():
            while not self._done.is_set():
                self.beat()
                soon = self._ended or self._ending.is_open
                self._wake.wait(_TICK if soon else self._interval)
                self._wake.clear()

    def beat(self) -> None:
        """Publishes one beat, and reads those of the processes that are watched."""
        run, (asked, bound), peers = self._ending.run, self._ending.answer, self._beats.peers
        self._beats.exchange(self.batches, self._ended, self._suspects, asked, bound, run)
        if self._index == 0 and (others := peers.bound(asked)) is not None:
            last = max(bound, others)
            if self._ending.settle(asked, last):
                self._notices.publish(Notice("ends", 0, last, asked))
        if self._index == 0 and self._ended and peers.all_ended():
            self._notices.publish(Notice("ended", 0))
            self._done.wait(self._interval)

    def _listen_on(self) -> None:
        with self._service():
            while not self._done.is_set():
                self.listen(5 * self._interval)

    def listen(self, seconds: float) -> None:
        """Waits for the next notice, and does what follows from it."""
        if (notice := self._notices.next(seconds)) is None:
            return
        if notice.kind == "ended":
            self._done.set()
        elif notice.kind == "asks":
            self._ending.ask(notice.number)
            self._wake.set()
        elif notice.kind == "ends":
            self._ending.settle(notice.number, notice.batches or 0)
        elif notice.kind == "lost":
            self._condemn(notice)
        elif notice.process != self._index and self._failures.heard(notice):
            self._condemn(notice, 0.0 if self._suspects else self._grace)

    @contextlib.contextmanager
    def _service(self) -> Iterator[None]:
        """A context for calls of the service, whose loss is that of process 0."""
        try:
            yield
        except ServiceLost:
            self._process_0_is_gone()

    def hold(self, line: Callable[[], bool]) -> None:
        """Takes it for the death of process 0 when `line()`, which may never end, is true."""

        def wait() -> None:
            with self._service():
                if line():
                    self._process_0_is_gone()

        threading.Thread(target=wait, name="flaxtrain-line", daemon=True).start()

    def _process_0_is_gone(self) -> None:
        # Not if somebody has shut the service down in good order.
        if not self._done.is_set() and self._index and jax.distributed.is_initialized():
            self._condemn(self._lost(0, "its connection broke"))

    def _lost(self, process: int, reason: str) -> Notice:
        return Notice("lost", process, self._beats.peers.batches(process), reason=reason)

    def _condemn(self, notice: Notice, respite: float = 0.0) -> None:
        """Has this process end in `respite` seconds; of several, the first reason and end."""
        with self._lock:
            if self._doom is None:
                self._doom, self._respite = notice, respite
            self._respite = min(self._respite, respite)
        if respite <= 0:
            # JAX ends this process 0.3 s after process 0 has died, without a word.
            self._alarm.set()

    def _watch_on(self) -> None:
        before = time.monotonic()
        while not self._done.is_set():
            self._alarm.wait(_TICK)
            self._alarm.clear()
            now = time.monotonic()
            self.watch(now - before)
            before = now

    def watch(self, seconds: float) -> None:
        """Lets time pass for the processes that are watched; may end this one.

        Args:
            seconds: since the last call. Of a long pause, in which this process was stopped
                itself, one interval counts.
        """
        seconds, peers = min(seconds, self._interval), self._beats.peers
        peers.passed(seconds)
        self._failures.passed(seconds)
        suspicion = self._suspects or peers.any_suspects()
        limit = self._timeout / 2 if suspicion else self._timeout
        without = self._failures.may_be_silent
        process = peers.silent(limit, start=_START_SECONDS, without=without)
        if self._doom is None and process is not None:
            silence = peers.silence(process)
            self._condemn(self._lost(process, f"nothing heard of it for {silence:.1f} s"))
        self._respite -= seconds
        doom = self._doom
        if doom is not None and self._respite <= 0 and not self._failures.spares(doom):
            self._end(doom)

    def _end(self, notice: Notice) -> None:
        if self._ended and self._failures.have_ended_others:
            self._go("", 1, 0.0)  # the loss is of one that was ended by an error here
            return
        message = f"{notice}; this process ({self._index}) ends"
        if self.batches is not None:
            message += f", its last batch: {self.batches}"
        if self._index == 0 and notice.kind == "lost":
            self._notices.publish(notice)
        self._go(message, ENDED_BY_A_PEER, _LINGER)

    def _go(self, message: str, code: int, linger: float) -> None:
        """Ends the process; whoever comes second waits in here for that."""
        self._last_words.acquire()
        self._leave(message, code, self._flushes, 0.0 if self._index else linger)
