"""Every name of Optax 0.2.8 that belongs to the suite is at the door, and binds as there.

`optax_names.json` is the list: category, name, signature. Real Optax is the judge.
"""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxtrain as ft
from flaxtrain.compat import optax as door

NAMES = json.loads((Path(__file__).parent / "optax_names.json").read_text())
FUNCTIONS = [row for row in NAMES if row["category"] not in ("state/types", "base/types")]
STATES = [
    row
    for row in NAMES
    if row["category"] == "state/types" and "GradientTransformation" not in row["name"]
]
SUBMODULES = ("contrib", "losses", "schedules", "transforms", "tree", "tree_utils")

# What our functions take beyond Optax's arguments: keyword-only, everywhere.
ADDED = {"state_dtype"}
ADDED_TO = {
    "adabelief": {"weight_decay", "weight_decay_mask"},  # those of Optax's next version
    "adan": {"difference_weight"},
    "scale_by_adan": {"difference_weight"},
    "centralize": {"output_axis"},
    "clip": {"min_delta"},
    "scale": {"learning_rate"},
    "partition": {"default"},
    "multi_transform": {"default"},
}
# Parameters that may be left out here, where Optax requires them.
OPTIONAL = {
    "scale_gradient": {"inputs": "without it, a loss scale", "scale": "checked by hand then"},
    "scale": {"step_size": "learning_rate= stands for it"},
}
# Optax's defaults that are objects: ours have the same effect, not the same identity.
DEFAULT_OBJECTS = {("scale_by_factored_rms", "decay_rate_fn")}


