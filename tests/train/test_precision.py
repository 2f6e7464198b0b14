"""Precision policies: what is cast, what modules see, what the compiled step computes in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.precision import Precision
from flaxtrain.train.casting import PolicyCasts
from tests.models import CNN, GPT
from tests.runs import AS_IT_COMES, BITWISE_STACK, differing_leaves

BF16, F16, F32 = "bfloat16", "float16", "float32"
STEP = jax.jit(ft.train_step, static_argnums=0)
Tree = Any

seen: list[tuple[str, Any, str]] = []


class Noting(nn.Module):
    """Notes its own dtype and that of its input; adds a parameter."""

    dtype: Any = None
    label: str = ""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        dtype = None if self.dtype is None else jnp.dtype(self.dtype).name
        seen.append((self.label or str(self.name), dtype, x.dtype.name))
        w = self.param("w", nn.initializers.ones, (1,) * (x.ndim - 1) + x.shape[-1:])
        return x * jnp.asarray(w, self.dtype)


class Plain(nn.Module):
    """Notes the dtypes of its input and its parameter; has no field `dtype`."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        w = self.param("w", nn.initializers.ones, (1,) * (x.ndim - 1) + x.shape[-1:])
        seen.append((str(self.name), w.dtype.name, x.dtype.name))
        return x * w


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    seen.clear()
    yield
    seen.clear()


def batch_of(**arrays: Any) -> dict[str, Any]:
    return {"x": np.ones((4, 3), F32), "label": np.zeros(4, "int32"), **arrays}


TOKENS = {"x": np.ones((4, 6), "int32"), "label": np.zeros((4, 6), "int32")}
IMAGES = {
    "x": np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(F32),
    "label": np.arange(16, dtype="int32") % 3,
}


def recipe(
    model: nn.Module, precision: Any, batch: Tree = None, spec: Any = None, **kwargs: Any
) -> ft.Recipe:
    spec = ft.OptSpec("sgd", 0.1) if spec is None else spec
    options = ft.StepOptions(precision=precision)
    batch = batch_of() if batch is None else batch
    return ft.make_recipe(model, spec, batch, options=options, **kwargs)


def run(model: nn.Module, precision: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls the model once, abstractly, on the bound model; `seen` is of that call alone."""
    made = recipe(model, precision, **kwargs)
    x = args[0] if args else jnp.ones((4, 3))
    state = jax.eval_shape(made.init)
    seen.clear()

    def call(state: Any, x: Any) -> Any:
        return made.bind(state, state.params, train=True)(x)

    return jax.eval_shape(call, state, x)


def products(jaxpr: Any, path: str = "") -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yields where each product and convolution is in the model, and its operands' dtypes."""
    for eqn in jaxpr.eqns:
        here = f"{path}/{eqn.source_info.name_stack}"
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            yield here, eqn.primitive.name, tuple(v.aval.dtype.name for v in eqn.invars[:2])
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_program):
            if _is_program(value):
                yield from products(getattr(value, "jaxpr", value), here)


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


# What a module sees.


