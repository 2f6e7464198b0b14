"""Every optimizer that a spec builds by name against the function of that name."""

from __future__ import annotations

import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain import optim
from flaxtrain.optim.stages import DECAY
from flaxtrain.params import Facts, decay_mask, param_facts
from flaxtrain.spec import OptSpec, build
from flaxtrain.tree import flatten
from tests.runs import deviation

STEPS = 6

OWN_RATE = {"rprop", "optimistic_adam"}
"""Their learning rate can't be a schedule."""

ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "adadelta": [{}, {"rho": 0.8, "eps": 0.1}],
    "adafactor": [
        {"min_dim_size_to_factor": 2, "momentum": 0.9},
        {"min_dim_size_to_factor": 4, "momentum": 0.9, "clipping_threshold": 0.7},
        {
            "clipping_threshold": None,
            "multiply_by_parameter_scale": False,
            "factored": False,
        },
    ],
    "adagrad": [{}, {"initial_accumulator_value": 0.2, "eps": 0.1}],
    "fromage": [{}, {"min_norm": 1e-3}],
    "lamb": [{}, {"b1": 0.8}],
    "lars": [{}, {"trust_coefficient": 0.01, "nesterov": True}],
    "noisy_sgd": [{"seed": 3}, {"eta": 0.1, "gamma": 0.2, "seed": 3}],
    "optimistic_adam": [{}, {"optimism": 0.2, "b1": 0.8}],
    "optimistic_adam_v2": [{}, {"beta": 0.5}],
    "optimistic_gradient_descent": [{}, {"alpha": 0.5, "beta": 0.2}],
    "rmsprop": [
        {"momentum": 0.9, "centered": True},
        {
            "rho": 0.8,
            "eps": 0.1,
            "initial_scale": 0.2,
            "eps_in_sqrt": False,
            "centered": True,
            "momentum": 0.5,
            "nesterov": True,
            "bias_correction": True,
        },
    ],
    "rprop": [{}, {"eta_minus": 0.4}],
    "shampoo": [{"block_size": 4, "precondition_every": 2}],
    "signum": [{}, {"beta": 0.8, "accumulator_dtype": "bfloat16"}],
    "sm3": [{}, {"momentum": 0.5}],
}
"""Where the defaults leave something out, other arguments as well."""

SPELT = {"rmsprop": {"rho": "decay"}}
"""Arguments that a spec calls otherwise than the function: its `decay` says what decays."""

ROWS = [
    pytest.param(name, arguments, id=name + (str(arguments) if arguments else ""))
    for name in optim.NAMED
    for arguments in ARGUMENTS.get(name, [{}])
]


class Net(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.LayerNorm()(nn.Dense(5)(nn.Embed(7, 6)(tokens))))


@pytest.fixture(scope="module")
def facts() -> Facts:
    return param_facts(Net(), jnp.zeros((2, 4), jnp.int32))


def draw(facts: Facts, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return facts.tree(lambda fact: jnp.asarray(rng.normal(size=fact.shape), jnp.float32))


def run(tx: Any, facts: Facts) -> Any:
    params = draw(facts, 0)
    grads = jax.tree.map(lambda *g: jnp.stack(g), *(draw(facts, 1 + t) for t in range(STEPS)))

    @jax.jit
    def final(params: Any) -> Any:
        def step(carry: Any, grad: Any) -> Any:
            params, state = carry
            updates, state = tx.update(grad, state, params)
            return (optim.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), grads)[0]

    return final(params)


def is_trusted(facts: Facts) -> Any:
    return facts.tree(lambda fact: fact.role not in ("bias", "norm_scale", "norm_bias"))


def lamb_by_role(rate: Any, facts: Facts, decay: float, arguments: Any) -> Any:
    """LAMB with the trust ratio where a spec has it."""
    mask = decay_mask(facts, "kernels")
    return optim.chain(
        optim.scale_by_adam(**{"eps": 1e-6, **arguments}),
        optim.add_decayed_weights(decay, mask),
        optim.masked(optim.scale_by_trust_ratio(), is_trusted(facts)),
        optim.scale_by_learning_rate(rate),
    )


