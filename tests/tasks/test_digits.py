"""The default run: the config, the task and its model."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict

import flaxtrain as ft
from configs.digits import get_config
from tasks.digits import CNN


def small() -> ConfigDict:
    config = get_config()
    config.epochs, config.log_every, config.eval_every = 1, 10, "1ep"
    return config


def test_the_config_builds_the_task_it_names() -> None:
    config = get_config()
    trainer, task = ft.trainer_from_config(config, verbose=False)
    assert isinstance(task.model, CNN) and task.model.features == (32, 64)
    assert task.model.dropout == 0.3
    assert trainer.spec.name == "adamw" and trainer.spec.weight_decay == 0.05
    assert trainer.spec.learning_rate == ft.schedules.warmup_cosine_decay_schedule(
        0.0, 3e-3, "5%", "100%"
    )
    arguments = ft.fit_arguments(config, task)
    assert (arguments["epochs"], arguments["steps"]) == (30, None)
    assert (arguments["ds"].rows, arguments["eval_ds"].rows) == (64, 64)


def test_every_override_of_the_config_reaches_the_run() -> None:
    config = get_config()
    config.seed, config.batch_size, config.epochs = 3, 32, 2
    config.opt.learning_rate, config.model.dropout = 0.5, 0.0
    config.data.split = "writers"
    trainer, task = ft.trainer_from_config(config, verbose=False)
    assert trainer.seed == 3 and task.model.dropout == 0.0
    assert trainer.spec.learning_rate.peak_value == 0.5  # type: ignore[union-attr]
    arguments = ft.fit_arguments(config, task)
    assert arguments["ds"].rows == 32 and arguments["epochs"] == 2
    other = ft.trainer_from_config(get_config(), verbose=False)[1]
    assert (task.val["label"][:50] != other.val["label"][:50]).any()


def test_the_plan_shows_the_roles_and_that_only_kernels_decay() -> None:
    config = get_config()
    trainer, task = ft.trainer_from_config(config, verbose=False)
    arguments = ft.fit_arguments(config, task)
    plan = trainer.plan(arguments["ds"], epochs=arguments["epochs"])
    assert plan.horizon.batches == 30 * 23
    assert plan.loss == "softmax_cross_entropy_with_integer_labels"
    text = str(plan)
    for piece in ("Conv_0/kernel", "BatchNorm_1/scale", "Dense_0/bias", "690 (23 per epoch)"):
        assert piece in text
    assert "decayed: 3 parameters" in text  # two convolutions and the dense layer
    assert plan.learning_rate[0] == 0.0 and plan.learning_rate[689] < 1e-6


def test_one_epoch_is_far_better_than_chance() -> None:
    config = small()
    trainer, task = ft.trainer_from_config(config, verbose=False)
    result = trainer.fit(**ft.fit_arguments(config, task))
    assert int(result.state.step) == 23
    assert int(result.state.counters.examples) == len(task.train["label"]) == 1437
    (row,) = result.history.val
    assert row["accuracy"] > 0.6  # chance is 0.1; seeds 0 to 2 give 0.80 to 0.88
    assert trainer.evaluate(task.val)["accuracy"] == pytest.approx(row["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_the_full_run_reaches_its_accuracy_on_the_random_split() -> None:
    config = get_config()
    trainer, task = ft.trainer_from_config(config, verbose=False)
    trainer.fit(**ft.fit_arguments(config, task))
    assert trainer.evaluate(task.val)["accuracy"] >= 0.985
