"""LoRA adapters: a trained low-rank matrix beside each frozen kernel, of any Linen model.

E. J. Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, arXiv:2106.09685. With
a frozen kernel `W`, trained `A` and `B` of rank `r`, and `s = alpha / r` (section 4.1)::

    W' = W + s A B        A ~ N(0, 1 / in),  B = 0  at the start

The model is not edited: it is applied to params in which `W'` stands in the place of `W`, so
scans, vmaps and every module class that only reads its kernel work. The price: a step also
computes the gradient of `W'` itself, before it is turned into those of `A` and `B`.

Adapters are ordinary parameters under the top-level key `lora`. `A` has the shape of its kernel
with out axes of size 1, and `B` with in axes of size 1; the rank is their last axis. All other
axes (of `nn.scan`, `nn.vmap`, `batch_dims`) are the kernel's, one pair for each entry. So the
pair needs no table to be read, and an axis has the same number in all three::

    layers/attn/query/kernel              (12, 512, 8, 64)      a scan, 512 -> 8 x 64
    lora/layers/attn/query/kernel/lora_a  (12, 512, 1,  1, 4)
    lora/layers/attn/query/kernel/lora_b  (12,   1, 8, 64, 4)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.answering import answering
from flaxtrain.checks import check_integer, check_number
from flaxtrain.errors import ArgumentTypeError, ModelError, ParameterError
from flaxtrain.params.facts import Facts, ParamFact, check_facts
from flaxtrain.params.kernel_axes import LINEAR, kernel_axes
from flaxtrain.params.low_rank import (
    CLASSES,
    LORA,
    Pair,
    add_products,
    join_adapters,
    split_adapters,
)
from flaxtrain.params.select import SelectorLike, selector
from flaxtrain.params.select import select as paths_of
from flaxtrain.precision import stored_dtype
from flaxtrain.text import counted, kind_of, listed
from flaxtrain.tree import Path, path_name, unflatten
from flaxtrain.typing import DTypeLike, Key, Params

__all__ = ["Adapters", "LoRA"]


@dataclass(frozen=True, init=False, repr=False)
class LoRA:
    """Which kernels get an adapter, and of which size. A value: nothing is computed.

    Args:
        select: selector of the kernels. Each has to be the kernel of a `Dense`, `DenseGeneral`,
            `Einsum` or `Conv`.
        rank: rank of `A B`, at least 1 and less than the smaller side of each kernel.
        alpha: `A B` is multiplied with `alpha / rank`, > 0; None means `rank`, a scale of 1.
        train: selector of parameters of the model that are trained beside the adapters (a new
            head, say); None means none.
        dtype: dtype of the adapters: float16, bfloat16, float32 or float64; None means each
            kernel's own, or that of a precision policy.

    Raises:
        ArgumentError: `rank` or `alpha` is out of range.
        ArgumentTypeError: an argument is of a wrong type, or `dtype` is not floating.
        UnknownNameError: `dtype` is another floating one.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from flaxtrain.params import facts_from
        >>> model, x = nn.Sequential([nn.Dense(8), nn.Dense(2)]), jnp.ones((1, 6))
        >>> def initialise(extra):
        ...     return model.init({"params": jax.random.key(0), **extra}, x)
        >>> lora = LoRA("layers_0/kernel", rank=2, alpha=4, train="layers_1/**")
        >>> adapters = lora.bind(facts_from(initialise), initialise)
        >>> params = join_adapters(initialise({})["params"], adapters.init(jax.random.key(1)))
        >>> jax.tree.map(jnp.shape, params["lora"])
        {'layers_0': {'kernel': {'lora_a': (6, 1, 2), 'lora_b': (1, 8, 2)}}}
        >>> def norm(params):
        ...     return float(jnp.linalg.norm(lora.merge(params)["layers_0"]["kernel"]))
        >>> before = norm(params)
        >>> params["lora"] = jax.tree.map(lambda x: x + 1, params["lora"])
        >>> norm(params) > before
        True
    """

    select: SelectorLike
    rank: int
    alpha: float | None
    train: SelectorLike | None
    dtype: DTypeLike | None

    @answering
    def __init__(
        self,
        select: SelectorLike,
        rank: int,
        alpha: float | None = None,
        train: SelectorLike | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        check_integer("rank", rank, minimum=1, where="LoRA")
        if alpha is not None:
            check_number("alpha", alpha, minimum=0.0, exclude=(0.0,), where="LoRA")
        if dtype is not None:
            # Its name is data.
            dtype = stored_dtype("dtype", dtype, where="LoRA").name
        values = {
            "select": _chosen(select, "select"),
            "rank": int(rank),
            "alpha": None if alpha is None else float(alpha),
            "train": None if train is None else _chosen(train, "train"),
            "dtype": dtype,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        """Returns the call that makes it."""
        shown = [repr(self.select), f"rank={self.rank}"]
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            shown += [] if value is None else [f"{field.name}={value!r}"]
        return f"LoRA({', '.join(shown)})"

    @property
    def scale(self) -> float:
        """The factor `s = alpha / rank`."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def bind(
        self, facts: Facts, initialise: Callable[[dict[str, Key]], Mapping[str, Any]]
    ) -> Adapters:
        """Returns the adapters of one model.

        Args:
            facts: the table of the model's parameters.
            initialise: the function that `facts_from` made the table with; it is evaluated on
                shapes once more, to see which axes each kernel sums over.

        Raises:
            ParameterError: a selector matches nothing; a selected parameter is no kernel of the
                classes above, or too small for the rank; or one is adapted and trained.
            ModelError: the model has something called `lora` at the top.
            ArgumentTypeError: `facts` is no table, or `initialise` no function.
        """
        check_facts(facts, where="LoRA.bind(facts, initialise)")
        taken = [fact.name for fact in facts.params if fact.path[0] == LORA]
        if taken:
            raise ModelError(
                f"the model has a parameter {taken[0]!r}, and adapters live under {LORA!r}",
                where="LoRA.bind",
                fix="give that module another name",
            )
        chosen = paths_of(facts, self.select, where="LoRA(select=...)")
        kernels = [fact for fact in facts.params if fact.path in chosen]
        _check_kernels(kernels)
        axes = kernel_axes(initialise)
        pairs = tuple(
            Pair.of(fact, axes.get(fact.path), self.rank, self.dtype) for fact in kernels
        )
        return Adapters(self, facts, pairs, _trained_beside(facts, self.train, chosen))

    def merge(self, params: Params) -> dict[str, Any]:
        """Returns the model's params with `W + s A B` in the place of each adapted `W`.

        The model is applied to them in training, too: the result is differentiable in `A` and
        `B`. It is computed in float32 or wider and has the dtype of `W`; in a kernel of 16 bits
        a small `s A B` is rounded away. All other leaves are the same arrays.

        Args:
            params: nested dicts with the adapters under `lora`.

        Raises:
            ParameterError: there are no adapters, or they don't fit their kernels or this rank.
        """
        base, adapters = split_adapters(params)
        return add_products(base, adapters, self.scale, self.rank)

    def unmerge(self, merged: Params, adapters: Params) -> dict[str, Any]:
        """Inverse of `merge`, up to the rounding of `W`'s dtype: params with adapters.

        Args:
            merged: what `merge` returned.
            adapters: the adapters that were merged; `split_adapters(params)[1]`.

        Raises:
            ParameterError: the adapters don't fit the kernels or this rank.
        """
        return join_adapters(add_products(merged, adapters, -self.scale, self.rank), adapters)


