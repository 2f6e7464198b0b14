"""What the optimizer does, declared as data, and the transformation built from it."""

from flaxtrain.spec.applied import applied_learning_rates, get_lr
from flaxtrain.spec.assignment import AssignedGroup, AssignedParam, Assignment, assign
from flaxtrain.spec.build import build, transformation
from flaxtrain.spec.carry import carried, check_carries
from flaxtrain.spec.edit import set_hyperparameters
from flaxtrain.spec.freeze import Freeze
from flaxtrain.spec.group import Group
from flaxtrain.spec.layer_decay import LayerDecay
from flaxtrain.spec.opt_spec import OptSpec
from flaxtrain.spec.packed_numbers import PackedNumbers
from flaxtrain.spec.phases import Phase
from flaxtrain.spec.state import OptState

__all__ = [
    "AssignedGroup",
    "AssignedParam",
    "Assignment",
    "Freeze",
    "Group",
    "LayerDecay",
    "OptSpec",
    "OptState",
    "PackedNumbers",
    "Phase",
    "applied_learning_rates",
    "assign",
    "build",
    "carried",
    "check_carries",
    "get_lr",
    "set_hyperparameters",
    "transformation",
]
