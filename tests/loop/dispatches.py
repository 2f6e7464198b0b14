"""How many compiled calls are under way at once, and a model that is slow enough to tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import flaxtrain as ft
from flaxtrain.parallel.compile import Compiled
from flaxtrain.parallel.pmap import _Pmapped

__all__ = ["LONG_RUNS", "slow_trainer", "under_way"]

BATCHES, ROWS = 30, 8


class Slow(nn.Module):
    """Its output does not depend on what takes it a few milliseconds."""

    loops: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        factor = jax.lax.stop_gradient(self.param("factor", nn.initializers.ones, ()))
        square = jnp.eye(192) + 1e-6 * factor
        power = jax.lax.fori_loop(0, self.loops, lambda _, a: jnp.tanh(a @ square), square)
        return nn.Dense(4)(x) + 0 * power.mean()


class Net(nn.Module):
    """`[rows, 6] -> [rows, 2]`: a slow layer, BatchNorm and a head."""

    loops: int

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = Slow(self.loops, name="slow")(x)
        return nn.Dense(2, name="head")(nn.BatchNorm(not train, name="norm")(x))


def data() -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(BATCHES * ROWS, 6)).astype("float32")
    return {"x": x, "label": (x[:, 0] > 0).astype("int32")}


def slow_trainer(loops: int, **arguments: Any) -> ft.Trainer:
    """Returns a trainer of `Net`, whose state has an average of the weights."""
    spec = ft.OptSpec("sgd", learning_rate=0.01, ema=0.9)
    return ft.Trainer(Net(loops), spec, log_every=BATCHES, verbose=False, **arguments)


def _cached(trainer: ft.Trainer) -> None:
    frozen = trainer.spec.replace(freeze=[ft.Freeze("slow/**")])
    one = ft.Trainer(trainer.model, frozen, verbose=False)
    one._devices = trainer._devices
    one.fit(data(), steps=1, batch_size=ROWS, cache_frozen=True)


LONG_RUNS: dict[str, Callable[[ft.Trainer], Any]] = {
    "fit": lambda one: one.fit(data(), steps=BATCHES, batch_size=ROWS),
    "evaluate": lambda one: one.evaluate(data(), batch_size=ROWS, weights="both"),
    "predict": lambda one: one.predict(data(), batch_size=ROWS),
    "recompute_batch_stats": lambda one: one.recompute_batch_stats(data(), batch_size=ROWS),
    "feature cache": _cached,
    "find_lr": lambda one: one.find_lr(data(), steps=BATCHES, batch_size=ROWS),
}
"""What a trainer does in many steps, by name."""


@contextmanager
def under_way() -> Iterator[list[int]]:
    """Yields, for every call of a compiled function, how many are unfinished: itself included.

    It asks the devices, not the loop. A call is done when its last result is, which nobody
    donates.
    """
    found: list[int] = []
    flying: list[Any] = []

    def watched(own: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any) -> Any:
            result = own(self, *args)
            flying[:] = [leaf for leaf in flying if not leaf.is_ready()]
            flying.append(jax.tree.leaves(result)[-1])
            found.append(len(flying))
            return result

        return call

    with (
        mock.patch.object(Compiled, "__call__", watched(Compiled.__call__)),
        mock.patch.object(_Pmapped, "__call__", watched(_Pmapped.__call__)),
    ):
        yield found
