"""Encoders to be frozen, in every form in which a train flag reaches Dropout and BatchNorm;
and what it takes to train a model around one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxtrain.train.frozen_modules import NOTHING_FROZEN, FrozenModules
from flaxtrain.train.row_mask import row_mask

__all__ = [
    "ENCODERS",
    "AskingForStreams",
    "Encoder",
    "Form",
    "Model",
    "X",
    "start",
    "train",
]


X = jax.random.normal(jax.random.key(0), (6, 3)) + 1.0


def block(x: Any, train: bool, batch: bool | None = None) -> Any:
    """Dense, BatchNorm, Dropout; `batch` is the train flag of BatchNorm, if it has its own."""
    x = nn.Dense(4)(x)
    batch = train if batch is None else batch
    x = nn.BatchNorm(use_running_average=not batch, momentum=0.5)(x)
    return nn.Dropout(0.5, deterministic=not train)(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        return block(x, train)


class KeywordOnly(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, is_training: bool) -> Any:
        return Block()(Block()(x, is_training), train=is_training)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x: Any, deterministic: bool = False) -> Any:
        x = nn.BatchNorm(momentum=0.5)(x, use_running_average=deterministic)
        return nn.Dropout(0.5)(x, deterministic=deterministic)


class AnyArguments(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class Attribute(nn.Module):
    """The flag is read in `setup`."""

    train: bool

    def setup(self) -> None:
        self.dense = nn.Dense(4)
        self.norm = nn.BatchNorm(use_running_average=not self.train, momentum=0.5)
        self.drop = nn.Dropout(0.5, deterministic=not self.train)

    def __call__(self, x: Any) -> Any:
        return self.drop(self.norm(self.dense(x))) * (2.0 if self.train else 1.0)


class Merged(nn.Module):
    """The flag is an attribute or an argument, and it is an error if it is both or none."""

    train: bool | None = None

    @nn.compact
    def __call__(self, x: Any, train: bool | None = None) -> Any:
        return block(x, nn.merge_param("train", self.train, train))


class AskingForStreams(nn.Module):
    off: bool = False

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = x * self.param("scale", nn.initializers.ones, (1, 3))
        if self.off or not self.has_rng("dropout"):
            return x
        return x + jax.random.normal(self.make_rng("dropout"), x.shape)


class OwnNorm(nn.BatchNorm):
    @nn.compact
    def __call__(self, x: Any, *args: Any, train: bool = True, **kwargs: Any) -> Any:
        return super().__call__(x, *args, use_running_average=not train, **kwargs)


class NoParams(nn.Module):
    """BatchNorm and Dropout without a parameter inside a module that has one."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = x * self.param("gain", nn.initializers.ones, (1, 3))
        norm = nn.BatchNorm(not train, momentum=0.5, use_bias=False, use_scale=False)
        return nn.Dropout(0.5)(norm(x), deterministic=not train)


class Attention(nn.Module):
    give_key: bool = False

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        key = jax.random.key(7) if self.give_key else None
        attend = nn.MultiHeadDotProductAttention(1, dropout_rate=0.5, deterministic=None)
        x = attend(x[:, :, None], deterministic=not train, dropout_rng=key)
        again = nn.MultiHeadDotProductAttention(1, dropout_rate=0.5, deterministic=not train)
        return again(x)[:, :, 0]


class Cell(nn.RNNCellBase):
    train: bool

    @nn.compact
    def __call__(self, carry: Any, x: Any) -> Any:
        x = nn.Dropout(0.5, deterministic=not self.train)(nn.Dense(4)(x))
        carry = nn.tanh(nn.Dense(4)(carry) + x)
        return carry, carry

    def initialize_carry(self, rng: Any, input_shape: Any) -> Any:
        return jnp.zeros((*input_shape[:-1], 4))

    @property
    def num_feature_axes(self) -> int:
        return 1


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        split: Any = {"params": False, "dropout": True}
        states: Any = nn.RNN(Cell(train), split_rngs=split)(x[:, :, None])
        return states[:, -1]


