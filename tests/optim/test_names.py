"""Names of parameters, masks by path, and functions of names wherever a mask is taken."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze

from flaxtrain import optim
from flaxtrain.errors import ArgumentTypeError, ParameterError
from flaxtrain.optim import MaskedNode, ParamName, mask_by_path, names_of


def tree() -> Any:
    dense = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    norm = {"scale": jnp.ones(3), "bias": jnp.ones(3)}
    return {"embed": {"embedding": jnp.ones((4, 2))}, "Dense_0": dense, "LayerNorm_0": norm}


DECAYED = {
    "embed": {"embedding": True},
    "Dense_0": {"kernel": True, "bias": False},
    "LayerNorm_0": {"scale": False, "bias": False},
}


def weight_decay_mask(params: Any) -> Any:
    return jax.tree.map(lambda name: "bias" not in name and "norm" not in name, params)


def test_in_ignores_case_and_sees_the_class_of_the_owner() -> None:
    name = ParamName("encoder/LayerNorm_0/scale")
    assert "norm" in name and "LAYERNORM" in name and "bias" not in name
    named = ParamName("encoder/ln_f/scale", owner="LayerNorm")
    assert "norm" in named and named.owner == "LayerNorm"
    assert named == "encoder/ln_f/scale" and hash(named) == hash("encoder/ln_f/scale")
    assert named.startswith("encoder") and not named.startswith("Encoder")


def test_a_class_as_owner_counts_with_the_classes_it_derives_from() -> None:
    class Calm(nn.LayerNorm):
        pass

    name = ParamName("calm/scale", owner=Calm)
    assert name.owner == "Calm" and "norm" in name and "module" not in name


def test_a_name_and_its_path_are_inverse_to_one_another() -> None:
    for path in (("a", "b"), ("wn", "Dense_0/kernel"), ("back\\slash", "x"), ("one",)):
        name = ParamName(path)
        assert name.path == path and ParamName(str(name)).path == path


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_name_survives_copies(twin: Callable[[Any], Any]) -> None:
    name = twin(ParamName(("a", "b/c"), owner="RMSNorm"))
    assert name.path == ("a", "b/c") and "norm" in name


def test_names_leave_the_level_params_out() -> None:
    assert names_of({"params": tree()})["params"] == names_of(tree())
    assert names_of({"params": 1, "batch_stats": 2}) == {
        "params": "params",
        "batch_stats": "batch_stats",
    }
    owners = {"Dense_0/kernel": nn.Dense, "embed/embedding": "Embed"}
    names = names_of({"params": tree()}, owners)["params"]
    assert (
        names["Dense_0"]["kernel"].owner == "Dense" and "EMBED" in names["embed"]["embedding"]
    )
    assert names["Dense_0"]["bias"].owner is None


def test_the_reference_s_mask_function_decays_kernels_and_embeddings_only() -> None:
    for params in (tree(), {"params": tree()}):
        tx = optim.chain(
            optim.clip_by_global_norm(1.0),
            optim.scale_by_adam(),
            optim.add_decayed_weights(0.01, mask=weight_decay_mask),
            optim.scale(-1e-3),
        )
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
        moved = jax.tree.map(lambda u: bool(jnp.all(u != 0)), updates)
        assert moved.get("params", moved) == DECAYED


@pytest.mark.parametrize(
    "make",
    [
        lambda mask: optim.add_decayed_weights(1.0, mask=mask),
        lambda mask: optim.masked(optim.add_decayed_weights(1.0), mask),
        lambda mask: optim.chain(
            optim.adamw(1.0, weight_decay=1.0, mask=mask), optim.scale(-1.0)
        ),
        lambda mask: optim.chain(
            optim.add_decayed_weights(1.0),
            optim.freeze(lambda p: jax.tree.map(lambda m: not m, mask(names_of(p)))),
        ),
        lambda mask: optim.partition(
            {True: optim.add_decayed_weights(1.0), False: optim.set_to_zero()}, mask
        ),
    ],
    ids=["add_decayed_weights", "masked", "adamw", "freeze", "partition"],
)
def test_a_function_of_names_goes_wherever_a_mask_or_labels_go(
    make: Callable[[Any], Any],
) -> None:
    params = tree()
    tx = make(weight_decay_mask)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert jax.tree.map(lambda u: bool(jnp.all(u == 1)), updates) == DECAYED


@pytest.mark.parametrize("make", [np.asarray, lambda x: x])
def test_a_function_that_does_not_look_at_arrays_is_asked_about_names(make: Any) -> None:
    """`"bias" in x` is False for arrays of numpy, and raises for those of jax."""
    params = jax.tree.map(make, tree())
    for mask in (
        weight_decay_mask,
        lambda p: jax.tree.map(lambda name: str(name).endswith(("kernel", "embedding")), p),
    ):
        tx = optim.masked(optim.scale(2.0), mask)
        updates, _ = tx.update(params, tx.init(params), params)
        assert jax.tree.map(lambda u: bool(np.all(u == 2)), updates) == DECAYED


def test_a_function_that_knows_arrays_is_believed() -> None:
    """One answer for all arrays is a reason to ask about names, which it can't do with."""
    asked: list[Any] = []

    def mask(params: Any) -> Any:
        asked.append(params)
        return jax.tree.map(lambda leaf: leaf.ndim > 0, params)

    params = tree()
    tx = optim.masked(optim.scale(2.0), mask)
    state = tx.init(params)
    assert asked == [params, names_of(params)]
    assert all(jnp.all(leaf == 2) for leaf in jax.tree.leaves(tx.update(params, state)[0]))
    everything = optim.masked(optim.scale(2.0), lambda p: jax.tree.map(jnp.ndim, p) and True)
    assert jnp.all(everything.update(jnp.ones(2), everything.init(jnp.ones(2)))[0] == 2)


