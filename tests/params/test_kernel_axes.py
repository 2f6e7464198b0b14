"""Which axes of a kernel are summed over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from flaxtrain.errors import ArgumentTypeError
from flaxtrain.params import facts_from
from flaxtrain.params.kernel_axes import LINEAR, KernelAxes, einsum_axes, kernel_axes
from tests.models import example
from tests.params import models


def initialiser(model: nn.Module, *inputs: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda extra: model.init({"params": jax.random.key(0), **extra}, *inputs)


def axes_of(model: nn.Module, *inputs: Any) -> dict[Any, KernelAxes]:
    return kernel_axes(initialiser(model, *inputs))


@pytest.mark.parametrize("name", ["MLP", "CNN", "ResNet", "ViT", "GPT", "LSTM"])
def test_every_kernel_of_the_four_classes_is_found(name: str) -> None:
    model, inputs = example(name)
    facts = facts_from(initialiser(model, inputs))
    expected = {
        fact.path
        for fact in facts.params
        if fact.path[-1] == "kernel" and fact.owner in (*LINEAR,)
    }
    assert set(axes_of(model, inputs)) == expected


def test_attention_goes_from_features_to_heads_and_back() -> None:
    axes = axes_of(*example("GPT"))
    assert axes["blocks", "attn", "value", "kernel"] == KernelAxes(into=(0,))
    assert axes["blocks", "attn", "out", "kernel"] == KernelAxes(into=(0, 1))


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Dense(3), (2, 4), KernelAxes((0,))),
        (nn.Conv(4, (3, 3), feature_group_count=2), (1, 5, 5, 2), KernelAxes((0, 1, 2))),
        (nn.Conv(4, 3), (1, 5, 2), KernelAxes((0, 1))),
        (nn.DenseGeneral((3, 2), axis=(1, -1)), (2, 4, 5, 6), KernelAxes((0, 1))),
        (nn.DenseGeneral(3, axis=-1, batch_dims=(0,)), (2, 4, 5), KernelAxes((1,), (0,))),
        (nn.Einsum((2, 6, 4), "btd,hdk->bthk"), (2, 3, 6), KernelAxes((1,))),
        (nn.ConvTranspose(4, (3,)), (1, 5, 2), None),
        (nn.ConvLocal(4, (3,)), (1, 5, 2), None),
    ],
)
def test_the_axes_are_those_of_the_module(
    module: nn.Module, shape: tuple[int, ...], expected: KernelAxes | None
) -> None:
    assert axes_of(module, jnp.ones(shape)).get(("kernel",)) == expected


@pytest.mark.parametrize(
    ("subscript", "rank", "expected"),
    [
        ("abc,cde->abde", 3, KernelAxes((0,))),
        ("btd, hdk -> bthk", 3, KernelAxes((1,))),
        ("bed,edk->bek", 3, KernelAxes((1,), (0,))),
        ("...d,dk->...k", 2, KernelAxes((0,))),
        ("...d,...dk->...k", 4, KernelAxes((2,), (0, 1))),
        ("bd,kdz->bk", 3, KernelAxes((1, 2))),  # z is summed over without the input
        ("bd,dk", 2, None),
    ],
)
def test_a_subscript_tells_the_axes_of_its_kernel(
    subscript: str, rank: int, expected: KernelAxes | None
) -> None:
    assert einsum_axes(subscript, rank) == expected


class CalledWithSubscript(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Einsum((8, 2, 3), name="args")(x, "bd,dhk->bhk")
        return nn.Einsum((2, 3, 5), name="kwargs")(x, einsum_str="bhk,hko->bo")


def test_a_subscript_may_come_with_the_call() -> None:
    axes = axes_of(CalledWithSubscript(), models.ROW)
    assert axes["args", "kernel"] == KernelAxes((0,))
    assert axes["kwargs", "kernel"] == KernelAxes((0, 1))


def test_modules_are_seen_behind_jit_remat_norms_of_weights_and_shared_scopes() -> None:
    jitted = nn.jit(nn.remat(nn.Dense))(3)
    for _ in range(2):  # the second time, `nn.jit` has a compiled program
        assert axes_of(jitted, models.ROW) == {("kernel",): KernelAxes((0,))}
    normed = axes_of(models.Normalised(nn.WeightNorm), models.ROW)
    assert normed == {("fc", "kernel"): KernelAxes((0,))}
    shared = models.HasLowRank()
    kernels = [
        path for path in facts_from(initialiser(shared, models.ROW)) if path[-1] == "kernel"
    ]
    assert list(axes_of(shared, models.ROW)) == kernels


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="initialise is a dict, not a function"):
        kernel_axes({})  # pyright: ignore[reportArgumentType] -- the mistake under test
