"""What does a training step cost whose backbone is frozen?

    python benchmarks/frozen_cost.py
    python benchmarks/frozen_cost.py --width 512 --depth 8

FLOPs and temporary bytes, as the compiler counts them, of three compiled steps of one model
with BatchNorm and dropout: the whole model trained; the head alone, by `OptSpec(freeze=...)`;
and the head alone by hand, where `jax.grad` is asked for the head's gradient only and the
backbone runs in evaluation mode. All of them clip, apply AdamW and form loss, accuracy and the
norms of gradient, update and parameters. Nothing is timed. Exit status 1: the frozen step and
the one by hand are further apart than the bars below.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import flaxtrain as ft
from flaxtrain.tree import global_norm

FLOPS_BAR = 0.01
"""The step also counts, guards against NaN, and chooses between updating and rejecting: a few
operations for each example and each entry of the head, next to matrix products of the
backbone."""

BYTES_BAR = 0.05
"""The buffers of activations are the same; those of the head's gradient and update are live in
another order, and some scalars more are."""

ROWS, FEATURES, CLASSES = 64, 32, 10


class Cost(NamedTuple):
    """What the compiler says about one program."""

    flops: float
    temporary: int


class Backbone(nn.Module):
    """Dense layers with BatchNorm and dropout."""

    width: int
    depth: int

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        for _ in range(self.depth):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(self.width)(x))
            x = nn.Dropout(0.1, deterministic=not train)(nn.relu(x))
        return x


class Classifier(nn.Module):
    """A backbone and a head."""

    width: int
    depth: int

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = Backbone(self.width, self.depth, name="backbone")(x, train)
        return nn.Dense(CLASSES, name="head")(x)


def cost(function: Any, *args: Any) -> Cost:
    """Compile a function and ask what it costs."""
    compiled = jax.jit(function).lower(*args).compile()
    analysis: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    return Cost(float(analysis["flops"]), int(memory.temp_size_in_bytes))


def batch() -> dict[str, Any]:
    """Return one batch of made-up examples."""
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(ROWS, FEATURES)).astype("float32"),
        "label": rng.integers(0, CLASSES, ROWS).astype("int32"),
    }


def of_train_step(model: nn.Module, freeze: Any) -> Cost:
    """Return the cost of the library's step."""
    spec = ft.OptSpec("adamw", 1e-3, clip_norm=1.0, freeze=freeze)
    recipe = ft.make_recipe(model, spec, batch())
    return cost(lambda state, data: ft.train_step(recipe, state, data), recipe.init(0), batch())


def by_hand(model: nn.Module) -> Cost:
    """Return the cost of a step that differentiates the head only."""
    variables = model.init(jax.random.key(0), batch()["x"])
    params = dict(variables["params"])
    rest = {"batch_stats": variables["batch_stats"]}
    head = {"head": params.pop("head")}
    tx = ft.optim.adamw(1e-3)

    def step(head: Any, params: Any, opt_state: Any, rest: Any, data: Any) -> Any:
        def loss(head: Any) -> Any:
            logits: Any = model.apply({"params": {**params, **head}, **rest}, data["x"])
            logs = jax.nn.log_softmax(logits)
            losses = -jnp.take_along_axis(logs, data["label"][:, None], axis=1)
            correct = jnp.argmax(logits, axis=-1) == data["label"]
            return jnp.mean(losses), jnp.mean(correct)

        (value, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(head)
        norm = global_norm(grads)
        grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, 1.0 / norm), grads)
        updates, opt_state = tx.update(grads, opt_state, head)
        norms = norm, global_norm(updates), global_norm(head)
        return ft.optim.apply_updates(head, updates), opt_state, (value, accuracy, norms)

    return cost(step, head, params, tx.init(head), rest, batch())


def costs(width: int, depth: int) -> dict[str, Cost]:
    """Return the costs of the three steps."""
    model = Classifier(width, depth)
    return {
        "full": of_train_step(model, ()),
        "frozen": of_train_step(model, ["backbone/**"]),
        "by hand": by_hand(model),
    }


def excess(found: dict[str, Cost]) -> Cost:
    """Return what freezing costs more than the step by hand, relative to that."""
    frozen, hand = found["frozen"], found["by hand"]
    return Cost(frozen.flops / hand.flops - 1, frozen.temporary / hand.temporary - 1)  # type: ignore[arg-type]


def main() -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=6)
    options = parser.parse_args()
    found = costs(options.width, options.depth)
    print(f"jax {jax.__version__}, {jax.default_backend()}, {ROWS} examples")
    for name, (flops, temporary) in found.items():
        print(f"{name:8} {flops:15,.0f} FLOPs {temporary:12,} temporary bytes")
    more = excess(found)
    print(f"frozen relative to by hand: FLOPs {more.flops:+.2%}, bytes {more.temporary:+.2%}")
    return 0 if abs(more.flops) <= FLOPS_BAR and abs(more.temporary) <= BYTES_BAR else 1


if __name__ == "__main__":
    sys.exit(main())
