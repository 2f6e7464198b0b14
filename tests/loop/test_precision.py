"""`Trainer(precision=...)`: training, plans, resuming, frozen features, real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.errors import CheckpointError, FlaxtrainError, ParameterError
from flaxtrain.precision import Precision
from tests.models import CNN
from tests.runs import bits, refused

RNG = np.random.default_rng(0)
ARRAYS = {
    "x": RNG.normal(size=(24, 5)).astype("float32"),
    "label": RNG.integers(0, 3, 24).astype("int32"),
}
SHORT = Precision("p=bf16,c=bf16", update="kahan")


class Tuned(nn.Module):
    """A body with BatchNorm and dropout, and a head."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = Body(name="body")(x, train)
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(3, name="head")(nn.Dropout(0.3, deterministic=not train)(x))


class Small(nn.Module):
    """Two layers, for what does not depend on the model."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3, name="head")(nn.relu(nn.Dense(4, name="body")(x)))


class Normed(nn.Module):
    """BatchNorm before a layer."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        return nn.Dense(3)(nn.BatchNorm(not train)(x))


class Body(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.relu(nn.BatchNorm(not train, momentum=0.5)(nn.Dense(8)(x)))
        return nn.Dense(4)(nn.Dropout(0.2, deterministic=not train)(x))


def trainer(precision: Any, model: nn.Module | None = None, **kwargs: Any) -> ft.Trainer:
    spec = kwargs.pop("spec", ft.OptSpec("sgd", learning_rate=0.05, momentum=0.9))
    chosen = Tuned() if model is None else model
    return ft.Trainer(chosen, spec, precision=precision, verbose=False, **kwargs)


def data() -> Any:
    return ft.data.batches(ARRAYS, 8, shuffle=True, seed=3)


@pytest.mark.parametrize(
    "precision",
    [
        Precision("p=bf16,c=bf16", {"body": "c=f32"}, update="stochastic"),
        pytest.param("bf16", marks=pytest.mark.slow),
    ],
    ids=["a body in f32", "bf16"],
)
def test_cached_features_change_no_bit_under_a_policy(precision: Any) -> None:
    spec = ft.OptSpec("sgd", learning_rate=0.05, momentum=0.9, freeze="body/**")
    plain, cached = trainer(precision, spec=spec), trainer(precision, spec=spec)
    plain.fit(data(), epochs=2)
    result = cached.fit(data(), epochs=2, cache_frozen=True)
    assert result.timings["features"] > 0
    assert bits(cached.state) == bits(plain.state)


def test_training_evaluation_and_prediction_run_and_compile_once() -> None:
    ours = trainer(SHORT, Normed())
    result = ours.fit(data(), epochs=2, eval_ds=ARRAYS)
    assert np.isfinite(result.history.train[-1]["loss"])
    predicted = ours.predict({"x": ARRAYS["x"]})
    assert predicted.dtype == np.float32 and predicted.shape == (24, 3)
    assert ours.compilations["train"] == 1
    assert ours.state is not None
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(ours.state.params)}
    assert dtypes == {"bfloat16"}
    stats = jax.tree.leaves(ours.state.collections)
    assert {leaf.dtype.name for leaf in stats} == {"float32"}


def test_a_run_is_continued_with_what_was_rounded_off(tmp_path: Path) -> None:
    through = trainer(SHORT, Small())
    through.fit(data(), epochs=2)
    trainer(SHORT, Small(), workdir=tmp_path).fit(data(), epochs=1)
    second = trainer(SHORT, Small(), workdir=tmp_path)
    second.fit(data(), epochs=2)
    counters = ("counters/", "loss_scale")
    first_bits = {k: v for k, v in bits(through.state).items() if not k.startswith(counters)}
    assert first_bits == {
        k: v for k, v in bits(second.state).items() if not k.startswith(counters)
    }
    assert any(name.startswith("rounding_carry/body/") for name in first_bits)
    # Another rule keeps something else, other dtypes are not cast in silence.
    for other, text in [
        (Precision("p=bf16,c=bf16", update="master"), "updated by 'kahan'"),
        (Precision("p=f32,c=bf16", update="kahan"), "rounding_carry/body/kernel"),
    ]:
        with pytest.raises(CheckpointError, match=text):
            trainer(other, Small(), workdir=tmp_path).fit(data(), epochs=3)
    # What is computed in may differ; that is said.
    said: list[str] = []

    class Said(ft.Hook):
        def on_start(self, run: Any) -> None:
            said.extend(run.announcements)
            raise StopIteration  # before anything is compiled

    other = Precision("p=bf16,c=f32", update="kahan")
    third = trainer(other, Small(), workdir=tmp_path, hooks=[Said()])
    with pytest.raises(StopIteration):
        third.fit(data(), epochs=3)
    assert any(
        line.startswith("precision was Precision('p=bf16,c=bf16,o=f32'") for line in said
    )


