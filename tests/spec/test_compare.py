"""Fingerprints and differences of specs, and their exact way through JSON."""

from __future__ import annotations

import json
import string
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxtrain import optim
from flaxtrain.errors import ArgumentTypeError
from flaxtrain.schedules import constant_schedule, cosine_decay_schedule, linear_schedule
from flaxtrain.spec import Freeze, Group, LayerDecay, OptSpec

BASE = OptSpec(
    "adamw",
    linear_schedule(0.1, 0.0, "50%"),
    weight_decay=0.1,
    groups=[Group("head/**", lr_mult=10.0), Group("#bias", weight_decay=0.0)],
    freeze=[Freeze("body", until="2ep")],
    layer_decay=LayerDecay(0.75),
    b2=0.95,
)


def changed(**change: Any) -> tuple[str, ...]:
    return BASE.diff(BASE.replace(**change))


HEAD, BIAS = BASE.groups


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({}, ()),
        ({"weight_decay": 0.2}, ("weight_decay: 0.1 -> 0.2",)),
        ({"clip_norm": 1.0}, ("clip_norm: None -> 1.0",)),
        ({"decay": "all"}, ("decay: 'kernels' -> 'all'",)),
        ({"b2": 0.9}, ("b2: 0.95 -> 0.9",)),
        ({"b1": 0.9}, ("b1: not given -> 0.9",)),
        ({"hyperparameters": {}}, ("b2: 0.95 -> not given",)),
        (
            {"learning_rate": linear_schedule(0.2, 0.0, "40%")},
            (
                "learning_rate.init_value: 0.1 -> 0.2",
                "learning_rate.transition_steps: '50%' -> '40%'",
            ),
        ),
        (
            {"learning_rate": 0.1},
            (
                "learning_rate: polynomial_schedule(init_value=0.1, end_value=0.0, power=1, "
                "transition_steps='50%') -> 0.1",
            ),
        ),
        ({"layer_decay": LayerDecay(0.7)}, ("layer_decay.rate: 0.75 -> 0.7",)),
        (
            {"layer_decay": LayerDecay(0.75, layer_of={"head": 1})},
            ("layer_decay.layer_of: None -> {'head': 1}",),
        ),
        (
            {"groups": [HEAD.replace(lr_mult=5.0, b1=0.5), BIAS]},
            ("groups['head'].lr_mult: 10.0 -> 5.0", "groups['head'].b1: not given -> 0.5"),
        ),
        ({"groups": [HEAD]}, ("groups: 'bias' removed",)),
        ({"groups": [HEAD, Group("embed"), BIAS]}, ("groups: 'embed' added",)),
        ({"groups": [BIAS, HEAD]}, ("groups: order head, bias -> bias, head",)),
        (
            {"groups": [HEAD.replace(select="head"), BIAS]},
            ("groups['head'].select: 'head/**' -> 'head'",),
        ),
        (
            {"freeze": [Freeze("body", until="3ep"), Freeze("embed")]},
            ("freeze['body'].until: '2ep' -> '3ep'", "freeze: 'embed' added"),
        ),
        ({"freeze": []}, ("freeze: 'body' removed",)),
        (
            {"freeze": [*BASE.freeze, Freeze("body", start=9, slots="drop")]},
            ("freeze: 'body #2' added",),
        ),
        ({"decay": lambda fact: True}, ("decay: 'kernels' -> <function <lambda>>",)),
    ],
)
def test_differences_are_said_field_by_field(
    change: dict[str, Any], lines: tuple[str, ...]
) -> None:
    assert changed(**change) == lines


def test_masks_and_objects_are_compared_inside() -> None:
    one = OptSpec("adamw", 0.1, decay={"head": {"kernel": True}, "body": {"kernel": True}})
    two = one.replace(decay={"head": {"kernel": False}, "body": {"kernel": True}})
    assert one.diff(two) == ("decay['head']['kernel']: True -> False",)
    one, two = OptSpec(optim.adam(0.1, b1=0.5)), OptSpec(optim.adam(0.2))
    assert one.diff(two) == (
        "optimizer.learning_rate: 0.1 -> 0.2",
        "optimizer.b1: 0.5 -> not given",
    )
    assert one.diff(OptSpec("sgd", 1)) == (
        "optimizer: adam(learning_rate=0.1, b1=0.5) -> 'sgd'",
        "learning_rate: None -> 1.0",
    )


@pytest.mark.usefixtures("unchecked_types")
def test_other_things_are_no_specs() -> None:
    with pytest.raises(ArgumentTypeError, match="'adamw' is a str, not an OptSpec"):
        BASE.diff("adamw")  # type: ignore[arg-type]


