"""A spec as a value: it prints, compares, hashes, changes by copy, and resolves durations."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError, UnknownNameError
from flaxtrain.schedules import cosine_decay_schedule, warmup_cosine_decay_schedule
from flaxtrain.spec import OptSpec

RELATIVE = warmup_cosine_decay_schedule(0.0, 1e-3, warmup_steps="5%", decay_steps="100%")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (OptSpec("sgd", 0.1), "OptSpec('sgd', learning_rate=0.1)"),
        (
            OptSpec("adamw", 1e-3, b2=0.95, b1=0.8, clip_norm=1.0, decay="all"),
            "OptSpec('adamw', learning_rate=0.001, decay='all', clip_norm=1.0, b1=0.8, "
            "b2=0.95)",
        ),
        (
            OptSpec("adam", RELATIVE, weight_decay=0.0, nonfinite="skip"),
            "OptSpec('adam', learning_rate=warmup_cosine_decay_schedule(init_value=0.0, "
            "peak_value=0.001, warmup_steps='5%', decay_steps='100%'), weight_decay=0.0, "
            "nonfinite='skip')",
        ),
        (
            OptSpec(optim.sgd(0.1), clip_norm=2.0),
            "OptSpec(sgd(learning_rate=0.1), clip_norm=2.0)",
        ),
    ],
)
def test_prints_as_the_call_that_makes_it(spec: OptSpec, text: str) -> None:
    assert repr(spec) == text


def test_specs_compare_and_hash_by_value() -> None:
    def make() -> OptSpec:
        return OptSpec("adamw", cosine_decay_schedule(0.1, "100%"), b1=0.8, clip_norm=1.0)

    assert make() == make()
    assert hash(make()) == hash(make())
    assert OptSpec("adamw", 0.1, b1=0.8, b2=0.9) == OptSpec("adamw", 0.1, b2=0.9, b1=0.8)
    others = [make().replace(**change) for change in ({"b1": 0.7}, {"clip_norm": None})]
    others += [make().replace(learning_rate=cosine_decay_schedule(0.1, "50%"))]
    others += [make().replace(decay={"kernel": True}), make().replace(nonfinite="skip")]
    assert all(make() != other for other in others)
    assert make() != "adamw"
    assert len({make(), make(), *others}) == 1 + len(others)


def test_objects_and_masks_compare_too() -> None:
    assert OptSpec(optim.adam(0.1)) == OptSpec(optim.adam(0.1))
    assert OptSpec(optim.adam(0.1)) != OptSpec(optim.adam(0.2))
    foreign = optax.adam(0.1)
    assert OptSpec(foreign) == OptSpec(foreign)
    assert OptSpec(foreign) != OptSpec(optax.adam(0.1))
    mask = {"kernel": True, "bias": False}
    spec = OptSpec("adamw", 0.1, decay=mask)
    assert spec == OptSpec("adamw", 0.1, decay=dict(mask))
    assert hash(spec) == hash(OptSpec("adamw", 0.1, decay=dict(mask)))
    mask["kernel"] = False
    assert spec.decay == {"kernel": True, "bias": False}  # the spec keeps a copy


def test_a_spec_is_frozen() -> None:
    spec = OptSpec("sgd", 0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.clip_norm = 1.0  # type: ignore[misc]


def test_replace_keeps_what_is_not_named() -> None:
    spec = OptSpec("adamw", 0.1, b1=0.8, weight_decay=0.05, clip_norm=1.0)
    assert spec.replace(b2=0.9) == OptSpec(
        "adamw", 0.1, b1=0.8, b2=0.9, weight_decay=0.05, clip_norm=1.0
    )
    assert dict(spec.replace(b1=0.9).hyperparameters) == {"b1": 0.9}
    assert spec.replace() == spec
    assert spec.replace(clip_norm=None).clip_norm is None
    assert spec.replace(optimizer="sgd", hyperparameters={}).hyperparameters == ()


def test_replacing_the_optimizer_checks_its_hyperparameters() -> None:
    with pytest.raises(UnknownNameError, match="unknown argument 'b1'"):
        OptSpec("adam", 0.1, b1=0.8).replace(optimizer="sgd")
    with pytest.raises(ArgumentError, match="learning_rate"):
        OptSpec("adam", 0.1).replace(learning_rate=-0.1)


def test_the_standard_library_copies_specs_without_losing_hyperparameters() -> None:
    spec = OptSpec("adamw", RELATIVE, b1=0.8, clip_norm=1.0)
    assert dataclasses.replace(spec, clip_norm=2.0) == spec.replace(clip_norm=2.0)
    assert copy.copy(spec) == copy.deepcopy(spec) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    if sys.version_info >= (3, 13):
        assert copy.replace(spec, clip_norm=2.0) == spec.replace(clip_norm=2.0)


def test_scalars_of_numpy_and_jax_become_numbers() -> None:
    spec = OptSpec("adam", np.float64(0.1), b1=np.float64(0.5), clip_norm=jnp.float32(2.0))
    assert spec == OptSpec("adam", 0.1, b1=0.5, clip_norm=2.0)
    assert type(spec.learning_rate) is type(spec.clip_norm) is float


def test_dtypes_are_kept_by_name() -> None:
    spec = OptSpec("adam", 0.1, mu_dtype=jnp.bfloat16)
    assert spec == OptSpec("adam", 0.1, mu_dtype="bfloat16")
    assert spec == OptSpec("adam", 0.1, mu_dtype=jnp.dtype("bfloat16"))


def test_a_learning_rate_may_be_traced() -> None:
    def rate(learning_rate: jax.Array) -> jax.Array:
        spec = OptSpec("sgd", learning_rate, weight_decay=learning_rate)
        return spec.learning_rate + spec.weight_decay  # type: ignore[operator, return-value]

    np.testing.assert_array_equal(jax.vmap(rate)(jnp.array([1.0, 2.0])), [2.0, 4.0])


def test_resolve_turns_durations_into_steps() -> None:
    spec = OptSpec("adamw", RELATIVE, b1=0.8)
    ready = spec.resolve(Horizon(batches=1000))
    assert ready == spec.replace(
        learning_rate=warmup_cosine_decay_schedule(0.0, 1e-3, 50, 1000)
    )
    assert ready.resolve(Horizon()) is ready
    assert OptSpec("sgd", 0.1).resolve(Horizon()) == OptSpec("sgd", 0.1)
    with pytest.raises(ArgumentError, match="number of batches in the run is not known yet"):
        spec.resolve(Horizon(batches_per_epoch=10))


def test_resolve_reaches_into_objects_of_a_registered_name() -> None:
    spec = OptSpec(optim.adam(RELATIVE, b1=0.8), clip_norm=1.0)
    ready = warmup_cosine_decay_schedule(0.0, 1e-3, 50, 1000)
    resolved = spec.resolve(Horizon(batches=1000))
    assert resolved == OptSpec(optim.adam(ready, b1=0.8), clip_norm=1.0)
    assert resolved.resolve(Horizon()) is resolved


def test_any_function_of_the_count_is_a_learning_rate() -> None:
    spec = OptSpec("sgd", lambda count: 0.1 / (1 + count))
    assert callable(spec.learning_rate)
    assert spec == spec.replace()


def test_an_object_of_ones_own_keeps_what_it_is_whatever_its_name() -> None:
    @optim.named
    def lion(learning_rate: float, boost: int = 1) -> optim.GradientTransformation:
        return optim.scale(-learning_rate * boost)

    spec = OptSpec(lion(2, boost=3))
    update, _ = spec.optimizer.update(
        {"w": jnp.ones(2)}, spec.optimizer.init({"w": jnp.ones(2)})
    )
    assert update["w"][0] == -6.0
    assert lion(2.0) != optim.lion(2.0) and lion(2.0) == lion(2.0)
    assert OptSpec(optim.lion(1)) == OptSpec(optim.lion(1.0))
