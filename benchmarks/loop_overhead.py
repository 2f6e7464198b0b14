"""What does `Trainer.fit` cost over a training loop written by hand?

    python benchmarks/loop_overhead.py --model mlp               # fit against the baseline
    python benchmarks/loop_overhead.py --model mlp --baseline    # the A/A control only
    python benchmarks/loop_overhead.py --model mlp --rivals      # the baseline and its rivals

Every contender runs calls of two lengths. The verdict is on the *whole call* of the longer one,
start and end of `fit` included, so that nothing can hide between calls; the cost of one further
step (the slope between the two lengths) and the cost of a call as such are printed beside it.
Exit status 1: the median ratio is above max(1.05, upper spread of the A/A control).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from hand_loop import (
    BATCH_SIZE,
    LEARNING_RATE,
    LOG_EVERY,
    WEIGHT_DECAY,
    Case,
    Design,
    HandLoop,
    make_case,
)
from interleave import Contender, Spread, Timings, environment, interleave, limit
from numpy.typing import NDArray

TARGET, SAMPLE = 1.05, 1280
PACKAGES = ("jax", "jaxlib", "flax", "optax", "tensorboardX", "numpy")
RIVALS = {
    "norms under lax.cond": Design(norms="cond"),
    "norms in every step": Design(norms="every"),
    "metrics in a second jit": Design(metrics="outside"),
    "metrics as a list": Design(metrics="list"),
    "five scalars, not a vector": Design(packed=False),
    "device_put": Design(put="now"),
    "device_put one ahead": Design(put="ahead"),
    "device_put, donate batch": Design(put="now", donate_batch=True),
    "log 10 steps later": Design(late=True),
    "unbounded in flight": Design(in_flight=None),
    "2 in flight": Design(in_flight=2),
    "flax dataclass as state": Design(record=True),
    "fancy index": Design(gather="index"),
    "copy the epoch in order": Design(gather="copy"),
}


class Loop(Protocol):
    """What is timed: a training run that continues where the call before left off."""

    def run(self, steps: int) -> None:
        """Train for so many steps and wait for the result."""
        ...

    def accuracy(self, examples: int) -> float:
        """Return the accuracy on the first examples."""
        ...


class Fit:
    """`Trainer.fit` on the same data; console lines go nowhere, at their usual cost.

    It writes the same event files as the baseline and, like it, saves no checkpoint: the hook
    `TensorBoard(directory)` instead of a workdir.
    """

    def __init__(self, case: Case, workdir: Path, steps_per_call: int | str = 1) -> None:
        import flaxtrain as ft

        self.case, self.workdir = case, workdir
        arrays = {"image": case.image, "label": case.label}
        self.train = ft.data.batches(arrays, batch_size=case.batch_size, shuffle=True, seed=0)
        spec = ft.OptSpec("adamw", learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.trainer = ft.Trainer(
            case.model,
            spec,
            seed=0,
            hooks=[ft.TensorBoard(workdir)],
            log_every=case.log_every,
            steps_per_call=steps_per_call,
        )
        self.step = 0

    def run(self, steps: int) -> None:
        """Train for so many steps and wait for the result."""
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            self.trainer.fit(self.train, steps=steps)
        jax.block_until_ready(self.trainer.state)
        self.step += steps
        reached = None if self.trainer.state is None else int(self.trainer.state.step)
        if reached != self.step:
            raise SystemExit(f"fit is at step {reached}, not {self.step}")

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of some examples."""
        return np.asarray(self.trainer.predict({"image": image}))

    def accuracy(self, examples: int) -> float:
        """Return the accuracy on the first examples."""
        arrays = {"image": self.case.image[:examples], "label": self.case.label[:examples]}
        return float(self.trainer.evaluate(arrays, batch_size=BATCH_SIZE)["accuracy"])


