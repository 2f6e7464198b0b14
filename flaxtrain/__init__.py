"""flaxtrain trains Flax Linen models: `Trainer(model, opt_spec).fit(ds)`.

Example:
    >>> import flax.linen as nn, numpy as np, flaxtrain as ft
    >>> x = np.random.default_rng(0).normal(size=(256, 8)).astype("float32")
    >>> data = {"x": x, "label": (x.sum(1) > 0).astype("int32")}
    >>> trainer = ft.Trainer(nn.Dense(2), ft.OptSpec("adam", learning_rate=0.05), verbose=False)
    >>> result = trainer.fit(ft.data.batches(data, batch_size=64, shuffle=True), epochs=20)
    >>> trainer.evaluate(data)["accuracy"] > 0.95
    True
"""

from flaxtrain import (
    checkpoint,
    data,
    errors,
    losses,
    metrics,
    monitor,
    optim,
    parallel,
    params,
    precision,
    schedules,
)
from flaxtrain.cli import (
    Config,
    Task,
    fit_arguments,
    register_task,
    spec_from_config,
    trainer_from_config,
)
from flaxtrain.errors import FlaxtrainError
from flaxtrain.loop import (
    CheckReport,
    Console,
    Evaluate,
    FitResult,
    History,
    Hook,
    LearningRateCurve,
    Plan,
    SaveEvery,
    TensorBoard,
    Trainer,
    diagnose,
)
from flaxtrain.metrics import Mean
from flaxtrain.parallel import Sharding
from flaxtrain.params import LoRA, Restore
from flaxtrain.precision import DynamicScale, FixedScale, NoScale, Policy, Precision
from flaxtrain.spec import (
    AccumulateBatches,
    AdaptiveClip,
    ClipBlockRms,
    ClipNorm,
    ClipValue,
    ClipZScore,
    Ema,
    Freeze,
    Group,
    LayerDecay,
    Lookahead,
    OptSpec,
    Spikes,
    Swa,
    get_lr,
    set_hyperparameters,
)
from flaxtrain.train import (
    BoundModel,
    Diagnosis,
    Recipe,
    StepOptions,
    TrainState,
    eval_params,
    eval_state,
    eval_step,
    make_recipe,
    predict_step,
    train_step,
)
from flaxtrain.version import __version__

__all__ = [
    "AccumulateBatches",
    "AdaptiveClip",
    "BoundModel",
    "CheckReport",
    "ClipBlockRms",
    "ClipNorm",
    "ClipValue",
    "ClipZScore",
    "Config",
    "Console",
    "Diagnosis",
    "DynamicScale",
    "Ema",
    "Evaluate",
    "FitResult",
    "FixedScale",
    "FlaxtrainError",
    "Freeze",
    "Group",
    "History",
    "Hook",
    "LayerDecay",
    "LearningRateCurve",
    "LoRA",
    "Lookahead",
    "Mean",
    "NoScale",
    "OptSpec",
    "Plan",
    "Policy",
    "Precision",
    "Recipe",
    "Restore",
    "SaveEvery",
    "Sharding",
    "Spikes",
    "StepOptions",
    "Swa",
    "Task",
    "TensorBoard",
    "TrainState",
    "Trainer",
    "__version__",
    "checkpoint",
    "data",
    "diagnose",
    "errors",
    "eval_params",
    "eval_state",
    "eval_step",
    "fit_arguments",
    "get_lr",
    "losses",
    "make_recipe",
    "metrics",
    "monitor",
    "optim",
    "parallel",
    "params",
    "precision",
    "predict_step",
    "register_task",
    "schedules",
    "set_hyperparameters",
    "spec_from_config",
    "train_step",
    "trainer_from_config",
]
