"""snapshot, monitor and measure_with_ema."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxtrain import optim
from flaxtrain.tree import global_norm
from tests.runs import at, counted, differing_leaves, layout, nodes, walk

PARAMS = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([0.0])}
GRADS = {"w": jnp.array([[3.0, 4.0], [6.0, 8.0], [0.3, 0.4]]), "b": jnp.zeros((3, 1))}


def is_large(updates: Any) -> Any:
    return global_norm(updates) > 1.0


def measures(lib: Any) -> dict[str, Any]:
    return {
        "norm": global_norm,
        "norm_ema": lib.measure_with_ema(global_norm, 0.9),
        "raw_ema": lib.measure_with_ema(global_norm, 0.9, debias=False),
        "share": lib.measure_with_ema(is_large, 0.5),
    }


def test_measurements_are_optax_s_and_updates_pass() -> None:
    ours, judge = (
        walk(lib.monitor(measures(lib)), PARAMS, GRADS, jit=True) for lib in (optim, optax)
    )
    assert nodes(ours[1]) == nodes(judge[1]) and differing_leaves(ours, judge) == []
    assert differing_leaves(ours[2][0], at(GRADS, 0)) == []
    found = ours[1].measurements
    # Shares: 1, 1, 0 with weights 1/8, 1/4, 1/2, and the total weight is 7/8.
    np.testing.assert_allclose(found["share"], 3 / 7, rtol=1e-6)
    np.testing.assert_allclose(found["norm"], 0.5, rtol=1e-6)


def test_the_state_has_its_full_tree_from_the_start() -> None:
    tx, judge = optim.monitor(measures(optim)), optax.monitor(measures(optax))
    assert judge.init(PARAMS).measurements == {}, "optax fills it later"
    (update, traces), state = counted(tx.update), tx.init(PARAMS)
    assert all(leaf == 0 for leaf in jax.tree.leaves(state))
    for index in range(3):
        _, after = update(at(GRADS, index), state, PARAMS)
        assert layout(after) == layout(state)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        state = after
    assert len(traces) == 1
    final, _ = jax.lax.scan(lambda s, g: (tx.update(g, s)[1], None), tx.init(PARAMS), GRADS)
    # The loop is compiled as one program.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), final, state)


def test_a_share_of_true_is_a_float_from_the_start() -> None:
    assert optax.measure_with_ema(is_large, 0.5).init(PARAMS)[1].ema.dtype == bool
    assert optim.measure_with_ema(is_large, 0.5).init(PARAMS)[1].ema.dtype == jnp.float32


def test_python_numbers_and_trees_are_measurements() -> None:
    tx = optim.monitor({"leaves": lambda u: len(u), "each": lambda u: jax.tree.map(jnp.max, u)})
    state = tx.init(PARAMS)
    _, after = tx.update(PARAMS, state)
    assert layout(after) == layout(state)
    assert after.measurements["leaves"] == 2 and after.measurements["each"]["w"] == 4.0


def test_a_measurement_of_extra_arguments_is_there_after_the_first_update() -> None:
    def update(updates: Any, state: Any, params: Any = None, *, value: Any, **_: Any) -> Any:
        return 2 * value, state

    loss = optim.GradientTransformation(lambda params: (), update)
    tx = optim.monitor({"norm": global_norm, "loss": loss})
    state = tx.init(PARAMS)
    assert list(state.measurements) == ["norm"]
    _, state = tx.update(PARAMS, state, value=3.0)
    assert state.measurements["loss"] == 6.0


def test_a_snapshot_begins_with_the_parameters_and_takes_extra_arguments() -> None:
    tx = optim.chain(optim.scale(2.0), optim.snapshot("norm", global_norm))
    state = tx.init(PARAMS)
    assert state[1].measurement == {"norm": 5.0}
    _, state = tx.update(PARAMS, state, value=1.0)
    assert state[1].measurement == {"norm": 10.0}
    assert optax.tree_utils.tree_get(state, "norm") == 10.0
