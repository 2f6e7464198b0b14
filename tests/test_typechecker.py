"""The check of annotations that all other tests run under."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax.numpy as jnp
import pytest

import flaxtrain
import flaxtrain.tree.paths
from flaxtrain.tree import path_name
from flaxtrain.typing import Array, Float

pytest.importorskip("beartype")
pytest.importorskip("jaxtyping")

from jaxtyping import TypeCheckError

from tests.typechecker import UNCHECKED, checked, hints_of

Axis: TypeAlias = Float[Array, "n"]  # noqa: F821


@checked
def half(x: float, *rest: int, places: int = 3, **more: str) -> float:
    """Returns the half."""
    found: Any = round(x / 2, places) if x >= 0 else "negative"
    return found


@checked
def product(a: Axis, b: Axis) -> Axis:
    return jnp.concatenate([a, b]) if a[0] < 0 else a * b


@checked
def later(thing: Later) -> Later:
    return thing


class Later:
    pass


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("1",), {}),
        ((1.0, "2"), {}),
        ((1.0,), {"places": 2.5}),
        ((1.0,), {"other": 3}),
        ((-1.0,), {}),  # the result
    ],
)
def test_arguments_and_results_of_another_type_are_refused(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    assert half(5, 1, places=2, other="") == 2.5, "an int is a float"
    with pytest.raises(TypeCheckError, match="half"):
        half(*args, **kwargs)


def test_functions_of_the_package_are_checked_and_remain_its_own() -> None:
    wrong: Any = "params"
    with pytest.raises(TypeCheckError, match="path_name"):
        path_name(wrong)
    (found,) = (
        test
        for test in doctest.DocTestFinder().find(flaxtrain.tree.paths)
        if test.name.endswith(".path_name")
    )
    assert found.examples


def test_the_axes_of_shapes_have_one_size_in_all_arguments_and_in_the_result() -> None:
    two, three = jnp.ones(2), jnp.ones(3)
    assert product(two, two).shape == (2,) and product(three, three).shape == (3,)
    for a, b in ((two, three), (-two, two), (jnp.ones(2, int), two)):
        with pytest.raises(TypeCheckError):
            product(a, b)


def test_a_name_that_is_defined_further_down_is_known_at_the_call() -> None:
    thing, unknown = Later(), 1
    assert later(thing) is thing
    with pytest.raises(TypeCheckError):
        later(unknown)


def test_functions_that_are_made_again_share_the_checks_and_not_what_they_do() -> None:
    def made(by: Any) -> Callable[[Any], Any]:
        @checked
        def times(x: int) -> int:
            return x * by

        return times

    two, text, wrong = made(2), made("a"), made(0.5)
    assert two(3) == 6
    for call in (lambda: two(1.5), lambda: text(3), lambda: wrong(3)):
        with pytest.raises(TypeCheckError):
            call()


def functions() -> Iterator[types.FunctionType]:
    """Yields the functions and methods that stand at the top of the package's modules."""
    for info in pkgutil.walk_packages(flaxtrain.__path__, "flaxtrain."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        own = [v for v in vars(module).values() if getattr(v, "__module__", "") == info.name]
        for value in own:
            for member in list(vars(value).values()) if isinstance(value, type) else [value]:
                for holds in ("fget", "__func__", "func"):
                    member = getattr(member, holds, member)
                function: Any = inspect.unwrap(member) if callable(member) else member
                is_function = isinstance(function, types.FunctionType)
                # Those of named tuples are made elsewhere, and not checked.
                if is_function and function.__module__ == info.name:
                    yield function


def test_annotations_that_nothing_is_checked_by_are_known() -> None:
    """Two modules that need each other's types can't both import them at run time."""
    assert len([hints_of(function) for function in functions()]) > 2_000
    assert sorted(name for name in UNCHECKED if name.startswith("flaxtrain.")) == [
        "flaxtrain.loop.bad_steps: Trainer | Recipe",
        *(
            f"flaxtrain.loop.debug.{name}: Trainer"
            for name in ("check", "checkified", "find_lr", "modes", "overfit", "smoke", "twin")
        ),
        "flaxtrain.loop.evaluating: Trainer",
        "flaxtrain.loop.evaluating: tuple[Trainer, TrainState]",
        "flaxtrain.loop.hooks: Run",
        "flaxtrain.spec.validate: OptSpec",
    ]


def test_an_annotation_that_can_not_be_evaluated_is_collected() -> None:
    def broken(x: int) -> int:
        return x

    broken.__module__, broken.__annotations__["x"] = "tests.somewhere", "Nowhere"
    assert hints_of(broken) == {"x": Any, "return": int}
    assert UNCHECKED.pop("tests.somewhere: Nowhere").startswith("NameError")


def test_the_checks_can_be_switched_off(unchecked_types: None) -> None:
    assert half(-1.0) == "negative"


def test_operators_may_not_know_the_other_side() -> None:
    class Number:
        @checked
        def __eq__(self, other: object) -> bool:
            return True if isinstance(other, Number) else NotImplemented

    assert Number() == Number() and Number() != 1
