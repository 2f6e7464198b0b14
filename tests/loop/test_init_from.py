"""Runs that begin with the weights of another one: what is loaded, told, and refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import flaxtrain as ft
from flaxtrain.tree import flatten, path_name
from tests.runs import bits

ADAM = ft.OptSpec("adam", 0.05)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.Dense(5, name="dense")(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, name="bn")(x))


class Net(nn.Module):
    """`[batch, 4] -> [batch, classes]`."""

    classes: int = 3

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        return nn.Dense(self.classes, name="head")(Encoder(name="enc")(x, train))


def data(classes: int = 3) -> Any:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 4)).astype("float32") + 1.0
    return {"x": x, "label": rng.integers(0, classes, 24).astype("int32")}


class Done(Exception):
    pass


class Beginning(ft.Hook):
    """Keeps a copy of the state that a run begins with, and may end the run there."""

    def __init__(self, stop: bool = True) -> None:
        self.stop = stop
        self.state: Any = None

    def on_start(self, run: Any) -> None:
        self.state = jax.tree.map(jnp.copy, run.state)
        if self.stop:
            raise Done


def trainer(init_from: Any, spec: ft.OptSpec = ADAM, **kwargs: Any) -> ft.Trainer:
    model = kwargs.pop("model", Net())
    kwargs = {"seed": 1, "verbose": False, **kwargs}
    return ft.Trainer(model, spec, init_from=init_from, **kwargs)


def fit(made: ft.Trainer, steps: int = 2) -> ft.FitResult:
    return made.fit(data(), steps=steps, batch_size=8)


def beginning(init_from: Any, **kwargs: Any) -> Any:
    """Returns the state that a run begins with; no step is made."""
    seen = Beginning()
    with pytest.raises(Done):
        fit(trainer(init_from, hooks=[seen], **kwargs))
    return seen.state


def variables_of(state: Any) -> dict[str, Any]:
    return {"params": state.params, **state.collections}


def same(first: Any, second: Any) -> set[str]:
    """Returns the names of the leaves that are the same, bit for bit."""
    return {name for name, _ in bits(first).items() & bits(second).items()}


ENCODER = {
    *(f"params/enc/{name}" for name in ("dense/kernel", "dense/bias", "bn/scale", "bn/bias")),
    *(f"batch_stats/enc/bn/{name}" for name in ("mean", "var")),
}
HEAD = {"params/head/kernel", "params/head/bias"}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run, after which no parameter and no statistic is what it was."""
    workdir = tmp_path_factory.mktemp("pretrained")
    fit(trainer(None, workdir=workdir, seed=0), steps=3)
    return workdir


@pytest.fixture(scope="module")
def variables(pretrained: Path) -> Any:
    state = ft.checkpoint.restore(pretrained / "checkpoints" / "3")
    return {"params": state["params"], **state["collections"]}


@pytest.fixture(scope="module")
def fresh() -> Any:
    return variables_of(beginning(None))


def test_the_cases_can_fail(variables: Any, fresh: Any) -> None:
    assert flatten(variables).keys() == flatten(fresh).keys()
    assert not same(variables, fresh)


# Sources.


def as_npz(variables: Any, directory: Path) -> str:
    file = str(directory / "weights.npz")
    np.savez(file, **{path_name(path): leaf for path, leaf in flatten(variables).items()})
    return file


def as_msgpack(variables: Any, directory: Path) -> str:
    file = directory / "weights.msgpack"
    file.write_bytes(flax.serialization.to_bytes(variables))
    return str(file)


@pytest.mark.parametrize("kind", ["workdir", "npz", "msgpack", "memory"])
def test_all_variables_come_from_the_source(
    kind: str, pretrained: Path, variables: Any, tmp_path: Path
) -> None:
    sources: dict[str, Callable[[], Any]] = {
        "workdir": lambda: pretrained,
        "npz": lambda: as_npz(variables, tmp_path),
        "msgpack": lambda: as_msgpack(variables, tmp_path),
        "memory": lambda: variables,
    }
    state = beginning(ft.Restore(sources[kind]()))
    assert same(variables_of(state), variables) == ENCODER | HEAD


def test_everything_but_the_variables_is_that_of_a_new_run(pretrained: Path) -> None:
    state, plain = beginning(ft.Restore(pretrained)), beginning(None)
    assert int(state.step) == int(state.counters.batches) == int(state.opt_state.count) == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt_state.slots))
    assert jax.random.key_data(state.rng).tolist() == jax.random.key_data(plain.rng).tolist()
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(plain.opt_state)


def test_a_skipped_head_keeps_its_initial_values(
    pretrained: Path, variables: Any, fresh: Any
) -> None:
    found = variables_of(beginning(ft.Restore(pretrained, skip=["head"])))
    assert same(found, variables) == ENCODER
    assert same(found, fresh) == HEAD