class TwoLevels(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = Noting(name="open")(x)
        x = Noting(dtype=jnp.float32, name="explicit")(x)
        return nn.Dense(3)(Plain(name="plain")(x))


def test_modules_that_left_their_dtype_open_get_the_policy_s_and_others_keep_theirs() -> None:
    output = run(TwoLevels(), "bf16")
    assert seen == [
        ("open", BF16, BF16),
        ("explicit", F32, BF16),
        ("plain", BF16, F32),  # what a module with a dtype of its own puts out is as it is
    ]
    assert output.dtype == jnp.float32


def test_parameters_of_a_module_with_a_dtype_of_its_own_are_not_rounded_first() -> None:
    third = np.float32(1 / 3)

    class Own(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(3, dtype=jnp.float32)(x) + 0 * Plain()(x)

    made = recipe(Own(), "bf16")
    state = made.init(0)
    state = state.replace(
        params=jax.tree.map(lambda leaf: jnp.full_like(leaf, third), state.params)
    )
    output = made.bind(state, state.params, train=False)(jnp.ones((4, 3)))
    np.testing.assert_allclose(output, 4 * third, rtol=1e-6)  # bfloat16 is off by 1e-3


def test_the_dtype_of_a_module_is_its_own_again_after_the_call() -> None:
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            shared = Noting(label="shared")
            y = shared(x)
            seen.append(("after", shared.dtype, ""))
            return nn.Dense(3)(shared(y))

    run(Twice(), "bf16")
    assert seen == [("shared", BF16, BF16), ("after", None, ""), ("shared", BF16, BF16)]


def test_the_dtype_is_restored_when_the_call_fails() -> None:
    failing: list[nn.Module] = []

    class Fails(nn.Module):
        dtype: Any = None

        @nn.compact
        def __call__(self, x: Any) -> Any:
            failing.append(self)
            if self.dtype is not None:
                raise ValueError("here")
            return nn.Dense(3)(x)

    with pytest.raises(ValueError, match="here"):
        run(Fails(), "bf16")
    assert failing[-1].dtype is None


class WithSetup(nn.Module):
    dtype: Any = None

    def setup(self) -> None:
        self.inner = Noting(dtype=self.dtype)
        self.head = nn.Dense(3, dtype=self.dtype)

    def __call__(self, x: Any) -> Any:
        return self.head(self.inner(x))


def test_a_lifted_module_with_a_dtype_of_its_own_leaves_the_model_s_open() -> None:
    class Lifted(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            w = self.param("w", nn.initializers.ones, (1, 3))
            seen.append(("around", w.dtype.name, x.dtype.name))
            x = nn.remat(Noting)(dtype=jnp.float32, name="first")(x * w)
            return nn.Dense(3)(nn.jit(Noting)(dtype=jnp.float32, name="second")(x))

    run(Lifted(), "bf16")
    assert seen == [("around", BF16, BF16), ("first", F32, BF16), ("second", F32, F32)]


@pytest.mark.parametrize("override", [None, "c=f32"])
def test_a_module_with_setup_hands_its_dtype_on_and_an_override_still_reaches_the_child(
    override: str | None,
) -> None:
    overrides = {} if override is None else {"inner": override}
    run(WithSetup(), Precision("bf16", overrides))
    assert seen == [("inner", F32 if override else BF16, F32 if override else BF16)]


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = Noting(name="norm")(x)
        seen.append(("between", None, y.dtype.name))
        return nn.Dense(3)(Plain(name="plain")(x + y))


@pytest.mark.parametrize(
    ("override", "inside", "behind"),
    [
        ("c=f32", F32, BF16),
        ("c=f32,o=f32", F32, F32),
        ("f32", F32, F32),
        ("p=bf16", BF16, BF16),
    ],
)
def test_an_overridden_module_computes_in_its_dtype_and_its_output_is_cast_back(
    override: str, inside: str, behind: str
) -> None:
    run(Residual(), Precision("bf16", {"norm": override}))
    assert seen == [
        ("norm", inside, inside),
        ("between", None, behind),
        ("plain", BF16, behind),
    ]


def test_the_first_override_that_selects_a_parameter_counts_as_with_groups() -> None:
    run(Residual(), Precision("bf16", {"norm": "c=f16", "*/w": "c=f32"}))
    assert seen == [("norm", F16, F16), ("between", None, BF16), ("plain", F32, F32)]


def test_overrides_select_by_class_and_by_role() -> None:
    made = recipe(
        GPT(), Precision("bf16", {nn.LayerNorm: "c=f32", "#embedding": "p=bf16"}), TOKENS
    )
    assert isinstance(made.casts, PolicyCasts)
    found = {"/".join(path): region.compute.name for path, region in made.casts.regions.items()}
    assert {name for name, dtype in found.items() if dtype == F32} == {
        *("ln_f", "blocks/ln_1", "blocks/ln_2")
    }
    state = jax.eval_shape(made.init)
    assert state.params["wte"]["embedding"].dtype == jnp.bfloat16
    assert state.params["ln_f"]["scale"].dtype == jnp.float32
    # The table of parameters says the same.
    assert made.facts["wte/embedding"].dtype == jnp.bfloat16


def test_only_floating_leaves_are_cast() -> None:
    class Several(nn.Module):
        @nn.compact
        def __call__(self, x: Any, others: Any = None) -> Any:
            y = nn.Dense(3)(x)
            leaves = {"y": y, "n": jnp.arange(2), "b": x > 0, "key": jax.random.key(0)}
            return {**leaves, "c": y.astype(jnp.complex64), "others": others}

    def loss(model: Any, batch: Any) -> Any:
        return jnp.sum(model(batch["x"])["y"])

    made = recipe(Several(), "bf16", loss=loss)
    model = made.bind(state := made.init(0), state.params, train=False)
    output = model(np.ones((4, 3)), {"n": np.arange(2), "f": np.ones(2, F32), "none": None})
    assert output["y"].dtype == jnp.float32
    assert [output[name].dtype.name for name in ("n", "b", "c")] == [
        "int32",
        "bool",
        "complex64",
    ]
    assert output["key"] == jax.random.key(0)
    assert output["others"]["n"].dtype == np.int64 and output["others"]["none"] is None


def test_a_custom_output_dtype_reaches_the_loss() -> None:
    assert run(TwoLevels(), "p=f32,c=bf16,o=bf16").dtype == jnp.bfloat16


CELLS = [nn.SimpleCell, nn.GRUCell, nn.MGUCell, nn.LSTMCell, nn.OptimizedLSTMCell]


@pytest.mark.parametrize("kind", CELLS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("override", [None, "c=f32"])
def test_recurrent_cells_keep_the_dtype_of_their_carry(kind: Any, override: str | None) -> None:
    class Recurrent(nn.Module):
        cell: Any

        @nn.compact
        def __call__(self, x: Any) -> Any:
            carry, y = nn.RNN(self.cell, return_carry=True)(x)
            seen.append(
                ("", {leaf.dtype.name for leaf in jax.tree.leaves(carry)}, y.dtype.name)
            )
            return nn.Dense(3)(y[:, -1])

    batch = batch_of(x=np.ones((4, 5, 3), F32))
    overrides = {} if override is None else {"cell": override}
    run(Recurrent(kind(3)), Precision("bf16", overrides), jnp.ones((4, 5, 3)), batch=batch)
    assert seen[0][1] == {F32}


def test_a_jitted_module_is_traced_anew_for_another_policy() -> None:
    class Jitted(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for name in ("first", "second"):
                x = nn.jit(Noting)(label=name, name=name)(x)
            return nn.Dense(3)(x)

    for precision, first, second in [
        ("f32", None, None),
        ("bf16", BF16, BF16),
        (Precision("bf16", {"second": "c=f32"}), BF16, F32),
        ("f16", F16, F16),
    ]:
        run(Jitted(), precision)
        assert [(name, dtype) for name, dtype, _ in seen] == [
            ("first", first),
            ("second", second),
        ]


def test_vmapped_modules_and_attention_are_reached() -> None:
    class Experts(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            lift: Any = nn.vmap  # whose annotation has no None for in_axes
            many = lift(
                Noting,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=None,
                axis_size=2,
            )
            x = jnp.sum(many(name="experts")(x), 0)
            x = nn.MultiHeadDotProductAttention(1, name="attn")(x[:, None], x[:, None])[:, 0]
            return nn.Dense(3)(x)

    made = recipe(Experts(), Precision("bf16", {"experts": "c=f32", "attn/query": "c=f32"}))
    state = jax.eval_shape(made.init)

    def call(state: Any, x: Any) -> Any:
        return made.bind(state, state.params, train=False)(x)

    seen.clear()
    closed = jax.make_jaxpr(call)(state, jnp.ones((4, 3)))
    assert seen[0] == ("experts", F32, F32)
    dtypes = {where.split("/attn/")[-1]: d for where, _, d in products(closed.jaxpr)}
    assert dtypes["query"] == (F32, F32) and dtypes["key"] == (BF16, BF16)
    assert dtypes["...qhd,...khd->...hqk"] == (BF16, BF16)


# The whole step.


def step_products(made: ft.Recipe, batch: Tree) -> Counter[tuple[str, tuple[str, ...]]]:
    """Counts the products of the training step as it is handed to the compiler."""
    state = jax.eval_shape(made.init)
    text = STEP.lower(made, state, batch).as_text()
    found = re.findall(r"stablehlo\.(dot_general|convolution).*: \((.*)\) ->", text)
    dtypes = ((kind, tuple(re.findall(r"x?(bf16|f16|f32)>", args))) for kind, args in found)
    return Counter(dtypes)


def test_the_cnn_s_step_computes_all_products_in_bfloat16_forward_and_backward() -> None:
    before = step_products(recipe(CNN(), "f32", IMAGES), IMAGES)
    assert {dtypes for _, dtypes in before} == {("f32", "f32")}
    after = step_products(recipe(CNN(), "bf16", IMAGES), IMAGES)
    assert {dtypes for _, dtypes in after} == {("bf16", "bf16")}
    assert sum(after.values()) == sum(before.values())
    mixed = step_products(
        recipe(CNN(), Precision("bf16", {"Dense_0": "c=f32"}), IMAGES), IMAGES
    )
    assert {(kind, dtypes[0]) for kind, dtypes in mixed} == {
        *(("convolution", "bf16"), ("dot_general", "f32"))
    }


def test_the_scanned_transformer_s_step_computes_each_module_in_its_dtype() -> None:
    overrides = {"@LayerNorm": "c=f32", "**/attn/query/**": "c=f32", "wte": "c=f32,o=f32"}
    made = recipe(GPT(), Precision("bf16", overrides), TOKENS)
    state = jax.eval_shape(made.init)
    closed = jax.make_jaxpr(lambda *args: ft.train_step(made, *args))(state, TOKENS)
    found = list(products(closed.jaxpr))
    wide = [(where, d) for where, _, d in found if "query" in where or "wte" in where]
    narrow = [(where, d) for where, _, d in found if not ("query" in where or "wte" in where)]
    # Forward, again in the backward pass of remat, and two products of the gradient.
    assert len([where for where, _ in wide if "query" in where]) == 4
    assert {d for _, d in wide} == {(F32, F32)} and {d for _, d in narrow} == {(BF16, BF16)}
    assert len(narrow) > 20
    lowered = step_products(made, TOKENS)
    assert {dtypes for _, dtypes in lowered} == {("bf16", "bf16"), ("f32", "f32")}


def operands(text: str) -> set[tuple[str, ...]]:
    """Returns the dtypes of the operands of all products in a compiled program."""
    dtypes = dict(re.findall(r"(%[\w.\-]+) = \(?(\w+)\[", text))
    dtypes |= dict(re.findall(r"(%[\w.\-]+): (\w+)\[", text))  # arguments of a computation
    found = re.findall(r" (?:dot|convolution)\(([^)]*)\)", text)
    return {tuple(dtypes[name] for name in re.findall(r"%[\w.\-]+", args)) for args in found}


def test_the_compiled_step_has_bfloat16_where_the_policy_says_so() -> None:
    model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
    texts: dict[str, str] = {}
    for precision in ("f32", "bf16"):
        made = recipe(model, precision)
        state = jax.eval_shape(made.init)
        texts[precision] = str(
            STEP.lower(made, state, batch_of()).compile(compiler_options=AS_IT_COMES).as_text()
        )
    assert "bf16[" not in texts["f32"] and "bf16[" in texts["bf16"]
    # XLA for CPU widens the operands of products of 16 bits: with jax 0.10 always, later where
    # it is faster. That for a TPU v5e leaves them, and narrows float32 ones.
    narrow, wide, on_cpu = ("bf16", "bf16"), ("f32", "f32"), jax.default_backend() == "cpu"
    later = {narrow, wide} if on_cpu else {narrow}
    assert operands(texts["bf16"]) == ({wide} if on_cpu and BITWISE_STACK else later)


@pytest.mark.slow
@pytest.mark.parametrize("model", [CNN(), GPT()], ids=["CNN", "GPT"])
def test_compiled_for_a_tpu_all_products_have_bfloat16_operands(model: nn.Module) -> None:
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    there = jax.sharding.SingleDeviceSharding(chips[0])
    batch = IMAGES if isinstance(model, CNN) else TOKENS
    made = recipe(model, "bf16", batch)
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there),
        (jax.eval_shape(made.init), batch),
    )
    text = str(STEP.lower(made, *placed).compile().as_text())
    assert operands(text) == {("bf16", "bf16")}


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_statistics_parameters_gradients_and_metrics_stay_float32(precision: str) -> None:
    made = recipe(CNN(), precision, IMAGES)
    state = jax.eval_shape(made.init)
    new, metrics = jax.eval_shape(lambda *args: ft.train_step(made, *args), state, IMAGES)
    kept = (new.params, new.collections, new.opt_state.slots, metrics)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(kept)} == {F32}


def test_statistics_of_batches_are_formed_in_float32() -> None:
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            return nn.Dense(3)(nn.BatchNorm(not train, momentum=0.5)(x))

    x = 1000 + np.random.default_rng(0).integers(0, 4, (4, 3)).astype(F32) * 8
    made = recipe(Normed(), "bf16", batch_of(x=x))
    stats = STEP(made, made.init(0), batch_of(x=x))[0].collections["batch_stats"]["BatchNorm_0"]
    # The inputs are bfloat16 numbers; the squares of their distances from the mean are not.
    np.testing.assert_allclose(stats["mean"], x.mean(0) / 2, rtol=1e-6)
    # E[x^2] - E[x]^2 with a mean of 1000 loses 6 of the 7 digits of float32.
    np.testing.assert_allclose(stats["var"], 0.5 + x.var(0) / 2, atol=0.5)


def test_the_default_adds_nothing_to_the_program() -> None:
    plain, explicit = (
        recipe(CNN(), precision, IMAGES) for precision in ("f32", Precision("p=f32"))
    )
    unset = ft.make_recipe(CNN(), ft.OptSpec("sgd", 0.1), IMAGES)
    texts = {
        STEP.lower(made, jax.eval_shape(made.init), IMAGES).as_text()
        for made in (plain, explicit, unset)
    }
    assert len(texts) == 1 and not isinstance(plain.casts, PolicyCasts)
    entered: list[Any] = []
    with plain.casts.applied({}) as streams:
        entered += list(nn.module._global_interceptor_stack)
    assert streams == {} and entered == []
    params = {"w": np.ones(2)}
    for verb in (
        plain.casts.params,
        plain.casts.inputs,
        plain.casts.outputs,
        plain.casts.stored,
    ):
        assert verb(params) is params


def test_training_evaluation_and_prediction_are_all_in_the_policy_s_dtypes() -> None:
    made = recipe(CNN(dropout=0.0), "bf16", IMAGES)
    state = jax.eval_shape(made.init)
    predicted = jax.make_jaxpr(lambda *args: ft.predict_step(made, *args))(
        state, {"x": IMAGES["x"]}
    )
    evaluated = jax.make_jaxpr(lambda *args: ft.eval_step(made, *args))(state, IMAGES)
    for closed in (predicted, evaluated):
        assert {d for _, _, d in products(closed.jaxpr)} == {(BF16, BF16)}
    assert predicted.out_avals[0].dtype == jnp.float32


# Parameters of 16 bits.


def test_parameters_are_stored_in_the_policy_s_dtype_from_the_start() -> None:
    made = recipe(nn.Dense(3), "p=bf16,c=bf16")
    state, full = made.init(0), recipe(nn.Dense(3), "f32").init(0)
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), full.params)
    assert not differing_leaves(state.params, expected)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.opt_state.slots)} <= {F32}