def test_master_weights_are_the_loaded_ones_before_they_are_rounded() -> None:
    full = trainer("f32", Small())
    full.fit(data(), epochs=1)
    assert full.state is not None
    weights = {"params": full.state.params, **full.state.collections}
    spec = ft.OptSpec("sgd", learning_rate=0.0)
    short = trainer(
        Precision("p=bf16,c=bf16", update="master"),
        Small(),
        spec=spec,
        init_from=ft.Restore(jax.device_get(weights)),
    )
    short.fit(data(), epochs=1)
    assert short.state is not None
    assert bits(short.state.rounding_carry) == bits(full.state.params)


# Loss scale and plan.


def test_float16_gets_a_dynamic_loss_scale_unless_one_is_given() -> None:
    plan = trainer("f16", Small()).plan(data())
    assert plan.options.startswith("loss scale DynamicScale(")
    notes = [note for note in plan.notes if "loss_scale" in note]
    assert len(notes) == 1 and notes[0].startswith("loss_scale= was not given, and float16")
    given = trainer("f16", Small(), loss_scale=ft.FixedScale(2.0**10)).plan(data())
    assert given.options == "loss scale FixedScale(value=1024.0)"
    assert not [note for note in given.notes if "loss_scale" in note]
    assert not trainer("bf16", Small()).plan(data()).options


def test_the_plan_lists_the_resulting_dtypes() -> None:
    precision = Precision("p=bf16,c=bf16", {"@LayerNorm": "f32"}, update="master")
    plan = trainer(precision).plan(data())
    norms = 2 * 4
    values = sum(row.size for row in plan.table.rows)
    assert plan.dtypes.stored == {
        "bfloat16": (8, 2 * (values - norms)),
        "float32": (2, 4 * norms),
    }
    assert plan.dtypes.computed == {
        "bfloat16": ("BatchNorm", "Dense"),
        "float32": ("LayerNorm",),
    }
    assert (plan.dtypes.output, plan.dtypes.update) == ("float32", "master")
    assert plan.dtypes.carry == 4 * (values - norms)
    assert not plan.warnings and plan.to_dict()["dtypes"]["update"] == "master"
    assert "float32 master copies" in str(plan) and "computed in bfloat16" in plan.markdown()
    default = trainer("f32", Small()).plan(data())
    assert "computed as the model says" in str(default) and default.dtypes.computed == {}


def test_adapters_with_a_dtype_keep_it_beside_kernels_of_16_bits() -> None:
    found = []
    for dtype, overrides in [(None, {}), ("float32", {}), ("float32", {"#lora": "p=bf16"})]:
        adapters = ft.LoRA("**/kernel", rank=1, dtype=dtype)
        precision = Precision("p=bf16,c=bf16", overrides)
        plan = trainer(precision, Small(), adapters=adapters).plan(data())
        found.append({name: count for name, (count, _) in plan.dtypes.stored.items()})
    assert found == [{"bfloat16": 8}, {"bfloat16": 4, "float32": 4}, {"bfloat16": 8}]


def test_the_plan_warns_of_updates_that_vanish_and_of_a_policy_without_effect() -> None:
    vanish = trainer("p=bf16,c=bf16", Small()).plan(data()).warnings
    assert len(vanish) == 1 and vanish[0].startswith("4 trained parameters of 16 bits")
    assert not trainer(SHORT, Small()).plan(data()).warnings
    idle = trainer(Precision("bf16", update="kahan"), Small()).plan(data()).warnings
    assert len(idle) == 1 and idle[0].startswith("Precision(update='kahan') has nothing to do")
    # A model that was written for bfloat16 parameters is warned of as well.
    own = nn.Dense(3, param_dtype=jnp.bfloat16)
    assert "2 trained parameters of 16 bits" in trainer("f32", own).plan(data()).warnings[0]

    explicit = nn.Sequential([nn.Dense(4, dtype=jnp.float32), nn.Dense(3, dtype=jnp.float32)])
    plan = trainer("bf16", explicit).plan(data())
    assert len(plan.warnings) == 1 and "does not reach any module" in plan.warnings[0]
    assert plan.dtypes.own == {"float32": ("Dense",)} and "own dtype=" in str(plan)


