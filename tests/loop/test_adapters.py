"""Fine-tuning with adapters: what is trained, what stays, and what it all works with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu_metrics

import flaxtrain as ft
from flaxtrain.checkpoint.adapter_files import load_adapters, save_adapters
from flaxtrain.params import split_adapters
from flaxtrain.spec import Freeze, Group
from flaxtrain.tree import flatten, global_norm, path_name
from tests.models import CNN
from tests.runs import bits

SGD = ft.OptSpec("sgd", 0.25)
WITH_HEAD = ft.LoRA("a/kernel | b/kernel", rank=2, train="head")
F64 = jnp.float64


class Net(nn.Module):
    """`[batch, 6] -> [batch, 3]`."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Dense(8, name="a")(x))
        x = nn.relu(nn.Dense(8, name="b")(x))
        return nn.Dense(3, name="head")(x)


def vectors(rows: int = 32) -> Any:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 6)).astype("float32")
    return {"x": x, "label": rng.integers(0, 3, rows).astype("int32")}


def images() -> Any:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 8, 8, 3)).astype("float32") + 1.0
    return {"x": x, "label": rng.integers(0, 3, 32).astype("int32")}


def trainer(
    spec: ft.OptSpec = SGD, lora: Any = None, model: nn.Module | None = None, **kwargs: Any
) -> ft.Trainer:
    lora = ft.LoRA("a/kernel | b/kernel", rank=2) if lora is None else lora
    kwargs = {"verbose": False, **kwargs}
    return ft.Trainer(model or Net(), spec, adapters=lora, **kwargs)


def after(steps: int, *args: Any, **kwargs: Any) -> ft.TrainState:
    return trainer(*args, **kwargs).fit(vectors(), steps=steps, batch_size=16).state


class Seen(ft.Hook):
    """Keeps the state of a run at its beginning and after each step."""

    def __init__(self) -> None:
        self.states: list[ft.TrainState] = []

    def on_start(self, run: Any) -> None:
        self.on_step(run)

    def on_step(self, run: Any) -> None:
        # Copies: the step takes the arrays of the state that it is given.
        self.states.append(jax.tree.map(raw, run.state))


def states(steps: int, *args: Any, data: Any = None, **kwargs: Any) -> list[ft.TrainState]:
    """Returns the state at the beginning of a run and after each step."""
    seen = Seen()
    data = vectors() if data is None else data
    trainer(*args, hooks=[seen], **kwargs).fit(data, steps=steps, batch_size=16)
    return seen.states


