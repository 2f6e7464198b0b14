"""Every loss against Optax: values, dtypes and gradients, in float32 and float64.

A row is a call: the loss's name and a function that makes its arguments. What a row leaves to
Optax's own flaws (NaN where the mathematics has a number) is tested in
test_better_than_optax.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import losses


class Row(NamedTuple):
    """One call of one loss; `arguments(rng, scale)` are numpy arrays."""

    name: str
    what: str
    arguments: Callable[[np.random.Generator, float], tuple[Any, ...]]
    keywords: Mapping[str, Any] = MappingProxyType({})
    extreme: bool = True  # also with logits of size 1e3


def logits(*shape: int) -> Callable[[np.random.Generator, float], np.ndarray]:
    return lambda rng, scale: scale * rng.normal(size=shape)


def one_hot(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.eye(shape[-1])[rng.integers(0, shape[-1], size=shape[:-1])]


def distribution(rng: np.random.Generator, *shape: int) -> np.ndarray:
    values = rng.random(size=shape) + 0.05
    return values / values.sum(-1, keepdims=True)


def some(*shape: int) -> np.ndarray:
    """A mask with at least one True in every row."""
    mask = np.arange(np.prod(shape)).reshape(shape) % 3 != 1
    mask[..., 0] = True
    return mask


def pairs(name: str, *, keywords: dict[str, Any] | None = None, what: str = "") -> Row:
    return Row(
        name,
        what,
        lambda r, s: (s * r.normal(size=(4, 3)), r.normal(size=(4, 3))),
        keywords or {},
    )


def log_distribution(rng: np.random.Generator, scale: float, *shape: int) -> np.ndarray:
    x = scale * rng.normal(size=shape)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(
    name: str, targets: Callable[..., np.ndarray], what: str, **keywords: Any
) -> Row:
    def arguments(rng: np.random.Generator, scale: float) -> tuple[Any, ...]:
        return log_distribution(rng, scale, 4, 5), targets(rng, 4, 5)

    return Row(name, what, arguments, keywords)


def ctc(rng: np.random.Generator, scale: float) -> tuple[Any, ...]:
    """Three sequences: a full one, one with padding and a repetition, one without labels."""
    frames, labels = np.zeros((3, 8)), np.zeros((3, 3))
    frames[1, 6:] = labels[1, 2:] = labels[2, :] = 1
    logits = scale * rng.normal(size=(3, 8, 5))
    return logits, frames, np.array([[1, 2, 3], [2, 2, 4], [1, 1, 1]]), labels


def segmentation(rng: np.random.Generator, scale: float) -> tuple[Any, ...]:
    return scale * rng.normal(size=(2, 4, 4, 3)), one_hot(rng, 2, 4, 4, 3)


def binary(rng: np.random.Generator, scale: float) -> tuple[Any, ...]:
    return scale * rng.normal(size=(2, 4, 4)), rng.integers(0, 2, size=(2, 4, 4)).astype(float)


def classes(name: str, *shape: int, what: str = "", **keywords: Any) -> Row:
    def arguments(rng: np.random.Generator, scale: float) -> tuple[Any, ...]:
        return scale * rng.normal(size=shape), rng.integers(0, shape[-1], size=shape[:-1])

    return Row(name, what, arguments, keywords)


def distributions(
    name: str, what: str, make: Callable[..., np.ndarray], **keywords: Any
) -> Row:
    return Row(name, what, lambda r, s: (s * r.normal(size=(4, 5)), make(r, 4, 5)), keywords)


def binary_labels(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 2, size=shape).astype(float)


def signs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return 2 * binary_labels(rng, *shape) - 1


ROWS = [
    pairs("squared_error"),
    pairs("l2_loss"),
    pairs("log_cosh"),
    pairs("huber_loss"),
    pairs("huber_loss", keywords={"delta": 0.3}, what="narrow"),
    Row("squared_error", "without targets", lambda r, s: (s * r.normal(size=(3,)),)),
    Row("log_cosh", "without targets", lambda r, s: (s * r.normal(size=(3,)),)),
    Row(
        "huber_loss",
        "a row of targets",
        lambda r, s: (s * r.normal(size=(4, 3)), r.normal(size=(1, 3))),
    ),
    pairs("cosine_similarity"),
    pairs("cosine_distance", keywords={"axis": 0}, what="columns"),
    pairs("cosine_similarity", keywords={"epsilon": 0.5, "where": some(4, 3)}, what="masked"),
    pairs("cosine_similarity", keywords={"axis": (0, 1)}, what="two axes"),
    distributions("softmax_cross_entropy", "one-hot", one_hot),
    distributions("softmax_cross_entropy", "soft", distribution),
    distributions("softmax_cross_entropy", "masked", one_hot, where=some(4, 5)),
    distributions("softmax_cross_entropy", "other axis", one_hot, axis=0),
    distributions("softmax_cross_entropy", "both axes", distribution, axis=(0, 1)),
    distributions("safe_softmax_cross_entropy", "one-hot", one_hot),
    distributions("safe_softmax_cross_entropy", "soft", distribution),
    classes("softmax_cross_entropy_with_integer_labels", 4, 5),
    classes("softmax_cross_entropy_with_integer_labels", 4, 5, what="masked", where=some(4, 5)),
    Row(
        "softmax_cross_entropy_with_integer_labels",
        "masked rows",
        lambda r, s: (s * r.normal(size=(4, 5)), r.integers(0, 5, size=4)),
        {"where": np.array([True, True, True, True])},
    ),
    Row(
        "softmax_cross_entropy_with_integer_labels",
        "classes first",
        lambda r, s: (s * r.normal(size=(5, 4)), r.integers(0, 5, size=4)),
        {"axis": 0},
    ),
    Row(
        "softmax_cross_entropy_with_integer_labels",
        "two axes",
        lambda r, s: (s * r.normal(size=(3, 2, 4)), r.integers(0, 12, size=2)),
        {"axis": (2, 0)},
    ),
    distributions("sigmoid_binary_cross_entropy", "labels", binary_labels),
    distributions("sigmoid_binary_cross_entropy", "soft", distribution),
    distributions("sigmoid_focal_loss", "labels", binary_labels),
    distributions("sigmoid_focal_loss", "soft", distribution, alpha=0.25, gamma=1.5),
    distributions("sigmoid_focal_loss", "gamma 0", binary_labels, gamma=0.0),
    distributions("poly_loss_cross_entropy", "one-hot", one_hot),
    distributions("poly_loss_cross_entropy", "masked", one_hot, epsilon=-1.0, where=some(4, 5)),
    Row("smooth_labels", "", lambda r, s: (one_hot(r, 4, 5), 0.1)),
    Row("smooth_labels", "masked", lambda r, s: (one_hot(r, 4, 5), 0.1), {"where": some(4, 5)}),
    Row("smooth_labels", "two axes", lambda r, s: (one_hot(r, 4, 5), 0.1), {"axis": (0, 1)}),
    Row("smooth_labels", "all axes", lambda r, s: (one_hot(r, 4, 5), 0.1), {"axis": None}),
    distributions("hinge_loss", "", signs),
    distributions("perceptron_loss", "", signs),
    distributions("sparsemax_loss", "", binary_labels),
    classes("multiclass_hinge_loss", 4, 5),
    classes("multiclass_hinge_loss", 2, 3, 5, what="more axes"),
    classes("multiclass_perceptron_loss", 4, 5),
    # Optax projects uncentred scores, and loses the threshold in 1e3-sized float32 sums.
    classes("multiclass_sparsemax_loss", 4, 5)._replace(extreme=False),
    divergence("kl_divergence", distribution, ""),
    divergence("kl_divergence", distribution, "masked", where=some(4, 5)),
    divergence("kl_divergence", distribution, "all axes", axis=None),
    divergence("generalized_kl_divergence", lambda r, *s: 3 * distribution(r, *s), ""),
    divergence("convex_kl_divergence", distribution, ""),
    divergence("kl_divergence_with_log_targets", lambda r, *s: np.log(distribution(r, *s)), ""),
    Row(
        "ranking_softmax_loss",
        "",
        lambda r, s: (s * r.normal(size=(4, 5)), r.random(size=(4, 5))),
    ),
    Row(
        "ranking_softmax_loss",
        "masked and weighed",
        lambda r, s: (s * r.normal(size=(4, 5)), r.integers(0, 3, size=(4, 5))),
        {"where": some(4, 5), "weights": 0.5 + some(4, 5)},
    ),
    Row(
        "ranking_softmax_loss",
        "summed",
        lambda r, s: (s * r.normal(size=(4, 5)), r.random(size=(4, 5))),
        {"where": some(4, 5) & (np.arange(4) > 0)[:, None], "reduce_fn": jnp.sum},
    ),
    Row(
        "ranking_softmax_loss",
        "per list",
        lambda r, s: (s * r.normal(size=(4, 5)), r.random(size=(4, 5))),
        {"reduce_fn": None},
    ),
    Row("ntxent", "", lambda r, s: (s * r.normal(size=(6, 3)), np.array([0, 1, 0, 1, 2, 0]))),
    Row(
        "ntxent",
        "warm",
        lambda r, s: (s * r.normal(size=(6, 3)), np.array([0, 1, 0, 1, 2, 0])),
        {"temperature": 1.0},
    ),
    Row(
        "triplet_margin_loss",
        "",
        lambda r, s: tuple(s * r.normal(size=(4, 3)) for _ in range(3)),
    ),
    Row(
        "triplet_margin_loss",
        "fourth degree",
        lambda r, s: tuple(r.normal(size=(4, 3)) for _ in range(3)),
        {"norm_degree": 4, "axis": 0, "margin": 2.0},
    ),
    Row("ctc_loss", "", ctc),
    Row("ctc_loss", "blank last", ctc, {"blank_id": 0, "log_epsilon": -1e4}),
    Row("ctc_loss_with_forward_probs", "", ctc),
    Row("dice_loss", "", segmentation),
    Row("dice_loss", "Tversky", segmentation, {"alpha": 0.3, "beta": 0.7, "reduction": "sum"}),
    Row(
        "dice_loss",
        "weighed",
        segmentation,
        {"class_weights": np.array([1.0, 2.0, 3.0]), "ignore_background": True}
        | {"reduction": "none"},
    ),
    Row("dice_loss", "other axes", segmentation, {"axis": (1,), "smooth": 1e-3}),
    Row("multiclass_generalized_dice_loss", "", segmentation),
    Row(
        "multiclass_generalized_dice_loss",
        "foreground",
        segmentation,
        {"ignore_background": True},
    ),
    Row("binary_dice_loss", "", binary),
]


def call(module: Any, row: Row, arguments: tuple[Any, ...]) -> Any:
    keywords = row.keywords
    if module is optax.losses:  # which takes no numpy arrays everywhere
        arguments, keywords = jax.tree.map(_as_jax, (arguments, keywords))
    with jax.numpy_rank_promotion("allow"):
        return getattr(module, row.name)(*arguments, **keywords)


def _as_jax(value: Any) -> Any:
    return jnp.asarray(value) if isinstance(value, np.ndarray) else value


def judged(module: Any, row: Row) -> Callable[..., Any]:
    """Returns the compiled function from arguments to gradient and values."""

    def total(first: Any, *rest: Any) -> Any:
        out = call(module, row, (first, *rest))
        value = out[0] if isinstance(out, tuple) else out
        weights = jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape)
        return jnp.sum(weights * value), out

    return jax.jit(jax.grad(total, has_aux=True))


def made(row: Row, scale: float, dtype: Any) -> tuple[Any, ...]:
    arguments = row.arguments(np.random.default_rng(7), scale)
    return tuple(
        a.astype(dtype) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
        for a in arguments
    )


def ids(row: Row) -> str:
    return f"{row.name}-{row.what}"


# float32: the same formula, with sums in another order here and there; float64: the same.
TOLERANCE = {jnp.float32: 3e-6, jnp.float64: 1e-12}


@pytest.mark.filterwarnings("ignore:The function convex_kl_divergence:DeprecationWarning")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("row", ROWS, ids=ids)
def test_the_values_and_gradients_are_those_of_optax(row: Row, dtype: Any) -> None:
    bar = TOLERANCE[dtype]
    with jax.enable_x64(dtype == jnp.float64):
        ours, theirs = judged(losses, row), judged(optax.losses, row)
        for scale in (1.0, 1e3) if row.extreme else (1.0,):
            arguments = made(row, scale, dtype)
            # As numpy arrays: to index a jax array by a mask compiles for every count.
            (gradient, values), (wanted, wanted_values) = jax.device_get(
                (ours(*arguments), theirs(*arguments))
            )
            pairs = zip(jax.tree.leaves(values), jax.tree.leaves(wanted_values), strict=True)
            for a, b in pairs:
                assert a.shape == b.shape and a.dtype == b.dtype == dtype
                assert np.isfinite(b).all()
                np.testing.assert_allclose(a, b, rtol=bar, atol=bar * max(1.0, scale / 100))
            fine = np.isfinite(wanted)
            assert np.isfinite(gradient).all()
            np.testing.assert_allclose(
                gradient[fine], wanted[fine], rtol=10 * bar, atol=10 * bar
            )


@pytest.mark.parametrize("row", {row.name: row for row in ROWS}.values(), ids=ids)
def test_numpy_and_bfloat16_inputs_work(row: Row) -> None:
    @jax.jit
    def both(half: tuple[Any, ...]) -> Any:
        # The numpy arrays are no arguments: the loss gets them as they are.
        full = call(losses, row, made(row, 1.0, np.float32))
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(full))
        return full, call(losses, row, half)

    full, half = both(made(row, 1.0, jnp.bfloat16))
    for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(half), strict=True):
        # The inputs are rounded to 8 bits; ntxent divides by a temperature of 0.07.
        np.testing.assert_allclose(a, np.asarray(b, np.float32), rtol=0.2, atol=0.5)


def test_every_loss_of_optax_is_here_and_has_a_row() -> None:
    names = {name for name, value in vars(optax.losses).items() if inspect.isfunction(value)}
    assert len(names) == 32
    assert names <= set(losses.__all__)
    assert names - {row.name for row in ROWS} == {"make_fenchel_young_loss"}
    assert set(losses.__all__) - names == {"absolute_error"}


def test_a_loss_by_its_maximum_is_optax_fenchel_young_loss() -> None:
    scores, targets = jnp.array([[1.0, 2.0, -1.0]] * 2), jnp.array([[0.0, 1.0, 0.0]] * 2)
    mine = losses.make_fenchel_young_loss(jax.nn.logsumexp)
    theirs = optax.losses.make_fenchel_young_loss(jax.nn.logsumexp)
    np.testing.assert_array_equal(mine(scores, targets), theirs(scores, targets))
    np.testing.assert_allclose(
        mine(scores, targets), losses.softmax_cross_entropy(scores, targets), rtol=1e-6
    )
