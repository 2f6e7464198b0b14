"""What do microbatches inside the step cost, in time and memory?

    python benchmarks/microbatches.py
    python benchmarks/microbatches.py --rounds 21

Three questions, for 8 microbatches of 32 rows:
1. Time and memory of one update of an MLP (3M parameters, AdamW), against a step written by
   hand with flax and `optax.MultiSteps`, donated, called eight times for one update.
2. Temporary bytes of the step for 2 to 32 microbatches of equal size: an MLP and a scanned
   transformer with remat.
3. A convolutional network on CPU: the loop over microbatches written out, which is what the
   step does there, and as a loop, against the whole batch at once.

Exit status 1: a ratio is above its bar.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from interleave import Contender, environment, interleave

import flaxtrain as ft

COUNT, ROWS, CLASSES = 8, 32, 10
TIME_BAR = 0.6
"""Eight dispatches, and eight passes over the accumulator beside the parameters, against one
dispatch and eight passes."""

GROWTH_BAR = 1.02
"""The batch itself is an argument; a few numbers for each microbatch are left to grow."""

CLIFF_BAR = 2.0
"""Of the written-out loop against the whole batch at once; as a loop it is the cliff."""


class MLP(nn.Module):
    """Dense layers, 3.2M parameters."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for width in (1024, 1024, 1024):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(CLASSES)(x)


class CNN(nn.Module):
    """Two convolutions with BatchNorm."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        for width in (16, 32):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(CLASSES)(x.reshape(x.shape[0], -1))


class Block(nn.Module):
    """Attention and an MLP, each in a residual."""

    @nn.compact
    def __call__(self, x: Any) -> tuple[Any, None]:
        x = x + nn.SelfAttention(4)(nn.LayerNorm()(x))
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(256)(nn.LayerNorm()(x)))), None


class Transformer(nn.Module):
    """Four blocks in `nn.scan` with `nn.remat`; `[rows, time, 64] -> [rows, classes]`."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        stack = nn.scan(
            nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=4
        )
        x, _ = stack()(x)
        return nn.Dense(CLASSES)(x.mean(axis=1))