def raw(leaf: Any) -> np.ndarray:
    """Returns a copy of an array, or of the integers of a key."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.array(leaf)


def changed(old: Any, new: Any) -> set[str]:
    """Returns the names of the leaves that differ in any bit."""
    first, second = bits(old), bits(new)
    assert first.keys() == second.keys()
    return {name for name, _ in first.items() - second.items()}


def pair(name: str) -> set[str]:
    return {f"lora/{name}/kernel/lora_a", f"lora/{name}/kernel/lora_b"}


HEAD = {"head/kernel", "head/bias"}


# One run that most tests look at: convolutions, BatchNorm, Dropout, decay, clipping.


class Tuned(NamedTuple):
    trainer: ft.Trainer
    start: ft.TrainState
    state: ft.TrainState


CONVS = ft.LoRA("Conv_*/kernel", rank=2, alpha=4, train="Dense_0")


@pytest.fixture(scope="module")
def tuned() -> Tuned:
    spec = ft.OptSpec("adamw", 3e-3, weight_decay=0.1, clip_norm=1.0)
    seen = Seen()
    made = trainer(spec, CONVS, CNN(), hooks=[seen])
    state = made.fit(images(), steps=4, batch_size=16).state
    return Tuned(made, seen.states[0], state)


def test_adapters_and_what_is_trained_beside_change_and_the_rest_keeps_every_bit(
    tuned: Tuned,
) -> None:
    learnt = pair("Conv_0") | pair("Conv_1") | {"Dense_0/kernel", "Dense_0/bias"}
    assert changed(tuned.start.params, tuned.state.params) == learnt


def test_the_model_starts_as_it_would_without_adapters(tuned: Tuned) -> None:
    plain = ft.make_recipe(CNN(), SGD, {k: v[:16] for k, v in images().items()}).init(0)
    assert not changed(split_adapters(tuned.start.params)[0], plain.params)
    assert np.array_equal(raw(plain.rng), tuned.start.rng)


def test_statistics_of_batch_norm_are_held(tuned: Tuned) -> None:
    assert not changed(tuned.start.collections, tuned.state.collections)
    assert len(jax.tree.leaves(tuned.state.collections["batch_stats"])) == 4


def test_there_are_slots_for_what_is_trained_and_for_nothing_else(tuned: Tuned) -> None:
    slots: Any = tuned.state.opt_state
    for name in ("mu", "nu"):
        assert {path_name(path) for path in flatten(slots.slots[name])} == changed(
            tuned.start.params, tuned.state.params
        )


def test_dropout_is_on_in_training_and_off_in_evaluation(tuned: Tuned) -> None:
    recipe, state = tuned.trainer.recipe, tuned.state
    assert recipe is not None
    x = images()["x"]

    def output(step: int, train: bool) -> Any:
        at = state.replace(step=jnp.int32(step))
        return np.asarray(recipe.bind(at, state.params, train=train)(x))

    assert not np.array_equal(output(1, True), output(2, True))
    assert np.array_equal(output(1, False), output(2, False))


def test_predict_and_evaluate_see_the_adapters(tuned: Tuned) -> None:
    data = images()
    variables = {"params": CONVS.merge(tuned.state.params), **tuned.state.collections}
    apply = jax.jit(CNN().apply)
    logits = np.asarray(apply(variables, data["x"]))
    # float32: the compiled program rounds in another order than single operations.
    assert tuned.trainer.predict(data, batch_size=16) == pytest.approx(logits, abs=1e-5)
    right = float(np.mean(np.argmax(logits, -1) == data["label"]))
    found = tuned.trainer.evaluate(data, batch_size=16)
    assert found["accuracy"] == pytest.approx(right)
    picked = jax.nn.log_softmax(logits)[np.arange(32), data["label"]]
    assert found["loss"] == pytest.approx(-float(picked.mean()), rel=1e-5)
    base = split_adapters(tuned.state.params)[0]
    without = apply({**variables, "params": base}, data["x"])
    assert np.abs(np.asarray(logits - without)).max() > 1e-3  # the comparison could fail


def test_the_function_in_the_state_applies_the_adapters(tuned: Tuned) -> None:
    state, x = tuned.state, images()["x"]
    assert state.apply_fn is not None
    merged = {"params": CONVS.merge(state.params), **state.collections}
    found = jax.jit(state.apply_fn)({"params": state.params, **state.collections}, x)
    expected = np.asarray(jax.jit(CNN().apply)(merged, x))
    # float32: the compiled programs may round in another order.
    assert np.asarray(found) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ft.errors.ParameterError, match="no adapters"):
        state.apply_fn(merged, x)


def test_saved_adapters_are_the_fine_tuned_model(tuned: Tuned, tmp_path: Path) -> None:
    assert tuned.trainer.recipe is not None and tuned.trainer.recipe.adapters is not None
    path = save_adapters(tmp_path / "a", tuned.state.params, tuned.trainer.recipe.adapters)
    base = split_adapters(tuned.start.params)[0]
    assert not changed(load_adapters(path, base, CONVS), tuned.state.params)


def test_the_plan_shows_the_adapters_and_counts_only_what_is_trained(tuned: Tuned) -> None:
    plan = tuned.trainer.plan(images(), batch_size=16)
    text = str(plan)
    for piece in ("lora/Conv_0/kernel/lora_a", "trainable: 6 parameters", "frozen: 8"):
        assert piece in text
    trained = sum(leaf.size for leaf in jax.tree.leaves(tuned.state.split_params()[0]))
    assert 2 * 4 * trained <= plan.memory["slots"] < 2 * 4 * trained + 100  # and a few scalars


# Merged and unmerged, in float64.


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        y = nn.LayerNorm(param_dtype=F64)(x)
        x = x + nn.MultiHeadDotProductAttention(2, param_dtype=F64, name="attn")(y)
        return x + nn.Dense(8, param_dtype=F64, name="mlp")(nn.tanh(x)), None


class Transformer(nn.Module):
    """`[batch, time, 8] -> [batch, 3]`; a scan over three blocks."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True})
        x, _ = layers(name="blocks")(x, jnp.zeros(3))
        return nn.Dense(3, param_dtype=F64, name="head")(x.mean(1))


def sequences() -> Any:
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(16, 5, 8)), "label": rng.integers(0, 3, 16).astype("int32")}


