"""chain, named_chain and masked."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError, ParameterError

PARAMS = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
GRADS = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 5.0)}
MASK = {"kernel": True, "bias": False}


def test_a_chain_applies_its_parts_from_left_to_right() -> None:
    tx = optim.chain(optim.add_decayed_weights(1.0), optim.scale(10.0))
    updates, state = tx.update(2.0, tx.init(3.0), 3.0)
    assert updates == 50.0 and state == (optim.EmptyState(), optim.EmptyState())


def test_an_empty_chain_changes_nothing() -> None:
    assert optim.chain().update(2.0, optim.chain().init(0.0)) == (2.0, ())


def test_a_state_of_another_length_is_refused() -> None:
    tx = optim.chain(optim.scale(1.0), optim.scale(2.0))
    with pytest.raises(ArgumentError, match="a chain of 2 parts got a state of 1"):
        tx.update(1.0, (optim.EmptyState(),))


def test_states_of_a_named_chain_are_kept_by_name_in_order() -> None:
    tx = optim.named_chain(("z", optim.trace(0.5)), ("a", optim.scale(2.0)))
    state = tx.init(1.0)
    updates, after = tx.update(1.0, state)
    assert updates == 2.0 and isinstance(after, OrderedDict) and list(after) == ["z", "a"]
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_masked_passes_the_rest_through_and_keeps_no_slots_for_it() -> None:
    tx = optim.masked(optim.trace(0.5), MASK)
    state = tx.init(PARAMS)
    assert state.inner_state.trace["bias"] == optim.MaskedNode()
    for expected in (3.0, 4.5):
        updates, state = tx.update(GRADS, state, PARAMS)
        assert jnp.all(updates["kernel"] == expected) and updates["bias"] is GRADS["bias"]


def test_a_prefix_of_the_tree_is_a_mask() -> None:
    tree = {"block": PARAMS, "head": PARAMS}
    tx = optim.masked(optim.scale(2.0), {"block": True, "head": False})
    updates, _ = tx.update(tree, tx.init(tree))
    assert jnp.all(updates["block"]["bias"] == 2.0) and jnp.all(updates["head"]["bias"] == 1.0)


def test_a_mask_function_sees_the_parameters_where_there_are_any() -> None:
    def where_positive(tree: Any) -> Any:
        if not isinstance(tree["bias"], optim.ParamName):  # asked again: all said the same
            seen.append(tree)
        return jax.tree.map(lambda leaf: bool(jnp.all(leaf > 0)), tree)

    seen: list[Any] = []
    tx = optim.masked(optim.scale(2.0), where_positive)
    state = tx.init(PARAMS)
    negative = jax.tree.map(jnp.negative, GRADS)
    updates, _ = tx.update(negative, state, PARAMS)
    assert seen == [PARAMS, PARAMS] and jnp.all(updates["bias"] == -10.0)
    updates, _ = tx.update(negative, state)
    assert seen[2] is negative and jnp.all(updates["bias"] == -5.0)


def test_a_mask_that_is_not_known_while_tracing_is_refused() -> None:
    tx = optim.masked(optim.scale(2.0), lambda tree: jax.tree.map(lambda x: x.sum() > 0, tree))
    with pytest.raises(ArgumentTypeError, match="a mask holds"):
        jax.jit(tx.update)(GRADS, tx.init(PARAMS))


def test_a_mask_of_another_structure_is_refused() -> None:
    with pytest.raises(ParameterError, match="the mask does not fit the tree"):
        optim.masked(optim.scale(2.0), {"kernel": True}).init(PARAMS)


def test_extra_arguments_like_the_updates_can_be_masked_too() -> None:
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.append(extra)
        return updates, state

    seen: list[Any] = []
    inner = optim.GradientTransformation(lambda params: (), update)
    tx = optim.masked(inner, MASK, mask_compatible_extra_args=True)
    tx.update(GRADS, tx.init(PARAMS), tags=GRADS, value=1.0)
    assert seen == [
        {"tags": {"kernel": GRADS["kernel"], "bias": optim.MaskedNode()}, "value": 1.0}
    ]
