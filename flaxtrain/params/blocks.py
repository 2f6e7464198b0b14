"""The blocks of a model: its repeated modules, the slices of its stacks, or its kernels.

`layers.py` has the rule in words.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import flax.linen as nn
import numpy as np
from flax.linen.recurrent import RNNCellBase

from flaxtrain.params.facts import Facts, ParamFact
from flaxtrain.params.stacks import scanned_module
from flaxtrain.tree import Path, path_name

# Nothing here is public: `layers` numbers the blocks.
__all__ = []

LayerIndex: TypeAlias = int | tuple[Any, ...]
"""A layer; for a stack, nested tuples of layers in the order and lengths of `scan_axes`."""

_COMPOUND = (RNNCellBase, nn.MultiHeadDotProductAttention)


@dataclass
class Block:
    """A block, or a stack of blocks.

    Args:
        name: of its module.
        facts: of its parameters.
        lengths: of a stack's scan axes, the outermost first.
        loop: the number of the scan over a stack.

    Attributes:
        first: the layer of the block, or of the slice that is used first.
        start: the least depth of its parameters; `end` is the greatest.
    """

    name: str
    facts: Sequence[ParamFact]
    lengths: tuple[int, ...] = ()
    loop: int | None = None
    first: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.paths = {fact.path for fact in self.facts}
        depths = [fact.depth for fact in self.facts if fact.depth is not None]
        self.is_dead = not depths
        self.start, self.end = min(depths, default=-1), max(depths, default=-1)

    @property
    def size(self) -> int:
        return math.prod(self.lengths)

    def shares(self, fact: ParamFact) -> bool:
        """Whether the slices of this stack share a parameter that they begin to use inside."""
        inside = self.loop is not None and fact.loop == self.loop
        return inside and fact.depth is not None and fact.depth >= self.start

    def layers_of(self, fact: ParamFact) -> LayerIndex:
        """Returns the layer of a parameter of the block, or those of its slices."""
        own = lengths(fact)
        index = self.first + np.arange(self.size).reshape(self.lengths)
        outer = fact.scan_axes[: len(self.lengths)]
        flipped = tuple(i for i, axis in enumerate(outer) if axis in fact.reversed_axes)
        index = np.flip(index, flipped)
        # Scans inside a block make no layers: the slices along them are of one layer.
        index = index.reshape(index.shape + (1,) * (len(own) - index.ndim))
        return nested(np.broadcast_to(index, own))

    def labels(self) -> Iterator[tuple[int, str]]:
        """Yields each layer of the block with its name."""
        index = self.layers_of(self.facts[0])
        if not self.lengths:
            yield self.first, self.name
            return
        inner = (slice(None),) * len(self.lengths)
        table = np.asarray(index)[(*inner, *(0,) * (len(lengths(self.facts[0])) - len(inner)))]
        for slices, layer in np.ndenumerate(table):
            yield int(layer), f"{self.name}[{', '.join(map(str, slices))}]"


def find_blocks(facts: Facts) -> list[Block]:
    """Returns the blocks and stacks of a model in no order, without dead ones."""
    tree = _Tree(facts)
    blocks = tree.blocks(tree.repeated((), _numbered))
    inside = {path for block in blocks for path in block.paths}
    blocks += _stacks(fact for fact in facts.params if fact.path not in inside)
    blocks = blocks or tree.blocks(tree.repeated((), _several)) or tree.units()
    return [block for block in blocks if not block.is_dead]


def lengths(fact: ParamFact) -> tuple[int, ...]:
    """Returns the lengths of a parameter's scan axes, the outermost first."""
    return tuple(fact.shape[axis] for axis in fact.scan_axes)


def nested(index: np.ndarray | np.integer) -> LayerIndex:
    """Returns an array as nested tuples of numbers."""
    return tuple(nested(row) for row in np.asarray(index)) if index.ndim else int(index)


