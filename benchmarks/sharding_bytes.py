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
layers, which runs once for each layer. `sent around` are the bytes of the whole arrays that are
gathered, added up or sent in a step, the loop counted for each layer; the roots of Shampoo,
which are computed every tenth step, are counted in full. Temporary bytes are of the CPU's
compiler: they tell whether whole parameters are gathered at once, and little about an
accelerator.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
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
from language_model import loss, token_shapes
from program_text import Program, read
from shaped_step import Memory, shaped_step

from flaxtrain import OptSpec, make_recipe
from flaxtrain.parallel import DeviceBytes, Layout, Sharding, make_mesh
from flaxtrain.text import TextTable
from flaxtrain.train import Recipe

OPTIMIZERS = ("adam", "adafactor", "sm3", "shampoo")
SHARDINGS = ("replicated", "zero1", "fsdp")


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
        program: the collectives.
        seconds: how long the compiler took.
    """

    state: int
    plain: DeviceBytes
    unsharded: DeviceBytes
    planned: DeviceBytes
    ideal: float
    temporary: int
    program: Program
    seconds: float
    text: str


def recipe_of(model: nn.Module, optimizer: str, time_steps: int) -> tuple[Recipe, Any]:
    """Returns what is trained how, and a batch of a row for each device."""
    batch = token_shapes(jax.device_count(), time_steps)
    return make_recipe(model, OptSpec(optimizer, learning_rate=1e-3), batch, loss=loss), batch


def measured(
    model: nn.Module,
    optimizer: str,
    kind: str,
    *,
    time_steps: int = 64,
    options: dict[str, Any] | None = None,
) -> Measured:
    """Compiles a step on all devices, with options of the compiler; asks what it takes."""
    mesh = make_mesh({"fsdp": -1} if kind == "fsdp" else {"data": -1})
    recipe, batch = recipe_of(model, optimizer, time_steps)
    made = shaped_step(recipe, batch, mesh, Sharding(kind))
    start = time.perf_counter()
    compiled = made.traced().lower().compile(compiler_options=options)
    seconds = time.perf_counter() - start
    memory, text = Memory.of(compiled), compiled.as_text() or ""
    table = made.layout.describe(made.state)
    return Measured(
        memory.arguments - made.batch_bytes,
        Layout(mesh, Sharding(), recipe.facts).describe(made.state).whole,
        table.whole,
        table.per_device,
        ideal(kind, table.whole, mesh.size),
        memory.temporary,
        read(text),
        seconds,
        text,
    )


def ideal(kind: str, whole: DeviceBytes, devices: int) -> float:
    """Returns the bytes that a device should hold; arrays that are to stay whole are so."""
    params = whole.params / (devices if kind == "fsdp" else 1)
    slots = whole.slots / (1 if kind == "replicated" else devices)
    return params + slots + whole.left_whole + whole.other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizers", nargs="*", default=OPTIMIZERS)
    parser.add_argument("--shardings", nargs="*", default=SHARDINGS, choices=SHARDINGS)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--hlo", type=Path, help="folder for the compiled programs")
    options = parser.parse_args()
    model = GPT2(options.layers, options.width, heads=options.width // 64)
    rows = []
    for optimizer in options.optimizers:
        for kind in options.shardings:
            found = measured(model, optimizer, kind)
            if options.hlo:
                (options.hlo / f"{optimizer}_{kind}.txt").write_text(found.text)
            rows.append((optimizer, kind, *cells(found)))
            print(*rows[-1], sep=" | ", flush=True)
    print(TextTable(COLUMNS, tuple(rows)).markdown())


COLUMNS = (
    *("optimizer", "sharding", "P", "S", "left whole", "state on a device", "/ ideal"),
    *("temporary", "collectives", "in the loop over layers", "sent around", "compiled in"),
)


def cells(found: Measured) -> tuple[str, ...]:
    """Returns a row of the table."""
    plain, program = found.plain, found.program
    sizes = (plain.params, plain.slots, found.unsharded.left_whole, found.state)
    counts = (program.kinds(repeated=repeated) for repeated in (False, True))
    return (
        *map(mebibytes, sizes),
        f"{found.state / found.ideal:.4f}",
        mebibytes(found.temporary),
        *(", ".join(f"{n} {kind}" for kind, n in kinds.items()) for kinds in counts),
        mebibytes(program.nbytes),
        f"{found.seconds:.0f} s",
    )


def mebibytes(number: int) -> str:
    return f"{number / 2**20:,.1f} MiB"


if __name__ == "__main__":
    main()
