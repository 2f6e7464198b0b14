"""The reference document, executed through the door.

`reference.md` is a page about Optax as people find it: 28 blocks of Python, 90 statements at
their top level. Every block runs as it is written, with `import optax` meaning the door and the
names that the page leaves undefined supplied here; then the effect that it promises is
asserted. The blocks are found by parsing the page, so that none can be left out.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import io
import re
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain import tree
from flaxtrain.compat import optax as door
from tests.runs import counted

PAGE = (Path(__file__).parent / "reference.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
HEADINGS = [
    re.findall(r"^#+ (.*)$", PAGE[: PAGE.index(block)], re.MULTILINE)[-1] for block in BLOCKS
]

# What is as written but is not what the page says it is: where, and why.
NOT_AS_PROMISED = {
    "Gradient Accumulation: accumulator": "scaling by 1/4 accumulates nothing, and Adam does "
    "not see it; MultiSteps in the same block does what is meant",
    "Selective Parameter Updates: optimizer": "masked passes the raw gradient on, as in Optax, "
    "and warns; selective_transform freezes",
    "Mixed Precision Training: train_step": "the division is by hand and no overflow is skipped"
    "; the loss scale of the same block does both",
    "Check for NaN/Inf: check_grads": "has an `if` about values: runs outside jit only",
    "Check Gradient Statistics: log_gradient_stats": "formats values: runs outside jit only",
    "Monitor Learning Rate: get_lr_from_opt_state": "finds the rate of an outermost "
    "inject_hyperparams only; ft.get_lr finds all",
}


class TinyModel(nn.Module):
    """Two layers and a norm, so that there are kernels, biases and a scale."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(8)(x)
        x = nn.LayerNorm()(x)
        return nn.Dense(2)(nn.tanh(x))


KEY = jax.random.key(0)
X = jax.random.normal(KEY, (16, 4))
Y = jnp.stack([X[:, 0] - X[:, 1], X[:, 2]], axis=1)
MODEL = TinyModel()
VARIABLES = MODEL.init(KEY, X)
BATCHES = [{"x": X[i : i + 4], "y": Y[i : i + 4]} for i in range(0, 16, 4)]


def loss_of(variables: Any, batch: Any = None) -> jax.Array:
    batch = {"x": X, "y": Y} if batch is None else batch
    return jnp.mean((MODEL.apply(variables, batch["x"]) - batch["y"]) ** 2)


def _jax_of_then() -> types.ModuleType:
    """Today's jax with the three functions of the page that it no longer has."""
    shim = types.ModuleType("jax")
    shim.__dict__.update({name: getattr(jax, name) for name in dir(jax) if name[:2] != "__"})
    shim.tree_map = jax.tree.map
    shim.tree_leaves = jax.tree.leaves
    shim.tree_leaves_with_path = jax.tree_util.tree_leaves_with_path
    return shim


def _import(name: str, *rest: Any) -> Any:
    if name == "optax":
        return door
    # `import jax` binds the shim; `import jax.numpy as jnp` takes `numpy` from it.
    if name == "jax" or name.startswith("jax."):
        return JAX
    return builtins.__import__(name, *rest)


JAX = _jax_of_then()


def supplied() -> dict[str, Any]:
    """The names that the page uses without defining them."""
    return {
        "__builtins__": {**vars(builtins), "__import__": _import},
        "jax": JAX,
        "jnp": jnp,
        "optax": door,
        "create_model": lambda: MODEL,
        "rng": KEY,
        "dummy_input": X[:1],
        "num_epochs": 2,
        "dataloader": BATCHES,
        "model": MODEL,
        "params": VARIABLES,
        "loss_fn": loss_of,
        "schedule": door.linear_schedule(1e-3, 0.0, 100),
        "learning_rate_schedule": door.constant_schedule(1e-3),
        "train_step": None,  # section 7 uses the function of the block before
        "opt_state": None,
    }


