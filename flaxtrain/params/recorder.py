"""Watching `model.init`: which class declares which parameter, and with which local shape.

While a `Recorder` is active, every Linen module that runs gets recording versions of `param`,
`variable`, `put_variable` and `make_rng`. They are attributes of that one instance, set when
its first method is intercepted; neither flax nor the user's classes are changed, interceptors
are local to the thread, and initial values stay what they are.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax

from flaxtrain.params.axes import Shape, array_in, box_leaves, unbox_leaves
from flaxtrain.params.intercept import MethodCall, intercepted_under_jit
from flaxtrain.tree import Path, flatten
from flaxtrain.typing import Key

# Nothing here is public: `Facts` is the result.
__all__ = []


@dataclass(frozen=True)
class Declaration:
    """What one call of `param` showed: the caller, and the local shape of each array inside.

    The shapes are keyed by the path below the declared name; a plain array has the key `()`.
    """

    owner: type[nn.Module]
    owner_path: Path
    shapes: dict[Path, Shape]


@dataclass
class Recorder:
    """Notes of one abstract run of `init`.

    Args:
        boxed: declared paths whose initial value is put in an `AxisBox`.

    Attributes:
        declared: path of the declared name to the first declaration of it.
        modules: path of a scope to the classes of the modules that ran in it, outer ones first.
        streams: names of the random streams that modules drew from, without `params`.
    """

    boxed: Collection[Path] = ()
    declared: dict[Path, Declaration] = field(default_factory=dict)
    modules: dict[Path, list[type[nn.Module]]] = field(default_factory=dict)
    streams: set[str] = field(default_factory=set)

    def recording(self) -> AbstractContextManager[dict[str, Key]]:
        """Records every module method that runs in this thread inside the context.

        The context has a random stream that `init` must be given: with it neither `jax.jit` nor
        `nn.jit` can answer from its cache, which would run no Python and hide the modules.
        """
        return intercepted_under_jit(self._intercept, {})

    def _intercept(self, call: MethodCall) -> Any:
        if not _is_rehearsal(call.module):
            self._watch(call.module)
        return call.run()

    def around(self, owner: type[nn.Module] | None, place: Path) -> tuple[type[nn.Module], ...]:
        """Returns the classes of the modules around the one of class `owner` at `place`."""
        here = self.modules.get(place, [])
        sharing = here[: here.index(owner)] if owner in here else here
        above = (self.modules.get(place[:end], []) for end in range(len(place)))
        return (*itertools.chain.from_iterable(above), *sharing)

    def _watch(self, module: nn.Module) -> None:
        # At every call, for `nn.share_scope` moves a module that has run its `setup`.
        self._place(module)
        if "param" in vars(module):
            return
        for name, recording in (
            ("param", self._param(module)),
            ("variable", self._variable(module)),
            ("put_variable", self._put_variable(module)),
            ("make_rng", self._make_rng(module)),
        ):
            object.__setattr__(module, name, recording)

    def _place(self, module: nn.Module) -> None:
        if isinstance(module.parent, nn.Module) and module.parent.scope is not None:
            self._place(module.parent)  # no method of it may have run
        classes = self.modules.setdefault(_scope(module).path, [])
        owner = declared_class(type(module))
        if owner not in classes:
            classes.append(owner)

    def _param(self, module: nn.Module) -> Callable[..., Any]:
        declare = module.param

        def param(name: str, init_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            keep_boxes = not kwargs.get("unbox", True)
            value = declare(name, self._boxing(module, name, init_fn), *args, **kwargs)
            self._note(module, name, value)
            return unbox_leaves(value) if keep_boxes else value

        return param

    def _variable(self, module: nn.Module) -> Callable[..., Any]:
        declare = module.variable

        def variable(
            col: str, name: str, init_fn: Any = None, *args: Any, **kwargs: Any
        ) -> Any:
            if col != "params" or init_fn is None:
                return declare(col, name, init_fn, *args, **kwargs)
            result = declare(col, name, self._boxing(module, name, init_fn), *args, **kwargs)
            self._note(module, name, result.value)
            return result

        return variable

    def _put_variable(self, module: nn.Module) -> Callable[..., Any]:
        put = module.put_variable

        def put_variable(col: str, name: str, value: Any) -> None:
            if col == "params":
                self._note(module, name, value)
            put(col, name, value)

        return put_variable

    def _make_rng(self, module: nn.Module) -> Callable[..., Any]:
        draw = module.make_rng

        def make_rng(name: str = "params") -> Any:
            if name != "params":
                self.streams.add(name)
            return draw(name)

        return make_rng

    def _boxing(
        self, module: nn.Module, name: str, init_fn: Callable[..., Any]
    ) -> Callable[..., Any]:
        if (*_scope(module).path, name) not in self.boxed:
            return init_fn

        @functools.wraps(init_fn)
        def boxed_init(*args: Any, **kwargs: Any) -> Any:
            return box_leaves(init_fn(*args, **kwargs))

        return boxed_init

    def _note(self, module: nn.Module, name: str, value: Any) -> None:
        place = _scope(module).path
        leaves = flatten(value) if isinstance(value, Mapping) else {(): value}
        arrays = {path: array_in(leaf) for path, leaf in leaves.items()}
        shapes = {path: tuple(a.shape) for path, a in arrays.items() if a is not None}
        owner = declared_class(type(module))
        self.declared.setdefault((*place, name), Declaration(owner, place, shapes))


def _scope(module: nn.Module) -> Any:
    return module.scope


def _is_rehearsal(module: nn.Module) -> bool:
    """Whether flax runs a lifted module's `setup` only to check it, at the path of the root."""
    return isinstance(_scope(module).root, nn.module.TestScope)


def declared_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Returns the class the user wrote for one that `nn.remat` and its like derived from it."""
    while cls.__module__ == nn.transforms.__name__:
        cls = cls.__bases__[0]
    return cls


def run_abstractly(function: Callable[[dict[str, jax.Array]], Any], recorder: Recorder) -> Any:
    """Evaluates `function(extra_rngs)` on shapes only, with `recorder` active."""

    with recorder.recording() as streams:
        return jax.eval_shape(lambda: function(streams))
