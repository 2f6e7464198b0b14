"""Loss scales: the three verbs, and the dynamic scale against a model of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError
from flaxtrain.precision import DynamicScale, FixedScale, LossScale, NoScale

NAN, INF = float("nan"), float("inf")
SCALES = [NoScale(), FixedScale(2.0**15), DynamicScale(init=2.0**12)]


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: type(scale).__name__)
def test_unscaled_gradients_are_those_of_the_loss(scale: Any) -> None:
    w = {"w": jnp.array([0.3, -2.0]), "none": None}

    def loss(w: Any) -> Any:
        return jnp.sum(w["w"] ** 3)

    scaled = jax.grad(lambda w: scale.scale(loss(w)))(w)
    # A power of two: nothing is rounded.
    np.testing.assert_array_equal(scale.unscale(scaled)["w"], jax.grad(loss)(w)["w"])


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: type(scale).__name__)
def test_a_scale_is_a_state_that_compiles_once(scale: Any) -> None:
    assert isinstance(scale, LossScale)
    traces = []

    @jax.jit
    def step(scale: Any, finite: Any) -> Any:
        traces.append(finite)
        return scale.adjust(finite)

    state = scale
    for finite in (True, False, True):
        state = step(state, jnp.array(finite))
    assert len(traces) == 1
    assert jax.tree.structure(state) == jax.tree.structure(scale)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(state)]
    assert dtypes == [leaf.dtype for leaf in jax.tree.leaves(scale)]


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: type(scale).__name__)
def test_dtypes_are_kept(scale: Any) -> None:
    grads = {name: jnp.ones(2, name) for name in ("float16", "bfloat16", "complex64", "int32")}
    for name, leaf in scale.unscale(grads).items():
        assert leaf.dtype == name
    assert scale.scale(jnp.ones((), jnp.float16)).dtype == jnp.float16


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: type(scale).__name__)
def test_python_and_numpy_numbers_are_scaled_like_arrays(scale: Any) -> None:
    factor = scale.scale(jnp.float32(1.0))
    for number in (2.0, np.float32(2.0), np.float64(2.0)):
        scaled = scale.scale(number)
        assert isinstance(scaled, jax.Array) and scaled == 2 * factor
        grads = scale.unscale({"w": number, "n": 3, "none": None})
        assert grads["w"] == 2 / factor and grads["n"] == 3 and grads["none"] is None


def test_a_dynamic_scale_is_not_made_of_tracers() -> None:
    for name in ("init", "min", "max", "factor", "growth_interval"):
        with pytest.raises(ArgumentTypeError, match=f"{name} is not known while tracing"):
            jax.jit(lambda value, n=name: DynamicScale(**{n: value}).value)(1.0)


def test_a_scale_whose_reciprocal_is_no_float16_divides_float16_all_the_same() -> None:
    large = 2.0**26
    assert np.float16(1 / large) == 0.0
    state = DynamicScale(init=large, max=large)
    for scale in (FixedScale(large), state):
        # 2^15 / 2^26 = 2^-11
        assert float(scale.unscale({"w": jnp.array(2.0**15, jnp.float16)})["w"]) == 2.0**-11


def oracle(
    finite: np.ndarray, init: float, interval: int, factor: float, low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """The rule of the docstring in Python."""
    scale, count, scales, counts = init, 0, [], []
    for good in finite:
        if good:
            count += 1
            if count == interval:
                scale, count = min(scale * factor, high), 0
        else:
            scale, count = max(scale / factor, low), 0
        scales.append(scale)
        counts.append(count)
    return np.array(scales), np.array(counts)


@pytest.mark.parametrize(
    ("settings", "chance"),
    [
        ({}, 0.999),
        ({"init": 2.0**10, "growth_interval": 7}, 0.9),
        ({"init": 1.0, "growth_interval": 1, "max": 2.0**20}, 0.52),
        ({"init": 8.0, "growth_interval": 3, "factor": 4.0, "min": 0.125, "max": 64.0}, 0.8),
    ],
)
def test_a_hundred_thousand_random_steps_equal_the_oracle(
    settings: dict[str, Any], chance: float
) -> None:
    finite = np.random.default_rng(0).random(100_000) < chance
    start = DynamicScale(**settings)

    def step(scale: DynamicScale, good: Any) -> Any:
        scale = scale.adjust(good)
        return scale, (scale.value, scale.count)

    _, (values, counts) = jax.jit(lambda s, f: jax.lax.scan(step, s, f))(start, finite)
    wanted = oracle(
        finite, start.init, start.growth_interval, start.factor, start.min, start.max
    )
    # Powers of two are exact in float32.
    np.testing.assert_array_equal(values, wanted[0])
    np.testing.assert_array_equal(counts, wanted[1])
    assert len(set(wanted[0])) > 3, "the scale moved"


def test_the_scale_stays_between_its_limits() -> None:
    scale = DynamicScale(init=2.0, growth_interval=1, factor=10.0, min=1.0, max=5.0)
    assert float(scale.adjust(jnp.array(True)).value) == 5.0
    assert float(scale.adjust(jnp.array(False)).value) == 1.0


def test_a_scale_survives_being_mapped_to_anything() -> None:
    scale = DynamicScale()
    for function in (lambda leaf: None, lambda leaf: leaf.shape, lambda leaf: "text"):
        mapped = jax.tree.map(function, scale)
        assert mapped.value == function(scale.value)
    assert jax.eval_shape(lambda s: s.adjust(jnp.array(True)), scale).value.shape == ()


WRONG: list[tuple[Callable[[], Any], type[FlaxtrainError], str]] = [
    (lambda: FixedScale(0.0), ArgumentError, "value=0.0 is out of range"),
    (lambda: FixedScale(-2.0), ArgumentError, "value=-2.0 is out of range"),
    (lambda: FixedScale(INF), ArgumentError, "value=inf is out of range"),
    (lambda: FixedScale("2"), ArgumentTypeError, "value='2' is a str, not a number"),  # type: ignore[arg-type]
    (lambda: DynamicScale(init=NAN), ArgumentError, "init=nan is out of range"),
    (lambda: DynamicScale(growth_interval=0), ArgumentError, "growth_interval=0 is too small"),
    (lambda: DynamicScale(growth_interval=2.5), ArgumentTypeError, "not an integer"),  # type: ignore[arg-type]
    (lambda: DynamicScale(factor=1.0), ArgumentError, "factor=1.0 is out of range"),
    (lambda: DynamicScale(min=0.0), ArgumentError, "min=0.0 is out of range"),
    (lambda: DynamicScale(max=-1.0), ArgumentError, "max=-1.0 is out of range"),
    (lambda: DynamicScale(init=0.5), ArgumentError, "init=0.5 is not between min=1 and max"),
    (lambda: DynamicScale(max=1e39), ArgumentError, r"max=1e\+39 is no normal float32 number"),
    (lambda: DynamicScale(min=1e-39), ArgumentError, "min=1e-39 is no normal float32 number"),
    (lambda: FixedScale(1e39), ArgumentError, r"value=1e\+39 is no normal float32 number"),
    (
        lambda: DynamicScale(growth_interval=2**31),
        ArgumentError,
        "growth_interval=2147483648 is too large",
    ),
    (lambda: DynamicScale(value=1e39), ArgumentError, r"value=1e\+39 is no normal float32"),  # type: ignore[arg-type]
    (lambda: DynamicScale(value=jnp.ones(2)), ArgumentTypeError, r"value has shape \(2,\)"),
    (lambda: DynamicScale(count=2**31), ArgumentError, "count=2147483648 is too large"),
    (lambda: replace(DynamicScale(), factor=1.0), ArgumentError, "factor=1.0 is out of range"),
    (lambda: replace(DynamicScale(), min=2.0**20), ArgumentError, "init=32768 is not between"),
]


@pytest.mark.parametrize(("make", "error", "text"), WRONG)
def test_a_wrong_argument_raises(
    make: Callable[[], Any], error: type[FlaxtrainError], text: str
) -> None:
    with pytest.raises(error, match=text):
        make()


FIELDS = [field.name for field in fields(DynamicScale)]


@pytest.mark.parametrize("value", ["a", "", None, True, NAN, INF, -1, -1.5, (), object()])
@pytest.mark.parametrize("name", FIELDS)
def test_no_field_takes_what_is_no_number_of_its_range(name: str, value: Any) -> None:
    makers: list[Callable[..., Any]] = [DynamicScale, partial(replace, DynamicScale())]
    makers += [FixedScale] if name == "value" else []
    for make in makers:
        with pytest.raises((ArgumentError, ArgumentTypeError)) as caught:
            make(**{name: value})
        assert caught.value.found.startswith(name)
        assert caught.value.where == getattr(make, "__name__", "DynamicScale")


def test_only_a_count_may_be_zero() -> None:
    assert DynamicScale(count=0).count == 0  # type: ignore[arg-type]
    for name in set(FIELDS) - {"count"}:
        with pytest.raises(ArgumentError, match=f"{name}=0"):
            DynamicScale(**{name: 0})  # type: ignore[arg-type]


def test_a_scale_and_a_count_that_are_given_have_the_dtypes_of_the_state() -> None:
    given = DynamicScale(value=np.float64(8.0), count=3)  # type: ignore[arg-type]
    assert (given.value.dtype, given.count.dtype) == (jnp.float32, jnp.int32)
    assert (float(given.value), int(given.count)) == (8.0, 3)
    # Tracers pass, whatever they will be.
    traced = jax.jit(lambda value, count: DynamicScale(value=value, count=count))(-1, 2.0)
    assert (float(traced.value), int(traced.count)) == (-1.0, 2)


def test_leaves_are_named_and_rebuilt_as_they_are() -> None:
    scale = DynamicScale(growth_interval=7)
    named, structure = jax.tree_util.tree_flatten_with_path(scale)
    assert [jax.tree_util.keystr(path) for path, _ in named] == [".value", ".count"]
    again = jax.tree.unflatten(structure, [leaf for _, leaf in named])
    assert again == scale and jax.tree.structure(again) == structure
    assert structure != jax.tree.structure(DynamicScale(growth_interval=8))


def test_a_training_step_scales_unscales_and_skips_an_overflow() -> None:
    batch = {"x": np.ones((4, 3), np.float32), "target": np.full((4, 2), 100.0, np.float32)}
    recipe = ft.make_recipe(nn.Dense(2), ft.OptSpec("adam", learning_rate=0.1), batch)
    step = jax.jit(ft.train_step, static_argnums=0)
    start = recipe.init(seed=0)
    plain, _ = step(recipe, start, batch)

    state, _ = step(recipe, start.replace(loss_scale=FixedScale(2.0**10)), batch)
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)  # a compiler fuses the factor its own way

    # 2^127 times a loss of about 10,000 is no float32: the step is skipped, the scale falls.
    scale = DynamicScale(init=2.0**127, growth_interval=1, max=2.0**127, factor=2.0**64)
    skipped, _ = step(recipe, start.replace(loss_scale=scale), batch)
    assert float(skipped.loss_scale.value) == 2.0**63
    assert int(skipped.step) == 0
    for a, b in zip(jax.tree.leaves(start.params), jax.tree.leaves(skipped.params)):
        np.testing.assert_array_equal(a, b)
    taken, _ = step(recipe, start.replace(loss_scale=skipped.loss_scale), batch)
    assert int(taken.step) == 1 and float(taken.loss_scale.value) == 2.0**127
