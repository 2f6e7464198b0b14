"""Loss scaling: one interface, so that the step has no `if`.

scaled loss = scale(loss);  gradient = unscale(gradient of the scaled loss);  next =
adjust(finite)

Micikevicius et al. 2017, arXiv:1710.03740 (Mixed Precision Training), section 3.2: small
gradients vanish in float16, unless the loss is multiplied by a large number first. The dynamic
scale, S, with a count k of finite steps since it last changed:
    finite:      k <- k + 1;  when k = growth_interval:  S <- min(S factor, max),  k <- 0
    not finite:  S <- max(S / factor, min),  k <- 0
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.answering import answering_class
from flaxtrain.checks import INT32_MAX, check_integer, check_number, is_concrete
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.typing import Array, ArrayLike, Updates

__all__ = ["UNSCALED", "DynamicScale", "FixedScale", "LossScale", "NoScale"]


@runtime_checkable
class LossScale(Protocol):
    """What the training step asks of a loss scale; a pytree, kept in the state."""

    def scale(self, loss: ArrayLike) -> Array:
        """Multiplies the loss before it is differentiated."""
        ...

    def unscale(self, grads: Updates) -> Updates:
        """Divides gradients by what `scale` multiplied."""
        ...

    def adjust(self, finite: Array) -> LossScale:
        """Returns the scale for the next step, given whether this one was finite."""
        ...

    @property
    def at_minimum(self) -> ArrayLike:
        """Whether it can't be lowered: a step that is not finite is then no overflow."""
        ...

    def report(self) -> Mapping[str, Array]:
        """Returns the scalars that belong in the log, by name."""
        ...


@answering_class()
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoScale:
    """The scale 1, for float32 and bfloat16: every verb is the identity.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = jnp.array(2.0)
        >>> float(NoScale().scale(loss)), NoScale().adjust(finite=jnp.isfinite(loss))
        (2.0, NoScale())
    """

    def scale(self, loss: ArrayLike) -> Array:
        """Returns `loss`."""
        return jnp.asarray(loss)

    def unscale(self, grads: Updates) -> Updates:
        """Returns `grads`."""
        return grads

    def adjust(self, finite: Array) -> NoScale:
        """Returns itself."""
        return self

    @property
    def at_minimum(self) -> bool:
        """True: it can't be lowered."""
        return True

    def report(self) -> dict[str, Array]:
        """Returns nothing."""
        return {}


UNSCALED = NoScale()
"""The default: no scaling."""


@answering_class()
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FixedScale:
    """One scale for the whole run; a power of two loses nothing to rounding.

    Args:
        value: what the loss is multiplied by, a normal float32 number more than 0.

    Raises:
        ArgumentError: `value` is out of range.
        ArgumentTypeError: `value` is not a number.

    Example:
        >>> fixed = FixedScale(2.0**15)
        >>> print(fixed.scale(jnp.array(2.0)), fixed.unscale({"w": jnp.array(65536.0)})["w"])
        65536.0 2.0
    """

    value: float = field(metadata={"static": True})

    def __post_init__(self) -> None:
        _check_scale("value", self.value, where="FixedScale")
        if is_concrete(self.value):
            object.__setattr__(self, "value", float(self.value))

    def scale(self, loss: ArrayLike) -> Array:
        """Returns `loss * value`, in the dtype of the loss."""
        return jnp.asarray(loss) * self.value

    def unscale(self, grads: Updates) -> Updates:
        """Returns `grads / value`, each in its own dtype."""
        return _divided(grads, self.value)

    def adjust(self, finite: Array) -> FixedScale:
        """Returns itself."""
        return self

    @property
    def at_minimum(self) -> bool:
        """True: it can't be lowered."""
        return True

    def report(self) -> dict[str, Array]:
        """Returns nothing: it is the same in all steps."""
        return {}


T = TypeVar("T")


def _rebuilt_unchecked(cls: type[T]) -> type[T]:
    """Registers a dataclass as a pytree that is rebuilt without a call of its constructor.

    jax puts whatever it likes at the leaves (a shape, None, a plain object). A constructor that
    is called for that, as by `jax.tree_util.register_dataclass`, can't judge its arguments.
    """
    known: Any = cls
    data = [field.name for field in fields(known) if not field.metadata.get("static")]
    static = [field.name for field in fields(known) if field.metadata.get("static")]

    def named_leaves(node: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(node, name)) for name in data]
        return children, tuple(getattr(node, name) for name in static)

    def rebuilt(values: tuple[Any, ...], leaves: Iterable[Any]) -> T:
        node = object.__new__(cls)
        for name, value in zip((*static, *data), (*values, *leaves), strict=True):
            object.__setattr__(node, name, value)
        return node

    jax.tree_util.register_pytree_with_keys(cls, named_leaves, rebuilt)
    return cls


