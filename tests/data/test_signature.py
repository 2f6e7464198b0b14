from __future__ import annotations

import numpy as np
import pytest

from flaxtrain.data.signature import Signature

FIRST = {"x": np.ones((4, 2)), "y": np.ones(4)}


@pytest.mark.parametrize("rows", [1, 4])
def test_smaller_batches_and_other_orders_of_keys_are_alike(rows: int) -> None:
    found = {"y": FIRST["y"][:rows], "x": FIRST["x"][:rows]}
    assert Signature.of(FIRST).difference(Signature.of(found)) is None


def test_all_that_is_wrong_with_the_names_is_said_at_once() -> None:
    found = Signature.of({"a": np.ones(4), "b": np.ones(4)})
    assert Signature.of(FIRST).difference(found) == (
        "the batch lacks x, y and adds a, b; the first has x, y"
    )


def test_a_bare_array_has_a_name_in_messages() -> None:
    difference = Signature.of(np.ones((4, 2))).difference(Signature.of(np.ones((4, 3))))
    assert difference == "the batch has rows of shape (3,), in the first batch (2,)"