def is_decayed(name: Any) -> bool:
    return "bias" not in name and "norm" not in name


def is_decayed_in_text(name: Any) -> bool:
    return "bias" not in str(name) and "Norm" not in str(name)


@pytest.mark.parametrize(
    "function",
    [
        is_decayed,
        is_decayed_in_text,
        lambda name: name.endswith(("kernel", "embedding")),
        lambda name: "norm" not in name.lower() and "BIAS" not in name.upper(),
        lambda name: any(re.search(p, name) for p in ("kernel", "embedding")),
        lambda params: jax.tree.map(is_decayed_in_text, params),
    ],
    ids=["in", "str", "method", "lower", "regex", "helper"],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda f: optim.add_decayed_weights(1.0, mask=f),
        lambda f: optim.chain(optim.adamw(1.0, weight_decay=1.0, mask=f), optim.scale(-1.0)),
        lambda f: optim.partition(
            {True: optim.add_decayed_weights(1.0), False: optim.set_to_zero()}, f
        ),
        lambda f: optim.scale_by_multipliers(lambda x: jax.tree.map(float, f(x))),
    ],
    ids=["add_decayed_weights", "adamw", "partition", "multipliers"],
)
@pytest.mark.parametrize("above", [False, True], ids=["bare", "variables"])
def test_a_function_of_one_name_is_asked_about_each_of_them(
    make: Callable[[Any], Any], function: Callable[[Any], Any], above: bool
) -> None:
    """`"bias" not in x` is true of a dict, and `str(x)` of an array speaks of no names."""
    params = {"params": tree()} if above else tree()
    tx = make(function)
    is_factor = tx.name == "scale_by_multipliers"
    grads = jax.tree.map(jnp.ones_like if is_factor else jnp.zeros_like, params)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    found = jax.tree.map(lambda u: bool(jnp.all(u == 1)), updates)
    assert found.get("params", found) == DECAYED


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"head": {"bias": jnp.ones(2)}}, {"head": {"bias": False}}),
        (
            {"a": {"bias": jnp.ones(2)}, "b": {"bias": jnp.ones(2), "kernel": MaskedNode()}},
            {"a": {"bias": False}, "b": {"bias": False, "kernel": MaskedNode()}},
        ),
        ({"head": {"kernel": jnp.ones(2)}}, {"head": {"kernel": True}}),
        (jnp.ones(2), True),
        ({}, {}),
    ],
    ids=["one", "all the same", "the other", "a bare array", "none"],
)
@pytest.mark.parametrize(
    "function",
    [lambda name: "bias" not in name, lambda name: not name.endswith("bias")],
    ids=["in", "method"],
)
def test_a_function_of_one_name_may_say_the_same_of_all(
    function: Any, params: Any, expected: Any
) -> None:
    tx = optim.masked(optim.scale(2.0), function)
    updates, _ = tx.update(params, tx.init(params))
    assert jax.tree.map(lambda u: bool(jnp.all(u == 2)), updates) == expected


@pytest.mark.parametrize(
    "function",
    [
        lambda p: True,
        lambda p: isinstance(p, dict),
        lambda p: sum(leaf.size for leaf in jax.tree.leaves(p)) > 10,
        lambda p: len(jax.tree.leaves(p)) > 1,
    ],
    ids=["constant", "type", "arrays", "tree"],
)
def test_one_answer_about_the_whole_tree_stays_one(function: Any) -> None:
    tx = optim.masked(optim.scale(2.0), function)
    updates, _ = tx.update(tree(), tx.init(tree()))
    assert all(jnp.all(leaf == 2) for leaf in jax.tree.leaves(updates))


def test_names_in_another_case_still_know_their_owner_and_path() -> None:
    name = ParamName("Encoder/ln_f/scale", owner=nn.LayerNorm)
    for changed, text in (
        (name.lower(), "encoder/ln_f/scale"),
        (name.casefold(), "encoder/ln_f/scale"),
        (name.upper(), "ENCODER/LN_F/SCALE"),
    ):
        assert changed == text and changed.path == tuple(text.split("/"))
        assert "norm" in changed and "LayerNorm" in changed and "dense" not in changed
    assert name.lower().owner == "layernorm" and ParamName("X").lower().owner is None


