"""What `build` makes of a spec: the numbers of a chain written by hand, and one named state."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim, schedules
from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError, ParameterError
from flaxtrain.params import Facts, param_facts
from flaxtrain.spec import Group, OptSpec, OptState, build
from flaxtrain.tree import flatten, global_norm
from tests.runs import AS_IT_COMES

STEPS = 200
Tree = dict[str, Any]


class Net(nn.Module):
    """Kernels, biases, a norm and an embedding: some of each kind."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(7, 6)(tokens)
        x = nn.LayerNorm()(nn.Dense(5)(x))
        return nn.Dense(3)(x)


@pytest.fixture(scope="module")
def facts() -> Facts:
    return param_facts(Net(), jnp.zeros((2, 4), jnp.int32))


def tree(facts: Facts, seed: int, dtype: Any = np.float32, scale: float = 1.0) -> Tree:
    rng = np.random.default_rng(seed)
    return facts.tree(lambda fact: jnp.asarray(scale * rng.normal(size=fact.shape), dtype))


def gradients(facts: Facts, dtype: Any = np.float32) -> list[Tree]:
    """A fixed sequence whose norm passes through clip thresholds around 1."""
    return [tree(facts, 1000 + t, dtype, 0.02 + 0.3 * (t % 7)) for t in range(20)]


def run(tx: Any, params: Tree, grads: list[Tree], steps: int = STEPS) -> tuple[Tree, Any]:
    @functools.partial(jax.jit, compiler_options=AS_IT_COMES)
    def step(params: Tree, state: Any, grad: Tree) -> tuple[Tree, Any]:
        updates, state = tx.update(grad, state, params)
        return optim.apply_updates(params, updates), state

    state = tx.init(params)
    for t in range(steps):
        params, state = step(params, state, grads[t % len(grads)])
    return params, state


def once(tx: Any, grads: Tree, params: Tree, **extra_args: Any) -> tuple[Tree, Any]:
    """The first update, compiled as a whole: faster here than operation by operation."""
    return jax.jit(tx.update)(grads, tx.init(params), params, **extra_args)


def deviation(ours: Tree, theirs: Tree) -> float:
    """Largest over leaves of max|a - b| / max|b|."""

    def one(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))

    return max(jax.tree.leaves(jax.tree.map(one, ours, theirs)))


def kernels_only(params: Tree) -> Tree:
    return jax.tree_util.tree_map_with_path(lambda p, _: p[-1].key == "kernel", params)


OURS = schedules.warmup_cosine_decay_schedule(0.0, 1e-2, 10, 150, 1e-4)
THEIRS = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, 150, 1e-4)

OURS1 = schedules.linear_schedule(1.0, 2.0, 10)

