"""One row per optimizer and transformation: all laws and parity tests run over this table.

A row builds an optimizer from a library, ours or optax: `build(lib, learning_rate)`. So the
same line is run with both, and a new optimizer gets all tests by adding a row. A
transformation that is no optimizer by itself is chained with one.

A capability that a row lacks carries the reason, and a proof: a function that fails unless
optax or the mathematics lacks it too. Nothing is skipped by name inside a test.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flaxtrain import optim
from tests import gradients

Builder = Callable[[ModuleType, Any], Any]

CAPABILITIES = ("keeps_bfloat16", "bitwise", "complex_parity", "prints")
"""What a row is expected to do unless it says why not (see `Lack`):

keeps_bfloat16: bfloat16 parameters give bfloat16 updates and slots.
bitwise: under jit, every bit of 1,000 updates is optax's.
complex_parity: complex leaves agree with optax's.
prints: `eval(repr(tx)) == tx`.
"""


@dataclass(frozen=True)
class Lack:
    """Why a row lacks a capability, and a function that raises unless it has to."""

    reason: str
    proof: Callable[[Case], None]


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        name: unique, a readable call.
        build: makes the optimizer from `flaxtrain.optim` or `optax` and a learning rate.
        learning_rate: with which the parabola converges in 1,000 steps.
        rosenbrock: with which the Rosenbrock valley converges in 20,000 steps.
        weight_decay: the decay of the matrix `w`.
        decays_rest: whether the other leaves decay as well.
        needs_params: `update` fails without parameters.
        lacks: capabilities that the row does not have.
    """

    name: str
    build: Builder
    learning_rate: float = 0.1
    rosenbrock: float = 1e-3
    weight_decay: float = 0.0
    decays_rest: bool = False
    needs_params: bool = False
    lacks: Mapping[str, Lack] = field(default_factory=dict)

    def ours(self, learning_rate: Any = 1e-2) -> optim.GradientTransformation:
        return self.build(optim, learning_rate)

    def recorded(self, steps: int, dtype: Any) -> tuple[Any, Any]:
        """Returns the parameters and gradients on which both libraries are compared."""
        has_complex = dtype != jnp.bfloat16 and "complex_parity" not in self.lacks
        return (
            gradients.cast(gradients.params(complex_leaf=has_complex), dtype),
            gradients.cast(gradients.gradients(steps, complex_leaf=has_complex), dtype),
        )

    def rounding(self, float32: float) -> float:
        """Returns a tolerance: `float32`, or where float32 parameters have slots in bfloat16,
        one last place of those (a single other rounding can flip it)."""
        slots = jax.tree.leaves(self.ours().init({"w": jnp.ones(1), "rest": {}}))
        return 8e-3 if any(slot.dtype == jnp.bfloat16 for slot in slots) else float32

    def judge(self, learning_rate: Any = 1e-2) -> optax.GradientTransformation:
        return self.build(optax, learning_rate)


def halving(count: Any) -> Any:
    """A schedule for learning rates, as a factor: 1 at the start, 1/2 after 1,000 updates."""
    return 1.0 / (1.0 + count / 1000.0)


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


# A prefix of every tree that the tests use: trees of parameters have the keys `w` and `rest`.
PREFIX_MASK = {"w": True, "rest": False}


def _optax_changes_dtype_too(case: Case) -> None:
    tx, params = case.judge(), {"w": jnp.ones(3, jnp.bfloat16), "rest": {}}
    updates, state = tx.update(params, tx.init(params), params)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves((updates, state))}
    assert dtypes - {"bfloat16", "int32"}, f"optax keeps bfloat16 in {case.name}"


def _optax_drops_it(case: Case) -> None:
    tx, params = case.judge(), {"w": jnp.full(3, 2j), "rest": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's ComplexWarning is the fault itself
        _, state = tx.update(params, tx.init(params), params)
    slots = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (3,)]
    assert any(not jnp.iscomplexobj(slot) for slot in slots)


def _division_differs_from_one_factor(case: Case) -> None:
    """For x = 3, |g| = 7, max_norm = 1: (x / 7) * 1 and x * (1 / 7) round differently."""
    x, norm = jnp.float32(3.0), jnp.float32(7.0)
    assert x / norm != x * (1 / norm)


def _a_function_has_no_source_form(case: Case) -> None:
    """What is passed in is a function, and Python prints those by address."""
    assert "<function" in repr(case.judge) or "<bound method" in repr(case.judge)
    assert "<function" in repr(case.ours())


