from __future__ import annotations

import pytest

from flaxtrain.parallel.processes import coordination
from flaxtrain.parallel.processes.coordination import JaxStore, ServiceLost


class Client:
    """JAX's client, as far as the store uses it: answers with an error, or a value."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def _call(self, *args: object) -> object:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    key_value_set = key_value_try_get = blocking_key_value_get = _call
    key_value_dir_get = wait_at_barrier = _call


def test_what_is_not_there_is_no_error() -> None:
    late = JaxStore(Client(RuntimeError("DEADLINE_EXCEEDED: 300ms")))
    assert (late.get("a", 0.3), late.meet("b", 0.3)) == (None, False)
    assert JaxStore(Client(RuntimeError("NOT_FOUND: a"))).get("a", 0) is None
    assert not JaxStore(Client(RuntimeError("ALREADY_EXISTS: a"))).add("a", "x")


def test_what_is_there_is_returned() -> None:
    assert JaxStore(Client("text")).get("a", 1.0) == "text"
    assert JaxStore(Client(None)).add("a", "x") and JaxStore(Client(None)).meet("b", 1.0)
    assert JaxStore(Client([("a/1", "x")])).under("a") == {"1": "x"}


@pytest.mark.parametrize("text", ["UNAVAILABLE: Socket closed\nmore", "CANCELLED: ", "what"])
def test_all_else_is_the_loss_of_the_service(text: str) -> None:
    store = JaxStore(Client(RuntimeError(text)))
    for call in (lambda: store.get("a", 1.0), lambda: store.put("a", "x")):
        with pytest.raises(ServiceLost, match=f"^{text.partition(chr(10))[0]}$"):
            call()


def test_a_process_alone_has_no_store_and_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    assert coordination.store() is None
    assert not coordination.cluster_is_known()
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:8476")
    assert coordination.cluster_is_known()
