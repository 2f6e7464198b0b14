"""Losses: functions of predictions and targets that return one value per example."""

from flaxtrain.losses.classification import (
    poly_loss_cross_entropy,
    safe_softmax_cross_entropy,
    sigmoid_binary_cross_entropy,
    sigmoid_focal_loss,
    smooth_labels,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)
from flaxtrain.losses.divergences import (
    convex_kl_divergence,
    generalized_kl_divergence,
    kl_divergence,
    kl_divergence_with_log_targets,
)
from flaxtrain.losses.fenchel_young import (
    make_fenchel_young_loss,
)
from flaxtrain.losses.margin import (
    hinge_loss,
    multiclass_hinge_loss,
    multiclass_perceptron_loss,
    multiclass_sparsemax_loss,
    perceptron_loss,
    sparsemax_loss,
)
from flaxtrain.losses.ranking import (
    ranking_softmax_loss,
)
from flaxtrain.losses.regression import (
    absolute_error,
    huber_loss,
    l2_loss,
    log_cosh,
    squared_error,
)
from flaxtrain.losses.segmentation import (
    binary_dice_loss,
    dice_loss,
    multiclass_generalized_dice_loss,
)
from flaxtrain.losses.self_supervised import (
    ntxent,
    triplet_margin_loss,
)
from flaxtrain.losses.sequence import (
    ctc_loss,
    ctc_loss_with_forward_probs,
)
from flaxtrain.losses.similarity import (
    cosine_distance,
    cosine_similarity,
)

__all__ = [
    "absolute_error",
    "binary_dice_loss",
    "convex_kl_divergence",
    "cosine_distance",
    "cosine_similarity",
    "ctc_loss",
    "ctc_loss_with_forward_probs",
    "dice_loss",
    "generalized_kl_divergence",
    "hinge_loss",
    "huber_loss",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "l2_loss",
    "log_cosh",
    "make_fenchel_young_loss",
    "multiclass_generalized_dice_loss",
    "multiclass_hinge_loss",
    "multiclass_perceptron_loss",
    "multiclass_sparsemax_loss",
    "ntxent",
    "perceptron_loss",
    "poly_loss_cross_entropy",
    "ranking_softmax_loss",
    "safe_softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "smooth_labels",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "sparsemax_loss",
    "squared_error",
    "triplet_margin_loss",
]