def test_another_head_is_new_where_it_is_skipped(pretrained: Path, variables: Any) -> None:
    state = beginning(ft.Restore(pretrained, skip=["head"]), model=Net(classes=7))
    assert same(variables_of(state), variables) == ENCODER
    assert state.params["head"]["bias"].shape == (7,)


def test_renamed_modules_bring_their_statistics(variables: Any) -> None:
    other = {
        name: {{"enc": "backbone"}.get(key, key): value for key, value in tree.items()}
        for name, tree in variables.items()
    }
    state = beginning(ft.Restore(other, rename={"backbone/(.*)": r"enc/\1"}))
    assert same(variables_of(state), variables) == ENCODER | HEAD


def test_a_tree_in_memory_survives_the_run_that_it_starts(variables: Any) -> None:
    source = jax.tree.map(jnp.asarray, variables)
    seen = Beginning(stop=False)
    made = trainer(ft.Restore(source), hooks=[seen])
    state = fit(made).state
    assert same(variables_of(seen.state), variables) == ENCODER | HEAD
    assert same(source, variables) == ENCODER | HEAD  # a donated array would raise
    assert not same(variables_of(state), variables)  # and the run has trained
    again = fit(trainer(ft.Restore(source))).state
    assert same(again.params, state.params) == set(map(path_name, flatten(state.params)))


# What is told.


def restored_text(workdir: Path) -> str:
    found = EventAccumulator(str(workdir / "train"))
    found.Reload()
    (event,) = found.Tensors("restore/text_summary")
    assert event.step == 0
    return event.tensor_proto.string_val[0].decode()


def test_the_report_is_announced_and_in_tensorboard(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    restore = ft.Restore(pretrained, skip=["head"])
    beginning(restore, workdir=tmp_path, verbose=True)
    source = pretrained.resolve() / "checkpoints" / "3"
    summary = f"loaded 6 arrays from {source}, skipped 2"
    assert summary in capsys.readouterr().out.splitlines()
    text = restored_text(tmp_path)
    assert text.startswith(summary)
    assert "| loaded | `enc/dense/kernel` | float32[4,5] | `enc/dense/kernel` |" in text
    assert "| loaded | `batch_stats/enc/bn/mean` |" in text
    assert "| skipped | `head/kernel` | float32[5,3] | `head/kernel` |" in text
    assert "opt_state" in text  # said to be left aside


def test_a_run_that_starts_from_nothing_tells_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beginning(None, workdir=tmp_path, verbose=True)
    assert "loaded" not in capsys.readouterr().out
    found = EventAccumulator(str(tmp_path / "train"))
    found.Reload()
    assert "restore/text_summary" not in found.Tags()["tensors"]
    assert "spec/text_summary" in found.Tags()["tensors"]


# What is refused.


def changed(variables: Any, name: str, change: Callable[[Any], Any]) -> Any:
    tree = {**variables["params"], name: jax.tree.map(change, variables["params"][name])}
    return {**variables, "params": tree}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda v: ft.Restore({"params": {"enc": v["params"]["enc"]}}), "missing  head/kernel"),
        (lambda v: ft.Restore({"params": v["params"]}), "missing  batch_stats/enc/bn/mean"),
        (
            lambda v: ft.Restore({**v, "params": {**v["params"], "top": np.ones(2, "f4")}}),
            "unused   top",
        ),
        (
            lambda v: ft.Restore(changed(v, "head", lambda a: a[..., :2])),
            "shape    head/kernel",
        ),
        (
            lambda v: ft.Restore(changed(v, "head", lambda a: np.asarray(a, "float16"))),
            "dtype    head/bias",
        ),
        (lambda v: ft.Restore(v, skip=["neck"]), "the entry 'neck' matches no path"),
        (lambda v: ft.Restore(v, rename={"neck/(.*)": r"enc/\1"}), "matches no path of the"),
    ],
    ids=["missing", "statistics", "unused", "shape", "dtype", "skip", "rename"],
)
def test_a_source_that_does_not_fit_leaves_nothing_behind(
    make: Any, text: str, variables: Any, tmp_path: Path
) -> None:
    made = trainer(make(variables), workdir=tmp_path)
    with pytest.raises(ft.errors.ParameterError) as caught:
        fit(made)
    assert text in str(caught.value) and caught.value.fix
    assert made.state is None and not list(tmp_path.iterdir())


def test_a_trainer_whose_source_was_missing_can_be_used_once_it_is_there(
    variables: Any, tmp_path: Path
) -> None:
    made = trainer(ft.Restore(tmp_path / "weights.npz"), workdir=tmp_path / "run")
    with pytest.raises(ft.errors.CheckpointError, match="nothing at this path"):
        fit(made)
    assert made.state is None and not (tmp_path / "run").exists()
    with pytest.raises(ft.errors.StateError):
        made.predict(data(), batch_size=8)
    as_npz(variables, tmp_path)
    assert int(fit(made).state.step) == 2


