from __future__ import annotations

import logging
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import flaxtrain as ft
from flaxtrain import checkpoint
from flaxtrain.checkpoint import latest, read_manifest, read_meta, restore, save, steps, storage
from flaxtrain.checkpoint.stored_arrays import quiet
from flaxtrain.errors import ArgumentTypeError, CheckpointError

ROOT = Path(__file__).resolve().parents[2]


class Slots(NamedTuple):
    mu: Any
    nu: Any


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any
    ema: Any = None
    apply_fn: Any = flax.struct.field(pytree_node=False, default=None)


def mixed_state(scale: float = 1.0) -> State:
    params = {"Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3) * scale, "bias": jnp.ones(3)}}
    return State(
        step=jnp.int32(7 * scale),
        params=params,
        opt_state=(Slots(jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), {}), ()),
        ema={
            "key": jax.random.key(int(scale)),
            "keys": jax.random.split(jax.random.key(1), 2),
            "none": None,
            "zero_size": jnp.zeros((0, 4), jnp.bfloat16),
            "float": 0.1 * scale,
            "int": 2**70,
            "bool": True,
            "numpy_scalar": np.float32(0.1),
            "numpy_array": np.arange(4, dtype=np.uint16),
            "complex": jnp.array(1 + 2j),
            "int4": jnp.array([1, -3], jnp.int4),
            "dots.in/names": jnp.float32(1),
            "dots": {"in/names": jnp.float32(2)},
        },
        apply_fn=len,
    )


