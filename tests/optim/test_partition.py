"""partition (multi_transform): labels in every form, and what is wrong with the others."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError, ParameterError
from tests.runs import differing_leaves, nodes

LEAF = jnp.ones(3)
PARAMS = {
    "encoder": {"kernel": LEAF, "bias": LEAF},
    "decoder": {"kernel": LEAF, "bias": LEAF},
    "embeddings": LEAF,
}
GROUPS = {"encoder": "encoder", "decoder": "decoder", "embeddings": "embeddings"}


def parts(lib: Any) -> Any:
    return {
        "encoder": lib.sgd(0.01, momentum=0.9),
        "decoder": lib.adam(1e-3),
        "embeddings": lib.sgd(0.5),
    }


def factors_of(tx: Any, params: Any = PARAMS) -> Any:
    """Returns the update of gradients that are all 1, as Python numbers."""
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    return jax.tree.map(lambda u: float(jnp.ravel(u)[0]), updates)


SIGNS = {"a": optim.scale(2.0), "b": optim.scale(3.0)}
BY_ROLE = {
    "encoder": {"kernel": 2.0, "bias": 3.0},
    "decoder": {"kernel": 2.0, "bias": 3.0},
    "embeddings": 2.0,
}
ROLES = jax.tree.map(lambda x: "a" if x == 2.0 else "b", BY_ROLE)


def test_the_older_name_is_the_same_function() -> None:
    assert optim.multi_transform is optim.partition
    assert optim.PartitionState._fields == optax.transforms.PartitionState._fields


@pytest.mark.parametrize(
    "labels",
    [GROUPS, lambda params: GROUPS, jax.tree.map(lambda label: label, GROUPS)],
    ids=["prefix", "function", "copy"],
)
def test_numbers_and_states_are_optax_s(labels: Any) -> None:
    results = []
    for lib in (optim, optax):
        tx = lib.multi_transform(parts(lib), param_labels=labels)
        state = tx.init(PARAMS)
        for _ in range(3):
            updates, state = jax.jit(tx.update)(PARAMS, state, PARAMS)
        results.append((updates, state))
    ours, judge = results
    assert differing_leaves(ours, judge) == [] and nodes(ours[1]) == nodes(judge[1])
    assert ours[1].inner_states["encoder"].inner_state[0].trace["decoder"] == optim.MaskedNode()


@pytest.mark.parametrize(
    "labels",
    [
        ROLES,
        {"params": ROLES},
        {"*/bias": "b", "*": "a"},
        {"params": {"*/bias": "b", "*": "a"}},
        {"encoder/bias": "b", "decoder": {"bias": "b"}, "*": "a"},
        freeze(ROLES),
        lambda params: ROLES,
        lambda params: jax.tree.map(lambda name: "b" if "bias" in name else "a", params),
        lambda name: "b" if "bias" in name else "a",
    ],
    ids=[
        "tree",
        "params",
        "globs",
        "params+globs",
        "paths",
        "FrozenDict",
        "const",
        "names",
        "name",
    ],
)
@pytest.mark.parametrize("above", [False, True], ids=["bare", "variables"])
def test_labels_fit_with_and_without_the_level_params(labels: Any, above: bool) -> None:
    found = factors_of(optim.partition(SIGNS, labels), {"params": PARAMS} if above else PARAMS)
    assert found == ({"params": BY_ROLE} if above else BY_ROLE)


def test_parameters_without_a_label_get_the_default() -> None:
    expected = {
        "encoder": {"kernel": 3.0, "bias": 3.0},
        "decoder": {"kernel": 2.0, "bias": 2.0},
    }
    for labels in (
        {"encoder": "b"},
        {"encoder": "b", "decoder": None},
        lambda params: {"encoder": "b"},
        lambda p: jax.tree.map(lambda name: "b" if name.startswith("encoder") else None, p),
        lambda p: jax.tree.map(lambda name: "b" if "encoder" in str(name) else None, p),
        lambda name: "b" if "encoder/" in name else None,
    ):
        found = factors_of(optim.partition(SIGNS, labels, default="a"))
        assert found == expected | {"embeddings": 2.0}


def test_the_first_pattern_that_matches_decides() -> None:
    tx = optim.partition(SIGNS, {"encoder/bias": "a", "*/bias": "b"}, default="a")
    found = factors_of(tx)
    assert found["encoder"]["bias"] == 2.0 and found["decoder"]["bias"] == 3.0


class Kind(enum.IntEnum):
    FIRST = 1
    SECOND = 2


@pytest.mark.parametrize("keys", [(0, 1), (False, True), (Kind.FIRST, Kind.SECOND), (1.5, 2.5)])
def test_labels_may_be_any_hashable_values_that_sort(keys: tuple[Any, Any]) -> None:
    labels = {"encoder": keys[0], "decoder": keys[1], "embeddings": keys[0]}
    transforms = dict(zip(keys, (optim.scale(2.0), optim.scale(3.0))))
    tx = optim.partition(transforms, labels)
    found = factors_of(tx)
    assert found["encoder"]["bias"] == 2.0 and found["decoder"]["bias"] == 3.0
    judge = optax.partition(dict(zip(keys, (optax.scale(2.0), optax.scale(3.0)))), labels)
    assert found == factors_of(judge)
    assert list(tx.init(PARAMS).inner_states) == list(keys)


def test_factors_as_labels_mean_the_group_of_their_key_at_that_rate() -> None:
    """The reference's `multi_transform({...}, param_labels=lr_multipliers(params))`."""

    def lr_multipliers(params: Any) -> Any:
        return {"embedding": 0.1, "decoder": 1.0}

    params = {"embedding": {"table": LEAF}, "decoder": {"kernel": LEAF}}
    transforms = {"embedding": optim.adam(1e-4), "decoder": optim.adam(1e-3)}
    by_hand = {"embedding": optim.adam(1e-5), "decoder": optim.adam(1e-3)}
    expected = factors_of(
        optim.partition(by_hand, {"embedding": "embedding", "decoder": "decoder"}), params
    )
    judge = optax.multi_transform({k: optax.adam(1e-3) for k in params}, lr_multipliers(params))
    with pytest.raises(ValueError, match="no corresponding transformation"):
        judge.init(params)
    for labels in (lr_multipliers(params), lr_multipliers):
        tx = optim.multi_transform(transforms, param_labels=labels)
        found = factors_of(tx, params)
        # One more rounding: (1e-4 u) * 0.1 for 1e-5 u.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7), found, expected)
        above = factors_of(tx, {"params": params})["params"]
        assert above == found
        assert list(tx.init(params).inner_states) == ["embedding", "decoder"]


