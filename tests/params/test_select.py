"""Selectors: what their texts mean, how they are written, and what is refused."""

from __future__ import annotations

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from flaxtrain.errors import (
    ArgumentError,
    ArgumentTypeError,
    FlaxtrainError,
    ParameterError,
    UnknownNameError,
    UnknownParameterError,
)
from flaxtrain.params import Facts, ParamFact, param_facts
from flaxtrain.params.select import Selector, select, selected_tree, selector
from flaxtrain.tree import path_name
from tests.params.models import CASES, ROW, SEQUENCE, facts_of, facts_of_example

Array = jax.Array


class QuietNorm(nn.LayerNorm):
    pass


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x + nn.Dense(8, name="fc")(QuietNorm(name="ln")(x))


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x * self.param("gain", nn.initializers.ones, (1, 8))
        for index in range(3):
            x = Block(name=f"block_{index}")(x)
        return x


class Head(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(2, name="layers_1")(nn.LayerNorm(name="layers_0")(x))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Dense(8, name="enc")(Encoder(name="encoder")(x))
        return Head(name="head")(x)


@functools.cache
def net() -> Facts:
    return param_facts(Net(), ROW)


def chosen(choice: Any, facts: Facts | None = None) -> set[str]:
    return {path_name(path) for path in select(facts or net(), choice)}


def short(value: Any) -> str | None:
    return value[:40] if isinstance(value, str) else None


ALL = {
    "enc/bias",
    "enc/kernel",
    "encoder/block_0/fc/bias",
    "encoder/block_0/fc/kernel",
    "encoder/block_0/ln/bias",
    "encoder/block_0/ln/scale",
    "encoder/block_1/fc/bias",
    "encoder/block_1/fc/kernel",
    "encoder/block_1/ln/bias",
    "encoder/block_1/ln/scale",
    "encoder/block_2/fc/bias",
    "encoder/block_2/fc/kernel",
    "encoder/block_2/ln/bias",
    "encoder/block_2/ln/scale",
    "encoder/gain",
    "head/layers_0/bias",
    "head/layers_0/scale",
    "head/layers_1/bias",
    "head/layers_1/kernel",
}


def below(*starts: str) -> set[str]:
    return {name for name in ALL if name.startswith(starts)}


def ending(*ends: str) -> set[str]:
    return {name for name in ALL if name.endswith(ends)}


ENCODER, HEAD = below("encoder/"), below("head/")
ENC = {"enc/bias", "enc/kernel"}

MEANINGS = [
    # Paths and globs.
    ("encoder/gain", {"encoder/gain"}),
    ("encoder", ENCODER),
    ("enc", ENC),
    ("encoder/**", ENCODER),
    ("encoder/**/gain", {"encoder/gain"}),
    ("encoder/gain/**", {"encoder/gain"}),
    ("encoder/block_1", below("encoder/block_1")),
    ("head/layers_1", below("head/layers_1")),
    ("encoder/*", {"encoder/gain"}),
    ("enc/*", ENC),
    ("*/*", ENC | {"encoder/gain"}),
    ("**", ALL),
    ("**/kernel", ending("/kernel")),
    ("**/ln/**", {n for n in ALL if "/ln/" in n}),
    ("encoder/**/fc/*", {n for n in ALL if "/fc/" in n}),
    ("encoder/*/*/bias", {n for n in ENCODER if n.endswith("bias")}),
    ("enc*/*", ENC | {"encoder/gain"}),
    ("encoder/block_?/ln/scale", {n for n in ALL if n.endswith("ln/scale")}),
    ("encoder/block_[02]/**", below("encoder/block_0", "encoder/block_2")),
    ("encoder/block_[!0-1]/**", below("encoder/block_2")),
    ("*/layers_[01]/b*s", {"head/layers_0/bias", "head/layers_1/bias"}),
    ("params/enc", ENC),
    ("params/**/kernel", ending("/kernel")),
    ("params/*/kernel", {"enc/kernel"}),
    (r"enc\oder", ENCODER),
    # Regular expressions.
    ("re:.*kernel", ending("kernel")),
    ("re:(enc|head)/.*", ENC | HEAD),
    ("re:enc(oder)?/[^/]*", ENC | {"encoder/gain"}),
    # Classes, of the owner and of modules around it.
    ("@Dense", {n for n in ALL if "/fc/" in n or "layers_1" in n} | ENC),
    ("@LayerNorm", {n for n in ALL if "/ln/" in n or "layers_0" in n}),
    ("@QuietNorm", {n for n in ALL if "/ln/" in n}),
    ("@Encoder", ENCODER),
    ("@Block", below("encoder/block")),
    ("@Head", HEAD),
    ("@Net", ALL),
    # Roles.
    ("#gain", {"encoder/gain"}),
    ("#norm_scale", ending("scale")),
    ("#bias", ending("fc/bias") | {"enc/bias", "head/layers_1/bias"}),
    # Between others: not the first of the blocks, which reads the data, and not the head.
    ("#hidden", {f"encoder/block_{i}/fc/kernel" for i in (1, 2)} | {"enc/kernel"}),
    ("#hidden & ~encoder", {"enc/kernel"}),
    ("#kernel & ~#hidden", {"encoder/block_0/fc/kernel", "head/layers_1/kernel"}),
    # Combinations: ~ before & before |, blanks free.
    ("#kernel & ~head/**", ending("kernel") - HEAD),
    ("#kernel&~head", ending("kernel") - HEAD),
    ("  ~ encoder  ", ENC | HEAD),
    ("enc | head & #kernel", ENC | {"head/layers_1/kernel"}),
    ("(enc | head) & #kernel", {"enc/kernel", "head/layers_1/kernel"}),
    ("~enc & ~head", ENCODER),
    ("~(enc | head)", ENCODER),
    ("~~enc", ENC),
    ("@Block & #kernel & ~encoder/block_0/**", ending("fc/kernel") - below("encoder/block_0")),
    # A regular expression takes all that follows, up to the end or the closing parenthesis.
    ("#kernel & re:enc/.*|head/.*", {"enc/kernel", "head/layers_1/kernel"}),
    ("(re:(enc|head)/.*|x[)]) & #kernel", {"enc/kernel", "head/layers_1/kernel"}),
    (r"~(re:enc(oder)?/.*|\)) & #kernel", {"head/layers_1/kernel"}),
    # Other choices.
    (nn.LayerNorm, {n for n in ALL if "/ln/" in n or "layers_0" in n}),
    (QuietNorm, {n for n in ALL if "/ln/" in n}),
    (nn.remat(Block), below("encoder/block")),
    (lambda fact: fact.size < 5, {"head/layers_1/bias"}),
    (lambda fact: np.bool_(fact.role == "gain"), {"encoder/gain"}),
    (["enc", Head], ENC | HEAD),
    (("enc", ["#gain", lambda fact: "head" in fact.path]), ENC | HEAD | {"encoder/gain"}),
    (selector("enc") | selector("head"), ENC | HEAD),
    (selector(lambda fact: "enc" in fact.path) & selector("#kernel"), {"enc/kernel"}),
]


@pytest.mark.parametrize(("choice", "expected"), MEANINGS, ids=short)
def test_a_choice_selects_what_it_means(choice: Any, expected: set[str]) -> None:
    assert {fact.name for fact in net().params} == ALL
    assert chosen(choice) == expected
    assert {fact.name for fact in net().params if selector(choice).matches(fact)} == expected


@pytest.mark.parametrize("text", [text for text, _ in MEANINGS if isinstance(text, str)])
def test_the_text_of_a_selector_reads_back_as_an_equal_one(text: str) -> None:
    once = selector(text)
    again = selector(str(once))
    assert (again, hash(again), str(again)) == (once, hash(once), str(once))
    assert chosen(again) == chosen(once)
    for combined in (~once, once & selector("#kernel"), selector("#kernel") | once):
        assert selector(str(combined)) == combined
        assert selector(str(~combined)) == ~combined


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("#kernel&~head/**", "#kernel & ~head/**"),
        ("(#kernel)&(head)", "#kernel & head"),
        ("a|(b|c)", "a | b | c"),
        ("(a&b)|c", "a & b | c"),
        ("a&(b|c)", "a & (b | c)"),
        ("~(a&b)", "~(a & b)"),
        ("~(~a)", "a"),
        ("re:a|b", "re:a|b"),
        ("~re:a|b", "~(re:a|b)"),
        ("a & re:b", "a & (re:b)"),
    ],
)
def test_a_selector_is_written_with_the_parentheses_it_needs(text: str, written: str) -> None:
    assert str(selector(text)) == written
    assert repr(selector(text)) == f"selector({written!r})"