PAIRS = {
    "sgd_momentum": (OptSpec("sgd", 0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9)),
    "sgd_nesterov_scheduled": (
        OptSpec("sgd", OURS, momentum=0.9, nesterov=True),
        optax.sgd(THEIRS, momentum=0.9, nesterov=True),
    ),
    "sgd_decayed": (
        OptSpec("sgd", 0.1, weight_decay=0.1),
        optax.chain(optax.add_decayed_weights(0.1, kernels_only), optax.sgd(0.1)),
    ),
    "adam": (OptSpec("adam", 1e-3, b1=0.8), optax.adam(1e-3, b1=0.8)),
    "adamw": (OptSpec("adamw", 1e-3), optax.adamw(1e-3, mask=kernels_only)),
    "adamw_scheduled": (
        OptSpec("adamw", OURS, weight_decay=0.05, b2=0.95),
        optax.adamw(THEIRS, weight_decay=0.05, b2=0.95, mask=kernels_only),
    ),
    "adam_by_object": (OptSpec(optim.adam(1e-3)), optax.adam(1e-3)),
    "foreign_object": (OptSpec(optax.adamw(OURS)), optax.adamw(THEIRS)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_is_bitwise_the_chain_written_by_hand(name: str, facts: Facts) -> None:
    spec, theirs = PAIRS[name]
    params, grads = tree(facts, 0), gradients(facts)
    ours, _ = run(build(spec, facts), params, grads)
    wanted, _ = run(theirs, params, grads)
    jax.tree.map(np.testing.assert_array_equal, ours, wanted)


@pytest.mark.parametrize("name", ["adamw_scheduled", "foreign_object"])
def test_clipping_equals_a_clip_in_front_of_the_chain(name: str, facts: Facts) -> None:
    spec, theirs = PAIRS[name]
    params, grads = tree(facts, 0), gradients(facts)
    norms = [float(global_norm(grad)) for grad in grads]
    assert min(norms) < 5 < max(norms)  # some gradients are clipped, some are not
    ours, _ = run(build(spec.replace(clip_norm=5.0), facts), params, grads)
    wanted, _ = run(optax.chain(optax.clip_by_global_norm(5.0), theirs), params, grads)
    # One factor is multiplied here, each element divided and multiplied there: a rounding or
    # two per gradient, averaged over 200 steps.
    assert deviation(ours, wanted) <= 2e-6


def oracle(spec: OptSpec, params: Tree, grads: list[Tree], steps: int) -> Tree:
    """AdamW by its paper in NumPy float64, one parameter after another, decay of kernels."""
    hyper = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, **dict(spec.hyperparameters)}
    b1, b2, eps = hyper["b1"], hyper["b2"], hyper["eps"]
    out = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(params).items()}
    mu = {path: np.zeros(x.shape) for path, x in out.items()}
    nu = {path: np.zeros(x.shape) for path, x in out.items()}
    for t in range(1, steps + 1):
        grad = flatten(grads[(t - 1) % len(grads)])
        table = {path: np.asarray(g, np.float64) for path, g in grad.items()}
        norm = np.sqrt(sum(np.sum(g**2) for g in table.values()))
        factor = min(1.0, spec.clip_norm / norm) if spec.clip_norm else 1.0  # type: ignore[operator]
        for path, g in table.items():
            g = factor * g
            mu[path] = b1 * mu[path] + (1 - b1) * g
            nu[path] = b2 * nu[path] + (1 - b2) * g**2
            u = mu[path] / (1 - b1**t) / (np.sqrt(nu[path] / (1 - b2**t)) + eps)
            if path[-1] == "kernel":
                u = u + spec.weight_decay * out[path]
            out[path] = out[path] - spec.learning_rate * u  # type: ignore[operator]
    return out


def test_float64_equals_the_oracle(facts: Facts) -> None:
    spec = OptSpec("adamw", 1e-3, weight_decay=0.1, clip_norm=5.0, b2=0.95)
    with jax.enable_x64(True):
        params, grads = tree(facts, 0, np.float64), gradients(facts, np.float64)
        ours, state = run(build(spec, facts), params, grads)
        assert {leaf.dtype for leaf in jax.tree.leaves(state.slots)} == {np.dtype("float64")}
    wanted = oracle(spec, params, grads, STEPS)
    # Float64 roundings, accumulated over 200 steps.
    assert (
        max(np.max(np.abs(np.asarray(flatten(ours)[p]) - x)) for p, x in wanted.items())
        <= 1e-12
    )


def test_bfloat16_parameters_are_updated_in_float32(facts: Facts) -> None:
    spec = OptSpec("adamw", 1e-2, weight_decay=0.1)
    low, grads = tree(facts, 0, jnp.bfloat16), gradients(facts, jnp.bfloat16)
    tx = build(spec, facts)
    state = tx.init(low)
    updates, state = jax.jit(tx.update)(grads[0], state, low)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.slots, updates))} == {
        np.dtype("float32")
    }
    wanted = oracle(spec, low, grads, 1)
    new = flatten(optim.apply_updates(low, updates))
    for path, x in flatten(low).items():
        assert new[path].dtype == jnp.bfloat16
        step = wanted[path] - np.asarray(x, np.float64)
        # Updates are 1e-2; 1 - 0.999^t has a relative error of 1e-5 in float32 at t = 1, and
        # half of it is left under the root. In bfloat16 the error would be 4e-5.
        assert np.max(np.abs(np.asarray(flatten(updates)[path], np.float64) - step)) <= 1e-7
    # And the parameter is rounded once: it is the bfloat16 nearest to the sum.
    total = jax.tree.map(lambda x, u: (x.astype(jnp.float32) + u).astype(x.dtype), low, updates)
    jax.tree.map(np.testing.assert_array_equal, optim.apply_updates(low, updates), total)


