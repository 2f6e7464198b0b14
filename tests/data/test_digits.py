from __future__ import annotations

import hashlib
from importlib import resources

import numpy as np
import pytest

from flaxtrain.data import digits
from flaxtrain.errors import UnknownNameError

CONTENTS = {
    "image": "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3",
    "label": "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0",
    "train_index": "1295d467ef80ec40b5dea41624e12318b6a505236e9eef6ec9895c48ec7bbeb0",
    "val_index": "a09432103e2f4e6afd1fd9414a630b326b9a8030b9bca85366ba3b4fd305042c",
}


def stored() -> dict[str, np.ndarray]:
    file = resources.files("flaxtrain.data").joinpath("embedded", "digits.npz")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def test_the_contents_are_the_recorded_ones() -> None:
    found = {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in stored().items()}
    assert found == CONTENTS


@pytest.mark.parametrize("split", ["random", "writers"])
def test_both_splits_have_the_promised_form(split: str) -> None:
    for part, count in zip(digits(split), (1437, 360), strict=True):
        image, label = part["image"], part["label"]
        assert (image.shape, image.dtype) == ((count, 8, 8, 1), np.float32)
        assert (label.shape, label.dtype) == ((count,), np.int32)
        assert image.min() == 0.0 and image.max() == 1.0
        assert set(label.tolist()) == set(range(10))


def test_the_random_split_covers_every_digit_once() -> None:
    arrays = stored()
    both = np.concatenate([arrays["train_index"], arrays["val_index"]])
    assert sorted(both.tolist()) == list(range(1797))


def test_the_writers_split_is_the_order_of_the_file() -> None:
    train, val = digits("writers")
    label = np.concatenate([train["label"], val["label"]])
    np.testing.assert_array_equal(label, stored()["label"])


def test_every_call_returns_arrays_of_its_own() -> None:
    first, _ = digits()
    first["image"] *= 0
    assert digits()[0]["image"].max() == 1.0


@pytest.mark.usefixtures("unchecked_types")
def test_an_unknown_split_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'writers'"):
        digits("writer")  # type: ignore[arg-type]
