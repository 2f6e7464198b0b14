"""Who gets what: groups, decay, layer-wise rates and trust, resolved against the parameters."""

from __future__ import annotations

import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, FlaxtrainError, ParameterError, UnknownNameError
from flaxtrain.schedules import linear_schedule
from flaxtrain.spec import AssignedGroup, Freeze, Group, LayerDecay, OptSpec, assign
from flaxtrain.tree import path_name
from tests.spec.small import net_facts


def members(spec: OptSpec) -> dict[str, list[str]]:
    table = assign(spec, net_facts())
    return {group.name: sorted(map(path_name, group.paths)) for group in table.groups}


def test_the_first_group_that_selects_a_parameter_has_it() -> None:
    groups = [Group("head/bias", name="first"), Group("head"), Group("#bias")]
    assert members(OptSpec("sgd", 0.1, groups=groups)) == {
        "first": ["head/bias"],
        "head": ["head/kernel"],
        "bias": ["body/bias"],
        "default": ["body/kernel", "embed/embedding", "norm/bias", "norm/scale"],
    }


def test_every_parameter_is_in_exactly_one_group_and_default_may_be_empty() -> None:
    spec = OptSpec("sgd", 0.1, groups=[Group("~#bias", name="most"), Group("**", name="rest")])
    table = assign(spec, net_facts())
    assert sum(len(group.paths) for group in table.groups) == len(net_facts()) == 7
    assert list(table.params) == list(net_facts())
    assert all(about.fact is net_facts()[path] for path, about in table.params.items())
    assert [len(group.paths) for group in table.groups] == [5, 2, 0]
    for path, about in table.params.items():
        assert path in table.group(about.group).paths


def test_overlaps_are_reported() -> None:
    spec = OptSpec("sgd", 0.1, groups=[Group("head"), Group("#bias"), Group("body")])
    assert assign(spec, net_facts()).overlaps == (
        "group 'bias' also selects 1 of group 'head' ('head/bias'): the first of the two has "
        "them",
        "group 'body' also selects 1 of group 'bias' ('body/bias'): the first of the two has "
        "them",
    )
    assert assign(OptSpec("sgd", 0.1), net_facts()).overlaps == ()


def test_a_group_that_others_have_emptied_is_refused() -> None:
    spec = OptSpec("sgd", 0.1, groups=[Group("head"), Group("head/bias")])
    with pytest.raises(ParameterError) as caught:
        assign(spec, net_facts())
    assert str(caught.value) == (
        "earlier groups have all of its parameters\n"
        "  where: Group('head/bias')\n"
        "  fix:   put the narrower group first: the first match wins"
    )
    with pytest.raises(ParameterError, match="no parameter matches 'haed'"):
        assign(OptSpec("sgd", 0.1, groups=[Group("haed")]), net_facts())


def decayed(spec: OptSpec) -> list[str]:
    params = assign(spec, net_facts()).params
    return sorted(path_name(path) for path, about in params.items() if about.decays)


def test_decay_is_that_of_the_group() -> None:
    kernels = ["body/kernel", "head/kernel"]
    assert decayed(OptSpec("adamw", 0.1)) == kernels
    assert decayed(OptSpec("adam", 0.1)) == decayed(OptSpec("adamw", 0.1, weight_decay=0)) == []
    head = Group("head", decay="all")
    assert decayed(OptSpec("adamw", 0.1, groups=[head])) == [
        "body/kernel",
        "head/bias",
        "head/kernel",
    ]
    # A selector over the whole model says something about the group's own parameters only.
    both = OptSpec("adamw", 0.1, groups=[Group("head", decay="#bias")])
    assert decayed(both) == ["body/kernel", "head/bias"]
    other = OptSpec("adamw", 0.1, groups=[Group("head", optimizer="adam")])
    assert decayed(other) == ["body/kernel"]
    assert decayed(OptSpec("adam", 0.1, groups=[Group("head", weight_decay=0.1)])) == [
        "head/kernel"
    ]
    scheduled = linear_schedule(0.1, 0.0, 5)
    assert decayed(OptSpec("adam", 0.1, weight_decay=scheduled)) == kernels


def test_a_decay_that_reaches_nothing_of_its_group_is_refused() -> None:
    spec = OptSpec("adamw", 0.1, groups=[Group("#bias", weight_decay=0.5)])
    with pytest.raises(ParameterError) as caught:
        assign(spec, net_facts())
    assert str(caught.value) == (
        "weight_decay=0.5, and none of the group's parameters decays (their roles: bias)\n"
        "  where: group 'bias'\n"
        "  fix:   pass decay='all' to the group, or leave its weight_decay out"
    )
    assign(OptSpec("adamw", 0.1, groups=[Group("#bias", lr_mult=2)]), net_facts())
    assign(OptSpec("adamw", 0.1, groups=[Group("#bias", weight_decay=0)]), net_facts())
    with pytest.raises(UnknownNameError, match="unknown decay preset 'kennel'"):
        assign(OptSpec("adamw", 0.1, decay="kennel"), net_facts())


