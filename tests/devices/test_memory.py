"""What a device holds under each sharding, as the compiler counts it, and what it communicates.

The model and the step are those of benchmarks/sharding_bytes.py. Nothing is allocated. What is
held and sent does not depend on how much XLA optimizes: with the flags of `conftest.py` and
with a user's, bytes of the state are the same. The large model is compiled with a user's.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from typing import Any

import jax
import pytest

from flaxtrain.parallel import Sharding
from tests.runs import AS_IT_COMES, benchmark

SCRIPT = benchmark("sharding_bytes")
KINDS = ("replicated", "zero1", "fsdp")
ROWS, TIME, LAYERS, WIDTH, HEADS, VOCABULARY, CONTEXT = 8, 64, 4, 192, 12, 2048, 512
# Of kernels in a block: query, key, value, out, up, down.
KERNELS = 6
# Scalars, counters and the alignment of buffers; the ideal has none of them.
BAR = 0.05


@functools.cache
def small(kind: str) -> Any:
    """Adam on a small model, of which most parameters are above the threshold."""
    model = SCRIPT.GPT2(LAYERS, WIDTH, HEADS, VOCABULARY, CONTEXT)
    return SCRIPT.measured(model, "adam", kind, time_steps=TIME)


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_holds_its_share_of_parameters_and_slots(kind: str) -> None:
    found = small(kind)
    assert abs(found.state / found.ideal - 1) < BAR
    # The plan says the same, to the byte.
    assert found.planned.total == found.state
    assert (found.unsharded.left_whole > 0) == (kind != "replicated")
    share = found.state / small("replicated").state
    p, s = 1 / 3, 2 / 3  # Adam has two slots
    expected = {"replicated": p + s, "zero1": p + s / 8, "fsdp": (p + s) / 8}[kind]
    # Arrays below the threshold are 0.6% of this model.
    assert share == pytest.approx(expected, abs=0.01)


def test_data_parallelism_adds_up_gradients_and_sends_nothing_else() -> None:
    found = small("replicated")
    assert {one.kind for one in found.program.collectives} == {"all-reduce"}


def gathered(text: str) -> Counter[str]:
    """Returns the shapes of what is gathered whole, and how often."""
    return Counter(re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text))


def test_zero1_gathers_each_parameter_once_after_the_update() -> None:
    found = small("zero1")
    heads, stack = f"{HEADS},{WIDTH // HEADS}", f"{LAYERS},{WIDTH}"
    expected = {
        f"{stack},{heads}": 3,  # query, key, value
        f"{LAYERS},{heads},{WIDTH}": 1,
        f"{stack},{4 * WIDTH}": 1,
        f"{LAYERS},{4 * WIDTH},{WIDTH}": 1,
        f"{VOCABULARY},{WIDTH}": 1,
        f"{CONTEXT},{WIDTH}": 1,
    }
    assert expected.items() <= gathered(found.text).items()
    assert set(found.program.kinds(repeated=True)) == {"all-reduce"}


def test_fsdp_gathers_the_parameters_of_one_layer_at_a_time() -> None:
    found = small("fsdp")
    # On the way forward, and once more on the way back; gradients are added up in the loop.
    assert found.program.kinds(repeated=True) == {"all-gather": 2 * KERNELS, "all-reduce": 1}
    stacks = [(WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
    for rows, columns in stacks:
        assert f"f32[{rows},{columns}]" in found.text
        assert f"f32[{LAYERS},{rows},{columns}]" not in found.text
        assert f"f32[{LAYERS},{rows // 8},{columns}]" in found.text or (
            f"f32[{LAYERS},{rows},{columns // 8}]" in found.text
        )


def test_fsdp_leaves_rows_on_their_devices() -> None:
    found = small("fsdp")
    assert f"f32[1,{TIME},{4 * WIDTH}]" in found.text
    for features in (4 * WIDTH, 4 * WIDTH // 8, VOCABULARY, VOCABULARY // 8):
        assert f"f32[{ROWS},{TIME},{features}]" not in found.text


def weighed(tree: Any) -> tuple[int, int]:
    """Returns the bytes of all arrays, and of those that are too small to be split."""
    sizes = [(leaf.size, leaf.size * leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree)]
    small = sum(size for entries, size in sizes if entries < Sharding().min_size)
    return sum(size for _, size in sizes), small


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adam", "adafactor", "sm3", "shampoo"])
def test_the_share_is_right_for_gpt2_small(optimizer: str, kind: str) -> None:
    found = SCRIPT.measured(SCRIPT.GPT2(), optimizer, kind, options=AS_IT_COMES)
    state = jax.eval_shape(SCRIPT.recipe_of(SCRIPT.GPT2(), optimizer, TIME)[0].init)
    # The optimizer's own bytes, and of them those of arrays below the threshold.
    (p, small_p), (s, small_s) = map(weighed, (state.params, state.opt_state))
    assert 124e6 * 4 < p < 126e6 * 4 and found.plain.params == p
    slots, params = small_s + (s - small_s) / 8, small_p + (p - small_p) / 8
    apart = {"replicated": p + s, "zero1": p + slots, "fsdp": params + slots}[kind]
    # So little stays whole that the rule without exceptions holds as well.
    rough = {"replicated": p + s, "zero1": p + s / 8, "fsdp": (p + s) / 8}[kind]
    for ideal in (apart, rough, found.ideal):
        assert abs(found.state / ideal - 1) < BAR
    assert found.planned.total == found.state
