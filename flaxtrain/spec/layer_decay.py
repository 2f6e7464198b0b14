"""Layer-wise learning-rate decay: the further a layer is from the output, the smaller its rate.

Clark et al. 2020, arXiv:2003.10555 (fine-tuning ELECTRA); Bao et al. 2021, arXiv:2106.08254
(BEiT). The learning rate of a parameter of layer l, of layers 0 to L, is multiplied by
`max(min_scale, rate^(L - l))`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from flaxtrain.answering import answering
from flaxtrain.checks import check_integer, check_number
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.params.facts import Facts, ParamFact, check_facts
from flaxtrain.params.layers import LayerIndex, layers
from flaxtrain.params.select import select
from flaxtrain.spec.declaration import Declaration
from flaxtrain.text import kind_of
from flaxtrain.tree import Path

__all__ = ["LayerDecay", "multipliers"]

LayerOf: TypeAlias = Mapping[str, int] | Callable[[ParamFact], LayerIndex]


@dataclass(frozen=True, init=False, repr=False, eq=False)
class LayerDecay(Declaration):
    """Multiplies learning rates by `max(min_scale, rate ** (last - layer))`.

    Layers are read from the table of facts (`flaxtrain.params.layers`): embeddings and stem are
    layer 0, then come the blocks in order of use, one per slice of a scanned stack, and the
    head is the last layer, which keeps its learning rate.

    Args:
        rate: the factor from one layer to the one before it, in (0, 1].
        min_scale: the smallest multiplier, in [0, 1].
        layer_of: what decides instead of the facts. A mapping from selectors to layers >= 0,
            or a list of such pairs: the first that matches a parameter decides, parameters
            without a match keep the layer from the facts, and a selector that matches nothing
            is an error. Or a function from a `ParamFact` to its layer, for all parameters; for
            a stack it may return one layer per slice, as nested tuples in the order and lengths
            of `scan_axes`. A function can't be written as data.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> facts = param_facts(nn.Sequential([nn.Dense(8), nn.Dense(1)]), jnp.ones((2, 3)))
        >>> multipliers(LayerDecay(0.5), facts)[("layers_0", "kernel")]
        0.5
        >>> flat = LayerDecay(0.5, layer_of={"**": 0})
        >>> multipliers(flat, facts)[("layers_0", "kernel")]
        1.0
    """

    rate: float
    min_scale: float
    layer_of: LayerOf | None

    @answering
    def __init__(
        self,
        rate: float,
        min_scale: float = 0.0,
        layer_of: LayerOf | Sequence[tuple[str, int]] | None = None,
    ) -> None:
        where = "LayerDecay"
        check_number("rate", rate, minimum=0.0, maximum=1.0, exclude=(0.0,), where=where)
        check_number("min_scale", min_scale, minimum=0.0, maximum=1.0, where=where)
        if isinstance(layer_of, (Mapping, list, tuple)):
            layer_of = _checked(layer_of)
        elif layer_of is not None and not callable(layer_of):
            raise ArgumentTypeError(
                f"layer_of={layer_of!r} is {kind_of(layer_of)}",
                where=where,
                fix="pass a dict from selectors to layers, or a function of a ParamFact",
            )
        self._set(rate=float(rate), min_scale=float(min_scale), layer_of=layer_of)

    def __eq__(self, other: object) -> bool:
        # The first selector that matches decides, so their order says something.
        same = super().__eq__(other)
        if same is not True or not isinstance(other, LayerDecay):
            return same
        return _order(self.layer_of) == _order(other.layer_of)

    __hash__ = Declaration.__hash__


def _order(layer_of: LayerOf | None) -> list[str]:
    return list(layer_of) if isinstance(layer_of, Mapping) else []


def _checked(given: Any) -> dict[str, int]:
    try:
        pairs = list(given.items() if isinstance(given, Mapping) else given)
        # Of two with one selector the first counts, as of selectors that both match.
        layer_of = dict(reversed(pairs))
        layer_of = {choice: layer_of[choice] for choice, _ in pairs}
    except (TypeError, ValueError):
        raise ArgumentTypeError(
            f"layer_of={given!r} is no list of pairs",
            where="LayerDecay",
            fix="pass a dict from selectors to layers, or a list of such pairs",
        ) from None
    for choice, layer in layer_of.items():
        where = f"LayerDecay(layer_of={{{choice!r}: ...}})"
        if not isinstance(choice, str):
            raise ArgumentTypeError(
                f"{choice!r} is {kind_of(choice)}, not the text of a selector",
                where=where,
                fix="write it as text, such as 'encoder/**', or pass a function of a ParamFact",
            )
        check_integer("the layer", layer, minimum=0, where=where)
    return {choice: int(layer) for choice, layer in layer_of.items()}


def multipliers(layer_decay: LayerDecay, facts: Facts) -> dict[Path, float | np.ndarray]:
    """Returns what the learning rate of each parameter is multiplied by.

    Args:
        layer_decay: the rate and where it applies.
        facts: the table of parameters.

    Returns:
        By path a number in [min_scale, 1]; for a stack a float64 array that broadcasts against
        the parameter: the lengths of its scan axes, and 1 for every other axis. Parameters of
        the last layer have 1.0 exactly.

    Raises:
        ParameterError: a selector matches nothing, or layers are to be read from facts that
            don't know the order of use.
        ArgumentError: `layer_of` returned a layer that doesn't fit the parameter.
        ArgumentTypeError: an argument has the wrong type.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> facts = param_facts(nn.remat_scan(nn.Dense, lengths=(3,))(4), jnp.ones((2, 4)))
        >>> scale = multipliers(LayerDecay(0.5), facts)[("kernel",)]
        >>> scale.shape, scale.ravel().tolist()
        ((3, 1, 1), [0.25, 0.5, 1.0])
    """
    where = "multipliers(layer_decay, facts)"
    if not isinstance(layer_decay, LayerDecay):
        raise ArgumentTypeError(
            f"layer_decay is {kind_of(layer_decay)}, not a LayerDecay",
            where=where,
            fix="pass LayerDecay(rate)",
        )
    check_facts(facts, where=where)
    index = {path: np.asarray(layer) for path, layer in _layers(layer_decay, facts).items()}
    last = max((int(layer.max(initial=0)) for layer in index.values()), default=0)
    rate, least = layer_decay.rate, layer_decay.min_scale
    scales = np.array([max(least, rate ** (last - layer)) for layer in range(last + 1)])
    return {path: _placed(scales[layer], facts[path]) for path, layer in index.items()}


def _placed(scales: np.ndarray | np.floating, fact: ParamFact) -> float | np.ndarray:
    """Returns one number, or the numbers of slices along the axes of the parameter."""
    if scales.ndim == 0:
        return float(scales)
    shape = [fact.shape[a] if a in fact.scan_axes else 1 for a in range(len(fact.shape))]
    return scales.transpose(np.argsort(fact.scan_axes)).reshape(shape)


def _layers(layer_decay: LayerDecay, facts: Facts) -> dict[Path, LayerIndex]:
    layer_of = layer_decay.layer_of
    if callable(layer_of):
        return {fact.path: _answer(layer_of(fact), fact) for fact in facts.params}
    given: dict[Path, LayerIndex] = {}
    for choice, layer in (layer_of or {}).items():
        for path in select(facts, choice, where=f"LayerDecay(layer_of={{{choice!r}: ...}})"):
            given.setdefault(path, layer)
    inferred = {} if len(given) == len(facts) else layers(facts).of
    return {path: given[path] if path in given else inferred[path] for path in facts}


def _answer(layer: Any, fact: ParamFact) -> LayerIndex:
    """Checks what a function returned for a parameter."""
    where = f"LayerDecay(layer_of=...), parameter {fact.name!r}"
    shape = tuple(fact.shape[axis] for axis in fact.scan_axes)
    fix = "return a layer >= 0" + (
        f", or nested tuples of them of shape {shape}, one per slice" if shape else ""
    )
    try:
        index = np.asarray(layer)
    except ValueError:  # tuples of different lengths
        index = np.asarray(None)
    if index.dtype.kind not in "iu":
        raise ArgumentTypeError(f"{layer!r} is no layer", where=where, fix=fix)
    if index.shape not in ((), shape) or index.min(initial=0) < 0:
        raise ArgumentError(f"{layer!r} is no layer of this parameter", where=where, fix=fix)
    return layer
