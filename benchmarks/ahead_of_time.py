"""Does it fit, and what does it send around? A training step of a 7B model, before it runs.

Compiles a step of the language model in `language_model.py` under FSDP, for chips that are not
there. Nothing is allocated: all that there is of parameters and batch are shapes.

    python benchmarks/ahead_of_time.py --devices 256             # forced CPU devices
    python benchmarks/ahead_of_time.py --topology v5e:16x16      # needs libtpu, and no TPU
    python benchmarks/ahead_of_time.py --topology v5e:16x16 --batch 2048 --accumulate 8

The first says what each chip has to hold of the state, exactly, and what the partitioner sends
around. Its temporary bytes are those of a compiler for CPUs, which computes in float32 what is
bfloat16 elsewhere, and fuses other things. The second asks the compiler for TPUs. It refuses
within seconds what is far from fitting; what it takes can still have a little more buffers than
a chip has room for. Exit status 1: it does not fit by either.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ahead_step import Found, Run

SIZES = {
    "layers": 32,
    "width": 4096,
    "heads": 32,
    "hidden": 11008,
    "vocabulary": 32000,
    "time": 2048,
}
AVAILABLE = {"v5e": 15.75}
"""GiB of a chip's memory that programs get, as the compiler says when it refuses one."""


def main() -> int:
    """Run from the command line; return the exit status."""
    options = _parser().parse_args()
    _before_jax(options.devices, options.topology)
    from ahead_step import Run, found
    from language_model import Size

    size = Size(
        **{name: getattr(options, name) for name in SIZES},
        remat=options.remat,
        chunk=options.chunk,
    )
    mesh = {
        name: int(length) for name, _, length in (one.partition("=") for one in options.mesh)
    }
    run = Run(size, mesh, options.batch, options.accumulate, options.topology)
    print(title(run), flush=True)
    result = found(run)
    print(report(run, result))
    if options.hlo:
        options.hlo.write_text(result.text)
    if options.json:
        options.json.write_text(json.dumps(as_json(run, result), indent=1))
    return 0 if fits(run, result) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--devices", type=int, default=256, help="forced CPU devices")
    parser.add_argument("--topology", default="", help="of TPUs, such as v5e:16x16, instead")
    parser.add_argument("--mesh", nargs="*", default=["fsdp=-1"], help="such as data=2 fsdp=-1")
    parser.add_argument("--batch", type=int, default=256, help="rows, on all chips together")
    parser.add_argument("--accumulate", type=int, default=1, help="microbatches in a batch")
    parser.add_argument("--remat", choices=("full", "dots", "none"), default="full")
    parser.add_argument("--chunk", type=int, default=0, help="queries that attend at a time")
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--hlo", type=Path, help="write the compiled program here")
    return parser


def _before_jax(devices: int, topology: str) -> None:
    """Sets what jax reads when it is imported."""
    # The script's own folder is on the path, the repository is not.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    os.environ["JAX_PLATFORMS"] = "cpu"
    if topology:
        # libtpu looks for chips otherwise, and lets one process at a time do so.
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-256")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    else:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"


def title(run: Run) -> str:
    """Returns what is compiled, in two lines."""
    from flaxtrain.text import counted

    size = ", ".join(f"{name} {getattr(run.size, name):,}" for name in SIZES)
    mesh = ", ".join(f"{name}={length}" for name, length in run.mesh.items())
    attention = f"{run.size.chunk} queries at a time" if run.size.chunk else "at once"
    return (
        f"{size}: {run.size.parameters:,} parameters; remat {run.size.remat}, "
        f"attention {attention}\n"
        f"FSDP on a mesh {mesh} of {run.topology or 'forced CPU devices'}, {run.batch:,} rows "
        f"in {counted(run.accumulate, 'microbatch', 'microbatches')}; AdamW, clipping by the "
        "global norm, bfloat16"
    )


def report(run: Run, found: Found) -> str:
    """Returns all that was found, as text."""
    return "\n\n".join((_memory(run, found), _traffic(found), _flops(run, found), _cost(found)))


