from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from flaxtrain.parallel.processes import lifeline
from flaxtrain.parallel.processes.lifeline import hold_on, offer
from tests.parallel.processes.together import Texts


def test_a_line_that_breaks_is_held_anew_until_nobody_takes_it() -> None:
    texts = Texts()
    offer(texts)
    server = lifeline._OFFERED.pop()
    server.settimeout(20.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(hold_on, texts, "127.0.0.1")
        server.accept()[0].close()  # as a router does that forgets it
        last = server.accept()[0]
        # It is held, until it breaks: on a slow machine, too, there is nothing to return.
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.1)
        server.close()
        last.close()
        assert waiting.result(timeout=20.0)


def test_lines_that_break_again_and_again_say_nothing() -> None:
    texts = Texts()
    offer(texts)
    server = lifeline._OFFERED.pop()
    server.settimeout(20.0)
    with server, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(hold_on, texts, "127.0.0.1")
        for _ in range(lifeline._CONNECTIONS):
            server.accept()[0].close()
        assert not waiting.result(timeout=20.0)


def test_where_there_is_no_line_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Texts()
    monkeypatch.setattr(lifeline, "_START_SECONDS", 0.0)
    assert not hold_on(texts, "127.0.0.1")
    texts.put("flaxtrain/lifeline", "0")
    assert not hold_on(texts, "127.0.0.1")


def test_a_first_call_that_nobody_takes_says_nothing() -> None:
    texts = Texts()
    # Nobody listens there, nor can anybody else begin to.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        texts.put("flaxtrain/lifeline", str(taken.getsockname()[1]))
        assert not hold_on(texts, "127.0.0.1")
