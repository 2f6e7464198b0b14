"""Adding updates to parameters of 16 bits: four rules behind one interface.

bfloat16 has 8 bits of precision: 1 - 0.001 is 1 again when the sum is rounded to nearest, so
that a run with small updates stands still. With p the stored parameter, u the update, in
float32, and R the rounding to 16 bits:

    nearest      p' = R(p + u)
    master       m' = m + u,                   p' = R(m')      m: float32, p = R(m)
    stochastic   p' = the neighbour of p + u below or above, each with the probability that
                 makes the mean of p' equal to p + u
    kahan        p' = R(p + k + u),            k' = R((p + k + u) - p')      k: 16 bits

Micikevicius et al. 2017, arXiv:1710.03740 (Mixed Precision Training), section 3.1: master
weights. Gupta et al. 2015, arXiv:1502.02551, section 3: stochastic rounding. Kahan 1965,
CACM 8: summation. Zamirai et al. 2020, arXiv:2010.06192 (Revisiting BFloat16 Training): both
for weights.

A rule never touches parameters of other dtypes. `exact` is what is known of the parameters, for
the optimizer to see and to add updates to; `stored` rounds the sum.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.errors import unknown_name
from flaxtrain.tree import Path, is_none, key_of, path_name, unflatten
from flaxtrain.typing import Array, DTypeLike, Key, Params

__all__ = [
    "NEAREST",
    "ROUNDING_RULES",
    "Kahan",
    "Master",
    "Nearest",
    "Rounding",
    "Stochastic",
    "is_16_bits",
    "rounding_rule",
    "stochastically_rounded",
]

Leaves = dict[Path, Any]


class Stored(NamedTuple):
    """Parameters in the dtypes in which they are kept, and what the rule keeps beside them."""

    params: Params
    carry: Params


@dataclass(frozen=True)
class Rounding:
    """A rule for updates of 16-bit parameters; this one rounds to nearest, `Nearest`.

    Attributes:
        description: what it does, in a few words.
        keeps: whether it keeps something beside the parameters.

    Example:
        >>> params = {"w": jnp.ones(1, jnp.bfloat16)}
        >>> for rule in (Nearest(), Master(), Stochastic(), Kahan()):
        ...     stored = Stored(params, rule.init(params, params))
        ...     for step in range(1000):
        ...         sums = jax.tree.map(lambda w: w - 1e-3, rule.exact(*stored))
        ...         key = jax.random.fold_in(jax.random.key(0), step)
        ...         stored = rule.stored(sums, stored.params, key)
        ...     print(type(rule).__name__, abs(float(stored.params["w"][0])) < 0.1)
        Nearest False
        Master True
        Stochastic True
        Kahan True
    """

    description: ClassVar[str] = "sums rounded to nearest"
    keeps: ClassVar[bool] = False

    def init(self, params: Params, stored: Params) -> Params:
        """Returns the carry before the first update.

        Args:
            params: the parameters that are trained, as precise as they are known.
            stored: the same in the dtypes in which they are kept.

        Returns:
            Nested dicts of those of 16 bits, for rules that keep something.
        """
        return {}

    def exact(self, params: Params, carry: Params) -> Params:
        """Returns the parameters as the optimizer sees them, and adds updates to them."""
        return params

    def stored(self, sums: Params, params: Params, key: Callable[[], Key] | Key) -> Stored:
        """Returns updated parameters in the dtypes of `params`, and the new carry.

        Args:
            sums: `exact(params, carry)` with the updates added, in the same dtypes.
            params: the parameters before.
            key: a typed key, or a function that makes it.
        """
        return Stored(sums, {})


class Nearest(Rounding):
    """Rounds to nearest; nothing is kept."""


NEAREST = Nearest()
"""The default: sums are rounded to nearest."""


class Master(Rounding):
    """Keeps a float32 copy of every 16-bit parameter; the optimizer works on it alone."""

    description = "float32 master copies"
    keeps = True

    def init(self, params: Params, stored: Params) -> Params:
        """Returns the copies: arrays of their own, for the state may be donated."""
        exact = _leaves(params)
        return unflatten(
            {
                path: jnp.array(exact[path], jnp.float32, copy=True)
                for path in _short(_leaves(stored))
            }
        )

    def exact(self, params: Params, carry: Params) -> Params:
        """Returns the copies; of what has none yet, the parameter."""
        kept = _leaves(carry)
        return _changed(params, lambda path, leaf: kept.get(path, _wide(leaf)))

    def stored(self, sums: Params, params: Params, key: Callable[[], Key] | Key) -> Stored:
        """Returns the sums, rounded to nearest, and the sums themselves as the new copies."""
        exact, short = _leaves(sums), _short(_leaves(params))
        new = _changed(params, lambda path, leaf: exact[path].astype(leaf.dtype), exact)
        return Stored(new, unflatten({path: exact[path] for path in short}))


class Stochastic(Rounding):
    """Rounds up or down at random; nothing is kept."""

    description = "sums rounded stochastically"

    def exact(self, params: Params, carry: Params) -> Params:
        """Returns the parameters, those of 16 bits as float32."""
        return _changed(params, lambda path, leaf: _wide(leaf))

    def stored(self, sums: Params, params: Params, key: Callable[[], Key] | Key) -> Stored:
        """Returns the sums, rounded; a parameter has a key of its own, made from its path."""
        exact = _leaves(sums)
        if not _short(_leaves(params)):
            return Stored(sums, {})
        root = key() if callable(key) else key

        def rounded(path: Path, leaf: Array) -> Array:
            own = jax.random.fold_in(root, zlib.crc32(path_name(path).encode()))
            return stochastically_rounded(exact[path], leaf.dtype, own)

        return Stored(_changed(params, rounded, exact), {})


class Kahan(Rounding):
    """Keeps what was rounded off, in the parameter's own dtype."""

    description = "what is rounded off is kept (Kahan)"
    keeps = True

    def init(self, params: Params, stored: Params) -> Params:
        """Returns what storing them has rounded off."""
        exact = _leaves(params)
        short = _short(_leaves(stored))
        return unflatten({path: _lost(exact[path], leaf) for path, leaf in short.items()})

    def exact(self, params: Params, carry: Params) -> Params:
        """Returns the parameters and what was rounded off, together, as float32."""
        kept = _leaves(carry)
        return _changed(
            params,
            lambda path, leaf: _wide(leaf) + _wide(kept[path]) if path in kept else _wide(leaf),
        )

    def stored(self, sums: Params, params: Params, key: Callable[[], Key] | Key) -> Stored:
        """Returns the sums, rounded to nearest, and what that has rounded off."""
        exact = _leaves(sums)
        new = _changed(params, lambda path, leaf: exact[path].astype(leaf.dtype), exact)
        short = _short(_leaves(new))
        return Stored(
            new, unflatten({path: _lost(exact[path], leaf) for path, leaf in short.items()})
        )


