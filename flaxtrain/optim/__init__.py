"""Optimizers: gradient transformations, and the rules about one array that they are made of."""

from flaxtrain.optim.adam import (
    Adam,
    Nadam,
    ScaleByAdamState,
    adam,
    adam_rule,
    nadam,
    scale_by_adam,
)
from flaxtrain.optim.adamw import (
    adamw,
    nadamw,
)
from flaxtrain.optim.apply import (
    apply_updates,
)
from flaxtrain.optim.clip import (
    clip_by_global_norm,
)
from flaxtrain.optim.combine import (
    Mask,
    MaskedNode,
    MaskedState,
    chain,
    masked,
    named_chain,
)
from flaxtrain.optim.moments import (
    Decay,
    DecayRate,
    bias_correction,
    check_dtype,
    complement,
    debiased,
    moving_average,
    squared_magnitude,
    stored_dtype,
    value,
)
from flaxtrain.optim.per_leaf import (
    init_slots,
    per_leaf,
    safe_increment,
    update_slots,
)
from flaxtrain.optim.registry import (
    NAMED,
    NamedOptimizer,
)
from flaxtrain.optim.rule import (
    Rule,
    rule,
)
from flaxtrain.optim.scale import (
    ScaleByScheduleState,
    check_learning_rate,
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
)
from flaxtrain.optim.sgd import (
    GradientDescent,
    Trace,
    TraceState,
    sgd,
    sgd_rule,
    trace,
)
from flaxtrain.optim.stages import (
    DECAY,
    RATE,
    Place,
    Stage,
)
from flaxtrain.optim.transform import (
    EmptyState,
    GradientTransformation,
    InitFn,
    TransformationLike,
    UpdateFn,
    answering,
    identity,
    named,
    same_value,
    stateless,
    with_extra_args,
)
from flaxtrain.optim.weight_decay import (
    WeightDecaySchedule,
    add_decayed_weights,
)

__all__ = [
    "DECAY",
    "NAMED",
    "RATE",
    "Adam",
    "Decay",
    "DecayRate",
    "EmptyState",
    "GradientDescent",
    "GradientTransformation",
    "InitFn",
    "Mask",
    "MaskedNode",
    "MaskedState",
    "Nadam",
    "NamedOptimizer",
    "Place",
    "Rule",
    "ScaleByAdamState",
    "ScaleByScheduleState",
    "Stage",
    "Trace",
    "TraceState",
    "TransformationLike",
    "UpdateFn",
    "WeightDecaySchedule",
    "adam",
    "adam_rule",
    "adamw",
    "add_decayed_weights",
    "answering",
    "apply_updates",
    "bias_correction",
    "chain",
    "check_dtype",
    "check_learning_rate",
    "clip_by_global_norm",
    "complement",
    "debiased",
    "identity",
    "init_slots",
    "masked",
    "moving_average",
    "nadam",
    "nadamw",
    "named",
    "named_chain",
    "per_leaf",
    "rule",
    "safe_increment",
    "same_value",
    "scale",
    "scale_by_adam",
    "scale_by_learning_rate",
    "scale_by_schedule",
    "sgd",
    "sgd_rule",
    "squared_magnitude",
    "stateless",
    "stored_dtype",
    "trace",
    "update_slots",
    "value",
    "with_extra_args",
]