def plain(leaf):
    """A leaf as something that compares bit by bit."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return (str(leaf.dtype), np.asarray(jax.random.key_data(leaf)).tobytes())
    if isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        return (type(leaf).__name__, leaf.dtype, leaf.shape, np.asarray(leaf).tobytes())
    return (type(leaf).__name__, repr(leaf))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert list(map(plain, jax.tree.leaves(a))) == list(map(plain, jax.tree.leaves(b)))


class TestRoundTrip:
    def test_every_kind_of_leaf_comes_back_as_it_was(self, tmp_path):
        state = mixed_state()
        path = save(tmp_path / "7", state)
        assert_same(restore(path, like=mixed_state(scale=3.0)), state)

    def test_shapes_will_do_as_the_target(self, tmp_path):
        state = {"w": jnp.ones((2, 3)), "key": jax.random.key(5)}
        path = save(tmp_path / "1", state)
        assert_same(restore(path, like=jax.eval_shape(lambda: state)), state)

    def test_without_a_target_it_is_nested_dicts_of_numpy_arrays(self, tmp_path):
        tree = restore(save(tmp_path / "1", mixed_state()))
        assert list(tree) == ["step", "params", "opt_state", "ema"]
        kernel = tree["opt_state"]["0"]["mu"]["Dense_0"]["kernel"]
        assert type(kernel) is np.ndarray and kernel.dtype == jnp.bfloat16
        assert tree["opt_state"]["0"]["nu"] == {} == tree["opt_state"]["1"]
        assert tree["ema"]["none"] is None and tree["ema"]["int"] == 2**70
        assert tree["ema"]["dots"]["in/names"] == 2 and tree["ema"]["dots.in/names"] == 1
        assert "apply_fn" not in tree

    @pytest.mark.parametrize("state", [{}, None, (), {"a": None, "b": 3}, 5, np.zeros((0, 2))])
    def test_states_without_stored_arrays_come_back(self, tmp_path, state):
        path = save(tmp_path / "1", state)
        assert_same(restore(path, like=state), state)

    def test_a_single_array_is_a_state_too(self, tmp_path):
        path = save(tmp_path / "1", jnp.arange(3))
        assert_same(restore(path, like=jnp.zeros(3, jnp.int32)), jnp.arange(3))
        assert np.array_equal(restore(path), np.arange(3))

    def test_float64_states_come_back(self, tmp_path):
        with jax.enable_x64(True):
            state = {"w": jnp.array([0.1, 1e-300]), "n": jnp.array(2**40)}
            assert_same(restore(save(tmp_path / "1", state), like=state), state)

    def test_arrays_come_back_onto_the_shards_of_the_target(self, tmp_path):
        script = (
            "import jax, numpy as np, sys; from flaxtrain import checkpoint\n"
            "from jax.sharding import Mesh, NamedSharding, PartitionSpec as P\n"
            "mesh = Mesh(np.array(jax.devices()), ('data',))\n"
            "rows, all = NamedSharding(mesh, P('data')), NamedSharding(mesh, P())\n"
            "x = np.arange(8.0, dtype=np.float32)\n"
            "state = {'x': jax.device_put(x, rows), 'y': jax.device_put(x, all)}\n"
            "path = checkpoint.save(sys.argv[1], state)\n"
            "like = {'x': jax.device_put(0 * x, all), 'y': jax.device_put(0 * x, rows)}\n"
            "back = checkpoint.restore(path, like)\n"
            "assert back['x'].sharding == all and back['y'].sharding == rows, back\n"
            "assert len(back['y'].addressable_shards) == 4\n"
            "assert (np.asarray(back['x']) == x).all() and (np.asarray(back['y']) == x).all()\n"
        )
        flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "NPROC": "4"}
        run_python(script, str(tmp_path / "1"), **flags)

    def test_orbax_itself_can_read_the_arrays(self, tmp_path):
        path = save(tmp_path / "1", {"params": {"Dense_0": {"kernel": jnp.ones(3)}}})
        as_numpy = {"params": {"Dense_0": {"kernel": ocp.RestoreArgs(restore_type=np.ndarray)}}}
        tree = ocp.PyTreeCheckpointer().restore(path / "arrays", restore_args=as_numpy)
        assert np.array_equal(tree["params"]["Dense_0"]["kernel"], np.ones(3))

    def test_the_manifest_names_what_is_inside(self, tmp_path):
        manifest = read_manifest(save(tmp_path / "1", mixed_state(), meta={"epoch": 2}))
        record = manifest.leaves["opt_state/0/mu/Dense_0/kernel"]
        assert (record.dtype, record.shape, len(record.sha256)) == ("bfloat16", (2, 3), 64)
        assert manifest.environment["jax"] == jax.__version__ and manifest.meta == {"epoch": 2}

    def test_restored_arrays_can_be_donated(self, tmp_path):
        state = {"w": jnp.arange(64.0)}
        path = save(tmp_path / "1", state)
        step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
        new = step(restore(path, like=state))
        assert_same(restore(path, like=state), state)
        assert np.array_equal(new["w"], np.arange(64.0) + 1)


ARRAYS = st.sampled_from(["float32", "int8", "bool", "uint32", "complex64"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=3))
)
LEAVES = ARRAYS | st.booleans() | st.integers() | st.floats() | st.none()
KEYS = st.text(alphabet="ab./%\\é", max_size=3)
TREES = st.recursive(
    LEAVES,
    lambda child: (
        st.dictionaries(KEYS, child, max_size=3)
        | st.tuples(child, child)
        | st.builds(Slots, child, child)
    ),
    max_leaves=6,
)


# One directory serves all examples: each replaces the checkpoint of the one before.
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(state=TREES)
def test_saving_and_restoring_is_the_identity(tmp_path, state):
    path = save(tmp_path / "1", state, overwrite=True)
    assert_same(restore(path, like=state), state)


class TestSaveRefuses:
    def test_a_path_that_is_taken(self, tmp_path):
        path = save(tmp_path / "1", {"w": jnp.ones(2)})
        with pytest.raises(CheckpointError, match="something at this path") as caught:
            save(path, {"w": jnp.zeros(2)})
        assert "overwrite=True" in caught.value.fix
        assert_same(restore(path, like={"w": jnp.zeros(2)}), {"w": jnp.ones(2)})
        assert os.listdir(tmp_path) == ["1"]

    def test_a_path_that_was_taken_meanwhile(self, tmp_path, monkeypatch):
        """Two processes save the same step: the second must not replace the first."""
        original = storage.write_manifest

        def slow(directory, manifest):
            original(directory, manifest)
            (tmp_path / "1" / "by another process").mkdir(parents=True)

        monkeypatch.setattr(storage, "write_manifest", slow)
        with pytest.raises(CheckpointError, match="something at this path"):
            save(tmp_path / "1", {"w": jnp.ones(2)})
        assert os.listdir(tmp_path / "1") == ["by another process"]

    def test_a_file_even_when_overwriting(self, tmp_path):
        (tmp_path / "1").write_text("precious")
        with pytest.raises(CheckpointError, match="something at this path"):
            save(tmp_path / "1", {"w": 1.0}, overwrite=True)
        assert (tmp_path / "1").read_text() == "precious"

    @pytest.mark.usefixtures("unchecked_types")
    def test_meta_that_is_no_json(self, tmp_path):
        with pytest.raises(ArgumentTypeError, match="tuple can't be written"):
            save(tmp_path / "1", {}, meta={"a": (1,)})
        with pytest.raises(ArgumentTypeError, match="meta is a list"):
            save(tmp_path / "1", {}, meta=["a"])

    def test_keys_that_are_no_text(self, tmp_path):
        with pytest.raises(CheckpointError, match="no valid text"):
            save(tmp_path / "1", {"\ud800": jnp.ones(1)})

    def test_a_process_that_is_not_the_writer(self, tmp_path, monkeypatch):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with pytest.raises(CheckpointError, match="process 1 is not the one that writes"):
            save(tmp_path / "1", {})

    @pytest.mark.parametrize("leaf", ["text", print, object()])
    def test_leaves_that_are_no_numbers_and_leaves_nothing_behind(self, tmp_path, leaf):
        with pytest.raises(CheckpointError) as caught:
            save(tmp_path / "1", {"a": {"b": leaf}})
        assert caught.value.where == "a/b" and os.listdir(tmp_path) == []


class TestSaveThatFails:
    def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(self, tmp_path, capfd):
        state = {"w": np.random.default_rng(0).normal(size=100_000)}
        save(tmp_path / "1", {"w": 1.0})
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(CheckpointError, match="could not be written") as caught:
                save(tmp_path / "2", state)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert len(str(caught.value)) < 1000 and caught.value.__suppress_context__
        assert os.listdir(tmp_path) == ["1"] and latest(tmp_path) == tmp_path / "1"
        assert len(capfd.readouterr().err.splitlines()) < 10

    def test_an_interrupt_leaves_nothing(self, tmp_path, monkeypatch):
        def interrupt(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(storage, "write_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path / "1", {"w": jnp.ones(2)})
        assert os.listdir(tmp_path) == []

    def test_a_parent_that_is_a_file(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match="could not be written"):
            save(tmp_path / "file" / "1", {"w": 1.0})


class TestOverwrite:
    def test_it_replaces_and_cleans_up(self, tmp_path):
        save(tmp_path / "1", {"w": jnp.ones(2)})
        path = save(tmp_path / "1", {"v": jnp.zeros(3)}, overwrite=True)
        assert_same(restore(path, like={"v": jnp.ones(3)}), {"v": jnp.zeros(3)})
        assert os.listdir(tmp_path) == ["1"]

    def test_it_also_writes_where_nothing_is(self, tmp_path):
        assert steps(tmp_path / "new") == []
        save(tmp_path / "new" / "1", {}, overwrite=True)
        assert steps(tmp_path / "new") == [1]

    def test_a_kill_between_the_renames_loses_nothing(self, tmp_path, monkeypatch):
        save(tmp_path / "1", {"w": jnp.ones(2)})
        rename, calls = Path.rename, []

        def second_fails(self, target):
            calls.append(target)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", second_fails)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path / "1", {"w": jnp.zeros(2)}, overwrite=True)
        monkeypatch.undo()
        checkpoint.clean_up(tmp_path)
        assert_same(restore(tmp_path / "1", {"w": jnp.zeros(2)}), {"w": jnp.ones(2)})


def test_files_have_the_usual_modes(tmp_path):
    path = save(tmp_path / "1", {"w": jnp.ones(2)})
    mask = os.umask(0)
    os.umask(mask)
    for file in [path, *path.rglob("*")]:
        wanted = (0o777 if file.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(file.stat().st_mode) == wanted, file


def test_meta_comes_back_as_a_copy(tmp_path):
    path = save(tmp_path / "1", {}, meta={"epoch": 3})
    meta = read_meta(path)
    meta["epoch"] = 4
    assert read_meta(path) == {"epoch": 3}
    assert read_meta(save(tmp_path / "2", {})) == {}


class TestRestoreRefuses:
    @pytest.mark.parametrize(
        ("like", "line"),
        [
            ({"w": jnp.zeros((2, 3))}, "extra    b: float32[3] in the checkpoint"),
            (
                {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3), "c": 0},
                "missing  c: Python int in the state",
            ),
            (
                {"w": jnp.zeros((3, 2)), "b": jnp.zeros(3)},
                "shape    w: float32[2,3] in the checkpoint, float32[3,2] in the state",
            ),
            (
                {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3, jnp.bfloat16)},
                "dtype    b: float32[3] in the checkpoint, bfloat16[3] in the state",
            ),
            (
                {"w": jnp.zeros((2, 3)), "b": {"b": jnp.zeros(3)}},
                "missing  b/b: float32[3] in the state",
            ),
            ({}, "extra    w: float32[2,3] in the checkpoint"),
        ],
    )
    def test_a_tree_that_does_not_fit(self, tmp_path, capfd, like, line):
        path = save(tmp_path / "1", {"w": jnp.ones((2, 3)), "b": jnp.ones(3)})
        with pytest.raises(CheckpointError) as caught:
            restore(path, like=like)
        assert line in str(caught.value) and str(path) == caught.value.where
        assert capfd.readouterr().err == ""

    def test_a_path_that_is_not_there(self, tmp_path):
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            restore(tmp_path / "1")

    def test_a_directory_of_checkpoints(self, tmp_path):
        save(tmp_path / "1", {})
        with pytest.raises(CheckpointError, match=r"no manifest\.json") as caught:
            restore(tmp_path)
        assert "one checkpoint" in caught.value.fix

    def test_a_missing_file_by_name(self, tmp_path):
        path = save(tmp_path / "1", {"w": jnp.ones(3)})
        (path / "arrays" / "manifest.ocdbt").unlink()
        with pytest.raises(CheckpointError, match=r"manifest\.ocdbt is missing"):
            restore(path)


def test_flipped_bits_name_the_file_and_the_leaf(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"w{i}" for i in range(4)]
    path = save(tmp_path / "1", {name: rng.normal(size=2000) for name in names})
    data = max((path / "arrays").rglob("*"), key=lambda file: file.stat().st_size)
    flip_bit(data, data.stat().st_size * 4)
    with pytest.raises(CheckpointError) as caught:
        restore(path)
    assert f"{data.relative_to(path / 'arrays')} has changed" in caught.value.found
    named = [name for name in names if caught.value.found.endswith(f"leaves affected: {name}")]
    assert len(named) == 1, caught.value.found


def flip_bit(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position // 8] ^= 1 << position % 8
    file.write_bytes(content)


def test_damage_to_any_file_is_told_or_changes_nothing(tmp_path, capfd):
    """40 bit flips and 40 truncations, over all files: none may restore other values."""
    state = mixed_state()
    path = save(tmp_path / "1", state, meta={"epoch": 3})
    files = sorted(file for file in path.rglob("*") if file.is_file())
    rng, detected = random.Random(0), 0
    for trial in range(80):
        file = files[trial // 2 % len(files)]
        content = file.read_bytes()
        if trial % 2:
            file.write_bytes(content[: rng.randrange(len(content))])
        else:
            flip_bit(file, rng.randrange(8 * len(content)))
        try:
            assert_same(restore(path, like=state), state)
            assert read_meta(path) == {"epoch": 3}
        except CheckpointError as error:
            detected += 1
            assert str(path) in str(error.where) and len(str(error)) < 1500
        file.write_bytes(content)
    # A flip in the manifest's white space is harmless; nearly all others are told.
    assert detected >= 75
    assert_same(restore(path, like=state), state)
    assert capfd.readouterr().err == ""


KILLED = """
import sys, numpy as np
from flaxtrain import checkpoint
for step in range(1, 1000):
    state = {name: np.full(5000, step, np.int32) for name in "abcdef"}
    checkpoint.save(checkpoint.step_path(sys.argv[1], step), state, meta={"step": step})
    print(step, flush=True)
