"""Intercepting the methods of modules while a model runs, under `nn.jit` too.

`nn.jit` answers with an earlier program where shapes, fields of the module and names of random
streams are the same. What an interceptor would have changed in it, or seen, is none of these. A
stream of another name makes it another call.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from flaxtrain.tree import Path
from flaxtrain.typing import Key

# Nothing here is public: what is found, or set, by it is.
__all__ = []

_fresh = itertools.count()


class MethodCall(NamedTuple):
    """A call of a method of a module that is bound to variables.

    Attributes:
        following: makes the call, given its arguments.
        args: of the call.
        kwargs: of the call.
        context: what flax says of it, an `nn.module.InterceptorContext`.
    """

    following: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    context: Any

    @property
    def module(self) -> Any:
        """The module: while it is applied, a copy that is flax's own."""
        return self.context.module

    @property
    def path(self) -> Path:
        """The path of the module's scope."""
        return self.module.scope.path

    @property
    def method(self) -> str:
        """The name of the method."""
        return self.context.method_name

    @property
    def is_own_method(self) -> bool:
        """Whether a method of the module is called, and no function lifted on it.

        `nn.scan(function)(module, ...)` runs the function as if it were the module's; the
        module's own methods are called within. To ask a lifted module for its scopes, flax
        runs a function of its own like that.
        """
        return hasattr(type(self.module), self.method)

    def run(self) -> Any:
        """Makes the call."""
        return self.following(*self.args, **self.kwargs)


def intercepted(
    interceptor: Callable[[MethodCall], Any],
) -> AbstractContextManager[None]:
    """Hands the calls of all methods of bound modules in a context to a function.

    Args:
        interceptor: returns what a call returns.
    """

    def intercept(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.module.scope is None:
            return following(*args, **kwargs)
        return interceptor(MethodCall(following, args, kwargs, context))

    return nn.intercept_methods(intercept)


@contextmanager
def intercepted_under_jit(
    interceptor: Callable[[MethodCall], Any],
    rngs: Mapping[str, Key],
    key_text: str | None = None,
) -> Iterator[dict[str, Key]]:
    """Does the same for models with methods under `nn.jit`, too.

    Args:
        interceptor: returns what a call returns.
        rngs: the random streams of the model.
        key_text: stands for what the interceptor does. Interceptors with the same text must do
            the same to a model: `nn.jit` answers one with the programs of another. None where
            no other context may share the programs of this one.

    Yields:
        Streams to add to `rngs`: the model must be run with them.

    Example:
        >>> import jax.numpy as jnp
        >>> model, x = nn.jit(nn.Dense)(2), jnp.ones((1, 3))
        >>> rngs, found = {"params": jax.random.key(0)}, []
        >>> def note(call):
        ...     found.append(call.method)
        ...     return call.run()
        >>> variables = model.init(rngs, x)
        >>> with intercepted_under_jit(note, rngs) as streams:
        ...     variables = model.init({**rngs, **streams}, x)
        >>> found[-1]  # the method of nn.Dense itself
        '__call__'
    """
    name = next(_fresh) if key_text is None else _digest(key_text)
    stream = f"_intercepted_{name}"

    def pass_on(call: MethodCall) -> Any:
        scope = call.module.scope
        if scope.rngs and stream not in scope.rngs:
            # nn.scan and nn.vmap pass on only the streams that they split.
            scope.rngs[stream] = next(iter(scope.rngs.values()))
            scope.rng_counters[stream] = 0
        return interceptor(call)

    key = next(iter(rngs.values()), None)
    with intercepted(pass_on):
        yield {stream: jax.random.key(0) if key is None else key}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def attribute(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of a module for as long as the context lasts."""
    before = getattr(module, name, None)
    object.__setattr__(module, name, value)
    try:
        yield
    finally:
        object.__setattr__(module, name, before)
