"""Makes `flaxtrain/data/embedded/digits.npz` from scikit-learn's copy of the UCI digits.

Run once, by hand: `python tests/golden/make_digits.py`. Needs scikit-learn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).parents[2] / "flaxtrain" / "data" / "embedded" / "digits.npz"
SPLIT_SEED = 0
VALIDATION = 360  # a fifth of 1,797, rounded up


def main() -> None:
    """Writes the file: the pixels and labels as they are, and one random split."""
    image, label = load_digits(return_X_y=True)
    order = np.random.Generator(np.random.PCG64(SPLIT_SEED)).permutation(len(label))
    np.savez_compressed(
        TARGET,
        image=image.reshape(-1, 8, 8).astype(np.uint8),
        label=label.astype(np.uint8),
        train_index=np.sort(order[VALIDATION:]).astype(np.int16),
        val_index=np.sort(order[:VALIDATION]).astype(np.int16),
    )
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
