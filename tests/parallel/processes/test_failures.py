from __future__ import annotations

from flaxtrain.parallel.processes.failures import Failures
from flaxtrain.parallel.processes.notices import Notice


def failed(process: int, fit: int) -> Notice:
    return Notice("failed", process, number=fit)


def test_an_error_of_all_has_ended_nobody() -> None:
    failures = Failures({1, 2})
    failures.begin()
    assert failures.fail() == 1 and failures.have_ended_others
    assert not failures.heard(failed(1, 1)) and failures.have_ended_others
    assert not failures.heard(failed(2, 1)) and not failures.have_ended_others


def test_a_second_error_in_the_same_work_is_another_one() -> None:
    first, other = Failures({1}), Failures({0})
    for one in (first, other):
        one.begin()
        one.fail()
    assert first.heard(failed(1, other.fail()))
    first.fail()  # which it has, too
    assert not first.have_ended_others


def test_who_fails_itself_is_spared_for_a_while_and_waits_for_no_beat() -> None:
    failures = Failures({1})
    failures.begin()
    failures.heard(failed(1, 1))
    failures.spare(10.0)
    assert failures.spares(failed(1, 1)) and failures.may_be_silent == {1}
    assert not failures.spares(Notice("lost", 1, number=1))
    failures.passed(11.0)
    assert not failures.spares(failed(1, 1)) and not failures.may_be_silent