def test_only_what_the_mask_selects_decays(facts: Facts) -> None:
    params = tree(facts, 0)
    zero = jax.tree.map(jnp.zeros_like, params)
    everything = {fact.name for fact in facts.params}
    kernels = {"Dense_0/kernel", "Dense_1/kernel"}
    masks: list[tuple[Any, set[str]]] = [
        ("kernels", kernels),
        ("all", everything),
        ("ndim", kernels | {"Embed_0/embedding"}),
        (
            lambda fact: fact.owner_name == "LayerNorm",
            {"LayerNorm_0/bias", "LayerNorm_0/scale"},
        ),
        (facts.tree(lambda fact: fact.name == "Dense_1/bias"), {"Dense_1/bias"}),
    ]
    for decay, wanted in masks:
        tx = build(OptSpec("sgd", 0.5, weight_decay=0.1, decay=decay), facts)
        updates, _ = once(tx, zero, params)
        table = flatten(updates)
        assert {"/".join(p) for p, u in table.items() if np.any(u)} == wanted
        for path in (path for path in table if "/".join(path) in wanted):
            np.testing.assert_allclose(table[path], -0.05 * flatten(params)[path], rtol=1e-6)


def test_the_default_decay_is_the_optimizers_own(facts: Facts) -> None:
    params = tree(facts, 0)
    zero = jax.tree.map(jnp.zeros_like, params)

    def moved(spec: OptSpec) -> bool:
        updates, _ = once(build(spec, facts), zero, params)
        return any(np.any(leaf) for leaf in jax.tree.leaves(updates))

    assert moved(OptSpec("adamw", 0.1))
    assert not moved(OptSpec("adamw", 0.1, weight_decay=0.0))
    assert not moved(OptSpec("adam", 0.1))
    assert not moved(OptSpec("sgd", 0.1))


def test_the_state_has_names_and_one_structure(facts: Facts) -> None:
    params = tree(facts, 0)
    whole, without = set(), set()
    changes: list[Tree] = [
        {},
        {"learning_rate": OURS},
        {"learning_rate": lambda count: 0.1},
        {"decay": "all"},
        {"nonfinite": "skip"},
        {"b1": 0.5},
        {"b2": OURS, "eps": OURS, "weight_decay": OURS},
        {"groups": [Group("Dense_1", lr_mult=2.0, clip_norm=1.0)]},
    ]
    # What is off is not among the numbers: 0 x parameter would be computed.
    switches: list[Tree] = [{"weight_decay": 0.0}, {"clip_norm": 1.0}, {"clip_norm": OURS1}]
    for change in changes + switches:
        tx = build(OptSpec("adamw", 0.1).replace(**change), facts)
        state = tx.init(params)
        updates, after = jax.eval_shape(tx.update, params, state, params)
        shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(s)] for s in (state, after)]
        assert shapes[0] == shapes[1]
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        without.add(jax.tree.structure((state.count, state.slots)))
        if change not in switches and "groups" not in change:
            whole.add(jax.tree.structure(state))
    assert len(whole) == len(without) == 1
    assert isinstance(state, OptState)
    assert state.count.dtype == jnp.int32
    assert sorted(state.slots) == ["mu", "nu"]
    assert flatten(state.slots["mu"]).keys() == facts.keys()
    assert build(OptSpec("sgd", 0.1), facts).init(params).slots == {}


