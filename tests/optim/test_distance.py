"""Layer-wise DoG: what Optax's form can't do."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from tests.runs import counted, layout


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_shapes_and_dtypes_of_the_state_are_kept_and_scalars_stay_scalars(
    dtype: object,
) -> None:
    tx, params = optim.scale_by_distance_over_gradients(), {"a": jnp.ones((), dtype)}
    state = tx.init(params)
    updates, after = tx.update(params, state, params)
    assert layout(after) == layout(state)
    assert updates["a"].shape == ()
    assert not jnp.iscomplexobj(after.max_dist["a"])


def test_the_step_is_the_largest_distance_over_the_root_of_all_gradients() -> None:
    tx = optim.scale_by_distance_over_gradients(reps_rel=0.5, eps=0.0)
    state = tx.init(jnp.zeros(2))
    _, state = tx.update(jnp.array([3.0, 0.0]), state, jnp.zeros(2))
    _, state = tx.update(jnp.array([0.0, 4.0]), state, jnp.array([0.0, 2.0]))
    updates, _ = tx.update(jnp.array([0.0, 12.0]), state, jnp.array([1.0, 0.0]))
    # r = 2, the largest of 0.5, 2 and 1; G = 9 + 16 + 144.
    assert jnp.allclose(updates, jnp.array([0.0, 12.0 * 2.0 / 13.0]))


def test_parameters_are_needed() -> None:
    tx = optim.scale_by_distance_over_gradients()
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"reps_rel": 0.0}, ArgumentError),
        ({"reps_rel": float("nan")}, ArgumentError),
        ({"eps": -1.0}, ArgumentError),
        ({"global_scale": "1"}, ArgumentTypeError),
        ({"param_dtype": "int8"}, ArgumentTypeError),
    ],
)
def test_a_wrong_argument_raises(
    arguments: dict[str, object], kind: type[Exception], unchecked_types: None
) -> None:
    with pytest.raises(kind, match=next(iter(arguments))):
        optim.scale_by_distance_over_gradients(**arguments)  # type: ignore[arg-type]


def test_it_is_traced_once() -> None:
    tx = optim.scale_by_distance_over_gradients()
    update, traces = counted(tx.update)
    params = jnp.ones(3, jnp.bfloat16)
    state = tx.init(params)
    for _ in range(2):
        _, state = update(params, state, params)
    assert len(traces) == 1
