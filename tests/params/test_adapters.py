"""LoRA adapters: the model they are equal to, their facts, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.errors import (
    ArgumentError,
    ArgumentTypeError,
    ModelError,
    ParameterError,
    UnknownNameError,
)
from flaxtrain.params import ParamFact, facts_from
from flaxtrain.params.adapters import Adapters, LoRA
from flaxtrain.params.low_rank import join_adapters
from flaxtrain.tree import flatten
from tests.models import MLP, TransformerBlock, example
from tests.params import models

Array = jax.Array
F64 = jnp.float64


def bind(lora: LoRA, model: nn.Module, *inputs: Any) -> Adapters:
    def initialise(extra: dict[str, Any]) -> Any:
        return model.init({"params": jax.random.key(0), **extra}, *inputs)

    return lora.bind(facts_from(initialise), initialise)


def adapted(lora: LoRA, model: nn.Module, x: Any, seed: int = 0) -> Any:
    """Returns params with adapters, all values random: as after some training."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    adapters = jax.eval_shape(bind(lora, model, x).init, jax.random.key(1))
    return random_like(join_adapters(shapes, adapters), seed)


def random_like(shapes: Any, seed: int = 0) -> Any:
    """Returns numpy arrays: nothing is compiled for them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


# One module each, and what its adapter adds to the output, written in two steps: x A, then B.


@dataclass(frozen=True)
class Single:
    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    a: tuple[int, ...]
    b: tuple[int, ...]
    added: Callable[[Any, Any, Any], Any]


def einsums(first: str, second: str) -> Callable[[Any, Any, Any], Any]:
    """Subscripts for `x, A -> h` and `h, B -> y`, with A and B without axes of length 1."""

    def added(x: Any, a: Any, b: Any) -> Any:
        return np.einsum(second, np.einsum(first, x, a.squeeze()), b.squeeze())

    return added


def two_convolutions(x: Any, a: Any, b: Any) -> Any:
    """Two groups: each is convolved with all of A, then each output takes B's column."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    grouped = windows.reshape(*x.shape[:3], 2, -1, 3, 3)
    h = np.einsum("nhwgcij,ijcr->nhwgr", grouped, a[..., 0, :])
    columns = b[0, 0, 0].reshape(2, -1, a.shape[-1])
    return np.einsum("nhwgr,gor->nhwgo", h, columns).reshape(*x.shape[:3], -1)


SINGLES = [
    Single(
        "dense",
        lambda: nn.Dense(5, param_dtype=F64),
        (2, 6),
        (6, 1, 2),
        (1, 5, 2),
        einsums("bi,ir->br", "br,or->bo"),
    ),
    Single(
        "query",
        lambda: nn.DenseGeneral((2, 4), param_dtype=F64),
        (2, 3, 8),
        (8, 1, 1, 2),
        (1, 2, 4, 2),
        einsums("bti,ir->btr", "btr,hkr->bthk"),
    ),
    Single(
        "output of an attention",
        lambda: nn.DenseGeneral(8, axis=(-2, -1), use_bias=False, param_dtype=F64),
        (2, 3, 2, 4),
        (2, 4, 1, 2),
        (1, 1, 8, 2),
        einsums("bthk,hkr->btr", "btr,or->bto"),
    ),
    Single(
        "batch dimensions",
        lambda: nn.DenseGeneral(4, axis=-1, batch_dims=(0,), param_dtype=F64),
        (3, 7, 5),
        (3, 5, 1, 2),
        (3, 1, 4, 2),
        einsums("bti,bir->btr", "btr,bor->bto"),
    ),
    Single(
        "einsum with the in axis between out axes",
        lambda: nn.Einsum((2, 6, 4), "btd,hdk->bthk", param_dtype=F64),
        (2, 3, 6),
        (1, 6, 1, 2),
        (2, 1, 4, 2),
        einsums("btd,dr->btr", "btr,hkr->bthk"),
    ),
    Single(
        "einsum of one matrix for each entry",
        lambda: nn.Einsum((3, 6, 4), "bed,edk->bek", param_dtype=F64),
        (2, 3, 6),
        (3, 6, 1, 2),
        (3, 1, 4, 2),
        einsums("bed,edr->ber", "ber,ekr->bek"),
    ),
    Single(
        "convolution with groups",
        lambda: nn.Conv(6, (3, 3), feature_group_count=2, param_dtype=F64),
        (2, 5, 5, 8),
        (3, 3, 4, 1, 2),
        (1, 1, 1, 6, 2),
        two_convolutions,
    ),
]


