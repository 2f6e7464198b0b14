"""Where in the computation each parameter is used first, and how many times.

The order in which modules are declared says little: `setup` may name the head first. So the
program itself is read, equation by equation. A value is described by three things: the
parameters it was made from, whether it depends on the data (or on random bits), and the uses
that went into it. A *use* is an equation that mixes data with a value made from parameters
alone; what comes out of it is data. A parameter's depth is the place of its first use among
those that reach an output; a parameter without one is dead, one with several is tied.

Loops are read until nothing changes any more; a loop body counts once, however often it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import JaxprEqn, Literal, jaxprs_in_params

# Nothing here is public: `ParamFact.depth` and `ParamFact.uses` are the result.
__all__ = []

Place = tuple[int, ...]

# Random bits make what they are mixed with an activation, as data do: a generator has no input.
_RANDOM = frozenset({"random_bits", "threefry2x32", "rng_bit_generator", "random_gamma"})
_BEFORE, _AFTER = -1, 1 << 30
_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


class Flow(NamedTuple):
    """What a value depends on. Sets are bit masks: `params` of parameters, `uses` of uses."""

    params: int = 0
    data: bool = False
    uses: int = 0

    def __or__(self, other: tuple[Any, ...]) -> Flow:
        params, data, uses = other
        return Flow(self.params | params, self.data or data, self.uses | uses)


_DATA = Flow(data=True)
_NOTHING = Flow()


class FirstUse(NamedTuple):
    """`depth` orders parameters by first use (None: dead); `uses` counts the uses."""

    depth: int | None
    uses: int


def first_uses(
    function: Callable[..., Any], params: Sequence[Any], data: Sequence[Any]
) -> list[FirstUse]:
    """Reads the program of `function(params, data)`; nothing is computed.

    Args:
        function: takes the two lists and returns any tree.
        params: arrays or shapes, one per parameter.
        data: arrays or shapes on which activations depend.

    Returns:
        One `FirstUse` per parameter. Parameters that are used first in the same equation
        (kernels that a cell concatenates) have the same depth.
    """
    complete = True

    def outputs(params: Sequence[Any], data: Sequence[Any]) -> list[Any]:
        nonlocal complete
        leaves = jax.tree.leaves(function(params, data))
        arrays = [leaf for leaf in leaves if isinstance(leaf, _ARRAYS)]
        complete = len(arrays) == len(leaves)
        return arrays

    closed = jax.make_jaxpr(outputs)(params, data)
    reader = _Reader()
    ins = [Flow(params=1 << index) for index in range(len(params))]
    outs = reader.read(closed, [*ins, *[_DATA] * len(jax.tree.leaves(data))], ())
    reached = reduce(Flow.__or__, outs, _NOTHING)
    # An output that is no array (a distribution object) hides what it depends on: all uses
    # count.
    live = reached.uses if complete else -1
    return _rank(len(params), reader.uses, live, reached.params)


def _rank(count: int, uses: dict[Place, _Use], live: int, in_outputs: int) -> list[FirstUse]:
    places: list[list[Place]] = [[] for _ in range(count)]
    for place, use in uses.items():
        if live >> use.index & 1:
            for index in _bits(use.params):
                places[index].append(place)
    for index in _bits(in_outputs):
        # A parameter that the model returns as it is (a temperature for the loss) isn't dead.
        places[index] = places[index] or [(_AFTER,)]
    firsts = [min(found, default=None) for found in places]
    order = {
        place: depth for depth, place in enumerate(sorted({p for p in firsts if p is not None}))
    }
    return [
        FirstUse(None if first is None else order[first], len(found))
        for first, found in zip(firsts, places, strict=True)
    ]


def _bits(mask: int) -> list[int]:
    return [index for index in range(mask.bit_length()) if mask >> index & 1]


class _Use:
    """A place where data meets parameters: its bit in `Flow.uses`, and the parameters."""

    def __init__(self, index: int) -> None:
        self.index, self.params = index, 0


class _Reader:
    """Follows `Flow`s through a program and collects the uses by place."""

    def __init__(self) -> None:
        self.uses: dict[Place, _Use] = {}

    def read(self, jaxpr: Any, ins: Sequence[Flow], place: Place) -> list[Flow]:
        """Returns the flow of each output of a jaxpr, open or closed, at `place`."""
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        flows: dict[Any, Flow] = dict(zip(jaxpr.invars, ins, strict=True))

        def flow_of(variable: Any) -> Flow:
            return _NOTHING if isinstance(variable, Literal) else flows.get(variable, _NOTHING)

        for index, equation in enumerate(jaxpr.eqns):
            flows_in = [flow_of(variable) for variable in equation.invars]
            flows_out = self._equation(equation, flows_in, (*place, index))
            flows.update(zip(equation.outvars, flows_out, strict=True))
        return [flow_of(variable) for variable in jaxpr.outvars]

    def mix(self, flows: Sequence[Flow], place: Place) -> Flow:
        """Returns what comes of several values put together, and notes a use if it is one."""
        mixed = reduce(Flow.__or__, flows, _NOTHING)
        if not (mixed.data and mixed.params):
            return mixed
        use = self.uses.setdefault(place, _Use(len(self.uses)))
        use.params |= mixed.params
        return Flow(0, True, mixed.uses | 1 << use.index)

    def _equation(self, equation: JaxprEqn, ins: list[Flow], place: Place) -> list[Flow]:
        name = equation.primitive.name
        if name == "cond":
            return self._cond(equation, ins, place)
        if name == "scan":
            return self._scan(equation, ins, place)
        if name == "while":
            return self._while(equation, ins, place)
        inner = _called(equation)
        if inner is not None:
            return self.read(inner, ins, place)
        if name in _RANDOM:
            ins = [*ins, _DATA]
        return [self.mix(ins, place)] * len(equation.outvars)

    def _cond(self, equation: JaxprEqn, ins: list[Flow], place: Place) -> list[Flow]:
        branches = equation.params["branches"]
        results = [self.read(b, ins[1:], (*place, index)) for index, b in enumerate(branches)]
        joined = zip(*results, strict=True)
        return [self.mix([ins[0], *outs], (*place, _AFTER)) for outs in joined]

    def _scan(self, equation: JaxprEqn, ins: list[Flow], place: Place) -> list[Flow]:
        body = equation.params["jaxpr"]
        constants, end = _carry_of_scan(equation)

        def step(reader: _Reader, carry: list[Flow]) -> list[Flow]:
            return reader.read(body, [*ins[:constants], *carry, *ins[end:]], (*place, 0))

        carry = self._loop(step, ins[constants:end], place)
        return [*carry, *step(self, carry)[len(carry) :]]

    def _while(self, equation: JaxprEqn, ins: list[Flow], place: Place) -> list[Flow]:
        params = equation.params
        split = params["cond_nconsts"]
        start = split + params["body_nconsts"]

        def step(reader: _Reader, carry: list[Flow]) -> list[Flow]:
            # How often the body runs depends on the condition, and so does every result.
            runs = reader.read(params["cond_jaxpr"], [*ins[:split], *carry], (*place, 0))
            outs = reader.read(params["body_jaxpr"], [*ins[split:start], *carry], (*place, 1))
            return [reader.mix([*runs, out], (*place, 2)) for out in outs]

        return self._loop(step, ins[start:], place)

    def _loop(
        self, step: Callable[[_Reader, list[Flow]], list[Flow]], carry: list[Flow], place: Place
    ) -> list[Flow]:
        """Returns the carry of a loop that stands for all its iterations.

        Which carried values become data is settled first, with a reader whose notes are thrown
        away: a state that starts at zeros is data from the second iteration on, and reading
        the first by itself would count its kernels as used in two places.
        """
        count = len(carry)
        data = [flow.data for flow in carry]
        while True:
            trial = [Flow(data=flag) for flag in data]
            outs = step(_Reader(), trial)[:count]
            grown = [flag or out.data for flag, out in zip(data, outs, strict=True)]
            if grown == data:
                break
            data = grown
        carry = [
            self.mix([flow, Flow(data=flag)], (*place, _BEFORE))
            for flow, flag in zip(carry, data, strict=True)
        ]
        while True:
            outs = step(self, carry)[:count]
            pairs = zip(carry, outs, strict=True)
            joined = [self.mix(pair, (*place, _AFTER)) for pair in pairs]
            if joined == carry:
                return carry
            carry = joined


def _carry_of_scan(equation: JaxprEqn) -> tuple[int, int]:
    """Returns where the carry begins and ends among the inputs of a scan.

    Inputs are constants, carry and slices; outputs are carry and stacked results. Slices and
    stacks have one axis less inside the body, which tells them apart in every version of jax;
    the names of the counts differ.
    """
    body = equation.params["jaxpr"]
    body = getattr(body, "jaxpr", body)

    def same_rank(outside: Sequence[Any], inside: Sequence[Any]) -> int:
        pairs = zip(outside, inside, strict=True)
        return sum(len(out.aval.shape) == len(within.aval.shape) for out, within in pairs)

    end = same_rank(equation.invars, body.invars)
    return end - same_rank(equation.outvars, body.outvars), end


def _called(equation: JaxprEqn) -> Any | None:
    """Returns the jaxpr that an equation calls with its own inputs (jit, remat, ...)."""
    inner = list(jaxprs_in_params(equation.params))
    if len(inner) != 1:
        return None
    jaxpr = getattr(inner[0], "jaxpr", inner[0])
    fits = len(jaxpr.invars) == len(equation.invars) and len(jaxpr.outvars) == len(
        equation.outvars
    )
    return jaxpr if fits else None
