"""Masks of weight decay."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.errors import (
    ArgumentError,
    ArgumentTypeError,
    FlaxtrainError,
    ParameterError,
    UnknownNameError,
)
from flaxtrain.params import DECAY_PRESETS, ROLES, Facts, decay_mask, param_facts
from flaxtrain.params.decay import check_decay_choice, preset_differences
from flaxtrain.params.select import selector
from flaxtrain.tree import flatten, path_name
from tests.models import MLP, example
from tests.params.models import ROW, TOKENS, facts_of_example

ROOT = Path(__file__).resolve().parents[2]

FACTS = param_facts(MLP((4, 2)), ROW)


def decayed(facts: Any, preset: Any = "kernels") -> set[str]:
    return {
        path_name(path) for path, flag in flatten(decay_mask(facts, preset)).items() if flag
    }


def test_the_default_decays_kernels_and_recurrent_kernels_only() -> None:
    for name in ("CNN", "ViT", "GPT", "LSTM"):
        facts = facts_of_example(name)
        expected = {f.name for f in facts.params if f.role in ("kernel", "recurrent")}
        assert decayed(facts) == expected
        assert all(name.endswith("kernel") for name in expected)
    assert {"cell/hf/kernel", "cell/if/kernel"} <= decayed(facts_of_example("LSTM"))


def test_attention_biases_and_scanned_norms_are_left_alone_where_ndim_takes_them() -> None:
    facts = facts_of_example("GPT")
    taken_by_ndim = decayed(facts, "ndim") - decayed(facts, "kernels")
    assert {"blocks/attn/query/bias", "blocks/ln_1/scale", "wte/embedding"} <= taken_by_ndim
    assert "ln_f/scale" not in taken_by_ndim


def test_all_decays_everything() -> None:
    facts = facts_of_example("ViT")
    assert decayed(facts, "all") == {fact.name for fact in facts.params}


@pytest.mark.parametrize("name", ["ViT", "GPT"])
@pytest.mark.parametrize("preset", DECAY_PRESETS)
def test_a_mask_has_the_structure_of_the_params(name: str, preset: str) -> None:
    model, inputs = example(name)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs))["params"]
    mask = decay_mask(facts_of_example(name), preset)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    assert {type(flag) for flag in jax.tree.leaves(mask)} == {bool}


def test_a_function_of_the_fact_decides() -> None:
    assert decayed(FACTS, lambda fact: fact.owner_path == ("Dense_1",)) == {
        "Dense_1/bias",
        "Dense_1/kernel",
    }


def no_bias_no_norm(name: Any) -> bool:
    return "bias" not in name and "norm" not in name


def test_a_function_of_names_goes_by_the_class_of_the_module_too() -> None:
    """In this model norms are called `ln_1`, `ln_2` and `ln_f`."""
    facts = facts_of_example("GPT")
    roles = ("bias", "norm_scale", "norm_bias")
    expected = {f.name for f in facts.params if f.role not in roles}
    assert decayed(facts, no_bias_no_norm) == expected
    assert not any("norm" in name for name in expected)


def test_a_function_of_names_that_also_answers_for_facts_is_asked_again() -> None:
    assert decayed(FACTS, lambda name: str(name).endswith("kernel")) == {
        "Dense_0/kernel",
        "Dense_1/kernel",
    }


def test_a_function_that_fails_for_facts_and_names_fails_with_the_first_error() -> None:
    with pytest.raises(AttributeError, match="'ParamFact' object has no attribute 'roll'"):
        decay_mask(FACTS, lambda fact: fact.roll == "kernel")


def test_nested_dicts_are_taken_as_they_are() -> None:
    tree = {
        "Dense_1": {"kernel": np.bool_(True), "bias": False},
        "Dense_0": {"kernel": True, "bias": True},
    }
    assert decay_mask(FACTS, tree) == {
        "Dense_0": {"bias": True, "kernel": True},
        "Dense_1": {"bias": False, "kernel": True},
    }


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'kernels'"):
        decay_mask(FACTS, "kernel")


def test_another_structure_is_refused_with_the_paths() -> None:
    tree = {
        "Dense_0": {"kernel": True, "bias": False},
        "Dense_1": {"kernal": True, "bias": False},
    }
    with pytest.raises(ParameterError) as caught:
        decay_mask(FACTS, tree)
    assert "1 missing: Dense_1/kernel; 1 unknown: Dense_1/kernal" in caught.value.found
    with pytest.raises(ParameterError, match="4 missing: Dense_0/bias"):
        decay_mask(FACTS, {})
    with pytest.raises(ParameterError, match="unknown: Dense_0"):
        decay_mask(FACTS, {"Dense_0": True})


@pytest.mark.parametrize("value", [1, 0.5, None, "yes"])
def test_values_that_are_no_booleans_are_refused_with_the_parameter(value: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="not a bool") as caught:
        decay_mask(FACTS, lambda fact: value)
    assert caught.value.where == "decay_mask(facts, preset), parameter 'Dense_0/bias'"
    with pytest.raises(ArgumentTypeError):
        decay_mask(FACTS, FACTS.tree(lambda fact: value))


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_mask_at_all_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match=r"decay=3 is an int[^$]*nested dicts of bools"):
        decay_mask(FACTS, 3)  # pyright: ignore[reportArgumentType] -- the mistake under test


def test_roles_that_decay_are_roles() -> None:
    assert {"kernel", "recurrent"} <= set(ROLES)


# Selectors.


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("Dense_1", {"Dense_1/bias", "Dense_1/kernel"}),
        ("#kernel & ~Dense_1/**", {"Dense_0/kernel"}),
        ("**/bias", {"Dense_0/bias", "Dense_1/bias"}),
        ("re:.*0/kernel", {"Dense_0/kernel"}),
        (selector("#bias") & selector("Dense_0"), {"Dense_0/bias"}),
        (nn.Dense, {"Dense_0/bias", "Dense_0/kernel", "Dense_1/bias", "Dense_1/kernel"}),
        (["Dense_0/bias", lambda fact: fact.path == ("Dense_1", "kernel")],
         {"Dense_0/bias", "Dense_1/kernel"}),
    ],
    ids=range(7),
)  # fmt: skip
def test_a_selector_says_what_decays(choice: Any, expected: set[str]) -> None:
    check_decay_choice(choice, "decay=")
    assert decayed(FACTS, choice) == expected


@pytest.mark.parametrize(
    ("word", "fix"),
    [
        ("kernel", "did you mean 'kernels'?"),
        ("Kernels", "did you mean 'kernels'?"),
        ("big-vision", "did you mean 'big_vision'?"),
        ("levantor", "did you mean 'levanter'?"),
        ("none", "Known: all, big_vision, hf, kernels, levanter, ndim, timm"),
        ("Dense_2", "as a path, nearest: Dense_0, Dense_1"),
    ],
)
def test_a_word_that_is_neither_preset_nor_module_is_an_unknown_preset(
    word: str, fix: str
) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown decay preset '{word}'") as caught:
        decay_mask(FACTS, word)
    assert fix in str(caught.value.fix)


def test_a_module_called_like_a_preset_is_selected_by_a_glob() -> None:
    class Taken(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(2, name="encoder")(nn.Dense(2, name="all")(x))

    facts = param_facts(Taken(), ROW)
    assert len(decayed(facts, "all")) == 4
    assert decayed(facts, "all/**") == {"all/bias", "all/kernel"}
    assert decayed(facts, "encoder") == {"encoder/bias", "encoder/kernel"}


def test_a_selector_of_nothing_is_refused_with_the_nearest_path() -> None:
    with pytest.raises(ParameterError, match=r"matches 'Dense_7/[*][*]'") as caught:
        decay_mask(FACTS, "Dense_7/**")
    assert "nearest: Dense_" in str(caught.value.fix)


WRONG: list[tuple[Any, type[FlaxtrainError], str]] = [
    ("kernel", UnknownNameError, "did you mean 'kernels'"),
    ("tim", UnknownNameError, "did you mean 'timm'"),
    ("#kernels", UnknownNameError, "unknown role 'kernels'"),
    ("a & ", ArgumentError, "nothing where a selector is expected"),
    ("", ArgumentError, "an empty text"),
    ([], ArgumentError, "an empty list"),
    ([3], ArgumentTypeError, "3 is an int"),
    (0.9, ArgumentTypeError, r"decay=0.9 is a float[^$]*is called b1, b2 or rho"),
    (None, ArgumentTypeError, "decay=None is a NoneType"),
    (int, ArgumentTypeError, "int is no class of Linen modules"),
    (nn.Dense(2), ArgumentTypeError, "is a Dense"),
    ({"a": {"b": 1}}, ArgumentTypeError, r"decay\['a'\]\['b'\]=1 is an int, not a bool"),
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("choice", "error", "text"), WRONG, ids=range(len(WRONG)))
def test_what_no_model_could_decay_by_is_refused_without_one(
    choice: Any, error: type[FlaxtrainError], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        check_decay_choice(choice, "OptSpec(decay)")
    assert str(caught.value.where).startswith("OptSpec(decay)")


@pytest.mark.parametrize(
    "choice",
    [*DECAY_PRESETS, "encoder", "Dense_0", "head/**", "@Dense", nn.Dense, ["a", "#bias"], len],
    ids=str,
)
def test_what_a_model_could_decay_by_passes_without_one(choice: Any) -> None:
    check_decay_choice(choice, "OptSpec(decay)")
    check_decay_choice({"a": True, "b": {"c": np.bool_(False)}}, "OptSpec(decay)")


# The rules of other projects, on a model that has everything they disagree about.


class RMS(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return x * self.param("weight", nn.initializers.ones, (8,))[None, None]


class LayerScale(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return x * self.param("gamma", nn.initializers.ones, (1, 1, 8))


class Body(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        y = nn.MultiHeadDotProductAttention(2, name="attn")(nn.LayerNorm(name="ln_1")(x))
        return x + nn.Dense(8, name="fc")(y), None


class Everything(nn.Module):
    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        ones = nn.initializers.ones
        x = nn.Embed(7, 8, name="wte")(tokens) + self.param("cls", ones, (1, 1, 8))
        x = nn.Conv(8, (3,), name="conv")(x + self.param("pos_embedding", ones, (1, 4, 8)))
        x = nn.PReLU(name="prelu")(nn.BatchNorm(use_running_average=False, name="bn")(x))
        x = nn.MultiHeadDotProductAttention(2, name="attn")(nn.LayerNorm(name="ln_2")(x))
        axes, rngs = {"params": 0}, {"params": True}
        stack = nn.scan(Body, variable_axes=axes, split_rngs=rngs, length=3)(name="stack")
        x = LayerScale(name="ls")(stack(x, None)[0])
        x = RMS(name="ln_f")(nn.RNN(nn.OptimizedLSTMCell(8, name="lstm"))(x))
        return nn.Dense(3, name="head")(nn.WeightNorm(nn.Dense(8, name="wn"), name="v")(x))


@functools.cache
def everything() -> Facts:
    return param_facts(Everything(), TOKENS)


def split() -> list[list[str]]:
    """Returns a row per parameter: its name and class, and what each preset does to it."""
    sets = [decayed(everything(), preset) for preset in DECAY_PRESETS]
    return [
        [fact.name, fact.owner_name, *("D" if fact.name in names else "-" for names in sets)]
        for fact in everything().params
    ]


def test_every_preset_splits_the_parameters_as_written_down() -> None:
    text = (ROOT / "tests/golden/decay_presets.txt").read_text(encoding="utf-8")
    written = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert written[0] == ["path", "class", *DECAY_PRESETS]
    assert split() == written[1:]


def test_the_presets_decay_as_many_as_was_measured_with_the_projects_rules() -> None:
    """All numbers but that of `kernels` were found independently of this package."""
    assert len(everything()) == 49
    counts = {preset: len(decayed(everything(), preset)) for preset in DECAY_PRESETS}
    measured = {"all": 49, "ndim": 34, "timm": 25, "hf": 28, "big_vision": 20, "levanter": 28}
    assert counts == {"kernels": 20, **measured}


class Named(nn.Module):
    """Parameters whose names alone matter, each `[2, 2]`."""

    names: tuple[str, ...]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        kept = [self.param(name, nn.initializers.ones, (2, 2)) for name in self.names]
        return x[:, :2] @ functools.reduce(jnp.add, kept)


class AllNames(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        top = ("kernel", "bias", "pos_embed", "cls_token", "rel_bias_table")
        y = Named(top[2:], name="LayerNorm")(x) + Named(top[:2], name="q_norm")(x)
        y = y + Named(("w", "relative_position_bias_table"), name="TokenEmbedding")(x)
        y = y + nn.RMSNorm(name="last")(x).sum() + nn.GroupNorm(2, name="norm")(x).sum()
        kept = [self.param(name, nn.initializers.ones, (2, 2)) for name in top]
        return y + x[:, :2] @ functools.reduce(jnp.add, kept)


ALL_NAMES = {
    # Only `.bias` below the top level, and the names its models list.
    "timm": "LayerNorm/cls_token LayerNorm/pos_embed LayerNorm/rel_bias_table TokenEmbedding/w "
    "bias kernel q_norm/kernel rel_bias_table",
    # A level `norm` or `..._norm`, `layernorm` and `bias` anywhere, in any case.
    "hf": "TokenEmbedding/w cls_token kernel last/scale pos_embed",
    "big_vision": "q_norm/kernel",
    # Only these words, in capitals as they are, in path or class; `bias` only at the end.
    "levanter": "cls_token kernel norm/scale pos_embed q_norm/kernel rel_bias_table",
}


@pytest.mark.parametrize("preset", ALL_NAMES)
def test_a_copied_rule_goes_by_its_own_words(preset: str) -> None:
    facts = param_facts(AllNames(), ROW)
    assert decayed(facts, preset) == set(ALL_NAMES[preset].split())


def test_differences_say_what_each_preset_would_add_and_leave_out() -> None:
    facts = everything()
    differences = preset_differences(facts, "kernels")
    assert list(differences) == list(DECAY_PRESETS)
    ours = decayed(facts)
    for preset, (more, fewer) in differences.items():
        assert set(more) == decayed(facts, preset) - ours
        assert set(fewer) == ours - decayed(facts, preset)
        assert list(more) == [fact.name for fact in facts.params if fact.name in more]
    assert differences["kernels"] == differences["big_vision"] == ((), ())
    assert differences["timm"] == (
        ("cls", "ls/gamma", "pos_embedding", "stack/ln_1/scale", "wte/embedding"),
        (),
    )
    more, fewer = preset_differences(facts, "#kernel | wte")["big_vision"]
    assert more == tuple(f"lstm/h{gate}/kernel" for gate in "fgio")
    assert fewer == ("wte/embedding",)


# The page of the docs.

PAGE = (ROOT / "docs" / "decay.md").read_text(encoding="utf-8")


def page_rows(*titles: str) -> list[list[str]]:
    """Returns the cells of the table with these columns, without its header."""
    header = f"| {' | '.join(titles)} |\n"
    assert header in PAGE, f"docs/decay.md has no table {header}"
    lines = PAGE[PAGE.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines]


def test_the_page_shows_how_many_each_preset_decays() -> None:
    rows = page_rows("preset", "decays", "of 49")
    found = {preset: len(decayed(everything(), preset)) for preset in DECAY_PRESETS}
    assert {row[0]: int(row[2]) for row in rows} == found


def test_the_page_shows_every_parameter_the_presets_disagree_about() -> None:
    presets = [preset for preset in DECAY_PRESETS if preset != "all"]
    rows = page_rows("parameter", "class", *presets)
    place = 2 + list(DECAY_PRESETS).index("all")
    without_all = [row[:place] + row[place + 1 :] for row in split()]
    assert rows == [row for row in without_all if len(set(row[2:])) > 1]


def test_the_page_names_every_role_and_says_rightly_whether_it_decays() -> None:
    rows = page_rows("role", "what it is", "decays")
    assert [row[0] for row in rows] == list(ROLES)
    assert {row[0] for row in rows if row[2] == "yes"} == {"kernel", "recurrent"}
    assert {row[2] for row in rows} == {"yes", "no"}


def test_the_page_names_tests_that_exist() -> None:
    named = re.findall(r"`(test_\w+)`", PAGE)
    assert named and all(name in globals() for name in named)
