from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from flaxtrain.parallel import lifeline
from flaxtrain.parallel.lifeline import hold_on, offer
from tests.parallel.test_peer_watch import Texts


def test_the_line_breaks_when_the_one_who_offered_it_ends() -> None:
    texts = Texts()
    offer(texts)
    broken = hold_on(texts, "127.0.0.1")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(broken)
        assert not waiting.done()
        lifeline._OFFERED.pop().close()
        assert waiting.result(timeout=20.0)


def test_where_there_is_no_line_nothing_is_said() -> None:
    texts = Texts()
    texts.put("flaxtrain/lifeline", "0")
    assert not hold_on(texts, "127.0.0.1")()
