"""What the optimizer does, declared as data, and the transformation built from it."""

from flaxtrain.spec.build import build
from flaxtrain.spec.opt_spec import OptSpec
from flaxtrain.spec.state import OptState, applied_learning_rates, get_lr

__all__ = ["OptSpec", "OptState", "applied_learning_rates", "build", "get_lr"]
