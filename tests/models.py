"""Six small Linen models that the whole test suite shares.

Each is the ordinary form of its kind, in tiny sizes. Those with BatchNorm or Dropout take
`train: bool`; the shape of the input is in the docstring, and `example(name)` returns a model
with an input for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["CNN", "GPT", "LSTM", "MLP", "ResNet", "ViT", "example"]

Array = jax.Array


class MLP(nn.Module):
    """`[batch, ...] -> [batch, features[-1]]`; neither BatchNorm nor Dropout."""

    features: Sequence[int] = (16, 16, 4)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.features[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.features[-1])(x)


class CNN(nn.Module):
    """`[batch, height, width, channels] -> [batch, classes]`; BatchNorm and Dropout."""

    features: Sequence[int] = (4, 8)
    classes: int = 3
    dropout: float = 0.1

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        for width in self.features:
            x = nn.Conv(width, (3, 3))(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.avg_pool(nn.relu(x), (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the last BatchNorm starts at 0; 1x1 projection if shapes differ."""

    features: int
    stride: int
    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def norm(
            name: str, scale_init: nn.initializers.Initializer = nn.initializers.ones
        ) -> nn.BatchNorm:
            return nn.BatchNorm(
                use_running_average=not self.train,
                momentum=0.9,
                scale_init=scale_init,
                name=name,
            )

        stride = (self.stride, self.stride)
        y = nn.Conv(self.features, (3, 3), stride, use_bias=False, name="conv1")(x)
        y = nn.relu(norm("bn1")(y))
        y = nn.Conv(self.features, (3, 3), use_bias=False, name="conv2")(y)
        y = norm("bn2", nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = nn.Conv(self.features, (1, 1), stride, use_bias=False, name="proj")(x)
            x = norm("proj_bn")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """`[batch, height, width, channels] -> [batch, classes]`; BatchNorm."""

    features: Sequence[int] = (4, 8)
    classes: int = 3

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = nn.Conv(self.features[0], (3, 3), use_bias=False, name="stem")(x)
        x = nn.relu(
            nn.BatchNorm(use_running_average=not train, momentum=0.9, name="stem_bn")(x)
        )
        for index, width in enumerate(self.features):
            x = ResidualBlock(width, stride=1 + (index > 0), train=train, name=f"block{index}")(
                x
            )
        return nn.Dense(self.classes, name="head")(x.mean(axis=(1, 2)))


class TransformerBlock(nn.Module):
    """Attention and MLP, each after a LayerNorm and in a residual; also the body of a scan."""

    heads: int
    dropout: float
    train: bool

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> tuple[Array, None]:
        dropout = nn.Dropout(self.dropout, deterministic=not self.train)
        y = nn.LayerNorm(name="ln_1")(x)
        y = nn.MultiHeadDotProductAttention(self.heads, name="attn")(y, mask=mask)
        x = x + dropout(y)
        y = nn.LayerNorm(name="ln_2")(x)
        y = nn.Dense(2 * x.shape[-1], name="up")(y)
        y = nn.Dense(x.shape[-1], name="down")(nn.gelu(y))
        return x + dropout(y), None


class ViT(nn.Module):
    """`[batch, height, width, channels] -> [batch, classes]`; cls token, Dropout."""

    patch: int = 4
    width: int = 8
    layers: int = 2
    heads: int = 2
    classes: int = 3
    dropout: float = 0.1

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, size, padding="VALID", name="patches")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param(
            "pos_embedding", nn.initializers.normal(0.02), (1, x.shape[1], self.width)
        )
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for index in range(self.layers):
            x, _ = TransformerBlock(self.heads, self.dropout, train, name=f"block{index}")(x)
        x = nn.LayerNorm(name="ln")(x)
        return nn.Dense(self.classes, name="head")(x[:, 0])


class GPT(nn.Module):
    """Tokens `[batch, time] -> [batch, time, vocabulary]`; scanned, remat, tied, Dropout."""

    vocabulary: int = 11
    context: int = 8
    width: int = 8
    layers: int = 3
    heads: int = 2
    dropout: float = 0.1

    @nn.compact
    def __call__(self, tokens: Array, train: bool = False) -> Array:
        wte = nn.Embed(self.vocabulary, self.width, name="wte")
        wpe = nn.Embed(self.context, self.width, name="wpe")
        x = wte(tokens) + wpe(jnp.arange(tokens.shape[1])[None])
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        stack = nn.scan(
            nn.remat(TransformerBlock, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.layers,
        )
        x, _ = stack(self.heads, self.dropout, train, name="blocks")(
            x, nn.make_causal_mask(tokens)
        )
        x = nn.LayerNorm(name="ln_f")(x)
        return wte.attend(x)


class LSTM(nn.Module):
    """Tokens `[batch, time] -> [batch, classes]`, from the last hidden state; Dropout."""

    vocabulary: int = 11
    width: int = 4
    hidden: int = 6
    classes: int = 3
    dropout: float = 0.1

    @nn.compact
    def __call__(self, tokens: Array, train: bool = False) -> Array:
        x = nn.Embed(self.vocabulary, self.width, name="embed")(tokens)
        x = nn.RNN(nn.OptimizedLSTMCell(self.hidden, name="cell"), name="rnn")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x[:, -1])
        return nn.Dense(self.classes, name="head")(x)


def example(name: str, batch: int = 2) -> tuple[nn.Module, Array]:
    """Returns the model of that name with its default sizes, and an input of `batch` rows."""
    image = jnp.ones((batch, 8, 8, 3))
    tokens = jnp.ones((batch, 6), jnp.int32)
    return {
        "MLP": (MLP(), jnp.ones((batch, 8))),
        "CNN": (CNN(), image),
        "ResNet": (ResNet(), image),
        "ViT": (ViT(), image),
        "GPT": (GPT(), tokens),
        "LSTM": (LSTM(), tokens),
    }[name]
