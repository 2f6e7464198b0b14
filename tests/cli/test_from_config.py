"""From a config to a spec, a trainer and the arguments of fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import pytest
from clu import metrics as clu_metrics
from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import FieldReference, placeholder

import flaxtrain as ft
from flaxtrain import errors, schedules

OPT = {"optimizer": "sgd", "learning_rate": 0.1}


@ft.register_task("classes of the tests")
def classes(config: ConfigDict) -> ft.Task:
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    data = {"x": x, "label": (x[:, 0] > 0).astype(np.int32)}
    return ft.Task(
        model=nn.Dense(2),
        train=data,
        val=data,
        loss="softmax_cross_entropy_with_integer_labels",
        metrics=clu_metrics.Collection.create(hits=clu_metrics.Accuracy),
    )


def config(**fields: Any) -> ConfigDict:
    return ConfigDict({"task": "classes of the tests", "opt": OPT, **fields})


def test_a_spec_takes_all_arguments_from_the_config() -> None:
    opt = {"optimizer": "adamw", "learning_rate": 1e-3, "b2": 0.95, "clip_norm": 1.0}
    expected = ft.OptSpec("adamw", 1e-3, b2=0.95, clip_norm=1.0)
    assert ft.spec_from_config(ConfigDict({"opt": opt})) == expected
    assert ft.spec_from_config(FrozenConfigDict({"opt": opt})) == expected


def test_groups_and_freezes_of_a_config_are_data() -> None:
    opt = {
        **OPT,
        "groups": ({"select": "head", "lr_mult": 2.0},),
        "freeze": ("body", {"select": "stem", "until": "2ep"}),
    }
    spec = ft.spec_from_config(ConfigDict({"opt": opt}))
    assert spec.groups == (ft.Group("head", lr_mult=2.0),)
    assert spec.freeze == (ft.Freeze("body"), ft.Freeze("stem", until="2ep"))


def test_averages_clips_and_precision_of_a_config_are_data() -> None:
    opt = {
        **OPT,
        "ema": {"kind": "Ema", "decay": 0.99},
        "clip": ({"kind": "ClipValue", "limit": 2.0},),
        "accumulate": {"kind": "AccumulateBatches", "count": 2},
    }
    spec = ft.spec_from_config(ConfigDict({"opt": opt}))
    assert (spec.ema, spec.clip) == (ft.Ema(0.99), (ft.ClipValue(2.0),))
    assert spec.accumulate == ft.AccumulateBatches(2)
    trainer, _ = ft.trainer_from_config(config(precision="bf16"))
    assert trainer.options.precision == ft.Precision("bf16")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (1024, ft.FixedScale(1024.0)),
        ({"kind": "FixedScale", "value": 8.0}, ft.FixedScale(8.0)),
        ({"kind": "NoScale"}, ft.NoScale()),
        (
            {"kind": "DynamicScale", "init": 64.0, "factor": 4.0},
            ft.DynamicScale(64.0, factor=4.0),
        ),
        (placeholder(float), ft.DynamicScale()),
    ],
)
def test_a_config_chooses_the_loss_scale(given: Any, expected: Any) -> None:
    trainer, _ = ft.trainer_from_config(config(precision="f16", loss_scale=given))
    assert repr(trainer.options.loss_scale) == repr(expected)
    assert bool(trainer.options.notes) == isinstance(given, FieldReference)


def test_a_config_says_on_which_devices_a_run_is_and_how_steps_are_called() -> None:
    wanted = config(mesh={"data": 1}, sharding="zero1", steps_per_call=5)
    trainer, _ = ft.trainer_from_config(wanted)
    data = {"x": np.ones((8, 4), "float32"), "label": np.arange(8) % 2}
    lines = str(trainer.plan(data, steps=5, batch_size=4)).splitlines()
    (line,) = (line for line in lines if line.startswith("devices"))
    assert "zero1" in line
    assert any("5 steps" in line for line in lines), lines


def test_a_config_says_where_weights_come_from_and_what_is_adapted() -> None:
    wanted = config(
        init_from={"source": "runs/before", "skip": ("head",)},
        adapters={"select": "kernel", "rank": 1},
    )
    trainer, _ = ft.trainer_from_config(wanted)
    assert trainer.init_from is not None
    assert (trainer.init_from.source, trainer.init_from.skip) == ("runs/before", ("head",))
    assert trainer.adapters == ft.LoRA("kernel", rank=1)
    # A source that is left open means new weights.
    open_, _ = ft.trainer_from_config(config(init_from={"source": placeholder(str)}))
    assert open_.init_from is None and open_.adapters is None


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (
            {"schedule": "cosine_decay_schedule", "decay_steps": 9},
            schedules.cosine_decay_schedule(0.1, 9),
        ),
        (
            {"schedule": "warmup_constant_schedule", "init_value": 0.0, "warmup_steps": 3},
            schedules.warmup_constant_schedule(0.0, 0.1, 3),
        ),
        ({"schedule": "constant_schedule"}, schedules.constant_schedule(0.1)),
        # A peak that is written out is not replaced.
        (
            {"schedule": "cosine_decay_schedule", "init_value": 0.7, "decay_steps": 9},
            schedules.cosine_decay_schedule(0.7, 9),
        ),
    ],
)
def test_the_learning_rate_is_the_peak_of_the_schedule(
    schedule: dict[str, Any], expected: schedules.Schedule
) -> None:
    assert ft.spec_from_config(config(schedule=schedule)).learning_rate == expected


def test_a_schedule_without_a_peak_stands_for_itself() -> None:
    parts = [{"schedule": "constant_schedule", "value": value} for value in (0.1, 0.2)]
    joined = {"schedule": "join_schedules", "schedules": parts, "boundaries": [3]}
    rate: Any = ft.spec_from_config(config(schedule=joined)).learning_rate
    assert [round(float(rate(step)), 3) for step in (2, 3)] == [0.1, 0.2]


def test_a_trainer_takes_seed_log_points_loss_and_metrics(tmp_path: Path) -> None:
    wanted = config(seed=7, log_every=2, batch_size=10, epochs=3, eval_every=3)
    trainer, task = ft.trainer_from_config(wanted, tmp_path, verbose=False)
    assert (trainer.seed, trainer.log_every, trainer.workdir) == (7, 2, tmp_path)
    result = trainer.fit(**ft.fit_arguments(wanted, task))
    assert [row["step"] for row in result.history.train] == [2, 4, 6]
    assert [row["step"] for row in result.history.val] == [3, 6]
    assert {"loss", "hits"} <= result.history.val[0].keys()
    assert ft.checkpoint.latest(tmp_path / "checkpoints") is not None


def test_a_task_without_validation_data_is_not_evaluated() -> None:
    wanted = config(batch_size=20, epochs=1)
    trainer, task = ft.trainer_from_config(wanted, verbose=False)
    alone = dataclasses.replace(task, val=None)
    assert trainer.fit(**ft.fit_arguments(wanted, alone)).history.val == []
    every = ft.fit_arguments(config(eval_every=3), alone)
    with pytest.raises(errors.ArgumentError, match="eval_every=3 is given, and no eval_ds"):
        trainer.fit(**every)


def test_the_order_of_the_data_depends_on_the_seed_of_the_config() -> None:
    orders = []
    for seed in (0, 0, 1):
        wanted = config(seed=seed, batch_size=20)
        _, task = ft.trainer_from_config(wanted, verbose=False)
        ds = ft.fit_arguments(wanted, task)["ds"]
        orders.append(next(ds.epoch(0)).data["x"].tobytes())
    assert orders[0] == orders[1] != orders[2]


WRONG: dict[str, tuple[Callable[[], Any], type[ft.FlaxtrainError], str]] = {
    "no config": (
        lambda: ft.trainer_from_config({"task": "digits"}),
        errors.ArgumentTypeError,
        """the config is a dict
  where: get_config()
  fix:   return an ml_collections.ConfigDict""",
    ),
    "no task": (
        lambda: ft.trainer_from_config(ConfigDict({"opt": OPT})),
        errors.ArgumentError,
        """task is missing
  where: config
  fix:   name a registered task: task='digits'""",
    ),
    "misspelt field": (
        lambda: ft.trainer_from_config(config(log_evry=3)),
        errors.UnknownNameError,
        """unknown config field 'log_evry'
  where: config.log_evry
  fix:   did you mean 'log_every'? Known: adapters, backend, batch_size, data, epochs, """
        "eval_every, init_from, log_every, loss_scale, mesh, model, opt, precision, schedule, "
        "seed, sharding, steps, steps_per_call, task",
    ),
    "misspelt argument of a source": (
        lambda: ft.trainer_from_config(config(init_from={"source": "x", "skp": ("a",)})),
        errors.UnknownNameError,
        """unknown argument 'skp'
  where: config.init_from
  fix:   did you mean 'skip'? Known: dtype, rename, reshape, skip, source, strict""",
    ),
    "adapters of nothing": (
        lambda: ft.trainer_from_config(config(adapters={"rank": 2})),
        errors.ArgumentError,
        """select is missing
  where: config.adapters
  fix:   write adapters={'select': '#kernel', 'rank': 4}""",
    ),
    "no opt": (
        lambda: ft.spec_from_config(ConfigDict({"task": "digits"})),
        errors.ArgumentError,
        """opt is missing
  where: config
  fix:   add opt={'optimizer': 'adamw', 'learning_rate': 1e-3}""",
    ),
    "opt as text": (
        lambda: ft.spec_from_config(ConfigDict({"opt": "adamw"})),
        errors.ArgumentTypeError,
        """config.opt is a str, not a dict of arguments
  where: config.opt
  fix:   write opt={'optimizer': 'adamw', 'learning_rate': 1e-3}""",
    ),
    "no optimizer": (
        lambda: ft.spec_from_config(ConfigDict({"opt": {"learning_rate": 0.1}})),
        errors.ArgumentError,
        """optimizer is missing
  where: config.opt
  fix:   name one: 'adamw'""",
    ),
    "misspelt optimizer": (
        lambda: ft.spec_from_config(ConfigDict({"opt": {**OPT, "optimizer": "sdg"}})),
        errors.UnknownNameError,
        f"""unknown optimizer 'sdg'
  where: OptSpec(optimizer)
  fix:   did you mean 'sgd'? Known: {", ".join(sorted(ft.optim.NAMED))}""",
    ),
    "misspelt argument": (
        lambda: ft.spec_from_config(ConfigDict({"opt": {**OPT, "momentun": 0.9}})),
        errors.UnknownNameError,
        """unknown argument 'momentun'
  where: OptSpec('sgd')
  fix:   did you mean 'momentum'? Known: accumulate, accumulator_dtype, clip, """
        "clip_norm, decay, decay_to, ema, freeze, groups, layer_decay, learning_rate, "
        "max_skips, momentum, nesterov, nonfinite, spikes, weight_decay",
    ),
    "schedule as text": (
        lambda: ft.spec_from_config(config(schedule="cosine_decay_schedule")),
        errors.ArgumentTypeError,
        """config.schedule is a str, not a dict of arguments
  where: config.schedule
  fix:   write schedule={'schedule': 'cosine_decay_schedule', 'decay_steps': '100%'}""",
    ),
    "schedule without a name": (
        lambda: ft.spec_from_config(config(schedule={"decay_steps": 3})),
        errors.ArgumentError,
        """schedule is missing
  where: config.schedule
  fix:   name one: 'cosine_decay_schedule'""",
    ),
    "class instead of a schedule's name": (
        lambda: ft.spec_from_config(config(schedule={"schedule": "CosineDecaySchedule"})),
        errors.UnknownNameError,
        """unknown schedule 'CosineDecaySchedule'
  where: config.schedule
  fix:   did you mean 'cosine_decay_schedule'? Known: """
        + ", ".join(sorted(schedules.FACTORIES)),
    ),
    "loss scale by a word": (
        lambda: ft.trainer_from_config(config(loss_scale="dynamic")),
        errors.ArgumentTypeError,
        """config.loss_scale is a str, neither a number nor a dict
  where: config.loss_scale
  fix:   write loss_scale=1024.0, or loss_scale={'kind': 'DynamicScale', 'init': 1024.0}""",
    ),
    "loss scale without its kind": (
        lambda: ft.trainer_from_config(config(loss_scale={"init": 4.0})),
        errors.ArgumentError,
        """kind is missing
  where: config.loss_scale
  fix:   write loss_scale={'kind': 'DynamicScale', 'init': 1024.0}""",
    ),
    "misspelt loss scale": (
        lambda: ft.trainer_from_config(config(loss_scale={"kind": "DynamicScal"})),
        errors.UnknownNameError,
        """unknown kind 'DynamicScal'
  where: config.loss_scale
  fix:   did you mean 'DynamicScale'? Known: DynamicScale, FixedScale, NoScale""",
    ),
    "misspelt argument of a loss scale": (
        lambda: ft.trainer_from_config(
            config(loss_scale={"kind": "DynamicScale", "facto": 2.0})
        ),
        errors.UnknownNameError,
        """unknown argument 'facto'
  where: config.loss_scale: DynamicScale
  fix:   did you mean 'factor'? Known: factor, growth_interval, init, max, min""",
    ),
    "loss scale without its value": (
        lambda: ft.trainer_from_config(config(loss_scale={"kind": "FixedScale"})),
        errors.ArgumentError,
        """value is missing
  where: config.loss_scale
  fix:   write loss_scale=1024.0""",
    ),
    "schedule without a peak": (
        lambda: ft.spec_from_config(
            ConfigDict(
                {
                    "opt": {"optimizer": "sgd"},
                    "schedule": {"schedule": "cosine_decay_schedule", "decay_steps": 3},
                }
            )
        ),
        errors.ArgumentError,
        """learning_rate is missing
  where: config.opt
  fix:   give the schedule's peak: 1e-3""",
    ),
}


@pytest.mark.parametrize("use", WRONG)
def test_a_wrong_config_says_what_where_and_what_to_do(use: str) -> None:
    run, kind, text = WRONG[use]
    with pytest.raises(kind) as caught:
        run()
    assert type(caught.value) is kind
    assert str(caught.value) == text
