"""Wrong specs: each is refused at construction, with what, where and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError, UnknownNameError
from flaxtrain.optim import NAMED
from flaxtrain.schedules import linear_schedule
from flaxtrain.spec import OptSpec

ADAMW = (
    "accumulate, b1, b2, clip, clip_norm, decay, decay_to, ema, eps, eps_root, freeze, groups, "
    "layer_decay, learning_rate, max_skips, mu_dtype, nesterov, nonfinite, spikes, weight_decay"
)
SGD = (
    "accumulate, accumulator_dtype, clip, clip_norm, decay, decay_to, ema, freeze, groups, "
    "layer_decay, learning_rate, max_skips, momentum, nesterov, nonfinite, spikes, weight_decay"
)

WRONG: list[tuple[Callable[[], Any], type[FlaxtrainError], str]] = [
    (
        lambda: OptSpec("adamm", 0.1),
        UnknownNameError,
        "unknown optimizer 'adamm'\n"
        "  where: OptSpec(optimizer)\n"
        f"  fix:   did you mean 'adam'? Known: {', '.join(sorted(NAMED))}",
    ),
    (
        lambda: OptSpec("sgd"),
        ArgumentError,
        "no learning rate is given\n"
        "  where: OptSpec('sgd')\n"
        "  fix:   pass learning_rate=1e-3, or a schedule from flaxtrain.schedules",
    ),
    (
        lambda: OptSpec("sgd", 0.1, momentun=0.9),
        UnknownNameError,
        "unknown argument 'momentun'\n"
        "  where: OptSpec('sgd')\n"
        f"  fix:   did you mean 'momentum'? Known: {SGD}",
    ),
    (
        lambda: OptSpec("adamw", leaning_rate=0.1),
        UnknownNameError,
        "unknown argument 'leaning_rate'\n"
        "  where: OptSpec('adamw')\n"
        f"  fix:   did you mean 'learning_rate'? Known: {ADAMW}",
    ),
    (
        lambda: OptSpec("adamw", lr=0.1),
        UnknownNameError,
        "unknown argument 'lr'\n"
        "  where: OptSpec('adamw')\n"
        f"  fix:   did you mean 'learning_rate'? Known: {ADAMW}",
    ),
    (
        lambda: OptSpec("adamw", 0.1, mask={"kernel": True}),
        UnknownNameError,
        "unknown argument 'mask'\n"
        "  where: OptSpec('adamw')\n"
        f"  fix:   did you mean 'decay'? Known: {ADAMW}",
    ),
    (
        lambda: OptSpec("sgd", -0.1),
        ArgumentError,
        "learning_rate=-0.1 is out of range\n"
        "  where: OptSpec('sgd')\n"
        "  fix:   pass a finite number in [0, inf)",
    ),
    (
        lambda: OptSpec("sgd", float("nan")),
        ArgumentError,
        "learning_rate=nan is out of range\n"
        "  where: OptSpec('sgd')\n"
        "  fix:   pass a finite number in [0, inf)",
    ),
    (
        lambda: OptSpec("sgd", "0.1"),  # type: ignore[arg-type]
        ArgumentTypeError,
        "learning_rate='0.1' is a str, not a number\n"
        "  where: OptSpec('sgd')\n"
        "  fix:   pass a number for learning_rate",
    ),
    (
        lambda: OptSpec("sgd", True),
        ArgumentTypeError,
        "learning_rate=True is a bool, not a number\n"
        "  where: OptSpec('sgd')\n"
        "  fix:   pass a number for learning_rate",
    ),
    (
        lambda: OptSpec("sgd", np.array([0.1, 0.2])),
        ArgumentTypeError,
        "learning_rate has shape (2,) and dtype float64, not a real scalar\n"
        "  where: OptSpec('sgd')\n"
        "  fix:   pass one number for learning_rate",
    ),
    (
        lambda: OptSpec("sgd", linear_schedule(0.1, -0.5, 10)),
        ArgumentError,
        "the learning rate falls to -0.5\n"
        "  where: OptSpec('sgd'): polynomial_schedule(init_value=0.1, end_value=-0.5, "
        "power=1, transition_steps=10)\n"
        "  fix:   pass a schedule whose values are >= 0; the direction is downhill already",
    ),
    (
        lambda: OptSpec("adamw", 0.1, weight_decay=-0.1),
        ArgumentError,
        "weight_decay=-0.1 is out of range\n"
        "  where: OptSpec('adamw')\n"
        "  fix:   pass a finite number in [0, inf)",
    ),
    (
        lambda: OptSpec("adamw", 0.1, clip_norm=0.0),
        ArgumentError,
        "clip_norm=0.0 is out of range\n"
        "  where: OptSpec('adamw')\n"
        "  fix:   pass a finite number in (0, inf)",
    ),
    (
        lambda: OptSpec("adamw", 0.1, clip_norm=float("inf")),
        ArgumentError,
        "clip_norm=inf is out of range\n"
        "  where: OptSpec('adamw')\n"
        "  fix:   pass a finite number in (0, inf)",
    ),
    (
        lambda: OptSpec("adamw", 0.1, b1=1.0),
        ArgumentError,
        "b1=1.0 is out of range\n"
        "  where: OptSpec('adamw')\n"
        "  fix:   pass a finite number in [0, 1)",
    ),
    (
        lambda: OptSpec("adamw", 0.1, nonfinite="ignore"),  # type: ignore[arg-type]
        UnknownNameError,
        "unknown choice of nonfinite 'ignore'\n"
        "  where: OptSpec('adamw')\n"
        "  fix:   Known: raise, skip",
    ),
    (
        lambda: OptSpec("adamw", 0.1, decay="kernel"),
        UnknownNameError,
        "unknown decay preset 'kernel'\n"
        "  where: OptSpec('adamw')\n"
        "  fix:   did you mean 'kernels'? Known: all, big_vision, hf, kernels, levanter, "
        "ndim, timm",
    ),
    (
        lambda: OptSpec("adamw", 0.1, decay=None),  # type: ignore[arg-type]
        ArgumentTypeError,
        "decay=None is a NoneType\n"
        "  where: OptSpec('adamw')\n"
        "  fix:   pass a preset (kernels, all, ndim, timm, hf, big_vision, levanter), a "
        "selector such as '#kernel & ~head/**', nested dicts of bools, or a function "
        "from the facts of a parameter to a bool; the decay of a moving average is "
        "called b1, b2 or rho",
    ),
    (
        lambda: OptSpec("adamw", 0.1, decay={"head": {"kernel": 1}}),
        ArgumentTypeError,
        "decay['head']['kernel']=1 is an int, not a bool\n"
        "  where: OptSpec('adamw')\n"
        "  fix:   pass True where the parameter decays and False where not",
    ),
    (
        lambda: OptSpec(optim.adam, 0.1),  # type: ignore[arg-type]
        ArgumentTypeError,
        "adam is a function, not an optimizer\n"
        "  where: OptSpec(optimizer)\n"
        f"  fix:   pass a name ({', '.join(sorted(NAMED))}), or an object with init and update",
    ),
    (
        lambda: OptSpec(optim.adam(0.1), learning_rate=0.1),
        ArgumentError,
        "learning_rate does not go with an optimizer object, which brings its own\n"
        "  where: OptSpec(adam)\n"
        "  fix:   set learning_rate where the object is made, or pass the optimizer by name",
    ),
    (
        lambda: OptSpec(optax.adam(0.1), weight_decay=0.1),
        ArgumentError,
        "weight_decay does not go with an optimizer object, which brings its own\n"
        "  where: OptSpec(GradientTransformationExtraArgs)\n"
        "  fix:   set weight_decay where the object is made, or pass the optimizer by name",
    ),
    (
        lambda: OptSpec(optim.adam(0.1), decay="all"),
        ArgumentError,
        "decay does not go with an optimizer object, which brings its own\n"
        "  where: OptSpec(adam)\n"
        "  fix:   set decay where the object is made, or pass the optimizer by name",
    ),
    (
        lambda: OptSpec(optim.adam(0.1), b1=0.5),
        ArgumentError,
        "b1 does not go with an optimizer object, which brings its own\n"
        "  where: OptSpec(adam)\n"
        "  fix:   set b1 where the object is made, or pass the optimizer by name",
    ),
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("make", "error", "text"), WRONG, ids=[w[2].split("\n")[0] for w in WRONG]
)
def test_a_wrong_spec_says_what_where_and_what_to_do(
    make: Callable[[], Any], error: type[FlaxtrainError], text: str
) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == text


def test_values_at_the_edge_of_their_range_are_accepted() -> None:
    OptSpec("adamw", 0.0, weight_decay=0.0, clip_norm=1e-9, b1=0.0, eps=0.0)
    OptSpec("sgd", linear_schedule(0.1, 0.0, 10), momentum=0.0)
    OptSpec(optax.adam(0.1), clip_norm=1.0, nonfinite="skip")
