"""What a checkpoint says of how steps are made is compared as data, not as text."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import flaxtrain as ft
from flaxtrain.errors import CheckpointError
from flaxtrain.loop.recorded import Change, Recorded


class Plain:
    """A user's own value, which prints its address."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Own:
    value: jax.Array
    step: float = field(default=2.0, metadata={"static": True})


def no_norm(fact: Any) -> bool:
    return fact.role != "norm_scale"


def after_json(value: Any) -> Recorded:
    meta = json.loads(json.dumps({"it": Recorded.of(value).as_meta()}, allow_nan=False))
    return Recorded.read(meta, "it", default=None, where="step 3")


@pytest.mark.parametrize(
    "make",
    [
        lambda: None,
        lambda: ft.Ema(0.9, every=3),
        lambda: ft.AccumulateBatches(2, microbatches=4),
        lambda: ft.DynamicScale(init=8.0),
        lambda: ft.Precision("bf16", {"@LayerNorm": "c=f32"}, update="kahan"),
        lambda: ft.Precision("bf16", {no_norm: "c=f32"}),
        lambda: ft.LoRA("**/kernel", rank=2, alpha=4, dtype="bfloat16"),
        lambda: ft.LoRA(lambda fact: True, rank=2),
        lambda: Own(jnp.float32(3.0)),
        lambda: {"kind": 1, 2: {"a": ft.Ema(0.9)}, "state": jnp.ones(2)},
        Plain,
    ],
)
def test_what_was_stored_is_the_same_as_what_is_made_anew(make: Any) -> None:
    change = Change(after_json(make()), Recorded.of(make()))
    assert not change.differs and not change.is_other_kind
    assert "0x" not in change.before.text


@pytest.mark.parametrize(
    ("before", "now", "other_kind"),
    [
        (None, ft.Ema(0.9), True),
        (ft.Swa(5), ft.Ema(0.9), True),
        (ft.Ema(0.9), ft.Ema(0.5), False),
        (ft.FixedScale(8.0), ft.FixedScale(16.0), False),
        (ft.DynamicScale(), ft.DynamicScale(growth_interval=3), False),
        (ft.NoScale(), ft.FixedScale(8.0), True),
        (ft.Precision("bf16"), ft.Precision("f16"), False),
        (ft.Precision(overrides={"a": "c=f16"}), ft.Precision(overrides={"b": "c=f16"}), False),
        (ft.LoRA("**/kernel", rank=2), ft.LoRA("**/kernel", rank=3), False),
        (Own(jnp.float32(3.0)), Own(jnp.float32(3.0), step=4.0), False),
        (Plain(), Own(jnp.float32(3.0)), True),
        ({"rate": 0.1}, {"rate": 0.2}, False),
        ({"rate": 0.1}, {"other": 0.1}, False),
        ({"kind": "Ema"}, ft.Ema(0.9), True),
    ],
)
def test_what_differs_is_told(before: Any, now: Any, other_kind: bool) -> None:
    change = Change(after_json(before), Recorded.of(now))
    assert change.differs and change.is_other_kind is other_kind


def test_numbers_in_the_state_are_no_difference() -> None:
    grown = ft.DynamicScale(init=8.0).adjust(finite=jnp.array(False))
    assert not Change(after_json(grown), Recorded.of(ft.DynamicScale(init=8.0))).differs


def test_what_a_checkpoint_does_not_say_is_the_default() -> None:
    assert Recorded.read({}, "ema", default=None, where="step 3") == Recorded.of(None)


@pytest.mark.parametrize(
    "said", [None, "Ema(0.9)", 2, {"data": 1}, {"kind": "Ema", "text": ""}]
)
def test_what_an_earlier_version_has_said_in_another_form_is_refused(said: Any) -> None:
    with pytest.raises(CheckpointError, match="what the checkpoint says of ema") as caught:
        Recorded.read({"ema": said}, "ema", default=None, where="step 3")
    assert caught.value.where == "step 3"
    assert caught.value.fix == "use another workdir, or an empty one"