def found(module: Any, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module


def last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


@pytest.mark.parametrize("row", NAMES, ids=lambda row: row["name"])
def test_the_name_is_at_the_door(row: dict[str, str]) -> None:
    thing = found(door, row["name"])
    assert thing is not None
    assert not (getattr(thing, "__module__", None) or "").startswith("optax")


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def same_default(name: str, ours: inspect.Parameter, theirs: inspect.Parameter) -> bool:
    if (last(name), theirs.name) in DEFAULT_OBJECTS:
        return ours.default is not ours.empty
    if theirs.default is theirs.empty:
        return ours.default is ours.empty or theirs.name in OPTIONAL.get(last(name), ())
    if callable(theirs.default) and not isinstance(theirs.default, type):
        return ours.default is theirs.default
    return ours.default == theirs.default


@pytest.mark.parametrize("row", FUNCTIONS, ids=lambda row: row["name"])
def test_it_binds_as_in_optax(row: dict[str, str]) -> None:
    name = row["name"]
    ours, theirs = (parameters(found(module, name)) for module in (door, optax))
    added = ADDED | ADDED_TO.get(last(name), set())
    extra = ours.keys() - theirs.keys()
    assert extra <= added
    assert all(ours[key].kind is inspect.Parameter.KEYWORD_ONLY for key in extra)
    assert all(ours[key].default is not inspect.Parameter.empty for key in extra)
    assert [key for key in ours if key not in extra] == list(theirs)
    for key, parameter in theirs.items():
        assert ours[key].kind is parameter.kind, key
        assert same_default(name, ours[key], parameter), key


@pytest.mark.parametrize("row", STATES, ids=lambda row: row["name"])
def test_a_state_has_optax_s_fields(row: dict[str, str]) -> None:
    ours, theirs = (found(module, row["name"]) for module in (door, optax))
    fields = getattr(theirs, "_fields", None)
    if fields is None:
        assert not hasattr(ours, "_fields")
        return
    assert ours._fields == fields
    assert ours._field_defaults.keys() == theirs._field_defaults.keys()


def test_a_transformation_is_optax_s_pair() -> None:
    for module in (door, optax):
        init, update = module.GradientTransformation(len, max)
        assert (init, update) == (len, max)
    tx = door.GradientTransformationExtraArgs(init=len, update=max)
    assert isinstance(tx, door.GradientTransformation) and tx.update is max
    assert isinstance(door.adam(0.1), door.GradientTransformationExtraArgs)


def test_a_transformation_is_an_object_and_no_named_tuple() -> None:
    theirs, ours = optax.adam(0.1), door.adam(0.1)
    assert isinstance(theirs, tuple) and theirs._replace(init=len).init is len
    assert not isinstance(ours, tuple) and not hasattr(ours, "_replace")
    # What stands for `_replace`:
    changed = door.GradientTransformation(len, ours.update)
    assert changed.init is len and changed.update is ours.update


def test_the_version_is_that_of_the_optax_whose_names_these_are() -> None:
    assert door.__version__ == optax.__version__
    assert ft.__version__ != door.__version__


def test_the_list_is_what_optax_exports_beside_what_is_left_out() -> None:
    def public(module: Any) -> set[str]:
        return {name for name in vars(module) if not name.startswith("_")}

    listed = {row["name"] for row in NAMES}
    left = public(optax) - listed - set(SUBMODULES)
    assert all(_is_answered(door, name) for name in left), left
    for page in SUBMODULES:
        modules = getattr(optax, page), getattr(door, page)
        own = {last(name) for name in listed if name.startswith(f"{page}.")}
        named = {n for n in public(modules[0]) if not inspect.ismodule(getattr(modules[0], n))}
        left = named - own - {"Any", "Optional", "Union"}
        assert all(_is_answered(modules[1], name) for name in left), (page, left)


def _is_answered(module: Any, name: str) -> bool:
    with pytest.raises(AttributeError) as raised:
        getattr(module, name)
    return "not there yet" in str(raised.value) or "not part of the suite" in str(raised.value)


def test_submodules_are_importable_and_list_what_they_have() -> None:
    listed = {row["name"] for row in NAMES}
    for page in SUBMODULES:
        module = importlib.import_module(f"flaxtrain.compat.optax.{page}")
        assert module is getattr(door, page)
        wanted = sorted(last(name) for name in listed if name.startswith(f"{page}."))
        assert dir(module) == sorted(module.__all__) == wanted
    top = sorted({name for name in listed if "." not in name} | {*SUBMODULES, "shampoo"})
    assert dir(door) == sorted(door.__all__) == top
    from flaxtrain.compat.optax import losses
    from flaxtrain.compat.optax.tree_utils import tree_get

    assert losses.ntxent is ft.losses.ntxent
    assert tree_get is door.tree.get


@pytest.mark.parametrize(
    ("page", "name", "text"),
    [
        ("", "lbfgs", "optax.lbfgs is not there yet: L-BFGS"),
        ("", "dpsgd", "optax.dpsgd is not there yet: differentially private SGD"),
        ("", "projections", "optax.projections is not part of the suite"),
        ("", "microbatch", "optax.microbatch is not part of the suite"),
        ("contrib", "muon", "optax.contrib.muon is not there yet"),
        ("contrib", "scale_by_adopt", "optax.contrib.scale_by_adopt is not there yet"),
        ("contrib", "SAMState", "optax.contrib.SAMState is not there yet"),
        ("contrib", "adamm", "optax.contrib has no 'adamm'"),
        ("", "adamm", "did you mean 'adam'?"),
        ("", "cosine_decay", "did you mean 'cosine_decay_schedule'?"),
        ("tree", "ad", "did you mean 'add'?"),
        ("losses", "qqqqqqqq", "dir(optax.losses) lists what is there"),
    ],
)
def test_an_absent_name_says_why(page: str, name: str, text: str) -> None:
    module = getattr(door, page) if page else door
    with pytest.raises(AttributeError) as raised:
        getattr(module, name)
    assert text in str(raised.value)
    assert isinstance(raised.value, ft.FlaxtrainError)
    assert not hasattr(module, name) and getattr(module, name, None) is None


def test_the_door_loads_nothing_of_optax() -> None:
    program = (
        "from flaxtrain.compat import optax; import sys; optax.adam(0.1);"
        "assert not any(n == 'optax' or n.startswith('optax.') for n in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_scale_gradient_without_inputs_is_a_dynamic_loss_scale() -> None:
    scale = door.scale_gradient(scale=2.0**15)
    assert isinstance(scale, ft.precision.DynamicScale)
    assert scale.scale(jnp.float32(2.0)) == 2.0**16
    assert scale.adjust(finite=jnp.array(False)).value == 2.0**14
    assert door.scale_gradient(scale=2.0**30).value == 2.0**30
    for module in (door, optax):
        by = jax.grad(lambda x, m=module: m.scale_gradient({"x": x}, 3.0)["x"] ** 2)(2.0)
        np.testing.assert_array_equal(by, 12.0)
    for bad in ({}, {"inputs": 1.0}):
        with pytest.raises(TypeError, match="scale is missing"):
            door.scale_gradient(**bad)


def test_a_loss_scale_may_be_any_positive_number_that_is_known() -> None:
    for number in (0.5, 1, np.float32(3.0), jnp.float32(2.0**-10), 2.0**40):
        scale = door.scale_gradient(scale=number)
        assert scale.value == number and scale.min == min(1.0, number)
    with pytest.raises(ft.errors.ArgumentTypeError, match="scale='1' is a str, not a number"):
        door.scale_gradient(scale="1")
    for number in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ft.errors.ArgumentError, match=f"scale={number} is out of range"):
            door.scale_gradient(scale=number)
    with pytest.raises(ft.errors.ArgumentTypeError, match="not known while tracing"):
        jax.jit(lambda s: door.scale_gradient(scale=s).value)(2.0)


def test_stateless_takes_its_function_by_optax_s_name() -> None:
    for module in (door, optax):
        tx = module.stateless(f=lambda updates, params: updates * 2)
        assert tx.update(3.0, tx.init(None))[0] == 6.0
