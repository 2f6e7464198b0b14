"""Where Optax gives NaN, raises, or silently does something else than was meant."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxtrain as ft
from flaxtrain import losses

INF = np.inf


def slope(function: Any, *arguments: Any, **keywords: Any) -> jax.Array:
    """Returns the gradient of the sum by the first argument, compiled as one program."""
    return jax.jit(jax.grad(lambda x: jnp.sum(function(x, *arguments[1:], **keywords))))(
        jnp.asarray(arguments[0], jnp.float32)
    )


def value(function: Any, *arguments: Any, **keywords: Any) -> jax.Array:
    """Returns the loss, compiled as one program: without jit every operation is one."""
    return jax.jit(lambda: function(*arguments, **keywords))()


def test_a_class_of_probability_zero_that_is_not_asked_for_costs_nothing() -> None:
    logits, labels = jnp.array([[0.0, 1.0, -INF]]), jnp.array([[1.0, 0.0, 0.0]])
    assert np.isnan(optax.softmax_cross_entropy(logits, labels)).all()
    expected = optax.safe_softmax_cross_entropy(logits, labels)
    for loss in (losses.softmax_cross_entropy, losses.safe_softmax_cross_entropy):
        np.testing.assert_allclose(loss(logits, labels), expected, rtol=1e-6)
        gradient = slope(loss, logits, labels)
        np.testing.assert_allclose(gradient, jax.nn.softmax(logits) - labels, atol=1e-6)
        # The derivative by the labels is the log-probability, also where the label is 0.
        by_label = jax.grad(lambda y, f=loss: f(logits, y).sum())(labels)
        assert by_label[0, 2] == INF and np.isfinite(by_label[0, :2]).all()
        tangent = jax.jvp(lambda x, f=loss: f(x, labels), (logits,), (jnp.ones((1, 3)),))[1]
        np.testing.assert_allclose(tangent, 0.0, atol=1e-6)
    np.testing.assert_allclose(
        losses.poly_loss_cross_entropy(logits, labels), expected + 2 * 0.7310586, rtol=1e-6
    )


def test_infinite_log_odds_on_the_right_side_cost_nothing() -> None:
    logits, labels = jnp.array([INF, -INF, 0.0]), jnp.array([1.0, 0.0, 1.0])
    assert np.isnan(optax.sigmoid_binary_cross_entropy(logits, labels)[:2]).all()
    for loss in (losses.sigmoid_binary_cross_entropy, losses.sigmoid_focal_loss):
        assert np.array_equal(loss(logits, labels)[:2], [0.0, 0.0])
        assert np.array_equal(slope(loss, logits, labels)[:2], [0.0, 0.0])


def test_a_target_of_zero_has_a_divergence_and_a_derivative() -> None:
    log_q, targets = jnp.array([0.0, -INF]), jnp.array([1.0, 0.0])
    assert np.isnan(optax.kl_divergence(log_q, targets))
    assert losses.kl_divergence(log_q, targets) == 0.0
    assert losses.generalized_kl_divergence(log_q, targets) == 0.0
    finite = jnp.log(jnp.array([0.5, 0.5]))
    assert np.isnan(jax.grad(optax.kl_divergence, argnums=1)(finite, targets)[1])
    by_target = jax.grad(losses.kl_divergence, argnums=1)(finite, targets)
    np.testing.assert_allclose(by_target, [1.693147, 0.693147], rtol=1e-6)
    log_targets = jnp.array([0.0, -INF])
    assert np.isnan(optax.losses.kl_divergence_with_log_targets(log_q, log_targets))
    assert losses.kl_divergence_with_log_targets(log_q, log_targets) == 0.0
    assert np.isfinite(slope(losses.kl_divergence_with_log_targets, finite, log_targets)).all()


def test_a_vector_of_length_zero_has_similarity_zero() -> None:
    zero, other = jnp.zeros((1, 3)), jnp.ones((1, 3))
    assert np.isnan(optax.cosine_similarity(zero, other)).all()
    assert losses.cosine_similarity(zero, other) == 0.0
    assert losses.cosine_distance(zero, zero) == 1.0
    assert not slope(losses.cosine_similarity, other, zero).any()
    assert np.isfinite(slope(losses.cosine_similarity, zero, other)).all()


def test_a_batch_without_positive_pairs_or_negatives_has_a_loss() -> None:
    x = jnp.array([[1.0, 0.0], [0.5, 1.0], [0.3, 0.2]])
    different, equal = jnp.arange(3), jnp.zeros(3, jnp.int32)
    assert np.isnan(value(optax.losses.ntxent, x, different))
    assert value(losses.ntxent, x, different) == 0.0
    assert not slope(losses.ntxent, x, different).any()
    assert losses.ntxent(x, equal) == 0.0
    assert np.isfinite(slope(losses.ntxent, x, equal)).all()


def test_distances_of_an_odd_degree_are_norms() -> None:
    a, p, n = jnp.array([[0.0]]), jnp.array([[1.0]]), jnp.array([[0.5]])
    assert np.isnan(optax.losses.triplet_margin_loss(a, p, n, norm_degree=3)).all()
    loss = losses.triplet_margin_loss(a, p, n, norm_degree=1, eps=0.0)
    np.testing.assert_allclose(loss, [1.5])
    cubes = losses.triplet_margin_loss(a, p, n, norm_degree=3)
    np.testing.assert_allclose(cubes, [1.5], rtol=1e-5)


@pytest.mark.parametrize("label", [-1, 3, 100])
@pytest.mark.parametrize(
    "name",
    [
        "softmax_cross_entropy_with_integer_labels",
        "multiclass_hinge_loss",
        "multiclass_perceptron_loss",
        "multiclass_sparsemax_loss",
    ],
)
def test_a_label_that_is_no_class_gives_nan(name: str, label: int) -> None:
    scores, labels = jnp.array([[1.0, 2.0, 0.0]] * 2), jnp.array([label, 1])
    loss = getattr(losses, name)(scores, labels)
    assert np.isnan(loss[0]) and np.isfinite(loss[1])


def test_an_example_without_any_class_costs_nothing_and_has_no_gradient() -> None:
    logits, labels = jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.array([0, 1])
    where = jnp.array([[True, True], [False, False]])
    keywords = {"where": where}
    name = "softmax_cross_entropy_with_integer_labels"
    ours, theirs = getattr(losses, name), getattr(optax, name)
    np.testing.assert_allclose(
        ours(logits, labels, **keywords), theirs(logits, labels, **keywords), rtol=1e-6
    )
    gradient = slope(ours, logits, labels, **keywords)
    assert np.isfinite(gradient).all() and not gradient[1].any()
    relevance = jnp.ones((2, 2))
    ranked = slope(losses.ranking_softmax_loss, logits, relevance, where=where)
    assert np.isfinite(ranked).all() and not ranked[1].any()


def test_what_stands_in_padded_frames_does_not_matter() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 4, 3)).astype(np.float32)
    paddings = np.array([[0.0, 0.0, 0.0, 1.0]])
    labels, label_paddings = np.array([[1, -1]]), np.array([[0.0, 1.0]])
    arguments = (logits, paddings, labels, label_paddings)
    clean = value(losses.ctc_loss, *arguments)
    logits[0, 3] = np.nan
    assert np.isnan(value(optax.ctc_loss, *map(jnp.asarray, arguments)))
    np.testing.assert_array_equal(value(losses.ctc_loss, *arguments), clean)
    gradient = slope(losses.ctc_loss, *arguments)
    assert np.isfinite(gradient).all() and not gradient[0, 3].any()


def test_ctc_refuses_labels_that_are_no_class_and_knows_impossible_ones() -> None:
    logits, nothing = np.zeros((1, 3, 3), np.float32), np.zeros((1, 3))
    bad = (logits, nothing, np.array([[7]]), np.zeros((1, 1)))
    theirs = value(optax.ctc_loss, *map(jnp.asarray, bad))
    assert theirs < 3.0  # as if the label were certain
    assert np.isnan(losses.ctc_loss(*bad)).all()
    logits[..., 1] = -INF
    impossible = (logits, nothing, np.array([[1]]), np.zeros((1, 1)))
    assert np.isnan(value(optax.ctc_loss, *map(jnp.asarray, impossible))).all()
    assert value(losses.ctc_loss, *impossible) > 1e4
    assert np.isfinite(slope(losses.ctc_loss, *impossible)).all()


def test_dice_takes_probabilities_under_jit_and_for_one_class() -> None:
    p, t = jnp.array([[0.9, 0.2]]), jnp.array([[1.0, 0.0]])
    with pytest.raises(ValueError, match="sum to 1"):
        optax.losses.binary_dice_loss(p, t, apply_sigmoid=False)
    loss = losses.binary_dice_loss(p, t, apply_sigmoid=False)
    np.testing.assert_allclose(loss, [1 - 1.9 / 2.05], rtol=1e-5)
    both = jnp.stack([p, 1 - p], axis=-1), jnp.stack([t, 1 - t], axis=-1)

    def jitted(module: Any) -> Any:
        return jax.jit(lambda *a: module.dice_loss(*a, apply_softmax=False))(*both)

    with pytest.raises(jax.errors.TracerBoolConversionError):
        jitted(optax.losses)
    np.testing.assert_allclose(
        jitted(losses), optax.losses.dice_loss(*both, apply_softmax=False), rtol=1e-6
    )
    with pytest.raises(ft.errors.LossError, match="sum over the classes"):
        losses.dice_loss(2 * both[0], both[1], apply_softmax=False)
    with pytest.raises(ft.errors.LossError, match=r"lie in \[0.400000, 1.800000\]"):
        losses.binary_dice_loss(2 * p, t, apply_sigmoid=False)


def test_a_fenchel_young_loss_hands_further_arguments_to_its_maximum() -> None:
    def soft_maximum(scores: jax.Array, temperature: float) -> jax.Array:
        return temperature * jax.nn.logsumexp(scores / temperature)

    scores, targets = jnp.array([[1.0, 2.0]] * 3), jnp.array([[0.0, 1.0]] * 3)
    with pytest.raises(TypeError):
        optax.losses.make_fenchel_young_loss(soft_maximum)(scores, targets, 0.5)
    loss = losses.make_fenchel_young_loss(soft_maximum)
    expected = 0.5 * np.log(np.exp(2.0) + np.exp(4.0)) - 2.0
    np.testing.assert_allclose(loss(scores, targets, 0.5), [expected] * 3, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["huber_loss", "log_cosh", "sigmoid_binary_cross_entropy", "hinge_loss"]
)
def test_a_broadcast_that_enlarges_both_arguments_is_refused(name: str) -> None:
    a, b = jnp.ones(3), jnp.ones((3, 1))
    with jax.numpy_rank_promotion("allow"):
        assert getattr(optax, name)(a, b).shape == (3, 3)
    with pytest.raises(ft.errors.LossError, match="don't fit"):
        getattr(losses, name)(a, b)


BROADCAST = (
    "softmax_cross_entropy",
    "safe_softmax_cross_entropy",
    "poly_loss_cross_entropy",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "generalized_kl_divergence",
    "ranking_softmax_loss",
    "cosine_similarity",
    "huber_loss",
    "log_cosh",
    "hinge_loss",
    "sparsemax_loss",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
)


@pytest.mark.parametrize("name", BROADCAST)
def test_two_batches_of_one_rank_meet_as_in_optax(name: str) -> None:
    rng = np.random.default_rng(5)
    a, b = (jnp.asarray(rng.random(shape), jnp.float32) for shape in ((1, 3, 5), (4, 1, 5)))
    if name == "sparsemax_loss":
        b = jnp.round(b)
    ours, theirs = getattr(losses, name), getattr(optax.losses, name)
    found, wanted = value(ours, a, b), value(theirs, a, b)
    assert wanted.shape in ((4, 3), (4, 3, 5), ())
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope(ours, a, b), slope(theirs, a, b), rtol=1e-4, atol=1e-5)
    with pytest.raises(ft.errors.LossError, match="don't fit"):
        ours(b, a[0])


def test_weights_of_one_rank_meet_ranked_lists_as_in_optax() -> None:
    rng = np.random.default_rng(6)
    a, y, w = (jnp.asarray(rng.random(s), jnp.float32) for s in ((1, 5), (1, 5), (4, 5)))
    wanted = optax.losses.ranking_softmax_loss(a, y, weights=w)
    np.testing.assert_allclose(losses.ranking_softmax_loss(a, y, weights=w), wanted, rtol=1e-6)


LABELLED = (
    "softmax_cross_entropy_with_integer_labels",
    "multiclass_hinge_loss",
    "multiclass_perceptron_loss",
    "multiclass_sparsemax_loss",
)


@pytest.mark.parametrize(
    ("dtype", "classes"),
    [("uint8", 256), ("uint8", 300), ("int8", 128), ("int8", 300), ("uint16", 70_000)],
)
@pytest.mark.parametrize("name", LABELLED)
def test_labels_of_few_bits_are_labels_like_any_other(
    name: str, dtype: str, classes: int
) -> None:
    labels = np.array([0, 100, min(classes - 1, np.iinfo(dtype).max)])
    scores = np.random.default_rng(8).normal(size=(3, classes)).astype(np.float32)
    loss = getattr(losses, name)
    wanted = loss(scores, labels.astype(np.int32))
    assert np.isfinite(wanted).all()
    np.testing.assert_array_equal(loss(scores, labels.astype(dtype)), wanted)
    if dtype == "int8":
        assert np.isnan(loss(scores, np.array([-1, 0, 0], dtype))[0])


def test_optax_takes_labels_of_few_bits_for_other_ones() -> None:
    scores = np.random.default_rng(8).normal(size=(1, 300)).astype(np.float32)
    scores, labels = jnp.asarray(scores), jnp.array([3])
    hinge = optax.losses.multiclass_hinge_loss
    assert hinge(scores, labels.astype(jnp.uint8)) != hinge(scores, labels)
    with pytest.raises(OverflowError):
        optax.losses.multiclass_sparsemax_loss(scores, labels.astype(jnp.int8))


@pytest.mark.parametrize(("dtype", "classes"), [("uint8", 300), ("int8", 128), ("uint16", 5)])
def test_ctc_takes_labels_of_few_bits(dtype: str, classes: int) -> None:
    logits = np.random.default_rng(8).normal(size=(1, 4, classes)).astype(np.float32)
    labels, nothing = np.array([[min(classes - 1, 127), 1]]), np.zeros((1, 4))
    wanted = value(losses.ctc_loss, logits, nothing, labels, np.zeros((1, 2)))
    assert np.isfinite(wanted).all()
    few = labels.astype(dtype)
    found = value(losses.ctc_loss, logits, nothing, few, np.zeros((1, 2)))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("name", LABELLED[1:])
def test_multiclass_losses_of_half_precision_are_computed_in_float32(
    name: str, dtype: Any
) -> None:
    scores = jnp.asarray(np.random.default_rng(9).normal(size=(4, 5)), dtype)
    labels = jnp.array([0, 1, 4, 2])
    ours, theirs = getattr(losses, name), getattr(optax.losses, name)
    loss, wanted = value(ours, scores, labels), value(theirs, scores, labels)
    assert loss.dtype == wanted.dtype == jnp.float32
    np.testing.assert_array_equal(loss, value(ours, scores.astype(jnp.float32), labels))
    # Optax computes s + 1 and the projection in the dtype of the scores, of size 1 to 4.
    np.testing.assert_allclose(loss, wanted, atol=max(1e-6, 4 * float(jnp.finfo(dtype).eps)))
    gradient = jax.jit(jax.grad(lambda s: ours(s, labels).sum()))(scores)
    assert gradient.dtype == dtype and np.isfinite(np.asarray(gradient, np.float32)).all()


def test_the_gradient_of_sparsemax_by_half_precision_scores_exists() -> None:
    scores, labels = jnp.ones((2, 3), jnp.bfloat16), jnp.array([0, 1])
    with pytest.raises(TypeError, match="primal and tangent"):
        jax.grad(lambda s: optax.losses.multiclass_sparsemax_loss(s, labels).sum())(scores)
    loss = losses.multiclass_sparsemax_loss
    gradient = jax.jit(jax.grad(lambda s: loss(s, labels).sum()))(scores)
    # sparsemax of equal scores is 1/3 each; bfloat16 has 8 bits.
    np.testing.assert_allclose(
        np.asarray(gradient, np.float32), 1 / 3 - np.eye(3)[:2], rtol=2**-8
    )


@pytest.mark.parametrize("classes", [2, 3, 100, 5000])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dice_takes_the_probabilities_of_a_softmax_in_half_precision(
    dtype: Any, classes: int
) -> None:
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(1, 64, classes)), dtype)
    p = jax.nn.softmax(logits)
    targets = jax.nn.one_hot(jnp.arange(64)[None] % classes, classes, dtype=dtype)
    with pytest.raises(ValueError, match="must be valid"):
        optax.losses.dice_loss(p, targets, apply_softmax=False)
    loss = losses.dice_loss(p, targets, apply_softmax=False)
    np.testing.assert_array_equal(loss, losses.dice_loss(logits, targets))
    # What is no distribution is still found.
    with pytest.raises(ft.errors.LossError, match="sum over the classes"):
        losses.dice_loss(p * 0.8, targets, apply_softmax=False)
    with pytest.raises(ft.errors.LossError, match="sum over the classes"):
        losses.dice_loss(p.astype(jnp.float32), targets, apply_softmax=False)


X, Y, LABELS = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), np.array([0, 1])
SEQUENCE = (np.zeros((1, 4, 3), np.float32), np.zeros((1, 4)), np.ones((1, 2), int))


@pytest.mark.parametrize(
    ("name", "arguments", "keywords", "error", "text"),
    [
        ("squared_error", (X, Y[:, :1]), {}, ValueError, "shapes differ"),
        ("l2_loss", (X, Y[0]), {}, ValueError, "nothing is broadcast"),
        ("l2_loss", (LABELS,), {}, TypeError, "predictions has dtype int"),
        ("huber_loss", (X, Y), {"delta": 0.0}, ValueError, "delta=0.0 is out of range"),
        ("cosine_similarity", (X, Y), {"epsilon": -1.0}, ValueError, "epsilon=-1.0"),
        ("cosine_similarity", (X, Y[:, :2]), {}, ValueError, "don't fit"),
        ("softmax_cross_entropy", (X, Y[:, :2]), {}, ValueError, "don't fit"),
        ("softmax_cross_entropy", (LABELS, LABELS), {}, TypeError, "floating-point"),
        ("softmax_cross_entropy", (X, Y), {"where": X[:, :2] > 0}, ValueError, "`where`"),
        ("softmax_cross_entropy_with_integer_labels", (X, X), {}, TypeError, "integer"),
        ("softmax_cross_entropy_with_integer_labels", (X, LABELS[:1]), {}, ValueError, "(2,)"),
        (
            "softmax_cross_entropy_with_integer_labels",
            (X, LABELS),
            {"axis": 2},
            ValueError,
            "axis=2",
        ),
        ("sigmoid_focal_loss", (X, Y), {"gamma": -1.0}, ValueError, "gamma=-1.0"),
        ("sigmoid_focal_loss", (X, Y), {"alpha": 2.0}, ValueError, "alpha=2.0"),
        ("smooth_labels", (X, 1.5), {}, ValueError, "alpha=1.5"),
        ("smooth_labels", (LABELS, 0.1), {}, TypeError, "labels has dtype int"),
        ("perceptron_loss", (X, Y[0]), {}, ValueError, "shapes differ"),
        ("multiclass_hinge_loss", (X, Y), {}, TypeError, "integer"),
        ("multiclass_hinge_loss", (X, LABELS[None]), {}, ValueError, "one index"),
        ("kl_divergence", (X, LABELS), {}, TypeError, "targets has dtype int"),
        ("ntxent", (X, LABELS), {"temperature": 0.0}, ValueError, "temperature=0.0"),
        ("ntxent", (X[0], LABELS), {}, ValueError, "[batch, features]"),
        ("triplet_margin_loss", (X, Y, Y), {"norm_degree": 0}, ValueError, "norm_degree=0"),
        ("triplet_margin_loss", (X, Y, Y), {"eps": -1.0}, ValueError, "eps=-1.0"),
        ("triplet_margin_loss", (X, Y, Y[:1]), {}, ValueError, "shapes differ"),
        ("ctc_loss", (*SEQUENCE, np.zeros((1, 3))), {}, ValueError, "label_paddings (1, 3)"),
        ("ctc_loss", (*SEQUENCE, np.zeros((1, 2))), {"blank_id": 3}, ValueError, "blank_id=3"),
        ("ctc_loss", (*SEQUENCE, np.zeros((1, 2))), {"blank_id": -1}, ValueError, "blank_id"),
        (
            "ctc_loss",
            (*SEQUENCE, np.zeros((1, 2))),
            {"log_epsilon": 0.0},
            ValueError,
            "log_epsilon",
        ),
        (
            "ctc_loss",
            (*SEQUENCE[:2], np.ones((1, 2)), np.zeros((1, 2))),
            {},
            TypeError,
            "integer",
        ),
        ("dice_loss", (X, Y), {"smooth": -1.0}, ValueError, "smooth=-1.0"),
        ("dice_loss", (X, Y), {"alpha": -1.0}, ValueError, "alpha=-1.0"),
        ("dice_loss", (X, Y), {"beta": -1.0}, ValueError, "beta=-1.0"),
        ("dice_loss", (X, Y), {"reduction": "avg"}, ValueError, "reduction"),
        ("dice_loss", (X, Y), {"class_weights": X[0, :2]}, ValueError, "class_weights"),
        ("dice_loss", (X, Y), {"ignore_background": 1}, TypeError, "ignore_background"),
        ("dice_loss", (X, Y), {"apply_softmax": 1}, TypeError, "apply_softmax"),
        ("dice_loss", (X, Y[:, :2]), {}, ValueError, "shapes differ"),
    ],
)
def test_a_wrong_argument_says_what_and_where(
    unchecked_types: None, name: str, arguments: Any, keywords: Any, error: type, text: str
) -> None:
    with pytest.raises(error) as raised:
        getattr(losses, name)(*arguments, **keywords)
    assert text in str(raised.value)
    assert isinstance(raised.value, ft.FlaxtrainError)