def test_the_state_tells_the_learning_rate_that_was_applied(facts: Facts) -> None:
    params = tree(facts, 0)
    tx = build(OptSpec("adamw", OURS), facts)
    state = tx.init(params)
    assert float(state.learning_rates["default"]) == 0.0  # nothing was applied yet
    update = jax.jit(tx.update)
    for count in range(3):
        _, state = update(params, state, params)
        assert state.count == count + 1
        assert state.learning_rates["default"].dtype == jnp.float32
        # Compiled and not compiled differ in the last bits of a difference.
        assert float(state.learning_rates["default"]) == pytest.approx(
            float(OURS(count)), rel=1e-6
        )


def test_a_known_gradient_norm_is_used(facts: Facts) -> None:
    params = tree(facts, 0)
    grads = gradients(facts)[6]
    for spec in (OptSpec("sgd", 1.0, clip_norm=1.0), OptSpec(optim.sgd(1.0), clip_norm=1.0)):
        tx = build(spec, facts)
        updates, _ = once(tx, grads, params)
        # The norm of what is left is the threshold, up to float32 roundings of a sum.
        assert float(global_norm(updates)) == pytest.approx(1.0, rel=1e-6)
        told, _ = once(tx, grads, params, grad_norm=global_norm(grads))
        assert deviation(told, updates) <= 1e-6  # the norm's sum may be ordered differently
        tenth = jnp.float32(10) * global_norm(grads)
        less, _ = once(tx, grads, params, grad_norm=tenth)
        assert float(global_norm(less)) == pytest.approx(0.1, rel=1e-6)


def test_gradients_below_the_threshold_are_bitwise_unclipped(facts: Facts) -> None:
    params, grads = tree(facts, 0), gradients(facts)[0]
    free, clipped = (
        once(build(OptSpec("adam", 0.1, clip_norm=norm), facts), grads, params)[0]
        for norm in (None, 100.0)
    )
    jax.tree.map(np.testing.assert_array_equal, free, clipped)


def test_zero_gradients_clip_to_zero_and_nan_reaches_every_update(facts: Facts) -> None:
    params = tree(facts, 0)
    tx = build(OptSpec("sgd", 0.1, clip_norm=1.0), facts)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = once(tx, zero, params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
    bad = {**zero, "Dense_0": {**zero["Dense_0"], "bias": jnp.full(5, jnp.nan)}}
    updates, _ = once(tx, bad, params)
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(updates))


def test_a_pruned_tree_gets_the_same_updates_as_in_the_whole(facts: Facts) -> None:
    params, grads = tree(facts, 0), gradients(facts)
    tx = build(OptSpec("adamw", 1e-3, weight_decay=0.1), facts)
    whole, _ = run(tx, params, grads, 5)
    parts = ("Dense_1", "LayerNorm_0")
    pruned, state = run(
        tx, {k: params[k] for k in parts}, [{k: g[k] for k in parts} for g in grads], 5
    )
    jax.tree.map(np.testing.assert_array_equal, pruned, {k: whole[k] for k in parts})
    assert set(state.slots["mu"]) == set(parts)


def test_one_compilation_serves_all_steps(facts: Facts) -> None:
    params, grads = tree(facts, 0), gradients(facts)
    tx = build(OptSpec("adamw", OURS, clip_norm=1.0), facts)
    traces = []

    @jax.jit
    def step(params: Tree, state: Any, grad: Tree) -> tuple[Tree, Any]:
        traces.append(1)
        updates, state = tx.update(grad, state, params)
        return optim.apply_updates(params, updates), state

    state = tx.init(params)
    for grad in grads[:3]:
        params, state = step(params, state, grad)
    assert len(traces) == 1


def test_relative_durations_are_resolved_when_building(facts: Facts) -> None:
    spec = OptSpec("sgd", schedules.linear_schedule(1.0, 0.0, "50%"))
    params = tree(facts, 0)
    tx = build(spec, facts, Horizon(batches=4))
    state = tx.init(params)
    update, seen = jax.jit(tx.update), []
    for _ in range(4):
        _, state = update(params, state, params)
        seen.append(float(state.learning_rates["default"]))
    assert seen == [1.0, 0.5, 0.0, 0.0]
    with pytest.raises(ArgumentError, match="number of batches in the run is not known yet"):
        build(spec, facts)


