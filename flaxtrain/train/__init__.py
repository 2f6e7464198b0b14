"""The training step, its state and its loss contract: pure functions over one pytree."""

from flaxtrain.train.cached_loss import batch_with_features
from flaxtrain.train.contract import STEP_METRICS, LossFn, LossOutput
from flaxtrain.train.frozen_calls import CACHE_FROZEN, FrozenFeatures
from flaxtrain.train.frozen_features import features_of, frozen_features
from flaxtrain.train.gradient import microbatch_key
from flaxtrain.train.model import BoundModel, call_arguments
from flaxtrain.train.options import StepOptions
from flaxtrain.train.recipe import Recipe, make_recipe
from flaxtrain.train.state import Counters, TrainState
from flaxtrain.train.step import eval_step, predict_step, train_step
from flaxtrain.train.supervised import SupervisedLoss, check_labels, check_loss
from flaxtrain.train.with_collection import CollectionLoss

__all__ = [
    "CACHE_FROZEN",
    "STEP_METRICS",
    "BoundModel",
    "CollectionLoss",
    "Counters",
    "FrozenFeatures",
    "LossFn",
    "LossOutput",
    "Recipe",
    "StepOptions",
    "SupervisedLoss",
    "TrainState",
    "batch_with_features",
    "call_arguments",
    "check_labels",
    "check_loss",
    "eval_step",
    "features_of",
    "frozen_features",
    "make_recipe",
    "microbatch_key",
    "predict_step",
    "train_step",
]