ROUNDING_RULES: Mapping[str, Rounding] = {
    "nearest": NEAREST,
    "master": Master(),
    "stochastic": Stochastic(),
    "kahan": Kahan(),
}
"""The rules by name, as `Precision(update=...)` takes it."""


def rounding_rule(name: str, *, where: str = "rounding_rule(name)") -> Rounding:
    """Returns the rule of a name: `Precision(update=...)`.

    Args:
        name: of one of `ROUNDING_RULES`.
        where: the argument, for messages.

    Raises:
        UnknownNameError: there is no such rule; the nearest name is given.

    Example:
        >>> rounding_rule("kahan") == Kahan()
        True
    """
    if name not in ROUNDING_RULES:
        raise unknown_name("rounding rule", name, ROUNDING_RULES, where=where)
    return ROUNDING_RULES[name]


def is_16_bits(dtype: DTypeLike) -> bool:
    """Whether a dtype is a floating one of 16 bits."""
    return jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))


def stochastically_rounded(values: Array, dtype: DTypeLike, key: Key) -> Array:
    """Rounds float32 numbers to one of their two neighbours in 16 bits, right on average.

    As many random bits are added as don't fit, so the mean is exact. The exception are numbers
    below 2^-24, the smallest one of float16: there the mean is off by 2^-32 of it at most.
    Numbers that `dtype` can hold stay as they are. Numbers of which either neighbour is
    infinite are rounded to nearest.

    Args:
        values: float32, of any shape.
        dtype: bfloat16 or float16.
        key: a typed key.

    Returns:
        An array of the same shape, in `dtype`.

    Example:
        >>> x = jnp.full(1000, 1.002, jnp.float32)  # bfloat16 has 1 and 1.0078125
        >>> rounded = stochastically_rounded(x, jnp.bfloat16, jax.random.key(0))
        >>> sorted(set(rounded.tolist())), round(float(rounded.astype(jnp.float32).mean()), 3)
        ([1.0, 1.0078125], 1.002)
    """
    values = jnp.asarray(values, jnp.float32)
    nearest = values.astype(dtype)
    short = nearest.dtype == jnp.bfloat16
    random = jax.random.bits(key, values.shape, jnp.uint16 if short else jnp.uint32)
    random = random.astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    dropped = jnp.full(values.shape, 16, jnp.uint32) if short else _dropped_by_float16(bits)
    mask = (jnp.uint32(1) << dropped) - 1
    # A carry into the exponent is the next power of two, as it should be.
    rounded = jax.lax.bitcast_convert_type((bits + (random & mask)) & ~mask, jnp.float32)
    if not short:
        rounded = jnp.where(jnp.abs(values) < _TINY, _of_tiny(values, random), rounded)
    new = rounded.astype(dtype)
    return jnp.where(jnp.isfinite(nearest) & jnp.isfinite(new), new, nearest)