def test_merged_equals_unmerged_in_a_scanned_transformer() -> None:
    lora = ft.LoRA("blocks/**/kernel", rank=2, alpha=3)
    with jax.enable_x64(True):
        seen = Seen()
        made = trainer(ft.OptSpec("adam", 0.01), lora, Transformer(), hooks=[seen])
        state = made.fit(sequences(), steps=3, batch_size=16).state
        assert changed(seen.states[0].params, state.params) == set().union(
            *(pair(f"blocks/attn/{name}") for name in ("query", "key", "value", "out")),
            pair("blocks/mlp"),
        )
        assert state.params["lora"]["blocks"]["mlp"]["kernel"]["lora_b"].shape == (3, 1, 8, 2)
        merged, x = lora.merge(state.params), sequences()["x"]
        unmerged = made.predict(sequences(), batch_size=16)
        assert unmerged.dtype == np.float64
        # float64, and sums of at most 8 numbers in another order.
        apply = jax.jit(Transformer().apply)
        expected = apply({"params": merged}, x)
        assert np.abs(unmerged - np.asarray(expected)).max() < 1e-12
        base, adapters = split_adapters(state.params)
        assert np.abs(apply({"params": base}, x) - expected).max() > 1e-3
        again = split_adapters(lora.unmerge(merged, adapters))[0]
        for path, leaf in flatten(base).items():
            assert np.allclose(flatten(again)[path], leaf, rtol=0, atol=1e-14)  # W + x - x


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        return nn.tanh(nn.Dense(6, name="dense")(x)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True})
        return nn.Dense(3, name="head")(layers(name="layers")(x, jnp.zeros(3))[0])


def test_layer_decay_scales_the_adapters_of_each_layer_of_a_scan() -> None:
    def learnt(**kwargs: Any) -> Any:
        spec = ft.OptSpec("sgd", 0.5, **kwargs)
        state = after(1, spec, ft.LoRA("layers/**/kernel", rank=2), Scanned())
        return np.asarray(state.params["lora"]["layers"]["dense"]["kernel"]["lora_b"])

    plain, decayed = learnt(), learnt(layer_decay=0.5)
    # B is zero at the start: what is there is the update, times a power of two for each layer.
    assert plain.shape == (3, 1, 6, 2) and np.any(plain, axis=(1, 2, 3)).all()
    scales = np.array([2.0**-3, 2.0**-2, 2.0**-1], np.float32).reshape(3, 1, 1, 1)
    assert np.array_equal(decayed, plain * scales)


# Groups and weight decay.


@pytest.fixture(scope="module")
def usual() -> list[ft.TrainState]:
    return states(1, ft.OptSpec("adamw", 2.0**-4, weight_decay=0.5))


@pytest.fixture(scope="module")
def grouped() -> ft.TrainState:
    group = Group("#lora", lr_mult=4.0, weight_decay=0.5, decay="all")
    return after(1, ft.OptSpec("adamw", 2.0**-4, weight_decay=0.5, groups=[group]))


def both(state: ft.TrainState, name: str) -> list[np.ndarray]:
    """Returns A and B."""
    pair = state.params["lora"][name]["kernel"]
    return [np.asarray(pair["lora_a"]), np.asarray(pair["lora_b"])]


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_group_gives_adapters_their_own_learning_rate(
    name: str, usual: list[ft.TrainState], grouped: ft.TrainState
) -> None:
    update = both(usual[1], name)[1]  # B was zero
    assert np.any(update)
    # A power of two: every product is exact.
    assert np.array_equal(both(grouped, name)[1], 4 * update)


@pytest.mark.parametrize("name", ["a", "b"])
def test_adapters_decay_only_when_asked(
    name: str, usual: list[ft.TrainState], grouped: ft.TrainState
) -> None:
    """In the first step the gradient of A is zero, as B is: only decay can change A."""
    start, plain = (both(state, name)[0] for state in usual)
    assert np.array_equal(plain, start)
    decayed = both(grouped, name)[0]
    assert decayed == pytest.approx(start * (1 - 0.25 * 0.5), rel=1e-6)  # two roundings


def test_a_decay_of_adapters_that_would_do_nothing_is_refused() -> None:
    spec = ft.OptSpec("adamw", 0.25, groups=[Group("#lora", weight_decay=0.5)])
    with pytest.raises(ft.errors.ParameterError, match="roles: lora") as caught:
        trainer(spec).fit(vectors(), steps=1)
    assert "decay='all'" in str(caught.value.fix)


