"""What a compiler for TPUs made of a step: launches on its ordinary way, bytes, memory.

The ordinary way is that of an accepted step between two log points: the entry computation, the
bodies of its loops once each, and of a conditional the branch that such a step takes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Cost:
    """What the TPU's compiler made of a step."""

    fusions: int
    scalars: int
    others: int
    accessed: int
    temporary: int

    @property
    def compared(self) -> tuple[int, int, int]:
        """What the bar is on."""
        return self.fusions + self.scalars, self.accessed, self.temporary


FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "conditional", "call"),
}
HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
LINE = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (.*)$")
ARRAY = re.compile(r"^(\w+)\[([\d,]*)\](?:\{[^}]*\})? ([\w-]+)\(")


def computations(text: str) -> dict[str, list[str]]:
    """Returns the right-hand sides of all instructions by computation; `""` is the entry."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        head, instruction = HEAD.match(line), LINE.match(line)
        if head:
            current = found.setdefault("" if head[1] else head[2], [])
        elif instruction:
            current.append(instruction[1])
    return found


def opcode(instruction: str) -> tuple[str, bool]:
    """Returns what an instruction does, and whether its result is one number."""
    if not instruction.startswith("("):
        match = ARRAY.match(instruction)
        assert match is not None, instruction
        return match[3], all(size in ("", "1") for size in match[2].split(","))
    depth = 0
    for place, letter in enumerate(instruction):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return instruction[place + 2 :].partition("(")[0], False
    raise ValueError(instruction)


def launches(found: dict[str, list[str]], name: str = "") -> np.ndarray:
    """Counts fusions, scalar operations and others that an accepted step comes by."""
    total = np.zeros(3, int)
    for instruction in found[name]:
        operation, scalar = opcode(instruction)
        if operation not in FREE:
            total += [
                operation == "fusion",
                operation != "fusion" and scalar,
                operation != "fusion" and not scalar,
            ]
        for called in _called(operation, instruction):
            total += launches(found, called)
    return total


def _called(operation: str, instruction: str) -> list[str]:
    """Returns the computations that an accepted step between two log points comes by."""
    if operation == "conditional":
        # Reject, accept, accept with norms.
        several = re.search(r"branch_computations=\{([^}]*)\}", instruction)
        if several:
            return [several[1].split(", ")[1].lstrip("%")]
        key = "true_computation"
    else:
        key = {"while": "body", "call": "to_apply"}.get(operation, "no computation")
    return re.findall(key + r"=%?([\w.-]+)", instruction)


def cost(compiled: Any) -> Cost:
    """Reads what a compiled step costs."""
    counted = launches(computations(compiled.as_text()))
    analysis: Any = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    temporary = int(compiled.memory_analysis().temp_size_in_bytes)
    fusions, scalars, others = map(int, counted)
    return Cost(fusions, scalars, others, int(analysis["bytes accessed"]), temporary)
