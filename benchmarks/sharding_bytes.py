"""Bytes and collectives of one training step on 8 devices, by optimizer and sharding.

A transformer of the size of GPT-2 small (124M parameters), scanned over its 12 layers. Nothing
is allocated and nothing runs: the step of `flaxtrain.train.train_step` is compiled for 8 forced
CPU devices, and the compiler says what each of them has to hold.

    python benchmarks/sharding_bytes.py                     # adam, adafactor, sm3, shampoo
    python benchmarks/sharding_bytes.py --optimizers adam --layers 2 --width 256

State: bytes of parameters and slots that a device holds before a step, as the compiler counts
them, relative to the ideal for P and S bytes of both without sharding: replicated P + S, ZeRO-1
P + S/8, FSDP (P + S)/8. Arrays below the threshold stay whole; the ideal has them whole too,
and the column `left whole` says how much that is.

Collectives are counted in the compiled program, apart from those in the body of the loop over
layers, which runs once for each layer. `received` is what comes out of all of them on one
device in a step, the loop counted for each layer; the roots of Shampoo, which are computed
every tenth step, are counted in full. Temporary bytes are of the CPU's compiler: they tell
whether whole parameters are gathered at once, and little about an accelerator.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Before jax is imported. The script's own folder is on the path, the repository is not.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxtrain import OptSpec, make_recipe
from flaxtrain.losses import softmax_cross_entropy_with_integer_labels
from flaxtrain.parallel import DeviceBytes, Layout, Sharding, make_mesh
from flaxtrain.parallel.mesh_engine import MeshEngine
from flaxtrain.text import TextTable
from flaxtrain.train import OneProgram, train_step

OPTIMIZERS = ("adam", "adafactor", "sm3", "shampoo")
SHARDINGS = ("replicated", "zero1", "fsdp")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Block(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        width = x.shape[-1]
        mask = nn.make_causal_mask(x[..., 0])
        y = nn.LayerNorm(name="ln_1")(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attn")(y, mask=mask)
        y = nn.gelu(nn.Dense(4 * width, name="up")(nn.LayerNorm(name="ln_2")(x)))
        return x + nn.Dense(width, name="down")(y), None


class GPT2(nn.Module):
    """Tokens `[rows, time] -> [rows, time, vocabulary]`; scanned, remat, tied."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 50257
    context: int = 1024

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        wte = nn.Embed(self.vocabulary, self.width, name="wte")
        wpe = nn.Embed(self.context, self.width, name="wpe")
        stack = nn.scan(
            nn.remat(Block, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.layers,
        )
        x = wte(tokens) + wpe(jnp.arange(tokens.shape[1])[None])
        x, _ = stack(self.heads, name="blocks")(x, None)
        return wte.attend(nn.LayerNorm(name="ln_f")(x))


def loss(model: Any, batch: Mapping[str, Any]) -> jax.Array:
    logits = model(batch["tokens"])
    return softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean(axis=-1)


@dataclass(frozen=True)
class Measured:
    """What the compiler says of one step.

    Attributes:
        state: bytes of the arguments but the batch, on one device.
        plain: bytes of parameters and slots by kind, without sharding.
        unsharded: the same, with those apart that the sharding leaves whole.
        planned: bytes on one device, as `Layout.describe` has it.
        ideal: what a device should hold.
        temporary: bytes of temporaries on one device.
        traffic: the collectives.
        seconds: how long the compiler took.
    """

    state: int
    plain: DeviceBytes
    unsharded: DeviceBytes
    planned: DeviceBytes
    ideal: float
    temporary: int
    traffic: Traffic
    seconds: float
    text: str


def measured(model: nn.Module, optimizer: str, kind: str, *, time_steps: int = 64) -> Measured:
    """Compiles one step on all devices, and asks what it takes."""
    devices = jax.device_count()
    mesh = make_mesh({"fsdp": -1} if kind == "fsdp" else {"data": -1})
    tokens = jax.ShapeDtypeStruct((devices, time_steps), jnp.int32)
    batch = {"tokens": tokens, "targets": tokens}
    recipe = make_recipe(model, OptSpec(optimizer, learning_rate=1e-3), batch, loss=loss)
    layout = Layout(mesh, Sharding(kind), recipe.facts)
    engine = MeshEngine(layout)
    recipe = recipe.changed(replicas=OneProgram(engine.spread, engine.keep_rows))
    state = jax.eval_shape(recipe.init)
    table, laid_out = layout.describe(state), layout.state(state)
    step = jax.jit(
        lambda state, batch: train_step(recipe, state, batch),
        in_shardings=(laid_out, layout.batch()),
        out_shardings=(laid_out, layout.replicated),
        donate_argnums=0,
    )
    start = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    assert memory is not None
    rows = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch)) // devices
    text = compiled.as_text() or ""
    return Measured(
        memory.argument_size_in_bytes - rows,
        Layout(mesh, Sharding(), recipe.facts).describe(state).whole,
        table.whole,
        table.per_device,
        ideal(kind, table.whole, devices),
        memory.temp_size_in_bytes,
        traffic(text),
        seconds,
        text,
    )


