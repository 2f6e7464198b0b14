"""The rules of the watch, without threads and clocks: every test moves them by hand.

What real processes make of them is tried in tests/processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from flaxtrain.parallel.processes.coordination import ServiceLost
from flaxtrain.parallel.processes.leaving import ENDED_BY_A_PEER
from flaxtrain.parallel.processes.notices import Notice
from flaxtrain.parallel.processes.watch import PeerWatch
from tests.parallel.processes.together import Texts


class Left(Exception):
    """A process has ended, in a test."""


def leaves(
    message: str, code: int, flushes: Sequence[Callable[[], object]], linger: float
) -> None:
    for flush in flushes:
        flush()
    raise Left(message, code)


def processes(count: int, timeout: float = 8.0) -> list[PeerWatch]:
    texts = Texts()
    return [PeerWatch(texts, i, count, timeout=timeout, leave=leaves) for i in range(count)]


def second(*running: PeerWatch) -> None:
    """Lets one second pass for some processes."""
    for one in running:
        one.beat()
    for one in running:
        one.listen(0)
        one.watch(1.0)


def seconds_until_one_leaves(*running: PeerWatch, most: int = 30) -> tuple[int, str, int]:
    for count in range(1, most):
        try:
            second(*running)
        except Left as left:
            message, code = left.args
            return count, message, code
    raise AssertionError("nobody left")


def test_processes_that_beat_go_on() -> None:
    running = processes(3)
    for batches in range(40):
        running[1].progress(batches)
        second(*running)


@pytest.mark.parametrize("victim", [0, 1])
def test_silence_ends_the_other_one_and_is_told_with_the_last_batch(victim: int) -> None:
    running = processes(2)
    for one in running:
        one.progress(37)
    second(*running)
    flushed: list[int] = []
    with running[1 - victim].guard(lambda: flushed.append(1)):
        after, message, code = seconds_until_one_leaves(running[1 - victim])
    assert (after in (8, 9), code, flushed) == (True, ENDED_BY_A_PEER, [1])
    assert message.startswith(f"process {victim} is gone: nothing heard of it for")
    assert f"last known at batch 37; this process ({1 - victim}) ends" in message


def test_all_guards_around_are_flushed() -> None:
    first, other = processes(2)
    second(first, other)
    flushed: list[str] = []
    with first.guard(lambda: flushed.append("outer")):
        with first.guard(lambda: flushed.append("inner")):
            pass
        seconds_until_one_leaves(first)
        with first.guard(lambda: flushed.append("inner")), pytest.raises(Left):
            first._last_words.release()
            first.watch(0.0)
    assert flushed == ["outer", "outer", "inner"]


def test_what_process_0_finds_ends_all_others() -> None:
    first, victim, third = processes(3)
    victim.beat()
    with pytest.raises(Left, match="process 1 is gone"):
        for _ in range(10):
            second(first)
            third.beat()
    with pytest.raises(Left, match=r"process 1 is gone.*this process \(2\)"):
        second(third)


def test_who_has_not_begun_is_given_two_minutes() -> None:
    first, other = processes(2)
    other.beat()
    for one in (first, other):  # neither has heard of the other one, nor has it suspicions
        for _ in range(119):
            one.watch(1.0)
    first.beat()
    with pytest.raises(Left, match=r"process 1 is gone: nothing heard of it for 9"):
        for _ in range(9):
            first.watch(1.0)
    other.watch(1.0)
    with pytest.raises(Left, match="process 0 is gone: nothing heard of it for 121"):
        other.watch(1.0)


def test_a_pause_of_ones_own_is_not_held_against_the_others() -> None:
    first, other = processes(2)
    second(first, other)
    first.watch(1000.0)  # stopped for long, and continued
    second(first, other)


def test_an_error_ends_the_others_after_the_grace() -> None:
    first, other = processes(2)
    with pytest.raises(KeyError), other.guard():
        other.progress(5)
        raise KeyError("x")
    first.listen(0)
    first.watch(1.0)
    with pytest.raises(Left, match="process 1 failed at batch 5: KeyError: 'x'; this process"):
        first.watch(1.0)


def test_an_error_of_ones_own_in_time_is_not_taken_for_the_others() -> None:
    first, other = processes(2)
    for one in (first, other):
        with pytest.raises(KeyError), one.guard():
            raise KeyError("x")
    for _ in range(20):
        second(first, other)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_error_that_comes_within_the_grace_lifts_the_sentence(
    order: tuple[int, int],
) -> None:
    running = processes(2)
    first, other = (running[i] for i in order)
    with first.guard():
        with pytest.raises(KeyError), other.guard():
            raise KeyError("x")
        first.listen(0)
        first.watch(1.0)
        first.report(KeyError("x"))
    for _ in range(20):
        second(*running)


def test_who_fails_and_saves_is_not_ended_by_those_who_fail_too() -> None:
    first, other = processes(2)
    second(first, other)
    with pytest.raises(KeyError), first.guard():
        try:
            with pytest.raises(KeyError), other.guard():
                raise KeyError("x")
            first.failing()
            for _ in range(60):
                second(first)  # the other one has left
            raise KeyError("x")
        finally:
            second(first)
    second(first)


def test_who_fails_and_saves_is_ended_after_five_minutes() -> None:
    first, other = processes(2)
    with first.guard(), pytest.raises(KeyError), other.guard():
        raise KeyError("x")
    first.failing()
    after, message, _ = seconds_until_one_leaves(first, other, most=400)
    assert after == 300 and "process 1 failed" in message


def test_who_saves_tells_the_others_before_and_does_not_need_them() -> None:
    first, other = processes(2)
    second(first, other)
    error = KeyError("x")
    with first.guard(), other.guard():
        first.failing(error)
        after, message, code = seconds_until_one_leaves(first, other)
        assert (after, code) == (2, ENDED_BY_A_PEER) and "process 0 failed" in message
        for _ in range(60):
            second(first)  # it saves, alone
        first.report(error)  # known already
    assert first._notices.next(0) is None


def test_an_error_that_comes_from_a_peer_is_not_told_and_ends_who_has_saved() -> None:
    first, other = processes(2)
    second(first, other)
    ends: list[Any] = []

    def wait() -> None:
        ends.append(seconds_until_one_leaves(first))

    first._wait_for_a_verdict = wait  # type: ignore[method-assign]
    with first.guard(), pytest.raises(KeyError), other.guard():
        raise KeyError("x")
    error = RuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    first.failing(error)
    assert not ends
    first.report(error)
    after, message, code = ends[0]
    assert (after, code) == (1, ENDED_BY_A_PEER) and "process 1 failed" in message


def test_who_fails_and_saves_is_ended_by_a_loss() -> None:
    first, other = processes(2)
    second(first, other)
    with first.guard():
        first.failing()
        after, message, _ = seconds_until_one_leaves(first)
    assert after in (8, 9) and "process 1 is gone" in message


@pytest.mark.parametrize("all_fail", [True, False])
def test_who_catches_an_error_waits_for_those_who_caught_it_too(all_fail: bool) -> None:
    running = processes(3)
    for one in running if all_fail else running[:2]:
        with pytest.raises(KeyError), one.guard():
            raise KeyError("x")
    first = running[0]
    for _ in running:
        first.listen(0)
    waited: list[float | None] = []

    def wait(timeout: float | None = None) -> bool:
        waited.append(timeout)
        return False

    first._done.wait = wait  # type: ignore[method-assign]
    if all_fail:
        first.close()
        assert waited[0] == 300.0
    else:
        with pytest.raises(Left) as left:
            first.close()
        assert (left.value.args, waited) == (("", 1), [3.0])


def test_a_later_error_counts_again() -> None:
    first, other = processes(2)
    for one in (first, other):
        with pytest.raises(KeyError), one.guard():
            raise KeyError("of all")
    second(first, other)
    with first.guard(), pytest.raises(KeyError), other.guard():
        raise KeyError("of one")
    _, message, _ = seconds_until_one_leaves(first, other)
    assert "of one" in message


def test_an_error_that_all_caught_hides_no_later_one_in_the_same_work() -> None:
    first, other = processes(2)
    with first.guard(), pytest.raises(OSError), other.guard():
        for one in (first, other):
            with pytest.raises(KeyError), one.guard():
                raise KeyError("of all")
        second(first, other)
        second(first, other)
        raise OSError("of one")
    _, message, _ = seconds_until_one_leaves(first, other)
    assert "of one" in message


def test_who_has_ended_another_one_does_not_end_by_its_loss() -> None:
    other = processes(2)[1]
    with pytest.raises(KeyError), other.guard():
        raise KeyError("caught")
    other._ended = True
    other._condemn(other._lost(0, "its connection broke"))
    with pytest.raises(Left) as left:
        other.watch(0.0)
    assert left.value.args == ("", 1)


BROKEN = ["UNKNOWN: Gloo all-reduce failed: Connection closed", "INTERNAL: NCCL"]


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_a_broken_operation_waits_for_the_name_of_the_dead(
    kind: type[Exception], text: str
) -> None:
    first, other = processes(2, timeout=0.2)
    other.beat()
    first.beat()
    first.watch(0.15)  # half of the timeout is over: enough once an operation has broken
    with pytest.raises(Left, match="process 1 is gone"):
        first._wait_for_a_verdict = lambda: first.watch(0.0)  # type: ignore[method-assign]
        with first.guard():
            raise kind(text)


def test_a_broken_operation_that_all_survive_is_forgotten() -> None:
    first, other = processes(2)
    second(first, other)
    for one in (first, other):
        one._wait_for_a_verdict = lambda: None  # type: ignore[method-assign]
        with pytest.raises(ValueError), one.guard():
            raise ValueError(BROKEN[0])
    second(first, other)
    after, message, _ = seconds_until_one_leaves(first)
    assert after in (8, 9) and "process 1 is gone" in message


@pytest.mark.parametrize("text", ["RESOURCE_EXHAUSTED: out of memory", "row 3 is bad", ""])
def test_other_errors_are_told_at_once(text: str) -> None:
    first, other = processes(2)
    first._wait_for_a_verdict = lambda: pytest.fail("waits")  # type: ignore[method-assign]
    with pytest.raises(ValueError), first.guard():
        raise ValueError(text)
    notice = Notice.from_text(other._notices._store.get("flaxtrain/notices/0", 0) or "")
    assert notice.reason == (f"ValueError: {text}" if text else "ValueError")


def test_an_uncaught_error_is_shown_told_once_and_gives_the_status() -> None:
    first, other = processes(2)
    error, shown = KeyError("x"), []
    with pytest.raises(KeyError), other.guard():
        raise error
    other.uncaught(error, lambda: shown.append(error))
    assert len(shown) == 1 and first._notices._store.get("flaxtrain/notices/1", 0) is None
    with pytest.raises(Left) as left:
        other.close()
    assert left.value.args == ("", 1)


def test_an_exit_within_the_work_keeps_its_status() -> None:
    other = processes(2)[1]
    with pytest.raises(SystemExit), other.guard():
        raise SystemExit(3)
    with pytest.raises(Left) as left:
        other.close()
    assert left.value.args == ("", 3)


def test_the_loss_of_the_service_is_that_of_process_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    other = processes(2)[1]
    with other._service():
        raise ServiceLost("UNAVAILABLE")
    with pytest.raises(Left, match="process 0 is gone: its connection broke"):
        other.watch(0.0)


def test_a_service_that_was_shut_down_in_order_is_no_loss() -> None:
    other = processes(2)[1]
    with other._service():
        raise ServiceLost("INVALID_ARGUMENT: not connected")
    other.watch(0.0)


def test_the_end_is_told_when_all_have_come_to_it() -> None:
    first, other = processes(2)
    first._ended = True
    second(first, other)
    assert not first._done.is_set()
    other._ended = True
    other.beat()
    first._done.wait = lambda timeout=None: True  # type: ignore[method-assign]
    second(first, other)
    assert first._done.is_set() and other._done.is_set()
