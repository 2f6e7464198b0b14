"""How a batch reaches the model when no loss function says so.

A tuple is `(inputs, targets)`. Of a dict, the entries go to the arguments of the module's
`__call__` that have their names; one entry alone goes to the first argument, whatever its name.
`label`, `labels`, `target`, `targets` and `y` are targets; `mask` and `weight` with one number
per example weigh the examples and are never inputs. Whatever does not fit is refused with a
loss function to copy, because a guess would train something else than was meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flaxtrain.data.padding import WEIGHT_KEYS, is_weight
from flaxtrain.data.suggestion import (
    TARGET_KEYS,
    is_reserved,
    loss_example,
    misspelt_target,
)
from flaxtrain.errors import LossError, MissingKeyError, nearest
from flaxtrain.typing import Array, Batch

__all__ = ["example_weights", "model_inputs", "target"]


def model_inputs(
    batch: Batch, argument_names: Sequence[str], required: Sequence[str] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments for the module's `__call__`.

    Args:
        batch: a dict or tuple of arrays, or one array.
        argument_names: the arguments of `__call__` that take data, in order (no `self`, no
            train flag).
        required: those without a default; when not given, the first.

    Returns:
        `(args, kwargs)`: call `model(*args, **kwargs)`.

    Raises:
        MissingKeyError: a required argument has no entry in the batch.
        LossError: entries are left over, or the tuple has more than two parts.

    Example:
        >>> batch = {"tokens": np.ones((2, 5)), "label": np.zeros(2)}
        >>> args, kwargs = model_inputs(batch, ["tokens", "lengths"])
        >>> args, list(kwargs)
        ((), ['tokens'])
        >>> args, kwargs = model_inputs(batch, ["x"])
        >>> args[0].shape, kwargs
        ((2, 5), {})
    """
    if not isinstance(batch, Mapping):
        return (_part(batch, 0, argument_names),), {}
    entries = {key: value for key, value in batch.items() if not is_reserved(batch, key)}
    named = {
        key: batch[key] for key in argument_names if key in batch and not is_weight(batch, key)
    }
    if not named and len(entries) == 1 and argument_names:
        return tuple(entries.values()), {}
    needed = argument_names[:1] if required is None else required
    missing = [name for name in needed if name not in named]
    if missing:
        raise _missing_input(batch, missing[0], argument_names)
    unused = [key for key in entries if key not in named]
    if unused:
        raise LossError(
            f"the entry {unused[0]!r} of the batch is no argument of the model's __call__, "
            f"which takes {_listed(argument_names)}",
            where="batch -> model",
            fix=_guess(unused[0], argument_names)
            + f"leave {unused[0]!r} out of the data set, or write the loss yourself:"
            + loss_example(batch, argument_names),
        )
    return (), named


def target(batch: Batch) -> Any:
    """Returns the part of the batch that the predictions are compared with.

    Args:
        batch: a dict with one of `TARGET_KEYS`, or a tuple `(inputs, targets)`.

    Raises:
        MissingKeyError: there is no target.
        LossError: there are several, or the tuple has more than two parts.

    Example:
        >>> target({"image": np.zeros((2, 8)), "label": np.array([3, 1])}).tolist()
        [3, 1]
    """
    if not isinstance(batch, Mapping):
        return _part(batch, 1, ())
    found = [key for key in TARGET_KEYS if key in batch]
    if len(found) == 1:
        return batch[found[0]]
    if found:
        raise LossError(
            f"the batch has {len(found)} targets: {_listed(found)}",
            where="batch -> target",
            fix="keep one of them, or write the loss yourself:" + loss_example(batch),
        )
    raise MissingKeyError(
        f"the batch has no target; its keys are {_listed(batch)}",
        where="batch -> target",
        fix=_guess_target(batch)
        + f"name the target one of {_listed(TARGET_KEYS)}, or write the loss yourself:"
        + loss_example(batch),
    )


def example_weights(batch: Batch) -> Array | np.ndarray | None:
    """Returns the weights of the examples that the batch itself carries.

    Args:
        batch: any batch; only dicts have weights: `mask` and `weight` of shape `[batch]`.

    Returns:
        Weights `[batch]`, the product if both are there, None if neither is.

    Example:
        >>> example_weights({"mask": np.array([True, False]), "weight": np.array([2.0, 3.0])})
        array([2., 0.])
    """
    weights = [batch[key] for key in WEIGHT_KEYS if is_weight(batch, key)]
    if not weights:
        return None
    return weights[0] if len(weights) == 1 else weights[0] * weights[1]


def _part(batch: Any, index: int, argument_names: Sequence[str]) -> Any:
    """Returns the input (0) or the target (1) of a batch that is not a dict."""
    parts = batch if isinstance(batch, tuple) else (batch,)
    if len(parts) > 2:
        raise LossError(
            f"the batch is a tuple of {len(parts)} parts, not (inputs, targets)",
            where="batch -> model",
            fix="use a dict, with an entry 'weight' for weights, or write the loss yourself:"
            + loss_example(batch, argument_names),
        )
    if index >= len(parts):
        raise MissingKeyError(
            "the batch holds inputs only, no target",
            where="batch -> target",
            fix="pass (inputs, targets), or write the loss yourself:"
            + loss_example(batch, argument_names),
        )
    return parts[index]


def _missing_input(
    batch: Mapping[str, Any], name: str, argument_names: Sequence[str]
) -> MissingKeyError:
    near = nearest(name, batch)
    hint = f"is {near[0]!r} meant? " if near else ""
    return MissingKeyError(
        f"the model's argument {name!r} has no entry in the batch, whose keys are "
        f"{_listed(batch)}",
        where="batch -> model",
        fix=f"{hint}rename the entry to {name!r}, or write the loss yourself:"
        + loss_example(batch, argument_names),
    )


def _guess(name: str, known: Sequence[str]) -> str:
    near = nearest(name, known)
    return f"is {near[0]!r} meant? " if near else ""


def _guess_target(batch: Mapping[str, Any]) -> str:
    slips = {key: misspelt_target(key) for key in batch}
    return "".join(f"is {key!r} meant as {name!r}? " for key, name in slips.items() if name)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
