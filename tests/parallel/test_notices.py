from __future__ import annotations

import pytest

from flaxtrain.parallel.notices import Beat, Notice, Peers


@pytest.mark.parametrize(
    "value",
    [Beat(3, 37, ended=True, suspects=True), Notice("failed", 1, 37, 2, 'a "quoted"\nline')],
)
def test_what_is_told_arrives_as_it_was(value: Beat | Notice) -> None:
    assert type(value).from_text(value.text()) == value


def test_a_beat_that_was_there_before_is_no_sign_of_life() -> None:
    peers = Peers([1])
    for _ in range(3):
        peers.heard(1, Beat(4, step=9))
        peers.passed(2.0)
    assert (peers.silence(1), peers.step(1)) == (6.0, 9)
    peers.heard(1, Beat(5, step=9))
    assert peers.silence(1) == 0.0


def test_the_one_that_is_silent_for_longest_is_named() -> None:
    peers = Peers([1, 2, 3])
    peers.passed(5.0)
    peers.heard(2, Beat(0))
    peers.heard(3, Beat(0))
    peers.passed(4.0)
    assert [peers.silent(limit) for limit in (8.0, 9.0, 3.0)] == [1, None, 1]


def test_beats_of_processes_that_are_not_watched_are_no_news() -> None:
    peers = Peers([0])
    peers.heard(3, Beat(0, step=1, ended=True, suspects=True))
    assert (peers.step(3), peers.all_ended(), peers.any_suspects()) == (None, False, False)