# Resuming.


PHASES = ft.OptSpec("adamw", 0.01, clip_norm=1.0, freeze=[Freeze("#lora", until=3, rewarm=2)])


class Phased(NamedTuple):
    states: list[ft.TrainState]
    compilations: int
    workdir: Path


@pytest.fixture(scope="module")
def phased(tmp_path_factory: pytest.TempPathFactory) -> Phased:
    seen, workdir = Seen(), tmp_path_factory.mktemp("phased")
    made = trainer(PHASES, WITH_HEAD, hooks=[seen], workdir=workdir)
    made.fit(vectors(), steps=6, batch_size=16)
    return Phased(seen.states, made.compilations["train"], workdir)


def test_frozen_adapters_thaw_when_they_are_to(phased: Phased) -> None:
    start, before, end = (phased.states[step] for step in (0, 3, 6))
    assert changed(start.params, before.params) == HEAD
    assert changed(start.params, end.params) == HEAD | pair("a") | pair("b")
    tops = [{path[0] for path in flatten(s.opt_state.slots["mu"])} for s in (start, end)]
    assert tops == [{"head"}, {"head", "lora"}]
    assert phased.compilations == 2


@pytest.mark.parametrize("cut", [3, 4])  # when the adapters thaw, and after it
def test_a_continued_run_equals_the_uninterrupted_one_bitwise(
    cut: int, phased: Phased, tmp_path: Path
) -> None:
    after(cut, PHASES, WITH_HEAD, workdir=tmp_path)
    assert bits(after(6, PHASES, WITH_HEAD, workdir=tmp_path)) == bits(phased.states[6])


@pytest.mark.parametrize(
    "other",
    [
        ft.LoRA("a/kernel | b/kernel", rank=3, train="head"),
        ft.LoRA("a/kernel | b/kernel", rank=2, alpha=8, train="head"),
        ft.LoRA("a/kernel", rank=2, train="head"),
        ft.LoRA("a/kernel | b/kernel", rank=2, train="head/kernel"),
        None,
    ],
    ids=["rank", "alpha", "select", "train", "none"],
)
def test_a_run_is_not_continued_with_other_adapters(
    phased: Phased, other: ft.LoRA | None
) -> None:
    spec = ft.OptSpec("adamw", 0.01, freeze=[]) if other is None else PHASES
    made = ft.Trainer(Net(), spec, adapters=other, workdir=phased.workdir, verbose=False)
    with pytest.raises(ft.errors.CheckpointError) as caught:
        made.fit(vectors(), steps=8, batch_size=16)
    if other is not None:
        assert repr(WITH_HEAD) in str(caught.value) and repr(other) in str(caught.value)
    assert made.state is None


# With frozen modules.


def test_a_frozen_module_keeps_its_trained_adapter_and_a_frozen_adapter_stays() -> None:
    """A rule selects the parameters of the model by their own names: adapters are others."""
    spec = ft.OptSpec("sgd", 0.25, freeze=["a/**", "lora/b/**"])
    start, *_, end = states(2, spec, WITH_HEAD)
    assert changed(start.params, end.params) == HEAD | pair("a")


@pytest.mark.parametrize(
    ("select", "mode"), [("a/kernel", "train"), ("a/bias", "train"), ("a", "eval")]
)
def test_an_adapted_module_runs_as_in_evaluation_when_rules_freeze_all_of_it(
    select: str, mode: str
) -> None:
    batch = {k: v[:16] for k, v in vectors().items()}
    lora = ft.LoRA("a/kernel", rank=2, train="b/bias")
    spec = ft.OptSpec("sgd", 0.25, freeze=[select, Freeze("b/bias", until=2)])
    recipe = ft.make_recipe(Net(), spec, batch, adapters=lora)
    modes = {path_name(module.path): module.mode for module in recipe.frozen.modules}
    assert {"a": "train", **modes}["a"] == mode and recipe.trainable is not None
    assert set(modes.values()) == {mode, "train"}
    assert {path_name(path) for path in recipe.trainable} == pair("a")


def test_batch_norm_normalises_by_its_held_statistics() -> None:
    """So training sees the function that evaluation judges."""
    batch = {k: v[:16] for k, v in images().items()}
    recipe = ft.make_recipe(CNN(dropout=0.0), SGD, batch, adapters=CONVS)
    state = recipe.init(0)
    bound = [recipe.bind(state, state.params, train=train) for train in (True, False)]
    training, evaluation = (np.asarray(model(batch["x"])) for model in bound)
    assert np.array_equal(training, evaluation)


