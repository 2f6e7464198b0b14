"""A rule is a frozen value and a pytree of its arrays."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.optim import DecayRate, Rule
from flaxtrain.optim.adam import Adam, Nadam
from flaxtrain.optim.rule import NoSlots, rule
from flaxtrain.optim.sgd import Trace, TraceSlots


def test_arrays_are_leaves_and_python_values_are_structure() -> None:
    assert jax.tree.leaves(Adam()) == []
    mixed = Adam(b1=DecayRate.of(0.9), eps=np.float32(1e-8), mu_dtype=jnp.bfloat16)
    names = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(mixed)
    ]
    assert names == [".b1.value", ".b1.complement", ".eps"]
    leaves, structure = jax.tree.flatten(mixed)
    assert jax.tree.unflatten(structure, leaves) == mixed


def test_static_values_of_another_type_are_another_structure() -> None:
    one, other = jax.tree.structure(Trace(1)), jax.tree.structure(Trace(1.0))
    assert one != other and one == jax.tree.structure(Trace(1))


def test_placeholders_of_jax_are_leaves() -> None:
    structure = jax.tree.structure(Trace(np.float32(0.5)))
    assert structure.num_leaves == 1
    assert jax.tree.structure(jax.tree.unflatten(structure, [object()])).num_leaves == 1


def test_rules_compare_hash_print_and_do_not_change() -> None:
    assert Adam(b1=0.8) == Adam(b1=0.8) != Adam(b1=0.9)
    assert Adam() != Nadam() and hash(Adam()) == hash(Adam())
    array = jnp.float32(0.5)
    assert Trace(array) == Trace(array) != Trace(jnp.float32(0.5))
    assert eval(repr(Trace(0.5, nesterov=True))) == Trace(0.5, nesterov=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Adam().b1 = 0.5  # type: ignore[misc]


def test_a_rule_goes_through_vmap() -> None:
    rules = Trace(jnp.array([0.0, 0.5]))
    slots = rules.init(jnp.float32(0.0))._replace(trace=jnp.float32(2.0))
    updates, _ = jax.vmap(lambda rule: rule.update(jnp.float32(1.0), slots, None, None))(rules)
    np.testing.assert_array_equal(updates, [1.0, 2.0])


def test_the_base_class_asks_for_its_methods() -> None:
    assert Rule().scalars(jnp.int32(1)) is None
    with pytest.raises(NotImplementedError):
        Rule().update(jnp.ones(1), 0, None, 0)


def test_a_rule_remembers_nothing_unless_it_says_what() -> None:
    @rule
    class Forgetful(Rule):
        Slots = NoSlots

    @rule
    class Incomplete(Rule):
        Slots = TraceSlots

    assert Rule().init(jnp.ones(1)) == Forgetful().init(jnp.ones(1)) == NoSlots()
    with pytest.raises(NotImplementedError, match="Incomplete has Slots, and needs init"):
        Incomplete().init(jnp.ones(1))
