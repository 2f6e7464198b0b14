from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.errors import ParameterError
from flaxtrain.params.resampling import interp2d


def by_hand(grid: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Bilinear enlargement of `[h, w, d]`, pixel by pixel: centers at half-integers."""
    height, width, _ = grid.shape
    result = np.zeros((rows, columns, grid.shape[2]))
    for i in range(rows):
        for j in range(columns):
            y = min(max((i + 0.5) * height / rows - 0.5, 0.0), height - 1.0)
            x = min(max((j + 0.5) * width / columns - 0.5, 0.0), width - 1.0)
            for dy in (0, 1):
                for dx in (0, 1):
                    row, column = int(y) + dy, int(x) + dx
                    weight = (1 - abs(y - row)) * (1 - abs(x - column))
                    if weight > 0:
                        result[i, j] += weight * grid[row, column]
    return result


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


# float64 with weights from a few sums and quotients: rounding only.
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def test_a_flat_table_is_its_grid_row_by_row() -> None:
    table = random(1, 9, 4)
    expected = by_hand(table.reshape(3, 3, 4), 5, 5).reshape(1, 25, 4)
    np.testing.assert_allclose(interp2d(table, (1, 25, 4)), expected, **EXACT)
    np.testing.assert_allclose(interp2d(table[0], (25, 4)), expected[0], **EXACT)


def test_a_class_token_is_kept_bit_by_bit() -> None:
    table = random(1, 10, 4).astype(np.float32)
    result = interp2d(table, (1, 26, 4))
    assert np.array_equal(result[:, :1], table[:, :1])
    assert np.array_equal(result[:, 1:], interp2d(table[:, 1:], (1, 25, 4)))


def test_an_explicit_grid_need_not_be_square() -> None:
    grid = random(3, 4, 2)
    np.testing.assert_allclose(interp2d(grid, (6, 5, 2)), by_hand(grid, 6, 5), **EXACT)
    one_axis = interp2d(grid[None], (1, 3, 8, 2))
    np.testing.assert_allclose(one_axis[0], by_hand(grid, 3, 8), **EXACT)


def test_a_convolution_kernel_is_resampled_in_its_window() -> None:
    kernel = random(3, 3, 2, 5)
    expected = by_hand(kernel.reshape(3, 3, 10), 5, 7).reshape(5, 7, 2, 5)
    np.testing.assert_allclose(interp2d(kernel, (5, 7, 2, 5)), expected, **EXACT)


def test_a_grid_that_shrinks_is_smoothed() -> None:
    # Alternating columns: without smoothing, every third column would be picked.
    stripes = np.tile(np.array([0.0, 1.0]), (6, 3))[..., None]
    shrunk = interp2d(stripes.reshape(36, 1), (4, 1))
    plain = jax.image.resize(
        jnp.asarray(stripes[..., 0], jnp.float32), (2, 2), "bilinear", antialias=False
    )
    assert np.asarray(plain).tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert np.abs(shrunk - 0.5).max() < 0.2


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, np.float32, np.float64])
def test_the_dtype_stays_and_is_rounded_once(dtype) -> None:
    table = random(9, 4).astype(dtype)
    result = interp2d(table, (25, 4))
    wide = interp2d(table.astype(np.float64), (25, 4))
    assert result.dtype == table.dtype
    # Half a unit in the last place of the largest entry, and float32's own rounding.
    bound = np.abs(wide).max() * (float(jnp.finfo(dtype).eps) + 1e-6 * (dtype != np.float64))
    assert np.abs(result.astype(np.float64) - wide).max() <= bound


def test_what_fits_is_returned_as_it_is() -> None:
    table = random(9, 4)
    assert interp2d(table, (9, 4)) is table


UNCLEAR = [
    ((9, 4), (25, 8), "don't say which two axes"),
    ((9, 4), (25,), "2 axes can't become 1"),
    ((8, 4), (25, 4), "8 is no square"),
    ((10, 4), (25, 4), "only one of the two tables has a class token"),
    ((12, 9, 4), (12, 25, 4), "don't say which two axes"),
    ((3, 3, 2, 5), (5, 5, 4, 5), "don't say which two axes"),
    ((0, 4), (4, 4), "nothing to interpolate"),
    ((4, 4), (0, 4), "nothing to interpolate"),
]


@pytest.mark.parametrize(("old", "new", "text"), UNCLEAR)
def test_shapes_that_do_not_say_what_the_grid_is_are_refused(old, new, text: str) -> None:
    with pytest.raises(ParameterError, match=text) as caught:
        interp2d(np.zeros(old), new)
    assert "pass a function" in str(caught.value.fix)


def test_integers_are_not_interpolated() -> None:
    with pytest.raises(ParameterError, match="dtype int32 can't be interpolated"):
        interp2d(np.zeros((4, 2), np.int32), (9, 2))
