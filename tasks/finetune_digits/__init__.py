"""Fine-tuning with few labels: what was learned on the digits 0-4 serves the digits 5-9."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np

import flaxtrain as ft

__all__ = ["Backbone", "Block", "Network", "digits_0_to_4", "digits_5_to_9"]

CLASSES = 5


class Block(nn.Module):
    """A convolution with BatchNorm; then, if asked for, a quarter of the pixels."""

    features: int
    pool: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[batch, height, width, channels]` to the same with other channels."""
        x = nn.Conv(self.features, (3, 3), use_bias=False, name="conv")(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name="norm")(x))
        return nn.avg_pool(x, (2, 2), (2, 2)) if self.pool else x


class Backbone(nn.Module):
    """Blocks, each but the first with a quarter of the pixels of the one before it."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images `[batch, 8, 8, 1]` to features `[batch, n]`."""
        for index, features in enumerate(self.features):
            x = Block(features, pool=index > 0, name=f"block_{index}")(x, train)
        return x.reshape(x.shape[0], -1)


class Network(nn.Module):
    """A backbone that is learned once, and a head for the classes at hand.

    Attributes:
        features: channels of the blocks.
    """

    features: tuple[int, ...] = (16, 32, 64)

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
        """Maps images `[batch, 8, 8, 1]` to logits `[batch, 5]`."""
        x = Backbone(self.features, name="backbone")(image, train)
        return nn.Dense(CLASSES, name="head")(x)


@ft.register_task("digits_0_to_4")
def digits_0_to_4(config: ft.Config) -> ft.Task:
    """Builds the task of pretraining: all digits 0-4 of the training part."""
    train, val = (_below(part, 0) for part in ft.data.digits())
    return ft.Task(Network(tuple(config.model.features)), train, val)


@ft.register_task("digits_5_to_9")
def digits_5_to_9(config: ft.Config) -> ft.Task:
    """Builds the task of fine-tuning: few labelled digits 5-9.

    The labelled ones come from the small part of the split, drawn by `config.seed`. Held out
    is the large part, from which nothing else is taken; to tune, with `config.data.tune`, it is
    what was not drawn of the small one.
    """
    test, small = (_below(part, CLASSES) for part in ft.data.digits())
    labelled, rest = _draw(small, config.data.per_class, config.seed)
    held_out = rest if config.data.tune else test
    return ft.Task(Network(tuple(config.model.features)), labelled, held_out)


Data = dict[str, np.ndarray]


def _below(data: Data, first: int) -> Data:
    """Returns five classes, counted from 0."""
    own = (data["label"] >= first) & (data["label"] < first + CLASSES)
    return {"image": data["image"][own], "label": data["label"][own] - np.int32(first)}


def _draw(data: Data, per_class: int, seed: int) -> tuple[Data, Data]:
    """Returns `per_class` examples of each class, and all others."""
    order = np.random.default_rng(seed).permutation(len(data["label"]))
    groups = [order[data["label"][order] == label] for label in range(CLASSES)]
    drawn = np.concatenate([group[:per_class] for group in groups])
    rest = np.concatenate([group[per_class:] for group in groups])
    return _rows(data, drawn), _rows(data, rest)


def _rows(data: Data, index: np.ndarray) -> Data:
    return {name: values[index] for name, values in data.items()}
