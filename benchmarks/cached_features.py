"""How much faster is training a head when the frozen backbone's features are cached?

    python benchmarks/cached_features.py
    python benchmarks/cached_features.py --width 64 --rounds 21

Both contenders are `Trainer.fit` on the same data, model and seed; one has `cache_frozen=True`.
They run in one process, in the rounds of `interleave.py`, and before anything is timed both
must have come to the same parameters, bit for bit. What is timed is what `fit` itself calls
training: its steps, without the first one of a call (compilation) and without filling the
cache. Filling is printed by itself, and as the number of steps that pay for it.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from interleave import Contender, environment, interleave

import flaxtrain as ft

PACKAGES = ("jax", "jaxlib", "flax", "numpy")


class Backbone(nn.Module):
    """Three 3x3 convolutions with BatchNorm; the mean over all places."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for factor in (1, 2, 2):
            x = nn.Conv(factor * self.width, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return x.mean((1, 2))


class Classifier(nn.Module):
    """A backbone and a head with one hidden layer and dropout."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = Backbone(self.width, name="backbone")(x, train)
        x = nn.relu(nn.Dense(64)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(10)(x)


class HeadTraining:
    """A trainer of the head, whose calls go on from one another."""

    def __init__(self, data: Any, width: int, cached: bool) -> None:
        spec = ft.OptSpec("adamw", learning_rate=1e-3, freeze=["backbone/**"])
        self.trainer = ft.Trainer(Classifier(width), spec, verbose=False)
        self.data, self.cached = data, cached
        self.filling: list[float] = []
        self.training = 0.0

    def run(self, steps: int) -> None:
        """Train for so many steps and wait for the result."""
        result = self.trainer.fit(self.data, steps=steps, cache_frozen=self.cached)
        jax.block_until_ready(result.state)
        self.training += result.timings["train"]
        self.filling.append(result.timings.get("features", 0.0))

    def parameters(self) -> list[bytes]:
        """Return every bit of the parameters."""
        state = self.trainer.state
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state and state.params)]


def main() -> None:
    """Measure and print.

    Raises:
        SystemExit: If the contenders have not come to the same parameters.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100, help="of one call")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()

    arrays, _ = ft.data.digits()
    data = ft.data.batches(arrays, args.batch_size, shuffle=True, seed=0)
    loops = {
        "uncached": HeadTraining(data, args.width, cached=False),
        "cached": HeadTraining(data, args.width, cached=True),
        "uncached again": HeadTraining(data, args.width, cached=False),
    }
    for loop in loops.values():
        loop.run(args.steps)
        loop.filling.clear()
    if loops["cached"].parameters() != loops["uncached"].parameters():
        raise SystemExit("not the same work: the parameters differ")
    contenders = [Contender(name, loop.run) for name, loop in loops.items()]
    timings = interleave(
        contenders,
        (args.steps,),
        args.rounds,
        clock=lambda: sum(loop.training for loop in loops.values()),
    )

    print(environment(PACKAGES))
    print(f"{data}; width {args.width}; calls of {args.steps} steps, {args.rounds} rounds")
    print("\nratio of the time of training, median [p10 p90]")
    print(f"  uncached / cached               {timings.ratio('uncached', 'cached')}")
    print(f"  uncached / uncached (control)   {timings.ratio('uncached again', 'uncached')}")
    filling = statistics.median(loops["cached"].filling)
    costs = {
        name: statistics.median(timings.call(name)) / (args.steps - 1)
        for name in ("uncached", "cached")
    }
    pays = filling / (costs["uncached"] - costs["cached"])
    print("\nms per step: " + ", ".join(f"{n} {1e3 * cost:.2f}" for n, cost in costs.items()))
    print(
        f"filling the cache, compilation and check of the rows included: {filling:.2f} s, "
        f"paid for after {pays:.0f} steps ({pays / len(data):.1f} epochs)"
    )


if __name__ == "__main__":
    main()
