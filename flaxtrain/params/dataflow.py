"""Where in the computation each parameter is used first, how many times, and in which scan.

The order in which modules are declared says little: `setup` may name the head first. So the
program itself is read, equation by equation. A value is described by three things: the
parameters it was made from, whether it depends on the data (or on random bits), and the uses
that went into it. A *use* is an equation that mixes data with a value made from parameters
alone; what comes out of it is data. A parameter's depth is the place of its first use among
those that reach an output; a parameter without one is dead, one with several is tied. A use
that has a matrix's use before it and another behind it is between hidden activations.

Loops are read until nothing changes any more; a loop body counts once, however often it runs.
A parameter that a scan slices is followed through its bodies (`stacks.py`): it is a stack of
layers. A scan that carries nothing is a map over independent things (experts), not over layers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import JaxprEqn, Literal, jaxprs_in_params

from flaxtrain.params.stacks import Origin, Place, Scan

# Nothing here is public: `ParamFact.depth`, `uses` and `scan_axes` are the result.
__all__ = []

# Random bits make what they are mixed with an activation, as data do: a generator has no input.
_RANDOM = frozenset({"random_bits", "threefry2x32", "rng_bit_generator", "random_gamma"})
_BEFORE, _AFTER = -1, 1 << 30
_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


class Flow(NamedTuple):
    """What a value depends on. Sets are bit masks: `params` of parameters, `uses` of uses.

    `arrays` are those of `params` that weren't reduced to one number (a penalty on a norm). A
    value that is one parameter, rearranged or sliced, has an `origin`.
    """

    params: int = 0
    data: bool = False
    uses: int = 0
    arrays: int = 0
    origin: Origin | None = None

    def __or__(self, other: tuple[Any, ...]) -> Flow:
        return Flow(*map(operator.or_, self[:4], other[:4]))


_DATA = Flow(data=True)
_NOTHING = Flow()


class FirstUse(NamedTuple):
    """`depth` orders parameters by first use (None: dead); `uses` counts the uses.

    `scan` is None where a scan slices something made from the parameter that can't be traced
    back to its axes. `between` says whether one of the uses has a matrix before and behind it.
    """

    depth: int | None
    uses: int | None
    scan: Scan | None = Scan()
    between: bool = False


def first_uses(
    function: Callable[..., Any],
    params: Sequence[Any],
    data: Sequence[Any],
    matrices: Collection[int] = (),
) -> list[FirstUse]:
    """Reads the program of `function(params, data)`; nothing is computed.

    Args:
        function: takes the two lists and returns any tree.
        params: arrays or shapes, one per parameter.
        data: arrays or shapes on which activations depend.
        matrices: the numbers of those parameters that turn activations into others.

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
    shapes = [tuple(param.shape) for param in params]
    bits = [1 << index for index in range(len(shapes))]
    ins = [Flow(b, arrays=b, origin=Origin.of(s)) for b, s in zip(bits, shapes, strict=True)]
    outs = reader.read(closed, [*ins, *[_DATA] * len(jax.tree.leaves(data))], ())
    reached = reduce(Flow.__or__, outs, _NOTHING)
    # An output that is no array (a distribution object) hides what it depends on: all uses
    # count.
    live = reached.uses if complete else -1
    found = _rank(reader, shapes, live, reached.params)
    between = _between(reader, live, sum(bits[index] for index in set(matrices)))
    return [f._replace(between=bool(between & b)) for f, b in zip(found, bits, strict=True)]


def _between(reader: _Reader, live: int, matrices: int) -> int:
    """Returns the parameters of uses that have uses of `matrices` before and behind them."""
    used = [u for u in reader.uses.values() if live >> u.index & 1 and u.arrays & matrices]
    every = sum(1 << use.index for use in used)
    followed = reduce(operator.or_, (use.before for use in used), 0)
    inside = (use for use in used if use.before & every and followed >> use.index & 1)
    return reduce(operator.or_, (use.arrays for use in inside), 0)


def _rank(
    reader: _Reader, shapes: Sequence[tuple[int, ...]], live: int, in_outputs: int
) -> list[FirstUse]:
    places: list[list[Place]] = [[] for _ in shapes]
    for place, use in reader.uses.items():
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
        FirstUse(None if first is None else order[first], len(found), scan)
        for first, found, scan in zip(
            firsts, places, _scans(reader, shapes, firsts), strict=True
        )
    ]


def _scans(
    reader: _Reader, shapes: Sequence[tuple[int, ...]], firsts: Sequence[Place | None]
) -> list[Scan | None]:
    found = {index: origin.scan(shapes[index]) for index, origin in reader.stacks.items()}
    places = sorted({reader.stacks[index].loop for index, scan in found.items() if scan})

    def scan_of(index: int, first: Place | None) -> Scan | None:
        if scan := found.get(index):
            return scan._replace(loop=places.index(reader.stacks[index].loop))
        if index in found or reader.lost >> index & 1:
            return None
        # Not sliced, and used in the body all the same: a table that all layers share.
        around = [p for p in places if first is not None and p == first[: len(p)]]
        return Scan(loop=places.index(around[0]) if around else None)

    return [scan_of(index, first) for index, first in enumerate(firsts)]


def _bits(mask: int) -> list[int]:
    return [index for index in range(mask.bit_length()) if mask >> index & 1]


class _Use:
    """A place where data meets parameters: its bit in `Flow.uses`, and what `Flow`s met."""

    def __init__(self, index: int) -> None:
        self.index, self.params, self.arrays, self.before = index, 0, 0, 0