class Step(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        return block(nn.Dense(4)(x), train), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        same_for_all: Any = nn.broadcast
        layers = nn.scan(
            Step,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=same_for_all,
            length=2,
        )
        return layers(name="layers")(nn.Dense(4)(x), train)[0]


class Mapped(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        same_for_all: Any = (None, None)
        heads = nn.vmap(
            Block,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=same_for_all,
            axis_size=2,
        )
        return heads(name="heads")(x, train).sum(0)


class JitMethod(nn.Module):
    train: bool

    @nn.jit
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return block(x, self.train)


class Sharing(nn.Module):
    inner: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.inner)

    def __call__(self, x: Any, train: bool) -> Any:
        return self.inner(x, train)


class SpectralEncoder(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        return nn.SpectralNorm(nn.Dense(4))(x, update_stats=train)


class Encoder(nn.Module):
    """Dropout and BatchNorm with a flag each; and a method of another name."""

    batch: bool | None = None

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        return block(x, train, self.batch)

    @nn.compact
    def encode(self, x: Any, training: bool = True) -> Any:
        return block(x, training)


@dataclass(frozen=True)
class Form:
    """`make(train)` builds the encoder, `call(encoder, x, train)` calls it."""

    make: Callable[[bool], nn.Module]
    call: Callable[[nn.Module, Any, bool], Any] = lambda module, x, train: module(x, train)


def twice(module: nn.Module, x: Any, train: bool) -> Any:
    return module(x, train) + module(x[::-1] * 2, train)


def by_method(module: Any, x: Any, train: bool) -> Any:
    return module.encode(x, training=train)


def by_default(module: Any, x: Any, train: bool) -> Any:
    return module(x) if train else module(x, train=False)


JitBlock = nn.jit(Block, static_argnums=(2,))

ENCODERS: dict[str, Form] = {
    "by position": Form(lambda train: Block()),
    "by keyword": Form(lambda train: KeywordOnly(), lambda m, x, t: m(x, is_training=t)),
    "left out": Form(lambda train: Block(), by_default),
    "the other way round": Form(lambda train: Deterministic(), lambda m, x, t: m(x, not t)),
    "through any arguments": Form(
        lambda train: AnyArguments(Block(parent=None)), lambda m, x, t: m(x, train=t)
    ),
    "attribute read in setup": Form(Attribute, lambda m, x, t: m(x)),
    "merged attribute": Form(Merged, lambda m, x, t: m(x)),
    "merged argument": Form(lambda train: Merged(), lambda m, x, t: m(x, t)),
    "another method": Form(lambda train: Encoder(), by_method),
    "called twice": Form(lambda train: Encoder(), twice),
    "a subclass of BatchNorm": Form(
        lambda train: OwnNorm(momentum=0.5), lambda m, x, t: m(x, train=t)
    ),
    "parameterless inside": Form(lambda train: NoParams()),
    "attention": Form(lambda train: Attention()),
    "attention with its key": Form(lambda train: Attention(give_key=True)),
    "recurrent": Form(lambda train: Recurrent()),
    "scan": Form(lambda train: Scanned()),
    "vmap": Form(lambda train: Mapped()),
    "remat": Form(lambda train: nn.remat(Block, static_argnums=(2,))()),
    "jit": Form(lambda train: JitBlock()),
    "jit of a method": Form(JitMethod, lambda m, x, t: m(x)),
    "shared scope": Form(lambda train: Sharing(Block(parent=None))),
    "shared scope outside": Form(lambda train: Sharing(Block())),
    "spectral norm": Form(lambda train: SpectralEncoder(), twice),
}


class Model(nn.Module):
    """An encoder to be frozen; Dropout, BatchNorm and a head that are not.

    With `frozen`, the encoder itself is built and called as in evaluation.
    """

    form: Form
    frozen: bool = False

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        inside = train and not self.frozen
        x = self.form.call(self.form.make(inside).clone(parent=self, name="encoder"), x, inside)
        x = nn.Dropout(0.5, deterministic=not train, name="between")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5, name="beside")(x)
        return nn.Dense(2, name="head")(x)


def start(model: nn.Module, x: Any = X) -> dict[str, Any]:
    """Returns variables with statistics that are neither zero nor one."""
    rngs = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    variables = dict(model.init(rngs, x, train=False))
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(lambda a: a + 0.3, variables["batch_stats"])
    return variables


def train(
    model: nn.Module,
    variables: dict[str, Any],
    frozen: FrozenModules = NOTHING_FROZEN,
    steps: int = 2,
    mask: Any = None,
) -> tuple[list[Any], dict[str, Any]]:
    """Applies the model in training to changing inputs; returns outputs and collections."""
    variables, outputs = dict(variables), []
    old = {name: tree for name, tree in variables.items() if name != "params"}
    for step in range(steps):
        rngs = {"dropout": jax.random.fold_in(jax.random.key(3), step)}
        with frozen.applied(rngs) as more, row_mask(mask, {**rngs, **more}) as rows:
            y, new = model.apply(
                {"params": variables["params"], **old},
                X * (step + 1),
                train=True,
                rngs={**rngs, **more, **rows},
                mutable=list(old),
            )
        old = frozen.held(new, old)
        outputs.append(y)
    return outputs, old
