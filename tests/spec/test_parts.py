"""Groups at work: slots, other optimizers, clipping, layer-wise rates, L2-SP, thawing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ParameterError
from flaxtrain.optim import NAMED
from flaxtrain.schedules import linear_schedule
from flaxtrain.spec import Freeze, Group, LayerDecay, OptSpec, assign, build, transformation
from flaxtrain.spec.parts import rewarming
from flaxtrain.spec.phases import Activity
from flaxtrain.tree import flatten, global_norm, path_name
from tests.runs import FLOAT32_BAR, deviation, run
from tests.spec.small import draw, first_update, gradients, net_facts, zeros

STEPS = 5
HEAD = [("head", "bias"), ("head", "kernel")]


def built(*arguments: Any, **keywords: Any) -> Any:
    return build(OptSpec(*arguments, **keywords), net_facts())


def state_of(*arguments: Any, **keywords: Any) -> Any:
    return jax.eval_shape(built(*arguments, **keywords).init, draw(0))


REGROUPED: list[list[Group]] = [
    [],
    [Group("head", lr_mult=10.0)],
    [Group("#bias", weight_decay=0.0, b1=0.5), Group("body"), Group("embed", clip_norm=1.0)],
    [Group("**", schedule=linear_schedule(1.0, 0.0, 5), eps=linear_schedule(1.0, 2.0, 5))],
]


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "adafactor", "shampoo", "noisy_sgd"])
def test_regrouping_keeps_the_structure_of_the_slots(name: str) -> None:
    def known(group: Group) -> Group:
        kept = {"select", "lr_mult", "schedule", "clip_norm"}
        given: dict[str, Any] = {k: v for k, v in group.arguments().items() if k in kept}
        return Group(**given)

    groupings = REGROUPED if name == "adamw" else [list(map(known, g)) for g in REGROUPED]
    states = [state_of(name, 0.1, groups=groups) for groups in groupings]
    assert len({jax.tree.structure((state.count, state.slots)) for state in states}) == 1
    assert set(states[2].hyperparams) == {"bias", "body", "embed", "default"}


def test_regrouping_keeps_it_also_beside_another_optimizer() -> None:
    matrices = Group("#kernel", name="matrices", optimizer="shampoo")
    groupings = ([matrices], [matrices, Group("head", lr_mult=10.0)])
    states = [state_of("adamw", 0.1, groups=groups) for groups in groupings]
    assert [set(state.slots) for state in states] == [{"matrices", "default"}] * 2
    assert len({jax.tree.structure(state.slots) for state in states}) == 1


def test_groups_with_the_numbers_of_the_rest_change_no_bit() -> None:
    params, grads = draw(0), gradients(STEPS)
    whole, _, _ = run(built("adamw", 1e-2, weight_decay=0.1), params, grads)
    groups = [Group("head"), Group("#bias | embed", name="more")]
    grouped, _, _ = run(built("adamw", 1e-2, weight_decay=0.1, groups=groups), params, grads)
    jax.tree.map(np.testing.assert_array_equal, grouped, whole)


def test_each_group_is_trained_with_its_own_numbers() -> None:
    params, grads = draw(0), gradients(STEPS)
    schedule = linear_schedule(1e-2, 1e-3, 4)
    head = Group("head", schedule=schedule, lr_mult=2.0, b1=0.5, decay="all", weight_decay=0.3)
    ours, state, _ = run(built("adamw", 1e-2, weight_decay=0.1, groups=[head]), params, grads)
    alone, _, _ = run(built("adamw", 1e-2, weight_decay=0.1), params, grads)
    tx = optim.adamw(lambda count: 2.0 * schedule(count), b1=0.5, weight_decay=0.3)
    own, _, _ = run(tx, params["head"], grads["head"])
    assert deviation(ours["head"], own) <= 1e-6  # the factor is multiplied in another order
    jax.tree.map(np.testing.assert_array_equal, ours["body"], alone["body"])
    assert list(state.slots) == ["mu", "nu"]
    # Applied last, at count 4: the end of the schedule, twice.
    assert float(state.learning_rates["head"]) == pytest.approx(2e-3)
    assert float(state.learning_rates["default"]) == pytest.approx(1e-2)


def test_shampoo_for_hidden_matrices_and_adamw_for_the_rest() -> None:
    params, grads = draw(0), gradients(STEPS)
    own: dict[str, Any] = {"block_size": 4, "precondition_every": 2, "precondition_from": 2}
    matrices = Group("#kernel & ~head", name="hidden", optimizer="shampoo", **own)
    tx = built("adamw", 1e-2, weight_decay=0.1, b1=0.8, groups=[matrices])
    ours, state, _ = run(tx, params, grads)
    assert sorted(state.slots) == ["default", "hidden"]
    assert sorted(state.slots["default"]) == ["mu", "nu"]
    assert sorted(state.slots["hidden"]) == ["mu", "nu", "roots", "statistics"]
    assert list(state.slots["hidden"]["mu"]) == ["body"]
    assert ("body", "kernel") not in flatten(state.slots["default"]["mu"])
    shampoo, _, _ = run(built("shampoo", 1e-2, **own), params, grads)
    adamw, _, _ = run(built("adamw", 1e-2, weight_decay=0.1, b1=0.8), params, grads)
    for path, leaf in flatten(ours).items():
        other = shampoo if path == ("body", "kernel") else adamw
        # Compiled with other neighbours: roundings, through a matrix root.
        np.testing.assert_allclose(leaf, flatten(other)[path], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("library", [optim, optax], ids=["ours", "optax"])
def test_optimizer_objects_in_groups(library: Any) -> None:
    params, grads = draw(0), gradients(STEPS)
    schedule = linear_schedule(1e-2, 1e-3, 4)
    head = Group("head", optimizer=library.sgd(schedule, momentum=0.9))
    ours, state, _ = run(built("adamw", 1e-2, groups=[head]), params, grads)
    assert sorted(state.slots) == ["default", "head"]
    alone, _, _ = run(library.sgd(schedule, momentum=0.9), params["head"], grads["head"])
    adamw, _, _ = run(built("adamw", 1e-2), params, grads)
    jax.tree.map(np.testing.assert_array_equal, ours["head"], alone)
    jax.tree.map(np.testing.assert_array_equal, ours["body"], adamw["body"])
    rates = dict(state.learning_rates)
    assert float(rates.pop("default")) == pytest.approx(1e-2)
    known = {"head": pytest.approx(1e-3)} if library is optim else {}
    assert {name: float(rate) for name, rate in rates.items()} == known


def test_a_named_optimizer_in_a_group_of_an_object() -> None:
    tx = built(optim.adam(0.1), groups=[Group("head", optimizer="sgd", learning_rate=0.5)])
    updates = first_update(tx, draw(0), draw(1))
    np.testing.assert_allclose(updates[HEAD[0]], -0.5 * np.asarray(draw(1)["head"]["bias"]))
    # The first step of Adam is the learning rate, but for eps.
    np.testing.assert_allclose(np.abs(updates["body", "bias"]), 0.1, rtol=1e-4)


def test_groups_that_differ_in_flags_have_slots_of_their_own() -> None:
    params, grads = draw(0), gradients(STEPS)
    flags: list[tuple[str, dict[str, Any]]] = [
        ("adafactor", {"clipping_threshold": None}),
        ("sgd", {"momentum": 0.9}),
        ("rmsprop", {"centered": True}),
    ]
    for name, own in flags:
        tx = built(name, 1e-2, groups=[Group("head", **own)])
        ours, state, _ = run(tx, params, grads)
        assert sorted(state.slots) == ["default", "head"]
        alone, _, _ = run(built(name, 1e-2, **own), params, grads)
        assert deviation(ours["head"], alone["head"]) <= 1e-6
    with pytest.raises(AssertionError):  # so the flag does something
        assert deviation(ours["body"], alone["body"]) <= 1e-6


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("noisy_sgd", {"eta": 0.5}),
        ("rprop", {"eta_plus": 1.5}),
        ("rprop", {"lr_mult": 2.0}),
        ("optimistic_adam", {"lr_mult": 2.0}),
    ],
)
def test_methods_with_one_state_for_all_have_one_set_of_numbers(name: str, own: Any) -> None:
    with pytest.raises(ArgumentError, match=f"{name} treats all parameters together"):
        built(name, 1e-2, groups=[Group("head", **own)])
    params, grads = draw(0), gradients(STEPS)
    whole, before, _ = run(built(name, 1e-2), params, grads)
    group = Group("head", clip_norm=1e9)  # far above: nothing is clipped
    same, after, _ = run(built(name, 1e-2, groups=[group]), params, grads)
    # Two programs: which products and sums are fused is the compiler's choice.
    assert deviation(same, whole) <= FLOAT32_BAR
    assert jax.tree.structure(before.slots) == jax.tree.structure(after.slots)


def test_the_state_of_a_whole_method_has_the_paths_of_the_parameters() -> None:
    state = state_of("rprop", 0.1).slots
    names = {path_name(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(state)}
    assert any(name.endswith("head/kernel") for name in names)
    assert not any("(" in name for name in names)


def test_a_group_is_clipped_by_its_own_norm_after_the_whole() -> None:
    grads = draw(1)
    own, whole = 0.1, 1.0
    tx = built("sgd", 1.0, clip_norm=whole, groups=[Group("head", clip_norm=own)])
    found = first_update(tx, draw(0), grads)
    norm = float(global_norm(grads))
    assert norm > whole
    head = {path: found.pop(path) for path in HEAD}
    assert float(global_norm(head)) == pytest.approx(own, rel=1e-6)
    for path, update in found.items():
        wanted = -np.asarray(flatten(grads)[path]) * whole / norm
        np.testing.assert_allclose(update, wanted, rtol=1e-6)
    # A norm below its limit is left alone, bit for bit.
    loose = built("sgd", 1.0, groups=[Group("head", clip_norm=100.0)])
    for path, update in first_update(loose, draw(0), grads).items():
        np.testing.assert_array_equal(update, -np.asarray(flatten(grads)[path]))


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "adafactor", "fromage", "rprop"])
def test_layer_decay_multiplies_the_updates_of_each_layer(name: str) -> None:
    params, grads = draw(0), draw(1)
    plain = first_update(built(name, 0.1), params, grads)
    rule = LayerDecay(0.5, layer_of={"embed": 0, "body": 1, "norm": 1, "head": 2})
    scaled = first_update(built(name, 0.1, layer_decay=rule), params, grads)
    factors = {"embed": 0.25, "body": 0.5, "norm": 0.5, "head": 1.0}
    for path, update in scaled.items():
        # Powers of two: exact, but for the order of factors in Adafactor.
        np.testing.assert_allclose(update, factors[path[0]] * plain[path], rtol=1e-6)


def l2_sp(params: Any, grads: Any, rate: float, decay: float, clip: float) -> Any:
    """SGD with decay towards the first values (L2-SP), in NumPy float64, leaf by leaf."""
    x = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(params).items()}
    start, table = dict(x), flatten(grads)
    for t in range(STEPS):
        grad = {path: np.asarray(leaf[t], np.float64) for path, leaf in table.items()}
        norm = np.sqrt(sum(np.sum(g**2) for g in grad.values()))
        for path, g in grad.items():
            away = x[path] - start[path] if path[-1] == "kernel" else 0.0
            x[path] = x[path] - rate * (min(1.0, clip / norm) * g + decay * away)
    return x


def test_decay_towards_the_initial_values_equals_the_oracle() -> None:
    with jax.enable_x64(True):
        params, grads = draw(0, np.float64), gradients(STEPS, np.float64)
        tx = built("sgd", 0.1, weight_decay=0.5, decay_to="init", clip_norm=3.0)
        ours, state, _ = run(tx, params, grads)
        assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {np.dtype("float64")}
    for path, wanted in l2_sp(params, grads, 0.1, 0.5, 3.0).items():
        # A few roundings of float64 per step.
        np.testing.assert_allclose(flatten(ours)[path], wanted, rtol=1e-13, atol=1e-14)
    assert sorted(map(path_name, flatten(state.slots["initial"]))) == [
        "body/kernel",
        "head/kernel",
    ]
    first = first_update(built("sgd", 0.1, weight_decay=0.5, decay_to="init"), draw(0), zeros())
    assert not any(np.any(update) for update in first.values())


def test_the_initial_values_are_kept_also_where_nothing_decays() -> None:
    tx = built("adam", 0.1, decay_to="init", weight_decay=0.5)
    part = {"norm": draw(0)["norm"]}
    state = tx.init(part)
    _, after = jax.eval_shape(tx.update, part, state, part)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert "initial" in after.slots


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float32, np.float64])
def test_dtypes_of_states_and_updates_stay_what_they_are(dtype: Any) -> None:
    wide = np.float64 if dtype is np.float64 else np.float32
    with jax.enable_x64(True):  # where a float32 must not become a float64 by accident
        params, grads = draw(0, dtype), draw(1, dtype)
        for name in NAMED:
            groups = [Group("head", clip_norm=1.0)]
            tx = built(name, 1e-2, groups=groups, layer_decay=0.5)
            state = jax.eval_shape(tx.init, params)
            updates, after = jax.eval_shape(tx.update, grads, state, params)
            assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {np.dtype(wide)}, name
            before = [leaf.dtype for leaf in jax.tree.leaves(state)]
            assert before == [leaf.dtype for leaf in jax.tree.leaves(after)], name


def test_a_bfloat16_tree_is_updated_as_its_float32_copy() -> None:
    low, grads = draw(0, jnp.bfloat16), draw(1, jnp.bfloat16)
    spec = OptSpec(
        "adamw",
        1e-2,
        weight_decay=0.1,
        layer_decay=0.5,
        groups=[Group("head", lr_mult=3.0, clip_norm=0.5)],
    )
    tx = build(spec, net_facts())
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (low, grads))
    ours, theirs = first_update(tx, low, grads), first_update(tx, *wide)
    for path, update in ours.items():
        # The clipped gradient is of the gradient's dtype: half of bfloat16's last place.
        np.testing.assert_allclose(update, theirs[path], rtol=2**-8)


def test_slots_born_at_a_boundary_start_at_the_first_update() -> None:
    rule = Freeze("body", until=2)
    table = assign(OptSpec("adam", 0.1, freeze=rule), net_facts())
    before, after = (transformation(table, phase) for phase in table.phases)
    params, grads = draw(0), draw(1)
    part = {name: leaf for name, leaf in params.items() if name != "body"}
    pruned = {name: leaf for name, leaf in grads.items() if name != "body"}
    state = before.init(part)
    assert set(state.slots["mu"]) == set(part)
    with pytest.raises(ParameterError, match=r"'body/bias' is frozen in the steps 0:2"):
        before.update(grads, before.init(params), params)
    for _ in range(2):
        _, state = jax.jit(before.update)(pruned, state, part)
    fresh = after.init(params)
    assert fresh.count == state.count == 2
    slots = {
        name: {**tree, **{key: state.slots[name][key] for key in part}}
        for name, tree in fresh.slots.items()
    }
    updates, final = jax.jit(after.update)(grads, state._replace(slots=slots), params)
    # Adam's first step is the learning rate; with t = 3 it would be a third of that off.
    assert np.max(np.abs(updates["body"]["kernel"])) <= 0.1 * 1.001
    np.testing.assert_allclose(np.abs(updates["body"]["kernel"]), 0.1, rtol=1e-3)
    assert final.count == 3


def test_a_thawed_parameter_may_rewarm() -> None:
    assert rewarming(Activity(0, None, 0), jnp.int32(3)) == 1.0
    assert rewarming(Activity(0, 5, 0), jnp.int32(5)) == 1.0
    found = [
        float(np.asarray(rewarming(Activity(0, 5, 4), jnp.int32(t)))) for t in range(5, 11)
    ]
    assert found == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    spec = OptSpec("sgd", 1.0, freeze=Freeze("body", until=5, rewarm=4))
    tx = build(spec, net_facts(), step=5)
    updates, state = jax.jit(tx.update)(draw(1), tx.init(draw(0)), draw(0))
    np.testing.assert_allclose(updates["body"]["bias"], -0.25 * draw(1)["body"]["bias"])
    np.testing.assert_allclose(updates["head"]["bias"], -draw(1)["head"]["bias"])
    assert state.learning_rates["default"] == 1.0  # the largest in the group
