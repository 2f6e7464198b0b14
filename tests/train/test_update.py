"""What the change of the state costs: no array of the state is copied."""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import flaxtrain as ft
from tests.runs import AS_IT_COMES

WIDTH = 96
BATCH = {"x": jnp.ones((4, WIDTH)), "label": jnp.zeros(4, jnp.int32)}


class Deep(nn.Module):
    """Its kernels are alone in having their shape."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(3):
            x = nn.relu(nn.Dense(WIDTH)(x))
        return nn.Dense(10)(x)


def test_norms_at_log_points_copy_no_parameter() -> None:
    """They read the old parameters, which the new ones take the place of."""
    recipe = ft.make_recipe(Deep(), ft.OptSpec("adamw", 0.1, clip_norm=1.0), BATCH)
    state = recipe.init(0)

    def step(state: Any, due: Any) -> Any:
        return ft.train_step(recipe, state, BATCH, norms=due)

    lowered = jax.jit(step, donate_argnums=0).lower(state, jnp.array(True))
    program = lowered.compile(compiler_options=AS_IT_COMES).as_text()
    assert program is not None
    made = re.findall(rf" = f32\[{WIDTH},{WIDTH}\]\S* (\w+)\(", program)
    assert "fusion" in made and "copy" not in made