@dataclass(frozen=True, repr=False)
class Adapters:
    """The adapters of one model: their facts, initial values and what is trained.

    Made by `LoRA.bind`.

    Attributes:
        lora: what was asked for.
        base: the table of the model's parameters, without adapters.
        pairs: what is known about each pair.
        trained_beside: the paths of the model's own parameters that are trained.

    Example:
        >>> import flax.linen as nn
        >>> from flaxtrain.params import facts_from
        >>> def initialise(extra):
        ...     streams = {"params": jax.random.key(0), **extra}
        ...     return nn.Dense(8).init(streams, jnp.ones((1, 6)))
        >>> lora = LoRA("kernel", rank=2, train="bias")
        >>> adapters = lora.bind(facts_from(initialise), initialise)
        >>> adapters
        Adapters(LoRA('kernel', rank=2, train='bias'): 1 kernel, 28 values)
        >>> sorted(path_name(path) for path in adapters.trainable)
        ['bias', 'lora/kernel/lora_a', 'lora/kernel/lora_b']
        >>> first = adapters.init(jax.random.key(1))["kernel"]
        >>> bool(jnp.any(first["lora_a"] != 0)), bool(jnp.any(first["lora_b"] != 0))
        (True, False)
    """

    lora: LoRA
    base: Facts
    pairs: tuple[Pair, ...]
    trained_beside: frozenset[Path]

    def __repr__(self) -> str:
        """Returns a line with the totals."""
        size = sum(math.prod(pair.a) + math.prod(pair.b) for pair in self.pairs)
        kernels = counted(len(self.pairs), "kernel")
        return f"Adapters({self.lora!r}: {kernels}, {counted(size, 'value')})"

    @cached_property
    def facts(self) -> Facts:
        """The table of all parameters, adapters included, in the order of the params.

        What holds for a kernel (class of its module, depth, lifted axes) is said of its `A` and
        `B` too. Their role is `lora`, which the decay preset `kernels` leaves alone.
        """
        rows = [row for pair in self.pairs for row in pair.facts()]
        ordered = sorted((*self.base.params, *rows), key=lambda fact: fact.path)
        return replace(self.base, params=tuple(ordered))

    @property
    def trainable(self) -> frozenset[Path]:
        """The paths in `facts` that are trained: adapters, and what `train` selects."""
        return self.trained_beside | {path for pair in self.pairs for path in pair.paths}

    def init(self, key: Key) -> dict[str, Any]:
        """Returns initial adapters, with which the model is exactly what it was.

        `A` is normal with variance `1 / in` (the paper says: a random Gaussian), so that `x A`
        is as large as `x`; `B` is 0. The values of a pair depend on the key, its kernel's path
        and shape, not on other layers.

        Args:
            key: a typed key, `jax.random.key(seed)`.

        Returns:
            The subtree for `join_adapters`: nested dicts like the params.

        Raises:
            ArgumentTypeError: `key` is no typed key.
        """
        dtype = getattr(key, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key) or key.shape:
            raise ArgumentTypeError(
                f"key is {kind_of(key)}, not one typed key",
                where="Adapters.init(key)",
                fix="pass jax.random.key(seed)",
            )
        return unflatten({pair.kernel.path: pair.init(key) for pair in self.pairs})