@pytest.mark.parametrize("case", SINGLES, ids=lambda case: case.name)
def test_merged_equals_the_adapter_beside_the_kernel(case: Single) -> None:
    """1e-12: two ways to sum the same products, of order 1, in float64."""
    with jax.enable_x64(True):
        lora = LoRA("kernel", rank=2, alpha=3)
        model, x = case.make(), np.random.default_rng(1).normal(size=case.shape)
        params = adapted(lora, model, x)
        pair = params["lora"]["kernel"]
        assert (pair["lora_a"].shape, pair["lora_b"].shape) == (case.a, case.b)
        base = {key: value for key, value in params.items() if key != "lora"}

        @jax.jit
        def both(params: Any, base: Any) -> Any:
            merged = lora.merge(params)
            again = lora.unmerge(merged, params["lora"])
            return model.apply({"params": merged}, x), model.apply({"params": base}, x), again

        merged, plain, again = both(params, base)
        beside = 1.5 * case.added(x, pair["lora_a"], pair["lora_b"])
        assert np.abs(beside).max() > 0.1
        np.testing.assert_allclose(merged, plain + beside, rtol=1e-12, atol=1e-12)
        assert jax.tree.structure(again) == jax.tree.structure(params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), again, params)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x: Array, _: Any = None) -> tuple[Array, None]:
        return nn.tanh(nn.Dense(6, name="fc", param_dtype=F64)(x)), None


@pytest.mark.parametrize("axis", [0, 1])
def test_a_scan_has_one_adapter_for_each_layer(axis: int) -> None:
    """1e-12: two ways to sum the same products, of order 1, in float64."""
    with jax.enable_x64(True):
        lora = LoRA("stack/fc/kernel", rank=2)
        model, x = models.Scanned(Layer, axis=axis), np.linspace(-1.0, 1.0, 12).reshape(2, 6)
        params = adapted(lora, model, x)
        pair = params["lora"]["stack"]["fc"]["kernel"]
        shape = {0: ((3, 6, 1, 2), (3, 1, 6, 2)), 1: ((6, 3, 1, 2), (1, 3, 6, 2))}[axis]
        assert (pair["lora_a"].shape, pair["lora_b"].shape) == shape
        y = x
        for layer in range(3):
            kernel, bias, a, b = (
                np.take(v, layer, axis)
                for v in (
                    params["stack"]["fc"]["kernel"],
                    params["stack"]["fc"]["bias"],
                    pair["lora_a"],
                    pair["lora_b"],
                )
            )
            y = np.tanh(y @ kernel + bias + (y @ a[:, 0]) @ b[0].T)
        merged = jax.jit(lambda p: model.apply({"params": lora.merge(p)}, x)[0])(params)
        np.testing.assert_allclose(merged, y, rtol=1e-12, atol=1e-12)


def test_a_vmap_along_the_last_axis_has_one_adapter_for_each_expert() -> None:
    """1e-5: float32 products of order 1."""
    lora = LoRA("experts/kernel", rank=2)
    model, x = models.Mixture(axis=-1), models.SEQUENCE
    params = adapted(lora, model, x)
    pair = params["lora"]["experts"]["kernel"]
    assert (pair["lora_a"].shape, pair["lora_b"].shape) == ((8, 1, 4, 2), (1, 8, 4, 2))
    merged = lora.merge(params)["experts"]["kernel"]
    for expert in range(4):
        a, b = pair["lora_a"][:, 0, expert], pair["lora_b"][0, :, expert]
        expected = params["experts"]["kernel"][..., expert] + a @ b.T
        np.testing.assert_allclose(merged[..., expert], expected, atol=1e-5)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x: Array, _: Any = None) -> tuple[Array, None]:
        return x + nn.MultiHeadDotProductAttention(2, name="attn")(x), None


