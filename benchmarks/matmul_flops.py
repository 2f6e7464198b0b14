"""FLOPs of a traced function: those of its products, the bodies of loops for each turn.

XLA's own count takes the body of a loop once. Products are what counts in a transformer;
additions and exponentials are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.interpreters.partial_eval import dce_jaxpr


def matmul_flops(jaxpr: Any) -> int:
    """Counts multiplications and additions of all products in a jaxpr, on all devices together.

    What nothing is made of is not counted: it is not compiled. Of the branches of a conditional
    the most expensive one counts.

    Raises:
        ValueError: there is a loop in it with products whose length is not known.
    """
    open_jaxpr = jaxpr.jaxpr
    return _sum(dce_jaxpr(open_jaxpr, [True] * len(open_jaxpr.outvars))[0])


def _sum(jaxpr: Any) -> int:
    return sum(_flops(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, params["dimension_numbers"]
        products = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * products
    inner = [_sum(part) for part in _jaxprs(params)]
    if name == "cond":
        return max(inner)
    if name == "while" and sum(inner):
        raise ValueError("a while loop with products: it is not known how often it runs")
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns") or hasattr(item, "jaxpr"):
                yield item
