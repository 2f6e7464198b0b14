"""Optimizers: gradient transformations, and the rules about one array that they are made of."""

from flaxtrain.optim.accumulate import (
    ApplyEvery,
    MultiSteps,
    MultiStepsState,
    apply_every,
)
from flaxtrain.optim.adadelta import (
    ScaleByAdaDeltaState,
    adadelta,
    scale_by_adadelta,
)
from flaxtrain.optim.adafactor import (
    adafactor,
    scale_by_param_block_norm,
    scale_by_param_block_rms,
)
from flaxtrain.optim.adagrad import (
    ScaleByRssState,
    adagrad,
    scale_by_rss,
)
from flaxtrain.optim.adam import (
    ScaleByAdamState,
    adam,
    nadam,
    scale_by_adam,
)
from flaxtrain.optim.adamax import (
    adamax,
    adamaxw,
    scale_by_adamax,
)
from flaxtrain.optim.adamw import (
    adamw,
    nadamw,
)
from flaxtrain.optim.adan import (
    ScaleByAdanState,
    adan,
    scale_by_adan,
)
from flaxtrain.optim.adaptive_clip import (
    AdaptiveGradClipState,
    adaptive_grad_clip,
    unitwise_clip,
    unitwise_norm,
)
from flaxtrain.optim.amsgrad import (
    ScaleByAmsgradState,
    amsgrad,
    scale_by_amsgrad,
)
from flaxtrain.optim.apply import (
    apply_updates,
    incremental_update,
    periodic_update,
)
from flaxtrain.optim.belief import (
    ScaleByBeliefState,
    adabelief,
    scale_by_belief,
)
from flaxtrain.optim.clip import (
    ClipByGlobalNormState,
    ClipState,
    clip,
    clip_by_block_rms,
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
from flaxtrain.optim.conditional import (
    ApplyIfFiniteState,
    ConditionallyMaskState,
    ConditionallyTransformState,
    ConditionFn,
    apply_if_finite,
    conditionally_mask,
    conditionally_transform,
)
from flaxtrain.optim.constrain import (
    NonNegativeParamsState,
    ZeroNansState,
    keep_params_nonnegative,
    zero_nans,
)
from flaxtrain.optim.distance import (
    ScaleByDistanceOverGradientsState,
    scale_by_distance_over_gradients,
)
from flaxtrain.optim.ema import (
    EmaState,
    ema,
)
from flaxtrain.optim.factored import (
    FactoredState,
    scale_by_factored_rms,
)
from flaxtrain.optim.flatten import (
    flatten,
)
from flaxtrain.optim.freeze import (
    freeze,
    selective_transform,
    set_to_zero,
)
from flaxtrain.optim.fromage import (
    fromage,
)
from flaxtrain.optim.inject import (
    InjectHyperparamsState,
    InjectStatefulHyperparamsState,
    inject_hyperparams,
    inject_stateful_hyperparams,
)
from flaxtrain.optim.lamb import (
    lamb,
)
from flaxtrain.optim.lars import (
    lars,
)
from flaxtrain.optim.lion import (
    ScaleByLionState,
    lion,
    scale_by_lion,
)
from flaxtrain.optim.lookahead import (
    LookaheadParams,
    LookaheadState,
    lookahead,
)
from flaxtrain.optim.matrix_root import (
    matrix_inverse_pth_root,
    power_iteration,
)
from flaxtrain.optim.moment_trees import (
    tree_bias_correction,
    tree_update_infinity_moment,
    tree_update_moment,
    tree_update_moment_per_elem_norm,
)
from flaxtrain.optim.moments import (
    Decay,
    DecayRate,
)
from flaxtrain.optim.monitor import (
    MonitorState,
    SnapshotState,
    measure_with_ema,
    monitor,
    snapshot,
)
from flaxtrain.optim.multipliers import (
    scale_by_multipliers,
)
from flaxtrain.optim.names import (
    ParamName,
    mask_by_path,
    names_of,
)
from flaxtrain.optim.noise import (
    AddNoiseState,
    add_noise,
    noisy_sgd,
)
from flaxtrain.optim.normalize import (
    centralize,
    normalize_by_update_norm,
)
from flaxtrain.optim.norms import (
    safe_norm,
    safe_root_mean_squares,
)
from flaxtrain.optim.novograd import (
    ScaleByNovogradState,
    novograd,
    scale_by_novograd,
)
from flaxtrain.optim.numerics import (
    multi_normal,
    nnls,
    safe_int32_increment,
    scale_gradient,
)
from flaxtrain.optim.optimistic import (
    ScaleByOptimisticGradientState,
    optimistic_gradient_descent,
    scale_by_optimistic_gradient,
)
from flaxtrain.optim.optimistic_adam import (
    optimistic_adam,
    optimistic_adam_v2,
)
from flaxtrain.optim.partition import (
    Labels,
    MultiTransformState,
    PartitionState,
    multi_transform,
    partition,
)
from flaxtrain.optim.per_example import (
    per_example_global_norm_clip,
    per_example_layer_norm_clip,
)
from flaxtrain.optim.per_leaf import (
    init_slots,
    per_leaf,
    safe_increment,
    update_slots,
)
from flaxtrain.optim.polyak import (
    polyak_sgd,
    scale_by_polyak,
)
from flaxtrain.optim.radam import (
    radam,
    scale_by_radam,
)
from flaxtrain.optim.registry import (
    NAMED,
)
from flaxtrain.optim.rms import (
    ScaleByRmsState,
    ScaleByRmsWithCountState,
    ScaleByRStdDevState,
    ScaleByRStdDevWithCountState,
    scale_by_rms,
    scale_by_stddev,
)
from flaxtrain.optim.rmsprop import (
    rmsprop,
)
from flaxtrain.optim.rprop import (
    ScaleByRpropState,
    rprop,
    scale_by_rprop,
)
from flaxtrain.optim.rule import (
    NoSlots,
    Rule,
    rule,
)
from flaxtrain.optim.scale import (
    ScaleByScheduleState,
    ScaleState,
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
)
from flaxtrain.optim.sgd import (
    TraceState,
    sgd,
    trace,
)
from flaxtrain.optim.shampoo import (
    ScaleByShampooState,
    scale_by_shampoo,
    shampoo,
)
from flaxtrain.optim.sign import (
    scale_by_sign,
    sign_sgd,
    signum,
)
from flaxtrain.optim.skip import (
    ShouldSkipUpdateFunction,
    skip_large_updates,
    skip_not_finite,
)
from flaxtrain.optim.sm3 import (
    ScaleBySM3State,
    scale_by_sm3,
    sm3,
)
from flaxtrain.optim.stateful_schedule import (
    StatefulSchedule,
    WrappedSchedule,
)
from flaxtrain.optim.stateless import (
    GradientTransformationExtraArgs,
    TransformInitFn,
    TransformUpdateExtraArgsFn,
    TransformUpdateFn,
    init_empty_state,
    stateless_with_tree_map,
    with_extra_args_support,
)
from flaxtrain.optim.transform import (
    EmptyState,
    GradientTransformation,
    InitFn,
    TransformationLike,
    UpdateFn,
    identity,
    named,
    stateless,
    with_extra_args,
)
from flaxtrain.optim.tree_map_params import (
    tree_map_params,
)
from flaxtrain.optim.trust_ratio import (
    ScaleByTrustRatioState,
    scale_by_trust_ratio,
)
from flaxtrain.optim.weight_decay import (
    WeightDecaySchedule,
    add_decayed_weights,
)
from flaxtrain.optim.yogi import (
    scale_by_yogi,
    yogi,
)

__all__ = [
    "NAMED",
    "AdaptiveGradClipState",
    "AddNoiseState",
    "ApplyEvery",
    "ApplyIfFiniteState",
    "ClipByGlobalNormState",
    "ClipState",
    "ConditionFn",
    "ConditionallyMaskState",
    "ConditionallyTransformState",
    "Decay",
    "DecayRate",
    "EmaState",
    "EmptyState",
    "FactoredState",
    "GradientTransformation",
    "GradientTransformationExtraArgs",
    "InitFn",
    "InjectHyperparamsState",
    "InjectStatefulHyperparamsState",
    "Labels",
    "LookaheadParams",
    "LookaheadState",
    "Mask",
    "MaskedNode",
    "MaskedState",
    "MonitorState",
    "MultiSteps",
    "MultiStepsState",
    "MultiTransformState",
    "NoSlots",
    "NonNegativeParamsState",
    "ParamName",
    "PartitionState",
    "Rule",
    "ScaleByAdaDeltaState",
    "ScaleByAdamState",
    "ScaleByAdanState",
    "ScaleByAmsgradState",
    "ScaleByBeliefState",
    "ScaleByDistanceOverGradientsState",
    "ScaleByLionState",
    "ScaleByNovogradState",
    "ScaleByOptimisticGradientState",
    "ScaleByRStdDevState",
    "ScaleByRStdDevWithCountState",
    "ScaleByRmsState",
    "ScaleByRmsWithCountState",
    "ScaleByRpropState",
    "ScaleByRssState",
    "ScaleBySM3State",
    "ScaleByScheduleState",
    "ScaleByShampooState",
    "ScaleByTrustRatioState",
    "ScaleState",
    "ShouldSkipUpdateFunction",
    "SnapshotState",
    "StatefulSchedule",
    "TraceState",
    "TransformInitFn",
    "TransformUpdateExtraArgsFn",
    "TransformUpdateFn",
    "TransformationLike",
    "UpdateFn",
    "WeightDecaySchedule",
    "WrappedSchedule",
    "ZeroNansState",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "adaptive_grad_clip",
    "add_decayed_weights",
    "add_noise",
    "amsgrad",
    "apply_every",
    "apply_if_finite",
    "apply_updates",
    "centralize",
    "chain",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "conditionally_mask",
    "conditionally_transform",
    "ema",
    "flatten",
    "freeze",
    "fromage",
    "identity",
    "incremental_update",
    "init_empty_state",
    "init_slots",
    "inject_hyperparams",
    "inject_stateful_hyperparams",
    "keep_params_nonnegative",
    "lamb",
    "lars",
    "lion",
    "lookahead",
    "mask_by_path",
    "masked",
    "matrix_inverse_pth_root",
    "measure_with_ema",
    "monitor",
    "multi_normal",
    "multi_transform",
    "nadam",
    "nadamw",
    "named",
    "named_chain",
    "names_of",
    "nnls",
    "noisy_sgd",
    "normalize_by_update_norm",
    "novograd",
    "optimistic_adam",
    "optimistic_adam_v2",
    "optimistic_gradient_descent",
    "partition",
    "per_example_global_norm_clip",
    "per_example_layer_norm_clip",
    "per_leaf",
    "periodic_update",
    "polyak_sgd",
    "power_iteration",
    "radam",
    "rmsprop",
    "rprop",
    "rule",
    "safe_increment",
    "safe_int32_increment",
    "safe_norm",
    "safe_root_mean_squares",
    "scale",
    "scale_by_adadelta",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_adan",
    "scale_by_amsgrad",
    "scale_by_belief",
    "scale_by_distance_over_gradients",
    "scale_by_factored_rms",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_multipliers",
    "scale_by_novograd",
    "scale_by_optimistic_gradient",
    "scale_by_param_block_norm",
    "scale_by_param_block_rms",
    "scale_by_polyak",
    "scale_by_radam",
    "scale_by_rms",
    "scale_by_rprop",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_shampoo",
    "scale_by_sign",
    "scale_by_sm3",
    "scale_by_stddev",
    "scale_by_trust_ratio",
    "scale_by_yogi",
    "scale_gradient",
    "selective_transform",
    "set_to_zero",
    "sgd",
    "shampoo",
    "sign_sgd",
    "signum",
    "skip_large_updates",
    "skip_not_finite",
    "sm3",
    "snapshot",
    "stateless",
    "stateless_with_tree_map",
    "trace",
    "tree_bias_correction",
    "tree_map_params",
    "tree_update_infinity_moment",
    "tree_update_moment",
    "tree_update_moment_per_elem_norm",
    "unitwise_clip",
    "unitwise_norm",
    "update_slots",
    "with_extra_args",
    "with_extra_args_support",
    "yogi",
    "zero_nans",
]