def ideal(kind: str, whole: DeviceBytes, devices: int) -> float:
    """Returns the bytes that a device should hold; arrays that are to stay whole are so."""
    params = whole.params / (devices if kind == "fsdp" else 1)
    slots = whole.slots / (1 if kind == "replicated" else devices)
    return params + slots + whole.kept + whole.other


@dataclass(frozen=True)
class Traffic:
    """The collectives of a compiled program.

    Attributes:
        outer: how many there are outside of loops, by kind.
        inner: how many in the bodies of loops, each counted once.
        outer_bytes: what comes out of those outside of loops on one device, in bytes.
        inner_bytes: the same of one run of the bodies.
    """

    outer: Counter[str]
    inner: Counter[str]
    outer_bytes: int
    inner_bytes: int


def traffic(text: str) -> Traffic:
    """Reads the text of a compiled program."""
    found: dict[str, list[tuple[str, int]]] = {}
    calls: dict[str, set[str]] = {}
    current = ""
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line)
        if head:
            current = head[1]
            found[current], calls[current] = [], set()
        elif current:
            calls[current] |= set(re.findall(r"%([\w.-]+)", line))
            one = re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", line)
            found[current] += [(one[2], _bytes(one[1]))] if one else []
    looped = set(re.findall(r"(?:body|condition)=%?([\w.-]+)", text))
    while more := set().union(*(calls[name] & found.keys() for name in looped)) - looped:
        looped |= more
    inner = [one for name, ones in found.items() if name in looped for one in ones]
    outer = [one for name, ones in found.items() if name not in looped for one in ones]
    counts = (Counter(kind for kind, _ in part) for part in (outer, inner))
    return Traffic(*counts, *(sum(size for _, size in part) for part in (outer, inner)))


def _bytes(shapes: str) -> int:
    arrays = re.findall(r"([a-z]+)(\d*)\[([\d,]*)\]", shapes)
    sizes = (math.prod(map(int, filter(None, dims.split(",")))) for _, _, dims in arrays)
    return sum(n * max(int(bits or 8) // 8, 1) for n, (_, bits, _) in zip(sizes, arrays))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizers", nargs="*", default=OPTIMIZERS)
    parser.add_argument("--shardings", nargs="*", default=SHARDINGS, choices=SHARDINGS)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--hlo", type=Path, help="folder for the compiled programs")
    options = parser.parse_args()
    model = GPT2(layers=options.layers, width=options.width)
    rows = []
    for optimizer in options.optimizers:
        for kind in options.shardings:
            found = measured(model, optimizer, kind)
            if options.hlo:
                (options.hlo / f"{optimizer}_{kind}.txt").write_text(found.text)
            rows.append((optimizer, kind, *cells(found, options.layers)))
            print(*rows[-1], sep=" | ", flush=True)
    print(TextTable(COLUMNS, tuple(rows)).markdown())


COLUMNS = (
    *("optimizer", "sharding", "P", "S", "left whole", "state on a device", "/ ideal"),
    *("temporary", "collectives", "in the loop over layers", "received", "compiled in"),
)


def cells(found: Measured, layers: int) -> tuple[str, ...]:
    """Returns a row of the table."""
    plain, sent = found.plain, found.traffic
    sizes = (plain.params, plain.slots, found.unsharded.kept, found.state)
    counts = (
        ", ".join(f"{n} {kind}" for kind, n in c.items()) for c in (sent.outer, sent.inner)
    )
    return (
        *map(mebibytes, sizes),
        f"{found.state / found.ideal:.4f}",
        mebibytes(found.temporary),
        *counts,
        mebibytes(sent.outer_bytes + layers * sent.inner_bytes),
        f"{found.seconds:.0f} s",
    )


def mebibytes(number: int) -> str:
    return f"{number / 2**20:,.1f} MiB"


if __name__ == "__main__":
    main()