def by_hand(name: str, rate: Any, facts: Facts, decay: float, arguments: Any) -> Any:
    if name == "lamb":
        return lamb_by_role(rate, facts, decay, arguments)
    if name == "lars":
        arguments = {**arguments, "trust_ratio_mask": is_trusted(facts)}
    factory = optim.NAMED[name].factory
    parameters = inspect.signature(factory).parameters
    wanted = {"weight_decay": decay, "weight_decay_rate": decay}
    wanted |= dict.fromkeys(("mask", "weight_decay_mask"), decay_mask(facts, "kernels"))
    given = {key: value for key, value in wanted.items() if key in parameters and decay}
    spelt = {SPELT.get(name, {}).get(key, key): value for key, value in arguments.items()}
    return factory(learning_rate=rate, **given, **spelt)


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_the_trust_ratio_leaves_out_biases_and_norms_in_a_spec_only(
    name: str, facts: Facts
) -> None:
    expected = optim.NAMED[name].factory(1e-2)
    ours, theirs = (run(tx, facts)[0] for tx in (build(OptSpec(name, 1e-2), facts), expected))
    for path, trusted in flatten(is_trusted(facts)).items():
        gap = deviation(flatten(ours)[path], flatten(theirs)[path])
        # The same numbers, or steps of another length.
        assert gap <= 1e-6 if trusted else gap > 1e-2, path


def takes_decay(name: str) -> bool:
    parameters = set(inspect.signature(optim.NAMED[name].factory).parameters)
    masked = parameters & {"mask", "weight_decay_mask"}
    return bool(masked and parameters & {"weight_decay", "weight_decay_rate"})


@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "scheduled"])
@pytest.mark.parametrize(("name", "arguments"), ROWS)
def test_a_spec_gives_what_the_function_of_that_name_gives(
    name: str, arguments: dict[str, Any], scheduled: bool, facts: Facts
) -> None:
    if scheduled and name in OWN_RATE:
        return  # refused: see the tests of these functions
    rate: Any = optim_rate if scheduled else 1e-2
    decay = 0.1 if takes_decay(name) else 0.0
    spec = OptSpec(name, rate, weight_decay=decay, **arguments)
    expected = by_hand(name, rate, facts, decay, arguments)
    params, state = run(build(spec, facts), facts)
    # Bit for bit, but for scalar factors that are multiplied in another order.
    assert deviation(params, run(expected, facts)[0]) <= 1e-6
    assert state.count == STEPS


def optim_rate(count: Any) -> Any:
    return 1e-2 / (1 + count)


@pytest.mark.parametrize("name", sorted(set(optim.NAMED) - OWN_RATE))
def test_the_state_is_the_same_tree_scheduled_or_not_masked_or_not(
    name: str, facts: Facts
) -> None:
    def structure(**arguments: Any) -> Any:
        spec = OptSpec(name, **arguments)
        return jax.tree.structure(jax.eval_shape(build(spec, facts).init, draw(facts, 0)))

    plain = structure(learning_rate=0.1, weight_decay=0.0)
    assert plain == structure(learning_rate=optim_rate, weight_decay=0.0)
    if DECAY in optim.NAMED[name].stages(0.1):  # the others refuse a decay
        decayed = structure(learning_rate=0.1, weight_decay=0.1, decay="all")
        assert decayed == structure(learning_rate=0.1, weight_decay=optim_rate)
        # A decay that is off is not among the names of the numbers, which are one leaf.
        assert decayed.num_leaves == plain.num_leaves


@pytest.mark.parametrize(("name", "arguments"), ROWS)
def test_specs_by_name_go_through_json(name: str, arguments: dict[str, Any]) -> None:
    spec = OptSpec(name, 1e-2, **arguments)
    assert OptSpec.from_json(spec.to_json()) == spec