class Unless(nn.Module):
    """Sets a dtype where it has none: a layer's, of its own; a norm's, in any case."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.LayerNorm(dtype=jnp.float32, name="norm")(x)
        return nn.Dense(3, dtype=self.dtype or jnp.float32, name="head")(x)


def test_the_plan_says_what_becomes_of_a_dtype_that_is_made_from_another_one() -> None:
    plan = trainer(Precision("bf16", {"norm": "c=f16"}), Unless()).plan(data())
    assert plan.dtypes.own == {"bfloat16": ("Dense",), "float32": ("LayerNorm",)}
    # And of an override of a dtype that stays what it is.
    told = "precision says c=f16 for 'norm', and the model sets the dtype of norm itself"
    assert len(plan.warnings) == 1 and plan.warnings[0].startswith(told)


UnlessJitted = nn.jit(Unless)
"""`nn.jit` answers from what was traced before."""


def test_the_plan_says_the_same_each_time() -> None:
    plans = [trainer("bf16", UnlessJitted()).plan(data()) for _ in range(3)]
    for plan in plans:
        assert plan.dtypes.own == {"bfloat16": ("Dense",), "float32": ("LayerNorm",)}


# What is refused.


@pytest.mark.parametrize(
    ("precision", "text"),
    [
        (Precision("bf16", {"@LayerNrm": "c=f32"}), "no parameter matches '@LayerNrm'"),
        (Precision("bf16", {"heat/**": "c=f32"}), "no parameter matches 'heat/**'"),
        (Precision("bf16", {"#bias": "c=f32"}), "the parameters of one"),
        (Precision("bf16", {"**": "c=f32", "head": "c=f16"}), "earlier overrides have all"),
        (Precision("f64"), "float64 is asked for"),
        (Precision("bf16", {"head": "c=f64"}), "float64 is asked for"),
    ],
)
def test_policies_that_do_not_fit_the_model_are_refused(precision: Any, text: str) -> None:
    refused(lambda: trainer(precision, Small()).plan(data()), FlaxtrainError, text)


def test_a_selector_that_cannot_be_read_is_refused_at_once() -> None:
    refused(lambda: trainer(Precision("bf16", {"#bais": "c=f32"})), FlaxtrainError, "bais")
    refused(lambda: trainer("bf61"), FlaxtrainError, "unknown precision 'bf61'")


def test_roles_that_a_module_has_alone_and_stored_dtypes_may_be_selected() -> None:
    plan = trainer(Precision("bf16", {"#bias": "p=bf16"}, update="kahan"), Small()).plan(data())
    assert plan.dtypes.stored["bfloat16"][0] == 2
    with pytest.raises(ParameterError, match="Dense differ"):
        trainer(Precision("bf16", {"#kernel": "c=f32"}), Small()).plan(data())


# Real data.


def learnt(precision: Any, learning_rate: float) -> float:
    """Returns the accuracy on digits after 200 steps."""
    train, test = ft.data.digits()
    model = CNN(features=(8, 16), classes=10, dropout=0.0)
    ours = trainer(precision, model, spec=ft.OptSpec("adam", learning_rate))
    ours.fit(ft.data.batches(train, 64, shuffle=True, seed=0), steps=200)
    return ours.evaluate(test)["accuracy"]


def short(update: str) -> Precision:
    """Returns parameters and arithmetic in bfloat16, but for BatchNorm."""
    return Precision("p=bf16,c=bf16", {"@BatchNorm": "f32"}, update=update)


@pytest.mark.slow
def test_digits_are_learnt_as_well_in_16_bits() -> None:
    policies = {
        name: name if name in ("f32", "bf16", "f16") else short(name)
        for name in ("f32", "bf16", "f16", "nearest", "master", "stochastic", "kahan")
    }
    accuracy = {name: learnt(policy, 3e-3) for name, policy in policies.items()}
    # 360 test examples: 0.02 are seven of them.
    assert accuracy["f32"] > 0.95, accuracy
    assert all(value > accuracy["f32"] - 0.02 for value in accuracy.values()), accuracy


@pytest.mark.slow
def test_with_a_small_learning_rate_only_rounding_to_nearest_falls_behind() -> None:
    full, nearest = learnt("f32", 3e-4), learnt(short("nearest"), 3e-4)
    assert nearest < full - 0.1, (full, nearest)  # measured: 0.786 and 0.608
    for rule in ("master", "stochastic", "kahan"):
        assert abs(learnt(short(rule), 3e-4) - full) < 0.02, rule
