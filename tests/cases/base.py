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
import numpy as np
import optax

from flaxtrain import optim
from tests import gradients
from tests.runs import deviation, run

Builder = Callable[[ModuleType, Any], Any]
Oracle = Callable[[Any, Any], Any]
"""From parameters and recorded gradients (trees of numpy arrays) to the parameters after each
step: the paper in float64, with the learning rate 1e-2."""

CAPABILITIES = (
    *("in_optax", "bitwise", "float64", "eager", "keeps_bfloat16", "complex"),
    *("complex_parity", "prints", "rests", "passes_nan", "parabola", "rosenbrock"),
)
"""What a row is expected to do unless it says why not (see `Lack`):

in_optax: optax can build it.
bitwise: under jit, every bit of 1,000 updates is optax's.
float64: in float64, 1,000 updates agree with optax's to 1e-12.
eager: without `jit`, 1,000 updates agree with optax's without it, within the bar.
keeps_bfloat16: bfloat16 parameters give bfloat16 updates and slots.
complex: complex leaves are updated.
complex_parity: complex leaves agree with optax's.
prints: `eval(repr(tx)) == tx`.
rests: a zero gradient moves nothing but what decays.
passes_nan: NaN in a gradient reaches the update of that leaf.
parabola, rosenbrock: it converges there with the learning rate of the row.
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
        takes_value: `update` needs `value=`, the loss.
        oracle: the independent judge in float64, if this row has one; see `per_array`.
        oracle_bar: the largest deviation from it; the reason stands beside the row.
        lacks: capabilities that the row does not have.
    """

    name: str
    build: Builder
    learning_rate: float = 0.1
    rosenbrock: float = 1e-3
    weight_decay: float = 0.0
    decays_rest: bool = False
    needs_params: bool = False
    takes_value: bool = False
    oracle: Oracle | None = None
    oracle_bar: float = 1e-12
    lacks: Mapping[str, Lack] = field(default_factory=dict)

    def ours(self, learning_rate: Any = 1e-2) -> optim.GradientTransformation:
        return self.build(optim, learning_rate)

    def recorded(self, steps: int, dtype: Any) -> tuple[Any, Any]:
        """Returns the parameters and gradients on which both libraries are compared."""
        lacking = {"complex", "complex_parity"} & set(self.lacks)
        has_complex = dtype != jnp.bfloat16 and not lacking
        return (
            gradients.cast(gradients.params(complex_leaf=has_complex), dtype),
            gradients.cast(gradients.gradients(steps, complex_leaf=has_complex), dtype),
        )

    @property
    def has_complex(self) -> bool:
        return "complex" not in self.lacks

    def extra(self, grads: Any) -> dict[str, Any]:
        """Returns the extra arguments of `update`: a made-up loss, where one is needed."""
        if not self.takes_value:
            return {}
        return {"value": 0.1 * sum(map(_size, jax.tree.leaves(grads)), start=1.0)}

    def rounding(self, float32: float) -> float:
        """Returns a tolerance: `float32`, or where float32 parameters have slots in bfloat16,
        one last place of those (a single other rounding can flip it)."""
        slots = jax.tree.leaves(self.ours().init({"w": jnp.ones(1), "rest": {}}))
        return 8e-3 if any(slot.dtype == jnp.bfloat16 for slot in slots) else float32

    def judge(self, learning_rate: Any = 1e-2) -> optax.GradientTransformation:
        return self.build(optax, learning_rate)


def _size(leaf: Any) -> jax.Array:
    """Returns the sum of magnitudes, in float32 at least."""
    sizes = jnp.abs(jnp.asarray(leaf))
    return jnp.sum(sizes.astype(jnp.promote_types(sizes.dtype, jnp.float32)))


class WithoutScalar(Case):
    """A row whose optax fails on parameters without axes, or gives them updates of another
    shape: the comparison is on the other parameters."""

    def recorded(self, steps: int, dtype: Any) -> tuple[Any, Any]:
        assert not _keeps_scalars(self.judge()), f"optax takes scalars in {self.name}"
        trees = super().recorded(steps, dtype)
        for tree in trees:
            del tree["rest"]["scalar"]
        return trees


def _keeps_scalars(tx: Any) -> bool:
    x = jnp.ones(())
    try:
        updates, _ = tx.update(x, tx.init(x), x)
    except IndexError:
        return False
    return updates.shape == ()


def halving(count: Any) -> Any:
    """A schedule for learning rates, as a factor: 1 at the start, 1/2 after 1,000 updates."""
    return 1.0 / (1.0 + count / 1000.0)


def per_array(
    judge: Callable[..., np.ndarray], *, decayed: Any = None, **arguments: Any
) -> Oracle:
    """Lifts an oracle about one array, `judge(x, gradients, learning_rate=..., **arguments)`,
    to trees. Leaves that are False in `decayed`, a tree, get `weight_decay=0`."""
    arguments = {"learning_rate": lambda step: 1e-2} | arguments

    def paths(params: Any, grads: Any) -> Any:
        def one(x: np.ndarray, g: np.ndarray, decays: bool) -> np.ndarray:
            off = {} if decays else {"weight_decay": lambda step: 0.0}
            return judge(x, g, **arguments | off)

        flags = jax.tree.map(lambda _: True, params) if decayed is None else decayed
        return jax.tree.map(one, params, grads, flags)

    return paths


def matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


# A prefix of every tree that the tests use: trees of parameters have the keys `w` and `rest`.
PREFIX_MASK = {"w": True, "rest": False}

# For oracles: `PREFIX_MASK` and `matrices` written out for the recorded tree.
ONLY_W = {"w": True, "rest": dict.fromkeys(("bias", "conv", "scalar", "wave"), False)}
MATRICES = {"w": True, "rest": {"bias": False, "conv": True, "scalar": False, "wave": False}}


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
    """A quotient and a product round at other places: at most two last places apart."""
    params, grads = case.recorded(3, jnp.float32)
    ours, judge = (run(tx, params, grads, case.extra) for tx in (case.ours(), case.judge()))
    assert 0 < deviation(ours, judge) <= 2 * jnp.finfo(jnp.float32).eps


def _a_function_has_no_source_form(case: Case) -> None:
    """What is passed in is a function, and Python prints those by address."""
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