def test_what_adapters_stand_for_can_not_thaw() -> None:
    spec = ft.OptSpec("sgd", 0.25, freeze=[Freeze("head", until=2)])
    with pytest.raises(
        ft.errors.ParameterError, match="nothing would thaw at until=2"
    ) as caught:
        trainer(spec).fit(vectors(), steps=4, batch_size=16)
    assert "LoRA(train=...)" in str(caught.value.fix)
    # With a part that is trained, it can: the rule is for that part.
    plan = trainer(spec, WITH_HEAD).plan(vectors(), steps=4, batch_size=16)
    assert "head/kernel" in str(plan)


def test_a_run_in_which_nothing_is_trained_is_refused() -> None:
    with pytest.raises(ft.errors.ParameterError, match="every parameter is frozen"):
        trainer(ft.OptSpec("sgd", 0.25, freeze=["#lora"])).fit(vectors(), steps=1)


# The rest.


def test_norms_clipping_and_a_collection_of_metrics_take_the_adapters_as_they_are() -> None:
    metrics = clu_metrics.Collection.create(accuracy=clu_metrics.Accuracy)
    spec, seen = ft.OptSpec("sgd", 0.5, clip_norm=1e-3), Seen()
    made = trainer(spec, WITH_HEAD, metrics=metrics, hooks=[seen], log_every=1)
    row = made.fit(vectors(), steps=1, batch_size=16).history.train[0]
    old, new = (state.split_params()[0] for state in seen.states)
    step = jax.tree.map(lambda new, old: new - old, new, old)
    # Clipping scales what is trained to the norm 1e-3: no other gradient takes part. About 100
    # float32 parameters, of size 0.1 and more, are rounded when they are changed.
    assert float(global_norm(step)) == pytest.approx(0.5e-3, rel=1e-3)
    assert row["update_norm"] == pytest.approx(0.5e-3, rel=1e-5)
    assert row["param_norm"] == pytest.approx(float(global_norm(old)), rel=1e-5)
    logits = made.predict(vectors(), batch_size=16)
    right = float(np.mean(np.argmax(logits, -1) == vectors()["label"]))
    assert made.evaluate(vectors(), batch_size=16)["accuracy"] == pytest.approx(right)


def test_a_step_of_the_users_own_changes_the_adapters_only(usual: list[ft.TrainState]) -> None:
    state, data = jax.tree.map(jnp.asarray, usual[1]), vectors()

    @jax.jit
    def loss(params: Any) -> Any:
        logits = state.apply_fn({"params": params}, data["x"])
        return jnp.mean((logits - jax.nn.one_hot(data["label"], 3)) ** 2)

    grads = jax.jit(jax.grad(loss))(state.params)
    own = state.apply_gradients(grads=grads)
    assert changed(state.params, own.params) == pair("a") | pair("b")
    assert int(own.step) == 2 and loss(own.params) < loss(state.params)
    # Gradients of what is trained alone do as well.
    only = state.apply_gradients(grads={"lora": grads["lora"]})
    assert not changed(only.params, own.params)


@pytest.mark.parametrize(
    ("lora", "text"),
    [
        (ft.LoRA("c/kernel", rank=2), "c/kernel"),
        (ft.LoRA("a/bias", rank=2), "no adapter is possible for a/bias (Dense)"),
        (ft.LoRA("a/kernel", rank=6), "rank 6 is too high for 'a/kernel'"),
        (ft.LoRA("a/kernel", rank=2, train="a"), "'a/kernel' is adapted, and trained itself"),
    ],
)
def test_adapters_that_do_not_fit_are_refused_before_the_first_step(
    lora: ft.LoRA, text: str, tmp_path: Path
) -> None:
    made = trainer(lora=lora, workdir=tmp_path)
    for call in (made.plan, made.fit):
        with pytest.raises(ft.errors.ParameterError) as caught:
            call(vectors(), steps=1, batch_size=16)
        assert text in str(caught.value)
    assert made.state is None and not list(tmp_path.rglob("*"))


def test_adapters_of_another_type_are_refused() -> None:
    with pytest.raises(ft.errors.ArgumentTypeError, match="adapters='a/kernel' is a str"):
        trainer(lora="a/kernel")