def execute(block: int, names: dict[str, Any]) -> None:
    """Runs a block in a namespace, one statement after the other."""
    for statement in ast.parse(BLOCKS[block]).body:
        code = compile(ast.Module([statement], []), f"reference.md, block {block}", "exec")
        exec(code, names)
        STATEMENTS_RUN.add((block, statement.lineno))


STATEMENTS_RUN: set[tuple[int, int]] = set()


def jitted_update(tx: Any) -> Callable[..., Any]:
    return jax.jit(lambda g, s, p: tx.update(g, s, p))


def steps(tx: Any, params: Any, grads: Any, count: int = 1) -> Any:
    """Returns the parameters after some jitted updates with the same gradients."""
    state, update = tx.init(params), jitted_update(tx)
    for _ in range(count):
        updates, state = update(grads, state, params)
        params = door.apply_updates(params, updates)
    return params


def first_update(tx: Any, params: Any, grads: Any) -> Any:
    return jitted_update(tx)(grads, tx.init(params), params)[0]


def ones(tree: Any) -> Any:
    return jax.tree.map(jnp.ones_like, tree)


def close(a: Any, b: Any, rtol: float = 1e-5) -> None:
    """Both in float32: a few roundings apart."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-9), a, b)


def learns(tx: Any, count: int = 150) -> bool:
    """Whether the loss of the small model falls to less than a third."""

    @jax.jit
    def run(variables: Any) -> Any:
        def one(carry: Any, _: Any) -> Any:
            p, s = carry
            updates, s = tx.update(jax.grad(loss_of)(p), s, p)
            return (door.apply_updates(p, updates), s), None

        return jax.lax.scan(one, (variables, tx.init(variables)), None, count)[0][0]

    return bool(loss_of(run(VARIABLES)) < loss_of(VARIABLES) / 3)


SCALAR, ONE = {"w": jnp.float32(1.0)}, {"w": jnp.float32(1.0)}


def update_of_one(tx: Any) -> float:
    """The first update of a parameter 1 with gradient 1."""
    return float(first_update(tx, SCALAR, ONE)["w"])


# One function for each block, in the order of the page: what the block promises.


def decay_is_scaled_by_the_rate(n: dict[str, Any]) -> None:
    np.testing.assert_allclose(update_of_one(n["optimizer"]), -(1 + 0.01) * 1e-3, rtol=1e-5)
    # Clipped to norm 1 first, which Adam's first step does not see.
    steep = first_update(n["optimizer"], SCALAR, {"w": jnp.float32(1e3)})
    np.testing.assert_allclose(steep["w"], -1.01e-3, rtol=1e-5)


def the_training_step_lowers_the_loss(n: dict[str, Any]) -> None:
    batch = {"x": jnp.ones(5), "y": jnp.arange(10.0)}
    params, state, losses = n["params"], n["opt_state"], []
    step = jax.jit(n["train_step"])
    for _ in range(20):
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), params, n["params"])
    # Adam moves every entry by about its rate, 20 times.
    assert 0.015 < moved["b"] < 0.021 and params["w"].shape == (10, 5)


def adam_and_its_relatives(n: dict[str, Any]) -> None:
    np.testing.assert_allclose(update_of_one(n["adam"]), -1e-3, rtol=1e-5)
    np.testing.assert_allclose(update_of_one(n["adamw"]), -1.01e-3, rtol=1e-5)
    wide = {"w": jnp.ones((256, 256)), "v": jnp.ones(256)}
    state = n["adafactor"].init(wide)
    sizes = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert sizes < 256 * 256 / 50  # rows and columns, not entries
    assert first_update(n["adafactor"], wide, ones(wide))["w"].max() < 0
    accumulates_four_batches(n["adamw_accum"], door.adamw(1e-3, weight_decay=0.01))


def accumulates_four_batches(tx: Any, inner: Any) -> None:
    """Moves at every fourth call only, and then as with the one large batch."""
    params, state, update = VARIABLES, tx.init(VARIABLES), jitted_update(tx)
    for number, batch in enumerate(BATCHES):
        updates, state = update(jax.grad(loss_of)(VARIABLES, batch), state, params)
        before, params = params, door.apply_updates(params, updates)
        moved = any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), before, params)))
        assert moved == (number == 3)
    # The mean over four batches of four is the mean over the sixteen, up to the order of sums.
    whole = steps(inner, VARIABLES, jax.grad(loss_of)(VARIABLES))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), params, whole)


def sgd_and_momentum(n: dict[str, Any]) -> None:
    np.testing.assert_allclose(update_of_one(n["sgd"]), -0.1, rtol=1e-6)
    np.testing.assert_allclose(update_of_one(n["sgd_momentum"]), -0.1, rtol=1e-6)
    np.testing.assert_allclose(update_of_one(n["nesterov"]), -0.19, rtol=1e-6)
    np.testing.assert_allclose(steps(n["sgd_momentum"], SCALAR, ONE, 2)["w"], 1 - 0.1 - 0.19)


def advanced_optimizers(n: dict[str, Any]) -> None:
    np.testing.assert_allclose(update_of_one(n["rmsprop"]), -1e-3 / np.sqrt(0.1), rtol=1e-5)
    np.testing.assert_allclose(update_of_one(n["lion"]), -1e-4 * (1 + 1e-3), rtol=1e-5)
    slots = n["lion"].init(VARIABLES)
    assert (
        len(jax.tree.leaves(slots)) == len(jax.tree.leaves(VARIABLES)) + 1
    )  # one, and a count
    np.testing.assert_allclose(update_of_one(n["lamb"]), -1e-3, rtol=1e-5)  # ratio 1/1.01
    np.testing.assert_allclose(update_of_one(n["adagrad"]), -0.1 / np.sqrt(1.1), rtol=1e-5)
    for name in ("shampoo", "sm3", "adagrad"):
        assert learns(n[name]), name
    table = {"w": jnp.ones((1000, 10))}
    accumulators = n["sm3"].init(table)
    # A row and a column of sums, beside the momentum.
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(accumulators))
    assert sizes == [10, 1000, 10_000]


def takes_the_values(schedule: Any, values: dict[int, float]) -> None:
    for count, value in values.items():
        np.testing.assert_allclose(schedule(count), value, rtol=2e-5, atol=1e-12)
        np.testing.assert_allclose(jax.jit(schedule)(count), value, rtol=2e-5, atol=1e-12)


def constant_schedules(n: dict[str, Any]) -> None:
    takes_the_values(n["constant"], {0: 1e-3, 10**6: 1e-3})
    takes_the_values(n["piecewise"], {999: 1e-3, 1000: 1e-4, 4999: 1e-4, 5000: 1e-5})


def decaying_schedules(n: dict[str, Any]) -> None:
    takes_the_values(n["exp_decay"], {0: 1e-3, 500: 1e-3 * 0.96**0.5, 2000: 1e-3 * 0.96**2})
    takes_the_values(n["poly_decay"], {0: 1e-3, 5000: 5.05e-4, 10_000: 1e-5, 20_000: 1e-5})
    takes_the_values(n["cosine_decay"], {0: 1e-3, 5000: 5.5e-4, 10_000: 1e-4, 20_000: 1e-4})


WARMUP_COSINE = {0: 0.0, 500: 5e-4, 1000: 1e-3, 5500: 5.05e-4, 10_000: 1e-5, 20_000: 1e-5}


def warming_schedules(n: dict[str, Any]) -> None:
    takes_the_values(n["warmup_linear"], {0: 0.0, 500: 5e-4, 1000: 1e-3, 2000: 1e-3})
    takes_the_values(n["warmup_cosine"], WARMUP_COSINE)
    takes_the_values(n["warmup_exp"], {0: 0.0, 500: 5e-4, 1000: 1e-3, 11_000: 9.6e-4})


def a_function_is_a_schedule(n: dict[str, Any]) -> None:
    values = {0: 0.0, 500: 5e-4, 1000: 1e-3, 2000: 9.6e-4}
    takes_the_values(lambda step: n["custom_schedule"](jnp.asarray(step)), values)
    tx = n["optimizer"]
    state, update = tx.init(SCALAR), jitted_update(tx)
    for count in range(3):
        updates, state = update(ONE, state, SCALAR)
        np.testing.assert_allclose(updates["w"], -1e-6 * count, rtol=1e-4, atol=1e-12)
        # The rate that is read back is the one that was applied.
        np.testing.assert_allclose(ft.get_lr(state, tx), 1e-6 * count, rtol=1e-4)


def clipping_bounds_hold(n: dict[str, Any]) -> None:
    grads = {"a": jnp.array([3.0, -40.0]), "b": jnp.array([0.5])}
    clipped = first_update(n["clip_norm"], grads, grads)
    np.testing.assert_allclose(tree.global_norm(clipped), 1.0, rtol=1e-6)
    np.testing.assert_allclose(clipped["a"][1] / clipped["a"][0], -40 / 3, rtol=1e-5)
    small = jax.tree.map(lambda g: g / 100, grads)
    close(first_update(n["clip_norm"], grads, small), small)
    clipped = first_update(n["clip_value"], grads, grads)
    close(clipped, {"a": jnp.array([1.0, -1.0]), "b": jnp.array([0.5])})
    weights, steep = {"w": 2 * jnp.ones((3, 2))}, {"w": 100 * jnp.ones((3, 2))}
    adaptive = first_update(n["adaptive_clip"], weights, steep)["w"]
    norms = jnp.linalg.norm(adaptive, axis=0) / jnp.linalg.norm(weights["w"], axis=0)
    np.testing.assert_allclose(norms, 0.01, rtol=1e-5)


def accumulation(n: dict[str, Any]) -> None:
    accumulates_four_batches(n["optimizer"], door.adam(1e-3))
    # NOT_AS_PROMISED: a quarter of the gradient, at every call; Adam divides it out again.
    grads = jax.grad(loss_of)(VARIABLES)
    a, b = (steps(tx, VARIABLES, grads) for tx in (n["accumulator"], door.adam(1e-3)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


def transformations(n: dict[str, Any]) -> None:
    assert update_of_one(n["scale"]) == pytest.approx(-1e-3)  # the value as given
    params, grads = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([0.0, 2.0])}
    trusted = first_update(n["scale_by_trust_ratio"], params, grads)["w"]
    np.testing.assert_allclose(trusted, [0.0, 5.0], rtol=1e-6)  # as long as the parameter
    rms = first_update(n["scale_by_rms"], params, grads)["w"]
    np.testing.assert_allclose(rms, [0.0, 1 / np.sqrt(0.1)], rtol=1e-5)
    adam = first_update(n["scale_by_adam"], params, grads)["w"]
    np.testing.assert_allclose(adam, [0.0, 1.0], rtol=1e-5)
    zeros = {"w": jnp.zeros(10_000)}
    state, update = n["add_noise"].init(zeros), jitted_update(n["add_noise"])
    variances = []
    for _ in range(2):
        noise, state = update(zeros, state, zeros)
        variances.append(float(jnp.var(noise["w"])))
    # eta / t^gamma; the variance of 10,000 draws is known to 2 % or so.
    np.testing.assert_allclose(variances, [0.01, 0.01 / 2**0.55], rtol=0.06)


def biases_and_norms_are_not_decayed(n: dict[str, Any]) -> None:
    decayed = first_update(n["weight_decay"], VARIABLES, ones(VARIABLES))
    close(decayed, jax.tree.map(lambda p: 1 + 0.01 * p, VARIABLES))
    # With zero gradients only the decay moves anything.
    start = ones(VARIABLES)
    moved = first_update(n["optimizer"], start, jax.tree.map(jnp.zeros_like, start))
    for name, update in tree.named_leaves(moved):
        expected = -1e-5 if name.endswith("kernel") else 0.0
        np.testing.assert_allclose(update, expected, rtol=1e-5), name
    assert {name.split("/")[-1] for name, _ in tree.named_leaves(moved)} == {
        "kernel",
        "bias",
        "scale",
    }


PARTS = {
    "encoder": {"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}},
    "decoder": {"Dense_0": {"kernel": jnp.ones((2, 2))}},
    "embeddings": {"table": jnp.ones((4, 2))},
}
TWO_PARTS = {"embedding": PARTS["embeddings"], "decoder": PARTS["decoder"]}


def groups_have_their_own_rates(n: dict[str, Any]) -> None:
    assert n["lr_multipliers"](TWO_PARTS) == {"embedding": 0.1, "decoder": 1.0}
    for params in (TWO_PARTS, {"params": TWO_PARTS}):
        updates = first_update(n["optimizer"], params, ones(params))
        updates = updates.get("params", updates)
        # A rate of its own, and the factor of its label.
        np.testing.assert_allclose(updates["embedding"]["table"], -1e-4 * 0.1, rtol=1e-5)
        np.testing.assert_allclose(updates["decoder"]["Dense_0"]["kernel"], -1e-3, rtol=1e-5)


def what_is_frozen_does_not_move(n: dict[str, Any]) -> None:
    params = {key: PARTS[key] for key in ("encoder", "decoder")}
    trainable = n["trainable_mask"](params)
    # NOT_AS_PROMISED: masked has Optax's numbers, and says so once.
    with pytest.warns(UserWarning, match="raw gradient"):
        n["optimizer"].init(params)
    updates = first_update(n["optimizer"], params, ones(params))
    close(updates["encoder"], ones(params["encoder"]))
    freeze_mask = jax.tree.map(lambda train: not train, trainable)
    tx = door.selective_transform(door.adam(1e-3), freeze_mask=freeze_mask)
    after = steps(tx, params, ones(params), 3)
    jax.tree.map(np.testing.assert_array_equal, after["encoder"], params["encoder"])
    np.testing.assert_allclose(after["decoder"]["Dense_0"]["kernel"], 1 - 3e-3, rtol=1e-5)
    slots = [leaf.size for leaf in jax.tree.leaves(tx.init(params)) if leaf.ndim]
    assert slots == [4, 4]  # mu and nu of the decoder, nothing of the encoder


def nan_becomes_zero(n: dict[str, Any]) -> None:
    grads = {"a": jnp.array([jnp.nan, 2.0]), "b": jnp.array([1.0])}
    close(first_update(n["zero_nans"], grads, grads)["a"], jnp.array([0.0, 2.0]))
    update = first_update(n["optimizer"], ones(grads), grads)
    np.testing.assert_allclose(update["a"], [-1e-5, -1.01e-3], rtol=1e-5)


def scaled_gradients_are_unscaled(n: dict[str, Any]) -> None:
    scaled, _ = jax.jit(n["train_step"])(VARIABLES, n["optimizer"].init(VARIABLES), BATCHES[0])
    plain = steps(n["optimizer"], VARIABLES, jax.grad(loss_of)(VARIABLES, BATCHES[0]))
    close(scaled, plain, rtol=1e-4)
    # "Dynamic loss scaling": the object does it, and halves when a gradient overflows.
    scale = n["loss_scale"]
    tiny = {"w": jnp.array(1e-8, jnp.float16)}
    assert tiny["w"] == 0.0  # lost in float16, unless it is scaled while it is computed
    grad = jax.grad(lambda w: scale.scale(w * 1e-8))(jnp.float32(1.0)).astype(jnp.float16)
    kept = scale.unscale({"w": grad.astype(jnp.float32)})["w"]
    np.testing.assert_allclose(kept, 1e-8, rtol=1e-3)
    assert scale.adjust(finite=jnp.array(False)).value == 2.0**14


def every_part_of_the_chain_acts(n: dict[str, Any]) -> None:
    tx = n["custom_adam"]
    state, update = tx.init(SCALAR), jitted_update(tx)
    for count in range(3):
        rate = 1e-3 * (1 - count / 100)
        updates, state = update({"w": jnp.float32(50.0)}, state, SCALAR)
        np.testing.assert_allclose(updates["w"], -rate * 1.01, rtol=1e-5)
        np.testing.assert_allclose(ft.get_lr(state, tx), rate, rtol=1e-5)


def groups_have_their_own_optimizers(n: dict[str, Any]) -> None:
    tx = n["optimizer"]
    for params in (PARTS, {"params": PARTS}):
        after = steps(tx, params, ones(params), 2)
        after = after.get("params", after)
        np.testing.assert_allclose(
            after["encoder"]["Dense_0"]["bias"], 1 - 0.01 * 2.9, rtol=1e-6
        )
        np.testing.assert_allclose(after["decoder"]["Dense_0"]["kernel"], 1 - 2e-3, rtol=1e-5)
        alone = steps(door.adafactor(1e-3), PARTS["embeddings"], ones(PARTS["embeddings"]), 2)
        close(after["embeddings"], alone)


def the_loop_trains(n: dict[str, Any]) -> None:
    params, state = VARIABLES, door.adam(1e-3).init(VARIABLES)
    for _ in range(2):
        for batch in BATCHES:
            updates, state = jitted_update(door.adam(1e-3))(
                jax.grad(loss_of)(params, batch), state, params
            )
            params = door.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), n["params"], params)
    assert loss_of(n["params"]) < loss_of(VARIABLES)


def the_logged_rate_is_the_applied_one(n: dict[str, Any]) -> None:
    lines = n["printed"].splitlines()
    assert len(lines) == len(BATCHES)
    assert lines[3].startswith("Step 3, LR: 0.000003, Loss: ")
    takes_the_values(n["schedule"], WARMUP_COSINE)
    # The loop calls the train_step of the block before, which looks its optimizer up by name.
    params, state = namespace(19)["params"], n["optimizer"].init(VARIABLES)
    for batch in BATCHES:
        grads = jax.grad(loss_of)(params, batch)
        updates, state = jitted_update(n["optimizer"])(grads, state, params)
        params = door.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), n["params"], params)
    np.testing.assert_allclose(ft.get_lr(n["opt_state"], n["optimizer"]), 3e-6, rtol=1e-5)
    assert n["current_lr"] == pytest.approx(float(ft.get_lr(n["opt_state"], n["optimizer"])))


def the_accumulating_loop_moves_every_fourth_time(n: dict[str, Any]) -> None:
    params, state = n["params"], n["opt_state"]
    start = params
    for number, batch in enumerate(BATCHES):
        before = params
        params, state, _ = n["train_step"](params, state, batch)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), before, params)
        assert all(jax.tree.leaves(same)) == (number < 3)
    mean = jax.tree.map(
        lambda *g: sum(g) / 4, *(jax.grad(loss_of)(start, batch) for batch in BATCHES)
    )
    whole = steps(door.adamw(1e-3, weight_decay=0.01), start, mean)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), params, whole)


def recommended_configurations(n: dict[str, Any]) -> None:
    assert update_of_one(n["image_optimizer"]) == pytest.approx(-0.19)
    assert update_of_one(n["large_scale_optimizer"]) == pytest.approx(-1e-4 * 1.001)
    assert update_of_one(n["nlp_optimizer"]) == 0.0  # warm-up starts at 0
    np.testing.assert_allclose(steps(n["nlp_optimizer"], SCALAR, ONE, 2)["w"], 1 - 1.01e-6)
    after = steps(n["finetune_optimizer"], SCALAR, ONE, 2)["w"]
    rate = 1e-2 * 0.96 ** (1 / 1000)
    np.testing.assert_allclose(after, 1 - 1e-2 - rate * 1.9, rtol=1e-6)
    for name in ("image_optimizer", "finetune_optimizer"):
        assert learns(n[name]), name


def statistics_are_those_of_the_gradient(n: dict[str, Any]) -> None:
    close(n["grads"], jax.grad(loss_of)(VARIABLES))
    stats = jax.jit(ft.metrics.gradient_stats)(n["grads"])
    norm, mean, _ = (float(line.split(": ")[1]) for line in n["printed"].splitlines())
    # The page prints four and six decimals; its mean is one of means, leaf by leaf.
    np.testing.assert_allclose(stats["norm"], norm, atol=1e-4)
    leaves = jax.tree.leaves(n["grads"])
    np.testing.assert_allclose(np.mean([leaf.mean() for leaf in leaves]), mean, atol=1e-6)
    entries = np.concatenate([np.ravel(leaf) for leaf in leaves])
    np.testing.assert_allclose(stats["mean"], entries.mean(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(stats["std"], entries.std(), rtol=1e-5)


def nan_is_found_by_name(n: dict[str, Any]) -> None:
    bad = {"a": jnp.ones(2), "b": {"w": jnp.array([1.0, jnp.nan, jnp.inf])}}
    assert n["check_grads"](ones(bad)) is True
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert n["check_grads"](bad) is False
    assert "'b'" in printed.getvalue() and "'w'" in printed.getvalue()
    report = ft.metrics.nonfinite_report(bad)
    assert report.names() == {"b/w": 2}


def the_rate_is_read_from_the_state(n: dict[str, Any]) -> None:
    read = n["get_lr_from_opt_state"]
    outermost = door.inject_hyperparams(door.adam)(learning_rate=0.25)
    assert read(outermost.init(SCALAR), outermost) == 0.25
    for tx in (
        outermost,
        door.adam(0.25),
        door.adam(lambda count: 0.25),
        door.chain(door.clip(1.0), outermost),
        door.MultiSteps(door.adam(0.25), 1),
    ):
        _, state = jitted_update(tx)(ONE, tx.init(SCALAR), SCALAR)
        assert ft.get_lr(state, tx) == 0.25, tx
        if tx is not outermost:  # NOT_AS_PROMISED
            assert read(state, tx) is None


def best_practices(n: dict[str, Any]) -> None:
    takes_the_values(n["schedule"], {0: 0.0, 1000: 1e-3, 10_000: 0.0})
    after = steps(n["optimizer"], SCALAR, ONE, 2)["w"]
    np.testing.assert_allclose(after, 1 - 1e-6 * 1.01, rtol=1e-7)
    made = [
        statement
        for statement in ast.parse(BLOCKS[26]).body
        if ast.unparse(statement).startswith("optimizer =")
    ]
    names = supplied() | {"schedule": n["schedule"]}
    for statement in made:
        exec(compile(ast.Module([statement], []), "reference.md", "exec"), names)
        updates = first_update(names["optimizer"], VARIABLES, ones(VARIABLES))
        assert jax.tree.structure(updates) == jax.tree.structure(VARIABLES)
        assert max(float(jnp.abs(u).max()) for u in jax.tree.leaves(updates)) <= 1.001e-3


def ranges_are_accepted(n: dict[str, Any]) -> None:
    for name, bounds in n["lr_ranges"].items():
        factory = getattr(door, name.lower())
        for rate in bounds:
            assert ft.get_lr(*_state_and(factory(rate))) == pytest.approx(rate)
    for decay in n["weight_decay_range"]:
        assert update_of_one(door.add_decayed_weights(decay)) == pytest.approx(1 + decay)
    for norm in n["clip_norm_range"]:
        clipped = first_update(door.clip_by_global_norm(norm), SCALAR, {"w": jnp.float32(99.0)})
        assert clipped["w"] == pytest.approx(norm)


def _state_and(tx: Any) -> tuple[Any, Any]:
    return tx.init(SCALAR), tx


PROMISES: list[Callable[[dict[str, Any]], None]] = [
    decay_is_scaled_by_the_rate,
    the_training_step_lowers_the_loss,
    adam_and_its_relatives,
    sgd_and_momentum,
    advanced_optimizers,
    constant_schedules,
    decaying_schedules,
    warming_schedules,
    a_function_is_a_schedule,
    clipping_bounds_hold,
    accumulation,
    transformations,
    biases_and_norms_are_not_decayed,
    groups_have_their_own_rates,
    what_is_frozen_does_not_move,
    nan_becomes_zero,
    scaled_gradients_are_unscaled,
    every_part_of_the_chain_acts,
    groups_have_their_own_optimizers,
    the_loop_trains,
    the_logged_rate_is_the_applied_one,
    the_accumulating_loop_moves_every_fourth_time,
    recommended_configurations,
    statistics_are_those_of_the_gradient,
    nan_is_found_by_name,
    the_rate_is_read_from_the_state,
    best_practices,
    ranges_are_accepted,
]
# Blocks that go on where another one ended.
GOES_ON = {20: 19, 21: 20}
# Names that a block needs in another shape than the page's other blocks.
GIVEN = {13: {"params": TWO_PARTS}}


def namespace(block: int) -> dict[str, Any]:
    """Returns the names that there are after a block, and `printed`, what it printed."""
    names = namespace(GOES_ON[block]) if block in GOES_ON else supplied()
    names |= GIVEN.get(block, {})
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        execute(block, names)
    names["printed"] = printed.getvalue()
    return names


def test_the_page_has_28_blocks_and_90_statements() -> None:
    assert len(BLOCKS) == len(PROMISES) == 28
    assert sum(len(ast.parse(block).body) for block in BLOCKS) == 90
    for place in NOT_AS_PROMISED:
        heading, name = place.split(": ")
        defined = {
            target.id if isinstance(target, ast.Name) else target
            for i, block in enumerate(BLOCKS)
            if HEADINGS[i].startswith(heading) or heading in HEADINGS[i]
            for statement in ast.parse(block).body
            for target in [getattr(statement, "name", None), *getattr(statement, "targets", ())]
        }
        assert name in defined, place


@pytest.mark.parametrize("block", range(28), ids=lambda i: f"{i}-{PROMISES[i].__name__}")
def test_every_block_runs_and_does_what_it_promises(block: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        names = namespace(block)
    run = {line for where, line in STATEMENTS_RUN if where == block}
    assert run == {statement.lineno for statement in ast.parse(BLOCKS[block]).body}
    PROMISES[block](names)


def optimizers() -> list[tuple[int, str]]:
    """Returns `(block, name)` of every transformation that the page makes."""
    found = []
    for i, block in enumerate(BLOCKS):
        for statement in ast.parse(block).body:
            text = ast.unparse(statement)
            if isinstance(statement, ast.Assign) and "= optax." in text:
                name = text.split(" =")[0]
                if not re.search(r"= optax\.\w*(schedule|decay|scale_gradient)\(", text):
                    found.append((i, name))
    return found


@pytest.mark.parametrize(("block", "name"), sorted(set(optimizers())), ids=str)
def test_every_optimizer_of_the_page_updates_a_linen_tree_under_jit(
    block: int, name: str
) -> None:
    tx = namespace(block)[name]
    by_part = block in (13, 14, 18)
    params = {13: TWO_PARTS, 18: PARTS}.get(
        block, {k: PARTS[k] for k in ("encoder", "decoder")}
    )
    params = {"params": params} if by_part else VARIABLES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what `masked` says is tested above
        state, (update, traces) = tx.init(params), counted(tx.update)
    grads = jax.tree.map(lambda p: 0.1 * p + 0.01, params)
    for _ in range(2):
        updates, new_state = update(grads, state, params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        assert jax.tree.structure(new_state) == jax.tree.structure(state)
        assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))
        params, state = door.apply_updates(params, updates), new_state
    assert len(traces) == 1