def test_fingerprints_tell_specs_apart_and_are_the_same_in_every_process() -> None:
    others = [
        BASE.replace(**change)
        for change in (
            {"weight_decay": 0.2},
            {"groups": BASE.groups[::-1]},
            {"freeze": ()},
            {"b2": 0.96},
            {"decay_to": "init"},
            {"learning_rate": 1},
        )
    ]
    marks = {spec.fingerprint() for spec in (BASE, *others)}
    assert len(marks) == 1 + len(others)
    assert all(len(mark) == 12 and set(mark) <= set(string.hexdigits) for mark in marks)
    assert BASE.replace().fingerprint() == BASE.fingerprint()
    assert OptSpec("adam", 0.1, b1=0.5, b2=0.6).fingerprint() == "d1d4f7162e0e"


def test_integers_that_mean_floats_are_floats() -> None:
    def spec(one: Any, four: Any) -> OptSpec:
        groups = [
            Group("head", learning_rate=one, lr_mult=four, clip_norm=four, momentum=one),
            Group("body", optimizer="adam", weight_decay=one, eps=four),
        ]
        given: dict[str, Any] = {"weight_decay": one, "clip_norm": four, "layer_decay": one}
        return OptSpec("sgd", one, momentum=one, groups=groups, **given)

    whole, real = spec(1, np.int32(4)), spec(1.0, 4.0)
    assert whole == real
    assert repr(whole) == repr(real)
    assert whole.diff(real) == ()
    assert whole.fingerprint() == real.fingerprint()
    assert OptSpec.from_json(whole.to_json().replace(".0", "")) == real  # as others write it
    assert LayerDecay(1, 0) == LayerDecay(1.0, 0.0)


def test_integers_that_mean_integers_stay() -> None:
    spec = OptSpec(
        "shampoo",
        1,
        block_size=8,
        freeze=[Freeze("body", until=3)],
        groups=[Group("head", block_size=4, eps=1)],
        layer_decay=LayerDecay(1, layer_of={"head": 2}),
    )
    assert repr(dict(spec.hyperparameters)) == "{'block_size': 8}"
    assert repr(dict(spec.groups[0].hyperparameters)) == "{'block_size': 4, 'eps': 1.0}"
    assert repr(spec.freeze[0]) == "Freeze('body', until=3)"
    assert repr(spec.layer_decay) == "LayerDecay(1.0, layer_of={'head': 2})"
    assert OptSpec("noisy_sgd", 0.1, seed=1) != OptSpec("noisy_sgd", 0.1, seed=2)
    assert repr(OptSpec("adam", 0.1, nesterov=True).hyperparameters) == "(('nesterov', True),)"
    assert OptSpec.from_json(spec.to_json()) == spec


def test_a_spec_with_code_has_no_fingerprint() -> None:
    with pytest.raises(ArgumentTypeError, match="<lambda> can't be written as data"):
        BASE.replace(groups=[Group(lambda fact: True)]).fingerprint()
    with pytest.raises(ArgumentTypeError, match="can't be written as data"):
        OptSpec(optim.chain(optim.adam(0.1))).fingerprint()


# Every field of a spec, of all kinds that JSON can hold.

# What is drawn are calls, and the test makes them: beartype rolls dice, which Hypothesis
# forbids in strategies.


class Call(NamedTuple):
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def call(function: Any, *args: Any, **kwargs: Any) -> Any:
    return st.builds(lambda *a, **k: Call(function, a, k), *args, **kwargs)


def made(value: Any) -> Any:
    if isinstance(value, Call):
        return value.function(*map(made, value.args), **made(value.kwargs))
    if isinstance(value, dict):
        return {key: made(child) for key, child in value.items()}
    return [made(child) for child in value] if isinstance(value, (list, tuple)) else value


NUMBERS = st.floats(0.0, 0.875)
POSITIVE = st.floats(2.0**-10, 10.0)
SCHEDULES = st.one_of(
    call(linear_schedule, NUMBERS, NUMBERS, st.sampled_from([3, "10%", "2ep", "1M ex"])),
    call(constant_schedule, NUMBERS),
    call(cosine_decay_schedule, NUMBERS, st.integers(1, 9)),
)
RATES = NUMBERS | SCHEDULES
SELECTORS = st.sampled_from(["head/**", "#bias", "@LayerNorm", "re:a|b", "#kernel & ~head"]) | (
    st.lists(st.sampled_from(["a", "#bias"]), min_size=1, max_size=2)
)
DECAYS = st.sampled_from(["kernels", "timm", "#kernel & ~head", ["#kernel", "embed"]]) | (
    st.dictionaries(st.sampled_from("abc"), st.booleans() | st.just({"kernel": True}))
)
OBJECTS = call(optim.adam, RATES, b1=NUMBERS) | call(optim.sgd, SCHEDULES)