def test_a_class_is_written_by_its_name_but_goes_by_identity() -> None:
    class Dense(nn.Module):
        @nn.compact
        def __call__(self, x: Array) -> Array:
            return x * self.param("w", nn.initializers.ones, (1, 8))

    facts = param_facts(nn.Sequential([Dense(), nn.Dense(8)]), ROW)
    assert str(selector(nn.Dense)) == "@Dense" and selector("@Dense") == selector(nn.Dense)
    assert chosen(nn.Dense, facts) == {"layers_1/bias", "layers_1/kernel"}
    assert chosen(Dense, facts) == {"layers_0/w"}
    assert len(chosen("@Dense", facts)) == 3


def test_selectors_are_values() -> None:
    assert selector("a & b") == selector("a") & selector("b") != selector("b & a")
    assert len({selector("a"), selector(" a "), selector("b")}) == 2
    assert selector(selector("a")) == selector("a")

    def small(fact: ParamFact) -> bool:
        return fact.size < 5

    assert selector(small) == selector(small) != selector(lambda fact: True)
    assert "small" in repr(selector(small))
    assert repr(selector(small) & selector("#kernel")).endswith("small> & #kernel')")


def test_a_selector_with_a_function_has_no_text() -> None:
    with pytest.raises(ArgumentTypeError, match="is no data") as caught:
        str(selector("#kernel") & selector(len))
    assert "@Class" in str(caught.value.fix)


