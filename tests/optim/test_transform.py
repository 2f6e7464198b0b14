"""The protocol: pairs that know their name."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError


def test_a_transformation_unpacks_and_knows_its_arguments() -> None:
    tx = optim.adamw(0.1, b2=0.95, mu_dtype=jnp.bfloat16)
    init, update = tx
    assert (init, update) == (tx.init, tx.update) == (tx[0], tx[1]) and len(tx) == 2
    assert tx.name == "adamw"
    assert tx.arguments == {"learning_rate": 0.1, "b2": 0.95, "mu_dtype": "bfloat16"}
    assert repr(tx) == "adamw(learning_rate=0.1, b2=0.95, mu_dtype='bfloat16')"


def test_arguments_by_position_and_by_name_are_the_same() -> None:
    assert optim.sgd(0.1, 0.9) == optim.sgd(learning_rate=0.1, momentum=0.9)
    assert optim.sgd(0.1, None) == optim.sgd(0.1) != optim.sgd(0.1, 0.0)
    assert optim.chain(optim.scale(2.0)) == optim.chain(optim.scale(2.0)) != optim.scale(2.0)


def test_masks_and_arrays_compare_without_a_truth_value_of_arrays() -> None:
    array = jnp.ones(2)
    assert optim.scale(array) == optim.scale(array) != optim.scale(jnp.ones(2))
    mask = {"a": np.bool_(True)}
    assert optim.adamw(0.1, mask=mask) == optim.adamw(0.1, mask=dict(mask))


def test_a_pair_without_a_name_is_equal_to_itself_only() -> None:
    def double(updates: Any, params: Any) -> Any:
        return 2 * updates

    first, second = optim.stateless(double), optim.stateless(double)
    assert first == first != second
    assert "GradientTransformation" in repr(first)
    assert len({first, second, optim.identity(), optim.identity()}) == 3


def test_a_foreign_object_gets_only_the_extra_arguments_it_names() -> None:
    tx = optim.with_extra_args(optax.sgd(0.5))
    updates, _ = tx.update(2.0, tx.init(0.0), 0.0, value=3.0)
    assert updates == -1.0
    assert optim.with_extra_args(tx) is tx


def plain_pair() -> Any:
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda leaf: 2 * leaf, updates), state

    return optim.GradientTransformation(lambda params: (), update)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", [optim.with_extra_args, optim.with_extra_args_support])
def test_a_pair_of_three_arguments_stands_beside_one_that_needs_more(wrap: Any) -> None:
    tx = optim.chain(plain_pair(), optim.polyak_sgd())
    updates, _ = tx.update(1.0, tx.init(0.0), 0.0, value=1.0)
    assert updates == -0.5  # Polyak's step for a value of 1 and a gradient of 2
    assert wrap(plain_pair()).update(1.0, (), value=3.0) == (2.0, ())


@pytest.mark.parametrize(
    "around",
    [
        lambda tx: optim.named_chain(("mine", tx)),
        lambda tx: optim.masked(tx, {"w": True}),
        lambda tx: optim.partition({"mine": tx}, {"w": "mine"}),
        lambda tx: optim.MultiSteps(tx, 1),
        lambda tx: optim.apply_if_finite(tx, 1),
        lambda tx: optim.flatten(tx),
        lambda tx: optim.inject_hyperparams(lambda rate: tx)(0.1),
    ],
)
def test_every_wrapper_takes_a_pair_of_three_arguments(around: Any) -> None:
    tx, ones = around(plain_pair()), {"w": jnp.ones(2)}
    updates, _ = tx.update(ones, tx.init(ones), ones, value=1.0)
    assert updates["w"][0] == 2.0


def test_a_wrapped_pair_keeps_its_name() -> None:
    @optim.named
    def doubled(times: int = 1) -> optim.GradientTransformation:
        return plain_pair()

    wrapped = optim.with_extra_args(doubled(times=3))
    assert repr(wrapped) == "doubled(times=3)" and wrapped == doubled(times=3)
    assert wrapped.update(1.0, (), value=3.0) == (2.0, ())
    assert optim.with_extra_args(wrapped) is wrapped


def test_an_argument_that_a_pair_names_reaches_it() -> None:
    tx = optim.GradientTransformation(
        lambda params: (),
        lambda updates, state, params=None, *, value=0.0: (value * updates, state),  # type: ignore[arg-type]
    )
    assert optim.with_extra_args(tx).update(1.0, (), value=3.0, other=1) == (3.0, ())


def test_something_else_than_a_transformation_is_refused(unchecked_types: None) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a gradient transformation"):
        optim.with_extra_args(0.5)  # type: ignore[arg-type]


def test_identity_returns_what_it_gets() -> None:
    state, updates = optim.identity().init(None), {"a": 1.0}
    assert optim.identity().update(updates, state) == (updates, state)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lamb", {"learning_rate": 0.1, "b1": 2.0}),
        ("nadamw", {"learning_rate": -0.1}),
        ("rmsprop", {"learning_rate": 0.1, "decay": 2.0}),
        ("scale_by_yogi", {"b1": 2.0}),
        ("adamw", {"learning_rate": 0.1, "weight_decay": -1.0}),
        ("adamw", {"learning_rate": 0.1, "state_dtype": "int8"}),
    ],
)
def test_an_error_names_the_function_that_was_called(
    name: str, arguments: dict[str, Any], unchecked_types: None
) -> None:
    with pytest.raises(FlaxtrainError) as info:
        getattr(optim, name)(**arguments)
    assert info.value.where == name and f"where: {name}" in str(info.value)
    assert info.value.fix is not None and info.value.__suppress_context__


def test_an_error_that_names_a_place_keeps_it() -> None:
    @optim.named
    def factory() -> optim.GradientTransformation:
        raise ArgumentError("nothing there", where="layers/0", fix="look elsewhere")

    with pytest.raises(ArgumentError, match="where: layers/0"):
        factory()
