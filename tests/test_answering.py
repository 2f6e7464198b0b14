"""Calls that do not bind. Most are tested where they are made, with the names they answer."""

from __future__ import annotations

import pytest

from flaxtrain.answering import answering, answering_class, answering_with
from flaxtrain.errors import ArgumentTypeError

# beartype would answer wrong types before the product does.
pytestmark = pytest.mark.usefixtures("unchecked_types")


@answering
def power(base: float, exponent: float = 2.0) -> float:
    """Returns a power."""
    return base**exponent


def test_a_call_that_binds_is_that_of_the_function() -> None:
    assert (power(3.0), power(2.0, exponent=3.0), power.__name__) == (9.0, 8.0, "power")


def test_the_nearest_argument_is_named() -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        power(3.0, exponnt=1.0)  # type: ignore[call-arg]
    assert str(caught.value) == (
        "got an unexpected keyword argument 'exponnt'\n  where: power\n"
        "  fix:   did you mean 'exponent'? Arguments: base, exponent"
    )


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(ArgumentTypeError, match="missing a required argument: 'base'"):
        power()  # type: ignore[call-arg]


def test_a_type_error_within_the_function_is_left_as_it_is() -> None:
    with pytest.raises(TypeError, match="unsupported operand") as caught:
        power("3")  # type: ignore[arg-type]
    assert not isinstance(caught.value, ArgumentTypeError)


def test_an_argument_of_another_call_is_sent_there() -> None:
    @answering_with(lr="OptSpec(learning_rate=...)")
    def train(steps: int) -> int:
        return steps

    assert train(3) == 3
    with pytest.raises(ArgumentTypeError, match="lr= is no argument of train") as caught:
        train(3, lr=0.1)  # type: ignore[call-arg]
    assert caught.value.fix == "pass it as OptSpec(learning_rate=...)"


def test_constructors_and_public_methods_of_a_class_answer_and_private_ones_do_not() -> None:
    @answering_class()
    class Box:
        def __init__(self, side: int) -> None:
            self.side = side

        def volume(self, times: int = 1) -> int:
            return times * self.side**3

        def _hidden(self) -> None: ...

    assert Box(2).volume(2) == 16
    with pytest.raises(ArgumentTypeError) as caught:
        Box(sid=2)  # type: ignore[call-arg]
    assert caught.value.where == "Box" and "did you mean 'side'?" in str(caught.value)
    with pytest.raises(ArgumentTypeError, match="'time'"):
        Box(2).volume(time=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError) as plain:
        Box(2)._hidden(3)  # type: ignore[call-arg]
    assert not isinstance(plain.value, ArgumentTypeError)
