"""Processes watch one another: when one is killed, stopped or fails, all the others end.

Each process publishes a beat with its last step once a second. Process 0 watches all others,
and tells everybody what it finds; the others watch process 0, which hosts the service. Several
threads, since any call of the service can hang when process 0 does:

- beat: publishes, and reads what the watched processes published;
- listen: waits for notices, a numbered list of texts;
- line: holds a connection to process 0, which breaks when that dies (`lifeline.py`);
- watch: calls nobody, measures silence, and ends the process.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from flaxtrain.parallel.coordination import ServiceLost, Store
from flaxtrain.parallel.leaving import ENDED_BY_A_PEER, exit_code, leave
from flaxtrain.parallel.notices import Beat, Notice, Peers, may_come_from_a_peer

__all__ = ["Heartbeat"]

_BEATS, _NOTICES = "flaxtrain/beats", "flaxtrain/notices"
# How often silence is measured; also the pace of beats when only the end is waited for.
_TICK = 0.1
# For process 0 before it ends: until then the service hands out what it said last.
_LINGER = 1.0
# JAX, too, waits for five minutes at the end of a process.
_END_SECONDS = 300.0
# For the first beat of a process: it may come to its work later than this one.
_START_SECONDS = 120.0


class Heartbeat:
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
    """

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
        self.step: int | None = None
        self._store, self._index, self._leave = store, index, leave
        self._others = frozenset(range(count)) - {index}
        self._timeout, self._interval, self._grace = timeout, interval, grace
        self._peers = Peers(range(1, count) if index == 0 else [0])
        self._flushes: tuple[Callable[[], object], ...] = ()
        self._beats = self._notices = 0
        # How often work was begun, and in which of these times it failed here.
        self._fit, self._failed_in = 0, -1
        # In which of them each other process failed last.
        self._failures: dict[int, int] = {}
        # Seconds in which nobody's failure ends this process, which fails itself.
        self._spared = 0.0
        self._error: BaseException | None = None
        self._exit_code: int | None = None
        self._suspects = self._ended = False
        # Why this process ends, and how many seconds from now.
        self._doom: Notice | None = None
        self._respite = 0.0
        self._done = threading.Event()
        self._wake, self._alarm = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._last_words = threading.Lock()
        self._threads: list[threading.Thread] = []

    def progress(self, step: int) -> None:
        """Notes the step that the process has reached; costs one assignment."""
        self.step = step

    def failing(self) -> None:
        """Says that an error will leave the guard, and that there is something to save before.

        For five minutes no other process that fails in the same guard ends this one.
        """
        self._spared = _END_SECONDS

    @contextlib.contextmanager
    def guard(self, *flushes: Callable[[], object]) -> Iterator[None]:
        """A context whose errors the other processes are told of; the work is done within.

        An error that leaves it ends the others, unless they raise one of their own in the same
        context.

        Args:
            *flushes: what is called when another process ends this one within the context, in
                a thread of its own: what else would be lost is to be on disk then.
        """
        self._fit += 1
        self._spared, outer = 0.0, self._flushes
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
            self._wake.set()
            self._wait_for_a_verdict()
        line = str(error).partition("\n")[0]
        reason = f"{type(error).__name__}: {line}" if line else type(error).__name__
        with self._lock:
            self._failed_in = self._fit
            if self._doom is not None and self._doom.kind == "failed":
                self._doom = None
        self._publish(Notice("failed", self._index, self.step, self._fit, reason))
        # Nobody was lost: it is an error like any other.
        self._suspects = False

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
        if self._failed_in == self._fit and not self._ends_with_others():
            # The error was caught here, and ended the others.
            self._go("", 1, 0.0)
        if not self._done.wait(_END_SECONDS):
            self._condemn_who_is_late()
        for thread in self._threads:
            thread.join(2 * self._interval)

    def _ends_with_others(self) -> bool:
        """Waits for the others after an error: for their end, or that all had one, too."""
        return self._done.wait(self._grace + _LINGER) or self._others <= self._failed_too()

    def _failed_too(self) -> set[int]:
        """Returns who has failed in the work that this process was in last."""
        return {who for who, fit in self._failures.copy().items() if fit == self._fit}

    def _condemn_who_is_late(self) -> None:
        for process, text in self._store.under(_BEATS).items():
            beat = Beat.from_text(text)
            if not beat.ended:
                reason = f"not at its end {_END_SECONDS:g} s after this process"
                self._condemn(Notice("lost", int(process), beat.step, reason=reason))
        self._done.wait()

    def start(self) -> Heartbeat:
        """Starts the threads."""
        self._threads = [
            threading.Thread(target=target, name=f"flaxtrain-{name}", daemon=True)
            for name, target in (
                ("beat", self._beat_on),
                ("listen", self._listen_on),
                ("watch", self._watch_on),
            )
        ]
        for thread in self._threads:
            thread.start()
        return self

    def _beat_on(self) -> None:
        with self._service():
            while not self._done.is_set():
                self.beat()
                self._wake.wait(_TICK if self._ended else self._interval)
                self._wake.clear()

    def beat(self) -> None:
        """Publishes one beat, and reads those of the processes that are watched."""
        own = Beat(self._beats, self.step, self._ended, self._suspects)
        self._beats += 1
        self._store.put(f"{_BEATS}/{self._index}", own.text())
        if self._index:
            text = self._store.get(f"{_BEATS}/0", 0)
            texts = {} if text is None else {"0": text}
        else:
            texts = self._store.under(_BEATS)
        for process, text in texts.items():
            self._peers.heard(int(process), Beat.from_text(text))
        if self._index == 0 and self._ended and self._peers.all_ended():
            self._publish(Notice("ended", 0))
            self._done.wait(self._interval)

    def _publish(self, notice: Notice) -> None:
        """Puts a notice at the end of the list."""
        number = self._notices
        with contextlib.suppress(ServiceLost):
            while not self._store.add(f"{_NOTICES}/{number}", notice.text()):
                number += 1

    def _listen_on(self) -> None:
        with self._service():
            while not self._done.is_set():
                self.listen(5 * self._interval)

    def listen(self, seconds: float) -> None:
        """Waits for the next notice, and does what follows from it."""
        text = self._store.get(f"{_NOTICES}/{self._notices}", seconds)
        if text is None:
            return
        self._notices += 1
        notice = Notice.from_text(text)
        if notice.kind == "ended":
            self._done.set()
        elif notice.kind == "lost":
            self._condemn(notice)
        elif notice.process != self._index:
            self._failures[notice.process] = notice.fit
            if notice.fit > self._failed_in:
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
        return Notice("lost", process, self._peers.step(process), reason=reason)

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
        seconds = min(seconds, self._interval)
        self._peers.passed(seconds)
        suspicion = self._suspects or self._peers.any_suspects()
        limit = self._timeout / 2 if suspicion else self._timeout
        self._spared -= seconds
        without = self._failed_too() if self._spared > 0 else ()
        process = self._peers.silent(limit, start=_START_SECONDS, without=without)
        if self._doom is None and process is not None:
            silence = self._peers.silence(process)
            self._condemn(self._lost(process, f"nothing heard of it for {silence:.1f} s"))
        self._respite -= seconds
        doom = self._doom
        if doom is None or self._respite > 0:
            return
        if self._spared <= 0 or doom.kind != "failed" or doom.fit != self._fit:
            self._end(doom)

    def _end(self, notice: Notice) -> None:
        message = f"{notice}; this process ({self._index}) ends"
        if self.step is not None:
            message += f", its last step: {self.step}"
        if self._index == 0 and notice.kind == "lost":
            self._publish(notice)
        self._go(message, ENDED_BY_A_PEER, _LINGER)

    def _go(self, message: str, code: int, linger: float) -> None:
        """Ends the process; whoever comes second waits in here for that."""
        self._last_words.acquire()
        self._leave(message, code, self._flushes, 0.0 if self._index else linger)
