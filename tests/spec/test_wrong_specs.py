"""Wrong groups, freezes, layer decays, schedules and data: each has the promised answer.

What is wrong by itself is refused when it is made; what does not fit the model, when the spec
is resolved against the model's parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import pytest

from flaxtrain import optim
from flaxtrain.durations import Horizon
from flaxtrain.errors import (
    ArgumentError,
    ArgumentTypeError,
    FlaxtrainError,
    ParameterError,
    UnknownNameError,
)
from flaxtrain.schedules import linear_schedule
from flaxtrain.spec import Freeze, Group, LayerDecay, OptSpec, assign, build
from tests.spec.small import net_facts

FALLS = linear_schedule(0.1, -0.1, 10)
LATER = linear_schedule(0.1, 0.0, "50%")


def spec(**arguments: Any) -> Callable[[], OptSpec]:
    return lambda: OptSpec(**{"optimizer": "adamw", "learning_rate": 0.1, **arguments})


def group(select: Any = "head", **arguments: Any) -> Callable[[], OptSpec]:
    return lambda: OptSpec("adamw", 0.1, groups=[Group(select, **arguments)])


def resolved(make: Callable[[], OptSpec]) -> Callable[[], Any]:
    return lambda: assign(make(), net_facts())


def data(**fields: Any) -> Callable[[], OptSpec]:
    table = {"optimizer": "adamw", "learning_rate": 0.1, **fields}
    return lambda: OptSpec.from_dict(table)


WRONG: dict[str, tuple[Callable[[], Any], type[FlaxtrainError], tuple[str, ...]]] = {
    # Selectors.
    "a selector of a number": (
        group(3),
        ArgumentTypeError,
        ("3 is an int", "where: Group(3)"),
    ),
    "a selector that can't be read": (
        group("(head"),
        ArgumentError,
        ("where: Group('(head')",),
    ),
    "an unknown role": (
        group("#bais"),
        UnknownNameError,
        ("unknown role 'bais'", "did you mean 'bias'?"),
    ),
    "an empty list of selectors": (
        group([]),
        ArgumentError,
        ("an empty list", "where: Group([])"),
    ),
    "a module in place of its class": (
        lambda: Freeze(nn.Dense(3)),  # type: ignore[arg-type]
        ArgumentTypeError,
        ("pass the class, Dense",),
    ),
    "a path that the model does not have": (
        resolved(group("heed/**")),
        ParameterError,
        ("no parameter matches 'heed/**'", "where: Group('heed/**')", "head"),
    ),
    "a freeze of a class that is not there": (
        resolved(spec(freeze="@Convv")),
        ParameterError,
        ("no parameter matches '@Convv'", "where: Freeze('@Convv')"),
    ),
    "a function that answers no bool": (
        resolved(group(lambda fact: "yes")),
        ArgumentTypeError,
        ("yes",),
    ),
    # Groups.
    "a group that others have emptied": (
        resolved(spec(groups=[Group("head"), Group("head/kernel")])),
        ParameterError,
        ("earlier groups have all of its parameters", "put the narrower group first"),
    ),
    "two groups of one name": (
        spec(groups=[Group("head"), Group("#bias", name="head")]),
        ArgumentError,
        ("the name 'head' is that of group number 0", "pass another name="),
    ),
    "a group called default": (
        spec(groups=[Group("head", name="default")]),
        ArgumentError,
        ("the name 'default' is that of the rest",),
    ),
    "a name with a slash": (
        lambda: Group("head", name="a/b"),
        ArgumentError,
        ("name='a/b' can't be a key and a curve's name", "use letters, digits"),
    ),
    "a name that is no text": (
        lambda: Group("head", name=3),  # type: ignore[arg-type]
        ArgumentTypeError,
        ("name=3 is an int", "pass a string"),
    ),
    "a negative factor": (
        lambda: Group("head", lr_mult=-1.0),
        ArgumentError,
        ("lr_mult=-1.0 is out of range", "where: Group('head')"),
    ),
    "a schedule as factor": (
        lambda: Group("head", lr_mult=LATER),  # type: ignore[arg-type]
        ArgumentTypeError,
        ("lr_mult=", "not a number"),
    ),
    "a number as schedule": (
        lambda: Group("head", schedule=0.1),  # type: ignore[arg-type]
        ArgumentTypeError,
        ("schedule=0.1 is a float, not a schedule", "a number as learning_rate="),
    ),
    "two schedules": (
        lambda: Group("head", schedule=LATER, learning_rate=LATER),
        ArgumentError,
        ("both learning_rate and schedule are schedules", "leave one of them out"),
    ),
    "an unknown optimizer in a group": (
        group(optimizer="sdg"),
        UnknownNameError,
        ("unknown optimizer 'sdg'", "where: Group('head')", "did you mean 'sgd'?"),
    ),
    "a hyperparameter that the group's optimizer has not": (
        group(optimizer="sgd", b1=0.5),
        UnknownNameError,
        ("unknown argument 'b1'", "where: Group('head')"),
    ),
    "a hyperparameter of a group out of range": (
        group(b1=1.0),
        ArgumentError,
        ("b1=1.0 is out of range", "where: Group('head')"),
    ),
    "what only the whole spec has": (
        group(layer_decay=0.5),
        ArgumentError,
        ("layer_decay is said of all parameters together", "pass layer_decay= to OptSpec"),
    ),
    "groups that are no list": (
        spec(groups={"head": 0.1}),
        ArgumentTypeError,
        ("is a dict, not a list", "pass a list of Group"),
    ),
    "a group that is none": (
        spec(groups=[Group("head"), "body"]),
        ArgumentTypeError,
        ("'body' is a str, not a Group", "number 1", "pass Group(...)"),
    ),
    "a decay of a group that reaches nothing": (
        resolved(group("#bias", weight_decay=0.5)),
        ParameterError,
        ("none of the group's parameters decays", "where: group 'bias'", "decay='all'"),
    ),
    "numbers of a group where there is one state": (
        lambda: build(OptSpec("noisy_sgd", 0.1, groups=[Group("head", eta=1.0)]), net_facts()),
        ArgumentError,
        ("noisy_sgd treats all parameters together", "leave them out"),
    ),
    # Optimizer objects.
    "a factor for an object": (
        group(optimizer=optim.adam(0.1), lr_mult=2.0),
        ArgumentError,
        ("a factor of the learning rate does not go with an optimizer object",),
    ),
    "a decay for an object": (
        group(optimizer=optim.adam(0.1), weight_decay=0.1),
        ArgumentError,
        ("weight_decay does not go with an optimizer object", "where: Group('head')"),
    ),
    "a hyperparameter for an object": (
        group(optimizer=optim.adam(0.1), b1=0.1),
        ArgumentError,
        ("b1 does not go with an optimizer object",),
    ),
    "layer decay for an object": (
        lambda: OptSpec(optim.adam(0.1), layer_decay=0.5),
        ArgumentError,
        ("layer_decay does not go with an optimizer object",),
    ),
    "decay to the initial values by an object": (
        lambda: OptSpec(optim.adam(0.1), decay_to="init"),
        ArgumentError,
        ("decay_to does not go with an optimizer object",),
    ),
    "a named optimizer without a rate beside an object": (
        lambda: OptSpec(optim.adam(0.1), groups=[Group("head", optimizer="sgd")]),
        ArgumentError,
        ("no learning rate is given", "where: Group('head')"),
    ),
    "an optimizer that is none": (
        group(optimizer=optim.adam),
        ArgumentTypeError,
        ("adam is a function, not an optimizer",),
    ),
    # Freezes and durations.
    "a freeze that ends before it starts": (
        lambda: Freeze("head", 3, start=5, slots="drop"),
        ArgumentError,
        ("until=3 is not after start=5", "pass a larger until"),
    ),
    "a freeze of no time": (
        lambda: Freeze("head", until=0),
        ArgumentError,
        ("until=0 is no time at all", "pass a duration above zero"),
    ),
    "a duration that can't be read": (
        lambda: Freeze("head", until="2 weeks"),
        ArgumentError,
        ("2 weeks", "Freeze('head'): until"),
    ),
    "a late freeze that is silent about slots": (
        lambda: Freeze("head", start=5),
        ArgumentError,
        ("what becomes of the optimizer's slots", "slots='drop'"),
    ),
    "slots to keep before there are any": (
        lambda: Freeze("head", slots="keep"),
        ArgumentError,
        ("slots='keep', and the freeze starts with the run", "leave slots out"),
    ),
    "a gradual thawing that never begins": (
        lambda: Freeze("head", every=5),
        ArgumentError,
        ("every=5, and the parameters never thaw", "pass until="),
    ),
    "a warm-up after no thawing": (
        lambda: Freeze("head", rewarm="2%"),
        ArgumentError,
        ("rewarm='2%', and the parameters never thaw",),
    ),
    "a warm-up of a rate that is read only once": (
        resolved(
            spec(
                groups=[Group("head", name="top", optimizer="rprop")],
                freeze=[Freeze("head", 5, rewarm=3)],
            )
        ),
        ArgumentError,
        (
            "the learning rate of 'head/bias' can't rise: rprop reads it only once",
            "where: group 'top': Freeze(rewarm=...)",
            "leave rewarm out",
        ),
    ),
    "an unknown choice of statistics": (
        lambda: Freeze("head", stats="hodl"),  # type: ignore[arg-type]
        UnknownNameError,
        ("unknown stats 'hodl'", "did you mean 'hold'?"),
    ),
    "an unknown mode": (
        lambda: Freeze("head", mode="test"),  # type: ignore[arg-type]
        UnknownNameError,
        ("unknown mode 'test'",),
    ),
    "an unknown order": (
        lambda: Freeze("head", 3, every=2, order="topdown"),  # type: ignore[arg-type]
        UnknownNameError,
        ("unknown order 'topdown'", "did you mean 'top_down'?"),
    ),
    "everything frozen": (
        resolved(spec(freeze="**")),
        ParameterError,
        ("every parameter is frozen from step 0", "where: OptSpec(freeze=...)"),
    ),
    "a share of a run of unknown length": (
        resolved(spec(freeze=Freeze("head", until="5%"))),
        ArgumentError,
        ("number of batches in the run is not known yet", "Freeze('head'): until"),
    ),
    "a schedule of a group with a relative duration": (
        resolved(group(schedule=LATER)),
        ArgumentError,
        ("number of batches in the run is not known yet",),
    ),
    "a relative duration inside an object of a group": (
        lambda: build(
            OptSpec(
                "sgd",
                0.1,
                groups=[Group("head", optimizer=optim.chain(optim.sgd(LATER)))],
            ),
            net_facts(),
            Horizon(batches=10),
        ),
        ArgumentError,
        ("durations in an optimizer object are still relative",),
    ),
    # Layer-wise decay.
    "a layer decay of 0": (
        spec(layer_decay=0.0),
        ArgumentError,
        ("rate=0.0 is out of range", "where: LayerDecay", "(0, 1]"),
    ),
    "a layer decay that grows": (
        spec(layer_decay=1.5),
        ArgumentError,
        ("rate=1.5 is out of range",),
    ),
    "a layer decay of text": (
        spec(layer_decay="0.5"),
        ArgumentTypeError,
        ("rate='0.5' is a str, not a number",),
    ),
    "a negative least scale": (
        lambda: LayerDecay(0.5, min_scale=-0.1),
        ArgumentError,
        ("min_scale=-0.1 is out of range",),
    ),
    "a layer of nothing": (
        resolved(spec(layer_decay=LayerDecay(0.5, layer_of={"heed": 3}))),
        ParameterError,
        ("no parameter matches 'heed'", "LayerDecay(layer_of="),
    ),
    # Schedules of hyperparameters, and decays.
    "a weight decay that falls below zero": (
        spec(weight_decay=FALLS),
        ArgumentError,
        ("weight_decay=-0.1 is out of range", "OptSpec('adamw')"),
    ),
    "a learning rate of a group that falls below zero": (
        group(schedule=FALLS),
        ArgumentError,
        ("the learning rate falls to -0.1", "where: Group('head')"),
    ),
    "a momentum that rises to 1": (
        spec(b1=linear_schedule(0.9, 1.0, 10)),
        ArgumentError,
        ("b1=1.0 is out of range", "[0, 1)"),
    ),
    "a clip norm that falls to 0": (
        group(clip_norm=linear_schedule(1.0, 0.0, 10)),
        ArgumentError,
        ("clip_norm=0.0 is out of range", "where: Group('head')"),
    ),
    "a schedule of a flag": (
        spec(nesterov=LATER),
        ArgumentTypeError,
        ("nesterov is no number and can't follow a schedule", "b1, b2, eps, eps_root"),
    ),
    "a function that returns an array": (
        spec(b2=lambda count: [0.9, 0.99]),
        ArgumentTypeError,
        ("b2 at count 0=[0.9, 0.99] is a list, not a number",),
    ),
    "a misspelt preset": (
        group(decay="kernals"),
        UnknownNameError,
        ("unknown decay preset 'kernals'", "did you mean 'kernels'?", "where: Group('head')"),
    ),
    "a decay towards something else": (
        spec(decay_to="initial"),
        UnknownNameError,
        ("unknown decay_to 'initial'", "did you mean 'init'?"),
    ),
    "a decay towards the start where nothing decays": (
        resolved(lambda: OptSpec("adam", 0.1, decay_to="init")),
        ParameterError,
        ("decay_to='init', and no trained parameter decays", "where: OptSpec('adam')"),
    ),
    "a decay towards the start of what is never trained": (
        resolved(spec(decay_to="init", freeze="#kernel")),
        ParameterError,
        ("no trained parameter decays", "a decay that selects trained parameters"),
    ),
    "a decay for a method without one": (
        lambda: OptSpec("fromage", 0.1, groups=[Group("head", weight_decay=0.1)]),
        ArgumentError,
        ("weight_decay=0.1, and fromage has no weight decay", "where: Group('head')"),
    ),
    # JSON data.
    "a group without a selector": (
        data(groups=[{"lr_mult": 2.0}]),
        ArgumentError,
        ("no 'select' is given", "OptSpec.from_dict: groups", "add 'select'"),
    ),
    "a row that is none": (
        data(groups=["head"]),
        ArgumentTypeError,
        ("'head' is a str, not a mapping", "OptSpec.from_dict: groups"),
    ),
    "rows that are no list": (
        data(freeze="head"),
        ArgumentTypeError,
        ("'head' is a str, not a list", "OptSpec.from_dict: freeze"),
    ),
    "a misspelt field of a freeze": (
        data(freeze=[{"select": "head", "untill": 3}]),
        UnknownNameError,
        ("unknown field 'untill'", "did you mean 'until'?", "OptSpec.from_dict: freeze"),
    ),
    "a misspelt field of a group": (
        data(groups=[{"select": "head", "lr_mul": 3}]),
        UnknownNameError,
        ("unknown argument 'lr_mul'", "did you mean 'lr_mult'?", "where: Group('head')"),
    ),
    "a misspelt argument of a layer decay": (
        lambda: LayerDecay(0.5, min_scal=0.1),  # type: ignore[call-arg]
        ArgumentTypeError,
        ("unexpected keyword argument 'min_scal'", "did you mean 'min_scale'?"),
    ),
    "a misspelt field of a layer decay": (
        data(layer_decay={"rat": 0.5}),
        UnknownNameError,
        ("unknown field 'rat'", "did you mean 'rate'?", "OptSpec.from_dict: layer_decay"),
    ),
    "a layer decay without a rate": (
        data(layer_decay={"min_scale": 0.5}),
        ArgumentError,
        ("no 'rate' is given", "add 'rate'", "OptSpec.from_dict: layer_decay"),
    ),
    "an unknown object in a group": (
        data(groups=[{"select": "head", "optimizer": {"object": "adm"}}]),
        UnknownNameError,
        ("unknown optimizer 'adm'", "did you mean 'adam'?"),
    ),
    "an unknown schedule in a group": (
        data(groups=[{"select": "head", "b1": {"schedule": "linear"}}]),
        UnknownNameError,
        ("unknown schedule 'linear'",),
    ),
    "a function in a group": (
        lambda: group(lambda fact: True, lr_mult=2)().to_json(),
        ArgumentTypeError,
        ("the function", "can't be written as data", "select=...)"),
    ),
    "a number that JSON has not": (
        lambda: OptSpec("adafactor", 0.1, clipping_threshold=float("inf")).to_json(),
        ArgumentTypeError,
        ("inf can't be written as data", "clipping_threshold"),
    ),
}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_spec_is_answered(case: str) -> None:
    make, error, texts = WRONG[case]
    with pytest.raises(error) as caught:
        make()
    for text in texts:
        assert text in str(caught.value)
    assert caught.value.where and caught.value.fix
