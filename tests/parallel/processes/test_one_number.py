"""A number that all processes have to go by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flaxtrain.parallel.processes import of_process_0


def test_of_several_processes_each_has_the_number_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[Any] = []

    def broadcast(value: Any) -> Any:
        sent.append(value)
        return np.float32(0.5)

    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("jax.experimental.multihost_utils.broadcast_one_to_all", broadcast)
    assert of_process_0(0.25) == 0.5 and sent == [0.25]
    monkeypatch.setattr("jax.process_count", lambda: 1)
    assert of_process_0(0.25) == 0.25 and len(sent) == 1
