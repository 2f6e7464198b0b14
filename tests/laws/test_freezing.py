"""Laws about freezing: what is frozen keeps every bit, and has no slots.

Weight decay, clipping and momentum from before the freeze are all there in one run: if any of
them reached a frozen parameter, its bits would change.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain import optim
from flaxtrain.errors import ArgumentError
from flaxtrain.optim import NAMED
from flaxtrain.optim.stages import DECAY
from flaxtrain.params import facts_from
from flaxtrain.precision import ROUNDING_RULES as RULES
from flaxtrain.spec import (
    Assignment,
    Freeze,
    OptSpec,
    assign,
    carried,
    check_carries,
    transformation,
)
from flaxtrain.train import TrainState
from flaxtrain.tree import flatten, split
from tests.cases import CASES, Case
from tests.runs import differing_leaves, layout

BEFORE, AFTER = 5, 100
"""Updates before the freeze that starts within the run, and after it."""

RNG = np.random.default_rng(0)
SHAPES = {"w": (2, 3), "rest": (3,)}
KINDS = ("moving", "still", "late")
PARAMS = {
    name: {kind: jnp.asarray(RNG.normal(size=shape), jnp.float32) for kind in KINDS}
    for name, shape in SHAPES.items()
}
GRADS = jax.tree.map(
    lambda leaf: jnp.asarray(RNG.normal(size=(BEFORE + AFTER, *leaf.shape)), jnp.float32),
    PARAMS,
)
FACTS = facts_from(lambda extra: {"params": PARAMS})
ALWAYS = Freeze("**/still")
LATE = Freeze("**/late", start=BEFORE, slots="drop")


def kind(params: Any, name: str) -> Any:
    return {key: params[key][name] for key in SHAPES}


def frozen_row(case: Case, *rules: Freeze) -> tuple[Any, Assignment]:
    """Returns a row with decay of every parameter, and who gets what under the rules."""
    tx = optim.chain(optim.add_decayed_weights(0.1), case.ours(1e-2))
    return tx, assign(OptSpec(tx, clip_norm=1.0, freeze=rules), FACTS)


def trained(case: Case, assignment: Assignment) -> tuple[Any, Any, Any]:
    """Returns the parameters before the last phase, and those and the slots at the end."""

    def step(state: TrainState, grads: Any) -> tuple[TrainState, None]:
        return state.updated(grads, **case.extra(grads))[0], None

    @jax.jit
    def program(params: Any) -> Any:
        phases = assignment.phases
        state, middle = None, params
        for phase in phases:
            tx, paths = transformation(assignment, phase), frozenset(phase.trained)
            if state is None:
                state = TrainState.create(apply_fn=None, params=params, tx=tx, trainable=paths)
            else:
                middle = state.params
                fresh = tx.init(split(state.params, phase.with_slots)[0])
                opt_state = carried(fresh, state.opt_state)
                state = state.replace(opt_state=opt_state, tx=tx, trainable=paths)
            part = jax.tree.map(lambda g: g[phase.start : phase.stop], GRADS)  # noqa: B023
            state, _ = jax.lax.scan(step, state, part)
        assert state is not None
        return middle, state.params, state.opt_state.slots

    return jax.device_get(program(PARAMS))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_frozen_parameters_keep_every_bit_for_100_updates_and_have_no_slots(
    case: Case,
) -> None:
    tx, assignment = frozen_row(case, ALWAYS, LATE)
    try:
        check_carries(assignment)
    except ArgumentError:
        # Only where one array is made of all parameters: then from the beginning, or never.
        size = sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
        assert (size,) in {leaf.shape for leaf in jax.tree.leaves(tx.init(PARAMS))}
        tx, assignment = frozen_row(case, ALWAYS, Freeze("**/late"))
    middle, end, slots = trained(case, assignment)
    assert differing_leaves(kind(end, "still"), kind(PARAMS, "still")) == []
    assert differing_leaves(kind(end, "late"), kind(middle, "late")) == []
    # The law would hold for an optimizer that moves nothing.
    assert not np.array_equal(end["w"]["moving"], PARAMS["w"]["moving"])
    if len(assignment.phases) > 1:
        assert not np.array_equal(middle["w"]["late"], PARAMS["w"]["late"])
    alone = split(PARAMS, frozenset((name, "moving") for name in SHAPES))[0]
    assert layout(slots) == layout(jax.eval_shape(tx.init, alone))


class Model(nn.Module):
    """Four layers: one frozen from the beginning, two from within the run, and one trained."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        for name in ("always", "dropped", "kept"):
            x = nn.Dense(4, name=name)(x)
            x = nn.BatchNorm(use_running_average=not train, name=f"{name}_norm")(x)
            x = nn.tanh(x)
        return nn.Dense(2, name="head")(x)


LAYERS = {name: (name, f"{name}_norm") for name in ("always", "dropped", "kept")}
BATCHES = {
    "x": RNG.normal(size=(BEFORE + AFTER, 8, 3)).astype("float32"),
    "label": RNG.integers(0, 2, (BEFORE + AFTER, 8)).astype("int32"),
}


def named_spec(name: str) -> OptSpec:
    """Returns a spec with decay and momentum where the optimizer has them."""
    entry = NAMED[name]
    numbers: dict[str, Any] = {"weight_decay": 0.1} if DECAY in entry.stages(1e-2) else {}
    if "momentum" in entry.hyperparameters:
        numbers["momentum"] = 0.9
    rules = [
        Freeze("always/** | always_norm/**"),
        Freeze("dropped/** | dropped_norm/**", start=BEFORE, slots="drop"),
        Freeze("kept/** | kept_norm/**", start=BEFORE, slots="keep"),
    ]
    return OptSpec(name, 1e-2, clip_norm=0.5, freeze=rules, **numbers)