@pytest.mark.parametrize(
    "mask",
    [
        mask_by_path(["params/*/kernel", "params/embed"]),
        {"params/*/kernel": True, "params/embed": True, "*": False},
        {"params": {"*/kernel": True, "embed": True}, "params/*": False},
    ],
    ids=["mask_by_path", "patterns", "mixed"],
)
def test_patterns_may_have_the_level_params(mask: Any) -> None:
    for params in (tree(), {"params": tree()}):
        tx = optim.masked(optim.scale(2.0), mask)
        updates, _ = tx.update(params, tx.init(params))
        found = jax.tree.map(lambda u: bool(jnp.all(u == 2)), updates)
        assert found.get("params", found) == DECAYED
    both = {"params": {"w": 1.0}, "batch_stats": {"w": 1.0}}
    assert mask_by_path("params/*")(both) == {
        "params": {"w": True},
        "batch_stats": {"w": False},
    }
    assert mask_by_path("params")({"params": {"w": 1.0}}) == {"params": {"w": True}}


def test_a_key_that_looks_like_a_pattern_means_itself() -> None:
    params = {"a*b": jnp.ones(2), "axb": jnp.ones(2)}
    assert mask_by_path("a*b")(params) == {"a*b": True, "axb": False}
    assert mask_by_path("a*")(params) == {"a*b": True, "axb": True}
    tx = optim.masked(optim.scale(2.0), {"a*b": False, "*": True})
    updates, _ = tx.update(params, tx.init(params))
    assert jnp.all(updates["a*b"] == 1) and jnp.all(updates["axb"] == 2)


def test_numbers_and_patterns_may_be_keys_of_one_dict() -> None:
    params = {"layers": [jnp.ones(2)] * 3}
    mask = {"layers": {0: False, "*": True}}
    for given in (mask, lambda p: mask):
        tx = optim.masked(optim.scale(2.0), given)
        updates, _ = tx.update(params, tx.init(params))
        assert [float(leaf[0]) for leaf in updates["layers"]] == [1.0, 2.0, 2.0]


def test_a_function_that_fails_either_way_fails_with_its_own_error_and_a_note() -> None:
    tx = optim.masked(optim.scale(2.0), lambda p: jax.tree.map(lambda x: x.no_such > 1, p))
    with pytest.raises(AttributeError, match="no_such") as caught:
        tx.init(tree())
    assert "asked about the names" in caught.value.__notes__[0]


def test_a_function_of_values_is_not_asked_about_names_while_tracing() -> None:
    tx = optim.masked(optim.scale(2.0), lambda p: jax.tree.map(lambda x: bool(x != 0), p))
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jit(tx.init)({"a": jnp.ones(()), "b": jnp.ones(())})


@pytest.mark.parametrize(
    "predicate",
    [
        lambda name: "bias" not in name and "norm" not in name,
        ["*/kernel", "embed"],
        ("Dense_0/kernel", "*/embedding"),
        re.compile("kernel|embedding"),
        [re.compile("kernel$"), "embed/*"],
        "*e[rd]*[lg]",
    ],
)
def test_masks_by_path_say_the_same_with_and_without_the_level_params(predicate: Any) -> None:
    mask = mask_by_path(predicate)
    assert mask(tree()) == DECAYED
    assert mask({"params": tree()}) == {"params": DECAYED}
    assert mask(freeze(tree())) == freeze(DECAYED)


def test_optax_takes_masks_by_path_too() -> None:
    mask = mask_by_path(["*/kernel", "embed"])
    params = tree()
    ours, judge = (lib.add_decayed_weights(1.0, mask=mask) for lib in (optim, optax))
    expected = judge.update(params, judge.init(params), params)[0]
    actual = ours.update(params, ours.init(params), params)[0]
    assert jax.tree.all(jax.tree.map(jnp.array_equal, actual, expected))


def test_masks_by_path_print_compare_and_hash() -> None:
    mask = mask_by_path(["*/kernel", "embed"])
    assert repr(mask) == "mask_by_path(('*/kernel', 'embed'))"
    assert mask == mask_by_path(("*/kernel", "embed")) != mask_by_path("embed")
    assert hash(mask) == hash(eval(repr(mask), vars(optim)))
    assert optim.adamw(0.1, mask=mask) == optim.adamw(0.1, mask=mask_by_path(mask.predicate))


def test_a_pattern_that_matches_nothing_is_answered_with_the_nearest_paths() -> None:
    with pytest.raises(ParameterError, match="no parameter matches 'Dense_1'") as caught:
        mask_by_path("Dense_1")(tree())
    assert "Dense_0" in str(caught.value.fix)
    holes = {"Dense_0": MaskedNode(), "head": 1.0}
    assert mask_by_path("Dense_0/kernel")(holes) == {"Dense_0": MaskedNode(), "head": False}


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_predicate_or_gives_no_bool_is_refused() -> None:
    for wrong in (3, ["*/kernel", 3], None):
        with pytest.raises(ArgumentTypeError, match="mask_by_path"):
            mask_by_path(wrong)  # pyright: ignore[reportArgumentType] -- the mistake under test
    with pytest.raises(ArgumentTypeError, match="parameter 'Dense_0/bias'"):
        mask_by_path(lambda name: name)(tree())
