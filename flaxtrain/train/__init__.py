"""The training step, its state and its loss contract: pure functions over one pytree."""

from flaxtrain.train.averages import NO_AVERAGE, Average, NoAverage, begin_average
from flaxtrain.train.batch_statistics import BatchStatistics, add_batch, no_batches
from flaxtrain.train.cached_loss import batch_with_features
from flaxtrain.train.casting import Casts, PolicyCasts
from flaxtrain.train.contract import STEP_METRICS, LossFn, LossOutput
from flaxtrain.train.diagnosis import diagnose_step
from flaxtrain.train.findings import BadArray, Diagnosis, EntryStats, SpikeFound
from flaxtrain.train.forward_pass import forward
from flaxtrain.train.frozen_calls import CACHE_FROZEN, FrozenFeatures
from flaxtrain.train.frozen_features import features_of, frozen_features
from flaxtrain.train.keys import microbatch_key
from flaxtrain.train.model import BoundModel, call_arguments
from flaxtrain.train.options import StepOptions
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.recipe_making import make_recipe
from flaxtrain.train.replay import BadModule
from flaxtrain.train.replicas import AxisReplicas, OneProgram
from flaxtrain.train.replicated import check_replicas, with_replicas
from flaxtrain.train.rows import Rows
from flaxtrain.train.state import Counters, TrainState, eval_params, eval_state
from flaxtrain.train.step import eval_step, predict_step, train_step
from flaxtrain.train.supervised import SupervisedLoss, check_labels, check_loss
from flaxtrain.train.trials import row_outputs, trial_gradient
from flaxtrain.train.with_collection import CollectionLoss

__all__ = [
    "CACHE_FROZEN",
    "NO_AVERAGE",
    "STEP_METRICS",
    "Average",
    "AxisReplicas",
    "BadArray",
    "BadModule",
    "BatchStatistics",
    "BoundModel",
    "Casts",
    "CollectionLoss",
    "Counters",
    "Diagnosis",
    "EntryStats",
    "FrozenFeatures",
    "LossFn",
    "LossOutput",
    "NoAverage",
    "OneProgram",
    "PolicyCasts",
    "Recipe",
    "Rows",
    "SpikeFound",
    "StepOptions",
    "SupervisedLoss",
    "TrainState",
    "add_batch",
    "batch_with_features",
    "begin_average",
    "call_arguments",
    "check_labels",
    "check_loss",
    "check_replicas",
    "diagnose_step",
    "eval_params",
    "eval_state",
    "eval_step",
    "features_of",
    "forward",
    "frozen_features",
    "make_recipe",
    "microbatch_key",
    "no_batches",
    "predict_step",
    "row_outputs",
    "train_step",
    "trial_gradient",
    "with_replicas",
]
