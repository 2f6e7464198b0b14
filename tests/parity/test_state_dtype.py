"""With `state_dtype=float32`, bfloat16 gradients give nearly what float64 gives."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flaxtrain import optim
from tests.cases import CASES, Case
from tests.cases.base import WithoutScalar
from tests.runs import deviation

STEPS = 50


def widened(case: Case, dtype: Any) -> Any:
    """Returns our optimizer of the row with another `state_dtype`."""
    tx = case.ours()
    return getattr(optim, str(tx.name))(**tx.arguments, state_dtype=dtype)


BARE = (
    *(
        Case(name, lambda o, lr, name=name: getattr(o, name)())
        for name in (
            *("scale_by_adadelta", "scale_by_adam", "scale_by_adamax", "scale_by_adan"),
            *("scale_by_amsgrad", "scale_by_belief", "scale_by_lion", "scale_by_novograd"),
            *("scale_by_optimistic_gradient", "scale_by_radam", "scale_by_rms"),
            *("scale_by_rss", "scale_by_stddev", "scale_by_yogi"),
        )
    ),
    Case("ema", lambda o, lr: o.ema(0.9)),
    Case("trace", lambda o, lr: o.trace(0.9)),
    Case("rprop", lambda o, lr: o.rprop(lr)),
    Case("scale_by_rprop", lambda o, lr: o.scale_by_rprop(lr)),
    Case("scale_by_factored_rms", lambda o, lr: o.scale_by_factored_rms(), needs_params=True),
    WithoutScalar("scale_by_sm3", lambda o, lr: o.scale_by_sm3()),
)
"""Transformations that the table of optimizers has inside a chain only."""

NOT_HERE = {
    "per_leaf": "lifts a rule: tests/optim/test_per_leaf.py",
    "scale_by_shampoo": "shampoo, which has a row, without its learning rate",
}
"""Functions with a `state_dtype` and without a row, and why."""


def has_state_dtype(case: Case) -> bool:
    tx = case.ours()
    factory: Any = getattr(optim, str(tx.name), None)
    if not jax.tree.leaves(tx.init({"w": jnp.ones(1), "rest": {}})):
        return False  # no state, no dtype of it
    free = not {"*", "mu_dtype", "accumulator_dtype", "dtype_momentum"} & set(tx.arguments)
    return (
        free and factory is not None and "state_dtype" in inspect.signature(factory).parameters
    )


def updates(case: Case, tx: Any, params: Any, grads: Any) -> Any:
    """Returns all updates at parameters that stay where they are."""

    @jax.jit
    def scanned(grads: Any) -> Any:
        def step(state: Any, grad: Any) -> Any:
            new, state = tx.update(grad, state, params, **case.extra(grad))
            return state, new

        return jax.lax.scan(step, tx.init(params), grads)[1]

    return scanned(grads)


ROWS = [case for case in (*CASES, *BARE) if has_state_dtype(case)]


def test_every_factory_with_a_state_dtype_has_a_row_or_a_reason() -> None:
    public = {name: getattr(optim, name) for name in optim.__all__}
    factories = {
        name
        for name, thing in public.items()
        if inspect.isfunction(thing)
        and thing.__annotations__["return"] == "GradientTransformation"
        and "state_dtype" in inspect.signature(thing).parameters
    }
    assert factories - {str(case.ours().name) for case in ROWS} == set(NOT_HERE)


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_float32_state_is_closer_to_float64_than_optax_is(case: Case) -> None:
    params, grads = case.recorded(STEPS, jnp.bfloat16)
    ours = updates(case, widened(case, "float32"), params, grads)
    with jax.enable_x64(True):
        wide = [jax.tree.map(lambda leaf: leaf.astype(jnp.float64), t) for t in (params, grads)]
        truth = updates(case, case.ours(), *wide)
    found = deviation(ours, truth)
    if "in_optax" not in case.lacks:
        theirs = deviation(updates(case, case.judge(), params, grads), truth)
        assert found < theirs or found == theirs == 0.0
    # Moments in float32 of gradients that are exact in bfloat16: an order below its 4e-3.
    assert found < 4e-4


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_every_moment_is_stored_in_the_dtype_that_is_asked_for(case: Case) -> None:
    params = {"w": jnp.ones((3, 2), jnp.float32), "rest": {}}
    for dtype in ("bfloat16", "float16", "float32"):
        tx = widened(case, dtype)
        state = jax.eval_shape(tx.init, params)
        extra = case.extra(params)
        new, after = jax.eval_shape(
            lambda p, s, tx=tx, e=extra: tx.update(p, s, p, **e), params, state
        )
        assert {leaf.dtype.name for leaf in jax.tree.leaves(new)} == {"float32"}
        for tree in (state, after):
            stored = {
                leaf.dtype.name
                for leaf in jax.tree.leaves(tree)
                if jnp.issubdtype(leaf.dtype, jnp.floating)
            }
            assert stored == {dtype}
