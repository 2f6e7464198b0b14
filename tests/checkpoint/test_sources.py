from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.core import freeze
from flax.training.train_state import TrainState

import flaxtrain as ft
from flaxtrain import checkpoint
from flaxtrain.checkpoint.sources import find_source, read_source, restored_variables
from flaxtrain.errors import ArgumentTypeError, CheckpointError, ParameterError
from flaxtrain.params.restore import Restore
from flaxtrain.tree import flatten
from tests.runs import same


class Model(nn.Module):
    classes: int = 3

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.Dense(4, name="body")(x)
        x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
        return nn.Dense(self.classes, name="head")(x)


INPUT = np.ones((2, 5), np.float32)


def variables(seed: int = 0, **fields: Any) -> dict[str, Any]:
    return Model(**fields).init(jax.random.key(seed), INPUT)


def train_state() -> TrainState:
    class State(TrainState):
        batch_stats: Any

    made = variables(1)
    return State.create(
        apply_fn=Model().apply,
        params=made["params"],
        batch_stats=made["batch_stats"],
        tx=optax.adam(1e-3),
    )


def as_npz(path: Path) -> Path:
    made = {"/".join(key): leaf for key, leaf in flatten(variables(1)).items()}
    np.savez(path, **made)
    return path


def as_msgpack(path: Path) -> Path:
    path.write_bytes(flax.serialization.to_bytes(variables(1)))
    return path


def as_msgpack_of_a_train_state(path: Path) -> Path:
    path.write_bytes(flax.serialization.to_bytes(train_state()))
    return path


def as_our_checkpoint(path: Path) -> Path:
    made = variables(1)
    return checkpoint.save(
        path,
        ft.TrainState.create(
            apply_fn=None,
            params=made["params"],
            collections={"batch_stats": made["batch_stats"]},
            tx=ft.optim.adam(1e-3),
        ),
    )


def as_our_checkpoint_of_variables(path: Path) -> Path:
    return checkpoint.save(path, freeze(variables(1)))


def as_pytree_checkpoint(path: Path) -> Path:
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, variables(1))
    return path


def as_standard_checkpoint(path: Path) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        state = train_state()
        tree = {"params": state.params, "batch_stats": state.batch_stats, "step": 3}
        checkpointer.save(path, tree | {"opt_state": state.opt_state})
    return path


def as_manager(path: Path) -> Path:
    with ocp.CheckpointManager(path) as manager:
        manager.save(1, args=ocp.args.StandardSave(variables(7)))
        manager.save(12, args=ocp.args.StandardSave(variables(1)))
    return path


KINDS = [
    as_npz,
    as_msgpack,
    as_msgpack_of_a_train_state,
    as_our_checkpoint,
    as_our_checkpoint_of_variables,
    as_pytree_checkpoint,
    as_standard_checkpoint,
    as_manager,
]


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
def test_every_kind_of_source_gives_the_same_bits(write: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "source.npz")
    result, report = restored_variables(Restore(source), variables(2))
    expected = variables(1)
    assert jax.tree.structure(result) == jax.tree.structure(expected) and same(result, expected)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(result))
    assert len(report.loaded) == 8 and not (report.missing or report.unused or report.renamed)
    assert report.source == str(find_source(source))


def test_a_source_in_memory_is_not_donated_with_the_state() -> None:
    source = variables(1)
    result, report = restored_variables(Restore(source), variables(2))
    jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)(result)
    assert np.isfinite(source["params"]["body"]["kernel"]).all()
    assert len(report.loaded) == 8 and report.source == ""


