"""Which axes of a kernel are summed over: the kernel as a matrix from in axes to out axes.

The shape doesn't tell: a kernel `(8, 2, 4)` of `DenseGeneral` may be `8 -> 2 x 4` (a query) or
`8 x 2 -> 4` (the output of an attention). The module does: `axis` and `batch_dims` of a
`DenseGeneral`, the subscript of an `Einsum`. So modules are looked at while `init` runs on
shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import flax.linen as nn

from flaxtrain.errors import ArgumentTypeError
from flaxtrain.params.intercept import MethodCall, intercepted
from flaxtrain.params.recorder import Recorder, run_abstractly
from flaxtrain.text import kind_of
from flaxtrain.tree import Path
from flaxtrain.typing import Key

__all__ = ["LINEAR", "KernelAxes", "kernel_axes"]

LINEAR: tuple[type[nn.Module], ...] = (nn.Dense, nn.DenseGeneral, nn.Einsum, nn.Conv)
"""The classes, with their subclasses, whose kernels have known in and out axes."""


@dataclass(frozen=True)
class KernelAxes:
    """The axes of a kernel's local shape; those that are in neither field are out axes.

    Attributes:
        into: the axes that are summed over: they meet the input only.
        batch: the axes that the input has too and that stay; one matrix for each entry.
    """

    into: tuple[int, ...]
    batch: tuple[int, ...] = ()


def kernel_axes(
    initialise: Callable[[dict[str, Key]], Mapping[str, Any]],
) -> dict[Path, KernelAxes]:
    """Returns the axes of the kernel of every `Dense`, `DenseGeneral`, `Einsum` and `Conv`.

    Only modules that are called are seen, those inside lifted transformations too.

    Args:
        initialise: `initialise(extra_rngs) -> variables` runs `model.init` with
            `{"params": key, **extra_rngs}`, as for `facts_from`. It is evaluated on shapes.

    Returns:
        The axes by path of the kernel. A kernel that is used in several ways has those of the
        first.

    Raises:
        ArgumentTypeError: `initialise` is no function.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = nn.MultiHeadDotProductAttention(num_heads=2)
        >>> rngs, x = {"params": jax.random.key(0)}, jnp.ones((1, 3, 8))
        >>> axes = kernel_axes(lambda extra: model.init({**rngs, **extra}, x))
        >>> axes["query", "kernel"]  # 8 -> 2 x 4
        KernelAxes(into=(0,), batch=())
        >>> axes["out", "kernel"]  # 2 x 4 -> 8
        KernelAxes(into=(0, 1), batch=())
    """
    if not callable(initialise):
        raise ArgumentTypeError(
            f"initialise is {kind_of(initialise)}, not a function",
            where="kernel_axes(initialise)",
            fix="pass lambda extra: model.init({'params': key, **extra}, x)",
        )
    with noting_axes() as found:
        run_abstractly(initialise, Recorder())
    return found


@contextmanager
def noting_axes() -> Iterator[dict[Path, KernelAxes]]:
    """Collects the axes of the kernels of all modules that are called inside the context."""
    found: dict[Path, KernelAxes] = {}

    def note(call: MethodCall) -> Any:
        # Nothing else: flax runs the `setup` of a lifted module at the path of the root, too.
        if call.method == "__call__":
            axes = _axes_of(call.module, call.args, call.kwargs)
            if axes is not None:
                found.setdefault((*call.path, "kernel"), axes)
        return call.run()

    with intercepted(note):
        yield found


def _axes_of(module: Any, args: tuple[Any, ...], kwargs: Any) -> KernelAxes | None:
    """Returns the axes of one module's kernel, None for modules of other classes."""
    if isinstance(module, nn.Dense):
        return KernelAxes(into=(0,))
    if isinstance(module, nn.DenseGeneral):
        batch, into = _count(module.batch_dims), _count(module.axis)
        return KernelAxes(tuple(range(batch, batch + into)), tuple(range(batch)))
    if isinstance(module, nn.Conv):
        return KernelAxes(into=tuple(range(_count(module.kernel_size) + 1)))
    if isinstance(module, nn.Einsum):
        called_with = args[1] if len(args) > 1 else kwargs.get("einsum_str")
        subscript = called_with or module.einsum_str
        return einsum_axes(subscript, len(module.shape)) if subscript else None
    return None


def _count(axes: Any) -> int:
    return 1 if isinstance(axes, int) else len(axes)


def einsum_axes(subscript: str, rank: int) -> KernelAxes | None:
    """Returns the axes of the second operand, which has `rank` axes.

    An axis that only the kernel has, and that is summed over, counts among the in axes. None if
    the subscript isn't of the form `"x,kernel->y"`; `nn.Einsum` refuses it.
    """
    operands, arrow, result = subscript.replace(" ", "").partition("->")
    inputs, comma, kernel = operands.partition(",")
    if not (arrow and comma):
        return None
    head, dots, tail = kernel.partition("...")
    labels = [*head, *[dots] * (rank - len(head) - len(tail)), *tail]
    return KernelAxes(
        into=tuple(i for i, label in enumerate(labels) if label not in result),
        batch=tuple(i for i, label in enumerate(labels) if label in result and label in inputs),
    )
