"""The axes along which scans run, read from programs in which they can be seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from flaxtrain.params import ParamFact, facts_from, param_facts
from flaxtrain.params.dataflow import first_uses
from flaxtrain.params.stacks import Scan, guess_scan
from tests.params import models
from tests.params.models import KINDS, ROW, SEQUENCE, Scanned, facts_of, facts_of_example

Array = jax.Array
X = jnp.ones(3)
# The parameter's axes have different lengths: a wrong one can't pass for the right one.
STACK = jnp.ones((2, 4, 6, 3))


def scans(function: Callable[..., Any], *params: Array) -> list[Scan | None]:
    """Returns the scan of each parameter of `function(*params, x)`."""
    return [use.scan for use in first_uses(lambda p, d: function(*p, *d), params, [X])]


def through(x: Array, stack: Any, reverse: bool = False) -> Array:
    """Scans `stack` along its first axis; all of each slice is used."""

    def body(x: Array, layer: Any) -> tuple[Array, None]:
        return x * sum(leaf.sum() for leaf in jax.tree.leaves(layer)), None

    return lax.scan(body, x, stack, reverse=reverse)[0]


def nested(x: Array, stack: Array, reverse: tuple[bool, bool] = (False, False)) -> Array:
    def body(x: Array, layer: Array) -> tuple[Array, None]:
        return through(x, layer, reverse[1]), None

    return lax.scan(body, x, stack, reverse=reverse[0])[0]


@pytest.mark.parametrize(
    ("rearrange", "axes"),
    [
        (lambda p: p, (0,)),
        (lambda p: jnp.moveaxis(p, 2, 0), (2,)),
        (lambda p: p.transpose(3, 1, 0, 2), (3,)),
        (lambda p: p.astype(jnp.bfloat16).astype(jnp.float32) * 0.5 + 1, (0,)),
        (lambda p: jnp.tanh(-p.swapaxes(0, 1)), (1,)),
        (lambda p: p[None].swapaxes(0, 1)[:, 0], (0,)),
        (lambda p: jnp.expand_dims(p, 1), (0,)),
        (lambda p: p.reshape(2, 24, 3), (0,)),
        (lambda p: p.reshape(8, 1, 18), (0, 1)),
        (lambda p: p.reshape(8, 18).reshape(2, 4, 18).swapaxes(0, 1), (1,)),
        (lambda p: jax.jit(jax.checkpoint(lambda p: p.swapaxes(0, 3)))(p), (3,)),
        (lambda p: jax.vmap(lambda p: p.T, in_axes=1)(p), (1,)),
    ],
)
def test_the_axis_is_found_behind_what_is_done_before(
    rearrange: Callable[[Array], Array], axes: tuple[int, ...]
) -> None:
    def model(p: Array, x: Array) -> Array:
        return through(x, rearrange(p))

    assert scans(model, STACK) == [Scan(axes, loop=0)]


@pytest.mark.parametrize(
    ("rearrange", "axes"),
    [
        (lambda p: p, (0, 1)),
        (lambda p: p.transpose(2, 0, 1, 3), (2, 0)),
        (lambda p: p.swapaxes(0, 2).reshape(2, 3, 4, 6), (2,)),
    ],
)
def test_nested_scans_take_their_axes_from_outside_in(
    rearrange: Callable[[Array], Array], axes: tuple[int, ...]
) -> None:
    assert scans(lambda p, x: nested(x, rearrange(p)), STACK) == [Scan(axes, loop=0)]


def test_an_axis_that_is_run_through_in_part_is_not_known() -> None:
    def outer_half(p: Array, x: Array) -> Array:
        return through(x, jnp.moveaxis(p, 2, 0).reshape(2, 3, 4, 6))

    def wrong_order(p: Array, x: Array) -> Array:
        return nested(x, jnp.moveaxis(p, 2, 0).reshape(2, 3, 24).swapaxes(0, 1))

    assert scans(outer_half, STACK) == scans(wrong_order, STACK) == [None]


@pytest.mark.parametrize(
    "hide",
    [
        lambda p: p[1:],
        lambda p: jnp.stack([p, p]),
        lambda p: p @ jnp.ones((3, 3)),
        lambda p: p.reshape(3, 6, 4, 2),
        lambda p: jnp.sort(p, axis=0),
        lambda p: lax.map(lambda layer: layer.T * 0.5, p),
    ],
)
def test_what_can_not_be_followed_is_not_known(hide: Callable[[Array], Array]) -> None:
    assert scans(lambda p, x: through(x, hide(p)), STACK) == [None]


def test_a_parameter_that_every_iteration_gets_whole_is_no_stack() -> None:
    def model(p: Array, x: Array) -> Array:
        x = through(x, jnp.broadcast_to(p, (5, 3)))
        return lax.scan(lambda x, _: (x * p, None), x, length=4)[0]

    assert scans(model, X) == [Scan()]


def test_a_loop_without_a_carry_is_no_sequence_of_layers() -> None:
    def experts(p: Array, x: Array) -> Array:
        return lax.map(lambda w: x * w.sum(), p).sum(0)

    def layers_of_experts(p: Array, x: Array) -> Array:
        return lax.map(lambda w: through(x, w), p).sum(0)

    assert scans(experts, STACK) == [Scan()]
    assert scans(layers_of_experts, STACK) == [Scan((1,), loop=0)]


def test_a_scan_of_experts_has_one_axis() -> None:
    def model(p: Array, x: Array) -> Array:
        return jax.vmap(lambda p: through(x, p), in_axes=1)(p).sum(0)

    assert scans(model, STACK) == [Scan((0,), loop=0)]


def test_reverse_scans_and_flipped_stacks_use_the_last_slice_first() -> None:
    backwards = [Scan((0,), (0,), loop=0)]
    assert scans(lambda p, x: through(x, p, reverse=True), STACK) == backwards
    assert scans(lambda p, x: through(x, p[::-1]), STACK) == backwards
    assert scans(lambda p, x: through(x, p[::-1], reverse=True), STACK) == [Scan((0,), loop=0)]
    inner = scans(lambda p, x: nested(x, p.swapaxes(0, 1), (False, True)), STACK)
    assert inner == [Scan((1, 0), (0,), loop=0)]


def test_stacks_of_one_loop_have_its_number_and_so_has_what_they_share() -> None:
    def model(late: Array, a: Array, b: Array, shared: Array, alone: Array, x: Array) -> Array:
        def body(x: Array, layer: Any) -> tuple[Array, None]:
            return x * layer[0].sum() * layer[1].sum() * shared, None

        x = lax.scan(body, x * alone, (a, b.swapaxes(0, 1)))[0]
        return through(x, late)

    found = scans(model, STACK, STACK, STACK.swapaxes(0, 1), X, X)
    assert found == [
        Scan((0,), loop=1),
        Scan((0,), loop=0),
        Scan((1,), loop=0),
        Scan(loop=0),
        Scan(),
    ]


def test_what_is_shared_inside_two_loops_has_the_number_of_the_outer_one() -> None:
    def model(groups: Array, layers: Array, shared: Array, x: Array) -> Array:
        def inner(x: Array, layer: Array) -> tuple[Array, None]:
            return x * layer.sum() * shared, None

        def outer(x: Array, group: Array) -> tuple[Array, None]:
            return lax.scan(inner, x * group.sum(), layers)[0], None

        return lax.scan(outer, x, groups)[0]

    found = scans(model, STACK, STACK, X)
    assert found == [Scan((0,), loop=0), Scan((0,), loop=1), Scan(loop=0)]


def test_layers_inside_a_loop_over_time_have_the_number_of_their_own_loop() -> None:
    def model(p: Array, q: Array, x: Array) -> Array:
        def over_time(x: Array, _: Any) -> tuple[Array, None]:
            return through(through(x, p), q), None

        return lax.scan(over_time, x, length=5)[0]

    assert scans(model, STACK, STACK) == [Scan((0,), loop=0), Scan((0,), loop=1)]


def test_the_loops_of_branches_and_of_while_loops_are_read() -> None:
    def model(p: Array, q: Array, x: Array) -> Array:
        x = lax.cond(x.sum() > 0, lambda: through(x, p), lambda: x)
        return lax.while_loop(lambda x: x.sum() < 9, lambda x: through(x, q), x)

    assert scans(model, STACK, STACK) == [Scan((0,), loop=0), Scan((0,), loop=1)]


def test_a_dead_slice_is_a_slice_all_the_same() -> None:
    def model(used: Array, dead: Array, x: Array) -> Array:
        return lax.scan(lambda x, layer: (x * layer[0].sum(), None), x, (used, dead))[0]

    assert scans(model, STACK, STACK) == [Scan((0,), loop=0)] * 2


def test_gradients_are_read_by_their_forward_pass() -> None:
    def model(p: Array, x: Array) -> Array:
        return jax.grad(lambda p: through(x, p).sum())(p)

    assert scans(model, STACK) == [Scan((0,), loop=0)]


def test_axes_of_length_0_and_1_are_followed_or_not_known() -> None:
    one = jnp.ones((1, 3))
    assert scans(lambda p, x: through(x, p), one) == [Scan((0,), loop=0)]
    assert scans(lambda p, x: through(x, p.reshape(1, 3, 1)), one) == [Scan((0,), loop=0)]
    empty = jnp.ones((3, 0))
    assert scans(lambda p, x: through(x, p.reshape(0, 3)), empty) == [None]


# Modules.


def scan_axes(facts: Any) -> dict[str, tuple[int, ...]]:
    return {fact.name: fact.scan_axes for fact in facts.params}


def case(name: str) -> Any:
    return facts_of(next(case for case in models.CASES if case.name == name))


def test_the_axes_of_nn_scan_count_and_those_of_nn_vmap_do_not() -> None:
    found = scan_axes(case("vmap along the last axis in a scan along the first"))
    assert set(found.values()) == {(0,)}
    assert set(scan_axes(case("experts by vmap")).values()) == {()}
    assert set(scan_axes(case("scan that shares its params")).values()) == {()}
    assert set(scan_axes(case("scan along axis 1, partitioned")).values()) == {(1,)}
    assert set(scan_axes(case("remat_scan")).values()) == {(0, 1)}
    inner_first = case("scan along axis 1 in which there is a scan along axis 0")
    assert set(scan_axes(inner_first).values()) == {(1, 0)}
    assert scan_axes(case("WeightNorm in a scan"))["stack/outer/fc\\/kernel\\/scale"] == (0,)


def test_time_is_no_axis_of_layers() -> None:
    for name in ("LSTM", "CNN", "ViT"):
        assert {fact.scan_axes for fact in facts_of_example(name).params} == {()}
    experts = [fact for fact in KINDS["MoE"]().params if "last" in fact.path]
    assert {(fact.scan_axes, fact.loop) for fact in experts} == {((), None)}


def without_use(model: nn.Module, x: Array) -> list[ParamFact]:
    key = jax.random.key(0)
    facts = facts_from(lambda extra: model.init({"params": key, **extra}, x))
    return list(facts.params)


class Unnamed(nn.Module):
    """Flax names the stack `ScanBlock_0`."""

    axis: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Any:
        axes: Any = {"params": self.axis}
        scan = nn.scan(models.Block, variable_axes=axes, split_rngs={"params": True}, length=3)
        return nn.Dense(2)(scan()(x, None)[0])


def test_without_the_program_the_name_of_the_stack_decides() -> None:
    facts = without_use(Unnamed(axis=1), SEQUENCE)
    named = {fact.path[0]: fact.scan_axes for fact in facts}
    assert named == {"ScanBlock_0": (1,), "Dense_0": ()}
    assert param_facts(Unnamed(axis=1), SEQUENCE)["ScanBlock_0/up/bias"].scan_axes == (1,)
    assert {fact.scan_axes for fact in without_use(Scanned(models.Block), SEQUENCE)} == {()}


@pytest.mark.parametrize(
    ("path", "lifted", "axes"),
    [
        (("ScanBlock_0", "Dense_0", "kernel"), (1,), (1,)),
        (("encoder", "ScanCheckpointBlock_12", "kernel"), (0,), (0,)),
        (("Remat_scanBlock_0", "kernel"), (0,), (0,)),
        (("ScanBlock_0", "VmapDense_0", "kernel"), (0, 1), ()),
        (("ScanBlock_0", "kernel"), (), ()),
        (("VmapDense_0", "kernel"), (0,), ()),
        (("Scanner", "kernel"), (0,), ()),
        (("blocks", "ScanBlock_0"), (0,), ()),  # the name of the parameter
    ],
)
def test_the_guess_takes_one_lifted_axis_inside_a_module_named_scan(
    path: tuple[str, ...], lifted: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    assert guess_scan(path, lifted) == Scan(axes)


def test_where_the_program_hides_the_axis_the_name_decides() -> None:
    class Doubles(nn.Module):
        @nn.compact
        def __call__(self, x: Array) -> Array:
            def doubled(tree: Any) -> Any:
                return jax.tree.map(lambda p: jnp.sort(p, axis=0), tree)

            scan = nn.scan(
                models.Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            mapped = nn.map_variables(scan, "params", doubled, init=True)
            return mapped(name="ScanBlock_0")(x, None)[0]

    found = {(f.scan_axes, f.loop) for f in param_facts(Doubles(), SEQUENCE).params}
    assert found == {((0,), None)}
    assert param_facts(nn.Dense(2), ROW)["kernel"].scan_axes == ()
