"""Runs on several devices, compared number by number with those on one."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import flaxtrain as ft
from tests.runs import readable

__all__ = ["LAYOUTS", "RATES", "Net", "assert_close", "data", "numbers_of"]

MODEL_RULES = [("body/kernel", (None, "model")), ("mid/kernel", ("model", None))]

LAYOUTS: dict[str, dict[str, Any]] = {
    "replicated": {"mesh": {"data": 8}},
    "zero1": {"mesh": {"data": 8}, "sharding": ft.Sharding("zero1", min_size=64)},
    "fsdp": {"mesh": {"fsdp": 8}, "sharding": ft.Sharding("fsdp", min_size=64)},
    "data and fsdp": {
        "mesh": {"data": 2, "fsdp": 4},
        "sharding": ft.Sharding("fsdp", min_size=64),
    },
    "tensor": {"mesh": {"data": 4, "model": 2}, "sharding": ft.Sharding(rules=MODEL_RULES)},
    "pmap": {"backend": "pmap"},
}
"""The arguments of a trainer for eight devices, by name."""

RATES = ("steps_per_sec", "examples_per_sec", "tokens_per_sec", "data_wait_share", "eta")
"""How names in a history begin that are about time."""


class Net(nn.Module):
    """`[rows, 16] -> [rows, 4]`: two hidden layers with BatchNorm, and a head."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.Dense(32, use_bias=False, name="body")(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.8, name="norm")(x))
        x = nn.relu(nn.Dense(16, name="mid")(x))
        return nn.Dense(4, name="head")(x)


def data(examples: int = 40, seed: int = 0, dtype: Any = "float64") -> dict[str, np.ndarray]:
    """Returns examples for `Net`: more rows than batches of 12 hold, no multiple of 8."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, 16)).astype(dtype)
    return {"x": x, "label": rng.integers(0, 4, examples).astype("int32")}


def numbers_of(trainer: ft.Trainer, result: ft.FitResult) -> dict[str, np.ndarray]:
    """Returns all that a run has left behind: the state, and the history but for its rates."""
    found = {f"state/{name}": leaf for name, leaf in readable(trainer.state).items()}
    for kind in ("train", "val"):
        for index, row in enumerate(getattr(result.history, kind)):
            named = {k: v for k, v in row.items() if not k.startswith(RATES)}
            found |= {f"{kind}/{index}/{name}": np.asarray(v) for name, v in named.items()}
    return found


def assert_close(
    one: dict[str, np.ndarray], other: dict[str, np.ndarray], bar: float, narrow: float
) -> None:
    """Compares numbers relative to the largest entry of their array; integers exactly.

    Args:
        one: what is expected.
        other: what was found.
        bar: for arrays of float64, and for the metrics of training.
        narrow: for all others, and for the metrics of evaluation.
    """
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    for name, wanted in one.items():
        found = other[name]
        assert (wanted.shape, wanted.dtype) == (found.shape, found.dtype), name
        if not jnp.issubdtype(wanted.dtype, jnp.floating):
            assert np.array_equal(wanted, found), (name, wanted, found)
            continue
        wide, got = wanted.astype("float64"), found.astype("float64")
        assert np.isfinite(wide).all() and np.isfinite(got).all(), name
        largest = np.abs(wide).max(initial=0.0)
        gap = np.abs(wide - got).max(initial=0.0)
        exact = wanted.dtype == "float64" and name.startswith(("state", "train"))
        allowed = bar if exact else narrow
        assert gap <= allowed * largest, (name, gap / largest)
