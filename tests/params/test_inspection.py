"""The table of facts: owners, shapes, axes and order, for every way to declare a parameter."""

from __future__ import annotations

import sys
import threading
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from flaxtrain.errors import ArgumentTypeError, ModelError, ParameterError
from flaxtrain.params import Facts, facts_from, param_facts
from flaxtrain.params.recorder import Recorder
from flaxtrain.tree import flatten
from tests.models import CNN, GPT, MLP, ViT, example
from tests.params import models
from tests.params.models import CASES, ROW, SEQUENCE, Case, facts_of, facts_of_example

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}


def text(sizes: tuple[int, ...], separator: str) -> str:
    return separator.join(map(str, sizes)) or "-"


def found(facts: Facts) -> dict[str, tuple[str, str, str]]:
    return {
        fact.name: (fact.owner_name, text(fact.local_shape, "x"), text(fact.lifted_axes, ","))
        for fact in facts.params
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_owner_local_shape_and_axes_are_those_written_by_hand(case: Case) -> None:
    facts = facts_of(case)
    assert found(facts) == case.rows()
    assert all(fact.resolved for fact in facts.params)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_paths_shapes_and_dtypes_are_those_of_init_in_its_order(case: Case) -> None:
    def init() -> Any:
        return meta.unbox(case.make().init(KEYS, *case.inputs, **case.kwargs))["params"]

    leaves = flatten(jax.eval_shape(init))
    facts = facts_of(case)
    assert [(f.path, f.shape, f.dtype) for f in facts.params] == [
        (path, leaf.shape, leaf.dtype) for path, leaf in leaves.items()
    ]


def test_there_are_at_least_the_32_models_that_were_asked_for() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 32


@pytest.mark.parametrize(
    ("case", "name", "around"),
    [
        ("setup with a list and a dict", "pos_embedding", ""),
        ("setup with a list and a dict", "layers_0/kernel", "Setup"),
        ("scan in scan", "stack/pair/ln/scale", "Scanned Pair Block"),
        ("scan in scan", "stack/pair/gamma", "Scanned Pair"),
        ("scan of remat", "stack/up/kernel", "Scanned Block"),
        ("experts by vmap", "experts/kernel", "Mixture"),
        ("nn.jit in a scan", "stack/fc/kernel", "Scanned Jitted"),
        # By path, not by call: a cell is a neighbour of the RNN that runs it, and a module that
        # is passed to another stays where it was made.
        ("bidirectional", "gru/hn/kernel", "Both GRUCell"),
        ("module passed to another", "shared/kernel", "Shares"),
        ("attribute without a call", "store/table", "ReadsAttribute"),
        ("mapped variables", "fc/kernel", "Transposed"),
        ("remat_scan", "kernel", ""),
        # Whoever shares a scope is around what it holds, and not the other way round.
        ("shared scope", "Dense_0/kernel", "HasLowRank LowRank"),
        ("shared scope", "Dense_0/A", "HasLowRank"),
        ("scope shared with a child", "adapted/kernel", "HasAbsorbing Absorbs"),
        ("scope shared with a child", "adapted/A", "HasAbsorbing"),
    ],
)
def test_the_modules_around_are_known_by_class(case: str, name: str, around: str) -> None:
    facts = facts_of(next(each for each in CASES if each.name == case))
    assert [cls.__name__ for cls in facts[name].around] == around.split()


def test_the_model_is_around_even_if_none_of_its_methods_runs() -> None:
    class Holder(nn.Module):
        inner: nn.Module

    def inner(model: Any, x: jax.Array) -> jax.Array:
        return model.inner(x)

    facts = param_facts(Holder(nn.Dense(2)), ROW, method=inner)
    assert facts["inner/kernel"].around == (Holder,)


def test_what_is_around_a_parameter_without_a_module_is_known_too() -> None:
    def initialise(extra: dict[str, jax.Array]) -> Any:
        params = ViT().init({**KEYS, **extra}, models.IMAGE)["params"]
        grafted = {**params["block0"], "grafted": jnp.ones((4, 4))}
        return {"params": {**params, "block0": grafted}}

    fact = facts_from(initialise)["block0/grafted"]
    assert (fact.resolved, fact.owner_name, fact.around) == (False, "TransformerBlock", (ViT,))


@pytest.mark.parametrize("make", [models.Jitted, lambda: models.Scanned(models.Jitted)])
def test_a_warm_cache_of_nn_jit_hides_no_module(make: Any) -> None:
    model = make()
    for _ in range(2):
        jax.eval_shape(lambda: model.init(KEYS, ROW))
    first, second = param_facts(model, ROW), param_facts(model, ROW)
    assert first == second
    assert {fact.owner_name for fact in first.params} == {"Dense"}


def test_a_warm_cache_of_a_jitted_init_hides_no_module() -> None:
    init = jax.jit(MLP().init)
    jax.eval_shape(lambda: init(KEYS, ROW))
    facts = facts_from(lambda extra: init({**KEYS, **extra}, ROW))
    assert [fact.resolved for fact in facts.params] == [True] * 6


def order(model: nn.Module, *inputs: Any, **kwargs: Any) -> list[str]:
    return [f.name for f in param_facts(model, *inputs, **kwargs).by_depth() if f.uses]


def test_depth_is_the_order_of_use_where_setup_declares_in_another_order() -> None:
    assert order(models.Setup(), SEQUENCE) == [
        "pos_embedding",
        "layers_1/kernel",
        "layers_1/bias",
        "layers_0/kernel",
        "layers_0/bias",
        "parts_a/kernel",
        "parts_a/bias",
        "parts_b/scale",
        "parts_b/bias",
        "final_gain",
        "head/kernel",
        "head/bias",
    ]


def test_a_parameter_that_nothing_uses_is_dead() -> None:
    facts = param_facts(models.Setup(), SEQUENCE)
    assert [f.name for f in facts.params if f.uses == 0] == ["unused"]
    assert facts["unused"].depth is None
    assert facts.by_depth()[-1].name == "unused"


def test_tied_parameters_have_as_many_uses_as_places() -> None:
    assert param_facts(models.Tied(), models.TOKENS)["wte/embedding"].uses == 2
    assert param_facts(models.Shares(), ROW)["shared/kernel"].uses == 2


def test_a_head_that_is_not_returned_is_dead_and_a_sown_one_is_not() -> None:
    class Heads(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            nn.Dense(2, name="dropped")(x)
            self.sow("losses", "penalty", nn.Dense(2, name="sown")(x))
            return nn.Dense(2, name="kept")(x)

    facts = param_facts(Heads(), ROW)
    assert {f.name: f.uses for f in facts.params if f.path[-1] == "kernel"} == {
        "dropped/kernel": 0,
        "kept/kernel": 1,
        "sown/kernel": 1,
    }


def test_the_branches_of_lifted_control_flow_are_all_used() -> None:
    for model in (models.Branches(), models.Switches(), models.OwnDerivative()):
        assert all(fact.uses == 1 for fact in param_facts(model, ROW).params)
    loop = param_facts(models.Repeats(), ROW)
    assert [loop[name].depth for name in ("fc/kernel", "fc/bias")] == [0, 1]


def test_parameters_that_exist_only_in_training_are_there_in_training_only() -> None:
    assert "auxiliary/kernel" in param_facts(models.OnlyInTraining(), ROW, train=True)
    assert "auxiliary/kernel" not in param_facts(models.OnlyInTraining(), ROW, train=False)


def test_a_parameter_of_evaluation_is_in_the_table_only_if_init_ran_for_it() -> None:
    training = param_facts(models.TwoModes(), ROW, train=True)
    assert "temperature" not in training
    both = models.two_modes_facts()
    assert [fact.name for fact in both.params if fact not in training.params] == ["temperature"]
    assert both["temperature"].uses == 0


def test_partitioning_has_the_names_of_all_axes() -> None:
    facts = param_facts(models.Scanned(models.PartitionedBlock, axis=1), SEQUENCE)
    assert facts["stack/fc/kernel"].partitioning == ("in", "layers", "out")
    assert facts["stack/fc/bias"].partitioning == ("out", "layers")
    assert facts["stack/fc/kernel"].lifted_axes == (1,)
    assert param_facts(MLP(), ROW)["Dense_0/kernel"].partitioning is None


def test_streams_and_collections_are_those_of_training() -> None:
    facts = param_facts(CNN(), models.IMAGE, train=True)
    assert facts.rng_streams == {"dropout"}
    assert facts.collections == {"batch_stats"}
    assert param_facts(CNN(), models.IMAGE, train=False).rng_streams == frozenset()
    assert param_facts(GPT(), jnp.ones((2, 4), jnp.int32), train=True).rng_streams == {
        "dropout"
    }


def test_a_stream_of_another_name_is_found() -> None:
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            noise = jax.random.normal(self.make_rng("noise"), x.shape)
            return nn.Dense(2)(x + noise)

    assert param_facts(Noisy(), ROW).rng_streams == {"noise"}
    assert param_facts(Noisy(), ROW, rngs=KEYS).rng_streams == {"noise"}


@pytest.mark.parametrize(
    "make", [models.Jitted, lambda: models.Scanned(nn.remat(models.Block))]
)
def test_recording_changes_no_initial_value(make: Any) -> None:
    model = make()
    plain = jax.jit(lambda: model.init(KEYS, SEQUENCE))()
    recorder = Recorder()
    with recorder.recording() as streams:
        rngs = {**KEYS, **streams}
        recorded = jax.jit(lambda: model.init(rngs, SEQUENCE))()
    assert len(recorder.declared) == len(jax.tree.leaves(plain))
    for before, after in zip(jax.tree.leaves(plain), jax.tree.leaves(recorded), strict=True):
        np.testing.assert_array_equal(before, after)


def test_nothing_is_computed_and_no_memory_is_taken() -> None:
    calls = []

    def initialiser(key: jax.Array, shape: tuple[int, ...], dtype: Any = float) -> jax.Array:
        out = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.pure_callback(lambda: calls.append(shape), out)

    # 4 TB of parameters.
    facts = param_facts(nn.Dense(1_000_000, kernel_init=initialiser), jnp.ones((1, 1_000_000)))
    assert facts["kernel"].size == 10**12
    assert calls == []


def test_inputs_may_be_shapes_trees_and_keywords() -> None:
    class Takes(nn.Module):
        @nn.compact
        def __call__(self, batch: dict[str, Any], *, scale: Any, mode: str) -> jax.Array:
            assert mode == "sum"
            noise = jax.random.normal(batch["key"], (1, 4))
            return nn.Dense(4)(batch["x"]) * scale + noise

    shape = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    batch = {"x": shape, "key": jax.random.key(0)}
    facts = param_facts(Takes(), batch, scale=jnp.ones((1, 1)), mode="sum")
    assert facts["Dense_0/kernel"].shape == (3, 4)
    assert facts["Dense_0/kernel"].uses == 1


def test_one_key_and_a_dict_of_keys_give_the_same_facts() -> None:
    model = models.OnlyInTraining()
    plain = param_facts(model, ROW, train=True)
    assert param_facts(model, ROW, train=True, rngs=jax.random.key(3)) == plain
    assert param_facts(model, ROW, train=True, rngs=KEYS) == plain
    assert hash(param_facts(model, ROW, train=True)) == hash(plain)


def test_without_a_use_depth_and_uses_are_unknown() -> None:
    facts = facts_from(lambda extra: MLP().init({**KEYS, **extra}, ROW))
    assert {(fact.depth, fact.uses) for fact in facts.params} == {(None, None)}
    assert facts["Dense_0/kernel"].role == "kernel"


def test_the_outputs_of_use_decide_what_is_dead() -> None:
    model = models.AutoEncoder()

    def initialise(extra: dict[str, jax.Array]) -> Any:
        return model.init({**KEYS, **extra}, ROW)

    def encode(params: Any, data: Any) -> jax.Array:
        return model.apply({"params": params}, data["x"], method="encode").sum() * data["scale"]

    facts = facts_from(initialise, encode, {"x": ROW, "scale": jnp.ones(())})
    assert {f.name: f.uses for f in facts.params} == {
        "decoder/bias": 0,
        "decoder/kernel": 0,
        "encoder/bias": 1,
        "encoder/kernel": 1,
    }


def test_several_runs_of_init_are_seen_together() -> None:
    model = models.AutoEncoder()

    def initialise(extra: dict[str, jax.Array]) -> Any:
        rngs = {**KEYS, **extra}
        encoder = model.init(rngs, ROW, method="encode")["params"]
        return {"params": {**model.init(rngs, ROW)["params"], **encoder}}

    assert all(fact.resolved for fact in facts_from(initialise).params)


def test_a_model_without_parameters_has_an_empty_table() -> None:
    facts = param_facts(nn.Dropout(0.5, deterministic=False), ROW)
    assert len(facts) == 0
    assert facts.rng_streams == {"dropout"}


def test_a_parameter_from_outside_of_any_module_is_marked() -> None:
    def initialise(extra: dict[str, jax.Array]) -> Any:
        params = MLP().init({**KEYS, **extra}, ROW)["params"]
        return {"params": {**params, "grafted": jnp.ones((4, 4))}}

    fact = facts_from(initialise)["grafted"]
    assert (fact.resolved, fact.role, fact.owner) == (False, "other", MLP)
    assert fact.rule == "no module was seen declaring it"


def test_four_threads_record_at_once_without_mixing() -> None:
    names = ["MLP", "CNN", "LSTM", "ResNet"]
    alone = {name: facts_of_example(name) for name in names}
    together: dict[str, Facts] = {}
    barrier = threading.Barrier(len(names))

    def run(name: str) -> None:
        model, inputs = example(name)
        barrier.wait()
        together[name] = param_facts(model, inputs)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # so that the threads really take turns
    try:
        threads = [threading.Thread(target=run, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert together == alone


def test_flax_and_the_users_model_are_left_as_they_were() -> None:
    before = {name: getattr(nn.Module, name) for name in ("param", "variable", "make_rng")}
    model = ViT()
    param_facts(model, models.IMAGE, train=True)
    assert {name: getattr(nn.Module, name) for name in before} == before
    assert not set(before) & set(vars(model))


class Broken(nn.Module):
    where: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.where == "always" or not self.is_initializing():
            raise RuntimeError(f"broken {self.where}\nand more")
        return nn.Dense(2)(x)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (Broken("always"), "model.init fails: RuntimeError: broken always"),
        (
            Broken("in apply"),
            "model.apply in training mode fails: RuntimeError: broken in apply",
        ),
        (nn.Embed(3, 4), "model.init fails: ValueError: Input type must be an integer"),
    ],
)
def test_a_model_that_fails_is_named_with_its_own_error(model: nn.Module, found: str) -> None:
    with pytest.raises(ModelError) as caught:
        param_facts(model, ROW)
    assert caught.value.found.startswith(found)
    assert caught.value.__cause__ is not None
    assert caught.value.where and caught.value.fix


@pytest.mark.parametrize(
    "value",
    [(1.0, 2.0), None, [jnp.ones(3)], (jnp.ones(3),)],
    ids=["tuple", "none", "list of one array", "tuple of one array"],
)
def test_a_parameter_that_is_no_array_is_refused(value: Any) -> None:
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            self.param("odd", lambda _: value)
            return x

    with pytest.raises(ModelError, match="parameter 'odd' is a"):
        param_facts(Odd(), ROW)


@pytest.mark.usefixtures("unchecked_types")
def test_a_class_in_place_of_a_model_is_refused() -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        param_facts(MLP, ROW)  # pyright: ignore[reportArgumentType] -- the mistake under test
    assert caught.value.found == "model is the class MLP, not a Linen module"
    assert caught.value.fix == "pass an instance: MLP(...)"
    with pytest.raises(ArgumentTypeError, match="model is a dict"):
        param_facts({}, ROW)  # pyright: ignore[reportArgumentType] -- the mistake under test


def test_roles_are_overridden_by_name_path_and_glob() -> None:
    roles: dict[Any, str] = {
        ("Dense_0", "kernel"): "embedding",
        "Dense_1/kernel": "gain",
        "*/kernel": "recurrent",
    }
    facts = param_facts(MLP(), ROW, roles=roles)
    kernels = [facts[f"Dense_{index}/kernel"] for index in range(3)]
    assert [fact.role for fact in kernels] == ["embedding", "gain", "recurrent"]
    assert kernels[2].rule == "given by roles={'*/kernel': ...}"
    assert facts["Dense_0/bias"].role == "bias"


def test_an_override_that_matches_nothing_names_the_nearest_path() -> None:
    with pytest.raises(ParameterError, match="Dense_0/kernel"):
        param_facts(MLP(), ROW, roles={"Dense_0/kernle": "gain"})
