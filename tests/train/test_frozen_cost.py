"""A frozen backbone costs what it costs to differentiate the head alone."""

from __future__ import annotations

from tests.runs import benchmark


def test_flops_and_temporary_bytes_are_those_of_differentiating_the_head() -> None:
    script = benchmark("frozen_cost")
    found = script.costs(width=64, depth=2)
    more = script.excess(found)
    # The script says where its bars come from.
    assert abs(more.flops) <= script.FLOPS_BAR, found
    assert abs(more.temporary) <= script.BYTES_BAR, found
    # The bars could be missed: the whole gradient takes three passes and keeps activations.
    assert found["full"].flops > 2.5 * found["frozen"].flops
    assert found["full"].temporary > 4 * found["frozen"].temporary
