"""A frozen backbone costs what it costs to differentiate the head alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "frozen_cost.py"
    found: Any = importlib.util.spec_from_file_location("frozen_cost", path)
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "frozen_cost", module)  # dataclasses look there
    found.loader.exec_module(module)
    return module


def test_flops_and_temporary_bytes_are_those_of_differentiating_the_head(
    script: ModuleType,
) -> None:
    found = script.costs(width=64, depth=2)
    more = script.excess(found)
    # The script says where its bars come from.
    assert abs(more.flops) <= script.FLOPS_BAR, found
    assert abs(more.temporary) <= script.BYTES_BAR, found
    # The bars could be missed: the whole gradient takes three passes and keeps activations.
    assert found["full"].flops > 2.5 * found["frozen"].flops
    assert found["full"].temporary > 4 * found["frozen"].temporary
