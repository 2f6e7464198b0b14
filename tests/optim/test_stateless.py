"""Names of the protocol, stateless transformations, slow copies, and tree_map_params."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentTypeError, ParameterError
from tests.runs import differing_leaves

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array([0.5]), "none": None}


def test_the_names_of_the_protocol_mean_our_classes() -> None:
    assert optim.GradientTransformationExtraArgs is optim.GradientTransformation
    assert optim.with_extra_args_support(optim.sgd(0.1)) == optim.sgd(0.1)
    assert isinstance(optim.sgd(0.1).init, optim.TransformInitFn)
    assert isinstance(optim.sgd(0.1).update, optim.TransformUpdateFn)
    assert isinstance(optim.sgd(0.1).update, optim.TransformUpdateExtraArgsFn)
    assert optim.init_empty_state(PARAMS) == optim.EmptyState()


def test_a_function_of_one_array_and_its_parameter_is_mapped() -> None:
    def shrink(update: Any, param: Any) -> Any:
        return update if param is None else update - 0.5 * param

    for lib in (optim, optax):
        tx = lib.stateless_with_tree_map(shrink)
        state = tx.init(PARAMS)
        with_params, _ = tx.update(PARAMS, state, PARAMS)
        without, _ = tx.update(PARAMS, state)
        assert with_params["w"][0] == 0.5 and without["w"][0] == 1.0
        assert with_params["none"] is None


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_an_incremental_update_is_optax_s(dtype: Any) -> None:
    new = {"w": jnp.array([1.0, 2.0], dtype), "none": None}
    old = {"w": jnp.array([-1.0, 0.3], dtype), "none": None}
    ours, judge = (lib.incremental_update(new, old, 0.1) for lib in (optim, optax))
    assert differing_leaves(ours, judge) == [] and ours["none"] is None


def test_a_periodic_update_takes_the_new_tree_at_multiples_of_the_period() -> None:
    new, old = ({"w": jnp.full(2, value)} for value in (1.0, 0.0))
    for steps in range(7):
        ours, judge = (lib.periodic_update(new, old, steps, 3) for lib in (optim, optax))
        assert differing_leaves(ours, judge) == []
    jitted = jax.jit(optim.periodic_update)(new, old, 6, 3)
    assert jitted["w"][0] == 1.0


def test_a_periodic_update_keeps_the_dtypes_and_shares_no_buffer() -> None:
    new, old = {"w": jnp.ones(2)}, {"w": jnp.zeros(2, jnp.bfloat16)}
    with pytest.raises(TypeError):
        optax.periodic_update(new, old, 3, 3)
    assert optim.periodic_update(new, old, 3, 3)["w"].dtype == jnp.bfloat16
    target = optim.periodic_update(new, {"w": jnp.zeros(2)}, 3, 3)
    new["w"].delete()
    assert target["w"][0] == 1.0


def test_trees_that_differ_are_refused_by_name() -> None:
    new, old = {"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0}
    for call in (
        lambda: optim.incremental_update(new, old, 0.5),
        lambda: optim.periodic_update(new, old, 0, 1),
    ):
        with pytest.raises(ParameterError, match="trees of different structure"):
            call()


STATES = [
    lambda o: o.adam(0.1),
    lambda o: o.chain(o.trace(0.9), o.scale_by_adam(), o.scale(-1.0)),
    lambda o: o.MultiSteps(o.adam(0.1), 2),
    lambda o: o.apply_if_finite(o.adam(0.1), 2),
    lambda o: o.lookahead(o.adam(0.1), 2, 0.5),
    lambda o: o.inject_hyperparams(o.adam)(0.1),
]


@pytest.mark.parametrize("make", STATES)
def test_slots_are_found_in_every_state_and_mapped_with_other_trees(make: Any) -> None:
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    names = {"w": "rows", "b": "whole"}

    def found(lib: Any) -> list[Any]:
        tx = make(lib)
        return jax.tree.leaves(
            lib.tree_map_params(
                tx,
                lambda slot, name: f"{name} {slot.shape}",
                tx.init(params),
                names,
                transform_non_params=lambda value: "other",
            )
        )

    assert found(optim) == found(optax)
    assert {"whole (3,)", "rows (2, 3)", "other"} == set(found(optim))


def test_it_maps_states_of_optax_and_takes_init_alone() -> None:
    params = {"w": jnp.ones(2)}
    for tx in (optim.adam(0.1), optax.adam(0.1)):
        for initable in (tx, tx.init):
            mapped = optim.tree_map_params(initable, lambda slot: slot + 2, tx.init(params))
            np.testing.assert_array_equal(mapped[0].mu["w"], [2.0, 2.0])
            assert mapped[0].count == 0
    with pytest.raises(ArgumentTypeError, match="neither a transformation nor an init"):
        optim.tree_map_params(3, lambda slot: slot, ())