def test_parameters_with_labels_or_the_default_are_not_scaled_beside_factors() -> None:
    transforms = {"encoder": optim.scale(2.0), "rest": optim.scale(3.0)}
    expected = jax.tree.map(lambda x: 3.0, BY_ROLE) | {"encoder": {"kernel": 1.0, "bias": 1.0}}
    for tx in (
        optim.partition(transforms, {"encoder": 0.5}, default="rest"),
        optim.partition(transforms, {"encoder": 0.5, "*": "rest"}),
    ):
        assert factors_of(tx) == expected


@pytest.mark.parametrize(
    ("labels", "kind", "text"),
    [
        ({"encoder": "a", "decoder": "b"}, ParameterError, "nothing is said about 1 of 5"),
        ({"encoder": "a", "decoder": "b"}, ParameterError, "embeddings"),
        ({"encoder": "a", "decoder": "b"}, ParameterError, "or pass default="),
        ({"encodr": "a", "*": "b"}, ParameterError, "nearest: encoder"),
        ({"encoder": {"kernal": "a"}, "*": "b"}, ParameterError, "encoder/kernel"),
        ({"*": "aa"}, ParameterError, "the label 'aa' names no transformation"),
        ({"*": "aa"}, ParameterError, "did you mean 'a'? Labels: 'a', 'b'"),
        ({"encoder": {"kernel": "c"}, "*": "a"}, ParameterError, "label of 'encoder/kernel'"),
        ("c", ParameterError, "the label 'c'"),
        (0.5, ParameterError, "scale_by_multipliers"),
        ({"encoder": 0.5, "*": 1.0}, ParameterError, "scale_by_multipliers"),
        (lambda p: jax.tree.map(lambda x: x, p), ParameterError, "names no transformation"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_labels_name_the_path_and_the_nearest(labels: Any, kind: Any, text: str) -> None:
    tx = optim.partition(SIGNS, labels)
    with pytest.raises(kind) as caught:
        tx.init(PARAMS)
    assert text in str(caught.value) and caught.value.fix


def test_factors_are_numbers_of_at_least_0() -> None:
    tx = optim.partition({"x": optim.sgd(0.1)}, {"x": -0.5})
    with pytest.raises(ArgumentError, match=r"factor=-0.5 is out of range"):
        tx.init({"x": LEAF})


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_arguments_are_refused_at_construction() -> None:
    wrong: list[tuple[Callable[[], Any], Any, str]] = [
        (lambda: optim.partition([optim.sgd(0.1)], "a"), ArgumentTypeError, "not a mapping"),
        (lambda: optim.partition({"a": 0.1}, "a"), ArgumentTypeError, "is not a gradient"),
        (lambda: optim.partition(SIGNS, {}, default="c"), ParameterError, "default"),
        (lambda: optim.partition(SIGNS, {}, defualt="a"), ArgumentTypeError, "'default'"),
    ]
    for call, kind, text in wrong:
        with pytest.raises(kind) as caught:
            call()
        assert text in str(caught.value) and caught.value.fix


def test_a_group_without_parameters_is_refused_unless_it_is_the_default() -> None:
    tx = optim.partition(SIGNS | {"c": optim.sgd(0.1)}, ROLES)
    with pytest.raises(ParameterError, match="no parameter has the label 'c'"):
        tx.init(PARAMS)
    tx = optim.partition(SIGNS | {"c": optim.sgd(0.1)}, ROLES, default="c")
    assert factors_of(tx) == BY_ROLE
    # What a hole holds is not known, so nothing is missing for sure.
    optim.partition(SIGNS, {"x": "a", "y": "b"}).init({"x": 1.0, "y": optim.MaskedNode()})


def test_label_functions_see_the_parameters_where_there_are_any() -> None:
    def labels(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: "a" if bool(jnp.all(leaf > 0)) else "b", tree)

    params, grads = {"x": LEAF, "y": -LEAF}, {"x": -LEAF, "y": LEAF}
    tx = optim.partition(SIGNS, labels)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert jnp.all(updates["x"] == -2.0) and jnp.all(updates["y"] == 3.0)


def test_extra_arguments_like_the_updates_are_restricted_to_the_group_if_asked() -> None:
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.append(extra["tags"])
        return updates, state

    seen: list[Any] = []
    inner = optim.GradientTransformation(lambda params: (), update)
    params = {"x": LEAF, "y": LEAF}
    for masks in (False, True):
        tx = optim.partition(
            {"a": inner, "b": inner}, {"x": "a", "y": "b"}, mask_compatible_extra_args=masks
        )
        tx.update(params, tx.init(params), params, tags={"x": 1, "y": 2})
    hole = optim.MaskedNode()
    assert seen == [{"x": 1, "y": 2}] * 2 + [{"x": 1, "y": hole}, {"x": hole, "y": 2}]


def test_partitions_and_masks_nest() -> None:
    """A mask of the whole tree, with or without `params`, inside a group that sees a part."""
    inner = optim.add_decayed_weights(1.0, mask={"encoder": True, "decoder": False})
    tx = optim.partition({"a": inner, "b": optim.scale(3.0)}, {"*/kernel": "a", "*/bias": "b"})
    params = {"params": {key: PARAMS[key] for key in ("encoder", "decoder")}}
    assert factors_of(tx, params)["params"] == {
        "encoder": {"kernel": 2.0, "bias": 3.0},
        "decoder": {"kernel": 1.0, "bias": 3.0},
    }


def test_optax_maps_the_parameters_in_our_states() -> None:
    """Its `tree_map_params` calls `init` with a stand-in that has no leaves."""
    labels = {"x": "a", "y": "b"}
    for make in (
        lambda lib: lib.partition({"a": lib.adam(0.1), "b": lib.sgd(0.1, 0.9)}, labels),
        lambda lib: lib.masked(lib.trace(0.9), {"x": True, "y": False}),
    ):
        found = [
            optax.tree_map_params(tx, lambda leaf: leaf + 2, tx.init({"x": LEAF, "y": LEAF}))
            for tx in (make(optim), make(optax))
        ]
        assert differing_leaves(*found) == []
