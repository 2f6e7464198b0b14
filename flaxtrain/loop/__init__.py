"""The loop: the trainer, its hooks, its result."""

from flaxtrain.loop.bad_steps import diagnose
from flaxtrain.loop.debug.check_report import CheckReport, Observation
from flaxtrain.loop.debug.lr_curve import LearningRateCurve
from flaxtrain.loop.hooks import Console, Evaluate, Hook, SaveEvery, TensorBoard
from flaxtrain.loop.plan import Plan
from flaxtrain.loop.plan_devices import PlannedDevices
from flaxtrain.loop.plan_parts import PlannedGroup, PlannedLayer, PlannedPhase
from flaxtrain.loop.result import FitResult, History
from flaxtrain.loop.run import Run
from flaxtrain.loop.trainer import Trainer

__all__ = [
    "CheckReport",
    "Console",
    "Evaluate",
    "FitResult",
    "History",
    "Hook",
    "LearningRateCurve",
    "Observation",
    "Plan",
    "PlannedDevices",
    "PlannedGroup",
    "PlannedLayer",
    "PlannedPhase",
    "Run",
    "SaveEvery",
    "TensorBoard",
    "Trainer",
    "diagnose",
]