def test_the_workdir_of_a_run_gives_the_last_checkpoint(tmp_path: Path) -> None:
    data = {"x": np.tile(INPUT, (4, 1)), "label": np.zeros(8, np.int32)}
    trainer = ft.Trainer(
        Model(),
        ft.OptSpec("adam", learning_rate=0.1),
        workdir=tmp_path,
        hooks=(ft.SaveEvery(1),),
        verbose=False,
    )
    trainer.fit(ft.data.batches(data, 4), steps=3)
    assert find_source(tmp_path) == tmp_path / "checkpoints" / "3"
    restore = Restore(tmp_path, skip=["head"])
    result, report = restored_variables(restore, variables(2, classes=7))
    state = trainer.state
    kept = {"body": state.params["body"], "bn": state.params["bn"]}
    assert jax.tree.all(
        jax.tree.map(np.array_equal, kept, {k: result["params"][k] for k in kept})
    )
    assert jax.tree.all(
        jax.tree.map(np.array_equal, state.collections["batch_stats"], result["batch_stats"])
    )
    assert result["params"]["head"]["bias"].shape == (7,)
    assert "opt_state" in report.ignored and len(report.skipped) == 2


def test_read_source_returns_nested_dicts(tmp_path: Path) -> None:
    tree = read_source(as_msgpack_of_a_train_state(tmp_path / "state"))
    assert tree["step"] == 0 and isinstance(tree["params"]["body"]["kernel"], np.ndarray)
    frozen = freeze({"a": {"b": INPUT}, "c": [1, 2]})
    assert read_source(frozen)["a"]["b"] is INPUT
    assert read_source({"c": [1, None]}) == {"c": {"0": 1, "1": None}}
    saved = checkpoint.save(tmp_path / "ours", {"w": INPUT, "none": None, "empty": {}})
    assert read_source(saved).keys() == {"w"}


def test_a_pretrained_start_that_does_not_fit_says_how(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="2 shape") as caught:
        restored_variables(Restore(as_npz(tmp_path / "a.npz")), variables(2, classes=7))
    assert "head/kernel: float32[4,3] in the source, float32[4,7] here" in caught.value.found
    assert str(caught.value.where).startswith("Restore('")


def test_a_path_without_a_checkpoint_says_what_is_there(tmp_path: Path) -> None:
    def error(path: Any) -> CheckpointError:
        with pytest.raises(CheckpointError) as caught:
            read_source(path)
        return caught.value

    assert "nothing at this path" in error(tmp_path / "absent").found
    assert "only local files" in error("gs://bucket/vit").found
    assert "it is empty" in error(tmp_path).found
    (tmp_path / "config.json").write_text("{}")
    assert "it holds config.json" in error(tmp_path).found
    as_npz(tmp_path / "model.npz")
    as_pytree_checkpoint(tmp_path / "vit")
    assert "pass one of: vit/, model.npz" in str(error(tmp_path).fix)
    for index in range(4):
        (tmp_path / f"file_{index}").touch()
    assert "and 2 more" in error(tmp_path).found
    single = checkpoint.save(tmp_path / "single", jnp.ones(2))
    assert "a single ndarray, not a tree" in error(single).found


def test_composite_items_of_a_manager_are_offered(tmp_path: Path) -> None:
    with ocp.CheckpointManager(tmp_path) as manager:
        items = {"model": ocp.args.StandardSave(variables(1)), "ema": None}
        manager.save(5, args=ocp.args.Composite(model=items["model"]))
    with pytest.raises(CheckpointError, match="has none") as caught:
        read_source(tmp_path)
    assert "model/" in str(caught.value.fix)
    assert "params" in read_source(tmp_path / "5" / "model")


def test_a_damaged_checkpoint_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = as_our_checkpoint(tmp_path / "ours")
    data = max(ours.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        read_source(ours)
    plain = as_pytree_checkpoint(tmp_path / "plain")
    (plain / "_METADATA").write_text("{")
    with caplog.at_level(logging.WARNING), pytest.raises(CheckpointError, match="Orbax can't"):
        read_source(plain)


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ArgumentTypeError, match="not a path"):
        read_source(3)
    with pytest.raises(ArgumentTypeError, match="not a Restore"):
        restored_variables({"params": {}}, variables())
