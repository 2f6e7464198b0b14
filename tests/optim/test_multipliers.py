"""scale_by_multipliers: factors in every form."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError, ParameterError
from flaxtrain.optim import scale_by_multipliers

LEAF = jnp.ones(2)
PARAMS = {
    "embedding": {"table": LEAF},
    "decoder": {"kernel": LEAF, "bias": LEAF},
    "head": LEAF,
}
EXPECTED = {
    "embedding": {"table": 0.125},
    "decoder": {"kernel": 1.0, "bias": 2.0},
    "head": 1.0,
}


def applied(multipliers: Any, params: Any = PARAMS, **options: Any) -> Any:
    tx = scale_by_multipliers(multipliers, **options)
    updates, state = tx.update(params, tx.init(params), params)
    assert state == optim.EmptyState()
    return jax.tree.map(lambda leaf: float(leaf[0]), updates)


@pytest.mark.parametrize(
    "multipliers",
    [
        EXPECTED,
        {"params": EXPECTED},
        {"embedding": 0.125, "decoder": {"kernel": 1, "bias": 2}, "head": 1.0},
        {"embedding": 0.125, "*/bias": 2.0},
        {"embedding/table": 0.125, "decoder/bias": 2.0, "decoder": 1.0},
        {"*/bias": 2.0, "decoder": 1.0, "*": 0.125, "head": 1.0},
        lambda name: {"table": 0.125, "bias": 2.0}.get(name.path[-1], 1.0),
        {"params/embedding": 0.125, "params/*/bias": 2.0},
        lambda params: {"embedding": 0.125, "*/bias": 2.0},
        lambda p: jax.tree.map(lambda n: 0.125 if "table" in n else 1.0 + ("bias" in n), p),
    ],
    ids=[
        "tree",
        "params",
        "prefix",
        "glob",
        "paths",
        "order",
        "name",
        "level",
        "function",
        "names",
    ],
)
def test_factors_are_given_in_any_form_with_and_without_the_level_params(
    multipliers: Any,
) -> None:
    order = (
        EXPECTED
        if not isinstance(multipliers, dict) or "*" not in multipliers
        else (EXPECTED | {"head": 0.125})
    )
    assert applied(multipliers) == order
    assert applied(multipliers, {"params": PARAMS}) == {"params": order}


def test_the_default_is_the_factor_of_all_others() -> None:
    found = applied({"head": 2.0}, default=0.5)
    assert found == {
        "embedding": {"table": 0.5},
        "decoder": {"kernel": 0.5, "bias": 0.5},
        "head": 2.0,
    }


def test_at_the_end_of_a_chain_a_factor_multiplies_the_learning_rate_and_the_decay() -> None:
    factor, rate = 0.125, 0.1
    tx = optim.chain(
        optim.adamw(rate, weight_decay=0.5), scale_by_multipliers({"decoder": factor})
    )
    slow = optim.adamw(rate * factor, weight_decay=0.5)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    expected, _ = slow.update(PARAMS, slow.init(PARAMS), PARAMS)
    # A power of two: not even a rounding apart.
    assert jnp.array_equal(updates["decoder"]["kernel"], expected["decoder"]["kernel"])
    assert not jnp.array_equal(updates["head"], expected["head"])


def test_dtypes_are_kept_and_a_factor_of_1_is_no_arithmetic() -> None:
    params = {"h": jnp.ones(2, jnp.bfloat16), "z": jnp.array([1 + 1j]), "absent": None}
    tx = scale_by_multipliers({"h": jnp.float32(0.5)}, default=2.0)
    updates, _ = tx.update(params, tx.init(params))
    assert updates["h"].dtype == jnp.bfloat16 and updates["z"][0] == 2 + 2j
    same = scale_by_multipliers(1.0).update(params, optim.EmptyState())[0]
    assert same["h"] is params["h"]


def test_factors_may_be_traced() -> None:
    def first(factor: Any) -> Any:
        tx = scale_by_multipliers({"head": factor})
        return tx.update(PARAMS, tx.init(PARAMS))[0]["head"]

    assert jax.vmap(first)(jnp.array([0.5, 3.0])).tolist() == [[0.5, 0.5], [3.0, 3.0]]


@pytest.mark.parametrize(
    ("multipliers", "kind", "text"),
    [
        ({"hed": 0.5}, ParameterError, "nearest: head"),
        ({"decoder": {"kernal": 0.5}}, ParameterError, "decoder/kernel"),
        ({"*/scale": 0.5}, ParameterError, "no parameter matches '*/scale'"),
        ({"head": -1.0}, ArgumentError, "the factor of 'head'=-1.0 is out of range"),
        ({"head": math.nan}, ArgumentError, "the factor of 'head'=nan"),
        ({"head": "slow"}, ArgumentTypeError, "the factor of 'head'='slow' is a str"),
        (lambda name: -1.0, ArgumentError, "-1.0 is out of range"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_factors_are_answered(
    multipliers: Any, kind: type[FlaxtrainError], text: str
) -> None:
    with pytest.raises(kind) as caught:
        scale_by_multipliers(multipliers).init(PARAMS)
    assert text in str(caught.value) and caught.value.fix


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("default", [-1.0, math.inf, "1", None])
def test_a_wrong_default_is_refused(default: Any) -> None:
    with pytest.raises(FlaxtrainError, match="default="):
        scale_by_multipliers({}, default=default)


def test_it_prints_and_compares() -> None:
    tx = scale_by_multipliers({"head": 0.5})
    assert repr(tx) == "scale_by_multipliers(multipliers={'head': 0.5})"
    assert tx == scale_by_multipliers({"head": 0.5}) != scale_by_multipliers({"head": 0.6})