def some(**optional: Any) -> Any:
    return st.fixed_dictionaries({}, optional=optional)


def named(index: int) -> Any:
    own = some(
        learning_rate=NUMBERS,
        lr_mult=POSITIVE,
        schedule=SCHEDULES,
        weight_decay=RATES,
        decay=DECAYS,
        clip_norm=POSITIVE,
        b1=RATES,
        mu_dtype=st.sampled_from(["bfloat16", None]),
    )
    other = st.fixed_dictionaries({"optimizer": OBJECTS}, optional={"clip_norm": POSITIVE})
    return call(
        lambda select, given: Group(select, name=f"g{index}", **given), SELECTORS, own | other
    )


FREEZES = st.one_of(
    call(Freeze, SELECTORS),
    call(
        Freeze,
        SELECTORS,
        st.sampled_from([5, "2ep", "50%"]),
        every=st.sampled_from([None, 2, "1ep"]),
        order=st.sampled_from(["top_down", "bottom_up"]),
        stats=st.sampled_from(["hold", "update"]),
        mode=st.sampled_from(["eval", "train"]),
        rewarm=st.sampled_from([0, "1%"]),
    ),
    call(Freeze, SELECTORS, start=st.just("1ep"), slots=st.sampled_from(["drop", "keep"])),
)
LAYER_DECAYS = st.one_of(
    st.none(),
    st.floats(0.125, 1.0),
    call(
        LayerDecay,
        st.floats(0.125, 1.0),
        NUMBERS,
        st.none() | st.dictionaries(st.sampled_from(["head", "#bias"]), st.integers(0, 9)),
    ),
)
SPECS = call(
    lambda rate, given: OptSpec("adamw", rate, **given),
    RATES,
    some(
        weight_decay=RATES,
        decay=DECAYS,
        decay_to=st.sampled_from(["zero", "init"]),
        clip_norm=POSITIVE,
        nonfinite=st.sampled_from(["raise", "skip"]),
        layer_decay=LAYER_DECAYS,
        groups=st.tuples(named(0), named(1)) | named(0).map(lambda group: (group,)),
        freeze=st.lists(FREEZES, max_size=2),
        b1=RATES,
        b2=RATES,
        eps=POSITIVE,
        nesterov=st.booleans(),
    ),
)


@given(SPECS)
def test_every_spec_goes_through_json_exactly(drawn: Call) -> None:
    spec = made(drawn)
    text = spec.to_json()
    back = OptSpec.from_json(text)
    assert back == spec
    assert (back.to_json(), repr(back), hash(back)) == (text, repr(spec), hash(spec))
    assert back.diff(spec) == ()
    assert back.fingerprint() == spec.fingerprint()


@given(SPECS, SPECS)
def test_specs_are_equal_if_and_only_if_nothing_differs(one: Call, two: Call) -> None:
    a, b = made(one), made(two)
    assert (a == b) == (a.diff(b) == ()) == (a.fingerprint() == b.fingerprint())
    assert len(a.diff(b)) == len(b.diff(a))


def test_the_order_of_layers_says_something() -> None:
    first, second = {"head": 2, "**": 0}, {"**": 0, "head": 2}
    one, other = (
        OptSpec("sgd", 0.1, layer_decay=LayerDecay(0.5, layer_of=o)) for o in (first, second)
    )
    assert one != other and one.fingerprint() != other.fingerprint()
    assert one.diff(other) == ("layer_decay.layer_of: order head, ** -> **, head",)
    for spec in (one, other):
        # Not even sorted keys lose it.
        again = json.loads(json.dumps(spec.to_dict(), sort_keys=True))
        assert OptSpec.from_dict(again) == spec
    pairs = LayerDecay(0.5, layer_of=list(first.items()))
    assert pairs == one.layer_decay and hash(pairs) == hash(one.layer_decay)


def test_integers_in_optimizer_objects_are_the_floats_that_they_mean() -> None:
    one, other = (OptSpec(optim.adam(rate, eps=1)) for rate in (1, 1.0))
    assert one == other and one.fingerprint() == other.fingerprint()
    assert one.diff(other) == ()
    groups = [
        OptSpec("sgd", 0.1, groups=[Group("a", optimizer=optim.sgd(r))]) for r in (1, 1.0)
    ]
    assert groups[0] == groups[1]
    # Seeds and the like stay integers, and an object that needs no change stays itself.
    noisy = optim.noisy_sgd(0.5, seed=3)
    assert OptSpec(noisy).optimizer is noisy
    assert OptSpec(optim.noisy_sgd(1, seed=3)) == OptSpec(optim.noisy_sgd(1.0, seed=3))
