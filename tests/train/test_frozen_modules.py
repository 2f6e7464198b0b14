"""Frozen modules run as in evaluation and hold their statistics, whatever the model does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain import errors
from flaxtrain.params import param_facts
from flaxtrain.train.frozen_modules import (
    NOTHING_FROZEN,
    FrozenModule,
    FrozenModules,
    frozen_modules,
)
from flaxtrain.train.row_mask import row_mask
from tests.runs import same
from tests.train.frozen_models import ENCODERS, Encoder, Form, Model, X, start, train

ENCODER = FrozenModules((FrozenModule(("encoder",)),))


def test_dropout_between_frozen_and_trained_modules_stays_on() -> None:
    model = Model(ENCODERS["by position"])
    with ENCODER.applied({}) as rngs:
        _, new = model.apply(
            start(model),
            X,
            train=True,
            rngs={"dropout": jax.random.key(0), **rngs},
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
        )
    seen = {
        name: tree["__call__"][0]
        for name, tree in new["intermediates"].items()
        if name != "__call__"
    }
    assert np.all(seen["encoder"] != 0)
    assert np.any(seen["between"] == 0)


def test_train_mode_holds_statistics_normalises_by_them_and_keeps_dropout() -> None:
    def encoder(batch: bool | None) -> Form:
        return Form(lambda train: Encoder(batch))

    model, frozen = Model(encoder(None)), FrozenModule(("encoder",), mode="train")
    variables = start(model)
    outputs, collections = train(model, variables, FrozenModules((frozen,)))
    expected, stats = train(Model(encoder(False)), variables)
    assert same((outputs, collections), (expected, stats))
    assert same(collections["batch_stats"]["encoder"], variables["batch_stats"]["encoder"])
    assert not same(collections["batch_stats"]["beside"], variables["batch_stats"]["beside"])


def test_updated_statistics_in_evaluation_mode_come_from_the_batch() -> None:
    def encoder(batch: bool | None) -> Form:
        return Form(lambda train: Encoder(batch))

    model, frozen = Model(encoder(None)), FrozenModule(("encoder",), stats="update")
    variables = start(model)
    outputs, collections = train(model, variables, FrozenModules((frozen,)))
    expected, stats = train(Model(encoder(True), frozen=True), variables)
    assert same((outputs, collections), (expected, stats))
    _, in_training = train(model, variables)
    # The statistics of BatchNorm are before Dropout, so training forms the same ones.
    assert same(collections["batch_stats"]["encoder"], in_training["batch_stats"]["encoder"])


def test_train_mode_with_updates_is_training() -> None:
    model = Model(ENCODERS["spectral norm"])
    variables = start(model)
    frozen = FrozenModules((FrozenModule(("encoder",), "update", "train"),))
    assert same(train(model, variables, frozen), train(model, variables))
    with frozen.applied({}) as rngs:
        assert rngs == {}


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_second_call_does_not_see_what_spectral_norm_would_have_written(mode: str) -> None:
    model = Model(ENCODERS["spectral norm"])
    variables = start(model)
    frozen = FrozenModules((FrozenModule(("encoder",), "hold", mode),))
    expected = train(Model(ENCODERS["spectral norm"], frozen=True), variables)
    assert same(train(model, variables, frozen), expected)
    updated = FrozenModules((FrozenModule(("encoder",), "update", mode),))
    assert same(train(model, variables, updated), train(model, variables))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_row_mask_reaches_a_frozen_batch_norm_that_uses_the_batch(mode: str) -> None:
    model = Model(ENCODERS["the other way round"])
    variables = start(model)
    frozen = FrozenModules((FrozenModule(("encoder",), "update", mode),))
    mask = jnp.arange(6) < 4

    def stats(rows: int, mask: Any) -> Any:
        with frozen.applied({}) as more, row_mask(mask, more) as masks:
            _, new = model.apply(
                variables,
                X[:rows],
                train=True,
                rngs={"dropout": jax.random.key(0), **more, **masks},
                mutable=["batch_stats"],
            )
        return new["batch_stats"]["encoder"]

    # Sums of 4 and of 6 rows, the last two zero, may be rounded differently.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), stats(4, None), stats(6, mask)
    )
    assert not np.allclose(
        stats(6, None)["BatchNorm_0"]["mean"], stats(6, mask)["BatchNorm_0"]["mean"]
    )


def test_a_frozen_batch_norm_needs_no_row_mask() -> None:
    class Folds(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            folded = nn.BatchNorm(not train, name="encoder")(x.reshape(-1, 1))
            return folded.reshape(x.shape)

    variables, mask = start(Folds()), jnp.arange(6) < 4
    with pytest.raises(errors.ModelError, match="18 rows"):
        train(Folds(), variables, mask=mask)
    outputs, collections = train(Folds(), variables, ENCODER, mask=mask)
    assert same(collections["batch_stats"], variables["batch_stats"])
    assert same(outputs[0], Folds().apply(variables, X, train=False))


class Nested(nn.Module):
    """A block inside a module, where both are under one `nn.jit`."""

    train: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(4)(ENCODERS["attribute read in setup"].make(self.train)(x))


class Chain(nn.Module):
    """Modules that are fields."""

    form: Form
    inside: list[nn.Module]
    flags: tuple[bool, ...]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for module, flag in zip(self.inside, self.flags, strict=True):
            x = self.form.call(module, x, flag)
        return x


JIT = {
    "class": ENCODERS["jit"],
    "method": ENCODERS["jit of a method"],
    "frozen within": Form(nn.jit(Nested), lambda m, x, t: m(x)),
}


class Siblings(nn.Module):
    """Two modules of one class, so `nn.jit` may take the program of one for the other."""

    form: Form
    flags: tuple[bool, ...] = (True, True)
    chain: Any = Chain

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        flags = tuple(train and flag for flag in self.flags)
        inside = [self.form.make(flag).clone(parent=None) for flag in flags]
        return self.chain(self.form, inside, flags, name="chain")(nn.Dense(4)(x))


@pytest.mark.parametrize("chain", [Chain, nn.remat(Chain)], ids=["chain", "lifted chain"])
@pytest.mark.parametrize("name", JIT)
def test_jit_keeps_the_programs_of_frozen_and_trained_siblings_apart(
    name: str, chain: Any
) -> None:
    form, rest = JIT[name], ("Attribute_0",) if name == "frozen within" else ()
    variables = start(Siblings(form, chain=chain))
    for flags in ((False, True), (True, False), (True, True)):
        off = [f"inside_{number}" for number in range(2) if not flags[number]]
        frozen = FrozenModules(tuple(FrozenModule(("chain", n, *rest)) for n in off))
        result = train(Siblings(form, chain=chain), variables, frozen, steps=1)
        assert same(result, train(Siblings(form, flags, chain), variables, steps=1))


def test_jit_around_the_whole_model_takes_no_program_of_other_frozen_modules() -> None:
    class Whole(nn.Module):
        flags: tuple[bool, ...] = (True, True)

        @nn.jit
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return Siblings(ENCODERS["by position"], self.flags, name="both")(x, True)

    key = {"dropout": jax.random.key(0)}
    variables = Whole().init({"params": jax.random.key(1), **key}, X)

    def run(flags: tuple[bool, ...], *names: str) -> Any:
        frozen = FrozenModules(tuple(FrozenModule(("both", "chain", n)) for n in names))
        with frozen.applied(key) as more:
            rngs = {**key, **more}
            return Whole(flags).apply(variables, X, rngs=rngs, mutable=["batch_stats"])

    for flags, name in (((False, True), "inside_0"), ((True, False), "inside_1")):
        assert same(run((True, True), name), run(flags))
    assert not same(run((True, True), "inside_0"), run((True, True)))


def facts_of(model: nn.Module) -> Any:
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return param_facts(model, X, train=True, rngs=rngs)


FACTS = facts_of(Model(ENCODERS["by keyword"]))
BLOCKS = [path for path in FACTS if path[0] == "encoder"]
HOLD, UPDATE = ("hold", "eval"), ("update", "eval")


def test_the_topmost_module_whose_parameters_are_all_frozen_is_frozen() -> None:
    assert frozen_modules(FACTS, dict.fromkeys(BLOCKS, HOLD)) == ENCODER
    whole = frozen_modules(FACTS, dict.fromkeys(FACTS, ("update", "train")))
    assert whole.modules == (FrozenModule((), "update", "train"),)
    one = [path for path in BLOCKS if path[1] == "Block_0"]
    assert frozen_modules(FACTS, dict.fromkeys(one, HOLD)).modules == (
        FrozenModule(("encoder", "Block_0")),
    )


def test_a_partly_frozen_module_is_not_frozen() -> None:
    kernels = [path for path in FACTS if path[-1] == "kernel"]
    assert frozen_modules(FACTS, dict.fromkeys(kernels, HOLD)) == NOTHING_FROZEN
    assert frozen_modules(FACTS, {}) == NOTHING_FROZEN
    without = [path for path in BLOCKS if path[1:] != ("Block_1", "Dense_0", "bias")]
    names = [
        module.path for module in frozen_modules(FACTS, dict.fromkeys(without, HOLD)).modules
    ]
    assert names == [("encoder", "Block_0"), ("encoder", "Block_1", "BatchNorm_0")]


def test_where_settings_differ_the_modules_inside_are_frozen() -> None:
    settings = {path: HOLD if path[1] == "Block_0" else UPDATE for path in BLOCKS}
    frozen = frozen_modules(FACTS, settings)
    assert frozen.modules == (
        FrozenModule(("encoder", "Block_0")),
        FrozenModule(("encoder", "Block_1"), "update"),
    )
    inside = frozen.at(("encoder", "Block_1", "Dropout_0"))
    assert inside is not None
    assert inside.stats == "update"
    assert frozen.at(("encoder",)) is None
    assert hash(frozen) == hash(frozen_modules(FACTS, settings))


def test_settings_that_differ_between_a_modules_own_parameters_are_refused() -> None:
    settings = {path: UPDATE if path[-1] == "bias" else HOLD for path in BLOCKS}
    with pytest.raises(errors.ParameterError, match=r"mode='eval', and 'encoder/Block_0/"):
        frozen_modules(FACTS, settings)


def test_integer_parameters_and_adapters_do_not_count() -> None:
    class Counts(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            self.param("table", lambda key: jnp.arange(3))
            return nn.Dense(2)(x)

    facts = facts_of(Counts())
    rows = [p for p in facts if p[0] == "Dense_0"]
    whole = (FrozenModule(()),)
    assert frozen_modules(facts, dict.fromkeys(rows, HOLD)).modules == whole
    settings = {**dict.fromkeys(rows, HOLD), ("table",): ("update", "train")}
    assert frozen_modules(facts, settings).modules == whole
    kernel = facts["Dense_0/kernel"]
    adapter = replace(kernel, path=("lora", *kernel.path, "lora_a"), role="lora")
    adapted = replace(facts, params=(*facts.params, adapter))
    assert frozen_modules(adapted, dict.fromkeys(rows, HOLD)).modules == whole


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(errors.UnknownParameterError, match="no parameter 'encoder/nothing'"):
        frozen_modules(FACTS, {("encoder", "nothing"): HOLD})
    with pytest.raises(errors.UnknownNameError, match="unknown stats 'held'"):
        frozen_modules(FACTS, {BLOCKS[0]: ("held", "eval")})
    with pytest.raises(errors.UnknownNameError, match="unknown mode 'evaluation'"):
        FrozenModule(("a",), mode="evaluation")
    with pytest.raises(errors.ParameterError, match="'a/b' is inside 'a'"):
        FrozenModules((FrozenModule(("a", "b")), FrozenModule(("a",))))


def test_held_values_are_the_old_arrays_and_others_the_new_ones() -> None:
    frozen = FrozenModules((FrozenModule(("a",)), FrozenModule(("b",), "update")))
    old = {"stats": {"a": {"n": {"m": 0}}, "b": {"n": 0}, "c": {}, "d": 0}, "more": {"a": {}}}
    new = {"stats": {"a": {"n": {"m": 1}}, "b": {"n": 1}, "c": {}, "d": 1}}
    sown = {"losses": {"a": {"loss": 1}}}
    assert frozen.held({**new, **sown}, old) == {
        "stats": {"a": {"n": {"m": 0}}, "b": {"n": 1}, "c": {}, "d": 1},
        **sown,
    }
    assert frozen.held(new, {}) == new
    assert frozen.held({}, old) == {}
    assert FrozenModules((FrozenModule(()),)).held(new, old) == {"stats": old["stats"]}


def test_nothing_frozen_does_nothing() -> None:
    with NOTHING_FROZEN.applied({}) as rngs:
        assert rngs == {}
        assert len(nn.module._global_interceptor_stack) == 0
    new = {"stats": {"a": 1}}
    assert NOTHING_FROZEN.held(new, {"stats": {"a": 0}}) == new
