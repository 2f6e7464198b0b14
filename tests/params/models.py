"""Linen modules that declare parameters in every way there is, with the facts written by hand.

Each case names a model, its input, and one line per parameter: path, class of the owner, shape
where it is declared, axes that lifted transformations added (`-`: none; a shape `-` is a
scalar).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxtrain.params import Facts, facts_from, param_facts
from tests.models import example

Array = jax.Array

ROW = jnp.ones((2, 8))
SEQUENCE = jnp.ones((2, 4, 8))
TOKENS = jnp.ones((2, 4), jnp.int32)
IMAGE = jnp.ones((2, 8, 8, 3))
VIDEO = jnp.ones((2, 3, 8, 8, 3))

ones = nn.initializers.ones
zeros = nn.initializers.zeros
lecun = nn.initializers.lecun_normal()


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[Any, ...]
    expected: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> dict[str, tuple[str, str, str]]:
        lines = (line.split() for line in self.expected.strip().splitlines())
        return {path: (owner, local, axes) for path, owner, local, axes in lines}


# Lifted transformations.


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: Array, _: Any = None) -> tuple[Array, None]:
        y = nn.Dense(16, name="up")(nn.LayerNorm(name="ln")(x))
        y = nn.Dense(8, name="down")(y) * self.param("gamma", ones, (1, 1, 8))
        return x + y, None


class PartitionedBlock(nn.Module):
    @nn.compact
    def __call__(self, x: Array, _: Any = None) -> tuple[Array, None]:
        kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
        bias_init = nn.with_partitioning(nn.initializers.zeros, ("out",))
        return nn.Dense(8, kernel_init=kernel_init, bias_init=bias_init, name="fc")(x), None


class Scanned(nn.Module):
    """`length` times `body`, with its params stacked along `axis`."""

    body: Any
    length: int = 3
    axis: int = 0

    @nn.compact
    def __call__(self, x: Array, _: Any = None) -> Any:
        stack = nn.scan(
            self.body,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=self.length,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return stack(name="stack")(x, None)


class Pair(nn.Module):
    axis: int = 0

    @nn.compact
    def __call__(self, x: Array, _: Any = None) -> Any:
        axes = {"params": self.axis}
        stack = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=2)
        return stack(name="pair")(x, None)


class SameBlock(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        stack = nn.scan(
            Block, variable_broadcast="params", split_rngs={"params": False}, length=3
        )
        return stack(name="stack")(x, None)[0]


def experts(axis: int) -> Any:
    return nn.vmap(
        nn.Dense,
        in_axes=None,
        out_axes=-1,
        axis_size=4,
        variable_axes={"params": axis},
        split_rngs={"params": True},
    )


class Mixture(nn.Module):
    axis: int = 0

    @nn.compact
    def __call__(self, x: Array, _: Any = None) -> tuple[Array, None]:
        gate = nn.softmax(nn.Dense(4, use_bias=False, name="router")(x))
        y = experts(self.axis)(8, name="experts")(x)
        return jnp.einsum("bte,btde->btd", gate, y), None


class NormedMixture(nn.Module):
    @nn.compact
    def __call__(self, x: Array, _: Any = None) -> tuple[Array, None]:
        return x + Mixture(axis=-1, name="moe")(nn.LayerNorm(name="ln")(x))[0], None


BLOCK = """
{0}/down/bias    Dense      8      {1}
{0}/down/kernel  Dense      16x8   {1}
{0}/gamma        Block      1x1x8  {1}
{0}/ln/bias      LayerNorm  8      {1}
{0}/ln/scale     LayerNorm  8      {1}
{0}/up/bias      Dense      16     {1}
{0}/up/kernel    Dense      8x16   {1}
"""

LIFTED = [
    Case(
        "scan of remat",
        lambda: Scanned(nn.remat(Block)),
        (SEQUENCE,),
        BLOCK.format("stack", "0"),
    ),
    Case(
        "scan along axis 1, partitioned",
        lambda: Scanned(PartitionedBlock, axis=1),
        (SEQUENCE,),
        """
        stack/fc/bias    Dense  8    1
        stack/fc/kernel  Dense  8x8  1
        """,
    ),
    Case("scan that shares its params", SameBlock, (SEQUENCE,), BLOCK.format("stack", "-")),
    Case(
        "scan in scan",
        lambda: Scanned(Pair, length=8),
        (SEQUENCE,),
        BLOCK.format("stack/pair", "0,1"),
    ),
    Case(
        # The outer axis goes to position 1, between the inner axis (0) and the block's own.
        "scan along axis 1 in which there is a scan along axis 0",
        lambda: Scanned(Pair, length=8, axis=1),
        (SEQUENCE,),
        BLOCK.format("stack/pair", "0,1"),
    ),
    Case(
        "experts by vmap",
        Mixture,
        (SEQUENCE,),
        """
        experts/bias    Dense  8    0
        experts/kernel  Dense  8x8  0
        router/kernel   Dense  8x4  -
        """,
    ),
    Case(
        "vmap along the last axis",
        lambda: Mixture(axis=-1),
        (SEQUENCE,),
        """
        experts/bias    Dense  8    1
        experts/kernel  Dense  8x8  2
        router/kernel   Dense  8x4  -
        """,
    ),
    Case(
        "vmap along the last axis in a scan along the first",
        lambda: Scanned(NormedMixture),
        (SEQUENCE,),
        """
        stack/ln/bias             LayerNorm  8    0
        stack/ln/scale            LayerNorm  8    0
        stack/moe/experts/bias    Dense      8    0,2
        stack/moe/experts/kernel  Dense      8x8  0,3
        stack/moe/router/kernel   Dense      8x4  0
        """,
    ),
]


# Ways to declare and to share.


class Setup(nn.Module):
    """Declares the head first and uses it last."""

    def setup(self) -> None:
        self.final_gain = self.param("final_gain", ones, (8,))
        self.pos = self.param("pos_embedding", nn.initializers.zeros, (1, 4, 8))
        self.head = nn.Dense(3)
        self.layers = [nn.Dense(8), nn.Dense(8)]
        self.parts = {"a": nn.Dense(8), "b": nn.LayerNorm()}
        self.unused = self.param("unused", ones, (3,))

    def __call__(self, x: Array) -> Array:
        x = x + self.pos
        for layer in reversed(self.layers):
            x = layer(x)
        return self.head(self.parts["b"](self.parts["a"](x)) * self.final_gain[None, None])


class Table(nn.Module):
    def setup(self) -> None:
        self.table = self.param("table", ones, (8, 8))


class ReadsAttribute(nn.Module):
    def setup(self) -> None:
        self.store = Table()

    def __call__(self, x: Array) -> Array:
        return x @ self.store.table  # no method of Table ever runs


class Gain(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x * self.param("weight", ones, (1, x.shape[-1]))


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        embed = nn.Embed(7, 8, name="wte")
        return embed.attend(Gain(name="ln_f")(embed(tokens)[:, 0]))


class AttendOnly(nn.Module):
    def setup(self) -> None:
        self.embed = nn.Embed(7, 8)

    def __call__(self, x: Array) -> Array:
        return self.embed.attend(x)


class AutoEncoder(nn.Module):
    def setup(self) -> None:
        self.encoder, self.decoder = nn.Dense(4), nn.Dense(8)

    def encode(self, x: Array) -> Array:
        return self.encoder(x)

    def __call__(self, x: Array) -> Array:
        return self.decoder(self.encode(x))


class OnlyInTraining(nn.Module):
    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = nn.BatchNorm(use_running_average=not train, name="bn")(nn.Dense(8, name="fc")(x))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        if train:
            self.sow("losses", "penalty", nn.Dense(1, name="auxiliary")(x).sum())
        return x


class LowRank(nn.Module):
    """Puts its own params beside those of `base`."""

    base: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.base)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        left = self.param("A", ones, (x.shape[-1], 2))
        right = self.param("B", nn.initializers.zeros, (2, 5))
        return self.base(x) + x @ left @ right


class HasLowRank(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return LowRank(nn.Dense(5), name="adapted")(x)  # `Dense_0` is the scope they share


class Absorbs(nn.Module):
    """Takes the params of its own child into its scope."""

    def setup(self) -> None:
        self.child = nn.Dense(5)
        nn.share_scope(self, self.child)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.child(x) + x @ self.param("A", ones, (8, 5))


class HasAbsorbing(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return Absorbs(name="adapted")(x)


class Normalised(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kwargs = {"update_stats": True} if self.norm is nn.SpectralNorm else {}
        return self.norm(nn.Dense(5, name="fc"), name="outer")(x, **kwargs)


class VariableInParams(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x * self.variable("params", "w", jnp.ones, (1, 8)).value


class PutIntoParams(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.is_initializing():
            self.put_variable("params", "w", jnp.ones((1, 8)))
        return x * self.get_variable("params", "w")


class DictParam(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        tree = self.param("mlp", lambda _: {"w": jnp.ones((8, 8)), "b": jnp.ones((1, 8))})
        return x @ tree["w"] + tree["b"]


JittedDense = nn.jit(nn.Dense)  # one class, one cache


class Jitted(nn.Module):
    @nn.compact
    def __call__(self, x: Array, _: Any = None) -> tuple[Array, None]:
        return JittedDense(8, name="fc")(x), None


class NameScopes(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.left(x) + self.right(x)

    @nn.compact_name_scope
    def left(self, x: Array) -> Array:
        return nn.Dense(8, name="fc")(x)

    @nn.compact_name_scope
    def right(self, x: Array) -> Array:
        return nn.Dense(8, name="fc")(x) * self.param("g", ones, (1, 8))


class UsesGiven(nn.Module):
    given: nn.Module

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.LayerNorm(name="ln")(self.given(x))


class Shares(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        shared = nn.Dense(8, name="shared")
        return UsesGiven(shared, name="user")(shared(x))


class Transposed(nn.Module):
    """Stores the transpose of what the Dense layer sees."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def transpose(tree: Any) -> Any:
            return jax.tree.map(jnp.transpose, tree)

        dense = nn.map_variables(
            nn.Dense, "params", transpose, transpose, init=True, mutable=True
        )
        return dense(5, name="fc")(x)