@pytest.mark.parametrize("wrong", ["weights.npz", {"params": {}}, Path("weights")])
def test_what_is_no_restore_is_refused(wrong: Any) -> None:
    with pytest.raises(ft.errors.ArgumentTypeError, match="not a Restore") as caught:
        trainer(wrong)
    assert "ft.Restore" in str(caught.value.fix)


# With the rest of a run.


def test_a_decay_towards_the_start_pulls_to_the_restored_values(variables: Any) -> None:
    def end(weight_decay: float, decay_to: Any, lr: float = 0.02) -> ft.TrainState:
        spec = ft.OptSpec("adamw", lr, weight_decay=weight_decay, decay_to=decay_to)
        return fit(trainer(ft.Restore(variables), spec), steps=30).state

    def distance(state: ft.TrainState) -> float:
        kernels = [(name, "kernel") for name in ("head",)] + [("enc", "dense", "kernel")]
        here, there = flatten(state.params), flatten(variables["params"])
        return sum(float(np.linalg.norm(here[path] - there[path])) for path in kernels)

    pulled, free = end(10.0, "init"), end(0.0, "zero")
    assert same(pulled.opt_state.slots["initial"], variables["params"]) == {
        "enc/dense/kernel",
        "head/kernel",
    }
    # A decay of 0.02 x 10 in each step holds a parameter within about 5 steps of Adam.
    assert 0 < distance(pulled) < 0.5 * distance(free)


def test_a_run_that_goes_on_does_not_read_its_source_again(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(pretrained, source)
    restore = ft.Restore(source, skip=["head"])
    whole = fit(trainer(restore), steps=4).state
    fit(trainer(restore, workdir=tmp_path / "run"), steps=2)
    shutil.rmtree(source)
    made = trainer(restore, workdir=tmp_path / "run", verbose=True)
    state = fit(made, steps=4).state
    assert "init_from= is not read again" in capsys.readouterr().out
    one, other = ((s.params, s.collections, s.opt_state) for s in (state, whole))
    assert bits(one) == bits(other)
    # Neither does a second fit of the same trainer; a run that begins has to.
    assert int(fit(made, steps=1).state.step) == 5
    with pytest.raises(ft.errors.CheckpointError, match="nothing at this path"):
        fit(trainer(restore, workdir=tmp_path / "other"))


def test_a_run_begins_where_the_source_was_saved_if_that_is_its_own_workdir(
    pretrained: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(pretrained, workdir)
    made = trainer(ft.Restore(workdir, skip=["head"]), workdir=workdir, seed=0)
    assert int(fit(made, steps=4).state.step) == 4


def test_adapters_start_beside_restored_kernels(variables: Any, fresh: Any) -> None:
    lora = ft.LoRA("enc/dense/kernel", rank=2, train="head")
    seen = Beginning(stop=False)
    made = trainer(ft.Restore(variables, skip=["head"]), adapters=lora, hooks=[seen])
    end = fit(made).state
    assert made.recipe is not None
    start = variables_of(seen.state)
    assert same(start, variables) == ENCODER and same(start, fresh) == HEAD
    own = made.recipe.init(1).params["lora"]
    assert same(start["params"]["lora"], own) == set(map(path_name, flatten(own)))
    # The model starts as the restored one, and its kernels stay what they were.
    assert not np.any(start["params"]["lora"]["enc"]["dense"]["kernel"]["lora_b"])
    assert same(variables_of(end), variables) == ENCODER
    assert not same(end.params, fresh["params"])
    assert np.any(end.params["lora"]["enc"]["dense"]["kernel"]["lora_b"])


def test_adapters_in_the_source_have_to_be_skipped(variables: Any) -> None:
    """They would be lost in silence: the kernels beside them are those from before."""
    lora = ft.LoRA("enc/dense/kernel", rank=2)
    tuned = beginning(ft.Restore(variables), adapters=lora)
    source = variables_of(tuned)
    for adapters in (None, lora):
        with pytest.raises(ft.errors.ParameterError) as caught:
            beginning(ft.Restore(source), adapters=adapters)
        assert "unused   lora/enc/dense/kernel/lora_a" in str(caught.value)
    state = beginning(ft.Restore(source, skip=["lora"]))
    assert same(variables_of(state), variables) == ENCODER | HEAD
    merged = {**source, "params": lora.merge(source["params"])}
    assert same(variables_of(beginning(ft.Restore(merged))), variables) == ENCODER | HEAD


def test_frozen_modules_keep_the_restored_values(variables: Any) -> None:
    spec = ft.OptSpec("adam", 0.05, freeze=["enc/**"])
    end = fit(trainer(ft.Restore(variables), spec)).state
    assert same(variables_of(end), variables) == ENCODER