_TINY = np.float32(2.0**-24)
"""The smallest positive number of float16."""


def _dropped_by_float16(bits: Array) -> Array:
    """Returns how many of the 23 bits of the fraction float16 has no place for.

    13 of a normal number, 10 being left; below 2^-14 one more with every halving, for the
    spacing stays 2^-24. The exponent of 2^-14 is stored as 113.
    """
    exponent = (bits >> 23) & jnp.uint32(0xFF)
    return 13 + (113 - jnp.clip(exponent, 103, 113))


def _of_tiny(values: Array, random: Array) -> Array:
    """Rounds numbers below 2^-24 to 0 or 2^-24."""
    up = random < (jnp.abs(values) * np.float32(2.0**56)).astype(jnp.uint32)
    return jnp.copysign(jnp.where(up, _TINY, 0), values)


def _wide(leaf: Any) -> Array:
    return jnp.asarray(leaf).astype(jnp.float32)


def _lost(exact: Any, stored: Array) -> Array:
    """Returns what rounding has lost, in the dtype of what was stored; 0 beside an infinity."""
    lost = (_wide(exact) - _wide(stored)).astype(stored.dtype)
    return jnp.where(jnp.isfinite(lost), lost, 0)


def _leaves(tree: Any) -> Leaves:
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_none)
    return {tuple(map(key_of, keys)): leaf for keys, leaf in found}


def _short(leaves: Leaves) -> Leaves:
    """Returns the leaves of 16 bits."""
    return {
        path: leaf
        for path, leaf in leaves.items()
        if leaf is not None and is_16_bits(jnp.asarray(leaf).dtype)
    }


def _changed(
    params: Params, change: Callable[[Path, Any], Any], others: Leaves | None = None
) -> Params:
    """Returns a tree like `params` with its 16-bit leaves changed, and others from `others`."""

    def visit(keys: Any, leaf: Any) -> Any:
        path = tuple(map(key_of, keys))
        if leaf is not None and is_16_bits(jnp.asarray(leaf).dtype):
            return change(path, leaf)
        return leaf if others is None else others[path]

    return jax.tree_util.tree_map_with_path(visit, params, is_leaf=is_none)
