"""Connectionist temporal classification.

Graves et al. 2006, "Connectionist temporal classification: labelling unsegmented sequence data
with recurrent neural networks". The likelihood of labels `y_1 ... y_N` is summed over all paths
of `T` frames that give them when repetitions are merged and blanks dropped. Forward variables,
in log space, per frame `t`:

    blank(t, n)  paths that have emitted y_1 ... y_n and stand on a blank,       n = 0 ... N
    label(t, n)  paths that have emitted y_1 ... y_n and stand on y_n,           n = 1 ... N
    ready        = log+( blank(t-1, n-1), label(t-1, n-1) unless y_n = y_{n-1} )
    label(t, n)  = log+( ready, label(t-1, n) ) + log p(t, y_n)
    blank(t, n)  = log+( blank(t-1, n), label(t-1, n) ) + log p(t, blank)

`log+` is log-add-exp. A repeated label needs a blank between, hence the exception. The loss is
`-log+( blank(T, N), label(T, N) )`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_integer, check_number
from flaxtrain.errors import ArgumentError, LossError
from flaxtrain.losses.inputs import class_indices, known_label, real
from flaxtrain.typing import Array, ArrayLike, Bool, Float, Int

__all__ = ["ctc_loss", "ctc_loss_with_forward_probs"]


class _Problem(NamedTuple):
    """A batch of sequences, checked: logits, labels and where they are padding."""

    logits: Float[Array, "batch frames classes"]
    padded_frame: Bool[Array, "batch frames"]
    labels: Int[Array, "batch labels"]
    padded_label: Bool[Array, "batch labels"]


def ctc_loss(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
) -> Float[Array, " batch"]:
    """Returns the negative log-likelihood of label sequences under all their alignments.

    Args:
        logits: `[batch, frames, classes]`, the blank among the classes.
        logit_paddings: `[batch, frames]`, 1 where a frame is padding, else 0.
        labels: `[batch, labels]`, class indices without blanks. One outside `[0, classes)` that
            is no padding makes the loss NaN.
        label_paddings: `[batch, labels]`, 1 where a label is padding; padding stands at the
            end.
        blank_id: class of the blank, in `[0, classes)`.
        log_epsilon: stands for the logarithm of 0, < 0. Labels that don't fit into the frames
            have a loss of about `-log_epsilon`.

    Returns:
        The loss in nats, `[batch]`.

    Raises:
        LossError: the shapes don't fit.
        ArgumentError: `blank_id` or `log_epsilon` is out of range.
        ArgumentTypeError: the logits are not floating-point numbers, or the labels no integers.

    Example:
        >>> logits = jnp.zeros((1, 2, 3))  # 9 equally likely paths; 3 of them read as [1]
        >>> loss = ctc_loss(logits, jnp.zeros((1, 2)), jnp.array([[1]]), jnp.zeros((1, 1)))
        >>> print(loss.round(4), jnp.log(3.0).round(4))
        [1.0986] 1.0986

    Source: Graves et al. 2006, equations 6 to 8.
    """
    loss, _, _ = ctc_loss_with_forward_probs(
        logits,
        logit_paddings,
        labels,
        label_paddings,
        blank_id=blank_id,
        log_epsilon=log_epsilon,
    )
    return loss


def ctc_loss_with_forward_probs(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
) -> tuple[
    Float[Array, " batch"],
    Float[Array, "frames batch prefixes"],
    Float[Array, "frames batch labels"],
]:
    """Returns `ctc_loss` and the forward variables it was computed from.

    Args:
        logits: `[batch, frames, classes]`, the blank among the classes.
        logit_paddings: `[batch, frames]`, 1 where a frame is padding, else 0.
        labels: `[batch, labels]`, class indices without blanks.
        label_paddings: `[batch, labels]`, 1 where a label is padding; padding stands at the
            end.
        blank_id: class of the blank, in `[0, classes)`.
        log_epsilon: stands for the logarithm of 0, < 0.

    Returns:
        `(loss, blank, label)`: the loss `[batch]`, and the logarithms of the forward variables,
        of shapes `[frames, batch, labels + 1]` and `[frames, batch, labels]`. The last frame of
        `blank` holds the sum of both: minus the loss of every prefix of the labels.

    Raises:
        LossError: the shapes don't fit.
        ArgumentError: `blank_id` or `log_epsilon` is out of range.
        ArgumentTypeError: the logits are not floating-point numbers, or the labels no integers.

    Example:
        >>> loss, blank, label = ctc_loss_with_forward_probs(
        ...     jnp.zeros((1, 2, 3)), jnp.zeros((1, 2)), jnp.array([[1]]), jnp.zeros((1, 1))
        ... )
        >>> print(blank.shape, label.shape, (loss + blank[-1, :, 1]).round(4))
        (2, 1, 2) (2, 1, 1) [0.]
    """
    problem = _problem(logits, logit_paddings, labels, label_paddings)
    check_number("log_epsilon", log_epsilon, maximum=0.0, exclude=(0.0,), where="ctc_loss")
    classes = problem.logits.shape[-1]
    check_integer("blank_id", blank_id, minimum=0, where="ctc_loss")
    if blank_id >= classes:
        raise ArgumentError(
            f"blank_id={blank_id} is no class",
            where="ctc_loss",
            fix=f"pass an index below {classes}, the number of classes",
        )
    log_blank, log_label = _frame_log_probabilities(problem, blank_id, log_epsilon)
    batch, count = problem.labels.shape
    zero = jnp.full((batch, count), log_epsilon, log_blank.dtype)
    start = (jnp.concatenate([jnp.zeros_like(log_blank[0]), zero], axis=1), zero)
    repeated = problem.labels[:, 1:] == problem.labels[:, :-1]
    # The last label has no successor to be told apart from.
    barred = jnp.pad(repeated, ((0, 0), (0, 1)))[:, :count] * jnp.asarray(log_epsilon)

    def frame(
        carry: tuple[Array, Array], now: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        blank, label = carry
        log_p_blank, log_p_label, padded = now
        ready = _log_add(blank, label + barred)[:, :-1]
        new_label = jnp.logaddexp(ready, label) + log_p_label
        new_blank = _log_add(blank, label) + jnp.broadcast_to(log_p_blank, blank.shape)
        carry = (
            jnp.where(padded[:, None], blank, new_blank),
            jnp.where(padded[:, None], label, new_label),
        )
        return carry, carry

    frames = (log_blank, log_label, problem.padded_frame.T)
    (last_blank, last_label), (blank, label) = jax.lax.scan(frame, start, frames)
    total = _log_add(last_blank, last_label)
    if blank.shape[0]:
        blank = blank.at[-1].set(total)
    lengths = jnp.sum(~problem.padded_label, axis=1, keepdims=True)
    return -jnp.take_along_axis(total, lengths, axis=1)[:, 0], blank, label


def _log_add(blank: Array, label: Array) -> Array:
    """Adds, in log space, the paths that stand on label n to those on the blank after it."""
    return jnp.concatenate([blank[:, :1], jnp.logaddexp(blank[:, 1:], label)], axis=1)


def _frame_log_probabilities(
    problem: _Problem, blank_id: int, log_epsilon: ArrayLike
) -> tuple[Array, Array]:
    """Returns log p of the blank, `[frames, batch, 1]`, and of every label."""
    # What stands in padded frames, NaN included, must not reach a derivative.
    logits = jnp.where(problem.padded_frame[..., None], 0.0, problem.logits)
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    log_p = jnp.where(log_p == -jnp.inf, log_epsilon, log_p)
    index, known = known_label(problem.labels, log_p.shape[-1])
    frames = log_p.shape[1]
    log_label = jnp.take_along_axis(
        log_p, jnp.broadcast_to(index[:, None, :], (len(index), frames, index.shape[1])), axis=2
    )
    stand_in = jnp.where(problem.padded_label, 0.0, jnp.nan)[:, None, :]
    log_label = jnp.where(
        known[:, None, :], log_label, jnp.broadcast_to(stand_in, log_label.shape)
    )
    log_blank = log_p[:, :, blank_id : blank_id + 1]
    return log_blank.swapaxes(0, 1), log_label.swapaxes(0, 1).astype(log_p.dtype)


def _problem(
    logits: ArrayLike, logit_paddings: ArrayLike, labels: ArrayLike, label_paddings: ArrayLike
) -> _Problem:
    (logits,) = real("ctc_loss", logits=logits)
    labels = class_indices("ctc_loss", labels)
    padded_frame, padded_label = (jnp.asarray(p) != 0 for p in (logit_paddings, label_paddings))
    wanted = (
        logits.ndim == 3
        and padded_frame.shape == logits.shape[:2]
        and labels.ndim == 2
        and labels.shape[0] == logits.shape[0]
        and padded_label.shape == labels.shape
    )
    if not wanted:
        raise LossError(
            f"logits have shape {logits.shape}, logit_paddings {padded_frame.shape}, "
            f"labels {labels.shape}, label_paddings {padded_label.shape}",
            where="ctc_loss",
            fix="give [batch, frames, classes], [batch, frames], [batch, labels] twice",
        )
    return _Problem(logits, padded_frame, labels, padded_label)