def test_the_numbers_of_a_group_are_its_own() -> None:
    spec = OptSpec(
        "adamw",
        0.1,
        weight_decay=0.2,
        clip_norm=1.0,
        b1=0.5,
        groups=[Group("head", lr_mult=10.0, b1=0.7, clip_norm=0.3), Group("embed")],
    )
    table = assign(spec, net_facts())

    def numbers(group: AssignedGroup) -> dict[str, object]:
        return dict(group.hyperparameters.numbers)

    base = {
        "learning_rate": 0.1,
        "weight_decay": 0.2,
        "b2": 0.999,
        "eps": 1e-8,
        "eps_root": 0.0,
    }
    assert numbers(table.group("head")) == {**base, "b1": 0.7, "clip_norm": 0.3}
    assert numbers(table.group("embed")) == {**base, "b1": 0.5}
    # The clip norm of the whole gradient is that of the group "default".
    assert numbers(table.group("default")) == {**base, "b1": 0.5, "clip_norm": 1.0}
    assert [group.lr_mult for group in table.groups] == [10.0, 1.0, 1.0]
    assert [group.selected_by for group in table.groups] == ["head", "embed", "everything else"]
    assert table.group("head").hyperparameters.decays == {"b1", "b2"}


def test_an_object_keeps_its_numbers_to_itself() -> None:
    spec = OptSpec(
        optim.adam(0.1),
        clip_norm=2.0,
        groups=[Group("head", optimizer="sgd", learning_rate=1.0)],
    )
    table = assign(spec, net_facts())
    assert table.group("default").hyperparameters.numbers == {"clip_norm": 2.0}
    assert table.group("head").hyperparameters.numbers == {"learning_rate": 1.0}


def test_trust_ratios_leave_out_biases_and_norms_by_role() -> None:
    params = assign(OptSpec("lamb", 0.1), net_facts()).params
    assert sorted(path_name(path) for path, about in params.items() if about.trusted) == [
        "body/kernel",
        "embed/embedding",
        "head/kernel",
    ]


def test_layer_decay_scales_the_rates_of_layers() -> None:
    def scales(layer_decay: float | LayerDecay) -> dict[str, float]:
        spec = OptSpec("sgd", 0.1, layer_decay=layer_decay)
        params = assign(spec, net_facts()).params
        return {path[0]: about.scale for path, about in params.items()}

    wanted = {"embed": 0.25, "body": 0.5, "norm": 0.5, "head": 1.0}
    assert scales(0.5) == scales(LayerDecay(0.5)) == wanted
    assert scales(LayerDecay(0.5, min_scale=0.4)) == {**wanted, "embed": 0.4}
    assert scales(LayerDecay(0.5, layer_of={"norm": 2}))["norm"] == 1.0
    unscaled = assign(OptSpec("sgd", 0.1), net_facts()).params.values()
    assert {about.scale for about in unscaled} == {1.0}


def test_one_trained_parameter_that_decays_is_enough_for_a_decay_towards_the_start() -> None:
    group = Group("head", weight_decay=0.1)
    spec = OptSpec("adam", 0.1, decay_to="init", groups=[group])
    assert [path_name(p) for p, row in assign(spec, net_facts()).params.items() if row.decays]
    assign(spec.replace(freeze=[Freeze("head", until=3)]), net_facts())
    with pytest.raises(ParameterError, match="no trained parameter decays"):
        assign(spec.replace(freeze=["head"]), net_facts())
    with pytest.raises(ParameterError, match="no trained parameter decays"):
        assign(spec, net_facts(), still=frozenset({("head", "kernel")}))


def test_only_rates_that_are_read_again_may_rise_after_thawing() -> None:
    rule = Freeze("body", until=3, rewarm=2)
    groups = [Group("head", optimizer="rprop")]
    assign(OptSpec("sgd", 0.1, freeze=[rule], groups=groups), net_facts())
    assign(OptSpec("rprop", 0.1, freeze=[rule.replace(rewarm=0)]), net_facts())
    with pytest.raises(ArgumentError, match="rprop reads it only once, when step sizes begin"):
        assign(OptSpec("rprop", 0.1, freeze=[rule]), net_facts())


def test_phases_come_from_the_freezes() -> None:
    table = assign(OptSpec("sgd", 0.1, freeze=Freeze("body", until=3)), net_facts())
    assert [phase.start for phase in table.phases] == [0, 3]
    assert table.phase_at(2) is table.phases[0]
    assert repr(table) == "<7 parameters, 1 group, 2 phases>"
    with pytest.raises(FlaxtrainError, match=r"where: Freeze\('bady'\)"):
        assign(OptSpec("sgd", 0.1, freeze="bady"), net_facts())