def test_classes_around_are_found_through_scan_remat_and_cells() -> None:
    gpt = facts_of_example("GPT")
    assert chosen("@TransformerBlock", gpt) == chosen("blocks", gpt)
    assert chosen("@MultiHeadDotProductAttention", gpt) == chosen("blocks/attn", gpt)
    lstm = facts_of_example("LSTM")
    assert chosen(nn.OptimizedLSTMCell, lstm) == chosen("cell", lstm)
    assert chosen("@RNNCellBase", lstm) == chosen("cell", lstm)


def test_the_name_of_a_parameter_selects_it() -> None:
    """A `/` inside a key, as WeightNorm makes it, is written as in names."""
    facts = facts_of(next(case for case in CASES if case.name == "WeightNorm"))
    for table in (facts, net(), facts_of_example("GPT"), facts_of_example("LSTM")):
        for fact in table.params:
            assert select(table, fact.name) == {fact.path}
    assert chosen("outer/*", facts) == {"outer/fc\\/kernel\\/scale"}


@pytest.mark.parametrize("name", ["a b", "a&b", "x|y~(z)", "w*[0]?", "@b", "#c", "re:d"])
def test_a_backslash_takes_the_meaning_from_a_character(name: str) -> None:
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x: Array) -> Array:
            kept = self.param(name, nn.initializers.ones, (1, 8))
            return x * kept * self.param("w", nn.initializers.ones, (1, 8))

    facts = param_facts(Odd(), ROW)
    text = "".join(f"\\{character}" for character in name)
    assert select(facts, text) == {(name,)}
    assert select(facts, f"#gain | ({text})") == {(name,)} | select(facts, "w") - {("w",)} | {
        fact.path for fact in facts.params if fact.role == "gain"
    }


