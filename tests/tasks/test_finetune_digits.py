"""Fine-tuning on digits: configs, data, and what each way leaves alone."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import flaxtrain as ft
from configs.finetune_digits import WAYS, get_config
from tasks.finetune_digits import Network, digits_0_to_4, digits_5_to_9
from tasks.finetune_digits import __main__ as script
from tests.runs import same

STEPS = 5
"""One before the first thawing, and a phase for each block: 20% of the run each."""


def small(way: str) -> ft.Config:
    config: ft.Config = get_config(way)
    config.model.features, config.steps, config.batch_size = (4, 4, 4), STEPS, 10
    if way != "pretrain":
        config.data.per_class = 2
    return config


def untrained(directory: Path) -> Path:
    """A checkpoint to start from, without the time that training takes."""
    image = np.zeros((1, 8, 8, 1), np.float32)
    variables = Network((4, 4, 4)).init(jax.random.key(7), image)
    return ft.checkpoint.save(directory / "start", variables)


def test_pretraining_sees_the_digits_0_to_4_and_fine_tuning_the_others() -> None:
    train, val = ft.data.digits()
    task = digits_0_to_4(get_config("pretrain"))
    assert len(task.train["label"]) == (train["label"] < 5).sum()
    assert len(task.val["label"]) == (val["label"] < 5).sum()
    task = digits_5_to_9(get_config("full"))
    assert (np.bincount(task.train["label"]) == 10).all()
    assert len(task.val["label"]) == (train["label"] >= 5).sum()
    own = train["label"] >= 5
    assert (task.val["label"] == train["label"][own] - 5).all()
    assert (task.val["image"] == train["image"][own]).all()


def test_no_example_is_both_labelled_and_held_out() -> None:
    config: ft.Config = get_config("full")
    _, val = ft.data.digits()
    pool = {image.tobytes() for image in val["image"]}
    test = digits_5_to_9(config)
    assert all(image.tobytes() in pool for image in test.train["image"])
    assert not any(image.tobytes() in pool for image in test.val["image"])
    config.data.tune = True
    tune = digits_5_to_9(config)
    assert same(tune.train, test.train)
    labelled = {image.tobytes() for image in tune.train["image"]}
    rest = [image.tobytes() for image in tune.val["image"]]
    assert all(image in pool and image not in labelled for image in rest)
    assert len(rest) + len(tune.train["label"]) == (val["label"] >= 5).sum()


def test_the_seed_draws_the_labelled_examples() -> None:
    config: ft.Config = get_config("full")
    first = digits_5_to_9(config).train
    assert same(first, digits_5_to_9(config).train)
    config.seed = 1
    assert not same(first, digits_5_to_9(config).train)


def test_all_ways_make_the_same_number_of_steps_on_the_same_examples() -> None:
    configs: list[ft.Config] = [get_config(way) for way in WAYS]
    assert len({(config.steps, config.batch_size) for config in configs}) == 1
    assert len({config.data.to_json() for config in configs}) == 1
    assert list(script.NAMES) == list(WAYS)


def test_an_unknown_way_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ft.errors.UnknownNameError, match="did you mean 'gradual'"):
        get_config("gradul")


def test_the_layers_are_the_blocks_and_the_head() -> None:
    config = small("full")
    trainer, task = ft.trainer_from_config(config, verbose=False)
    plan = trainer.plan(ft.fit_arguments(config, task)["ds"], steps=STEPS)
    assert isinstance(task.model, Network)
    assert [layer.lr_mult for layer in plan.layers] == ["0.343", "0.49", "0.7", "1"]


def test_the_head_alone_leaves_every_bit_of_the_backbone(tmp_path: Path) -> None:
    start = ft.checkpoint.read_source(untrained(tmp_path))
    trainer, metrics = script.fine_tune(small("head"), tmp_path / "start")
    assert trainer.state is not None and 0.0 <= metrics["accuracy"] <= 1.0
    assert same(trainer.state.params["backbone"], start["params"]["backbone"])
    assert same(trainer.state.collections["batch_stats"], start["batch_stats"])
    assert not same(trainer.state.params["head"], start["params"]["head"])
    assert list(trainer.state.opt_state.slots["mu"]) == ["head"]


def test_gradual_unfreezing_goes_from_the_head_to_the_first_block() -> None:
    config = small("gradual")
    trainer, task = ft.trainer_from_config(config, verbose=False)
    phases = trainer.plan(ft.fit_arguments(config, task)["ds"], steps=STEPS).phases
    assert [phase.start for phase in phases] == [0, 1, 2, 3]
    assert [phase.parameters for phase in phases] == [2, 5, 8, 11]
    thawed = [{name.split("/")[1] for name in phase.thaws} for phase in phases]
    assert thawed == [set(), {"block_2"}, {"block_1"}, {"block_0"}]


@pytest.mark.slow
def test_each_block_that_thawed_has_learned(tmp_path: Path) -> None:
    config = get_config("pretrain")
    pretrained = script.pretrain(config, tmp_path)
    trainer, metrics = script.fine_tune(get_config("gradual"), pretrained)
    assert trainer.state is not None
    assert metrics["accuracy"] > 0.85  # seeds 0 to 2 give 0.95 to 0.97, the head alone 0.93
    start = ft.checkpoint.read_source(pretrained)["params"]["backbone"]
    for block, params in trainer.state.params["backbone"].items():
        assert not same(params, start[block]), block


def test_the_table_has_a_row_for_each_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []

    def fine_tune(config: ft.Config, pretrained: Path | None, workdir: Path | None = None):
        runs.append((config.data.tune, config.seed, config.opt.learning_rate, pretrained))
        accuracy = 0.9 if config.opt.learning_rate == 0.01 else 0.8
        return None, {"accuracy": accuracy + config.seed / 100, "loss": 1.0}

    monkeypatch.setattr(script, "fine_tune", fine_tune)
    monkeypatch.setattr(script, "pretrain", lambda config, workdir: workdir)
    script.compare(tmp_path, rates=(0.001, 0.01), seeds=(0, 1))
    text = capsys.readouterr().out
    for name in script.NAMES.values():
        pattern = rf"^{re.escape(name)} +0\.01 +0\.9050 \+- 0\.0071   \(0\.9000, 0\.9100\)$"
        assert re.search(pattern, text, re.MULTILINE), text
    assert "the best of 2 for each way, tuned with seed 3" in text
    tuning, final = [run for run in runs if run[0]], [run for run in runs if not run[0]]
    assert len(tuning) == len(final) == 8
    assert {run[1] for run in tuning} == {script.TUNING_SEED} and not {3} & set(script.SEEDS)
    assert {run[2] for run in final} == {0.01}
    sources = [run[3] for run in final]
    assert sources[:2] == [tmp_path / "pretrain" / f"seed{seed}" for seed in (0, 1)]
    assert sources[-2:] == [None, None]  # from scratch
