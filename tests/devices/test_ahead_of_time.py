"""The numbers of benchmarks/ahead_of_time.py, on a small model, against a count by hand."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.runs import benchmark

DEVICES, ROWS = 8, 16
WIDTH, HIDDEN, VOCABULARY, LAYERS, TIME = 256, 512, 1024, 3, 64


def size(**changed: Any) -> Any:
    return benchmark("language_model").Size(
        **{
            "layers": LAYERS,
            "width": WIDTH,
            "heads": 4,
            "hidden": HIDDEN,
            "vocabulary": VOCABULARY,
            "time": TIME,
            **changed,
        }
    )


@functools.cache
def found(accumulate: int) -> Any:
    step = benchmark("ahead_step")
    return step.found(step.Run(size(), {"fsdp": -1}, ROWS, accumulate))


NORMS = 4 * (2 * LAYERS + 1) * WIDTH
KERNELS = 4 * (2 * VOCABULARY * WIDTH + LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * HIDDEN))


@pytest.mark.slow
def test_a_chip_holds_its_share_of_kernels_and_all_norms() -> None:
    state, memory = found(1).state, found(1).memory
    assert state.params == KERNELS // DEVICES
    assert state.slots == 2 * KERNELS // DEVICES  # AdamW has two
    # Below the threshold, with their slots; and counters of the optimizer.
    assert 0 <= state.left_whole - 3 * NORMS < 100
    assert found(1).batch == 2 * 4 * TIME * ROWS // DEVICES  # tokens and targets
    # The compiler has the same arguments, to the byte, and updates all of the state in place.
    assert memory.arguments == state.total + found(1).batch
    assert memory.alias >= state.total - state.other
    assert 4 * found(1).parameters == KERNELS + NORMS


@pytest.mark.slow
def test_nothing_of_the_model_is_allocated() -> None:
    before = sum(array.nbytes for array in jax.live_arrays())
    step = benchmark("ahead_step")
    after = step.found(step.Run(size(layers=2), {"fsdp": -1}, ROWS)).alive
    # The key, the count of a schedule: numbers.
    assert after - before < 1024


@pytest.mark.slow
def test_kernels_of_a_layer_are_gathered_in_the_loop_twice() -> None:
    program = found(1).program
    # There and back; other loops are scatters, which the CPU's compiler writes out.
    assert Counter(program.loops)[LAYERS] == 2
    assert program.unknown == 0
    # Seven kernels on the way forward and again on the way back; embedding and head once.
    gathered = [one.runs for one in program.collectives if one.kind == "all-gather"]
    assert sorted(gathered) == [1, 1] + [LAYERS] * 14


@pytest.mark.slow
def test_sums_over_microbatches_are_split_like_the_parameters() -> None:
    once, several = found(1), found(2)
    loops = Counter(several.program.loops)
    assert (loops[2], loops[2 * LAYERS]) == (1, 2)
    # Beside what one microbatch takes: sums in float32, and bfloat16 kernels that outlive it.
    # Were the sums whole on each chip, they alone would take 8 times their share.
    assert several.memory.temporary - once.memory.temporary < KERNELS / 2


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_products_in_the_traced_step_are_those_counted_by_hand(accumulate: int) -> None:
    assert found(accumulate).flops == size().step_flops(ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [0, 16])
@pytest.mark.parametrize("remat", ["full", "dots", "none"])
def test_products_are_counted_with_all_that_is_computed_again(remat: str, chunk: int) -> None:
    models, chosen = benchmark("language_model"), size(remat=remat, chunk=chunk)
    model = models.LanguageModel(chosen)
    tokens = jax.ShapeDtypeStruct((ROWS, TIME), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)

    def total(variables: Any, tokens: Any) -> Any:
        batch = {"tokens": tokens, "targets": tokens}
        return models.loss(functools.partial(model.apply, variables), batch).sum()

    jaxpr = jax.make_jaxpr(jax.grad(total))(variables, tokens)
    assert benchmark("matmul_flops").matmul_flops(jaxpr) == chosen.step_flops(ROWS)
    if remat == "none" and not chunk:
        assert chosen.step_flops(ROWS) == chosen.model_flops(ROWS)


@pytest.mark.slow
def test_chunks_of_queries_attend_like_all_at_once() -> None:
    models = benchmark("language_model")
    key, tokens = jax.random.key(0), jnp.arange(2 * TIME).reshape(2, TIME) % VOCABULARY
    variables = models.LanguageModel(size()).init(key, tokens)
    one, other = (
        models.LanguageModel(size(chunk=chunk)).apply(variables, tokens) for chunk in (0, 16)
    )
    # Sums over keys in another order.
    assert jnp.allclose(one, other, atol=1e-4 * float(jnp.abs(one).max()))


TEXT = """
%all-reduce-scatter.1 (input: bf16[64,32]) -> bf16[16,32] {
  ROOT %r = bf16[64,32]{1,0} all-reduce(%input), channel_id=7, replica_groups={{0,1,2,3}}
}

%piece (p: bf16[16,8]) -> bf16[64,8] {
  %g = bf16[64,8]{1,0} all-gather(%p), channel_id=8, dimensions={0}
}

%inner_condition (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = bf16[16,32] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %a = bf16[64,8] fusion(%x), kind=kCustom, calls=%piece
  %b = bf16[64,8]{1,0} all-gather(%y), channel_id=8, dimensions={0}
}

%open_condition (p: (s32[], f32[8])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %j), direction=LT
}

%open (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (f32[8]{0}, f32[16]{0}) all-gather-start(%y), channel_id=9, dimensions={0}
}

%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]) while(%t), condition=%inner_condition, body=%inner
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%open_condition, body=%outer, TRIPS
  %v = (s32[], f32[8]) while(%t), condition=%open_condition, body=%open
  %q = f32[2,4]{1,0} reduce-scatter(%y), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}
"""


def test_collectives_are_read_with_the_turns_of_the_loops_around_them() -> None:
    trips = 'backend_config={"known_trip_count":{"n":"3"}}'
    program = benchmark("program_text").read(TEXT.replace("TRIPS", trips))
    # What is in several pieces has one channel; a reduce-scatter is the size of what goes in.
    assert program.by_kind() == {
        "all-gather": (2, 15 + 1, 15 * 2 * 64 * 8 + 4 * 16),
        "reduce-scatter": (2, 15 + 1, 15 * 2 * 64 * 32 + 4 * 4 * 8),
    }
    assert program.nbytes == sum(nbytes for _, _, nbytes in program.by_kind().values())
    # In a loop of unknown length a collective counts once.
    for repeated in (True, False):
        assert program.kinds(repeated=repeated) == {"all-gather": 1, "reduce-scatter": 1}
    assert sorted(program.loops) == [1, 3, 15]
    assert program.unknown == 1
