"""Laws about where an optimizer can be made, and what may be donated."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests import gradients
from tests.cases import CASES, Case

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def params_of(case: Case) -> Any:
    tree = gradients.params(complex_leaf=case.has_complex)
    return gradients.cast(tree, jnp.float32)


@each_case
@pytest.mark.parametrize("number", [float, jnp.float32], ids=lambda n: n.__name__)
def test_it_can_be_made_inside_a_function_that_is_traced(case: Case, number: Any) -> None:
    params, rate = params_of(case), number(0.01)

    def update(params: Any) -> Any:
        tx = case.ours(rate)
        return tx.update(params, tx.init(params), params, **case.extra(params))[0]

    assert jax.tree.structure(jax.eval_shape(update, params)) == jax.tree.structure(params)


@each_case
def test_no_two_leaves_of_a_state_share_a_buffer(case: Case) -> None:
    params = params_of(case)
    leaves = jax.tree.leaves((case.ours().init(params), params))
    leaves = [
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in leaves
        if leaf.size
    ]
    places = [leaf.unsafe_buffer_pointer() for leaf in leaves]
    assert len(set(places)) == len(places)
