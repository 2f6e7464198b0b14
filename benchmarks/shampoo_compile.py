"""What do compiling Shampoo and one of its steps cost, relative to AdamW's?

    python benchmarks/shampoo_compile.py
    python benchmarks/shampoo_compile.py --blocks 24 --width 256

A transformer of 12 blocks without sharing or scanning, so that every kernel is an array of its
own. Lowering and compiling are timed together, in one process, with jax's caches cleared before
every turn; turns alternate. Exit status 1: the whole training step takes three times as long or
longer to compile.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

# See shampoo_vs_adamw.py.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
from interleave import environment
from shampoo_vs_adamw import PACKAGES, Transformer

import flaxtrain as ft

LIMIT = 3.0
OPTIMIZERS = {"adamw": ft.optim.adamw(1e-3), "shampoo": ft.optim.shampoo(1e-3)}


def programs(model: Any, tokens: Any, tx: Any) -> dict[str, Any]:
    """Return the update alone and the whole training step."""

    def loss(params: Any) -> Any:
        logits = model.apply({"params": params}, tokens)
        return -jnp.mean(jax.nn.log_softmax(logits)[..., 0])

    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return ft.optim.apply_updates(params, updates), state

    return {"update": tx.update, "step": step}


def main() -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(environment(PACKAGES))
    model = Transformer(256, options.width, options.blocks)
    tokens = jnp.zeros((8, 32), jnp.int32)
    params = model.init(jax.random.key(0), tokens)["params"]
    print(f"{len(jax.tree.leaves(params))} arrays, {options.blocks} blocks")
    seconds: dict[tuple[str, str], list[float]] = {}
    compiled: dict[tuple[str, str], Any] = {}
    for turn in range(options.rounds):
        for name in list(OPTIMIZERS)[:: 1 if turn % 2 else -1]:
            tx = OPTIMIZERS[name]
            state = jax.eval_shape(tx.init, params)
            for what, program in programs(model, tokens, tx).items():
                jax.clear_caches()
                start = time.perf_counter()
                compiled[name, what] = jax.jit(program).lower(params, state, params).compile()
                seconds.setdefault((name, what), []).append(time.perf_counter() - start)
    ratios = {}
    for what in ("update", "step"):
        pair = [np.array(seconds[name, what]) for name in ("shampoo", "adamw")]
        ratios[what] = float(np.median(pair[0] / pair[1]))
        times = ", ".join(f"{np.median(x):.2f} s" for x in pair)
        print(f"compile {what:<7} {ratios[what]:.2f} (Shampoo, AdamW: {times})")
    _time_steps(compiled, params)
    return 0 if ratios["step"] < LIMIT else 1


def _time_steps(compiled: dict[tuple[str, str], Any], params: Any) -> None:
    """Print the ratio of 20 whole training steps, two computations of the roots included."""
    states = {name: tx.init(params) for name, tx in OPTIMIZERS.items()}
    found: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    for _ in range(4):
        for name in OPTIMIZERS:
            start = time.perf_counter()
            for _ in range(20):
                _, states[name] = compiled[name, "step"](params, states[name], params)
            jax.block_until_ready(states[name])
            found[name].append(time.perf_counter() - start)
    ratio = float(np.median(np.divide(found["shampoo"], found["adamw"])[1:]))
    each = {name: f"{np.median(times[1:]) * 50:.1f} ms" for name, times in found.items()}
    print(f"time of a training step {ratio:.2f} ({each})")


if __name__ == "__main__":
    sys.exit(main())
