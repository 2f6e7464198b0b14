"""The compiled function that makes several steps keeps one state, and changes it in place."""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.loop.step_programs import TrainProgram
from flaxtrain.loop.steps_per_call import CallForm
from tests.runs import AS_IT_COMES

ROWS, STEPS = 8, 4
BATCH = {"x": np.zeros((ROWS, 96), "float32"), "label": np.zeros(ROWS, "int32")}


class Mlp(nn.Module):
    """Kernels of [96, 97] and [97, 98]: no other array has these shapes."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(98)(nn.relu(nn.Dense(97)(x)))


def text_and_memory(form: Any, spec: ft.OptSpec) -> tuple[str, int, int]:
    """Returns the optimized program, its temporary bytes, and those of the state."""
    recipe = ft.make_recipe(Mlp(), spec, BATCH)
    program, state = TrainProgram(recipe, 50), recipe.init(0)
    window = program.empty_window(state, BATCH, None)
    data = jax.tree.map(lambda leaf: np.stack([leaf] * STEPS), BATCH)
    span = np.array([0, STEPS], "int32")
    block = program.block(CallForm(STEPS, form))
    lowered = block._jitted.lower(state, window, data, None, np.int32(-1), span)
    compiled = lowered.compile(compiler_options=AS_IT_COMES)
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None
    return text, memory.temp_size_in_bytes, memory.alias_size_in_bytes


@pytest.mark.parametrize("form", ["loop", pytest.param("unrolled", marks=pytest.mark.slow)])
def test_the_state_is_changed_in_place(form: Any) -> None:
    text, temporary, state = text_and_memory(form, ft.OptSpec("adamw", 1e-3))
    assert state >= 3 * 4 * (96 * 97 + 97 * 98)
    # The gradient, and room for what becomes of it: no second state.
    assert temporary <= 1.1 * state
    assert not re.findall(r"f32\[(?:96,97|97,98)\]\S* copy\(", text)


@pytest.mark.slow
def test_only_sums_of_gradients_are_copied_where_several_batches_make_an_update() -> None:
    spec = ft.OptSpec("adamw", 1e-3, accumulate=ft.AccumulateBatches(3))
    text, _, _ = text_and_memory("loop", spec)
    # Of two loops, each with a conditional: of four arrays per kernel, one is copied.
    assert len(re.findall(r"f32\[96,97\]\S* copy\(", text)) <= 4
