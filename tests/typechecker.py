"""The check of annotations in the tests: every function of the package, on every call.

An import hook wraps each `def` of the package, nested ones too. jaxtyping's own hook does the
same at several times the price: it makes new checkers whenever a nested function is defined,
which a training step does hundreds of times, and binds the arguments of every call by name.
Here the checkers of a `def` are made once, at its first call, and only functions with shapes
in their annotations, `Float[Array, "batch classes"]`, go to jaxtyping, which remembers the
sizes of the axes from argument to argument.

- `Self` is anything: single functions are decorated, which know no class.
- An int is a float, as everywhere in Python's type system.
- Constructors are not checked: jax rebuilds dataclasses with whatever stands at the leaves (a
  tracer, a shape, a plain object), and what users pass to them is judged by our own errors.
- An annotation whose names are not there at run time is anything, and listed in `UNCHECKED`.

A protocol in an annotation must be `runtime_checkable`.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import Annotated, Any, Self

import jaxtyping
from beartype import BeartypeConf, FrozenDict, beartype
from beartype.vale import IsInstance

__all__ = ["UNCHECKED", "checked", "hints_of", "install"]

_SETTINGS = BeartypeConf(
    hint_overrides=FrozenDict({Self: Any}),
    is_pep484_tower=True,
    violation_type=jaxtyping.TypeCheckError,
)
_PACKAGE = "flaxtrain"
_NAME = "__checked__"
"""What the hook calls the decorator in the modules of the package."""
UNCHECKED: dict[str, str] = {}
"""Annotations that could not be evaluated, `module: text`, and why."""


class _Checks:
    """The checkers of one `def`, shared by all functions that it makes."""

    def __init__(self, function: types.FunctionType) -> None:
        hints = hints_of(function)
        self.has_shapes = any(map(_has_shapes, hints.values()))
        result = hints.pop("return", Any)
        if function.__name__.startswith("__"):
            # Operators return it, unannounced.
            result = result | types.NotImplementedType
        self.arguments = _checker(function, _parameters(function), hints)
        self.result = _checker(function, "(result)", {"result": result})


def hints_of(function: types.FunctionType) -> dict[str, Any]:
    """Returns the annotations; one that can't be evaluated is `Any`, and in `UNCHECKED`."""
    found = {}
    for name, hint in function.__annotations__.items():
        holder = types.SimpleNamespace(__annotations__={name: hint})
        try:
            names = function.__globals__
            found |= typing.get_type_hints(holder, names, names, include_extras=True)
        except Exception as error:
            UNCHECKED[f"{function.__module__}: {hint}"] = f"{type(error).__name__}: {error}"
            found[name] = Any
    return {name: _shallow(hint) for name, hint in found.items()}


def _shallow(hint: Any) -> Any:
    """Returns a container of the package by its class alone; jax puts anything inside.

    What a function returns that never does is not looked at.
    """
    if hint is typing.NoReturn:
        return Any
    if isinstance(hint, type) and hint.__module__.startswith(_PACKAGE):
        return Annotated[object, IsInstance[hint]]
    return hint


def _has_shapes(hint: Any) -> bool:
    """Whether jaxtyping's types are in the annotation; a bare `PyTree` is anything."""
    if isinstance(hint, type) and type(hint).__module__.startswith("jaxtyping"):
        return hint is not jaxtyping.PyTree
    parts = hint if isinstance(hint, list) else typing.get_args(hint)
    return any(map(_has_shapes, parts))


def _parameters(function: types.FunctionType) -> str:
    """Returns the parameters as they are written, without annotations and true defaults."""
    empty = inspect.Parameter.empty
    signature = inspect.signature(function)
    bare = [
        parameter.replace(
            annotation=empty, default=empty if parameter.default is empty else None
        )
        for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=bare, return_annotation=empty))


def _checker(
    function: types.FunctionType, parameters: str, hints: dict[str, Any]
) -> Callable[..., None]:
    """Returns a function of these parameters that does nothing but check them."""
    names: dict[str, Any] = {}
    exec(f"def check{parameters}: pass", names)
    check = names["check"]
    check.__annotations__ = hints
    check.__module__ = function.__module__
    check.__qualname__ = check.__name__ = function.__qualname__.rpartition(".")[-1]
    return beartype(conf=_SETTINGS)(check)


_made: dict[tuple[str, types.CodeType], _Checks] = {}


def _checks(function: types.FunctionType) -> _Checks:
    key = function.__module__, function.__code__
    if key not in _made:
        _made[key] = _Checks(function)
    return _made[key]


def checked(function: types.FunctionType) -> Callable[..., Any]:
    """Returns the function with its annotations checked on every call."""
    if function.__name__ == "__init__" or not function.__annotations__:
        return function
    # `call` reads names of this file as free variables, for it runs with other globals.
    find, config, with_shapes, made = _checks, jaxtyping.config, _with_shapes, []

    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if config.jaxtyping_disable:
            return function(*args, **kwargs)
        checks = find(function)
        if checks.has_shapes:
            if not made:  # once, at the first call
                made.append(with_shapes(function))
            return made[0](*args, **kwargs)
        checks.arguments(*args, **kwargs)
        result = function(*args, **kwargs)
        checks.result(result)
        return result

    # With the globals of the module, it is one of the module's functions: for doctest, which
    # looks there for examples, and for warnings that name the first line outside the package.
    call = types.FunctionType(
        call.__code__, function.__globals__, function.__name__, None, call.__closure__
    )
    return functools.wraps(function)(call)


def _with_shapes(function: types.FunctionType) -> Callable[..., Any]:
    return jaxtyping.jaxtyped(function, typechecker=beartype(conf=_SETTINGS))


class _Decorate(ast.NodeTransformer):
    """Puts the check next to every function, below its other decorators."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.decorator_list.append(ast.copy_location(ast.Name(_NAME, ast.Load()), node))
        return node


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> types.CodeType:
        # Not the cached bytecode, which is that of the functions as they are.
        path = self.get_filename(fullname)
        tree = _Decorate().visit(ast.parse(self.get_data(path), path))
        return compile(tree, path, "exec", dont_inherit=True)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__[_NAME] = checked
        super().exec_module(module)


class _Finder:
    """Finds the modules of one package, before Python's own finder does."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: types.ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install(package: str) -> None:
    """Checks what is imported from the package from now on."""
    sys.meta_path.insert(0, _Finder(package))