WRONG: list[tuple[Any, type[FlaxtrainError], str, str]] = [
    ("", ArgumentError, "an empty text, at character 1 of ''", "write a path"),
    ("  ", ArgumentError, "an empty text", "write a path"),
    ("a &", ArgumentError, "nothing where a selector is expected, at character 4", "a path"),
    ("& a", ArgumentError, "'&' where a selector is expected, at character 1", "a path"),
    ("a | | b", ArgumentError, "'|' where a selector is expected, at character 5", "a path"),
    ("a b", ArgumentError, "no operator before 'b', at character 3 of 'a b'", "write &"),
    ("a and b", ArgumentError, "no operator before 'and b'", "write & between"),
    ("(a | b", ArgumentError, "a ( without its ), at character 1", "parentheses"),
    ("a)", ArgumentError, "a ) without its (, at character 2", "parentheses"),
    ("a[0", ArgumentError, "no operator before '[0'", "write & between"),
    ("[0", ArgumentError, "a [ without its ]", "\\["),
    ("a/", ArgumentError, "an empty level in 'a/'", "single /"),
    ("/a", ArgumentError, "an empty level in '/a'", "single /"),
    ("a//b", ArgumentError, "an empty level in 'a//b'", "single /"),
    ("a**/b", ArgumentError, "** beside something else in a level of 'a**/b'", "within"),
    ("a[z-a]", ArgumentError, "[z-a] in 'a[z-a]' is no set of characters: bad", "[a-z]"),
    ("#norm", UnknownNameError, "unknown role 'norm'", "did you mean 'norm_"),
    ("#hiden", UnknownNameError, "unknown role 'hiden'", "did you mean 'hidden'"),
    ("#", UnknownNameError, "unknown role ''", "Known: bias"),
    ("#", UnknownNameError, "unknown role ''", "gain, hidden, kernel"),
    ("@nn.Dense", ArgumentError, "'@nn.Dense' names no class", "own name"),
    ("@", ArgumentError, "'@' names no class", "own name"),
    ("re:a(b", ArgumentError, "missing ), unterminated subpattern, at character 5", "(re:...)"),
    ("#bias | (re:a[) & b", ArgumentError, "breaks: unterminated character set", "(re:...)"),
    ("re:", ArgumentError, "an empty regular expression", "write a path"),
    ("re:(?x)a # )", ArgumentError, "an unpaired ) in a comment", "leave the comment out"),
    (3, ArgumentTypeError, "3 is an int", "module class"),
    (None, ArgumentTypeError, "None is a NoneType", "module class"),
    ({"a": 1}, ArgumentTypeError, "{'a': 1} is a dict", "module class"),
    (int, ArgumentTypeError, "int is no class of Linen modules", "module class"),
    (nn.Dense(2), ArgumentTypeError, "is a Dense", "pass the class, Dense"),
    (re.compile("a.*"), ArgumentTypeError, "is a Pattern", "write it as text: 're:a.*'"),
    ([], ArgumentError, "an empty list", "write a path"),
    (["a", "b&"], ArgumentError, "nothing where a selector is expected", "a path"),
]  # fmt: skip


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("choice", "error", "found", "fix"), WRONG, ids=short)
def test_what_is_no_selector_is_refused_before_there_is_a_model(
    choice: Any, error: type[FlaxtrainError], found: str, fix: str
) -> None:
    with pytest.raises(error) as caught:
        selector(choice, where="freeze=")
    assert found in caught.value.found
    assert "where: freeze=" in str(caught.value)
    assert fix in str(caught.value.fix)


def test_the_item_of_a_list_that_is_wrong_is_named() -> None:
    with pytest.raises(UnknownNameError, match="where: freeze=, item 1"):
        selector(["a", "#bais"], where="freeze=")


def test_a_selector_combines_with_selectors_only(unchecked_types: None) -> None:
    with pytest.raises(ArgumentTypeError, match="make one of it first"):
        selector("a") & "b"


UNMATCHED = [
    ("encodr/**", "'encodr/**'", "nearest: encoder"),
    ("Encoder", "'Encoder'", "nearest: encoder"),
    ("block_1", "'block_1'", "did you mean '**/block_1/**', for it has to fit the whole path?"),
    ("kernel", "'kernel'", "did you mean '**/kernel'"),
    ("encoder/block_*", "'encoder/block_*'", "did you mean 'encoder/block_*/**'"),
    ("block_*", "'block_*'", "did you mean '**/block_*/**'"),
    ("re:kernel", "'re:kernel'", "did you mean 're:.*kernel.*'"),
    ("re:encoder", "'re:encoder'", "did you mean 're:encoder/.*'"),
    ("@LayrNorm", "'@LayrNorm'", "nearest: LayerNorm; classes in the model: Block, Dense"),
    (nn.BatchNorm, "'@BatchNorm'", "LayerNorm"),
    ("#token", "'#token'", "roles in the model: bias, gain, kernel, norm_bias, norm_scale"),
    (lambda fact: False, "<lambda>>", "the function says False for each of 19 parameters"),
    ("#kernel & #bias", "'#kernel & #bias'", "its parts alone match '#kernel': 5, '#bias': 5"),
    ("~**", "'~**'", "of 19 parameters, its parts alone match '**': 19"),
    # Parts that are misspelt, though others match.
    (["enc", "haed/**"], "'haed/**' in 'enc | haed/**'", "nearest: head"),
    ("#kernel & ~haed/**", "'haed/**' in '#kernel & ~haed/**'", "nearest: head"),
    ("#kernel & ~re:haed/.*", "'re:haed/.*' in", "nearest: head"),
    ("#kernel & ~@Encodr", "'@Encodr' in '#kernel & ~@Encodr'", "nearest: Encoder"),
]


@pytest.mark.parametrize(("choice", "found", "fix"), UNMATCHED, ids=short)
def test_what_matches_nothing_is_refused_with_the_nearest(
    choice: Any, found: str, fix: str
) -> None:
    with pytest.raises(ParameterError) as caught:
        select(net(), choice, where="Group(select)")
    assert caught.value.found.startswith("no parameter matches ")
    assert found in caught.value.found
    assert "where: Group(select)" in str(caught.value)
    assert fix in str(caught.value.fix)


