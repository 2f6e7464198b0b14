from __future__ import annotations

from flaxtrain.parallel.processes.beats import Beat, Beats, Peers
from tests.parallel.processes.together import Texts


def test_what_is_told_arrives_as_it_was() -> None:
    beat = Beat(3, 37, ended=True, suspects=True, asked=2, bound=38)
    assert Beat.from_text(beat.text()) == beat


def test_a_beat_that_was_there_before_is_no_sign_of_life() -> None:
    peers = Peers([1])
    for _ in range(3):
        peers.heard(1, Beat(4, batches=9))
        peers.passed(2.0)
    assert (peers.silence(1), peers.batches(1)) == (6.0, 9)
    peers.heard(1, Beat(5, batches=9))
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
    peers.heard(3, Beat(0, batches=1, ended=True, suspects=True))
    assert (peers.batches(3), peers.all_ended(), peers.any_suspects()) == (None, False, False)


def test_process_0_hears_all_others_and_these_hear_process_0() -> None:
    texts = Texts()
    beats = [Beats(texts, index, 3) for index in range(3)]
    for _ in range(2):
        for index, one in enumerate(beats):
            one.exchange(10 * index, index == 1)
    found = [[one.peers.batches(process) for process in range(3)] for one in beats]
    assert found == [[None, 10, 20], [0, None, None], [0, None, None]]
    assert beats[2].at_work() == {0: 0, 2: 20}


def test_who_is_ahead_in_the_same_run_is_known() -> None:
    peers = Peers([1, 2])
    peers.heard(1, Beat(0, batches=99, run=1))
    peers.heard(2, Beat(0, batches=9, run=2))
    assert [peers.ahead(2, batches) for batches in (9, 8)] == [None, 2]


def test_how_far_a_run_goes_is_known_when_all_have_said_it() -> None:
    peers = Peers([1, 2])
    peers.heard(1, Beat(0, asked=3, bound=12))
    assert peers.bound(3) is None
    peers.heard(2, Beat(0, asked=3, bound=9))
    assert (peers.bound(3), peers.bound(4)) == (12, None)
