"""The tree utilities give what optax's give: same values, dtypes and structures."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import tree

KEY = jax.random.key(0)


def real(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "a": jnp.asarray(random.normal(size=(3, 2)), jnp.float32),
        "b": [jnp.asarray(random.normal(size=4), jnp.bfloat16), jnp.float32(seed + 0.5)],
        "none": None,
        "n": jnp.arange(1, 4) * (seed + 1),
    }


def complex_(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    z = random.normal(size=(2, 5)) + 1j * random.normal(size=(2, 5))
    return {"z": jnp.asarray(z, jnp.complex64), "a": jnp.asarray(z.real, jnp.float32)}


X, Y, Z, W = real(0), real(1), complex_(2), complex_(3)
NUMBERS = {"x": 1.5, "y": -2, "z": True}
WITH_EMPTY = {"a": jnp.zeros((0, 3)), "b": jnp.array([-1.0, 2.0])}
PAIRS = {"real": (X, Y), "complex": (Z, W), "numbers": (NUMBERS, NUMBERS), "empty": ({}, {})}
TREES = {name: pair[0] for name, pair in PAIRS.items()}


def assert_same(ours: Any, theirs: Any) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert jnp.asarray(a).dtype == jnp.asarray(b).dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "vdot", "allclose"])
def test_functions_of_two_trees(name: str, pair: tuple[Any, Any]) -> None:
    if name == "sub" and pair[0] is NUMBERS:
        pair = ({"x": 1.5}, {"x": 2})
    ours, theirs = getattr(tree, name)(*pair), getattr(optax.tree, name)(*pair)
    if name == "vdot" and pair[0] is Z:
        # Theirs flattens, and a product of complex vectors adds in another order.
        np.testing.assert_allclose(ours, theirs, rtol=5e-7)
        return
    assert_same(ours, theirs)


@pytest.mark.parametrize("one", TREES.values(), ids=TREES)
@pytest.mark.parametrize(
    "name",
    ["conj", "real", "sum", "size", "norm", "zeros_like", "ones_like", "split_key_like"],
)
def test_functions_of_one_tree(name: str, one: Any) -> None:
    arguments = (KEY, one) if name == "split_key_like" else (one,)
    ours, theirs = getattr(tree, name)(*arguments), getattr(optax.tree, name)(*arguments)
    if name == "split_key_like":
        ours, theirs = map(tree.unwrap_random_key_data, (ours, theirs))
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("add", (X, Y, X)),
        ("scale", (0.5, X)),
        ("scale", (2.0, {"z": Z["z"], "x": 3, "none": None})),
        ("add_scale", (X, 0.5, Y)),
        ("add_scale", (Z, jnp.float32(2.0), W)),
        ("add_scale", ({"a": None}, 2.0, {"a": jnp.ones(2)})),
        ("clip", (X, -0.5, 1)),
        ("clip", (X, None, 0.25)),
        ("clip", (X,)),
        ("where", (jnp.array(True), X, Y)),
        ("where", (False, X, Y)),
        ("where", (jnp.array([True, False]), {"a": jnp.ones(2)}, {"a": jnp.zeros(2)})),
        ("max", ({"a": X["a"], "n": X["n"]},)),
        ("min", ({"a": X["a"], "n": X["n"]},)),
        ("max", (WITH_EMPTY,)),
        ("min", (WITH_EMPTY,)),
        ("max", ({},)),
        ("min", ({},)),
        ("max", ({"n": jnp.array([1, 5])},)),
        ("sum", (X, True)),
        ("norm", (X, 1)),
        ("norm", (Z, 1)),
        ("norm", (Z, "inf")),
        ("norm", (X, jnp.inf)),
        ("norm", (X, "infinity", True)),
        ("norm", (Z, 2, True)),
        ("norm", (X, 1, True)),
        ("batch_shape", (X, (3, 2))),
        ("batch_shape", (NUMBERS,)),
        ("zeros_like", (X, jnp.int32)),
        ("ones_like", (X, jnp.bfloat16)),
        ("full_like", (X, 3)),
        ("full_like", (X, 0.1, jnp.float16)),
        ("cast", (X, jnp.float16)),
        ("cast", (X, None)),
        ("cast_like", (X, tree.zeros_like(X, jnp.float16))),
        ("cast_like", ({"x": jnp.ones(2)}, {"x": 1.0})),
        ("random_like", (KEY, {"a": X["a"], "z": Z["z"]})),
        ("random_like", (KEY, X, jax.random.uniform, jnp.float32)),
        ("random_like", (KEY, {"n": X["n"]}, jax.random.rademacher)),
        ("unwrap_random_key_data", ({"k": KEY, "x": X, "old": jax.random.PRNGKey(3)},)),
        ("allclose", (X, tree.add_scale(X, 1e-3, X), 0.0, 1e-2)),
        ("allclose", ({"a": jnp.nan}, {"a": jnp.nan}, 1e-5, 1e-8, True)),
        ("allclose", ({"a": jnp.nan}, {"a": jnp.nan})),
    ],
)
def test_functions_with_arguments(name: str, arguments: tuple[Any, ...]) -> None:
    assert_same(getattr(tree, name)(*arguments), getattr(optax.tree, name)(*arguments))


@pytest.mark.parametrize("handler", [None, "promote", "highest", "lowest"])
@pytest.mark.parametrize(
    "dtypes",
    [(), (jnp.float32,), (jnp.float16, jnp.float32), (jnp.int32, jnp.bfloat16)],
)
def test_the_dtype_of_a_tree(dtypes: tuple[Any, ...], handler: str | None) -> None:
    leaves = [jnp.ones(2, dtype) for dtype in dtypes]
    if handler is None and len(dtypes) > 1:
        with pytest.raises(ValueError, match=r"0: .*1: "):
            tree.dtype(leaves)
    else:
        assert tree.dtype(leaves, handler) == optax.tree.dtype(leaves, handler)


def test_sums_and_inner_products_work_under_jit_and_on_shards() -> None:
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        where = jax.sharding.NamedSharding(mesh, jax.P("x"))
        one = {"a": jax.device_put(jnp.arange(4.0), where)}
        assert float(jax.jit(tree.vdot)(one, one)) == 14.0


def test_every_name_of_optax_is_there() -> None:
    # Those that need an optimizer are in flaxtrain.optim.
    elsewhere = {"map_params", "bias_correction"}
    elsewhere |= {name for name in vars(optax.tree) if name.startswith("update_")}
    names = {name for name in vars(optax.tree) if not name.startswith("_")} - elsewhere
    assert names <= set(tree.__all__)
    assert {"NamedTupleKey"} <= set(tree.__all__)
