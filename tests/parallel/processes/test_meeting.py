from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flaxtrain.parallel.processes import meeting, until_process_0_is_done
from tests.parallel.processes.together import Texts


def nothing(name: str) -> None:
    with until_process_0_is_done(name):
        pass


def test_the_others_wait_until_process_0_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, index = Texts(), [1]
    monkeypatch.setattr(
        "flaxtrain.parallel.processes.coordination.store", lambda: (texts, index[0], 2)
    )
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(nothing, "test")
        texts.put("flaxtrain/test/0/begun", "yes")
        time.sleep(0.1)
        assert not waiting.done()
        texts.put("flaxtrain/test/0/done", "yes")
        waiting.result(timeout=20.0)
    monkeypatch.setattr(meeting, "_BEGIN_SECONDS", 0.1)
    nothing("test")  # process 0 does not come
    index[0] = 0
    with pytest.raises(KeyError), until_process_0_is_done("test"):  # waits for nobody
        assert list(texts.texts)[2:] == ["flaxtrain/test/2/begun"]
        raise KeyError
    assert "flaxtrain/test/2/done" in texts.texts
