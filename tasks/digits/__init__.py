"""Handwritten digits, 8 x 8 pixels (UCI, embedded in the package): the default run."""

from __future__ import annotations

import flax.linen as nn
import jax

import flaxtrain as ft

__all__ = ["CNN", "digits"]


class CNN(nn.Module):
    """Two convolutions with BatchNorm, then one dense layer after dropout.

    Attributes:
        features: channels of the convolutions.
        dropout: share of the last features that is dropped in training.
    """

    features: tuple[int, ...] = (32, 64)
    dropout: float = 0.3

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
        """Maps images `[batch, 8, 8, 1]` to logits `[batch, 10]`."""
        x = image
        for features in self.features:
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.avg_pool(nn.relu(x), (2, 2), (2, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(10)(x)


@ft.register_task("digits")
def digits(config: ft.Config) -> ft.Task:
    """Builds the task: `config.data.split` is `"random"` or `"writers"`."""
    train, val = ft.data.digits(config.data.split)
    model = CNN(tuple(config.model.features), config.model.dropout)
    return ft.Task(model=model, train=train, val=val)
