"""One table about all parameters of a Linen module, by abstract evaluation only.

Weight decay, freezing, layer-wise rates, parameter groups and the overview read this table, so
that none of them has to guess from names: it knows the class of the module that declared a
parameter, the shape it was declared with, and where in the computation it is used first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np

from flaxtrain.errors import ArgumentTypeError, UnknownParameterError, nearest
from flaxtrain.params.kernel_axes import KernelAxes
from flaxtrain.text import counted, kind_of
from flaxtrain.tree import Path, path_name, unflatten

__all__ = ["Facts", "ParamFact", "check_facts"]


@dataclass(frozen=True)
class ParamFact:
    """What is known about one parameter.

    Attributes:
        path: its keys in the params, `("encoder", "Dense_0", "kernel")`.
        owner: class of the module that declared it. Where none was seen (`resolved` is False),
            the class of the nearest module above, or None.
        owner_path: path of that module.
        around: the classes of all modules around the owner, by path, the model first: for a
            `Dense` in a `Block` of a `Model`, `(Model, Block)`. A module that shares the scope
            of one inside it (`nn.share_scope`) is around that one.
        local_shape: the shape it was declared with, inside `nn.scan` and `nn.vmap`.
        shape: its shape in the params.
        lifted_axes: the axes of `shape` that `nn.scan` and `nn.vmap` added.
        dtype: its dtype.
        partitioning: the names of its axes in the metadata (`nn.with_partitioning`), or None.
        role: what it is for, one of `ROLES`.
        rule: the evidence that decided the role, in words.
        depth: 0, 1, 2, ... in the order of first use with the data; None if it is dead, or if
            the use wasn't looked at.
        uses: number of places where it meets the data: 0 is a dead parameter, 2 and more a tied
            one; None if the use wasn't looked at.
        resolved: whether a module was seen declaring it.
        scan_axes: the axes of `shape` along which scans run through it in the program, the
            outermost first: the layers of a stack. They may be stacked by `nn.scan`,
            `nn.remat_scan` or by hand; axes of `nn.vmap` (experts) don't count. Where the use
            wasn't looked at, the one lifted axis inside a module that flax named `Scan...`.
        reversed_axes: those of `scan_axes` whose last entry is used first.
        loop: the number, in program order, of the outermost scan over stacked parameters in
            whose body it is used first; None outside of such scans. A stack has one number.
        hidden: whether it is a matrix between hidden activations, what Muon and Shampoo are
            for: of role `kernel` or `recurrent`, with at least two local axes longer than 1
            (kernels of convolutions have four), at a place where a kernel or an embedding comes
            before it and another behind it. So it is neither applied to the data themselves
            (the first layer, patches) nor a readout (every head is one), unless an embedding is
            tied to be the readout: then the kernels of the last block are hidden too. A stack
            of layers is one parameter, and its layers follow one another: it is hidden even if
            nothing is before or behind it. Where the use wasn't looked at, only role and axes
            decide.
        kernel_axes: which axes of `local_shape` are summed over, for the kernel of a `Dense`,
            `DenseGeneral`, `Einsum` or `Conv`; None for all else.
    """

    path: Path
    owner: type[nn.Module] | None
    owner_path: Path
    around: tuple[type[nn.Module], ...]
    local_shape: tuple[int, ...]
    shape: tuple[int, ...]
    lifted_axes: tuple[int, ...]
    dtype: np.dtype[Any]
    partitioning: tuple[Any, ...] | None
    role: str
    rule: str
    depth: int | None
    uses: int | None
    resolved: bool
    scan_axes: tuple[int, ...] = ()
    reversed_axes: tuple[int, ...] = ()
    loop: int | None = None
    hidden: bool = False
    kernel_axes: KernelAxes | None = None

    @property
    def name(self) -> str:
        """The path as text, `"encoder/Dense_0/kernel"`; a `/` in a key is written as `\\/`."""
        return path_name(self.path)

    @property
    def owner_name(self) -> str:
        """The name of the owner's class, or `"?"`."""
        return "?" if self.owner is None else self.owner.__name__

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The memory it takes, in bytes."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True, repr=False)
class Facts(Mapping[Path, ParamFact]):
    """The facts about all parameters of a model: an immutable mapping from path to `ParamFact`.

    It has the order of the params as a pytree. A parameter is found by its path tuple or by its
    name. Facts don't depend on values, and two tables of the same model are equal.

    Attributes:
        params: the facts, in order.
        rng_streams: the random streams that modules draw from in training, without `params`.
        collections: the names of the collections that `init` creates besides the params.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> facts = param_facts(nn.Dense(4), jnp.ones((1, 3)))
        >>> facts["kernel"].role, facts["kernel"].shape, facts["bias"].depth
        ('kernel', (3, 4), 1)
        >>> facts.tree(lambda fact: fact.role)
        {'bias': 'bias', 'kernel': 'kernel'}
    """

    params: tuple[ParamFact, ...]
    rng_streams: frozenset[str] = frozenset()
    collections: frozenset[str] = frozenset()

    @functools.cached_property
    def _by_path(self) -> dict[Path, ParamFact]:
        return {fact.path: fact for fact in self.params}

    @functools.cached_property
    def _by_name(self) -> dict[str, ParamFact]:
        return {fact.name: fact for fact in self.params}

    def __getitem__(self, key: Path | str) -> ParamFact:
        """Returns the fact of a path or a name.

        Raises:
            UnknownParameterError: the model has no such parameter.
        """
        try:
            return self._by_name[key] if isinstance(key, str) else self._by_path[key]
        except KeyError:
            name = key if isinstance(key, str) else path_name(key)
            close = nearest(name, self._by_name, count=3) or list(self._by_name)[:3]
            raise UnknownParameterError(
                f"no parameter {name!r}",
                fix=f"nearest: {', '.join(close) or '(there are none)'}",
            ) from None

    def __contains__(self, key: object) -> bool:
        """Whether there is a parameter of that path or name."""
        return key in self._by_path or key in self._by_name

    def __iter__(self) -> Iterator[Path]:
        """Iterates over the paths."""
        return iter(self._by_path)

    def __len__(self) -> int:
        """Returns the number of parameters (arrays)."""
        return len(self.params)

    def __repr__(self) -> str:
        """Returns a line with the totals; `overview` prints the table."""
        return f"Facts({counted(len(self), 'parameter')}, {counted(self.size, 'value')})"

    @property
    def size(self) -> int:
        """The number of values in all parameters together."""
        return sum(fact.size for fact in self.params)

    def by_depth(self) -> tuple[ParamFact, ...]:
        """Returns the facts in the order of first use; dead parameters come last."""
        last = len(self.params)
        return tuple(
            sorted(self.params, key=lambda fact: last if fact.depth is None else fact.depth)
        )

    def tree(self, function: Callable[[ParamFact], Any]) -> dict[str, Any]:
        """Returns nested dicts with the params' structure, `function(fact)` at the leaves."""
        return unflatten({fact.path: function(fact) for fact in self.params})


def check_facts(facts: Any, *, where: str) -> None:
    """Refuses anything but a table of facts.

    Args:
        facts: the argument of that name.
        where: the function that was called, for the message.

    Raises:
        ArgumentTypeError: it is something else.

    Example:
        >>> check_facts(Facts(()), where="layers(facts)")
        >>> check_facts({}, where="layers(facts)")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        ArgumentTypeError: facts is a dict, not a table of facts
    """
    if not isinstance(facts, Facts):
        raise ArgumentTypeError(
            f"facts is {kind_of(facts)}, not a table of facts",
            where=where,
            fix="pass what flaxtrain.params.param_facts or facts_from returned",
        )
