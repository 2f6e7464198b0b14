"""The rows that each of several processes reads of a batch."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
import pytest

from flaxtrain.data import as_stream
from flaxtrain.errors import ArgumentError
from flaxtrain.loop.streams import on_devices
from tests.parallel.pods import pod

ARRAYS = {"x": np.arange(12)}


def parts() -> Iterator[dict[str, np.ndarray]]:
    yield {"x": np.arange(3)}


@pytest.fixture(autouse=True)
def _two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)


REFUSED = {
    "a model across processes": ({"model": 2, "data": 2}, [0, 0, 1, 1], "0 and 1 share rows"),
    "fewer shards than processes": ({"model": 4}, [0, 0, 1, 1], "0 and 1 share rows"),
    "a shard in both": ({"data": 2, "model": 2}, [0, 0, 0, 1], "0 and 1 share rows"),
    "more shards in one": ({"data": 4}, [0, 0, 0, 1], "0 and 1 have 3 and 1 shards"),
    "one process": ({"data": 4}, [0, 0, 0, 0], "no device of process 1"),
    "the other process": ({"data": 4}, [1, 1, 1, 1], "no device of process 0"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_rows_of_ones_own_are_refused_where_the_mesh_does_not_part_them(case: str) -> None:
    axes, owners, found = REFUSED[case]
    with pytest.raises(ArgumentError, match=found) as error:
        on_devices(as_stream(parts), pod(axes, owners))
    assert "pass arrays" in str(error.value.fix)


@pytest.mark.parametrize(
    ("axes", "owners", "rows"),
    [({"data": 2, "model": 2}, [0, 0, 1, 1], 6), ({"data": 2, "fsdp": 2}, [0, 1, 1, 0], 8)],
)
def test_rows_of_ones_own_are_aligned_to_the_shards_of_one_process(
    axes: dict[str, int], owners: list[int], rows: int
) -> None:
    stream = on_devices(as_stream(parts), pod(axes, owners))
    assert stream.rows == rows
    assert stream.may_be_padded, "another process may have fewer rows"


@pytest.mark.parametrize(
    ("axes", "owners", "found"),
    [
        ({"data": 4}, [0, 1, 0, 1], [0, 2]),
        ({"data": 4}, [0, 0, 1, 1], [0, 1]),
        ({"model": 2, "data": 2}, [0, 0, 1, 1], [0, 1, 2, 3]),
        ({"model": 4}, [0, 0, 1, 1], [0, 1, 2, 3]),
    ],
)
def test_of_arrays_each_process_reads_what_its_devices_hold(
    axes: dict[str, int], owners: list[int], found: list[int]
) -> None:
    source = as_stream(ARRAYS, batch_size=4, shuffle=False)
    stream = on_devices(source, pod(axes, owners))
    batches = [batch.data["x"].tolist() for batch in stream.epoch(0)]
    assert batches == [[4 * batch + row for row in found] for batch in range(3)]
    assert not stream.may_be_padded
