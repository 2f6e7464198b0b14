"""Optax's `contrib`: its optimizers are not there yet, and say so."""

from __future__ import annotations

from flaxtrain.compat.optax.absent import answer_for, listing

__all__: list[str] = []

__getattr__ = answer_for("contrib", __all__)
__dir__ = listing(__all__)