class Unwrapped(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.inner(x)

    @nn.nowrap
    def inner(self, x: Array) -> Array:
        return nn.Dense(3, name="fc")(x) * self.param("s", ones, ())


class FunctionalRemat(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        def body(module: nn.Module, x: Array) -> Array:
            return nn.Dense(8, name="fc")(x) * module.param("g", ones, (1, 8))

        return nn.remat(body)(self, x)


DECLARED = [
    Case(
        "setup with a list and a dict",
        Setup,
        (SEQUENCE,),
        """
        final_gain       Setup      8      -
        head/bias        Dense      3      -
        head/kernel      Dense      8x3    -
        layers_0/bias    Dense      8      -
        layers_0/kernel  Dense      8x8    -
        layers_1/bias    Dense      8      -
        layers_1/kernel  Dense      8x8    -
        parts_a/bias     Dense      8      -
        parts_a/kernel   Dense      8x8    -
        parts_b/bias     LayerNorm  8      -
        parts_b/scale    LayerNorm  8      -
        pos_embedding    Setup      1x4x8  -
        unused           Setup      3      -
        """,
    ),
    Case("attribute without a call", ReadsAttribute, (ROW,), "store/table Table 8x8 -"),
    Case(
        "tied embedding", Tied, (TOKENS,), "ln_f/weight Gain 1x8 -\nwte/embedding Embed 7x8 -"
    ),
    Case("attend only", AttendOnly, (ROW,), "embed/embedding Embed 7x8 -"),
    Case(
        "another method than __call__",
        AutoEncoder,
        (ROW,),
        "encoder/bias Dense 4 -\nencoder/kernel Dense 8x4 -",
        {"method": "encode"},
    ),
    Case(
        "params that exist only in training",
        OnlyInTraining,
        (ROW,),
        """
        auxiliary/bias    Dense      1    -
        auxiliary/kernel  Dense      8x1  -
        bn/bias           BatchNorm  8    -
        bn/scale          BatchNorm  8    -
        fc/bias           Dense      8    -
        fc/kernel         Dense      8x8  -
        """,
        {"train": True},
    ),
    Case(
        "shared scope",
        HasLowRank,
        (ROW,),
        """
        Dense_0/A       LowRank  8x2  -
        Dense_0/B       LowRank  2x5  -
        Dense_0/bias    Dense    5    -
        Dense_0/kernel  Dense    8x5  -
        """,
    ),
    Case(
        "scope shared with a child",
        HasAbsorbing,
        (ROW,),
        """
        adapted/A       Absorbs  8x5  -
        adapted/bias    Dense    5    -
        adapted/kernel  Dense    8x5  -
        """,
    ),
    Case(
        "WeightNorm",
        lambda: Normalised(nn.WeightNorm),
        (ROW,),
        """
        fc/bias                  Dense       5    -
        fc/kernel                Dense       8x5  -
        outer/fc\\/kernel\\/scale  WeightNorm  5    -
        """,
    ),
    Case(
        "SpectralNorm",
        lambda: Normalised(nn.SpectralNorm),
        (ROW,),
        "fc/bias Dense 5 -\nfc/kernel Dense 8x5 -",
    ),
    Case("variable in params", VariableInParams, (ROW,), "w VariableInParams 1x8 -"),
    Case("put into params", PutIntoParams, (ROW,), "w PutIntoParams 1x8 -"),
    Case(
        "initialiser that returns a dict",
        DictParam,
        (ROW,),
        "mlp/b DictParam 1x8 -\nmlp/w DictParam 8x8 -",
    ),
    Case("nn.jit", Jitted, (ROW,), "fc/bias Dense 8 -\nfc/kernel Dense 8x8 -"),
    Case(
        "nn.jit in a scan",
        lambda: Scanned(Jitted),
        (ROW,),
        "stack/fc/bias Dense 8 0\nstack/fc/kernel Dense 8x8 0",
    ),
    Case(
        "compact name scopes",
        NameScopes,
        (ROW,),
        """
        left/fc/bias     Dense       8    -
        left/fc/kernel   Dense       8x8  -
        right/fc/bias    Dense       8    -
        right/fc/kernel  Dense       8x8  -
        g                NameScopes  1x8  -
        """,
    ),
    Case(
        "module passed to another",
        Shares,
        (ROW,),
        """
        shared/bias    Dense      8    -
        shared/kernel  Dense      8x8  -
        user/ln/bias   LayerNorm  8    -
        user/ln/scale  LayerNorm  8    -
        """,
    ),
    Case("mapped variables", Transposed, (ROW,), "fc/bias Dense 5 -\nfc/kernel Dense 8x5 -"),
    Case(
        "unwrapped method",
        Unwrapped,
        (ROW,),
        "fc/bias Dense 3 -\nfc/kernel Dense 8x3 -\ns Unwrapped - -",
    ),
    Case(
        "remat of a function",
        FunctionalRemat,
        (ROW,),
        "fc/bias Dense 8 -\nfc/kernel Dense 8x8 -\ng FunctionalRemat 1x8 -",
    ),
]


# flax's own compound modules.


def lstm(cell: str) -> str:
    lines = [f"cell/i{gate}/kernel {cell} 8x5 -" for gate in "fgio"]
    lines += [f"cell/h{gate}/kernel {cell} 5x5 -" for gate in "fgio"]
    lines += [f"cell/h{gate}/bias {cell} 5 -" for gate in "fgio"]
    return "\n".join(lines)


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.BatchNorm(use_running_average=False, name="bn")(
            nn.Conv(4, (3, 3), name="conv")(x)
        )
        x = nn.GroupNorm(2, name="gn")(nn.PReLU(name="prelu")(x))
        return nn.ConvTranspose(4, (3, 3), name="up")(x)


class Both(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        forward = nn.RNN(nn.GRUCell(5, name="gru"))
        backward = nn.RNN(nn.SimpleCell(5, name="simple"))
        return nn.Bidirectional(forward, backward)(x)


COMPOUND = [
    Case("LSTM", lambda: nn.RNN(nn.LSTMCell(5)), (SEQUENCE,), lstm("Dense")),
    Case(
        "optimized LSTM",
        lambda: nn.RNN(nn.OptimizedLSTMCell(5)),
        (SEQUENCE,),
        lstm("DenseParams"),
    ),
    Case(
        "bidirectional",
        Both,
        (SEQUENCE,),
        """
        gru/hn/bias      Dense  5    -
        gru/hn/kernel    Dense  5x5  -
        gru/hr/kernel    Dense  5x5  -
        gru/hz/kernel    Dense  5x5  -
        gru/in/bias      Dense  5    -
        gru/in/kernel    Dense  8x5  -
        gru/ir/bias      Dense  5    -
        gru/ir/kernel    Dense  8x5  -
        gru/iz/bias      Dense  5    -
        gru/iz/kernel    Dense  8x5  -
        simple/h/kernel  Dense  5x5  -
        simple/i/bias    Dense  5    -
        simple/i/kernel  Dense  8x5  -
        """,
    ),
    Case(
        "convolutional LSTM",
        lambda: nn.RNN(nn.ConvLSTMCell(4, (3, 3))),
        (VIDEO,),
        """
        cell/hh/bias    Conv  16        -
        cell/hh/kernel  Conv  3x3x4x16  -
        cell/ih/bias    Conv  16        -
        cell/ih/kernel  Conv  3x3x3x16  -
        """,
    ),
    Case(
        "attention with norms",
        lambda: nn.MultiHeadDotProductAttention(2, normalize_qk=True),
        (SEQUENCE,),
        """
        key/bias        DenseGeneral  2x4    -
        key/kernel      DenseGeneral  8x2x4  -
        key_ln/scale    LayerNorm     4      -
        out/bias        DenseGeneral  8      -
        out/kernel      DenseGeneral  2x4x8  -
        query/bias      DenseGeneral  2x4    -
        query/kernel    DenseGeneral  8x2x4  -
        query_ln/scale  LayerNorm     4      -
        value/bias      DenseGeneral  2x4    -
        value/kernel    DenseGeneral  8x2x4  -
        """,
    ),
    Case(
        "convolutions",
        Convolutions,
        (IMAGE,),
        """
        bn/bias               BatchNorm      4        -
        bn/scale              BatchNorm      4        -
        conv/bias             Conv           4        -
        conv/kernel           Conv           3x3x3x4  -
        gn/bias               GroupNorm      4        -
        gn/scale              GroupNorm      4        -
        prelu/negative_slope  PReLU          -        -
        up/bias               ConvTranspose  4        -
        up/kernel             ConvTranspose  3x3x4x4  -
        """,
    ),
]


# Lifted control flow, and boxes that get lost.


class Branches(nn.Module):
    """Both branches are run once to make their params, as flax asks for."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def left(module: nn.Module, x: Array) -> Array:
            return module.left(x)

        def right(module: nn.Module, x: Array) -> Array:
            return module.right(x)

        if self.is_mutable_collection("params"):
            left(self, x)
            right(self, x)
        return nn.cond(x.sum() > 0, left, right, self, x)

    def setup(self) -> None:
        self.left, self.right = nn.Dense(8), nn.Dense(8)


class Repeats(nn.Module):
    def setup(self) -> None:
        self.fc = nn.Dense(8)

    def __call__(self, x: Array) -> Array:
        def body(module: nn.Module, x: Array) -> Array:
            return module.fc(x)

        def again(module: nn.Module, x: Array) -> Array:
            return jnp.abs(x).sum() > 1.0

        if self.is_mutable_collection("params"):
            return body(self, x)
        return nn.while_loop(again, body, self, x)


class Switches(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        first, second = nn.Dense(8, name="first"), nn.Dense(8, name="second")
        branches = [lambda module, x: first(x), lambda module, x: second(x)]
        if self.is_mutable_collection("params"):
            for branch in branches:
                branch(self, x)
        return nn.switch(x.sum().astype(int), branches, self, x)


class OwnDerivative(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        def call(module: nn.Module, x: Array) -> Array:
            return module(x)

        def forward(module: nn.Module, x: Array) -> Any:
            return nn.vjp(call, module, x)

        def backward(vjp: Any, gradient: Array) -> Any:
            params, x = vjp(gradient)
            return jax.tree.map(jnp.sign, params), x

        signed = nn.custom_vjp(call, forward_fn=forward, backward_fn=backward)
        return signed(nn.Dense(5, name="fc"), x)


class RematOfSetup(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.remat(Table)(name="store").table.sum() * x


class Multiplies(Table):
    def __call__(self, x: Array) -> Array:
        return x @ self.table


class Namesake(nn.Module):
    """Has a `table` of its own beside a module whose `setup` flax first runs for a check."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.remat(Multiplies)(name="store")(x)
        return x * self.param("table", ones, (1, 8))


class SwitchesInScan(nn.Module):
    @nn.compact
    def __call__(self, x: Array, _: Any = None) -> tuple[Array, None]:
        return Switches(name="one")(x), None


class Decorated(nn.Module):
    @functools.partial(
        nn.scan, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )
    @nn.compact
    def __call__(self, x: Array, _: Any = None) -> tuple[Array, None]:
        return nn.Dense(8, name="fc")(x) * self.param("g", ones, (1, 8)), None


class Ensemble(nn.Module):
    """Three coders; `encode` is the only method that is mapped."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        coders = nn.vmap(
            AutoEncoder,
            in_axes=None,
            axis_size=3,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            methods=["encode"],
        )
        return coders(name="coders").encode(x)


class NormInScan(nn.Module):
    @nn.compact
    def __call__(self, x: Array, _: Any = None) -> tuple[Array, None]:
        return nn.WeightNorm(nn.Dense(8, name="fc"), name="outer")(x), None


CONTROL = [
    Case(
        "nn.cond",
        Branches,
        (ROW,),
        """
        left/bias     Dense  8    -
        left/kernel   Dense  8x8  -
        right/bias    Dense  8    -
        right/kernel  Dense  8x8  -
        """,
    ),
    Case(
        "nn.switch",
        Switches,
        (ROW,),
        """
        first/bias     Dense  8    -
        first/kernel   Dense  8x8  -
        second/bias    Dense  8    -
        second/kernel  Dense  8x8  -
        """,
    ),
    Case(
        "nn.switch in a scan",
        lambda: Scanned(SwitchesInScan),
        (ROW,),
        """
        stack/one/first/bias     Dense  8    0
        stack/one/first/kernel   Dense  8x8  0
        stack/one/second/bias    Dense  8    0
        stack/one/second/kernel  Dense  8x8  0
        """,
    ),
    Case(
        "scan as a decorator",
        Decorated,
        (ROW, None),
        "fc/bias Dense 8 0\nfc/kernel Dense 8x8 0\ng Decorated 1x8 0",
    ),
    Case(
        "vmap of another method",
        Ensemble,
        (ROW,),
        "coders/encoder/bias Dense 4 0\ncoders/encoder/kernel Dense 8x4 0",
    ),
    Case(
        "a name that a rehearsed setup has too",
        Namesake,
        (ROW,),
        "store/table Multiplies 8x8 -\ntable Namesake 1x8 -",
    ),
    Case("nn.custom_vjp", OwnDerivative, (ROW,), "fc/bias Dense 5 -\nfc/kernel Dense 8x5 -"),
    Case("remat of a module with setup", RematOfSetup, (ROW,), "store/table Table 8x8 -"),
    Case("nn.while_loop", Repeats, (ROW,), "fc/bias Dense 8 -\nfc/kernel Dense 8x8 -"),
    Case(
        "WeightNorm in a scan",
        lambda: Scanned(NormInScan),
        (ROW,),
        """
        stack/fc/bias                  Dense       8    0
        stack/fc/kernel                Dense       8x8  0
        stack/outer/fc\\/kernel\\/scale  WeightNorm  8    0
        """,
    ),
    Case(
        "remat_scan",
        lambda: nn.remat_scan(nn.Dense, lengths=(2, 3))(8),
        (ROW,),
        "bias Dense 8 0,1\nkernel Dense 8x8 0,1",
    ),
]

CASES = [*LIFTED, *DECLARED, *COMPOUND, *CONTROL]


def facts_of(case: Case) -> Facts:
    """Returns the facts of a case, made once for all tests."""
    return _facts_of(case.name)


@functools.cache
def facts_of_example(name: str) -> Facts:
    """Returns the facts of a model of `tests.models`, in evaluation mode."""
    return param_facts(*example(name))


@functools.cache
def _facts_of(name: str) -> Facts:
    case = next(case for case in CASES if case.name == name)
    return param_facts(case.make(), *case.inputs, **case.kwargs)


# Kinds of models whose whole tables are written out, in `tests/golden/params`.


class RMS(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        return x * self.param("weight", ones, (1, 1, x.shape[-1]))


class Expert(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        x = x @ self.param("w1", lecun, (width, 16))
        x = nn.relu(x + self.param("b1", zeros, (16,))[None, None])
        x = x @ self.param("w2", lecun, (16, width))
        return x + self.param("b2", zeros, (width,))[None, None]


class StackedExperts(nn.Module):
    """Four experts without `nn.vmap`: their axis belongs to the params."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        w1 = self.param("w1", lecun, (4, 8, 16))
        x = jnp.einsum("btd,edh->beth", x, w1)
        x = nn.relu(x + self.param("b1", zeros, (4, 16))[None, :, None])
        x = jnp.einsum("beth,ehd->betd", x, self.param("w2", lecun, (4, 16, 8)))
        x = x + self.param("b2", zeros, (4, 8))[None, :, None]
        return jnp.einsum("betd->btde", x)


class MoEBlock(nn.Module):
    """A router and four experts; their output is scaled per channel."""

    vmapped: bool = True

    @nn.compact
    def __call__(self, x: Array, _: Any = None) -> tuple[Array, None]:
        vmapped = nn.vmap(
            Expert,
            in_axes=None,
            out_axes=-1,
            axis_size=4,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        experts = vmapped if self.vmapped else StackedExperts
        y = RMS(name="norm")(x)
        gate = nn.softmax(nn.Dense(4, use_bias=False, name="router")(y))
        y = jnp.einsum("bte,btde->btd", gate, experts(name="experts")(y))
        return x + y * self.param("layer_scale", ones, (8,))[None, None], None


class MoE(nn.Module):
    """Blocks of experts, three in a scan and one behind it; the embedding is tied."""

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        embed = nn.Embed(7, 8, name="embed")
        x = Scanned(MoEBlock, name="deep")(embed(tokens))[0]
        x = MoEBlock(vmapped=False, name="last")(x)[0]
        return embed.attend(RMS(name="final")(x))


class NormedWeights(nn.Module):
    """Norms of weights: each wraps a layer that is its neighbour in the params."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = functools.partial(nn.Conv, 4, (3, 3))
        x = nn.WeightNorm(conv(name="conv1"), name="weight1")(x)
        x = nn.SpectralNorm(conv(name="conv2"), name="spectral1")(x, update_stats=True)
        x = x.mean(axis=(1, 2))
        x = nn.WeightNorm(nn.Dense(6, name="fc1"), name="weight2")(x)
        return nn.SpectralNorm(nn.Dense(5, name="fc2"), name="spectral2")(x, update_stats=True)


class Rescales(nn.Module):
    """Multiplies and adds a parameter per channel, under the names that it is given."""

    scale: str
    bias: str = ""
    size: int = 8

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x * self.param(self.scale, ones, (1, 1, self.size))
        return x + self.param(self.bias, zeros, (self.size,))[None, None] if self.bias else x


class LN(Rescales):
    pass


class LayerNormalization(Rescales):
    pass


class GRN(Rescales):
    pass


class ScaleNorm(Rescales):
    pass


class LayerNorm2d(Rescales):
    pass


class LayerScale(Rescales):
    pass


class NormalHead(Rescales):
    """Named after the distribution."""


class PreNormBlock(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.LayerNorm(name="ln", use_bias=False)(x)
        y = nn.Dense(8, name="fc")(y) * self.param("gamma", ones, (1, 1, 8))
        return x + y + self.param("shift", zeros, (1, 1, 8))


class Rescalings(nn.Module):
    """Vectors per channel: of norms that are written by hand, and of others."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = RMS(name="first")(x)
        x = LN("g", "b", name="second")(x)
        x = LayerNormalization("gamma", "beta", name="third")(x)
        x = GRN("gamma", "beta", name="fourth")(x)
        x = ScaleNorm("g", size=1, name="fifth")(x)
        x = LayerNorm2d("weight", "bias", name="sixth")(x)
        x = Rescales("scale", "bias", name="norm_in")(x)
        x = Rescales("w", "offset", name="ln_out")(x)
        x = LayerScale("gamma", name="ls1")(x)
        x = LayerScale("weight", name="ls2")(x)
        x = NormalHead("spread", "b1", name="head")(x)
        x = Rescales("alpha", "b_out", name="affine")(x)
        x = Rescales("temperature", size=1, name="cool")(x)
        return PreNormBlock(name="block")(x)


class Adapter(nn.Module):
    """Puts its own params beside those of `base`."""

    base: nn.Module
    rank: int

    def setup(self) -> None:
        nn.share_scope(self, self.base)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y, rank = self.base(x), self.rank
        x = x @ self.param("lora_a", lecun, (x.shape[-1], rank))
        return y + x @ self.param("lora_b", zeros, (rank, y.shape[-1]))


class AdaptedBlock(nn.Module):
    @nn.compact
    def __call__(self, x: Array, _: Any = None) -> tuple[Array, None]:
        return x + Adapter(nn.Dense(8, name="proj"), 2, name="unused_name")(x), None


class Adapted(nn.Module):
    """Low-rank adapters in a scan, and one of rank 1 behind it."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Scanned(AdaptedBlock, name="deep")(x)[0]
        return Adapter(nn.Dense(3, use_bias=False, name="head"), 1)(x)


class Coder(nn.Module):
    """Has no `__call__`: what training calls are `encode` and `decode`."""

    def setup(self) -> None:
        self.decoder = nn.Dense(8)
        self.embed = nn.Embed(7, 8)
        self.encoder = nn.Dense(4)
        self.wpe = self.param("wpe", zeros, (1, 4, 8))
        self.mask_embedding = self.param("mask_embedding", zeros, (8,))

    def encode(self, tokens: Array) -> Array:
        masked = jnp.where((tokens == 0)[..., None], self.mask_embedding, self.embed(tokens))
        return self.encoder(masked + self.wpe)

    def decode(self, z: Array) -> Array:
        return self.embed.attend(self.decoder(z))


def coder_facts() -> Facts:
    """Returns the facts of `Coder` for a loss that calls both of its methods."""
    model, key = Coder(), jax.random.key(0)

    def initialise(extra: dict[str, Array]) -> Any:
        rngs = {"params": key, **extra}
        z, first = model.init_with_output(rngs, TOKENS, method="encode")
        second = model.init(rngs, z, method="decode")
        return {"params": {**first["params"], **second["params"]}}

    def loss(params: Any, tokens: Array) -> Array:
        z = model.apply({"params": params}, tokens, method="encode")
        return model.apply({"params": params}, z, method="decode").sum()

    return facts_from(initialise, loss, TOKENS)


class TwoModes(nn.Module):
    """Has an auxiliary head in training, and a calibrated temperature in evaluation."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.BatchNorm(use_running_average=not train, name="bn")(nn.Dense(8, name="fc")(x))
        if train:
            return x + nn.Dense(1, name="auxiliary")(x)
        return x / self.param("temperature", ones, (1, 1))


def two_modes_facts() -> Facts:
    """Returns the facts of `TwoModes` with the params of both modes, used as in training."""
    model, key = TwoModes(), jax.random.key(0)

    def initialise(extra: dict[str, Array]) -> Any:
        rngs = {"params": key, **extra}
        training, evaluation = (model.init(rngs, ROW, train=flag) for flag in (True, False))
        return {"params": {**evaluation["params"], **training["params"]}}

    def use(params: Any, x: Array) -> Any:
        return model.apply({"params": params}, x, train=True, mutable="batch_stats")

    return facts_from(initialise, use, ROW)


class Control(nn.Module):
    """A condition, a switch and a loop, one after the other."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Branches(name="either")(x)
        x = Switches(name="one")(x)
        return Repeats(name="often")(x)


class Body(nn.Module):
    """Its params are a dict that one initialiser returns."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        tree = self.param(
            "layer",
            lambda _: {
                "ln": {"scale": jnp.ones((8,)), "bias": jnp.zeros((8,))},
                "mlp": {"w": jnp.ones((8, 8)), "b": jnp.zeros((1, 8))},
            },
        )
        x = x * tree["ln"]["scale"][None] + tree["ln"]["bias"][None]
        return x @ tree["mlp"]["w"] + tree["mlp"]["b"]


class Mapped(nn.Module):
    """`remat_scan` over two axes, and a head whose kernel is stored transposed."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.remat_scan(Body, lengths=(2, 3))(name="deep")(x)
        return Transposed(name="head")(x)


KINDS: dict[str, Callable[[], Facts]] = {
    "MoE": lambda: param_facts(MoE(), TOKENS),
    "NormedWeights": lambda: param_facts(NormedWeights(), IMAGE),
    "Rescalings": lambda: param_facts(Rescalings(), SEQUENCE),
    "Adapted": lambda: param_facts(Adapted(), SEQUENCE),
    "Coder": coder_facts,
    "TwoModes": two_modes_facts,
    "Control": lambda: param_facts(Control(), ROW),
    "Mapped": lambda: param_facts(Mapped(), ROW),
}
"""Makers of the tables that `test_golden` compares with what is written."""