def _stacks(facts: Iterable[ParamFact]) -> Iterator[Block]:
    loops: dict[Any, list[ParamFact]] = defaultdict(list)
    for fact in facts:
        if fact.scan_axes:
            # A guess from names knows no loop, but the module that the loop runs over.
            loops[scanned_module(fact.path) if fact.loop is None else fact.loop].append(fact)
    for members in loops.values():
        name = _name(_common([fact.owner_path for fact in members]))
        yield Block(name, members, _common([lengths(f) for f in members]), members[0].loop)


def _common(sequences: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Returns the longest beginning that all have."""
    low, high = min(sequences), max(sequences)
    same = [a == b for a, b in zip(low, high, strict=False)]
    return low[: same.index(False) if False in same else len(same)]


class _Tree:
    """The modules of a model: the parameters below each, and its class."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.below: dict[Path, list[ParamFact]] = defaultdict(list)
        self.children: dict[Path, list[Path]] = defaultdict(list)
        self.classes: dict[Path, type[nn.Module]] = {}
        for fact in facts.params:
            place = fact.owner_path
            for end in range(len(place) + 1):
                self.below[place[:end]].append(fact)
            if fact.owner is not None:
                self.classes.setdefault(place, fact.owner)
            # With scopes that are shared or have no module, classes and path don't align.
            if len(fact.around) == len(place):
                for end, cls in enumerate(fact.around):
                    self.classes.setdefault(place[:end], cls)
        for path in self.below:
            if path:
                self.children[path[:-1]].append(path)
        stacks = (
            _common([f.owner_path for f in block.facts]) for block in _stacks(facts.params)
        )
        self.stacked = {self._kind(path) for path in stacks if self._is_stack(path)}

    def blocks(self, paths: Iterable[Path]) -> list[Block]:
        return [Block(_name(path), self.below[path]) for path in paths]

    def repeated(self, node: Path, enough: Callable[[Sequence[Path]], bool]) -> list[Path]:
        """Returns the outermost modules below `node` that are `enough` of one class.

        What consists of slices only is a stack: its slices are the blocks, and so is a module
        of the slices' class elsewhere.
        """
        groups: dict[Any, list[Path]] = defaultdict(list)
        for path in self.children[node]:
            if self._contains_modules(path):
                groups[self._kind(path)].append(path)
        found: list[Path] = []
        for kind, group in groups.items():
            if enough(group) or kind in self.stacked:
                found += (path for path in group if not self._is_stack(path))
            else:
                found += (block for path in group for block in self.repeated(path, enough))
        return found

    def _contains_modules(self, path: Path) -> bool:
        return any(len(fact.owner_path) > len(path) for fact in self.below[path])

    def _is_stack(self, path: Path) -> bool:
        return all(fact.scan_axes for fact in self.below[path])

    def _kind(self, path: Path) -> Any:
        """Returns a module's class, or for want of it what the module looks like inside."""
        inside = frozenset((f.path[len(path) :], f.owner) for f in self.below[path])
        return self.classes.get(path, inside)

    def units(self) -> list[Block]:
        """Returns the modules that own kernels."""
        owners = [f.owner_path for f in self.facts.params if f.role in ("kernel", "recurrent")]
        units = dict.fromkeys(self._compound(path) or path for path in owners)
        return [Block(_name(path), self._owned(path)) for path in units]

    def _compound(self, path: Path) -> Path | None:
        """Returns the recurrent cell or attention that a module is, or is a part of."""
        for end in range(len(path) + 1):
            if issubclass(self.classes.get(path[:end], nn.Module), _COMPOUND):
                return path[:end]
        return None

    def _owned(self, path: Path) -> list[ParamFact]:
        below = self.below[path]
        whole = self._compound(path) is not None
        return below if whole else [fact for fact in below if fact.owner_path == path]


def _numbered(group: Sequence[Path]) -> bool:
    """Whether names differ in a number only (`block_0`, `block_1`), two of them at least."""
    return len({re.sub(r"\d+", "", path[-1]) for path in group}) < len(group)


def _several(group: Sequence[Path]) -> bool:
    return len(group) > 1


def _name(path: Path) -> str:
    return path_name(path) or "(model)"
