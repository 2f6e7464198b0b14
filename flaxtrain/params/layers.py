"""The layers of a model, from the table of facts: stem, blocks in order of use, head.

What a block is:

1. One of several sibling modules of the same class that contain modules and whose names differ
   in a number (`h_0`, `h_1`); a slice of a stack that is scanned; a module of the class of
   such slices. The model is searched from the root: what isn't repeated (`encoder`, `decoder`)
   is searched inside, a block isn't. Its parts (two attentions, experts, a projection) share
   its layer.
2. Without these: one of several sibling modules of the same class that contain modules,
   whatever their names.
3. Without these either: every module that owns a kernel (`Conv_0`, `Dense_0`); a recurrent cell
   or an attention of flax counts as one module.

In scans within scans the slices are those along the axes that all parameters of the loop have:
a stack of 4 stacks of 3 is 12 blocks, or 4 if the body of the outer scan has parameters of its
own.

Blocks are numbered by first use. What is used before the first block is layer 0 (embeddings,
stem); what is used after the last is the last layer (final norm, head); what is used in between
belongs to the layer before it. What the body of a scan uses without slicing it (a table that
all layers share) belongs to the first slice. Without a stem the first block is layer 0, without
a head the last block is the last layer. A dead parameter has the layer of its block, or else 0;
a block of dead parameters isn't counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from flaxtrain.errors import ParameterError
from flaxtrain.params.blocks import Block, LayerIndex, find_blocks, lengths, nested
from flaxtrain.params.facts import Facts, ParamFact, check_facts
from flaxtrain.tree import Path, path_name

__all__ = ["LayerIndex", "Layers", "layers"]


@dataclass(frozen=True)
class Layers:
    """Which layer each parameter belongs to.

    Attributes:
        count: number of layers; they are numbered from 0.
        of: the layer by path of the parameter; nested tuples for a stack, one per slice.
        modules: for each layer the names of its modules in order of use. A slice is written
            `blocks[2]`, a parameter of the model itself by its own name; a block or a stack
            that is the model itself is called `(model)`.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> model = nn.Sequential([nn.Embed(9, 4), nn.remat_scan(nn.Dense, (3,))(4)])
        >>> found = layers(param_facts(model, jnp.zeros((1, 2), int)))
        >>> found.count, found.modules[1]
        (4, ('layers_1[0]',))
        >>> found.of[("layers_0", "embedding")], found.of[("layers_1", "kernel")]
        (0, (1, 2, 3))
    """

    count: int
    of: Mapping[Path, LayerIndex]
    modules: tuple[tuple[str, ...], ...]


def layers(facts: Facts) -> Layers:
    """Returns the layers of a model; the module's docstring has the rule.

    Args:
        facts: the table of parameters, made with the use of the parameters looked at.

    Raises:
        ArgumentTypeError: `facts` is no table of facts.
        ParameterError: the order of use is not known.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> model = nn.Sequential([nn.Dense(8), nn.LayerNorm(), nn.Dense(1)])
        >>> found = layers(param_facts(model, jnp.ones((2, 3))))
        >>> found.of[("layers_1", "scale")], found.of[("layers_2", "kernel")]
        (0, 1)
        >>> found.modules
        (('layers_0', 'layers_1'), ('layers_2',))
    """
    _check(facts)
    blocks = sorted(find_blocks(facts), key=lambda block: (block.start, block.end))
    inside = {path for block in blocks for path in block.paths}
    outside = [fact for fact in facts.by_depth() if fact.path not in inside]
    count = _number(blocks, outside) if blocks else int(bool(facts))
    of = {fact.path: block.layers_of(fact) for block in blocks for fact in block.facts}
    for fact in outside:
        of[fact.path] = nested(np.full(lengths(fact), _layer_outside(fact, blocks, count - 1)))
    order = {path: of[path] for path in facts}
    return Layers(count, MappingProxyType(order), _modules(count, blocks, outside, of))


def _check(facts: Facts) -> None:
    where = "layers(facts)"
    check_facts(facts, where=where)
    if facts and all(fact.uses is None for fact in facts.params):
        raise ParameterError(
            "the facts don't say in which order the parameters are used",
            where=where,
            fix="make them with param_facts, or pass use= to facts_from",
        )


def _number(blocks: Sequence[Block], outside: Sequence[ParamFact]) -> int:
    """Sets the number of each block, and returns how many layers there are."""
    used = [fact for fact in outside if fact.depth is not None]
    number = int(any(_is_before(fact, blocks[0]) for fact in used))
    for block in blocks:
        block.first, number = number, number + block.size
    return number + any(_is_after(fact, blocks) for fact in used)


def _is_before(fact: ParamFact, block: Block) -> bool:
    return fact.depth is not None and fact.depth < block.start


def _is_after(fact: ParamFact, blocks: Sequence[Block]) -> bool:
    end = max(block.end for block in blocks)
    later = fact.depth is not None and fact.depth > end
    return later and not any(block.shares(fact) for block in blocks)


def _layer_outside(fact: ParamFact, blocks: Sequence[Block], last: int) -> int:
    """Returns the layer of a parameter that is in no block."""
    if fact.depth is None or not blocks or _is_before(fact, blocks[0]):
        return 0
    if _is_after(fact, blocks):
        return last
    sharing = [block for block in blocks if block.shares(fact)]
    if sharing:
        return sharing[0].first
    block = [block for block in blocks if not _is_before(fact, block)][-1]
    return block.first + (block.size - 1 if fact.depth > block.end else 0)


def _modules(
    count: int, blocks: Sequence[Block], outside: Sequence[ParamFact], of: dict[Path, Any]
) -> tuple[tuple[str, ...], ...]:
    last = len(of)
    entries = [(block.start, label) for block in blocks for label in block.labels()]
    for fact in outside:
        layer = int(np.ravel(of[fact.path])[0])
        name = path_name(fact.owner_path) or fact.name
        entries.append((last if fact.depth is None else fact.depth, (layer, name)))
    names: list[dict[str, None]] = [{} for _ in range(count)]
    for _, (layer, name) in sorted(entries, key=lambda entry: entry[0]):
        names[layer][name] = None
    return tuple(map(tuple, names))
