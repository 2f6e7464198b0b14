"""Which axes of a parameter a scan runs through.

A parameter of shape `(layers, 8, 16)` that enters a scan as an operand to be sliced is one
parameter per layer. On its way there it may have been transposed, reshaped or cast, and a slice
of it may be sliced again by a scan inside. An `Origin` says what is left of the parameter in
such a value, axis by axis.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from flaxtrain.params.axes import Shape
from flaxtrain.tree import Path

# Nothing here is public: `ParamFact.scan_axes`, `reversed_axes` and `loop` are the result.
__all__ = []

Place = tuple[int, ...]

# They change neither the shape nor the order of the entries, if the other operand is a number.
_ELEMENTWISE = frozenset(
    {"convert_element_type", "copy", "copy_p", "reduce_precision", "sharding_constraint"}
    | {"mul", "div", "add", "sub", "neg", "exp", "tanh", "logistic"}
)
# Flax's names of lifted modules that weren't given one: ScanBlock_0, Remat_scanBlock_0.
_LIFTED_NAME = re.compile(r"(Remat_s|S)can[A-Z]\w*_\d+")


class Scan(NamedTuple):
    """The loop over stacked parameters in which a parameter is used first.

    `axes` are the parameter's axes that are sliced, outermost loop first; `reversed_axes` those
    of them whose last slice is used first; `loop` the outermost loop's number in the program.
    """

    axes: Shape = ()
    reversed_axes: Shape = ()
    loop: int | None = None


class Piece(NamedTuple):
    """A factor of one axis of a parameter: `size` entries that are `stride` apart."""

    axis: int
    size: int
    stride: int
    flipped: bool = False


class Origin(NamedTuple):
    """A value that is a parameter, or a slice of one, rearranged.

    Attributes:
        axes: for each axis of the value the pieces it is made of, the slowest first.
        taken: the pieces that the loops around the value run through, outermost first.
        loop: the place of the outermost of these loops.
    """

    axes: tuple[tuple[Piece, ...], ...]
    taken: tuple[Piece, ...] = ()
    loop: Place = ()

    @classmethod
    def of(cls, shape: Shape) -> Origin:
        """Returns the origin of the parameter itself."""
        return cls(tuple((Piece(axis, size, 1),) for axis, size in enumerate(shape)))

    def sliced(self, place: Place, reverse: bool) -> Origin:
        """Returns the origin of the slice that the body of the scan at `place` sees."""
        first = _flipped(self.axes[0]) if reverse else self.axes[0]
        taken = self.taken + first
        return Origin(self.axes[1:], taken, self.loop if self.taken else place)

    def mapped(self) -> Origin:
        """Returns the origin of a slice in a loop whose iterations don't follow one another."""
        return self._replace(axes=self.axes[1:])

    def through(self, equation: Any, operand: int) -> Origin | None:
        """Returns the origin of an equation's output; None where it can't be followed.

        Args:
            equation: an equation of a jaxpr, whose other operands depend on nothing.
            operand: which of its operands this is.
        """
        params, axes = equation.params, self.axes
        shape = equation.invars[operand].aval.shape
        new_shape = equation.outvars[0].aval.shape
        moved: Sequence[tuple[Piece, ...]] | None = None
        match equation.primitive.name:
            case "transpose":
                moved = [axes[axis] for axis in params["permutation"]]
            case "rev":
                flips = params["dimensions"]
                moved = [_flipped(a) if i in flips else a for i, a in enumerate(axes)]
            case "squeeze":
                gone = params["dimensions"]
                moved = [a for i, a in enumerate(axes) if i not in gone]
            case "broadcast_in_dim":
                old = {new: i for i, new in enumerate(params["broadcast_dimensions"])}
                kept = {new for new, i in old.items() if shape[i] == new_shape[new]}
                moved = [axes[old[i]] if i in kept else () for i in range(len(new_shape))]
            case "reshape" if params["dimensions"] is None:
                moved = _reshaped(axes, shape, new_shape)
            case name if name in _ELEMENTWISE and shape == new_shape:
                moved = axes
        return None if moved is None else self._replace(axes=tuple(moved))

    def scan(self, shape: Shape) -> Scan | None:
        """Returns the axes that the loops run through whole; None if they leave a part of one.

        Args:
            shape: the parameter's.
        """
        axes, backwards = [], []
        for axis, group in groupby(self.taken, lambda piece: piece.axis):
            pieces = list(group)
            ends = [shape[axis], *(piece.stride for piece in pieces)]
            whole = all(p.size * p.stride == e for p, e in zip(pieces, ends[:-1], strict=True))
            ways = {piece.flipped for piece in pieces if piece.size > 1}
            if not whole or ends[-1] != 1 or axis in axes or len(ways) > 1:
                return None
            axes.append(axis)
            backwards += [axis] if True in ways else []
        return Scan(tuple(axes), tuple(backwards))


def _flipped(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    return tuple(piece._replace(flipped=not piece.flipped) for piece in pieces)


def _reshaped(
    axes: Sequence[tuple[Piece, ...]], shape: Shape, new_shape: Shape
) -> list[tuple[Piece, ...]] | None:
    """Deals the pieces out to the axes of the new shape; a split axis splits its pieces."""
    sizes = [math.prod(piece.size for piece in axis) for axis in axes]
    if sizes != list(shape) or 0 in shape:
        return None  # an axis that was broadcast has no pieces
    pieces = [piece for axis in axes for piece in axis]
    moved: list[tuple[Piece, ...]] = []
    for size in new_shape:
        taken: list[Piece] = []
        while size > 1 or (not taken and pieces and pieces[0].size == size):
            piece = pieces.pop(0)
            if piece.size > size and piece.size % size == 0:
                rest = piece.size // size
                pieces.insert(0, piece._replace(size=rest))
                piece = piece._replace(size=size, stride=piece.stride * rest)
            if size % piece.size:
                return None
            taken.append(piece)
            size //= piece.size
        moved.append(tuple(taken))
    return moved


def scanned_module(path: Path) -> Path | None:
    """Returns the path of the first module above that has the name flax gives to a scan."""
    for end in range(1, len(path)):
        if _LIFTED_NAME.fullmatch(path[end - 1]):
            return path[:end]
    return None


def guess_scan(path: Path, lifted_axes: Shape) -> Scan:
    """Returns what names say, for want of a program: the one lifted axis in a `Scan..._0`."""
    named = len(lifted_axes) == 1 and scanned_module(path) is not None
    return Scan(lifted_axes) if named else Scan()
