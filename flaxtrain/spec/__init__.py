"""What the optimizer does, declared as data, and the transformation built from it."""

from flaxtrain.spec.accumulation import AccumulateBatches
from flaxtrain.spec.applied import applied_learning_rates, get_lr
from flaxtrain.spec.assignment import AssignedGroup, AssignedParam, Assignment, assign
from flaxtrain.spec.averaging import Ema, Lookahead, Swa
from flaxtrain.spec.build import build, transformation
from flaxtrain.spec.carry import carried, check_carries
from flaxtrain.spec.clip import Clip
from flaxtrain.spec.clip_z_score import ClipZScore
from flaxtrain.spec.clips import AdaptiveClip, ClipBlockRms, ClipNorm, ClipValue
from flaxtrain.spec.edit import set_hyperparameters
from flaxtrain.spec.freeze import Freeze
from flaxtrain.spec.group import Group
from flaxtrain.spec.layer_decay import LayerDecay
from flaxtrain.spec.opt_spec import OptSpec
from flaxtrain.spec.packed_numbers import PackedNumbers
from flaxtrain.spec.phases import Phase
from flaxtrain.spec.spikes import Spikes
from flaxtrain.spec.state import OptState

__all__ = [
    "AccumulateBatches",
    "AdaptiveClip",
    "AssignedGroup",
    "AssignedParam",
    "Assignment",
    "Clip",
    "ClipBlockRms",
    "ClipNorm",
    "ClipValue",
    "ClipZScore",
    "Ema",
    "Freeze",
    "Group",
    "LayerDecay",
    "Lookahead",
    "OptSpec",
    "OptState",
    "PackedNumbers",
    "Phase",
    "Spikes",
    "Swa",
    "applied_learning_rates",
    "assign",
    "build",
    "carried",
    "check_carries",
    "get_lr",
    "set_hyperparameters",
    "transformation",
]