def logged(directory: Path) -> set[str]:
    """Return the tags of the scalars in the event files below a directory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags: set[str] = set()
    for folder in {path.parent for path in directory.rglob("events.out.tfevents.*")}:
        tags |= set(EventAccumulator(str(folder)).Reload().Tags()["scalars"])
    return tags


def warm_up(loops: dict[str, Loop], folder: Path, steps: int) -> None:
    """Compile everything and check that all contenders do the same work.

    Raises:
        SystemExit: If one learns less than the baseline or logs fewer scalars.
    """
    for loop in loops.values():
        loop.run(steps)
    accuracies = {name: loop.accuracy(SAMPLE) for name, loop in loops.items()}
    tags = {name: logged(folder / name) for name in loops}
    for name in loops:
        if accuracies[name] < accuracies["baseline"] - 0.05:
            raise SystemExit(f"not the same work: accuracies {accuracies}")
        if len(tags[name]) < len(tags["baseline"]):
            raise SystemExit(f"not the same work: {name} logs {sorted(tags[name])}")
    print(f"accuracy after {steps} steps:", accuracies)
    print("scalars logged:", {name: len(found) for name, found in tags.items()})


def report(timings: Timings) -> dict[str, dict[str, Spread]]:
    """Print the table and return the ratios by contender and measure."""
    long = timings.lengths[-1]
    measures = {"call": timings.call, "step": timings.slope}
    print(f"\n{'ratio to baseline, median [p10 p90]':<28}{f'call of {long}':>14}", end="")
    print(f"{'one more step':>24}{'ms/step':>12}{'ms/call':>10}")
    ratios = {}
    for name in timings.names:
        ratios[name] = {
            key: timings.ratio(name, "baseline", of) for key, of in measures.items()
        }
        per_step, per_call = np.median(timings.slope(name)), np.median(timings.fixed(name))
        print(f"{name:<28}{ratios[name]['call']}  {ratios[name]['step']}", end="")
        print(f"{per_step * 1e3:>10.3f}{per_call * 1e3:>10.1f}")
    return ratios


def measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time one model, print the table and the verdict, and return everything."""
    case, steps = make_case(model), options.steps
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        designs = {"baseline": Design(), "A/A control": Design()}
        designs |= RIVALS if options.rivals else {}
        loops: dict[str, Loop] = {
            name: HandLoop(case, folder / name, design) for name, design in designs.items()
        }
        if not options.rivals and not options.baseline:
            loops["fit"] = Fit(case, folder / "fit")
        warm_up(loops, folder, 3 * steps)
        contenders = [Contender(name, loop.run) for name, loop in loops.items()]
        timings = interleave(contenders, (steps, 3 * steps), options.rounds)
    ratios = report(timings)
    allowed = limit(ratios["A/A control"]["call"], TARGET)
    passed = "fit" not in ratios or ratios["fit"]["call"].median <= allowed
    if "fit" in ratios:
        print(f"{model}: {'passed' if passed else 'FAILED'}, up to {allowed:.3f} is allowed")
    if allowed > TARGET:
        print(f"weak evidence: equal programs differ by more than {TARGET} here")
    plain = {name: {k: vars(v) for k, v in row.items()} for name, row in ratios.items()}
    blocks = {"names": timings.names, "lengths": timings.lengths}
    seconds = timings.seconds.tolist()
    return {"ratios": plain, "passed": passed, **blocks, "seconds": seconds}


def main() -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=("mlp", "cnn", "all"), default="all")
    parser.add_argument("--rounds", type=int, default=21, help="at least 21 for a verdict")
    parser.add_argument("--steps", type=int, default=200, help="short call; the long one is 3x")
    parser.add_argument("--baseline", action="store_true", help="baseline and control only")
    parser.add_argument("--rivals", action="store_true", help="baseline against other designs")
    parser.add_argument("--json", type=Path, help="write every number here")
    options = parser.parse_args()
    if options.rounds < 1 or options.steps < LOG_EVERY or options.steps % LOG_EVERY:
        parser.error(f"--rounds must be positive and --steps a multiple of {LOG_EVERY}")
    result: dict[str, Any] = {"before": environment(PACKAGES), "models": {}}
    print(result["before"])
    for model in ("mlp", "cnn") if options.model == "all" else (options.model,):
        result["models"][model] = measure(model, options)
        jax.clear_caches()
    result["after"] = environment(PACKAGES)
    print("load before and after:", result["before"]["load"], result["after"]["load"])
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    return 0 if all(model["passed"] for model in result["models"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
