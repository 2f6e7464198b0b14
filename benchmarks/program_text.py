"""The collectives in the text of a compiled program, and how often each of them runs.

The body of a loop stands there once and runs for each layer, or each microbatch and layer. How
often is read from the loop: as the compiler noted it, or from its condition. Compilers for TPUs
write a reduce-scatter as an all-reduce in a computation of that name, and a collective that
runs while something else does in several pieces with one channel.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_LOOP = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_CALLED = re.compile(
    r"(?:calls|to_apply|branch_computations|(?:true|false)_computation|called_computations)"
    r"=(?:\{([^}]*)\}|%?([\w.-]+))"
)
_ITEM = {"pred": 1, "s4": 1, "u4": 1}


@dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
        kind: one of `KINDS`.
        runs: how often it runs in a call of the program.
        nbytes: of the whole array that is gathered, added up or sent, on one device.
        dtype: of its largest array.
    """

    kind: str
    runs: int
    nbytes: int
    dtype: str


@dataclass(frozen=True)
class Program:
    """What was read.

    Attributes:
        collectives: in the order of the text.
        loops: how often the body of each loop runs in a call of the program.
        unknown: the number of loops of which the text does not say it; they count once.
    """

    collectives: tuple[Collective, ...]
    loops: tuple[int, ...]
    unknown: int

    def by_kind(self) -> dict[str, tuple[int, int, int]]:
        """Returns for each kind: how many there are, how many run, bytes of those that run."""
        found: dict[str, tuple[int, int, int]] = {}
        for one in self.collectives:
            number, runs, nbytes = found.get(one.kind, (0, 0, 0))
            found[one.kind] = number + 1, runs + one.runs, nbytes + one.runs * one.nbytes
        return dict(sorted(found.items()))

    def kinds(self, *, repeated: bool) -> Counter[str]:
        """Returns how many there are of each kind that run once, or more often: in a loop."""
        return Counter(one.kind for one in self.collectives if (one.runs > 1) == repeated)

    @property
    def nbytes(self) -> int:
        """Bytes of all those that run."""
        return sum(one.runs * one.nbytes for one in self.collectives)


def read(text: str) -> Program:
    """Reads the text of a compiled program."""
    found = _computations(text)
    runs, loops, unknown = _runs(found)
    collectives: dict[str, Collective] = {}
    for name, computation in found.items():
        for line in computation.lines:
            one = _COLLECTIVE.search(line)
            if one and runs[name]:
                kind = one[2]
                if "all-reduce-scatter" in name:
                    kind = "reduce-scatter"
                nbytes, dtype = _size(one[1], started=f"{one[2]}-start(" in line)
                if one[2] == "reduce-scatter":
                    nbytes *= _group(line)
                channel = re.search(r"channel_id=(\d+)", line)
                key = f"channel {channel[1]}" if channel else f"number {len(collectives)}"
                collectives.setdefault(key, Collective(kind, runs[name], nbytes, dtype))
    return Program(tuple(collectives.values()), loops, unknown)


@dataclass
class _Computation:
    is_entry: bool
    lines: list[str] = field(default_factory=list)


def _computations(text: str) -> dict[str, _Computation]:
    found: dict[str, _Computation] = {}
    current = _Computation(False)
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = found[head[2]] = _Computation(bool(head[1]))
        else:
            current.lines.append(line)
    return found


def _runs(found: dict[str, _Computation]) -> tuple[Counter[str], tuple[int, ...], int]:
    """Returns how often each computation runs, in all, and what is known of the loops."""
    runs: Counter[str] = Counter()
    loops: list[int] = []
    unknown = 0

    def visit(name: str, times: int) -> None:
        nonlocal unknown
        runs[name] += times
        for line in found[name].lines:
            if loop := _LOOP.search(line):
                trips = _trips(line, found[loop[1]])
                unknown += trips is None
                loops.append(times * (trips or 1))
                visit(loop[2], loops[-1])
            for several, one in _CALLED.findall(line):
                for called in re.findall(r"[\w.-]+", several or one):
                    if called in found:
                        visit(called, times)

    for name, computation in found.items():
        if computation.is_entry:
            visit(name, 1)
    return runs, tuple(loops), unknown


def _trips(line: str, condition: _Computation) -> int | None:
    """Returns how often a loop runs: it counts up from zero to a constant."""
    if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
        return int(noted[1])
    text = "\n".join(condition.lines)
    limits = re.findall(r" = s32\[\]\S* constant\((\d+)\)", text)
    return int(limits[0]) if len(limits) == 1 and "direction=LT" in text else None


def _size(shapes: str, *, started: bool) -> tuple[int, str]:
    """Returns the bytes of the arrays, and the dtype of the largest.

    What starts a collective returns what goes in beside what comes out; the larger is counted.
    """
    sizes = []
    for dtype, dims in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", shapes):
        bits = re.search(r"\d+", dtype)
        item = _ITEM.get(dtype) or max(int(bits[0]) // 8 if bits else 1, 1)
        sizes.append((math.prod(map(int, filter(None, dims.split(",")))) * item, dtype))
    total = max(sizes)[0] if started else sum(size for size, _ in sizes)
    return total, max(sizes)[1]


def _group(line: str) -> int:
    """Returns the number of devices that take part in a collective together."""
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = dict(re.findall(r"('[\w.-]+')=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'[\w.-]+'", mesh[2]))
    if grid := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(grid[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return len(listed[1].split(",")) if listed else 1