"""


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_at_any_moment_leaves_the_latest_checkpoint_whole(tmp_path, seed):
    process = start_python(KILLED, str(tmp_path))
    assert process.stdout is not None
    finished = [process.stdout.readline() for _ in range(2)]
    time.sleep(random.Random(seed).uniform(0.0, 0.15))
    process.kill()
    finished += process.stdout.readlines()
    process.wait()
    told = int(finished[-1])
    found = steps(tmp_path)
    assert found == list(range(1, len(found) + 1)) and found[-1] in (told, told + 1)
    like = {name: np.zeros(5000, np.int32) for name in "abcdef"}
    for step in found:
        state = restore(checkpoint.step_path(tmp_path, step), like)
        assert all((leaf == step).all() for leaf in state.values())
    checkpoint.clean_up(tmp_path)
    assert sorted(map(int, os.listdir(tmp_path))) == found


def start_python(script: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **variables}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(script: str, *arguments: str, **variables: str) -> str:
    process = start_python(script, *arguments, **variables)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def test_nothing_is_loaded_that_should_not_be(tmp_path):
    out = run_python(
        "import sys; from flaxtrain import checkpoint\n"
        "checkpoint.restore(checkpoint.save(sys.argv[1], {'w': 1.0}))\n"
        "print([m for m in ('optax', 'tensorflow', 'torch') if m in sys.modules])",
        str(tmp_path / "1"),
    )
    assert out == "[]\n"


def test_only_orbax_is_kept_from_logging():
    logger = logging.getLogger("absl")
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logger.addHandler(handler)
    theirs = logger.makeRecord("absl", logging.ERROR, "/x/orbax/y.py", 1, "theirs", (), None)
    try:
        with quiet():
            logger.error("ours")
            logger.handle(theirs)
        logger.handle(theirs)
    finally:
        logger.removeHandler(handler)
    assert seen == ["ours", "theirs"]


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.Dense(3, name="body")(x))


BATCH = {"x": np.ones((4, 3), np.float32), "label": np.zeros(4, np.int32)}
BODY = ft.Group("body/**", learning_rate=1e-3, weight_decay=0.5)
HEAD = ft.Group("head/**", learning_rate=1e-4)


def trained(*groups, **numbers):
    """A state after one step, with these groups."""
    recipe = recipe_of(*groups, **numbers)
    return jax.jit(ft.train_step, static_argnums=0)(recipe, recipe.init(0), BATCH)[0]


def recipe_of(*groups, **numbers):
    return ft.make_recipe(Small(), ft.OptSpec("adamw", 1e-2, groups=groups, **numbers), BATCH)


class TestOtherGroups:
    """Groups that differ in numbers only share their slots: a checkpoint fits another spec."""

    def test_slots_are_restored_and_hyperparameters_are_those_of_the_new_spec(self, tmp_path):
        old = trained(BODY)
        path = save(tmp_path / "1", old)
        like = recipe_of(HEAD, b1=0.8).init(1)
        new = restore(path, like=like)
        assert_same(new.opt_state.slots, old.opt_state.slots)
        assert_same(new.params, old.params)
        assert int(new.opt_state.count) == 1
        assert_same(new.opt_state.hyperparams, like.opt_state.hyperparams)
        # The group that both know has its rate as applied, the new one none yet.
        assert float(old.opt_state.learning_rates["default"]) == np.float32(1e-2)
        assert new.opt_state.learning_rates.keys() == {"head", "default"}
        assert float(new.opt_state.learning_rates["default"]) == np.float32(1e-2)
        assert float(new.opt_state.learning_rates["head"]) == 0.0
        assert new.tx is like.tx
        trained_on, _ = jax.jit(ft.train_step, static_argnums=0)(recipe_of(HEAD), new, BATCH)
        assert int(trained_on.step) == 2

    def test_what_is_kept_is_a_copy_so_like_may_be_donated(self, tmp_path):
        path = save(tmp_path / "1", trained(BODY))
        like = recipe_of(HEAD).init(1)
        new = restore(path, like=like)
        for leaf in jax.tree.leaves(like.opt_state):
            leaf.delete()
        assert float(new.opt_state.hyperparams["head"]["learning_rate"]) == np.float32(1e-4)
        assert float(new.opt_state.learning_rates["head"]) == 0.0

    def test_edited_numbers_come_back_when_everything_is_to_be_from_the_checkpoint(
        self, tmp_path
    ):
        recipe = recipe_of(BODY)
        edited = ft.set_hyperparameters(recipe.init(0), group="body", weight_decay=0.25)
        path = save(tmp_path / "1", edited)
        decays = [
            float(state.opt_state.hyperparams["body"]["weight_decay"])
            for state in (
                restore(path, like=recipe.init(0)),
                restore(path, like=recipe.init(0), from_like=(), if_present=()),
            )
        ]
        assert decays == [0.5, 0.25]

    def test_without_leeway_another_group_is_refused(self, tmp_path):
        path = save(tmp_path / "1", trained(BODY))
        with pytest.raises(
            CheckpointError, match="missing  opt_state/hyperparams/head/"
        ) as caught:
            restore(path, like=recipe_of(HEAD).init(0), from_like=(), if_present=())
        assert "extra    opt_state/learning_rates/body" in str(caught.value)

    def test_as_many_other_numbers_are_not_taken_for_those_that_were_saved(self, tmp_path):
        def recipe(**numbers):
            return ft.make_recipe(Small(), ft.OptSpec("adamw", 1e-2, **numbers), BATCH)

        path = save(tmp_path / "1", recipe(weight_decay=0.5).init(0))
        like = recipe(weight_decay=0.0, clip_norm=1.0).init(0)
        with pytest.raises(CheckpointError, match="missing  opt_state/hyperparams/default/"):
            restore(path, like=like, from_like=(), if_present=())

    def test_other_slots_are_refused_all_the_same(self, tmp_path):
        path = save(tmp_path / "1", trained(BODY))
        other = ft.make_recipe(Small(), ft.OptSpec("sgd", 1e-2, momentum=0.9), BATCH)
        with pytest.raises(CheckpointError, match="missing  opt_state/slots/trace"):
            restore(path, like=other.init(0))

    def test_shapes_have_no_values_so_the_checkpoint_is_asked(self, tmp_path):
        old = {"a": {"x": jnp.ones(2)}}
        path = save(tmp_path / "1", old)
        shapes = jax.eval_shape(lambda: {"a": {"x": jnp.zeros(2)}})
        assert_same(restore(path, shapes, from_like=["a"]), old)
        more = jax.eval_shape(lambda: {"a": {"x": jnp.zeros(2), "y": jnp.zeros(2)}})
        with pytest.raises(CheckpointError, match="missing  a/y"):
            restore(path, more, if_present=["a"])

    def test_a_name_is_a_whole_part_of_a_path(self, tmp_path):
        path = save(tmp_path / "1", {"ab": 1})
        with pytest.raises(CheckpointError, match="missing  abc"):
            restore(path, {"ab": 0, "abc": 2}, if_present=["ab"])

    @pytest.mark.parametrize("names", ["opt_state", [1], 3])
    def test_names_are_a_collection_of_strings(self, tmp_path, names, unchecked_types):
        path = save(tmp_path / "1", {"a": 1})
        for argument in ("from_like", "if_present"):
            with pytest.raises(ArgumentTypeError, match=argument):
                restore(path, {"a": 1}, **{argument: names})