def test_roles_classes_of_linen_and_functions_may_be_absent_where_others_match() -> None:
    for text in ("#norm_scale | #token", "@LayerNorm | @BatchNorm", "#kernel & ~@Embed"):
        assert chosen(text)
    assert chosen(["#kernel", lambda fact: False]) == ending("kernel")
    assert chosen(["#kernel", nn.BatchNorm]) == ending("kernel")


def test_a_model_of_two_layers_has_nothing_hidden() -> None:
    facts = param_facts(nn.Sequential([nn.Dense(4), nn.Dense(2)]), ROW)
    with pytest.raises(ParameterError, match="no parameter matches '#hidden'") as caught:
        select(facts, "#hidden")
    assert "the second of three Dense layers" in str(caught.value.fix)
    assert chosen("#hidden | #bias", facts) == {"layers_0/bias", "layers_1/bias"}


def test_hidden_is_no_role_that_a_parameter_can_be_given() -> None:
    with pytest.raises(UnknownNameError, match="unknown role 'hidden'"):
        param_facts(nn.Dense(4), ROW, roles={"kernel": "hidden"})


def test_a_model_without_parameters_has_nothing_to_select() -> None:
    with pytest.raises(ParameterError, match="the model has no parameters"):
        select(param_facts(nn.Dropout(0.5, deterministic=True), ROW), "**")


@pytest.mark.parametrize("answer", [1, None, "yes"])
def test_a_function_that_returns_no_bool_is_refused_with_the_parameter(answer: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="not True or False") as caught:
        select(net(), ["enc", lambda fact: answer])
    assert str(caught.value.where).endswith("parameter 'encoder/block_0/fc/bias'")


def test_an_error_of_a_function_says_at_which_parameter() -> None:
    with pytest.raises(AttributeError, match="roll") as caught:
        select(net(), lambda fact: fact.roll == "kernel")
    assert "parameter 'enc/bias'" in caught.value.__notes__[0]


@pytest.mark.usefixtures("unchecked_types")
def test_the_table_of_facts_comes_first() -> None:
    with pytest.raises(ArgumentTypeError, match="facts is a dict, not a table of facts"):
        select({"kernel": 1}, "kernel")
    with pytest.raises(ArgumentTypeError, match="params is an int"):
        selected_tree(net(), 3, "enc")


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("level", [False, True])
def test_the_tree_of_what_is_selected_is_like_the_params(frozen: bool, level: bool) -> None:
    params = net().tree(lambda fact: jnp.zeros(fact.shape))
    params = {"params": params} if level else params
    tree = FrozenDict(params) if frozen else params
    marked = selected_tree(net(), tree, "#kernel & ~head/**")
    assert type(marked) is type(tree)
    assert jax.tree.structure(marked) == jax.tree.structure(tree)
    inside = marked["params"] if level else marked
    assert inside["enc"] == {"bias": False, "kernel": True}
    assert inside["head"]["layers_1"] == {"bias": False, "kernel": False}
    assert sum(jax.tree.leaves(marked)) == 4


def test_a_part_of_the_params_gets_a_part_of_the_tree() -> None:
    part = {"enc": {"bias": 0.0}, "head": {"layers_1": {"kernel": None}}}
    assert selected_tree(net(), part, "enc") == {
        "enc": {"bias": True},
        "head": {"layers_1": {"kernel": None}},
    }


def test_a_metadata_box_stays_around_what_is_selected() -> None:
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x: Array) -> Array:
            init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
            return nn.Dense(2, kernel_init=init)(x)

    params = Boxed().init(jax.random.key(0), SEQUENCE)["params"]
    marked = selected_tree(param_facts(Boxed(), SEQUENCE), params, "**/kernel")
    assert jax.tree.structure(marked) == jax.tree.structure(params)
    assert marked["Dense_0"]["kernel"].value is True and marked["Dense_0"]["bias"] is False


def test_params_of_another_model_are_refused() -> None:
    with pytest.raises(
        UnknownParameterError, match=r"no parameter 'enc/kernal'[^$]*enc/kernel"
    ):
        selected_tree(net(), {"enc": {"kernal": jnp.ones(2)}}, "enc")
    with pytest.raises(UnknownParameterError, match="batch_stats/mean"):
        selected_tree(net(), {"params": {}, "batch_stats": {"mean": 0}}, "enc")


def test_selector_is_the_type_of_them_all() -> None:
    assert all(isinstance(selector(choice), Selector) for choice, _ in MEANINGS)
