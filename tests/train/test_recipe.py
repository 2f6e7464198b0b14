"""Recipes that are made from others."""

from __future__ import annotations

import flax.linen as nn
import numpy as np

import flaxtrain as ft

BATCH = {"x": np.ones((4, 3), "float32"), "label": np.zeros(4, "int32")}
SPEC = ft.OptSpec("sgd", learning_rate=0.1, freeze=(ft.Freeze("layers_0/**", until=2),))


def test_a_changed_recipe_shares_no_phase_with_the_first() -> None:
    recipe = ft.make_recipe(nn.Sequential([nn.Dense(3), nn.Dense(2)]), SPEC, BATCH)
    later = recipe.at(2)
    assert later is recipe.at(3) and later is not recipe.at(0) is recipe
    changed = recipe.changed(streams=("noise",))
    assert changed.at(0) is changed
    assert changed.at(2).streams == ("noise",) and changed.at(2).phase == later.phase
    assert recipe.at(2) is later and later.streams != ("noise",)
