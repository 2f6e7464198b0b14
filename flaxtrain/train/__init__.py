"""The training step, its state and its loss contract: pure functions over one pytree."""

from flaxtrain.train.contract import STEP_METRICS, LossFn, LossOutput
from flaxtrain.train.model import BoundModel, call_arguments
from flaxtrain.train.recipe import Recipe, make_recipe
from flaxtrain.train.state import Counters, TrainState
from flaxtrain.train.step import eval_step, predict_step, train_step
from flaxtrain.train.supervised import SupervisedLoss, check_labels, check_loss
from flaxtrain.train.with_collection import CollectionLoss

__all__ = [
    "STEP_METRICS",
    "BoundModel",
    "CollectionLoss",
    "Counters",
    "LossFn",
    "LossOutput",
    "Recipe",
    "SupervisedLoss",
    "TrainState",
    "call_arguments",
    "check_labels",
    "check_loss",
    "eval_step",
    "make_recipe",
    "predict_step",
    "train_step",
]
