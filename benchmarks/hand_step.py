"""The training step written by hand that the Trainer's compiled step is measured against.

Flax and optax, nothing of ours: global-norm clipping, warm-up and cosine, AdamW with decay on
kernels only, microbatches summed in float32 by `lax.scan`, and loss, accuracy and gradient norm
summed on the device. `HandStep` names the choices in it; README.md holds what they made of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

CLASSES, VOCABULARY = 10, 64
PEAK, WARMUP, TOTAL, DECAY, CLIP = 3e-3, 4, 400, 1e-2, 0.1
NORMS = 5
"""Numbers that are formed at log points only."""


class CNN(nn.Module):
    """`[rows, 16, 16, 3] -> [rows, 10]`; three convolutions with BatchNorm, and dropout."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            x = nn.Conv(width, (3, 3), (stride, stride), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x.mean(axis=(1, 2)))
        return nn.Dense(CLASSES)(x)


class Block(nn.Module):
    """Attention and an MLP, each after a LayerNorm, with dropout and in a residual."""

    train: bool

    @nn.compact
    def __call__(self, x: Any, mask: Any) -> tuple[Any, None]:
        drop = nn.Dropout(0.1, deterministic=not self.train)
        x = x + drop(nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x), mask=mask))
        y = nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x))))
        return x + drop(y), None


