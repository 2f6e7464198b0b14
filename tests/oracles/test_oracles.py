"""1,000 updates in float64 against the papers in NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flaxtrain import optim
from tests import gradients
from tests.cases import CASES, Case
from tests.cases.base import per_array
from tests.oracles.adam import adam
from tests.oracles.sgd import sgd
from tests.runs import deviation

JUDGED = [case for case in CASES if case.oracle is not None]


@pytest.mark.parametrize("case", JUDGED, ids=lambda case: case.name)
def test_float64_follows_the_paper_for_1000_updates(case: Case) -> None:
    """The bar of most rows, 1e-12: about ten float64 roundings (1e-16) an update, not all in
    one direction."""
    assert gap(case, case.oracle, 1000) <= case.oracle_bar


WRONG = {
    "adam": per_array(adam, b2=0.999001),
    "sgd(momentum)": per_array(sgd, momentum=0.900001),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_measure_sees_a_changed_hyperparameter(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    assert gap(case, WRONG[name], 50) > 1e3 * case.oracle_bar


def gap(case: Case, oracle: Any, steps: int) -> float:
    params = gradients.params(complex_leaf=case.has_complex)
    grads = gradients.gradients(steps, complex_leaf=case.has_complex)
    paths = oracle(params, grads)
    with jax.enable_x64(True):
        ours = trajectory(
            case, gradients.cast(params, jnp.float64), gradients.cast(grads, jnp.float64)
        )
        assert {leaf.dtype.itemsize for leaf in jax.tree.leaves(ours)} <= {8, 16}
        return deviation(ours, paths)


def trajectory(case: Case, params: Any, grads: Any) -> Any:
    """Returns the parameters after each step."""
    tx = case.ours(1e-2)

    @jax.jit
    def scanned(params: Any, grads: Any) -> Any:
        def step(carry: Any, grad: Any) -> Any:
            params, state = carry
            updates, state = tx.update(grad, state, params, **case.extra(grad))
            params = optim.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, tx.init(params)), grads)[1]

    return scanned(params, grads)