def _chosen(choice: SelectorLike, name: str) -> SelectorLike:
    """Returns a choice as data: text as it was written, a list (say) as what can be hashed."""
    known = selector(choice, where=f"LoRA({name}=...)")
    return choice if isinstance(choice, str) else known


def _check_kernels(facts: list[ParamFact]) -> None:
    wrong = [
        f"{fact.name} ({fact.owner_name})"
        for fact in facts
        if not fact.resolved or not _is_kernel(fact)
    ]
    if wrong:
        raise ParameterError(
            f"no adapter is possible for {listed(wrong, shown=3)}",
            where="LoRA(select=...)",
            fix=f"select only floating kernels of {CLASSES}: 'encoder/**/kernel', say",
        )


def _is_kernel(fact: ParamFact) -> bool:
    known = fact.owner is not None and issubclass(fact.owner, LINEAR)
    return known and fact.path[-1] == "kernel" and jnp.issubdtype(fact.dtype, jnp.inexact)


def _trained_beside(
    facts: Facts, train: SelectorLike | None, adapted: frozenset[Path]
) -> frozenset[Path]:
    if train is None:
        return frozenset()
    chosen = paths_of(facts, train, where="LoRA(train=...)")
    if both := sorted(chosen & adapted):
        raise ParameterError(
            f"{path_name(both[0])!r} is adapted, and trained itself as well",
            where="LoRA(train=...)",
            fix="take it out of train or out of select: an adapted kernel is frozen",
        )
    return frozenset(path for path in chosen if jnp.issubdtype(facts[path].dtype, jnp.inexact))