class Transformer(nn.Module):
    """Tokens `[rows, 32] -> [rows, 32, 64]`; four blocks of width 64 in scan with remat."""

    @nn.compact
    def __call__(self, tokens: Any, train: bool = False) -> Any:
        x = (
            nn.Embed(VOCABULARY, 64)(tokens)
            + nn.Embed(32, 64)(jnp.arange(tokens.shape[1]))[None]
        )
        stack = nn.scan(
            nn.remat(Block, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=4,
        )
        x, _ = stack(train, name="blocks")(x, nn.make_causal_mask(tokens))
        return nn.Dense(VOCABULARY)(nn.LayerNorm()(x))


class Wide(nn.Module):
    """`[rows, 4096] -> [rows, 10]`: three layers of width 4096, 50 million parameters."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        for _ in range(3):
            x = nn.gelu(nn.Dense(4096)(x))
        return nn.Dense(CLASSES)(x)


def case(name: str, rows: int = 32) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """Returns a model and one batch for it: `x` and `label`."""
    random = np.random.default_rng(0)
    if name == "cnn":
        x = random.standard_normal((rows, 16, 16, 3), dtype=np.float32)
        return CNN(), {"x": x, "label": random.integers(0, CLASSES, rows, dtype=np.int32)}
    if name == "wide":
        x = random.standard_normal((rows, 4096), dtype=np.float32)
        return Wide(), {"x": x, "label": random.integers(0, CLASSES, rows, dtype=np.int32)}
    tokens = random.integers(0, VOCABULARY, (rows, 33), dtype=np.int32)
    return Transformer(), {"x": tokens[:, :-1], "label": tokens[:, 1:]}


def own_key(rng: jax.Array, step: jax.Array, part: jax.Array | None) -> jax.Array:
    """Returns the key for dropout as one would by hand; `part` is None for a batch at once."""
    key = jax.random.fold_in(rng, step)
    return key if part is None else jax.random.fold_in(key, part)


class State(NamedTuple):
    """What changes from step to step; `sums` are those of loss, accuracy and norms.

    `halted` is 1 once a step was bad; every later one is rejected.
    """

    params: Any
    stats: Any
    opt_state: Any
    step: jax.Array
    skipped: jax.Array
    halted: jax.Array
    sums: jax.Array


class _Gradient(NamedTuple):
    grads: Any
    loss: jax.Array
    accuracy: jax.Array
    stats: Any


@dataclass(frozen=True)
class HandStep:
    """The step; the defaults are the least work.

    Args:
        model: the model.
        count: number of microbatches.
        unroll: whether the loop over microbatches is written out.
        guard: "none"; "skip" leaves everything as it was, from the first step on in which loss,
            gradient or batch statistics are not finite; "norms" also forms the norms of update,
            parameters and clipped gradient, learning rate and weight decay every `log_every`
            steps. Both by one `lax.switch`.
        clip: "chain" is `optax.clip_by_global_norm` in a chain, "factor" one factor for all,
            formed by hand from the norm that is logged.
        key: from rng, step and number of the microbatch to the key for dropout.
        log_every: steps between two log points.
    """

    model: nn.Module
    count: int = 1
    unroll: bool = False
    guard: Literal["none", "skip", "norms"] = "none"
    clip: Literal["chain", "factor"] = "factor"
    key: Callable[..., jax.Array] = own_key
    log_every: int = 50

    @functools.cached_property
    def rate(self) -> optax.Schedule:
        """The learning rate."""
        return optax.warmup_cosine_decay_schedule(0.0, PEAK, WARMUP, TOTAL)

    @functools.cached_property
    def tx(self) -> optax.GradientTransformation:
        """The optimizer."""
        adamw = optax.adamw(self.rate, weight_decay=DECAY, mask=kernels_only)
        if self.clip == "factor":
            return adamw
        return optax.chain(optax.clip_by_global_norm(CLIP), adamw)

    def init(self, variables: dict[str, Any]) -> State:
        """Returns the state before the first step, from the model's variables."""
        stats = dict(variables)
        params = stats.pop("params")
        zero = jnp.zeros((), jnp.int32)
        sums = jnp.zeros(3 + (NORMS if self.guard == "norms" else 0))
        counts = zero, jnp.copy(zero), jnp.copy(zero)
        return State(params, stats, self.tx.init(params), *counts, sums)

    def __call__(self, state: State, batch: Any, rng: jax.Array) -> State:
        """Makes one step; to be compiled with the state donated."""
        found = self._gradient(state, batch, rng)
        norm = optax.global_norm(found.grads)
        if self.guard == "none":
            state, _ = self._update(False, (state, found, norm))
            return self._add(state, [found.loss, found.accuracy, norm], self._no_norms())
        finite = (state.halted == 0) & jnp.isfinite(found.loss) & jnp.isfinite(norm)
        for leaf in jax.tree.leaves(found.stats):
            finite &= jnp.all(jnp.isfinite(leaf))
        branches = [self._reject, functools.partial(self._update, False)]
        index = finite.astype(jnp.int32)
        if self.guard == "norms":
            branches.append(functools.partial(self._update, True))
            index = index * (1 + ((state.step + 1) % self.log_every == 0))
        state, norms = jax.lax.switch(index, branches, (state, found, norm))
        new = [jnp.where(finite, value, 0) for value in (found.loss, found.accuracy, norm)]
        return self._add(state, new, norms)

    def _add(self, state: State, new: list[jax.Array], norms: jax.Array) -> State:
        return state._replace(sums=state.sums + jnp.concatenate([jnp.stack(new), norms]))

    def _reject(self, operands: Any) -> tuple[State, Any]:
        state = operands[0]
        halted = jnp.ones((), jnp.int32)
        return state._replace(skipped=state.skipped + 1, halted=halted), self._no_norms()

    def _no_norms(self) -> jax.Array:
        return jnp.zeros(NORMS if self.guard == "norms" else 0)

    def _update(self, measured: bool, operands: Any) -> tuple[State, Any]:
        state, found, norm = operands
        grads = found.grads
        if self.clip == "factor":
            factor = jnp.where(norm < CLIP, 1.0, CLIP / norm)
            grads = jax.tree.map(lambda grad: grad * factor, grads)
        updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
        new = state._replace(
            params=optax.apply_updates(state.params, updates),
            stats=found.stats,
            opt_state=opt_state,
            step=state.step + 1,
        )
        if not measured:
            return new, self._no_norms()
        norms = [optax.global_norm(tree) for tree in (updates, state.params, grads)]
        return new, jnp.stack([*norms, self.rate(state.step), jnp.full((), DECAY)])

    def _gradient(self, state: State, batch: Any, rng: jax.Array) -> _Gradient:
        differentiate = jax.value_and_grad(self._loss, has_aux=True)
        if self.count == 1:
            key = self.key(rng, state.step, None)
            (loss, (accuracy, stats)), grads = differentiate(
                state.params, state.stats, batch, key
            )
            return _Gradient(grads, loss, accuracy, stats)

        def add(sums: _Gradient, entry: Any) -> tuple[_Gradient, None]:
            part, rows = entry
            key = self.key(rng, state.step, part)
            (loss, (accuracy, stats)), grads = differentiate(
                state.params, sums.stats, rows, key
            )
            return _Gradient(
                jax.tree.map(jnp.add, sums.grads, grads),
                sums.loss + loss,
                sums.accuracy + accuracy,
                stats,
            ), None

        parts = jax.tree.map(lambda leaf: leaf.reshape(self.count, -1, *leaf.shape[1:]), batch)
        zero = jnp.zeros(())
        start = _Gradient(jax.tree.map(jnp.zeros_like, state.params), zero, zero, state.stats)
        unroll = self.count if self.unroll else 1
        sums, _ = jax.lax.scan(add, start, (jnp.arange(self.count), parts), unroll=unroll)
        return sums

    def _loss(self, params: Any, stats: Any, batch: Any, key: jax.Array) -> Any:
        logits, stats = self.model.apply(
            {"params": params, **stats},
            batch["x"],
            train=True,
            rngs={"dropout": key},
            mutable=list(stats),
        )
        labels = batch["label"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
        # Microbatches are of equal size, so that means of means are means.
        return losses.mean() / self.count, (accuracy / self.count, stats)


def kernels_only(params: Any) -> Any:
    """Returns the weight-decay mask: kernels yes, biases, norms and embeddings no."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