class _Reader:
    """Follows `Flow`s through a program and collects the uses by place.

    `stacks` has the parameters that scans slice, as the innermost body sees them; `lost` those
    that are in something sliced whose axes aren't known any more.
    """

    def __init__(self) -> None:
        self.uses: dict[Place, _Use] = {}
        self.stacks: dict[int, Origin] = {}
        self.lost = 0

    def read(self, jaxpr: Any, ins: Sequence[Flow], place: Place) -> list[Flow]:
        """Returns the flow of each output of a jaxpr, open or closed, at `place`."""
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        flows: dict[Any, Flow] = _bound(jaxpr.invars, ins)

        def flow_of(variable: Any) -> Flow:
            return _NOTHING if isinstance(variable, Literal) else flows.get(variable, _NOTHING)

        for index, equation in enumerate(jaxpr.eqns):
            flows_in = [flow_of(variable) for variable in equation.invars]
            flows_out = self._equation(equation, flows_in, (*place, index))
            flows.update(_bound(equation.outvars, flows_out))
        return [flow_of(variable) for variable in jaxpr.outvars]

    def mix(self, flows: Sequence[Flow], place: Place) -> Flow:
        """Returns what comes of several values put together, and notes a use if it is one."""
        mixed = reduce(Flow.__or__, flows, _NOTHING)
        if not (mixed.data and mixed.params):
            return mixed
        use = self.uses.setdefault(place, _Use(len(self.uses)))
        use.params |= mixed.params
        use.arrays |= mixed.arrays
        use.before |= mixed.uses
        return Flow(0, True, mixed.uses | 1 << use.index)

    def _equation(self, equation: JaxprEqn, ins: list[Flow], place: Place) -> list[Flow]:
        name = equation.primitive.name
        if name == "cond":
            return self._cond(equation, ins, place)
        if name == "scan":
            return self._scan(equation, ins, place)
        if name == "while":
            return self._while(equation, ins, place)
        inner = called_jaxpr(equation)
        if inner is not None:
            return self.read(inner, ins, place)
        if name in _RANDOM:
            ins = [*ins, _DATA]
        mixed = self.mix(ins, place)._replace(origin=_followed(equation, ins))
        shapes = [getattr(variable.aval, "shape", ()) for variable in equation.outvars]
        return [mixed if shape else mixed._replace(arrays=0) for shape in shapes]

    def _cond(self, equation: JaxprEqn, ins: list[Flow], place: Place) -> list[Flow]:
        branches = equation.params["branches"]
        results = [self.read(b, ins[1:], (*place, index)) for index, b in enumerate(branches)]
        joined = zip(*results, strict=True)
        return [self.mix([ins[0], *outs], (*place, _AFTER)) for outs in joined]

    def _scan(self, equation: JaxprEqn, ins: list[Flow], place: Place) -> list[Flow]:
        body = equation.params["jaxpr"]
        constants, end = _carry_of_scan(equation)
        ordered, reverse = end > constants, bool(equation.params.get("reverse"))
        slices = [self._slice(flow, place, ordered, reverse) for flow in ins[end:]]

        def step(reader: _Reader, carry: list[Flow]) -> list[Flow]:
            return reader.read(body, [*ins[:constants], *carry, *slices], (*place, 0))

        carry = ins[constants:end]
        stacked = ordered and any(flow.params and not flow.data for flow in slices)
        if stacked and getattr(equation.invars[end].aval, "shape", (0,))[0] == 1:
            return step(self, carry)  # a stack of one layer, which is no layer's neighbour
        carry = self._loop(step, carry, place)
        return [*carry, *step(self, carry)[len(carry) :]]

    def _slice(self, flow: Flow, place: Place, ordered: bool, reverse: bool) -> Flow:
        """Returns what the body of a scan sees of an operand that it slices."""
        if flow.origin is None or not ordered:
            self.lost |= 0 if flow.data or not ordered else flow.params
            return flow._replace(origin=flow.origin and flow.origin.mapped())
        origin = flow.origin.sliced(place, reverse)
        (index,) = _bits(flow.params)
        known = self.stacks.get(index)
        if len(origin.taken) > (0 if known is None else len(known.taken)):
            self.stacks[index] = origin
        return flow._replace(origin=origin)

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


def _bound(variables: Sequence[Any], flows: Sequence[Flow]) -> dict[Any, Flow]:
    """Returns the flow of each variable; the stacked results of a scan lose their origin."""

    def fits(variable: Any, flow: Flow) -> bool:
        return flow.origin is None or len(flow.origin.axes) == len(variable.aval.shape)

    pairs = zip(variables, flows, strict=True)
    return {v: flow if fits(v, flow) else flow._replace(origin=None) for v, flow in pairs}


def _followed(equation: JaxprEqn, ins: Sequence[Flow]) -> Origin | None:
    """Returns the origin of the outputs, if a single operand depends on anything."""
    operands = [index for index, flow in enumerate(ins) if flow != _NOTHING]
    origin = ins[operands[0]].origin if len(operands) == 1 else None
    return origin and origin.through(equation, operands[0])


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


def called_jaxpr(equation: JaxprEqn) -> Any | None:
    """Returns the jaxpr that an equation calls with its own inputs (jit, remat, ...)."""
    inner = list(jaxprs_in_params(equation.params))
    if len(inner) != 1:
        return None
    jaxpr = getattr(inner[0], "jaxpr", inner[0])
    inside, outside = ((len(one.invars), len(one.outvars)) for one in (jaxpr, equation))
    return jaxpr if inside == outside else None