PROMOTES = Lack(
    "a float32 array takes part, and wider wins as in optax", _optax_changes_dtype_too
)
IMAGINARY = Lack(
    "optax drops the imaginary part of a slot that is stored in a real dtype", _optax_drops_it
)
ONE_FACTOR = Lack(
    "one factor multiplies all, no division per entry", _division_differs_from_one_factor
)
FUNCTION = Lack("an argument is a plain function", _a_function_has_no_source_form)

CASES: tuple[Case, ...] = (
    Case("sgd", lambda o, lr: o.sgd(lr), rosenbrock=2e-3),
    Case("sgd(momentum)", lambda o, lr: o.sgd(lr, momentum=0.9), 0.02, 5e-4),
    Case("sgd(nesterov)", lambda o, lr: o.sgd(lr, 0.9, nesterov=True), 0.02, 5e-4),
    Case(
        "sgd(accumulator_dtype=bfloat16)",
        lambda o, lr: o.sgd(lr, 0.9, accumulator_dtype=jnp.bfloat16),
        0.02,
        2e-3,
        lacks={"complex_parity": IMAGINARY},
    ),
    Case(
        "sgd(schedule, momentum)",
        lambda o, lr: o.sgd(lambda count: lr * halving(count), 0.9),
        0.05,
        1e-3,
        lacks={"prints": FUNCTION},
    ),
    Case("adam", lambda o, lr: o.adam(lr), rosenbrock=1e-2),
    Case(
        "adam(b1, b2, eps, eps_root)",
        lambda o, lr: o.adam(lr, 0.8, 0.95, 1e-6, 1e-8),
        rosenbrock=1e-2,
    ),
    Case("adam(nesterov)", lambda o, lr: o.adam(lr, nesterov=True), rosenbrock=1e-2),
    Case(
        "adam(mu_dtype=float32)",
        lambda o, lr: o.adam(lr, mu_dtype="float32"),
        rosenbrock=1e-2,
        lacks={"keeps_bfloat16": PROMOTES, "complex_parity": IMAGINARY},
    ),
    Case(
        "adam(schedule, mu_dtype=bfloat16)",
        lambda o, lr: o.adam(lambda count: lr * halving(count), mu_dtype=jnp.bfloat16),
        rosenbrock=1e-2,
        lacks={"prints": FUNCTION, "complex_parity": IMAGINARY},
    ),
    Case(
        "adamw",
        lambda o, lr: o.adamw(lr),
        rosenbrock=1e-2,
        weight_decay=1e-4,
        decays_rest=True,
        needs_params=True,
    ),
    Case(
        "adamw(mask=tree)",
        lambda o, lr: o.adamw(lr, weight_decay=1e-3, mask=PREFIX_MASK),
        rosenbrock=1e-2,
        weight_decay=1e-3,
        needs_params=True,
    ),
    Case(
        "adamw(schedules, mask=function, nesterov)",
        lambda o, lr: o.adamw(
            lambda count: lr * halving(count),
            weight_decay=lambda count: 1e-3 * halving(count),
            mask=_matrices,
            nesterov=True,
        ),
        rosenbrock=1e-2,
        weight_decay=1e-3,
        needs_params=True,
        lacks={"prints": FUNCTION},
    ),
    Case(
        "chain(clip_by_global_norm, sgd)",
        lambda o, lr: o.chain(o.clip_by_global_norm(1.0), o.sgd(lr)),
        rosenbrock=2e-3,
        lacks={"bitwise": ONE_FACTOR},
    ),
    Case(
        "chain(identity, trace, scale)",
        lambda o, lr: o.chain(o.identity(), o.trace(0.9, True), o.scale(-lr)),
        0.02,
        5e-4,
    ),
    Case(
        "chain(add_decayed_weights, scale_by_schedule)",
        lambda o, lr: o.chain(
            o.add_decayed_weights(1e-4), o.scale_by_schedule(lambda count: -lr * halving(count))
        ),
        rosenbrock=2e-3,
        weight_decay=1e-4,
        decays_rest=True,
        needs_params=True,
        lacks={"prints": FUNCTION},
    ),
    Case(
        "named_chain(scale_by_adam, scale_by_learning_rate)",
        lambda o, lr: o.named_chain(
            ("direction", o.scale_by_adam(b2=0.99)), ("step", o.scale_by_learning_rate(lr))
        ),
        rosenbrock=1e-2,
    ),
    Case(
        "chain(masked(trace), sgd)",
        lambda o, lr: o.chain(o.masked(o.trace(0.5), PREFIX_MASK), o.sgd(lr)),
        rosenbrock=1e-3,
    ),
)