def test_relative_durations_inside_a_chain_are_refused_when_building(facts: Facts) -> None:
    tx = optim.chain(optim.sgd(schedules.linear_schedule(1.0, 0.0, "50%")))
    with pytest.raises(ArgumentError, match="in an optimizer object are still relative"):
        build(OptSpec(tx), facts, Horizon(batches=4))


def test_an_object_gets_extra_arguments_and_keeps_its_state(facts: Facts) -> None:
    params = tree(facts, 0)
    seen: list[Any] = []

    def update(updates: Tree, state: Any, params: Tree | None = None, *, value: Any) -> Any:
        seen.append(value)
        return updates, state + 1

    foreign = optax.GradientTransformationExtraArgs(lambda params: jnp.int32(0), update)
    tx = build(OptSpec(foreign), facts)
    seen.clear()  # building tries an update by shapes
    _, state = tx.update(params, tx.init(params), params, value=3.0, grad=params)
    assert seen == [3.0]
    assert state.slots == 1
    assert state.count == 1
    assert state.learning_rates == {}


def test_a_built_transformation_prints_and_compares(facts: Facts) -> None:
    def make(**change: Any) -> Any:
        return build(OptSpec("adamw", 0.1).replace(**change), facts)

    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != make(decay="all")
    assert (
        repr(make())
        == "build(spec=OptSpec('adamw', learning_rate=0.1), assignment=<7 parameters, "
        "1 group, 1 phase>, phase=Phase(0, steps 0:, 7 trained))"
    )
    mask = facts.tree(lambda fact: fact.role == "kernel")
    assert make(decay=mask).arguments["assignment"].params == (
        make().arguments["assignment"].params
    )


def test_parameters_that_the_facts_do_not_know_are_refused(facts: Facts) -> None:
    params = tree(facts, 0)
    tx = build(OptSpec("adamw", 0.1), facts)
    with pytest.raises(ParameterError) as caught:
        tx.init({**params, "Dense_3": {"kernel": jnp.ones(3)}})
    assert str(caught.value) == (
        "the model has no parameter 'Dense_3/kernel'\n"
        "  where: build(spec, facts): init(params)\n"
        "  fix:   pass params of the model that facts describes; nearest: Dense_1/kernel"
    )
    with pytest.raises(ParameterError, match="needs the parameters, and got none"):
        tx.update(params, tx.init(params))
    with pytest.raises(ParameterError, match="structure of the params"):
        build(OptSpec("adamw", 0.1, decay={"kernel": True}), facts)


def test_a_learning_rate_with_axes_is_refused(facts: Facts) -> None:
    params = tree(facts, 0)
    with pytest.raises(ArgumentError, match=r"the learning rate has shape \(3,\)"):
        build(OptSpec("sgd", lambda count: jnp.ones(3)), facts)

    def later(count: Any) -> Any:
        # A number while the spec is built, an array while tracing.
        return 0.1 if isinstance(count, int) else jnp.ones(3)

    tx = build(OptSpec("sgd", later), facts)
    with pytest.raises(ArgumentError, match=r"the learning rate has shape \(3,\)"):
        tx.update(params, tx.init(params), params)


def test_the_same_program_for_a_population_of_learning_rates(facts: Facts) -> None:
    params, grads = tree(facts, 0), gradients(facts)[0]

    def step(learning_rate: Any) -> Tree:
        tx = build(OptSpec("sgd", learning_rate, weight_decay=0.1), facts)
        return tx.update(grads, tx.init(params), params)[0]

    rates = jnp.array([0.1, 0.2])
    both = jax.jit(jax.vmap(step))(rates)
    for index in range(2):
        one = jax.tree.map(lambda leaf, i=index: leaf[i], both)
        # The same products in another order of fusion.
        assert deviation(one, step(float(rates[index]))) <= 1e-6
