"""The UCI digits, small enough to travel inside the package."""

from __future__ import annotations

from importlib import resources
from typing import Literal

import numpy as np

from flaxtrain.errors import unknown_name

__all__ = ["digits"]

_SPLITS = ("random", "writers")


def digits(
    split: Literal["random", "writers"] = "random",
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns 1,797 handwritten digits of 8x8 pixels, as training and validation set.

    Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, doi:10.24432/C50P49, CC BY 4.0; see `flaxtrain/data/embedded/README.md`.

    Args:
        split: `"random"`: 1,437 and 360 digits by indices that are stored with the data, so
            that figures compare; `"writers"`: the same numbers in the order of the file, whose
            end other people wrote than its beginning. The second is harder.

    Returns:
        Two dicts of new arrays: `image`, float32 `[n, 8, 8, 1]` in `[0, 1]`, and `label`, int32
        `[n]` in `0..9`.

    Raises:
        UnknownNameError: there is no such split.

    Example:
        >>> train, val = digits()
        >>> train["image"].shape, val["label"].shape
        ((1437, 8, 8, 1), (360,))
    """
    if split not in _SPLITS:
        raise unknown_name("split", str(split), _SPLITS, where="digits")
    file = resources.files("flaxtrain.data").joinpath("embedded", "digits.npz")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        stored = {name: archive[name] for name in archive.files}
    count = len(stored["train_index"])
    every = np.arange(len(stored["label"]))
    train, val = (
        (stored["train_index"], stored["val_index"])
        if split == "random"
        else (every[:count], every[count:])
    )
    return _take(stored, train), _take(stored, val)


def _take(stored: dict[str, np.ndarray], index: np.ndarray) -> dict[str, np.ndarray]:
    """Pixels are counts of 0 to 16."""
    image = stored["image"][index].astype(np.float32)[..., None] / np.float32(16)
    return {"image": image, "label": stored["label"][index].astype(np.int32)}
