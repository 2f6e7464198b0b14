"""Tensor parallelism: rules and the names of axes."""

from __future__ import annotations

from typing import Any

import pytest
from jax.sharding import PartitionSpec as P

from flaxtrain.errors import ArgumentError, FlaxtrainError, ParameterError, UnknownNameError
from flaxtrain.parallel import Layout, Sharding, abstract_mesh
from flaxtrain.parallel.mesh import AnyMesh
from tests.parallel.nets import named_facts, stack_facts

MESH = abstract_mesh({"data": 2, "fsdp": 4, "model": 2}, 16)
KERNEL = ("Dense_0", "kernel")


def rules(*pairs: Any, kind: str = "replicated") -> Layout:
    return Layout(MESH, Sharding(kind, rules=pairs, min_size=0), stack_facts())


def names(
    *axes: str | tuple[str, ...] | None, mesh: AnyMesh = MESH, **arguments: Any
) -> Layout:
    return Layout(mesh, Sharding(**arguments), named_facts(axes))


def test_the_first_rule_that_selects_a_parameter_counts() -> None:
    layout = rules(("blocks/up/kernel", (None, None, "model")), ("#kernel", ()))
    assert layout.params["blocks", "up", "kernel"] == P(None, None, "model")
    assert layout.params["blocks", "down", "kernel"] == P()
    # An equal rule behind it changes nothing.
    both = rules(("#kernel & ~head/**", ()), ("blocks/up/kernel", (None, None, "model")))
    assert both.params["blocks", "up", "kernel"] == P()


def test_fsdp_goes_to_an_axis_that_no_rule_has_taken() -> None:
    layout = rules(("blocks/up/kernel", (None, None, "model")), kind="fsdp")
    assert layout.params["blocks", "up", "kernel"] == P(None, "fsdp", "model")
    assert layout.params["blocks", "down", "kernel"] == P(None, "fsdp")


def test_a_rule_may_use_the_axes_of_the_batch_which_are_not_split_once_more() -> None:
    layout = rules(("blocks/up/kernel", ("fsdp", None, None)), kind="fsdp")
    assert layout.params["blocks", "up", "kernel"] == P("fsdp")
    zero1 = rules(("blocks/up/kernel", ("fsdp", None, None)), kind="zero1")
    assert zero1.slots["blocks", "up", "kernel"] == P("fsdp", None, "data")
    both = rules(("blocks/up/kernel", (None, None, ("fsdp", "model"))))
    assert both.params["blocks", "up", "kernel"] == P(None, None, ("fsdp", "model"))


def test_an_empty_rule_leaves_a_parameter_whole_and_says_so() -> None:
    layout = rules(("square/kernel", ()), kind="fsdp")
    assert layout.params["square", "kernel"] == P()
    assert layout.left_whole["square", "kernel"] == "a rule leaves it whole"
    open_rule = rules(("square/kernel", (None, None)), kind="fsdp")
    assert open_rule.params["square", "kernel"] == P(None, "fsdp")


def test_names_of_axes_mean_what_logical_says_or_a_mesh_axis() -> None:
    said = {"logical": [("embed", None), ("mlp", "model")]}
    assert names("embed", "mlp", **said).params[KERNEL] == P(None, "model")
    assert names("model", None).params[KERNEL] == P("model")
    assert names(("model", "data"), None).params[KERNEL] == P(("model", "data"))
    pair = {"logical": {"embed": ("data", "model"), "mlp": None}}
    assert names("embed", "mlp", **pair).params[KERNEL] == P(("data", "model"))
    # What has no names is split by the kind.
    fsdp = names("embed", "mlp", kind="fsdp", min_size=0, **said)
    assert fsdp.params[KERNEL] == P("fsdp", "model")
    assert fsdp.params["Dense_1", "kernel"] == P("fsdp")


def test_a_rule_comes_before_the_names() -> None:
    sharding = Sharding(rules=[("Dense_0/kernel", ("model", None))])
    assert Layout(MESH, sharding, named_facts()).params[KERNEL] == P("model")


def test_names_are_passed_over_on_a_mesh_for_batches_only() -> None:
    for axes in ({"data": 2, "fsdp": 4, "model": 1}, {"data": 8}):
        mesh = abstract_mesh(axes, 8)
        assert names("embed", "mlp", mesh=mesh, kind="replicated").params[KERNEL] == P()


WRONG: dict[str, tuple[Any, type[FlaxtrainError], str, str]] = {
    "selects nothing": (
        lambda: rules(("haed/kernel", (None, "model"))),
        ParameterError,
        "no parameter matches 'haed/kernel'",
        "nearest: head",
    ),
    "unknown mesh axis": (
        lambda: rules(("square/kernel", (None, "modle"))),
        UnknownNameError,
        "unknown mesh axis 'modle'",
        "did you mean 'model'?",
    ),
    "number of axes": (
        lambda: rules(("blocks/up/kernel", (None, "model"))),
        ParameterError,
        "2 axes for the shape (8, 32, 96)",
        "name 3 axes",
    ),
    "does not divide": (
        lambda: rules(("odd/kernel", (None, "model"))),
        ParameterError,
        "2 does not divide axis 1 of the shape (32, 9), which is 9 long",
        "divides 9",
    ),
    "product does not divide": (
        lambda: rules(("embed/**", (("model", "fsdp"), None))),
        ParameterError,
        "8 does not divide axis 0 of the shape (50, 32)",
        "'model' x 'fsdp'",
    ),
    "unknown name": (
        lambda: names("embed", "mpl", logical={"embed": None, "mlp": "model"}),
        UnknownNameError,
        "the axis name 'mpl' means nothing",
        "did you mean 'mlp'?",
    ),
    "name of an unknown mesh axis": (
        lambda: names("embed", "mlp", logical={"embed": None, "mlp": "modle"}),
        UnknownNameError,
        "unknown mesh axis 'modle'",
        "did you mean 'model'?",
    ),
    "one axis for two": (
        lambda: names("embed", "mlp", logical={"embed": "model", "mlp": "model"}),
        ArgumentError,
        "'model' stands for two axes of the shape (32, 64)",
        "split one of them",
    ),
    "names for other axes": (
        lambda: names("model"),
        ParameterError,
        "1 axis for the shape (32, 64)",
        "nn.PARTITION_NAME",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_and_names_the_parameter(name: str) -> None:
    make, error, found, fix = WRONG[name]
    with pytest.raises(error) as raised:
        make()
    assert found in raised.value.found
    assert fix in str(raised.value.fix)
    where = str(raised.value.where)
    assert "parameter" in where or "Sharding(rules" in where