def of_layer(tree: Any, layer: str) -> dict[Any, Any]:
    """Returns the leaves below the modules of a layer, by path."""
    return {p: leaf for p, leaf in flatten(tree).items() if {*p} & {*LAYERS[layer]}}


def slots_of(state: Any, layer: str) -> dict[Any, Any]:
    """Returns the slots that lie below the modules of a layer."""
    entries = jax.tree_util.tree_leaves_with_path(state.opt_state.slots)
    return {
        jax.tree_util.keystr(keys): leaf
        for keys, leaf in entries
        if {getattr(key, "key", None) for key in keys} & {*LAYERS[layer]}
    }


IN_EVERY_RUN = ("adafactor", "adamw", "lars", "noisy_sgd", "rprop", "shampoo")
"""One optimizer of each kind: decay before, between and behind the rules, a state over all
parameters, a state without parameters' shapes. The others are slow: each compiles two steps."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in IN_EVERY_RUN else pytest.mark.slow)
        for name in NAMED
    ],
)
def test_the_training_step_keeps_frozen_parameters_and_held_statistics_bitwise(
    name: str,
) -> None:
    assert_frozen(named_spec(name), ft.StepOptions())


SUMS = {"rows": 2, "batches": ft.AccumulateBatches(2, microbatches=2)}
NOT_SLOW = {("adamw", "rows"), ("adamw", "batches"), ("lars", "rows")}
AT_ONCE = [
    *[(name, sums, "f32") for name in IN_EVERY_RUN for sums in SUMS],
    *[("adamw", "rows", ft.Precision("p=bf16,c=f32", update=update)) for update in RULES],
]


@pytest.mark.parametrize(
    ("name", "sums", "precision"),
    [
        pytest.param(
            *row,
            id="-".join(str(getattr(part, "update", part)) for part in row),
            marks=() if row[2] == "f32" and row[:2] in NOT_SLOW else pytest.mark.slow,
        )
        for row in AT_ONCE
    ],
)
def test_so_does_a_step_with_averages_microbatches_and_a_loss_scale(
    name: str, sums: str, precision: Any
) -> None:
    spec = named_spec(name).replace(ema=0.9, accumulate=SUMS[sums])
    options = ft.StepOptions(ft.DynamicScale(growth_interval=7), precision)
    start, end = assert_frozen(spec, options)
    assert float(end.loss_scale.value) > float(start.loss_scale.value)
    averaged = ft.eval_params(end)
    # Never trained: no average, and the parameter itself is evaluated. Trained for a while: the
    # average goes on towards what stays.
    assert differing_leaves(*(of_layer(p, "always") for p in (averaged, start.params))) == []
    assert of_layer(end.ema.params, "always") == {}
    last = of_layer(end.params, "dropped")
    # What is left of the way that the average had to go when the freeze began: less than 1, of
    # five updates with a rate of 1e-2. Beside it one spacing of bfloat16.
    left = 0.9 ** (int(end.step) - BEFORE)
    for path, leaf in of_layer(averaged, "dropped").items():
        np.testing.assert_allclose(leaf, last[path], rtol=2**-7, atol=left)


def assert_frozen(spec: OptSpec, options: ft.StepOptions) -> tuple[Any, Any]:
    """Trains through the beginning of the freezes; returns the first and the last state."""
    batch = jax.tree.map(lambda leaf: leaf[0], BATCHES)
    recipe = ft.make_recipe(Model(), spec, batch, options=options)
    later, count = recipe.at(BEFORE), spec.accumulation.count

    @jax.jit
    def program(state: TrainState) -> tuple[TrainState, TrainState]:
        def steps(recipe: ft.Recipe, state: TrainState, which: slice) -> TrainState:
            part = jax.tree.map(lambda leaf: leaf[which], BATCHES)
            return jax.lax.scan(
                lambda state, batch: (
                    ft.train_step(recipe, state, batch, norms=False)[0],
                    None,
                ),
                state,
                part,
            )[0]

        middle = later.enter(steps(recipe, state, slice(BEFORE * count)))
        return middle, steps(later, middle, slice(BEFORE * count, None))

    start = recipe.init(0)
    start, (middle, end) = jax.device_get((start, program(start)))
    assert int(end.step) == (BEFORE + AFTER) // count, "no step was rejected"
    for layer, since in {"always": start, "dropped": middle, "kept": middle}.items():
        for field in ("params", "collections"):
            before, after = (of_layer(getattr(s, field), layer) for s in (since, end))
            assert before and differing_leaves(after, before) == [], (layer, field)
    for layer in ("dropped", "kept"):  # they were trained, and their statistics kept, before
        for field in ("params", "collections"):
            before, after = (of_layer(getattr(s, field), layer) for s in (start, middle))
            assert all(not np.array_equal(before[path], after[path]) for path in before)
    assert not np.array_equal(end.params["head"]["kernel"], middle.params["head"]["kernel"])
    assert slots_of(end, "always") == slots_of(end, "dropped") == {}
    assert differing_leaves(slots_of(end, "kept"), slots_of(middle, "kept")) == []
    assert bool(slots_of(end, "kept")) == bool(slots_of(start, "kept"))
    return start, end
