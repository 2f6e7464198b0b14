"""Rows of transformations that gather updates over several calls."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests import gradients
from tests.cases.base import FUNCTION, IMAGINARY, Case, Lack
from tests.oracles.accumulate import one_and_then_fours
from tests.runs import AS_IT_COMES, differing_leaves, walk


def one_and_then_four(step: Any) -> Any:
    """The first call takes a step, so that laws about the first update say something."""
    return jnp.where(step < 1, 1, 4)


def mean_of_four(g: Any) -> Any:
    """Returns the running means of every four gradients, rounded as an accumulator rounds."""
    acc = jnp.zeros_like(g[0::4])
    for n in range(4):
        acc = acc + (g[n::4] - acc) / np.int32(n + 1)
    return acc


def recorded(steps: int) -> tuple[Any, Any, Any]:
    """Returns parameters, gradients and their means of four, in float32.

    Without the scalar, whose mean XLA may move into the update and fuse with it.
    """
    params = gradients.cast(gradients.params(complex_leaf=False), jnp.float32)
    grads = gradients.cast(gradients.gradients(steps, complex_leaf=False), jnp.float32)
    for tree in (params, grads):
        del tree["rest"]["scalar"]
    means = jax.jit(lambda tree: jax.tree.map(mean_of_four, tree), compiler_options=AS_IT_COMES)
    return params, grads, means(grads)


def _optax_differs_from_its_own_optimizer(case: Case) -> None:
    params, grads, means = recorded(80)
    plain = walk(optax.adam(1e-2), params, means, jit=True)[:2]
    params, state, _ = walk(optax.MultiSteps(optax.adam(1e-2), 4), params, grads, jit=True)
    assert differing_leaves((params, state.inner_opt_state), plain)


FUSED = Lack(
    "optax fuses the mean into the update, and rounds unlike its own optimizer given that mean",
    _optax_differs_from_its_own_optimizer,
)

CASES = (
    Case(
        "MultiSteps(adam)",
        # The default accumulator is float32 also for float64 gradients.
        lambda o, lr: o.MultiSteps(
            o.adam(lr), one_and_then_four, accumulator_dtype=jnp.float64
        ),
        rosenbrock=1e-2,
        oracle=one_and_then_fours,
        lacks={"bitwise": FUSED, "complex_parity": IMAGINARY, "prints": FUNCTION},
    ),
)
