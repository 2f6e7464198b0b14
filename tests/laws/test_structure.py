"""Laws about trees: structure, dtypes, names, empty trees, scalars, None, text form."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain import optim
from flaxtrain.tree import named_leaves
from tests import gradients
from tests.cases import CAPABILITIES, CASES, Case
from tests.runs import differing_leaves, layout

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def example(dtype: Any, *, complex_leaf: bool) -> tuple[Any, Any]:
    params = gradients.params(complex_leaf=complex_leaf)
    grads = jax.tree.map(lambda g: g[0], gradients.gradients(1, complex_leaf=complex_leaf))
    return gradients.cast(params, dtype), gradients.cast(grads, dtype)


@each_case
def test_structure_shapes_and_dtypes_are_kept(case: Case) -> None:
    tx = case.ours()
    params, grads = example(jnp.float32, complex_leaf=case.has_complex)
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(tx.update, grads, state, params, **case.extra(grads))
    assert layout(updates) == layout(grads)
    assert layout(after) == layout(state)
    assert jax.tree.structure(after) == jax.tree.structure(state)


@each_case
def test_bfloat16_stays_bfloat16(case: Case) -> None:
    if lack := case.lacks.get("keeps_bfloat16"):
        lack.proof(case)
        return
    tx = case.ours()
    params, grads = example(jnp.bfloat16, complex_leaf=False)
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(tx.update, grads, state, params, **case.extra(grads))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(updates)} == {"bfloat16"}
    assert layout(after) == layout(state)


@each_case
def test_a_tree_without_leaves_gives_one(case: Case) -> None:
    tx, params = case.ours(), {"w": {}, "rest": {}}
    updates, _ = tx.update(params, tx.init(params), params, **case.extra(params))
    assert updates == params


@each_case
def test_none_leaves_pass(case: Case) -> None:
    tx, params = case.ours(), {"w": jnp.ones((2, 2)), "rest": {"absent": None}}
    state = tx.init(params)
    updates, after = tx.update(params, state, params, **case.extra(params))
    assert updates["rest"] == {"absent": None} and updates["w"].shape == (2, 2)
    assert jax.tree.structure(after) == jax.tree.structure(state)


@each_case
def test_scalars_of_python_numpy_and_jax_give_the_same(case: Case) -> None:
    tx, results = case.ours(), []
    for make in (jnp.float32, np.float32, np.asarray, float):
        params = {"w": make(2.0), "rest": {"b": make(-1.0)}}
        updates, _ = tx.update(params, tx.init(params), params, **case.extra(params))
        results.append([float(leaf) for leaf in jax.tree.leaves(updates)])
    # Python and float64 numbers are rounded to float32 a little later than arrays are.
    np.testing.assert_allclose(results, results[:1] * 4, rtol=case.rounding(float32=3e-7))


@each_case
def test_a_state_saved_by_names_continues_bit_for_bit(case: Case) -> None:
    tx = case.ours()
    params, grads = example(jnp.float32, complex_leaf=case.has_complex)
    update = jax.jit(tx.update)
    _, state = update(grads, tx.init(params), params, **case.extra(grads))
    saved = {name: np.asarray(leaf) for name, leaf in named_leaves(state)}
    assert len(saved) == len(jax.tree.leaves(state)), "names are unique"
    empty = jax.eval_shape(tx.init, params)
    restored = jax.tree.unflatten(
        jax.tree.structure(empty), [saved[name] for name, _ in named_leaves(empty)]
    )
    kept, resumed = (update(grads, s, params, **case.extra(grads)) for s in (state, restored))
    assert differing_leaves(resumed, kept) == []


@each_case
def test_the_text_form_makes_it_again(case: Case) -> None:
    tx = case.ours()
    if lack := case.lacks.get("prints"):
        lack.proof(case)
        return
    again = eval(repr(tx), dict(vars(optim)))
    assert again == tx and hash(again) == hash(tx)
    assert again != case.ours(0.5)


@each_case
def test_equal_calls_give_equal_objects_unless_functions_differ(case: Case) -> None:
    first, second = case.ours(), case.ours()
    is_data = "prints" not in case.lacks
    # A function made twice is two functions; one that is shared (a mask) is equal to itself.
    assert first == first and (first == second or not is_data)
    assert hash(first) == hash(second)
    assert first != optim.identity()


@each_case
def test_parameters_are_needed_only_where_the_row_says_so(case: Case) -> None:
    tx = case.ours()
    params, grads = example(jnp.float32, complex_leaf=False)
    if case.needs_params:
        with pytest.raises(ValueError, match="needs the parameters"):
            tx.update(grads, tx.init(params), **case.extra(grads))
    else:
        state = jax.eval_shape(tx.init, params)
        updates, _ = jax.eval_shape(lambda g, s: tx.update(g, s, **case.extra(g)), grads, state)
        assert layout(updates) == layout(grads)


def test_rows_are_unique_and_say_only_known_capabilities() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(set(case.lacks) <= set(CAPABILITIES) for case in CASES)


@pytest.mark.parametrize(
    ("case", "capability"),
    [(case, name) for case in CASES for name in case.lacks],
    ids=lambda value: getattr(value, "name", value),
)
def test_what_a_row_lacks_is_proved(case: Case, capability: str) -> None:
    lack = case.lacks[capability]
    assert lack.reason
    lack.proof(case)


def test_the_number_of_lacking_cells_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    lacking = sum(len(case.lacks) for case in CASES)
    cells = len(CASES) * len(CAPABILITIES)
    with capsys.disabled():
        print(f"\noptimizer table: {lacking} of {cells} cells are False, each with a proof")
    assert lacking == 90, "a cell that is lost or won is a decision: change the number with it"
