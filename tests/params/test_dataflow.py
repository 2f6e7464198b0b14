"""First uses, read from small programs in which they can be counted by eye."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from flaxtrain.params.dataflow import first_uses

X = jnp.ones(3)
Array = jax.Array


def uses(function: Callable[..., Any], count: int, data: Any = (X,)) -> list[tuple[Any, Any]]:
    """Returns `(depth, uses)` of each of `count` parameters of `function(params, *data)`."""
    found = first_uses(lambda p, d: function(p, *d), [X] * count, list(data))
    return [(each.depth, each.uses) for each in found]


def test_parameters_are_ordered_by_first_use_and_not_by_position() -> None:
    assert uses(lambda p, x: (x * p[1] + p[0]) * p[2], 3) == [(1, 1), (0, 1), (2, 1)]


def test_what_is_made_from_parameters_alone_is_used_where_it_meets_data() -> None:
    def normalised(p: Any, x: Array) -> Array:
        weight = p[0] / jnp.linalg.norm(p[0]) * p[1]
        return x * p[2] + weight

    assert uses(normalised, 3) == [(1, 1), (1, 1), (0, 1)]


def test_a_parameter_used_in_two_places_has_two_uses() -> None:
    assert uses(lambda p, x: jnp.sin(x * p[0]) * p[0], 1) == [(0, 2)]


def test_a_result_that_is_thrown_away_is_no_use() -> None:
    def head_without_output(p: Any, x: Array) -> Array:
        _ = x * p[0]
        return x * p[1]

    assert uses(head_without_output, 2) == [(None, 0), (0, 1)]


def test_a_parameter_that_is_returned_as_it_is_is_used_last() -> None:
    assert uses(lambda p, x: (jnp.exp(p[0]), x * p[1]), 2) == [(1, 1), (0, 1)]


def test_random_bits_are_data() -> None:
    def generator(p: Any) -> Array:
        return jax.random.normal(jax.random.key(0), (3,)) * p[0]

    assert uses(generator, 1, ()) == [(0, 1)]


def test_an_output_that_is_no_array_counts_every_use() -> None:
    class Distribution:
        def __init__(self, mean: Array) -> None:
            self.mean = mean

    assert uses(lambda p, x: Distribution(x * p[0]), 1) == [(0, 1)]


def test_branches_of_a_condition_both_count() -> None:
    def branches(p: Any, x: Array) -> Array:
        y = lax.cond(x.sum() > 0, lambda: x * p[0], lambda: x * p[1] * p[0])
        return y + p[2]

    # The false branch comes first in the program: x * p1 * p0, then x * p0, then the sum.
    assert uses(branches, 3) == [(1, 2), (0, 1), (2, 1)]


def test_a_choice_between_parameters_by_the_data_uses_them() -> None:
    def choice(p: Any, x: Array) -> Array:
        return lax.cond(x.sum() > 0, lambda: p[0], lambda: p[1])

    assert uses(choice, 2) == [(0, 1), (0, 1)]


def test_a_choice_by_a_parameter_uses_it() -> None:
    def choice(p: Any, x: Array) -> Array:
        return lax.cond(p[0].sum() > 0, lambda: x, lambda: x * p[1])

    assert uses(choice, 2) == [(1, 1), (0, 1)]


def test_a_state_that_starts_at_zero_uses_its_kernel_once() -> None:
    def recurrent(p: Any, xs: Array) -> Array:
        def cell(state: Array, x: Array) -> tuple[Array, Array]:
            state = jnp.tanh(state * p[0] + x * p[1])
            return state, state * p[2]

        return lax.scan(cell, jnp.zeros(3), xs)[1]

    assert uses(recurrent, 3, (jnp.ones((4, 3)),)) == [(0, 1), (1, 1), (2, 1)]


def test_a_learned_initial_state_is_used_when_the_loop_begins() -> None:
    def recurrent(p: Any, xs: Array) -> Array:
        return lax.scan(lambda state, x: (state * p[1] + x, None), p[0], xs)[0]

    assert uses(recurrent, 2, (jnp.ones((4, 3)),)) == [(0, 1), (1, 1)]


def test_uses_that_reach_the_output_only_in_a_later_iteration_count() -> None:
    def delayed(p: Any, x: Array) -> Array:
        def body(carry: tuple[Array, Array], _: Any) -> tuple[tuple[Array, Array], Array]:
            first, second = carry
            return (first * p[0], first), second

        return lax.scan(body, (x, jnp.zeros(3)), length=3)[1]

    assert uses(delayed, 1) == [(0, 1)]


def test_data_that_reach_the_carry_only_in_a_later_iteration_count() -> None:
    def delayed(p: Any, x: Array) -> Array:
        def body(carry: tuple[Array, Array], _: Any) -> tuple[tuple[Array, Array], None]:
            return (x, carry[0] * p[0]), None

        return lax.scan(body, (jnp.zeros(3), jnp.zeros(3)), length=3)[0][1] + p[1]

    assert uses(delayed, 2) == [(0, 1), (1, 1)]


def test_stacked_parameters_are_used_once_in_the_body_of_their_scan() -> None:
    def stack(p: Any, x: Array) -> Array:
        x, _ = lax.scan(lambda x, layer: (jnp.tanh(x * layer), None), x, jnp.stack([p[0]] * 2))
        return x * p[1]

    assert uses(stack, 2) == [(0, 1), (1, 1)]


def test_scans_in_scans_are_read() -> None:
    def nested(p: Any, x: Array) -> Array:
        def inner(x: Array, _: Any) -> tuple[Array, None]:
            return x * p[0], None

        def outer(x: Array, _: Any) -> tuple[Array, None]:
            return lax.scan(inner, x, length=2)[0] + p[1], None

        return lax.scan(outer, x, length=2)[0]

    assert uses(nested, 2) == [(0, 1), (1, 1)]


def test_a_while_loop_is_read_body_and_condition() -> None:
    def repeated(p: Any, x: Array) -> Array:
        y = lax.while_loop(lambda y: (y * p[0]).sum() < 9, lambda y: y * p[1], x)
        return y + p[2]

    # The condition decides how often the body runs, and so what comes out.
    assert uses(repeated, 3) == [(0, 1), (1, 1), (2, 1)]


def test_a_number_of_iterations_given_by_the_data_makes_the_result_data() -> None:
    def repeated(p: Any, x: Array) -> Array:
        count = x.sum().astype(int)
        y = lax.while_loop(lambda c: c[0] < count, lambda c: (c[0] + 1, c[1] * 2), (0, p[0]))[1]
        return y * p[1]

    assert uses(repeated, 2) == [(0, 1), (1, 1)]


def test_custom_derivatives_are_read_by_their_forward_pass() -> None:
    @jax.custom_vjp
    def scaled(weight: Array, x: Array) -> Array:
        return weight * x

    scaled.defvjp(lambda w, x: (w * x, (w, x)), lambda kept, g: (g * kept[1], g * kept[0]))

    @jax.custom_jvp
    def shifted(weight: Array, x: Array) -> Array:
        return weight + x

    shifted.defjvp(lambda primals, tangents: (sum(primals), sum(tangents)))
    found = uses(lambda p, x: shifted(p[0], scaled(p[1], x)) * p[2], 3)
    assert found == [(1, 1), (0, 1), (2, 1)]


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.remat(f))])
def test_calls_are_read_through(wrap: Callable[..., Any]) -> None:
    def inner(a: Array, b: Array, x: Array) -> Array:
        return x * b + a

    assert uses(lambda p, x: wrap(inner)(p[0], p[1], x), 2) == [(1, 1), (0, 1)]


def test_a_function_called_twice_with_the_same_parameter_uses_it_twice() -> None:
    scaled = jax.jit(lambda w, x: w * x)
    assert uses(lambda p, x: scaled(p[0], scaled(p[0], x)), 1) == [(0, 2)]


def test_what_can_not_be_read_through_mixes_all_its_inputs() -> None:
    def solved(p: Any, x: Array) -> Array:
        def matvec(y: Array) -> Array:
            return p[0] * y

        y = lax.custom_linear_solve(matvec, x, lambda _, b: b / p[0], symmetric=True)
        return y * p[1]

    assert uses(solved, 2) == [(0, 1), (1, 1)]


def test_the_gradient_of_a_loss_can_be_read_too() -> None:
    def loss(p: Any, x: Array) -> Array:
        return jnp.sum(jax.grad(lambda x: jnp.sum(x * p[0] * p[1]))(x) * x)

    # The gradient with respect to x is p0 * p1: it meets data in the last product only.
    assert uses(loss, 2) == [(0, 1), (0, 1)]


# Which parameters are used between uses of matrices.


def between(
    function: Callable[..., Any], count: int, matrices: Any = None, data: Any = (X,)
) -> set[int]:
    """Returns the parameters between `matrices`, which are all `count` where none are given."""
    numbers = range(count) if matrices is None else matrices
    found = first_uses(lambda p, d: function(p, *d), [X] * count, list(data), numbers)
    return {index for index, use in enumerate(found) if use.between}


def layers(x: Array, *kernels: Array) -> Array:
    for kernel in kernels:
        x = jnp.tanh(x * kernel)
    return x


def test_the_first_matrix_and_the_last_are_not_between_matrices() -> None:
    assert between(lambda p, x: layers(x, *p), 4) == {1, 2}
    assert between(lambda p, x: layers(x, *p), 4, matrices=()) == set()


def test_what_is_no_matrix_has_no_say() -> None:
    def scaled(p: Any, x: Array) -> Array:
        # A factor of the data, matrices 1 to 3 with a shift after each, a factor of the result.
        x = x * p[0]
        for kernel, shift in ((p[1], p[4]), (p[2], p[5]), (p[3], p[6])):
            x = x * kernel + shift
        return x * p[7]

    assert between(scaled, 8, matrices=(1, 2, 3)) == {2}


def test_every_head_is_a_readout() -> None:
    def heads(p: Any, x: Array) -> Any:
        x = layers(x, p[0], p[1])
        return x * p[2], x * p[3]

    assert between(heads, 4) == {1}


def test_a_matrix_whose_result_is_thrown_away_is_not_behind_another() -> None:
    def headless(p: Any, x: Array) -> Array:
        x = layers(x, p[0], p[1])
        _ = x * p[2]
        return x

    assert between(headless, 3) == set()


def test_data_that_come_in_late_are_data_still() -> None:
    def conditioned(p: Any, x: Array, label: Array) -> Array:
        return layers(x * p[0] + label * p[1], p[2], p[3])

    assert between(conditioned, 4, data=(X, X)) == {2}


def test_a_matrix_that_is_first_and_last_is_not_between_others() -> None:
    assert between(lambda p, x: layers(x, p[0], p[1], p[0]), 2) == {1}
    assert between(lambda p, x: layers(x, p[0], p[0]), 1) == set()
    assert between(lambda p, x: layers(x, p[0], p[0], p[0]), 1) == {0}


def test_matrices_that_are_multiplied_with_each_other_share_their_place() -> None:
    def factored(p: Any, x: Array) -> Array:
        return layers(x, p[0] * p[1], p[2] * p[3] / jnp.linalg.norm(p[2]), p[4] * p[5])

    assert between(factored, 6) == {2, 3}


def test_a_penalty_on_a_matrix_is_no_matrix_behind_others() -> None:
    def penalised(p: Any, x: Array) -> Array:
        loss = layers(x, *p).sum(keepdims=True)
        return loss + 0.1 * sum(jnp.sum(kernel**2) for kernel in p)

    assert between(penalised, 3) == {1}


def test_a_recurrent_matrix_follows_itself() -> None:
    def recurrent(p: Any, xs: Array) -> Array:
        def cell(state: Array, x: Array) -> tuple[Array, None]:
            return jnp.tanh(state * p[0] + x * p[1]), None

        return lax.scan(cell, jnp.zeros(3), xs)[0] * p[2]

    assert between(recurrent, 3, data=(jnp.ones((4, 3)),)) == {0}


@pytest.mark.parametrize(("length", "expected"), [(1, set()), (2, {0}), (5, {0})])
def test_layers_of_a_stack_follow_one_another(length: int, expected: set[int]) -> None:
    def stack(p: Any, x: Array) -> Array:
        kernels = jnp.stack([p[0]] * length)
        return lax.scan(lambda x, kernel: (jnp.tanh(x * kernel), None), x, kernels)[0]

    assert between(stack, 1) == expected
    assert between(lambda p, x: stack(p[1:], x * p[0]) * p[2], 3) == {1}
    assert uses(stack, 1) == [(0, 1)]


def test_maps_over_experts_do_not_follow_one_another() -> None:
    def experts(p: Any, x: Array) -> Array:
        kernels = jnp.stack([p[0]] * 4)
        return lax.map(lambda kernel: jnp.tanh(x * kernel), kernels)

    assert between(experts, 1) == set()


def test_both_branches_of_a_condition_are_between_what_is_around_it() -> None:
    def branches(p: Any, x: Array) -> Array:
        x = layers(x, p[0])
        x = lax.cond(x.sum() > 0, lambda: layers(x, p[1]), lambda: layers(x, p[2]))
        return layers(x, p[3])

    assert between(branches, 4) == {1, 2}
