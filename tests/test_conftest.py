"""The settings of the test run are in force."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from flaxtrain import tree
from flaxtrain.errors import nearest


def test_a_rank_promotion_is_an_error() -> None:
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones(3) - jnp.ones((3, 1))


def test_a_wrong_type_is_found_at_the_call() -> None:
    jaxtyping = pytest.importorskip("jaxtyping")
    with pytest.raises(jaxtyping.TypeCheckError):
        nearest(3, ["adam"])


@pytest.mark.usefixtures("unchecked_types")
def test_the_checks_of_types_can_be_switched_off() -> None:
    with pytest.raises(AttributeError):
        tree.flatten({"a": 1}).no_such_attribute  # noqa: B018, still an ordinary error
    assert nearest("adam", (name for name in ["adam"])) == ["adam"]
    with pytest.raises(Exception) as caught:
        nearest(3, ["adam"])
    assert "jaxtyping" not in type(caught.value).__module__
