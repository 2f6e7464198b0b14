"""What a program consists of, and which inputs its outputs depend on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

from jax.extend.core import Literal, jaxprs_in_params

from flaxtrain.params.dataflow import called_jaxpr

__all__ = ["dependencies", "primitives"]

_LOOPS = frozenset({"scan", "while", "cond"})


def dependencies(jaxpr: Any, ins: Sequence[int]) -> list[int]:
    """Returns which inputs each output of a jaxpr depends on.

    What a loop or a branch returns is taken to depend on all that goes in.

    Args:
        jaxpr: open or closed.
        ins: a set for each input, as a bit mask.

    Returns:
        For each output the union of the sets of the inputs that it depends on.

    Example:
        >>> import jax
        >>> closed = jax.make_jaxpr(jax.jit(lambda x, y, z: (x + y, 2 * z, 1.0)))(1.0, 2.0, 3.0)
        >>> dependencies(closed, [1, 2, 4])
        [3, 4, 0]
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    known: dict[Any, int] = dict(zip(jaxpr.invars, ins, strict=True))

    def of(variable: Any) -> int:
        return 0 if isinstance(variable, Literal) else known.get(variable, 0)

    for equation in jaxpr.eqns:
        masks = [of(variable) for variable in equation.invars]
        inner = None if equation.primitive.name in _LOOPS else called_jaxpr(equation)
        mixed = [reduce(or_, masks, 0)] * len(equation.outvars)
        outs = mixed if inner is None else dependencies(inner, masks)
        known.update(zip(equation.outvars, outs, strict=True))
    return [of(variable) for variable in jaxpr.outvars]


def primitives(jaxpr: Any) -> set[str]:
    """Returns the names of all operations of a jaxpr, those of loops and calls included.

    Example:
        >>> import jax
        >>> closed = jax.make_jaxpr(jax.jit(lambda x: jax.lax.map(jax.numpy.sin, x)))
        >>> sorted(primitives(closed(jax.numpy.ones(2))))
        ['jit', 'scan', 'sin']
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    found = {equation.primitive.name for equation in jaxpr.eqns}
    for equation in jaxpr.eqns:
        for inner in jaxprs_in_params(equation.params):
            found |= primitives(inner)
    return found
