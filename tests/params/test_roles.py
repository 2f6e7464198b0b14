"""Roles, one line of evidence at a time."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from flaxtrain.errors import ArgumentTypeError, ParameterError, UnknownNameError
from flaxtrain.params import ROLES, param_facts
from flaxtrain.params.roles import override_roles
from tests.params import models
from tests.params.models import CASES, ROW, SEQUENCE, facts_of

ones = nn.initializers.ones


def role_of(name: str, shape: tuple[int, ...], module: str = "part", cls: str = "Part") -> str:
    """Returns the role of a parameter of a custom module."""

    def call(self: nn.Module, x: jax.Array) -> jax.Array:
        return x * self.param(name, ones, shape).sum()

    def parent(self: nn.Module, x: jax.Array) -> jax.Array:
        return part(name=module)(x)

    part: Any = type(cls, (nn.Module,), {"__call__": nn.compact(call)})
    model: Any = type("Model", (nn.Module,), {"__call__": nn.compact(parent)})
    (fact,) = param_facts(model(), ROW).params
    return fact.role


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("kernel", (8, 8), "kernel"),
        ("kernel", (8,), "kernel"),
        ("depthwise_kernel", (3, 1), "kernel"),
        ("recurrent_kernel", (8, 8), "recurrent"),
        ("bias", (2, 4), "bias"),
        ("b", (8,), "bias"),
        ("b", (8, 8), "kernel"),
        ("b1", (8,), "bias"),
        ("b_out", (1, 8), "bias"),
        ("bq", (8,), "bias"),
        ("b1", (4, 8), "kernel"),
        ("bias_k", (1, 1, 8), "bias"),
        ("bias_kernel", (8, 8), "kernel"),
        ("beam", (8,), "gain"),
        ("out_bias", (8,), "bias"),
        ("beta", (8,), "bias"),
        ("relative_position_bias_table", (7, 2), "pos_embedding"),
        ("pos_embedding", (1, 4, 8), "pos_embedding"),
        ("posEmbedding", (4, 8), "pos_embedding"),
        ("position_bias", (2, 4, 4), "pos_embedding"),
        ("relative_attention_bias", (7, 2), "pos_embedding"),
        ("pos_scale", (), "scalar"),
        ("pos_proj", (8, 8), "kernel"),
        ("positional", (4, 8), "pos_embedding"),
        ("word_embeddings", (7, 8), "embedding"),
        ("token_embedding", (7, 8), "embedding"),
        ("table", (8, 8), "embedding"),
        ("codebook", (8, 8), "embedding"),
        ("embedding", (8, 1), "embedding"),
        ("embed_scale", (), "scalar"),
        ("vocab_bias", (8,), "bias"),
        ("embed_proj", (8, 8), "kernel"),
        ("class_embedding", (8,), "token"),
        ("null_embed", (1, 8), "token"),
        ("cls", (1, 1, 8), "token"),
        ("cls_token", (1, 1, 8), "token"),
        ("mask_token", (8,), "token"),
        ("latents", (4, 8), "token"),
        ("prompt", (4, 8), "token"),
        ("gamma", (1, 1, 8), "gain"),
        ("scale", (2, 4), "gain"),
        ("layer_scale", (8,), "gain"),
        ("scale", (), "scalar"),
        ("logit_scale", (1,), "scalar"),
        ("temperature", (), "scalar"),
        ("weight", (8,), "gain"),
        ("weight", (1, 8), "gain"),
        ("weight", (8, 8), "kernel"),
        ("weight", (8, 1), "kernel"),
        ("weight", (2, 1, 1), "gain"),
        ("w1", (8, 4), "kernel"),
        ("w1", (8, 1), "kernel"),
        ("w_hh", (8, 8), "recurrent"),
        ("A_log", (8, 4), "gain"),
        ("log_step", (), "scalar"),
        ("lora_a", (8, 1), "kernel"),
        ("lora_b", (1, 8), "kernel"),
        ("temperature", (2, 1, 1), "gain"),
        ("A", (8, 2), "kernel"),
        ("anything", (1, 1, 1), "scalar"),
    ],
)
def test_a_custom_module_is_judged_by_name_and_then_by_rank(
    name: str, shape: tuple[int, ...], role: str
) -> None:
    assert role_of(name, shape) == role


@pytest.mark.parametrize(
    ("name", "shape", "module", "role"),
    [
        ("weight", (8,), "ln_f", "norm_scale"),
        ("weight", (1, 1, 8), "norm1", "norm_scale"),
        ("weight", (8, 8), "ln_f", "kernel"),
        ("scale", (8,), "q_norm", "norm_scale"),
        ("g", (8,), "final_layernorm", "norm_scale"),
        ("bias", (8,), "bn2", "norm_bias"),
        ("embedding", (4, 8), "pos_embed", "pos_embedding"),
        ("weight", (8,), "planner", "gain"),
        ("weight", (8,), "rms", "norm_scale"),
        ("scale", (2, 4), "key_norm", "norm_scale"),
        ("bias", (2, 4), "key_norm", "norm_bias"),
        ("embedding", (7, 2), "relative_attention_bias", "pos_embedding"),
    ],
)
def test_the_name_of_the_module_tells_norms_and_positions(
    name: str, shape: tuple[int, ...], module: str, role: str
) -> None:
    assert role_of(name, shape, module) == role


@pytest.mark.parametrize(
    ("cls", "name", "shape", "role"),
    [
        ("RMSnorm", "w", (8,), "norm_scale"),
        ("MyLayerNorm", "offset", (8,), "norm_bias"),
        ("ScaleNorm", "g", (), "norm_scale"),
        ("AdaNorm", "kernel", (8, 16), "kernel"),
        ("AdaNorm", "shift_kernel", (8, 8), "kernel"),
        ("RMS", "weight", (8,), "norm_scale"),
        ("LN", "b", (8,), "norm_bias"),
        ("LayerNorm2d", "weight", (8,), "norm_scale"),
        ("RMSNormGated", "w", (8,), "norm_scale"),
        ("L2Normalize", "scale", (), "norm_scale"),
        ("LayerNormalization", "gamma", (8,), "norm_scale"),
        ("HeadwiseNorm", "scale", (2, 4), "norm_scale"),
        ("HeadwiseNorm", "b", (2, 4), "kernel"),
        ("PreNormBlock", "gamma", (8,), "gain"),
        ("PreNormBlock", "cls", (1, 1, 8), "token"),
        ("NormalHead", "spread", (8,), "gain"),
        ("WeightNormDense", "b", (8,), "bias"),
    ],
)
def test_a_class_whose_name_says_norm_is_a_norm_unless_it_only_has_norms(
    cls: str, name: str, shape: tuple[int, ...], role: str
) -> None:
    assert role_of(name, shape, cls=cls) == role


@pytest.mark.parametrize(
    ("cls", "name", "role"),
    [
        ("TokenEmbedding", "weight", "embedding"),
        ("SharedEmbed", "w", "embedding"),
        ("PatchEmbedding", "weight", "kernel"),
        ("PositionalEncoding", "weight", "pos_embedding"),
        ("RelativePositionBiases", "rel_embedding", "pos_embedding"),
        ("RelationEncoder", "rel_embedding", "embedding"),
        ("PositionwiseFeedForward", "weight", "kernel"),
        ("InputProjection", "weight", "kernel"),
    ],
)
def test_the_name_of_the_class_tells_tables(cls: str, name: str, role: str) -> None:
    assert role_of(name, (7, 8), cls=cls) == role


def roles_beside(shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Returns the roles of several parameters of one custom module."""

    class Custom(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return x * sum(
                self.param(name, ones, shape).sum() for name, shape in shapes.items()
            )

    return {fact.name: fact.role for fact in param_facts(Custom(), ROW).params}


@pytest.mark.parametrize(
    ("name", "shape", "kernel", "kernel_shape", "role"),
    [
        ("b1", (4, 16), "w1", (4, 8, 16), "bias"),
        ("bq", (2, 4), "wq", (8, 2, 4), "bias"),
        ("b", (4, 8), "w", (4, 8, 8), "bias"),
        ("b1", (4, 16), "w2", (4, 8, 16), "kernel"),  # of another kernel
        ("b", (8, 8), "w", (8, 8), "kernel"),  # as many axes: a factor of its own
        ("b", (2, 8), "w", (3, 3, 4, 8), "kernel"),  # 2 is no axis of the kernel
    ],
)
def test_b_with_several_axes_is_the_bias_of_a_w_that_has_those_axes_and_more(
    name: str, shape: tuple[int, ...], kernel: str, kernel_shape: tuple[int, ...], role: str
) -> None:
    assert roles_beside({name: shape, kernel: kernel_shape}) == {name: role, kernel: "kernel"}


def test_in_a_dict_of_params_the_key_above_is_taken_for_a_module_name() -> None:
    facts = models.KINDS["Mapped"]()
    assert facts["deep/layer/ln/scale"].role == "norm_scale"
    assert facts["deep/layer/ln/scale"].rule == "name 'scale' in 'ln'"


class MyDense(nn.Dense):
    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        adapter = self.param("adapter", ones, (inputs.shape[-1], self.features))
        return super().__call__(inputs) + inputs @ adapter


def test_a_subclass_has_the_roles_of_its_base_and_its_own_by_name() -> None:
    facts = param_facts(MyDense(4), ROW)
    assert {f.name: (f.owner_name, f.role) for f in facts.params} == {
        "adapter": ("MyDense", "kernel"),
        "bias": ("MyDense", "bias"),
        "kernel": ("MyDense", "kernel"),
    }


def test_the_class_outranks_the_rank() -> None:
    facts = param_facts(nn.Dense(1), jnp.ones((2, 1)))
    assert facts["kernel"].local_shape == (1, 1)
    assert facts["kernel"].role == "kernel"
    assert facts["kernel"].rule == "class Dense"


def roles_of(case_name: str) -> dict[str, str]:
    case = next(case for case in CASES if case.name == case_name)
    return {fact.name: fact.role for fact in facts_of(case).params}


def test_under_a_scan_the_roles_are_those_of_one_layer() -> None:
    assert roles_of("scan in scan") == {
        "stack/pair/down/bias": "bias",
        "stack/pair/down/kernel": "kernel",
        "stack/pair/gamma": "gain",
        "stack/pair/ln/bias": "norm_bias",
        "stack/pair/ln/scale": "norm_scale",
        "stack/pair/up/bias": "bias",
        "stack/pair/up/kernel": "kernel",
    }


@pytest.mark.parametrize(
    "case", ["LSTM", "optimized LSTM", "bidirectional", "convolutional LSTM"]
)
def test_in_a_cell_the_kernels_on_the_hidden_state_are_recurrent(case: str) -> None:
    for name, role in roles_of(case).items():
        _, module, leaf = name.split("/")
        on_hidden = "recurrent" if module.startswith("h") else "kernel"
        assert role == ("bias" if leaf == "bias" else on_hidden), name


def test_a_cell_of_ones_own_has_recurrent_kernels_by_name() -> None:
    class Cell(nn.RNNCellBase):
        @nn.compact
        def __call__(self, carry: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            hidden = carry @ self.param("w_hh", ones, (8, 8))
            carry = jnp.tanh(hidden + x @ self.param("w_xh", ones, (8, 8)))
            return carry, carry

        @nn.nowrap
        def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> jax.Array:
            return jnp.zeros((*input_shape[:-1], 8))

        @property
        def num_feature_axes(self) -> int:
            return 1

    facts = param_facts(nn.RNN(Cell(name="cell")), SEQUENCE)
    assert facts["cell/w_hh"].role == "recurrent"
    assert facts["cell/w_xh"].role == "kernel"


def test_a_class_that_is_named_as_a_recurrent_cell_is_one() -> None:
    def roles(cls: str) -> dict[str, str]:
        def call(self: nn.Module, x: jax.Array) -> jax.Array:
            x = nn.Dense(8, name="hidden")(x)
            return x @ self.param("w_h", ones, (8, 8))

        model: Any = type(cls, (nn.Module,), {"__call__": nn.compact(call)})
        facts = param_facts(model(), ROW)
        return {fact.name: fact.role for fact in facts.params if fact.role != "bias"}

    assert roles("MinGRUCell") == {"hidden/kernel": "recurrent", "w_h": "recurrent"}
    assert roles("LSTMClassifier") == {"hidden/kernel": "kernel", "w_h": "kernel"}


def test_norms_around_weights_leave_the_kernel_a_kernel() -> None:
    assert roles_of("WeightNorm") == {
        "fc/bias": "bias",
        "fc/kernel": "kernel",
        "outer/fc\\/kernel\\/scale": "norm_scale",
    }
    assert roles_of("SpectralNorm") == {"fc/bias": "bias", "fc/kernel": "kernel"}


def test_flax_modules_have_the_roles_of_their_class() -> None:
    roles = roles_of("convolutions") | roles_of("attention with norms")
    assert roles["prelu/negative_slope"] == "scalar"
    assert roles["gn/scale"] == roles["bn/scale"] == "norm_scale"
    assert roles["up/kernel"] == roles["out/kernel"] == "kernel"
    assert roles["query/bias"] == "bias"
    assert roles["key_ln/scale"] == "norm_scale"


def test_embeddings_of_positions_are_told_by_the_module_name() -> None:
    class Positions(nn.Module):
        @nn.compact
        def __call__(self, tokens: jax.Array) -> jax.Array:
            position = nn.Embed(9, 8, name="position_embed")(jnp.arange(4)[None])
            return nn.Embed(9, 8, name="embed")(tokens) + position

    facts = param_facts(Positions(), models.TOKENS)
    assert facts["position_embed/embedding"].role == "pos_embedding"
    assert facts["embed/embedding"].role == "embedding"


def test_integers_are_other() -> None:
    class Counter(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return x * self.param("kernel", lambda _: jnp.ones((8, 8), jnp.int32)).sum()

    fact = param_facts(Counter(), ROW)["kernel"]
    assert (fact.role, fact.rule) == ("other", "dtype int32")


def test_every_role_that_is_given_is_in_the_list() -> None:
    given = {role for case in CASES for role in roles_of(case.name).values()}
    assert given <= set(ROLES)
    assert {"kernel", "bias", "norm_scale", "norm_bias", "gain", "recurrent", "scalar"} <= given


PATHS = [("head", "kernel"), ("head", "bias"), ("odd[0]", "kernel")]


def test_the_first_entry_that_matches_decides() -> None:
    given = override_roles({"head/kernel": "gain", "head/*": "other"}, PATHS)
    assert {path: role for path, (role, _) in given.items()} == {
        ("head", "kernel"): "gain",
        ("head", "bias"): "other",
    }
    swapped = override_roles({"head/*": "other", "head/kernel": "gain"}, PATHS)
    assert {role for role, _ in swapped.values()} == {"other"}


def test_a_name_is_taken_literally_before_it_is_taken_as_a_glob() -> None:
    assert list(override_roles({"odd[0]/kernel": "gain"}, PATHS)) == [("odd[0]", "kernel")]


@pytest.mark.parametrize(
    ("roles", "error", "text"),
    [
        ({"head/kernel": "kernle"}, UnknownNameError, "did you mean 'kernel'"),
        ({"had/kernel": "kernel"}, ParameterError, "nearest: head/kernel"),
        ({("head",): "kernel"}, ParameterError, "no parameter matches 'head'"),
        ({"*/scale": "gain"}, ParameterError, "no parameter matches '\\*/scale'"),
    ],
)
def test_wrong_overrides_are_refused(roles: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        override_roles(roles, PATHS)


@pytest.mark.usefixtures("unchecked_types")
def test_overrides_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="roles is a list"):
        override_roles(["head/kernel"], PATHS)  # pyright: ignore[reportArgumentType] -- as meant