_FRESH: Any = object()
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@answering_class()
@_rebuilt_unchecked
@dataclass(frozen=True)
class DynamicScale:
    """A scale that grows while steps are finite, and shrinks when one is not.

    A pytree of two scalars, `value` and `count`; the rest is static, so that a compiled step
    serves every state.

    Args:
        init: the first scale.
        growth_interval: finite steps in a row, from 1 to 2^31 - 1, after which the scale grows.
        factor: what it is multiplied by then, and divided by after a step that is not finite;
            more than 1.
        min: the lowest scale, a normal float32 number more than 0.
        max: the highest scale, likewise.
        value: the scale now, a normal float32 number more than 0; by default `init`.
        count: finite steps since the scale last changed, from 0 to 2^31 - 1; by default 0.

    Raises:
        ArgumentError: a number is out of range, or `min <= init <= max` does not hold.
        ArgumentTypeError: an argument is not a number, or not known while tracing.

    Example:
        >>> scale = DynamicScale(init=1024.0, growth_interval=2)
        >>> for finite in (True, True, True, False):
        ...     scale = scale.adjust(finite=jnp.array(finite))
        ...     print(scale.value, scale.count)
        1024.0 1
        2048.0 0
        2048.0 1
        1024.0 0
    """

    init: float = field(default=2.0**15, metadata={"static": True})
    growth_interval: int = field(default=2000, metadata={"static": True})
    factor: float = field(default=2.0, metadata={"static": True})
    min: float = field(default=1.0, metadata={"static": True})
    max: float = field(default=2.0**24, metadata={"static": True})
    value: Array = field(default=_FRESH, repr=False)
    count: Array = field(default=_FRESH, repr=False)

    def __post_init__(self) -> None:
        self._check_static()
        value = self.init if self.value is _FRESH else self.value
        count = 0 if self.count is _FRESH else self.count
        _check_scale("value", value, where="DynamicScale")
        check_integer("count", count, minimum=0, maximum=INT32_MAX, where="DynamicScale")
        object.__setattr__(self, "value", jnp.asarray(value, jnp.float32))
        object.__setattr__(self, "count", jnp.asarray(count, jnp.int32))

    def _check_static(self) -> None:
        where = "DynamicScale"
        for name in ("init", "min", "max", "factor", "growth_interval"):
            if not is_concrete(getattr(self, name)):
                raise ArgumentTypeError(
                    f"{name} is not known while tracing",
                    where=where,
                    fix="make the scale outside the traced function, and pass it in",
                )
        for name in ("init", "min", "max"):
            _check_scale(name, getattr(self, name), where=where)
            object.__setattr__(self, name, float(getattr(self, name)))
        check_number("factor", self.factor, minimum=1.0, exclude=(1.0,), where=where)
        check_integer(
            "growth_interval", self.growth_interval, minimum=1, maximum=INT32_MAX, where=where
        )
        object.__setattr__(self, "factor", float(self.factor))
        object.__setattr__(self, "growth_interval", int(self.growth_interval))
        if not self.min <= self.init <= self.max:
            raise ArgumentError(
                f"init={self.init:g} is not between min={self.min:g} and max={self.max:g}",
                where=where,
                fix="pass min <= init <= max",
            )

    def scale(self, loss: ArrayLike) -> Array:
        """Returns `loss * value`, in the dtype of the loss."""
        loss = jnp.asarray(loss)
        return loss * self.value.astype(loss.dtype)

    def unscale(self, grads: Updates) -> Updates:
        """Returns `grads / value`, each in its own dtype."""
        return _divided(grads, self.value)

    def adjust(self, finite: Array) -> DynamicScale:
        """Returns the scale for the next step.

        Args:
            finite: a boolean scalar, whether the loss and all gradients of this step were.
        """
        count = self.count + 1
        full = count >= self.growth_interval
        grown = jnp.where(full, jnp.minimum(self.value * self.factor, self.max), self.value)
        shrunk = jnp.maximum(self.value / self.factor, self.min)
        return replace(
            self,
            # Limits may have changed since the value was saved.
            value=jnp.clip(jnp.where(finite, grown, shrunk), self.min, self.max),
            count=jnp.where(finite & ~full, count, 0),
        )

    @property
    def at_minimum(self) -> Array:
        """Whether the scale is at its minimum, a boolean scalar."""
        return self.value <= self.min

    def report(self) -> dict[str, Array]:
        """Returns the scale now."""
        return {"loss_scale": self.value}


def _check_scale(name: str, value: Any, *, where: str) -> None:
    """Refuses what float32 has no normal number for: 0 or infinity would be used instead."""
    check_number(name, value, minimum=0.0, exclude=(0.0,), where=where)
    if is_concrete(value) and not _SMALLEST <= float(value) <= _LARGEST:
        raise ArgumentError(
            f"{name}={float(value):g} is no normal float32 number",
            where=where,
            fix=f"pass a number from {_SMALLEST:.3g} to {_LARGEST:.3g}",
        )


def _divided(grads: Updates, by: Any) -> Updates:
    """Divides in float32 at least: the reciprocal of a large scale may not exist in float16."""

    def divided(grad: Any) -> Any:
        if getattr(grad, "dtype", None) == jax.dtypes.float0:
            return grad  # that of an integer, which is no jax array
        grad = jnp.asarray(grad)
        if not jnp.issubdtype(grad.dtype, jnp.inexact):
            return grad
        wide = jnp.promote_types(grad.dtype, jnp.float32)
        return (grad.astype(wide) * (1.0 / by)).astype(grad.dtype)

    return jax.tree.map(divided, grads)