def batch_of(shape: tuple[int, ...], rows: int) -> dict[str, np.ndarray]:
    """Return random inputs and labels."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, *shape)).astype("float32")
    return {"x": x, "label": rng.integers(0, CLASSES, rows)}


def step_of(model: nn.Module, batch: Any, count: int) -> tuple[Any, ft.Recipe]:
    """Return our compiled step, donated, and its recipe."""
    recipe = ft.make_recipe(model, ft.OptSpec("adamw", 1e-3, accumulate=count), batch)

    def step(state: Any, batch: Any) -> Any:
        return ft.train_step(recipe, state, batch, norms=False)

    return jax.jit(step, donate_argnums=0), recipe


class Ours:
    """Updates by our step."""

    def __init__(self, model: nn.Module, batch: Any, count: int, loop: bool = False) -> None:
        self.step, recipe = step_of(model, batch, count)
        if loop:
            recipe.__dict__["unroll"] = False
        self.state, self.batch = recipe.init(seed=0), batch
        self.run(1)

    def run(self, updates: int) -> None:
        """Make so many updates and wait for the last."""
        for _ in range(updates):
            self.state, _ = self.step(self.state, self.batch)
        jax.block_until_ready(self.state.params)

    def memory(self) -> tuple[int, int]:
        """Return the bytes of the state and the temporary bytes."""
        return _memory(self.step, self.state, self.batch)


class ByHand:
    """Updates by `optax.MultiSteps`, eight calls each."""

    def __init__(self, model: nn.Module, batch: Any) -> None:
        tx = optax.MultiSteps(optax.adamw(1e-3), COUNT)

        def step(state: Any, batch: Any) -> Any:
            params, opt_state = state

            def objective(params: Any) -> Any:
                logits = model.apply({"params": params}, batch["x"])
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
                return losses.mean(), jnp.mean(jnp.argmax(logits, -1) == batch["label"])

            (loss, accuracy), grads = jax.value_and_grad(objective, has_aux=True)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), (loss, accuracy)

        self.step = jax.jit(step, donate_argnums=0)
        parts = [slice(i * ROWS, (i + 1) * ROWS) for i in range(COUNT)]
        self.batches = [{name: leaf[part] for name, leaf in batch.items()} for part in parts]
        params = model.init(jax.random.key(0), batch["x"])["params"]
        self.state = params, tx.init(params)
        self.run(1)

    def run(self, updates: int) -> None:
        """Make so many updates and wait for the last."""
        for _ in range(updates):
            for batch in self.batches:
                self.state, _ = self.step(self.state, batch)
        jax.block_until_ready(self.state)

    def memory(self) -> tuple[int, int]:
        """Return the bytes of the state and the temporary bytes."""
        return _memory(self.step, self.state, self.batches[0])


def _memory(step: Any, state: Any, batch: Any) -> tuple[int, int]:
    analysis: Any = step.lower(state, batch).compile().memory_analysis()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if hasattr(leaf, "nbytes"))
    return held, int(analysis.temp_size_in_bytes)


def against_multi_steps(rounds: int) -> bool:
    """Print time and memory against `MultiSteps`; return whether both are within their bars."""
    batch = batch_of((784,), COUNT * ROWS)
    runs = {
        "MultiSteps": ByHand(MLP(), batch),
        "control": ByHand(MLP(), batch),
        "ours": Ours(MLP(), batch, COUNT),
    }
    timings = interleave([Contender(n, run.run) for n, run in runs.items()], (4,), rounds)
    times = {name: timings.ratio(name, "MultiSteps") for name in runs}
    memory = {name: run.memory() for name, run in runs.items()}
    print(f"{'one update of the MLP':<24}{'time, median [p10 p90]':>26}", end="")
    print(f"{'state MB':>12}{'temp MB':>10}")
    for name in runs:
        held, temporary = memory[name]
        print(f"{name:<24}{times[name]!s:>26}{held / 1e6:>12.1f}{temporary / 1e6:>10.1f}")
    return times["ours"].median <= TIME_BAR and sum(memory["ours"]) < sum(memory["MultiSteps"])


def growth() -> bool:
    """Print temporary bytes by number of microbatches; return whether they are flat."""
    flat = True
    print(f"\n{'temporary MB, microbatches':<28}" + "".join(f"{k:>10}" for k in (2, 8, 32)))
    cases: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "MLP": (MLP(), (784,)),
        "transformer": (Transformer(), (16, 64)),
    }
    for name, (model, shape) in cases.items():
        found = []
        for count in (2, 8, 32):
            batch = batch_of(shape, count * ROWS)
            step, recipe = step_of(model, batch, count)
            lowered = step.lower(jax.eval_shape(lambda recipe=recipe: recipe.init(0)), batch)
            analysis: Any = lowered.compile().memory_analysis()
            found.append(int(analysis.temp_size_in_bytes))
        flat = flat and found[-1] <= GROWTH_BAR * found[0]
        print(f"{name:<28}" + "".join(f"{size / 1e6:>10.2f}" for size in found))
    return flat


def convolutions(rounds: int) -> bool:
    """Print what the loop costs a CNN; return whether the written-out one is within its bar."""
    batch = batch_of((16, 16, 3), COUNT * ROWS)
    makers: dict[str, Callable[[], Ours]] = {
        "at once": lambda: Ours(CNN(), batch, 1),
        "written out": lambda: Ours(CNN(), batch, COUNT),
        "as a loop": lambda: Ours(CNN(), batch, COUNT, loop=True),
    }
    runs = {name: make() for name, make in makers.items()}
    timings = interleave([Contender(n, run.run) for n, run in runs.items()], (2,), rounds)
    print(f"\n{'one update of the CNN':<24}{'time, median [p10 p90]':>26}")
    for name in runs:
        print(f"{name:<24}{timings.ratio(name, 'at once')!s:>26}")
    return timings.ratio("written out", "at once").median <= CLIFF_BAR


def main() -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(environment(("jax", "flax", "optax")))
    passed = [against_multi_steps(rounds), growth(), convolutions(rounds)]
    print("\npassed" if all(passed) else f"\nFAILED: {passed}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
