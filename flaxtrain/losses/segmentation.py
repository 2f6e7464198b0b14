"""Overlap losses for segmentation.

For class `c`, probabilities `p` and targets `t` of the pixels:

    overlap = sum p t      false positives F+ = sum p - overlap      false negatives F- = sum t
    - overlap dice_loss_c = 1 - (overlap + smooth) / (overlap + alpha F+ + beta F- + smooth)

`alpha = beta = 1/2` is Dice's coefficient: Milletari et al. 2016, arXiv:1606.04797 (V-Net).
Other values: Salehi et al. 2017, arXiv:1706.05721 (Tversky). Classes weighed by
`1 / (sum t)^2`: Sudre et al. 2017, arXiv:1707.03237 (generalised).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import check_choice, check_flag, check_number, is_concrete
from flaxtrain.errors import LossError
from flaxtrain.losses.inputs import Axes, real, same_shape
from flaxtrain.typing import Array, ArrayLike, Float

__all__ = ["binary_dice_loss", "dice_loss", "multiclass_generalized_dice_loss"]


def dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    smooth: ArrayLike = 1.0,
    alpha: ArrayLike = 0.5,
    beta: ArrayLike = 0.5,
    apply_softmax: bool = True,
    reduction: str = "mean",
    ignore_background: bool = False,
    axis: Axes = None,
) -> Float[Array, "*shape"]:
    """Returns one minus the overlap of prediction and target, per example.

    Args:
        predictions: logits, or probabilities with `apply_softmax=False`,
            `[batch, ..., classes]`; one class, or no axis for it, is a yes-or-no map.
        targets: one-hot targets (0 or 1 for one class), of the same shape up to an axis of size
            1 at the end.
        class_weights: a factor for the loss of every class, `[classes]`.
        smooth: added to both sides of the fraction, >= 0; 0 makes an empty class NaN.
        alpha: weight of false positives, >= 0.
        beta: weight of false negatives, >= 0.
        apply_softmax: whether predictions are logits: softmax over the classes, sigmoid for
            one.
        reduction: over the classes: `"mean"`, `"sum"` or `"none"`.
        ignore_background: leave class 0 out, where there are several.
        axis: the axes of the pixels; None for all but the first and the last.

    Returns:
        `[batch]`, or `[batch, classes]` without a reduction.

    Raises:
        LossError: the shapes don't fit, or the predictions are no probabilities where they
            should be (checked outside `jit` only).
        ArgumentError: `smooth`, `alpha` or `beta` is negative, `reduction` unknown.

    Example:
        >>> targets = jnp.array([[[1.0], [0.0]]])
        >>> print(dice_loss(jnp.array([[[9.0], [-9.0]]]), targets).round(4))
        [0.0001]
        >>> print(dice_loss(jnp.array([[[-9.0], [9.0]]]), targets).round(2))
        [0.5]

    Source: Milletari et al. 2016, arXiv:1606.04797; Salehi et al. 2017, arXiv:1706.05721.
    """
    for argument, value in (("smooth", smooth), ("alpha", alpha), ("beta", beta)):
        check_number(argument, value, minimum=0.0, where="dice_loss")
    check_flag("apply_softmax", apply_softmax, where="dice_loss")
    check_flag("ignore_background", ignore_background, where="dice_loss")
    check_choice("reduction", reduction, ("mean", "sum", "none"), where="dice_loss")
    p, t = _maps("dice_loss", predictions, targets)
    p = _softmax(p) if apply_softmax else _probabilities("dice_loss", p)
    pixels = tuple(range(1, p.ndim - 1)) if axis is None else axis
    overlap = jnp.sum(p * t, axis=pixels)
    false_positives = jnp.sum(p, axis=pixels) - overlap
    false_negatives = jnp.sum(t, axis=pixels) - overlap
    union = overlap + alpha * false_positives + beta * false_negatives
    loss = 1.0 - (overlap + smooth) / (union + smooth)
    if class_weights is not None:
        loss = loss * _weights("dice_loss", class_weights, loss)
    if ignore_background and p.shape[-1] > 1:
        loss = loss[..., 1:]
    if reduction == "none":
        return loss
    return jnp.mean(loss, axis=-1) if reduction == "mean" else jnp.sum(loss, axis=-1)


def multiclass_generalized_dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    smooth: ArrayLike = 1.0,
    apply_softmax: bool = True,
    ignore_background: bool = False,
) -> Float[Array, ""]:
    """Returns the Dice loss with classes weighed by the inverse square of their frequency.

    The weights come from the whole batch and have mean 1. A class that the batch lacks has by
    far the largest one.

    Args:
        predictions: logits, or probabilities with `apply_softmax=False`,
            `[batch, ..., classes]`.
        targets: one-hot targets of the same shape.
        smooth: added to both sides of the fraction, >= 0.
        apply_softmax: whether predictions are logits.
        ignore_background: leave class 0 out of the mean.

    Returns:
        A scalar, the mean over batch and classes.

    Raises:
        LossError: the shapes differ.
        ArgumentError: `smooth` is negative.

    Example:
        >>> targets = jax.nn.one_hot(jnp.array([[0, 1, 1, 1]]), 2)
        >>> print(multiclass_generalized_dice_loss(jnp.zeros((1, 4, 2)), targets).round(4))
        0.3886

    Source: Sudre et al. 2017, arXiv:1707.03237, equation 1 for the weights.
    """
    name = "multiclass_generalized_dice_loss"
    (predictions,), targets = real(name, predictions=predictions), jnp.asarray(targets)
    same_shape(name, predictions=predictions, targets=targets)
    frequency = jnp.sum(targets, axis=tuple(range(targets.ndim - 1)))
    weights = 1.0 / (jnp.square(frequency) + 1e-7)  # the same floor for an absent class
    weights = weights / jnp.sum(weights) * len(weights)
    return jnp.mean(
        dice_loss(
            predictions,
            targets,
            class_weights=weights,
            smooth=smooth,
            apply_softmax=apply_softmax,
            reduction="none",
            ignore_background=ignore_background,
        )
    )


def binary_dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    smooth: ArrayLike = 1.0,
    apply_sigmoid: bool = True,
) -> Float[Array, "*shape"]:
    """Returns the Dice loss of a yes-or-no map, per example.

    Args:
        predictions: logits, or probabilities with `apply_sigmoid=False`, `[batch, ...]` with or
            without an axis of size 1 at the end.
        targets: 0 or 1, of the same shape up to that axis.
        smooth: added to both sides of the fraction, >= 0.
        apply_sigmoid: whether predictions are logits.

    Returns:
        The loss, `[batch]`.

    Raises:
        LossError: the shapes don't fit, or the predictions are no probabilities where they
            should be (checked outside `jit` only).
        ArgumentError: `smooth` is negative.

    Example:
        >>> print(binary_dice_loss(jnp.array([[9.0, -9.0]]), jnp.array([[1.0, 0.0]])).round(4))
        [0.0001]
    """
    (predictions,), targets = (
        real("binary_dice_loss", predictions=predictions),
        jnp.asarray(targets),
    )
    if predictions.ndim == targets.ndim and predictions.shape[-1:] != (1,):
        predictions, targets = predictions[..., None], targets[..., None]
    return dice_loss(predictions, targets, smooth=smooth, apply_softmax=apply_sigmoid)


def _maps(name: str, predictions: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
    (p,), t = real(name, predictions=predictions), jnp.asarray(targets)
    if p.ndim == t.ndim - 1:
        p = p[..., None]
    if t.ndim == p.ndim - 1:
        t = t[..., None]
    same_shape(name, predictions=p, targets=t)
    return p, t


def _softmax(logits: Array) -> Array:
    if logits.shape[-1] == 1:
        return jax.nn.sigmoid(logits)
    return jax.nn.softmax(logits, axis=-1)


def _probabilities(name: str, p: Array) -> Array:
    """Returns probabilities, checked where they are known: rows that sum to 1, or in [0, 1]."""
    if is_concrete(p) and p.size:
        values = np.asarray(p, np.float64)
        single = p.shape[-1] == 1
        total = values if single else values.sum(axis=-1)
        if single:
            fine = np.all((total >= 0) & (total <= 1))
        else:
            # A softmax in this dtype rounds its quotients, and its sum over the classes.
            rounding = float(jnp.finfo(p.dtype).eps) * (1 + 0.5 * math.log2(p.shape[-1]))
            fine = np.all(np.abs(total - 1.0) <= max(1e-5, rounding))
        if not fine:
            what = "lie" if single else "sum over the classes to values"
            raise LossError(
                f"predictions {what} in [{total.min():.6f}, {total.max():.6f}]",
                where=name,
                fix="pass probabilities, or logits with apply_softmax=True",
            )
    return p


def _weights(name: str, class_weights: ArrayLike, loss: Array) -> Array:
    weights = jnp.asarray(class_weights)
    if weights.shape != loss.shape[-1:]:
        raise LossError(
            f"class_weights have shape {weights.shape}, for {loss.shape[-1]} classes",
            where=name,
            fix=f"give one weight for every class: shape {loss.shape[-1:]}",
        )
    return jnp.broadcast_to(weights, loss.shape)
