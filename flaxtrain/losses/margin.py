"""Losses that ask for a margin, and their sparse relatives.

For a score `s` and a label `y` in {-1, 1}; for scores `s_i` and a class `y`:

    hinge_loss       max(0, 1 - y s)   multiclass_hinge_loss       max_i (s_i + [i != y]) - s_y
    perceptron_loss  max(0, -y s)      multiclass_perceptron_loss  max_i s_i - s_y
    sparsemax_loss   the Fenchel-Young loss of the sparsemax, for two classes and for many

Crammer & Singer 2001 (hinge). Collins 2002 (perceptron). Martins & Astudillo 2016,
arXiv:1602.02068 (sparsemax); Blondel, Martins & Niculae 2020, arXiv:1901.02324.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flaxtrain.losses.inputs import at_label, integer_labels, pair, real, same_shape
from flaxtrain.typing import Array, ArrayLike, Float, Inexact

__all__ = [
    "hinge_loss",
    "multiclass_hinge_loss",
    "multiclass_perceptron_loss",
    "multiclass_sparsemax_loss",
    "perceptron_loss",
    "sparsemax_loss",
]


def hinge_loss(predictor_outputs: ArrayLike, targets: ArrayLike) -> Inexact[Array, "*shape"]:
    """Returns `max(0, 1 - y s)`, element by element.

    Args:
        predictor_outputs: scores `s`, any shape.
        targets: labels `y`, -1 or 1, of that shape or broadcast to it.

    Raises:
        LossError: the shapes don't fit.
        ArgumentTypeError: the scores are not floating-point numbers.

    Example:
        >>> print(hinge_loss(jnp.array([2.0, 0.5, -1.0]), jnp.array([1, 1, 1])))
        [0.  0.5 2. ]
    """
    (scores,) = real("hinge_loss", predictor_outputs=predictor_outputs)
    scores, targets = pair("hinge_loss", predictor_outputs=scores, targets=targets)
    return jnp.maximum(0, 1 - scores * targets)


def perceptron_loss(
    predictor_outputs: ArrayLike, targets: ArrayLike
) -> Inexact[Array, "*shape"]:
    """Returns `max(0, -y s)`, element by element.

    Args:
        predictor_outputs: scores `s`, any shape.
        targets: labels `y`, -1 or 1, of the same shape.

    Raises:
        LossError: the shapes differ.
        ArgumentTypeError: the scores are not floating-point numbers.

    Example:
        >>> print(perceptron_loss(jnp.array([2.0, -1.0]), jnp.array([1, 1])))
        [0. 1.]
    """
    (scores,) = real("perceptron_loss", predictor_outputs=predictor_outputs)
    targets = jnp.asarray(targets)
    same_shape("perceptron_loss", predictor_outputs=scores, targets=targets)
    return jnp.maximum(0, -scores * targets)


def sparsemax_loss(logits: ArrayLike, labels: ArrayLike) -> Float[Array, "*shape"]:
    """Returns the binary sparsemax loss, element by element.

    Zero beyond a margin of 1 on the right side, a parabola around zero, a straight line beyond
    1 on the wrong side.

    Args:
        logits: scores, any shape.
        labels: 0 or 1, of that shape or broadcast to it.

    Raises:
        LossError: the shapes don't fit.
        ArgumentTypeError: the logits are not floating-point numbers.

    Example:
        >>> print(sparsemax_loss(jnp.array([2.0, 0.0, -2.0]), jnp.array([1, 1, 1])))
        [0.   0.25 2.  ]

    Source: Blondel, Martins & Niculae 2020, arXiv:1901.02324, section 4.4.
    """
    (logits,) = real("sparsemax_loss", logits=logits)
    logits, labels = pair("sparsemax_loss", logits=logits, labels=labels)
    return jax.nn.sparse_plus(jnp.where(labels.astype(bool), -logits, logits))


def multiclass_hinge_loss(scores: ArrayLike, labels: ArrayLike) -> Float[Array, "*shape"]:
    """Returns `max_i (s_i + [i != y]) - s_y`: zero when the class leads by 1.

    Args:
        scores: scores of the classes, `[..., classes]`.
        labels: the index of the true class, `[...]`; one outside `[0, classes)` gives NaN.

    Returns:
        The loss, `[...]`, float32 also for scores of half precision.

    Raises:
        LossError: `labels` is not one index for every row.
        ArgumentTypeError: the scores are not floating-point numbers, or the labels no integers.

    Example:
        >>> print(multiclass_hinge_loss(jnp.array([[3.0, 1.0, 2.5]]), jnp.array([0])))
        [0.5]
    """
    scores = _wide("multiclass_hinge_loss", scores)
    labels = integer_labels("multiclass_hinge_loss", scores, labels)
    wrong = 1.0 - jax.nn.one_hot(labels, scores.shape[-1], dtype=scores.dtype)
    return jnp.max(scores + wrong, axis=-1) - at_label(scores, labels)


def multiclass_perceptron_loss(scores: ArrayLike, labels: ArrayLike) -> Float[Array, "*shape"]:
    """Returns `max_i s_i - s_y`: zero when the class has the best score.

    Args:
        scores: scores of the classes, `[..., classes]`.
        labels: the index of the true class, `[...]`; one outside `[0, classes)` gives NaN.

    Returns:
        The loss, `[...]`, float32 also for scores of half precision.

    Raises:
        LossError: `labels` is not one index for every row.
        ArgumentTypeError: the scores are not floating-point numbers, or the labels no integers.

    Example:
        >>> print(multiclass_perceptron_loss(jnp.array([[3.0, 1.0, 4.5]]), jnp.array([0])))
        [1.5]
    """
    scores = _wide("multiclass_perceptron_loss", scores)
    labels = integer_labels("multiclass_perceptron_loss", scores, labels)
    return jnp.max(scores, axis=-1) - at_label(scores, labels)


def multiclass_sparsemax_loss(scores: ArrayLike, labels: ArrayLike) -> Float[Array, "*shape"]:
    """Returns the sparsemax loss: `p . s - s_y + (1 - p . p) / 2` with `p = sparsemax(s)`.

    Its gradient is `p` minus the one-hot label, and it is zero when the class leads by 1.

    Args:
        scores: scores of the classes, `[..., classes]`.
        labels: the index of the true class, `[...]`; one outside `[0, classes)` gives NaN.

    Returns:
        The loss, `[...]`, float32 also for scores of half precision.

    Raises:
        LossError: `labels` is not one index for every row.
        ArgumentTypeError: the scores are not floating-point numbers, or the labels no integers.

    Example:
        >>> scores = jnp.array([[0.0, 0.0], [9.0, 0.0]])
        >>> print(multiclass_sparsemax_loss(scores, jnp.array([0, 0])))
        [0.25 0.  ]

    Source: Martins & Astudillo 2016, arXiv:1602.02068, equation 15.
    """
    scores = _wide("multiclass_sparsemax_loss", scores)
    labels = integer_labels("multiclass_sparsemax_loss", scores, labels)
    # Scores relative to the label's: p . s - s_y is then small where the scores are large.
    relative = scores - at_label(scores, labels)[..., None]
    p = _simplex_projection(relative)
    gain = jnp.sum(p * jnp.where(p > 0, relative, 0.0), axis=-1)
    return gain + 0.5 * (1.0 - jnp.sum(jnp.square(p), axis=-1))


def _wide(name: str, scores: ArrayLike) -> Array:
    """Returns scores in jax's default float at least, which is the dtype of these losses."""
    (scores,) = real(name, scores=scores)
    return scores.astype(jnp.promote_types(scores.dtype, jnp.result_type(float)))


def _simplex_projection(scores: Array) -> Array:
    """Returns the sparsemax of the last axis: the nearest distribution to the scores."""
    scores = scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    ordered = -jnp.sort(-scores, axis=-1)
    sums = jnp.cumsum(ordered, axis=-1)
    rank = jnp.broadcast_to(
        jnp.arange(1, scores.shape[-1] + 1, dtype=scores.dtype), scores.shape
    )
    support = jnp.sum(1 + rank * ordered > sums, axis=-1, keepdims=True)
    # NaN scores have no support; the index must exist all the same.
    last = jnp.take_along_axis(sums, jnp.maximum(support - 1, 0), axis=-1)
    threshold = (last - 1) / support
    return jnp.maximum(scores - threshold, 0.0)
