"""Tables and kernels of another size: interpolation of a grid in two dimensions.

A vision transformer that was trained at one resolution is fine-tuned at another: its position
embeddings lie on a grid, which is resampled (Dosovitskiy et al. 2020, arXiv:2010.11929, 3.2).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.errors import ParameterError

__all__ = ["RESHAPES", "interp2d"]

Shape = tuple[int, ...]


def interp2d(array: np.ndarray, shape: Shape) -> np.ndarray:
    """Returns a grid of numbers resampled to another size, bilinearly.

    What the grid is follows from the two shapes; everything else must be equal in both:

    - `[n, d]`, `[1, n, d]`: position embeddings of a square grid, row by row. n is a square, or
      a square and one: then the first is a class token, which is kept as it is.
    - `[h, w, d]` (both sizes change), `[1, h, w, d]`: position embeddings with their grid.
    - `[h, w, in, out]`: a convolution kernel. The values are kept, not their sum.

    Pixel centers lie at half-integers, and a grid that shrinks is smoothed first: it is
    `jax.image.resize(..., method="bilinear", antialias=True)`. Float16 and bfloat16 are
    computed in float32 and rounded once.

    Args:
        array: of any float dtype.
        shape: the shape that is wanted. The same shape returns the array.

    Returns:
        An array of that shape and of the dtype of `array`.

    Raises:
        ParameterError: the shapes don't say what the grid is, or the dtype is not a float.

    Example:
        >>> table = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
        >>> interp2d(table, (16, 1)).reshape(4, 4)
        array([[0.  , 0.25, 0.75, 1.  ],
               [0.5 , 0.75, 1.25, 1.5 ],
               [1.5 , 1.75, 2.25, 2.5 ],
               [2.  , 2.25, 2.75, 3.  ]], dtype=float32)
    """
    shape = tuple(shape)
    if array.shape == shape:
        return array
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise _not_clear(f"an array of dtype {array.dtype} can't be interpolated")
    axes = _grid_axes(array.shape, shape)
    if axes is not None:
        return _resized(array, shape)
    tokens, flat = _flat_grid(array.shape, shape)
    table, side = array.reshape(array.shape[-2:]), math.isqrt(shape[-2] - tokens)
    old = math.isqrt(len(table) - tokens)
    grid = _resized(table[tokens:].reshape(old, old, flat), (side, side, flat))
    return np.concatenate([table[:tokens], grid.reshape(-1, flat)]).reshape(shape)


def _grid_axes(old: Shape, new: Shape) -> Shape | None:
    """Returns the axes that differ where they are an explicit grid, None for a flat one."""
    if len(old) != len(new):
        raise _not_clear(f"{len(old)} axes can't become {len(new)}")
    axes = tuple(axis for axis, sizes in enumerate(zip(old, new)) if sizes[0] != sizes[1])
    alone = old[:1] == new[:1] == (1,)
    if 0 in old + new:
        raise _not_clear("there is nothing to interpolate in an empty array")
    if len(old) == 4 and (set(axes) <= {0, 1} or set(axes) <= {1, 2} and alone):
        return axes
    # [k, n, d] with a new n may be k tables of n positions: then its rows are no grid.
    if len(old) == 3 and axes == (0, 1):
        return axes
    if axes == (len(old) - 2,) and (len(old) == 2 or len(old) == 3 and alone):
        return None
    raise _not_clear("the shapes don't say which two axes are a grid")


def _flat_grid(old: Shape, new: Shape) -> tuple[int, int]:
    """Returns the number of class tokens, 0 or 1, and the width of a flat table."""
    tokens = []
    for count in (old[-2], new[-2]):
        found = [extra for extra in (0, 1) if math.isqrt(count - extra) ** 2 == count - extra]
        # 1 is a grid of one position, not a class token without a grid.
        if not found or count < 1:
            raise _not_clear(f"{count} is no square, nor a square and one for a class token")
        tokens.append(found[0])
    if tokens[0] != tokens[1]:
        raise _not_clear("only one of the two tables has a class token")
    return tokens[0], old[-1]


def _resized(array: np.ndarray, shape: Shape) -> np.ndarray:
    # Without it jax would compute a float64 array of numpy in float32.
    wide = array.dtype.itemsize == 8
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        values = jnp.asarray(array.astype(np.float64 if wide else np.float32))
        resized = jax.image.resize(values, shape, method="bilinear", antialias=True)
        return np.asarray(resized).astype(array.dtype)


def _not_clear(found: str) -> ParameterError:
    return ParameterError(
        found, where="interp2d", fix="pass a function (array, target_shape) -> array instead"
    )


RESHAPES: dict[str, Callable[[np.ndarray, Shape], np.ndarray]] = {"interp2d": interp2d}
"""The named ways of reshaping."""