KERNELS = {
    "attention in a scan": (models.Scanned(Attention), models.SEQUENCE, "stack/**/kernel"),
    "CNN": (*example("CNN"), "Conv_*/kernel"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_at_the_start_the_model_is_what_it_was_and_gradients_reach_b_only(name: str) -> None:
    model, inputs, kernels = KERNELS[name]
    x = np.random.default_rng(1).normal(size=inputs.shape).astype(inputs.dtype)
    lora = LoRA(kernels, rank=1)
    base = random_like(jax.eval_shape(model.init, jax.random.key(0), x))
    rest = {key: jax.tree.map(np.abs, tree) for key, tree in base.items() if key != "params"}
    adapters = bind(lora, model, x).init(jax.random.key(1))
    assert len(jax.tree.leaves(adapters)) >= 4  # of two kernels

    def loss(adapters: Any) -> Any:
        merged = lora.merge(join_adapters(base["params"], adapters))
        output = model.apply({"params": merged, **rest}, x)
        return sum((leaf**2).mean() for leaf in jax.tree.leaves(output)), output

    (_, output), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(adapters)
    plain = jax.jit(lambda params: model.apply({"params": params, **rest}, x))(base["params"])
    jax.tree.map(np.testing.assert_array_equal, output, plain)
    for path, gradient in flatten(gradients).items():
        assert np.isfinite(gradient).all(), path
        assert (np.abs(gradient).max() > 0) == (path[-1] == "lora_b"), path


def test_initial_values_are_normal_and_zero() -> None:
    """2%: 65,536 draws have a standard deviation that is off by 0.3%."""
    model, x = nn.Dense(512), jnp.ones((1, 1024))
    pair = bind(LoRA("kernel", rank=64), model, x).init(jax.random.key(0))["kernel"]
    assert float(pair["lora_a"].std() * 32) == pytest.approx(1.0, rel=0.02)
    assert not pair["lora_b"].any()


def test_initial_values_depend_on_the_path_and_not_on_other_layers() -> None:
    lora, key = LoRA("**/kernel", rank=1), jax.random.key(0)
    small = bind(lora, MLP((8, 8)), models.ROW).init(key)
    large = bind(lora, MLP((8, 8, 8)), models.ROW).init(key)
    for name in small:
        ours, theirs = small[name]["kernel"], large[name]["kernel"]
        np.testing.assert_array_equal(ours["lora_a"], theirs["lora_a"])
    assert (small["Dense_0"]["kernel"]["lora_a"] != small["Dense_1"]["kernel"]["lora_a"]).all()
    again = bind(lora, MLP((8, 8)), models.ROW).init(jax.random.key(1))
    assert (again["Dense_0"]["kernel"]["lora_a"] != small["Dense_0"]["kernel"]["lora_a"]).all()


def test_adapters_have_the_dtype_of_their_kernel_or_the_given_one() -> None:
    for given, expected in ((None, jnp.float16), (jnp.bfloat16, jnp.bfloat16)):
        lora = LoRA("kernel", rank=1, dtype=given)
        adapters = bind(lora, nn.Dense(3, param_dtype=jnp.float16), models.ROW)
        leaves = jax.tree.leaves(adapters.init(jax.random.key(0)))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype(expected)}
        assert adapters.facts["lora/kernel/lora_a"].dtype == expected


def test_the_table_has_the_adapters_in_the_order_of_the_params() -> None:
    model, tokens = example("GPT")
    lora = LoRA("blocks/attn/*/kernel", rank=2)
    adapters = bind(lora, model, tokens)
    params = adapted(lora, model, tokens)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    assert adapters.facts.tree(lambda fact: (fact.shape, fact.dtype)) == shapes
    in_order = [fact.shape for fact in adapters.facts.params]
    assert in_order == [leaf.shape for leaf in jax.tree.leaves(params)]


def test_a_row_of_an_adapter_is_that_of_its_kernel_with_another_role() -> None:
    adapters = bind(LoRA("stack/fc/kernel", rank=2), *partitioned())
    kernel = adapters.facts["stack/fc/kernel"]
    rows = [adapters.facts[f"lora/stack/fc/kernel/lora_{x}"] for x in "ab"]
    assert [row.shape for row in rows] == [(8, 3, 1, 2), (1, 3, 8, 2)]
    assert [row.local_shape for row in rows] == [(8, 1, 2), (1, 8, 2)]
    assert [row.partitioning for row in rows] == [
        ("in", "layers", None, None),
        (None, "layers", "out", None),
    ]
    changed = {"path", "shape", "local_shape", "partitioning", "role", "rule", "hidden"}
    changed.add("kernel_axes")  # those of its own two axes
    for row in rows:
        assert (row.role, row.rule) == ("lora", "adapter of 'stack/fc/kernel'")
        assert unchanged(row, changed) == unchanged(kernel, changed)


def partitioned() -> tuple[nn.Module, Array]:
    return models.Scanned(models.PartitionedBlock, axis=1), models.SEQUENCE


def unchanged(fact: ParamFact, changed: set[str]) -> dict[str, Any]:
    return {name: value for name, value in vars(fact).items() if name not in changed}


def test_adapters_are_trained_and_what_is_trained_beside_them() -> None:
    adapters = bind(LoRA("Dense_0/kernel", rank=1, train="Dense_2/*"), MLP(), models.ROW)
    assert adapters.trainable == {
        ("lora", "Dense_0", "kernel", "lora_a"),
        ("lora", "Dense_0", "kernel", "lora_b"),
        ("Dense_2", "bias"),
        ("Dense_2", "kernel"),
    }
    assert len(bind(LoRA("Dense_0/kernel", rank=1), MLP(), models.ROW).trainable) == 2


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        for index in range(4):
            x, _ = TransformerBlock(8, 0.0, train=False, name=f"block{index}")(x)
        return x


def test_adapters_of_rank_4_are_less_than_5_percent_of_a_transformer_of_width_512() -> None:
    x = jax.ShapeDtypeStruct((1, 16, 512), jnp.float32)

    def initialise(extra: dict[str, Any]) -> Any:
        zeros = jnp.zeros(x.shape, x.dtype)
        return Stack().init({"params": jax.random.key(0), **extra}, zeros)

    adapters = LoRA("**/kernel", rank=4).bind(facts_from(initialise), initialise)
    assert len(adapters.pairs) == 4 * 6
    subtree = jax.eval_shape(lambda: adapters.init(jax.random.key(0)))
    size = sum(leaf.size for leaf in jax.tree.leaves(subtree))
    # Per block: query, key, value, out (512 + 512 each), up and down (512 + 1024 each).
    assert size == 4 * 4 * (4 * 1024 + 2 * 1536)
    assert size == adapters.facts.size - adapters.base.size
    assert size < 0.05 * adapters.base.size


def test_a_value_prints_as_its_call_and_compares_by_its_fields() -> None:
    lora = LoRA("**/kernel", 4, alpha=8, train="head/**", dtype=jnp.bfloat16)
    text = "LoRA('**/kernel', rank=4, alpha=8.0, train='head/**', dtype='bfloat16')"
    assert repr(lora) == text
    assert eval(text) == lora
    assert repr(LoRA("**/kernel", rank=4)) == "LoRA('**/kernel', rank=4)"
    assert (lora.scale, LoRA("**", rank=4).scale) == (2.0, 1.0)
    assert hash(LoRA(["a", nn.Dense], rank=1)) == hash(LoRA(["a", nn.Dense], rank=1))
    adapters = bind(LoRA("kernel", rank=1), nn.Dense(3), models.ROW)
    assert repr(adapters) == "Adapters(LoRA('kernel', rank=1): 1 kernel, 11 values)"


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rank": 0}, ArgumentError, "rank=0 is too small"),
        ({"rank": 2.0}, ArgumentTypeError, "rank=2.0 is a float, not an integer"),
        ({"rank": True}, ArgumentTypeError, "not an integer"),
        ({"alpha": 0.0}, ArgumentError, "alpha=0.0 is out of range"),
        ({"alpha": -1}, ArgumentError, "alpha=-1 is out of range"),
        ({"alpha": float("inf")}, ArgumentError, "out of range"),
        ({"alpha": "1"}, ArgumentTypeError, "alpha='1' is a str, not a number"),
        ({"dtype": "int32"}, ArgumentTypeError, "'int32' is not a floating dtype"),
        ({"dtype": "float31"}, ArgumentTypeError, "'float31' is not a floating dtype"),
        ({"dtype": jnp.complex64}, ArgumentTypeError, "not a floating dtype"),
        ({"dtype": jnp.float8_e4m3fn}, UnknownNameError, "unknown dtype 'float8_e4m3fn'"),
        ({"select": 3}, ArgumentTypeError, "3"),
        ({"select": None}, ArgumentTypeError, "None"),
        ({"select": "#kernl"}, UnknownNameError, "kernl"),
        ({"train": 3}, ArgumentTypeError, "3"),
        ({"aplha": 8}, ArgumentTypeError, "did you mean 'alpha'"),
    ],
)
def test_an_argument_out_of_range_is_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        LoRA(**{"select": "**/kernel", "rank": 1, **arguments})
    assert str(caught.value.where).startswith("LoRA")  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("wte/embedding", r"no adapter is possible for wte/embedding \(Embed\)"),
        ("blocks/up/bias", r"no adapter is possible for blocks/up/bias \(Dense\)"),
        ("ln_f/*", r"ln_f/bias \(LayerNorm\), ln_f/scale \(LayerNorm\)"),
        ("blocks/up", r"for blocks/up/bias \(Dense\)\n"),
        ("blocks", " and 7 more"),
        ("nowhere/**", "nowhere"),
    ],
)
def test_what_is_no_kernel_of_the_four_classes_is_refused(select: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        bind(LoRA(select, rank=1), *example("GPT"))
    assert caught.value.where == "LoRA(select=...)"


def test_kernels_of_other_classes_are_refused_with_those_that_are_possible() -> None:
    with pytest.raises(ParameterError, match=r"rnn|cell.*DenseParams") as caught:
        bind(LoRA("**/kernel", rank=1), *example("LSTM"))
    assert "Dense, DenseGeneral, Einsum, Conv" in str(caught.value.fix)
    with pytest.raises(ParameterError, match=r"kernel \(ConvTranspose\)"):
        bind(LoRA("kernel", rank=1), nn.ConvTranspose(4, (3,)), models.SEQUENCE)


class OwnKernel(nn.Dense):
    """A `Dense` in name, with a kernel of another form."""

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        return inputs * self.param("kernel", nn.initializers.ones, ())


def test_a_kernel_that_its_class_does_not_explain_is_refused() -> None:
    with pytest.raises(ParameterError, match="which axes 'kernel' sums over is not known"):
        bind(LoRA("kernel", rank=1), OwnKernel(3), models.ROW)


def test_a_rank_that_saves_nothing_is_refused_with_the_largest_that_does() -> None:
    with pytest.raises(ParameterError, match="rank 3 is too high for 'kernel', a matrix 8 x 3"):
        bind(LoRA("kernel", rank=3), nn.Dense(3), models.ROW)
    bind(LoRA("kernel", rank=2), nn.Dense(3), models.ROW)
    with pytest.raises(ParameterError) as caught:
        bind(LoRA("kernel", rank=1), nn.Dense(1), models.ROW)
    assert caught.value.fix == "deselect it"


def test_a_kernel_is_not_adapted_and_trained() -> None:
    with pytest.raises(ParameterError, match="'Dense_0/kernel' is adapted, and trained itself"):
        bind(LoRA("Dense_0/kernel", rank=1, train="Dense_*/*"), MLP(), models.ROW)
    with pytest.raises(ParameterError, match="haed"):
        bind(LoRA("Dense_0/kernel", rank=1, train="haed/**"), MLP(), models.ROW)


class HasLora(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(3, name="lora")(x)


def test_a_model_with_a_module_called_lora_is_refused() -> None:
    with pytest.raises(ModelError, match="'lora/bias', and adapters live under 'lora'"):
        bind(LoRA("**/kernel", rank=1), HasLora(), models.ROW)


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_things_to_bind_and_to_start_from_are_refused() -> None:
    wrong: Any = {}
    lora = LoRA("kernel", rank=1)
    with pytest.raises(ArgumentTypeError, match="facts is a dict, not a table of facts"):
        lora.bind(wrong, lambda extra: {})
    adapters = bind(lora, nn.Dense(3), models.ROW)
    with pytest.raises(ArgumentTypeError, match="initialise is a dict"):
        lora.bind(adapters.base, wrong)
    for key in (0, jax.random.PRNGKey(0), jax.random.split(jax.random.key(0)), None):
        with pytest.raises(ArgumentTypeError, match="not one typed key"):
            adapters.init(key)  # pyright: ignore[reportArgumentType]


def test_merging_without_adapters_or_with_another_rank_is_refused() -> None:
    lora = LoRA("kernel", rank=2)
    params = adapted(lora, nn.Dense(3), models.ROW)
    with pytest.raises(ParameterError, match="no adapters"):
        lora.merge({"kernel": params["kernel"]})
    with pytest.raises(ParameterError, match="not rank 1"):
        LoRA("kernel", rank=1).merge(params)
    with pytest.raises(ParameterError, match="not in the params"):
        lora.unmerge({"kernal": params["kernel"]}, params["lora"])
