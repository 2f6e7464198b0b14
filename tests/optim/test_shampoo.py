"""Shampoo: its blocks, its clock, its grafts, and what must not break it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain import optim
from flaxtrain.errors import (
    ArgumentError,
    ArgumentTypeError,
    FlaxtrainError,
    UnknownNameError,
)
from flaxtrain.optim.blocks import blocks_of
from flaxtrain.optim.shampoo import shampoo_rule
from tests import gradients
from tests.cases import CASES
from tests.cases.base import per_array
from tests.oracles.shampoo import shampoo as oracle
from tests.oracles.test_oracles import gap
from tests.runs import FLOAT32_BAR, at, deviation, differing_leaves, walk


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Any:
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def updates(tx: Any, grads: Any, params: Any = None) -> tuple[list[Any], Any]:
    """Returns every update and the last state."""
    params = jax.tree.map(lambda g: jnp.ones_like(g[0]), grads) if params is None else params
    state, record, update = tx.init(params), [], jax.jit(tx.update)
    for step in range(len(jax.tree.leaves(grads)[0])):
        new, state = update(at(grads, step), state, params)
        record.append(new)
    return record, state


# Blocks.


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("block_size", [1, 3, 8, 256])
@pytest.mark.parametrize(
    "shape", [(16, 12), (9, 8), (7, 1, 5), (3, 3, 2, 4), (2, 3, 5), (1, 4)]
)
def test_cutting_and_joining_gives_the_array_back(
    shape: tuple[int, ...], block_size: int, merge: bool
) -> None:
    blocks, array = blocks_of(shape, block_size, merge_axes=merge), draw(*shape)
    cut = blocks.cut(array)
    assert cut.shape == (blocks.number, *blocks.sizes) and max(cut.shape[1:]) <= block_size
    np.testing.assert_array_equal(blocks.join(cut), array)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3, 3, 64, 128), (576, 128)),  # convolution
        ((1, 1, 64, 256), (64, 256)),  # convolution of one pixel
        ((512, 8, 64), (512, 512)),  # query, key and value of attention
        ((8, 64, 512), (512, 512)),  # its output
        ((12, 512, 512), (6144, 512)),  # a kernel with an axis of scanned layers
        ((50, 1), (50,)),
        ((), ()),
    ],
)
def test_small_axes_are_merged_so_that_matrices_are_even(
    shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    assert blocks_of(shape, 256).axes == axes


def test_long_axes_are_cut_evenly_and_filled_up_by_less_than_their_number_of_blocks() -> None:
    for length in range(1, 200):
        blocks = blocks_of((length, 5), 16)
        if length > 1:
            filled = blocks.counts[0] * blocks.sizes[0]
            assert length <= filled < length + blocks.counts[0]


def test_blocks_are_preconditioned_one_by_one() -> None:
    g = draw(12, 4, 6)
    whole, _ = updates(optim.scale_by_shampoo(3, graft="none", precondition_from=1), g)
    # 4 rows become two blocks of 2, 6 columns two of 3.
    for row in (slice(0, 2), slice(2, 4)):
        for column in (slice(0, 3), slice(3, 6)):
            alone, _ = updates(
                optim.scale_by_shampoo(3, graft="none", precondition_from=1), g[:, row, column]
            )
            found = [u[row, column] for u in whole]
            # The same arithmetic; batched products sum in another order.
            assert deviation(found, alone) < 1e-4


# The preconditioner.


def test_one_step_without_grafting_makes_all_singular_values_equal() -> None:
    """The first statistics are G G^T and G^T G: their roots turn G = U S V^T into U V^T."""
    g = draw(6, 6)
    tx = optim.scale_by_shampoo(graft="none", ridge=1e-12, precondition_from=1)
    u, _ = tx.update(g, tx.init(g))
    # The smallest of them are squared in a statistic: a few percent are its roundings.
    np.testing.assert_allclose(jnp.linalg.svd(u)[1], np.ones(6), rtol=0.05)


def test_a_tensor_has_one_matrix_per_axis_with_the_root_of_twice_their_number() -> None:
    tx = optim.scale_by_shampoo(merge_axes=False, precondition_from=1)
    g = draw(2, 3, 4)
    _, state = tx.update(g, tx.init(g))
    assert [root.shape for root in state.roots] == [(1, 2, 2), (1, 3, 3), (1, 4, 4)]
    correction = 1 - 0.999
    w = jnp.linalg.eigvalsh(state.statistics[0][0] / correction)
    expected = (w + 1e-6 * w[-1]) ** (-1 / 6)
    # A statistic of 12 columns and 2 rows is well conditioned.
    np.testing.assert_allclose(
        jnp.linalg.eigvalsh(state.roots[0][0])[::-1], expected, rtol=1e-3
    )


def test_complex_matrices_are_preconditioned_too() -> None:
    g = draw(4, 4) + 1j * draw(4, 4, seed=1)
    tx = optim.scale_by_shampoo(graft="none", ridge=1e-12, precondition_from=1)
    u, state = tx.update(g, tx.init(g))
    np.testing.assert_allclose(jnp.linalg.svd(u)[1], np.ones(4), rtol=0.05)
    # Multiplying by i turns the gradient and the direction alike.
    turned, _ = tx.update(1j * g, tx.init(g))
    np.testing.assert_allclose(turned, 1j * u, atol=1e-4)
    assert state.nu.dtype == jnp.float32 and state.roots[0].dtype == jnp.complex64


def test_with_b2_of_1_statistics_are_sums() -> None:
    g = draw(5, 3, 4)
    _, state = updates(optim.scale_by_shampoo(b2=1.0), g)
    expected = sum(np.asarray(x) @ np.asarray(x).T for x in g)
    np.testing.assert_allclose(state.statistics[0][0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state.nu, np.sum(np.square(g), axis=0), rtol=1e-5)
    for other in (1, np.float32(1.0), jnp.float32(1.0)):
        again, _ = updates(optim.scale_by_shampoo(b2=other), g)
        assert bool(jnp.all(jnp.isfinite(again[-1])))


@pytest.mark.parametrize(
    "changed",
    [
        {"ridge": 1.001e-6},
        {"every": 11},
        {"start": 11},
        {"block_size": 16},
        {"merge": False},
        {"graft": "sgd"},
        {"b2": 0.999001},
    ],
    ids=str,
)
def test_the_oracle_sees_every_part_of_the_preconditioner(changed: dict[str, Any]) -> None:
    case = next(case for case in CASES if case.name == "shampoo")
    wrong = per_array(oracle, **({"block_size": 8} | changed))
    # The smallest change, a thousandth of the ridge, is 75 times the bar; the code is at 1e-15.
    assert gap(case, wrong, 300) > 20 * case.oracle_bar


# The clock.


def test_roots_change_only_every_n_steps_from_the_first_one_on() -> None:
    tx = optim.scale_by_shampoo(precondition_every=4, precondition_from=3)
    g = draw(16, 4, 5)
    state, changed, update = tx.init(g[0]), [], jax.jit(tx.update)
    for step in range(16):
        _, after = update(g[step], state)
        if differing_leaves(after.roots, state.roots):
            changed.append(int(after.count))
        state = after
    assert changed == [3, 7, 11, 15]


def test_the_roots_are_inside_a_branch_that_other_steps_do_not_enter() -> None:
    """The decomposition stands in a branch of a `cond`, and nowhere else."""
    tx, g = optim.scale_by_shampoo(), draw(4, 5)
    program = jax.make_jaxpr(tx.update)(g, tx.init(g))

    def outside(jaxpr: Any) -> set[str]:
        names = set()
        for equation in jaxpr.eqns:
            names.add(equation.primitive.name)
            if equation.primitive.name == "cond":
                continue
            for value in jax.tree.leaves(list(equation.params.values())):
                inner = getattr(value, "jaxpr", value)
                names |= outside(inner) if hasattr(inner, "eqns") else set()
        return names

    assert "eigh" in str(program) and "eigh" not in outside(program.jaxpr)


def test_before_it_starts_it_is_adam_to_the_last_bit_and_afterwards_it_is_not() -> None:
    params = gradients.cast(gradients.params(complex_leaf=False), jnp.float32)
    grads = gradients.cast(gradients.gradients(6, complex_leaf=False), jnp.float32)
    for nesterov in (False, True):
        ours, _ = updates(
            optim.scale_by_shampoo(8, nesterov=nesterov, precondition_from=5), grads, params
        )
        adam, _ = updates(optim.scale_by_adam(nesterov=nesterov), grads, params)
        assert differing_leaves(ours[:4], adam[:4]) == []
        assert sorted(differing_leaves(ours[4], adam[4])) == ["['rest']['conv']", "['w']"]


# Grafting.


@pytest.mark.parametrize("graft", ["adam", "rmsprop", "sgd"])
def test_the_step_has_exactly_the_norm_of_the_grafted_one(graft: str) -> None:
    g = draw(12, 16, 12)
    found, state = updates(optim.scale_by_shampoo(8, graft=graft, precondition_from=12), g)
    mu = state.mu / (1 - 0.9**12)
    root = jnp.sqrt(state.nu / (1 - 0.999**12)) + 1e-8
    expected = {"adam": mu / root, "rmsprop": g[-1] / root, "sgd": mu}[graft]
    # Corrections of the bias in float32 are good to 1e-5.
    np.testing.assert_allclose(jnp.linalg.norm(found[-1]), jnp.linalg.norm(expected), rtol=2e-5)
    assert deviation(found[-1], expected) > 0.05, "the direction is another one"


def test_vectors_and_scalars_get_the_grafted_step_alone() -> None:
    grads = {"scalar": draw(15), "vector": draw(15, 4), "column": draw(15, 4, 1)}
    for graft, like in (
        ("adam", optim.scale_by_adam()),
        ("none", optim.scale_by_adam()),
        ("rmsprop", optim.scale_by_adam(b1=0.0)),
    ):
        ours, state = updates(optim.scale_by_shampoo(graft=graft), grads)
        judge, _ = updates(like, grads)
        assert deviation(ours, judge) < 1e-6  # one rounding
        assert state.roots == {"scalar": (), "vector": (), "column": ()}


# Robustness.


@pytest.mark.parametrize("graft", ["adam", "rmsprop", "sgd", "none"])
def test_gradients_of_rank_one_stay_finite(graft: str) -> None:
    g = jnp.stack([jnp.outer(draw(20), draw(12, seed=1))] * 8 + [draw(20, 12)])
    found, state = updates(
        optim.scale_by_shampoo(8, graft=graft, precondition_every=1, precondition_from=1), g
    )
    assert bool(jnp.all(jnp.isfinite(jnp.stack(found))))
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(state))


@pytest.mark.parametrize("graft", ["adam", "none"])
def test_zero_gradients_move_nothing_and_harm_nothing(graft: str) -> None:
    g = jnp.concatenate([jnp.zeros((5, 6, 4)), draw(5, 6, 4)])
    found, state = updates(
        optim.scale_by_shampoo(graft=graft, precondition_every=2, precondition_from=1), g
    )
    assert not bool(jnp.any(jnp.stack(found[:5])))
    assert bool(jnp.all(jnp.isfinite(jnp.stack(found))))
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(state))


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**-20, 2.0**20, 2.0**50])
def test_the_direction_does_not_depend_on_the_scale_of_gradients(scale: float) -> None:
    tx = optim.scale_by_shampoo(8, eps=0.0, precondition_from=8)
    one, scaled = (updates(tx, factor * draw(12, 16, 12))[0] for factor in (1.0, scale))
    # Exact powers of two, but the smallest normal number is added to eigenvalues.
    assert deviation(scaled, one) < 1e-4


def test_statistics_that_overflow_keep_the_last_good_roots() -> None:
    tx = optim.scale_by_shampoo(precondition_every=1, precondition_from=1)
    g = jnp.stack([draw(4, 4), draw(4, 4, scale=1e30)])
    found, state = updates(tx, g)
    assert bool(jnp.all(jnp.isfinite(found[1])))
    assert all(bool(jnp.all(jnp.isfinite(root))) for root in state.roots)


def test_an_empty_axis_is_no_matrix() -> None:
    g = jnp.zeros((0, 4))
    tx = optim.shampoo(0.1)
    found, _ = tx.update(g, tx.init(g), g)
    assert found.shape == (0, 4)


def test_bfloat16_gradients_have_statistics_in_float32() -> None:
    params = {"w": jnp.ones((4, 3), jnp.bfloat16)}
    tx = optim.scale_by_shampoo()
    new, state = tx.update(params, tx.init(params))
    assert new["w"].dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"int32", "float32"}


# The optimizer around it.


def test_schedules_decay_and_mask_are_those_of_adamw() -> None:
    params, grads = {"w": draw(4, 5), "b": draw(5)}, {"w": draw(3, 4, 5), "b": draw(3, 5)}
    arguments: Any = {"weight_decay": 0.1, "mask": {"w": True, "b": False}}
    rate = lambda count: 0.1 / (1 + count)  # noqa: E731
    ours = walk(optim.shampoo(rate, precondition_from=9, **arguments), params, grads, jit=True)
    judge = walk(optim.adamw(rate, **arguments), params, grads, jit=True)
    # Two programs: which products and sums are fused is the compiler's choice.
    assert deviation((ours[0], ours[2]), (judge[0], judge[2])) <= FLOAT32_BAR
    other = walk(optim.shampoo(rate, precondition_from=9), params, grads, jit=True)
    assert deviation(other[0]["b"], ours[0]["b"]) <= FLOAT32_BAR
    assert deviation(other[0]["w"], ours[0]["w"]) > 1e-4


def test_under_vmap_every_member_of_an_ensemble_gets_its_own_roots() -> None:
    tx, g = optim.scale_by_shampoo(precondition_from=1), draw(3, 4, 4)
    state = jax.vmap(tx.init)(g)
    together, _ = jax.vmap(tx.update)(g, state)
    for one, found in zip(g, together):
        alone, _ = tx.update(one, tx.init(one))
        np.testing.assert_allclose(found, alone, rtol=1e-3, atol=1e-3)


def test_it_beats_adam_on_a_badly_scaled_matrix_problem() -> None:
    """|A X B - C|^2 with condition numbers of 100 on both sides: Kronecker curvature."""
    a, b = (jnp.diag(jnp.logspace(-1, 1, n)) @ draw(n, n, seed=n) for n in (12, 8))
    c = draw(12, 8, seed=9)

    def loss(x: Any) -> Any:
        return jnp.mean((a @ x @ b - c) ** 2)

    def end(tx: Any) -> float:
        def step(carry: Any, _: None) -> Any:
            x, state = carry
            new, state = tx.update(jax.grad(loss)(x), state, x)
            return (x + new, state), None

        start = (jnp.zeros((12, 8)), tx.init(jnp.zeros((12, 8))))
        return float(loss(jax.jit(lambda s: jax.lax.scan(step, s, None, 300))(start)[0][0]))

    rates = (1e-3, 1e-2, 1e-1)
    assert min(end(optim.shampoo(r)) for r in rates) < min(end(optim.adam(r)) for r in rates)


WRONG: list[tuple[Callable[[], Any], type[FlaxtrainError], str]] = [
    (lambda: optim.shampoo(-0.1), ArgumentError, "learning_rate=-0.1"),
    (lambda: optim.shampoo("0.1"), ArgumentTypeError, "learning_rate='0.1'"),
    (lambda: optim.shampoo(0.1, 0), ArgumentError, "block_size=0"),
    (lambda: optim.shampoo(0.1, 2.5), ArgumentTypeError, "block_size=2.5"),
    (lambda: optim.shampoo(0.1, b1=1.0), ArgumentError, "b1=1.0"),
    (lambda: optim.shampoo(0.1, b1=-0.1), ArgumentError, "b1=-0.1"),
    (lambda: optim.shampoo(0.1, b2=1.1), ArgumentError, "b2=1.1"),
    (lambda: optim.shampoo(0.1, eps=-1.0), ArgumentError, "eps=-1.0"),
    (lambda: optim.shampoo(0.1, weight_decay=-1.0), ArgumentError, "weight_decay=-1.0"),
    (lambda: optim.shampoo(0.1, mask=0.5), ArgumentTypeError, "0.5"),
    (lambda: optim.shampoo(0.1, ridge=0.0), ArgumentError, "ridge=0.0"),
    (lambda: optim.shampoo(0.1, graft="adan"), UnknownNameError, "adam"),
    (lambda: optim.shampoo(0.1, graft=None), ArgumentTypeError, "graft=None"),
    (lambda: optim.shampoo(0.1, nesterov=1), ArgumentTypeError, "nesterov=1"),
    (lambda: optim.shampoo(0.1, precondition_every=0), ArgumentError, "precondition_every=0"),
    (lambda: optim.shampoo(0.1, precondition_from=0), ArgumentError, "precondition_from=0"),
    (lambda: optim.shampoo(0.1, merge_axes="yes"), ArgumentTypeError, "merge_axes='yes'"),
    (lambda: optim.shampoo(0.1, state_dtype=int), ArgumentTypeError, "state_dtype"),
    (lambda: optim.shampoo(0.1, blocksize=8), ArgumentTypeError, "did you mean 'block_size'"),
    (lambda: optim.scale_by_shampoo(0), ArgumentError, "block_size=0"),
    (lambda: shampoo_rule(precondition_evry=8), ArgumentTypeError, "precondition_every"),
]


@pytest.mark.parametrize(("call", "kind", "text"), WRONG, ids=[text for *_, text in WRONG])
def test_a_wrong_argument_raises(
    call: Callable[[], Any], kind: type[FlaxtrainError], text: str, unchecked_types: None
) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value) and caught.value.fix
