"""The hard losses against slow, obvious versions in NumPy float64."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain import losses


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def ctc_by_enumeration(logits: np.ndarray, labels: list[int], blank: int) -> float:
    """Sums the probabilities of all paths that read as the labels."""
    log_p = log_softmax(logits)
    total = 0.0
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        merged = [k for k, _ in itertools.groupby(path)]
        if [k for k in merged if k != blank] == labels:
            total += np.exp(sum(log_p[t, k] for t, k in enumerate(path)))
    return -np.log(total) if total else np.inf


@functools.partial(jax.jit, static_argnums=4)
def compiled_ctc(*arguments: Any) -> Any:
    *arrays, blank = arguments
    return losses.ctc_loss_with_forward_probs(*arrays, blank_id=blank)


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("labels", [[], [1], [1, 1], [3, 1], [1, 1, 3], [3, 3, 3]], ids=str)
def test_ctc_is_the_sum_over_all_alignments(labels: list[int], blank: int) -> None:
    frames, classes, room = 5, 4, 3
    logits = np.random.default_rng(3).normal(size=(1, frames, classes))
    for used in (frames, frames - 1):
        frame_padding = (np.arange(frames) >= used).astype(float)[None]
        padded = np.array([labels + [1] * (room - len(labels))])
        label_padding = (np.arange(room) >= len(labels)).astype(float)[None]
        expected = ctc_by_enumeration(logits[0, :used], labels, blank)
        with jax.enable_x64(True):
            loss, blanks, _ = compiled_ctc(logits, frame_padding, padded, label_padding, blank)
        if np.isinf(expected):  # three equal labels need five frames
            assert loss[0] > 1e4
        else:
            np.testing.assert_allclose(loss[0], expected, rtol=1e-12)
        for n in range(len(labels)):
            np.testing.assert_allclose(
                -blanks[-1, 0, n], ctc_by_enumeration(logits[0, :used], labels[:n], blank)
            )


def test_the_gradient_of_ctc_is_that_of_finite_differences() -> None:
    logits = np.random.default_rng(4).normal(size=(1, 4, 3))
    nothing, labels, padding = np.zeros((1, 4)), np.array([[1, 1, 2]]), np.array([[0, 0, 1]])

    @jax.jit
    def loss(x: np.ndarray) -> jax.Array:
        return losses.ctc_loss(x, nothing, labels, padding)[0]

    with jax.enable_x64(True):
        gradient = jax.grad(loss)(jnp.asarray(logits))
        for index in np.ndindex(logits.shape):
            step = np.zeros_like(logits)
            step[index] = 1e-6
            slope = (loss(logits + step) - loss(logits - step)) / 2e-6
            # Central differences of step 1e-6 lose about half of the digits.
            np.testing.assert_allclose(gradient[index], slope, atol=1e-8)


def test_ntxent_is_the_mean_over_positive_pairs() -> None:
    rng = np.random.default_rng(5)
    x, labels, temperature = rng.normal(size=(7, 4)), [0, 1, 0, 2, 1, 0, 3], 0.3
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    terms = []
    for i, j in itertools.permutations(range(7), 2):
        if labels[i] == labels[j]:
            others = [k for k in range(7) if labels[k] != labels[i]]
            scores = np.exp(unit[[j, *others]] @ unit[i] / temperature)
            terms.append(-np.log(scores[0] / scores.sum()))
    with jax.enable_x64(True):
        loss = jax.jit(lambda x: losses.ntxent(x, np.array(labels), temperature))(x)
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.3, 0.7), (1.0, 0.0)])
def test_dice_counts_overlap_and_mistakes(alpha: float, beta: float) -> None:
    rng = np.random.default_rng(6)
    logits, labels = rng.normal(size=(2, 3, 3, 4)), rng.integers(0, 4, size=(2, 3, 3))
    p, expected = np.exp(log_softmax(logits)), np.zeros((2, 4))
    for example, c in np.ndindex(2, 4):
        hit = wrong = missed = 0.0
        for i, j in np.ndindex(3, 3):
            here = labels[example, i, j] == c
            hit += p[example, i, j, c] * here
            wrong += p[example, i, j, c] * (not here)
            missed += (1 - p[example, i, j, c]) * here
        expected[example, c] = 1 - (hit + 0.1) / (hit + alpha * wrong + beta * missed + 0.1)
    with jax.enable_x64(True):
        loss = losses.dice_loss(
            logits, np.eye(4)[labels], smooth=0.1, alpha=alpha, beta=beta, reduction="none"
        )
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_the_generalised_dice_loss_weighs_classes_by_their_inverse_squared_size() -> None:
    targets = np.eye(3)[[[0, 0, 0, 1, 1, 2]]]
    per_class = np.asarray(losses.dice_loss(np.zeros((1, 6, 3)), targets, reduction="none"))
    weights = np.array([1 / 9, 1 / 4, 1.0])
    weights *= 3 / weights.sum()
    loss = losses.multiclass_generalized_dice_loss(np.zeros((1, 6, 3)), targets)
    np.testing.assert_allclose(loss, (per_class * weights).mean(), rtol=1e-6)


def test_the_sparsemax_loss_is_the_conjugate_minus_the_label_s_score() -> None:
    """The distribution is found by bisection on its threshold."""
    rng, label = np.random.default_rng(7), 2

    @jax.jit
    @jax.value_and_grad
    def sparsemax(scores: jax.Array) -> jax.Array:
        return losses.multiclass_sparsemax_loss(scores, np.array([label])).sum()

    for size in (0.3, 1.0, 100.0):
        s = size * rng.normal(size=6)
        low, high = s.min() - 1, s.max()
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if np.maximum(s - middle, 0).sum() > 1 else (low, middle)
        p = np.maximum(s - low, 0)
        one_hot = np.eye(6)[label]
        expected = p @ s - p @ p / 2 - s[label] + 0.5
        with jax.enable_x64(True):
            loss, slope = sparsemax(s[None])
            np.testing.assert_allclose(slope[0], p - one_hot, atol=1e-9)
        np.testing.assert_allclose(loss, expected, rtol=1e-9, atol=1e-9)


def test_the_focal_loss_is_its_formula() -> None:
    logits, labels = np.array([-3.0, -0.5, 0.2, 2.0]), np.array([0.0, 1.0, 0.0, 1.0])
    p = 1 / (1 + np.exp(-logits))
    right = np.where(labels == 1, p, 1 - p)
    weight = np.where(labels == 1, 0.25, 0.75)
    with jax.enable_x64(True):
        loss = losses.sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=1.5)
    np.testing.assert_allclose(loss, -weight * (1 - right) ** 1.5 * np.log(right), rtol=1e-12)
