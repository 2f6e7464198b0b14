"""The type names that signatures use.

jaxtyping is a test dependency: with it, `Float[Array, "batch classes"]` is checked at run time
in the tests; without it, the same spelling means `jax.Array`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
from jax import Array
from jax.typing import ArrayLike, DTypeLike

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Inexact, Int, Num, PyTree, Shaped
else:
    try:
        from jaxtyping import Bool, Float, Inexact, Int, Num, PyTree, Shaped
    except ImportError:

        class _Unchecked:
            """Stands in for a jaxtyping type: `Float[Array, "n"]` is `Array`."""

            def __class_getitem__(cls, item: Any) -> Any:
                return item[0] if isinstance(item, tuple) else Any

        Bool = Float = Inexact = Int = Num = PyTree = Shaped = _Unchecked

__all__ = [
    "Array",
    "ArrayLike",
    "Batch",
    "Bool",
    "Collections",
    "DTypeLike",
    "Float",
    "HostTree",
    "Inexact",
    "Int",
    "Key",
    "Num",
    "OptState",
    "Params",
    "PyTree",
    "Schedule",
    "Shaped",
    "Updates",
]

Params: TypeAlias = Any
"""A tree of parameters: nested dicts of arrays in states of ours; any pytree in `optim`."""

Updates: TypeAlias = Any
"""A tree like `Params` that holds gradients or updates."""

OptState: TypeAlias = Any
"""The state of a gradient transformation, any pytree."""

Collections: TypeAlias = Mapping[str, Any]
"""Linen's mutable collections without `params`: `{"batch_stats": {...}}`."""

Batch: TypeAlias = Any
"""A dict of arrays or a tuple `(inputs, targets)`; every leaf has the batch axis in front."""

HostTree: TypeAlias = Any
"""A tree of numpy arrays."""

Key: TypeAlias = jax.Array
"""A typed PRNG key, `jax.random.key(seed)`."""

Schedule: TypeAlias = Callable[[ArrayLike], ArrayLike]
"""Maps the number of updates already applied to a value."""