def _memory(run: Run, found: Found) -> str:
    state, memory = found.state, found.memory
    rows = [
        ("parameters", state.params),
        ("slots of the optimizer", state.slots),
        ("of both, left whole", state.left_whole),
        ("other state", state.other),
        ("batch", found.batch),
        ("sum", state.total + found.batch),
    ]
    lines = [f"bytes on one of {found.devices} chips, from the layout"]
    lines += [f"  {name:<46}{size:>16,}" for name, size in rows]
    on_chip = run.batch // found.devices // run.accumulate
    parts = run.size.temporaries(on_chip, found.split)
    lines.append("temporary bytes on one chip, by hand; not all of it at the same time")
    lines += [f"  {name:<46}{size:>16,}" for name, size in parts.items()]
    lines.append(f"  {'sum':<46}{sum(parts.values()):>16,}")
    lines.append("bytes on one chip, as the compiler says")
    if memory is None:
        return "\n".join([*lines, *_refusal(found.refusal), f"  {verdict(run, found)}"])
    rows = [
        ("arguments", memory.arguments),
        ("output", memory.output),
        ("output in the buffers of arguments", memory.alias),
        ("temporary", memory.temporary),
        ("in all", memory.total),
    ]
    if run.topology:  # a compiler for CPUs leaves temporaries out of it
        rows.append(("at most at a time", memory.peak))
    lines += [f"  {name:<46}{size:>16,}" for name, size in rows]
    return "\n".join([*lines, f"  {verdict(run, found)}"])


def fits(run: Run, found: Found) -> bool:
    """Returns whether the compiler takes it, and lays out no more buffers than a chip has."""
    limit = AVAILABLE.get(run.topology.partition(":")[0], math.inf)
    return found.memory is not None and found.memory.total <= limit * 2**30


def verdict(run: Run, found: Found) -> str:
    """Returns what the compiler's numbers mean, in a line."""
    if found.memory is None:
        return "refused: it does not fit"
    generation, total = run.topology.partition(":")[0], found.memory.total / 2**30
    if not generation:
        return f"{total:.2f} GiB; a compiler for CPUs refuses nothing"
    if generation not in AVAILABLE:
        return f"{total:.2f} GiB; the compiler refuses nothing"
    if fits(run, found):
        return f"it fits: {total:.2f} GiB of {AVAILABLE[generation]}"
    peak = found.memory.peak / 2**30
    return (
        f"not refused, but don't rely on it: {peak:.2f} GiB are in use at a time, and buffers "
        f"take {total:.2f} GiB of {AVAILABLE[generation]}"
    )


def _refusal(text: str) -> list[str]:
    """Returns what a compiler says of a program that does not fit, without all its buffers."""
    told = [line.strip() for line in text.splitlines() if line.strip()]
    largest = next((i for i, line in enumerate(told) if "Largest" in line), len(told))
    return [f"  {line[:200]}" for line in (*told[: min(largest, 12)], *told[largest:][:16])]


def _traffic(found: Found) -> str:
    if found.program is None:
        return "collectives: none, there is no program"
    lines = [
        f"{'collectives':<22}{'in the text':>12}{'in a step':>12}{'bytes of whole arrays':>24}"
    ]
    for kind, (number, runs, nbytes) in found.program.by_kind().items():
        lines.append(f"  {kind:<20}{number:>12,}{runs:>12,}{nbytes:>24,}")
    loops = ", ".join(map(str, found.program.loops))
    lines.append(
        f"  bodies of loops run {loops} times; {found.program.unknown} of unknown length"
    )
    return "\n".join(lines)


def _flops(run: Run, found: Found) -> str:
    by_hand = run.size.step_flops(run.batch)
    rows = [
        (
            "of the model: 6 a kernel entry and token, attention",
            run.size.model_flops(run.batch),
        ),
        ("with what is computed again, by hand", by_hand),
        ("products in the traced step, loops multiplied", found.flops),
        ("XLA's count, bodies of loops once", int(found.xla_flops) * found.devices),
    ]
    lines = ["FLOPs of a step on all chips together"]
    lines += [f"  {name:<54}{flops:>12.4e}" for name, flops in rows if flops > 0]
    return "\n".join([*lines, f"  traced / by hand: {found.flops / by_hand:.6f}"])


def _cost(found: Found) -> str:
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in found.seconds.items())
    return (
        f"this process: at most {found.host / 2**30:.2f} GiB; arrays in it "
        f"{found.alive:,} bytes; {seconds}"
    )


def as_json(run: Run, found: Found) -> dict[str, object]:
    """Returns every number by name; the program's text is left out."""
    parts = {field.name: getattr(found, field.name) for field in fields(found)}
    parts.pop("text")
    parts["state"] = found.state._asdict()
    parts["memory"] = asdict(found.memory) if found.memory else None
    parts["program"] = asdict(found.program) if found.program else None
    parts["step_flops"] = run.size.step_flops(run.batch)
    parts["model_flops"] = run.size.model_flops(run.batch)
    return {"run": asdict(run), **parts}


if __name__ == "__main__":
    sys.exit(main())
