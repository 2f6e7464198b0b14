"""Keys of random streams: pure functions of the run's key, nothing is carried.

root -> step -> batch of the update -> microbatch -> stream and call -> flax: module and draw
What is one of a kind adds nothing. Each fold of a number that is not known before the run is
about a hundred scalar operations on a TPU, beside which a small model's step is not large.
"""

from __future__ import annotations

import zlib
from typing import Any

import jax

from flaxtrain.typing import Array, Key

__all__ = ["fold_key", "microbatch_key", "step_key", "stream_key"]


def step_key(root: Key, step: Array | int) -> Key:
    """Returns the key of one step, from which all that its loss function draws is derived.

    Args:
        root: the run's typed key.
        step: number of updates made so far, an int or an int32 scalar.
    """
    return jax.random.fold_in(root, step)


def microbatch_key(key: Key, index: Array | int) -> Key:
    """Returns the key of one microbatch: what the step's key is for a batch at once.

    Args:
        key: the step's typed key.
        index: the number of the microbatch within its batch, from 0; int32 scalar.

    Returns:
        A typed key.

    Example:
        >>> key = step_key(jax.random.key(0), 5)
        >>> bool(microbatch_key(key, 0) == microbatch_key(key, 1))
        False
    """
    return jax.random.fold_in(key, index)


def stream_key(key: Key, stream: str, call: int = 0) -> Key:
    """Returns the key of a random stream in one call of the model.

    Most models draw for dropout only, and are called once: this draw has `key` itself. Flax
    folds a hash of module and draw into it, and here it is one of stream and call.

    Args:
        key: of the step or the microbatch.
        stream: the stream's name, such as `"dropout"`.
        call: number of the model call within the step.

    Example:
        >>> key = step_key(jax.random.key(0), 5)
        >>> bool(stream_key(key, "dropout") == key), bool(stream_key(key, "dropout", 1) == key)
        (True, False)
    """
    # Not flax's LazyRng, which would fold both hashes at once: `nn.jit` drops what is in it.
    if stream == "dropout" and call == 0:
        return key
    return jax.random.fold_in(key, zlib.crc32(f"{stream}/{call}".encode()))


def fold_key(root: Key, purpose: str, number: Any) -> Key:
    """Derives a key for what is drawn beside the loss function, such as rounding.

    Args:
        root: the run's key.
        purpose: what is drawn.
        number: which draw it is, such as the number of updates made; an int or int32 scalar.
    """
    key = jax.random.fold_in(root, zlib.crc32(purpose.encode()))
    return jax.random.fold_in(key, number)
