"""A process of a run: a tiny loop whose every step sums over all processes.

Started as `python child.py [name=value ...]`, with the variables that `initialize` reads.
Prints `step N` after each step.
"""

from __future__ import annotations

import contextlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import flaxtrain as ft
from flaxtrain.parallel.global_arrays import gathered, global_batch
from flaxtrain.parallel.processes import agree


def main() -> None:
    words = dict(word.split("=") for word in sys.argv[1:])
    parallel = ft.parallel
    me = parallel.initialize()
    print(me, flush=True)
    agree({"seed": words.get("seed", "0"), "rows": (4, 3)})

    mesh = parallel.make_mesh({"data": -1})
    rows = NamedSharding(mesh, PartitionSpec("data"))
    kept = jax.device_put(jnp.zeros(3), NamedSharding(mesh, PartitionSpec()))
    step = jax.jit(lambda w, x: w + 0.1 * (x.mean(0) - w), donate_argnums=0)
    beat = parallel.peer_watch()
    catches = (ValueError,) if words.get("catch") else ()
    with (
        contextlib.suppress(*catches),
        beat.guard(lambda: print("flushed", flush=True)),
    ):
        for number in range(1, int(words.get("steps", 10)) + 1):
            if words.get("raise") == str(number):
                raise ValueError(f"row {number} is bad\nmore about it")
            local = np.full((4 // me.count, 3), me.index + 1, "float32")
            kept = step(kept, global_batch(local, rows))
            kept.block_until_ready()
            beat.progress(number)
            print("step", number, flush=True)
            time.sleep(float(words.get("pause", 0.05)))
    if not words.get("catch"):
        print("result", gathered(kept).tolist(), parallel.is_writer(), flush=True)
    if words.get("after") == "raise":
        raise KeyError("afterwards")
    time.sleep(float(words.get("late", 0)))


if __name__ == "__main__":
    main()
