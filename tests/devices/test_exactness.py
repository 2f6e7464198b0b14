"""Training on several devices gives the numbers of one device.

Everything is float64 where numbers are compared closely, all metrics of a step too; sums over
rows are formed in another order, and Adam is left out, which turns a gradient of 1e-17 into a
whole step.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.parallel import make_mesh
from flaxtrain.tree import named_leaves
from tests.devices.runs import RATES
from tests.models import CNN, GPT, MLP
from tests.runs import assert_agree, same

GRADIENT_BAR, PARAMETER_BAR = 1e-12, 1e-10
ROWS, EXAMPLES = 12, 40  # neither 8 nor 12 divides the other
METRICS = {"loss", "accuracy", "grad_norm", "update_norm", "param_norm", "learning_rate"}


def classification(shape: tuple[int, ...], classes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, *shape))
    weight = rng.uniform(0.5, 2.0, EXAMPLES)
    return {"x": x, "label": rng.integers(0, classes, EXAMPLES), "weight": weight}


def language() -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(0, 11, (EXAMPLES, 7))
    return {"tokens": tokens[:, :-1], "label": tokens[:, 1:]}


CASES: dict[str, tuple[nn.Module, dict[str, np.ndarray]]] = {
    "MLP": (MLP(), classification((8,), 4)),
    "CNN with BatchNorm": (CNN(), classification((8, 8, 3), 3)),
    "transformer with dropout": (GPT(), language()),
}


def mesh(count: int, **axes: int) -> jax.sharding.Mesh:
    return make_mesh(axes or {"data": -1}, jax.devices()[:count])


def trained(
    name: str, steps: int, spec: ft.OptSpec, **arguments: Any
) -> tuple[ft.Trainer, Any]:
    module, data = CASES[name]
    arguments = {"precision": "f64", "verbose": False, "log_every": 1, **arguments}
    with jax.enable_x64(True):
        trainer = ft.Trainer(module, spec, **arguments)
        result = trainer.fit(ft.data.batches(data, ROWS), steps=steps)
    return trainer, result


def numbers(trainer: ft.Trainer, result: Any) -> dict[str, np.ndarray]:
    assert trainer.state is not None
    found = {f"params/{name}": leaf for name, leaf in named_leaves(trainer.state.params)}
    for row in result.history.train:
        named = {name: value for name, value in row.items() if not name.startswith(RATES)}
        assert named.keys() >= METRICS
        found |= {f"{name}/{row['step']}": np.asarray(value) for name, value in named.items()}
    return {name: np.asarray(leaf, np.float64) for name, leaf in found.items()}


@pytest.mark.parametrize(
    ("name", "accumulate", "counts"),
    [
        ("MLP", 1, (8,)),
        ("CNN with BatchNorm", 1, (1, 2, 4, 8)),
        ("CNN with BatchNorm", 4, (8,)),
        ("transformer with dropout", 1, (4,)),
        *(
            pytest.param(name, accumulate, (1, 2, 4, 8), marks=pytest.mark.slow)
            for name in CASES
            for accumulate in (1, 2, 4)
        ),
    ],
)
def test_four_steps_are_those_of_one_device(
    name: str, accumulate: int, counts: tuple[int, ...]
) -> None:
    # The fourth batch has 4 rows: of eight devices four have padding alone. With a learning
    # rate of 1 parameters move by the gradient.
    spec = ft.OptSpec("sgd", learning_rate=1.0, accumulate=accumulate)
    alone = numbers(*trained(name, 4, spec))
    for count in counts:
        found = numbers(*trained(name, 4, spec, mesh=mesh(count)))
        assert_agree(alone, found, GRADIENT_BAR)


@functools.cache
def after_fifty_steps(**axes: int) -> dict[str, np.ndarray]:
    where: dict[str, Any] = {"mesh": mesh(math.prod(axes.values()), **axes)} if axes else {}
    if "fsdp" in axes:
        where["sharding"] = ft.Sharding("fsdp", min_size=64)
    spec = ft.OptSpec("sgd", learning_rate=0.1)
    return numbers(*trained("CNN with BatchNorm", 50, spec, log_every=10, **where))


@pytest.mark.parametrize(
    "axes",
    [
        {"data": 8},
        {"data": 2, "fsdp": 4},
        *(pytest.param({"data": n}, marks=pytest.mark.slow) for n in (1, 2, 4)),
    ],
    ids=str,
)
def test_fifty_steps_of_sgd_with_batch_norm(axes: dict[str, int]) -> None:
    assert_agree(after_fifty_steps(), after_fifty_steps(**axes), PARAMETER_BAR)


def test_one_device_with_a_mesh_is_plain_jit_bit_for_bit() -> None:
    spec = ft.OptSpec("adamw", learning_rate=1e-2, ema=0.9)
    plain, _ = trained("CNN with BatchNorm", 5, spec, precision="f32")
    for sharding in ("replicated", "zero1", "fsdp"):
        found, _ = trained(
            "CNN with BatchNorm", 5, spec, precision="f32", mesh=mesh(1), sharding=sharding
        )
        assert same(plain.state, found.state), sharding


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 4}], ids=str)
def test_repeated_runs_have_the_same_bits(axes: dict[str, int]) -> None:
    spec = ft.OptSpec("adamw", learning_rate=1e-2, ema=0.9)
    arguments: dict[str, Any] = {"precision": "f32", "mesh": axes}
    first, again = (trained("CNN with BatchNorm", 5, spec, **arguments)[0] for _ in range(2))
    assert same(first.state, again.state)
    assert first.compilations["train"] == 1
