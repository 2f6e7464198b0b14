"""A language model of the kind that is trained on many chips, and what it takes by hand count.

Blocks with RMSNorm, rotary positions and gated linear units (Touvron et al. 2023, "LLaMA",
arXiv:2302.13971), in a scan over layers with remat. Its default size is theirs of 7B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxtrain.losses import softmax_cross_entropy_with_integer_labels

REMAT = ("full", "dots", "none")


@dataclass(frozen=True)
class Size:
    """The size of the model, and how it is computed.

    Attributes:
        layers: number of blocks.
        width: features between blocks.
        heads: attention heads.
        hidden: features within the gated linear unit.
        vocabulary: number of tokens.
        time: length of a sequence.
        remat: what is computed again on the way back: `"full"`: all of a block; `"dots"`: all
            but its products with parameters; `"none"`: nothing.
        chunk: queries that attend at a time; 0 for all.
    """

    layers: int = 32
    width: int = 4096
    heads: int = 32
    hidden: int = 11008
    vocabulary: int = 32000
    time: int = 2048
    remat: str = "full"
    chunk: int = 0

    @property
    def block_kernels(self) -> int:
        """Entries of the kernels of a block: query, key, value, out; gate, up, down."""
        return 4 * self.width**2 + 3 * self.width * self.hidden

    @property
    def parameters(self) -> int:
        """Entries of all parameters: embedding, blocks with two norms, norm, head."""
        block = self.block_kernels + 2 * self.width
        return 2 * self.vocabulary * self.width + self.layers * block + self.width

    def model_flops(self, rows: int) -> int:
        """FLOPs of a step: 6 for each token and entry of a kernel, and those of attention.

        Attention multiplies queries with keys, and weights with values: 2 * 2 * time * width
        for a token on the way forward, and twice as many back. Products with masked keys are
        counted, since they are made. The embedding is looked up, which takes none.
        """
        kernels = self.layers * self.block_kernels + self.width * self.vocabulary
        attention = 4 * self.layers * self.time * self.width
        return rows * self.time * (6 * kernels + 3 * attention)

    def step_flops(self, rows: int) -> int:
        """FLOPs of a step with what is computed again.

        With `"full"` that is the way forward through all blocks, but for the last product of
        each, which nothing on the way back asks for. With `"dots"` it is the products of
        attention. Chunks of queries multiply with their keys once more.
        """
        block = 2 * (self.block_kernels - self.hidden * self.width)
        attention = 4 * self.time * self.width
        again = {"full": block + attention, "dots": attention, "none": 0}[self.remat]
        if self.chunk:
            again += attention // 2
        return self.model_flops(rows) + rows * self.time * self.layers * again

    def temporaries(self, rows: int, split: int) -> dict[str, int]:
        """Bytes that a chip can't do without in a step of FSDP, by what they are for.

        Args:
            rows: of a microbatch on one chip.
            split: the number of chips that parameters are split over.
        """
        tokens = rows * self.time
        # Of a block, in units of `[tokens, width]`: what goes in; and what comes out of query,
        # key, value, out, gate and up.
        kept = {"full": 1.0, "dots": 5 + 2 * self.hidden / self.width}
        found = {
            "kernels of a block, gathered, bfloat16": 2 * self.block_kernels,
            "embedding and head, gathered, bfloat16": 4 * self.vocabulary * self.width,
            "its share of the gradient, float32": 4 * self.parameters // split,
            "attention scores of a block, float32": 4
            * (rows * self.heads * (self.chunk or self.time) * self.time),
            "logits and their gradient, float32": 8 * tokens * self.vocabulary,
        }
        if self.remat in kept:
            size = 2 * self.layers * tokens * self.width * kept[self.remat]
            found["kept for the way back, bfloat16"] = int(size)
        return found


class Attention(nn.Module):
    size: Size

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, shape = self.size, (self.size.heads, self.size.width // self.size.heads)

        def project(name: str) -> jax.Array:
            return nn.DenseGeneral(shape, use_bias=False, name=name)(x)

        query, key, value = rotated(project("query")), rotated(project("key")), project("value")
        chunk = size.chunk or size.time
        starts = jnp.arange(0, size.time, chunk)
        if len(starts) == 1:
            mixed = attend(query, key, value, starts[0])
        else:
            mixed = in_chunks(query, key, value, starts)
        return nn.DenseGeneral(size.width, (-2, -1), use_bias=False, name="out")(mixed)


def rotated(x: jax.Array) -> jax.Array:
    """Rotates pairs of features of `[rows, time, heads, features]`, later ones by more."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-jnp.arange(half) / half)
    angles = jnp.outer(jnp.arange(x.shape[1]), rates)[None, :, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    one, two = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([one * cos - two * sin, one * sin + two * cos], -1).astype(x.dtype)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, start: Any) -> jax.Array:
    """Causal attention of queries from a time on; all `[rows, time, heads, features]`."""
    scores = jnp.einsum("rqhf,rkhf->rhqk", query, key, preferred_element_type=jnp.float32)
    before = start + jnp.arange(query.shape[1])[:, None] >= jnp.arange(key.shape[1])[None]
    scores = jnp.where(before[None, None], scores / math.sqrt(query.shape[-1]), -1e30)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    return jnp.einsum("rhqk,rkhf->rqhf", weights, value)


def in_chunks(query: jax.Array, key: jax.Array, value: jax.Array, starts: jax.Array) -> Any:
    """The same, with the scores of some queries at a time, which are computed again."""
    rows, _, heads, features = query.shape
    parts = query.reshape(rows, len(starts), -1, heads, features).swapaxes(0, 1)
    one = jax.checkpoint(lambda part: attend(part[0], key, value, part[1]))
    return jax.lax.map(one, (parts, starts)).swapaxes(0, 1).reshape(query.shape)


class Block(nn.Module):
    size: Size

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, use_bias=False, name=name)

        x = x + Attention(self.size, name="attention")(nn.RMSNorm(name="norm_1")(x))
        y = nn.RMSNorm(name="norm_2")(x)
        y = nn.silu(dense(self.size.hidden, "gate")(y)) * dense(self.size.hidden, "up")(y)
        return x + dense(self.size.width, "down")(y), None


class LanguageModel(nn.Module):
    """Tokens `[rows, time] -> [rows, time, vocabulary]`; its dtypes are left to the policy."""

    size: Size

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        size, policies = self.size, jax.checkpoint_policies
        block: Any = Block
        if size.remat != "none":
            kept = {"full": None, "dots": policies.dots_with_no_batch_dims_saveable}
            block = nn.remat(Block, prevent_cse=False, policy=kept[size.remat])
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=size.layers,
        )
        x = nn.Embed(size.vocabulary, size.width, name="embedding")(tokens)
        x, _ = stack(size, name="blocks")(x, None)
        head = nn.Dense(size.vocabulary, use_bias=False, name="head")
        return head(nn.RMSNorm(name="norm")(x))


def loss(model: Any, batch: Mapping[str, Any]) -> jax.Array:
    """The loss of each row: the mean over time."""
    logits = model(batch["tokens"])
    return softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean(axis=-1)


def token_shapes(rows: int, time: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch: tokens, and those that follow them."""
    tokens = jax.ShapeDtypeStruct((rows, time), jnp.int32)
    return {"tokens": tokens, "targets": tokens}
