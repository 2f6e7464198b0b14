"""Each kind of clipping against a float64 oracle and against optax, and how it is declared."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxtrain as ft
from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError
from flaxtrain.params import Facts, param_facts
from flaxtrain.schedules import linear_schedule
from flaxtrain.spec import (
    AdaptiveClip,
    Clip,
    ClipBlockRms,
    ClipNorm,
    ClipValue,
    ClipZScore,
    Group,
    OptSpec,
    build,
)
from flaxtrain.spec.clips import CLIPS
from flaxtrain.spec.hyperparameters import CLIP_NUMBERS
from flaxtrain.tree import flatten, global_norm
from tests.models import CNN, GPT, MLP
from tests.runs import FLOAT32_BAR, counted, deviation

RNGS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
Tree = dict[str, Any]


@functools.cache
def facts_of(name: str) -> Facts:
    model, x = {
        "GPT": (GPT(), jnp.ones((2, 6), jnp.int32)),
        "CNN": (CNN(), jnp.ones((2, 8, 8, 3))),
        "MLP": (MLP(), jnp.ones((2, 8))),
    }[name]
    return param_facts(model, x, rngs=RNGS)


def draw(facts: Facts, seed: int, dtype: Any = np.float32) -> Tree:
    """Entries whose size differs from entry to entry, so that some units are clipped."""
    rng = np.random.default_rng(seed)

    def values(fact: Any) -> Any:
        size = np.exp(rng.normal(size=fact.shape))
        return jnp.asarray(size * rng.normal(size=fact.shape), dtype)

    return facts.tree(values)


def clipped(spec: OptSpec, facts: Facts, grads: Tree, params: Tree) -> dict[Any, np.ndarray]:
    """The gradient after clipping: what SGD with a learning rate of 1 takes away."""
    tx = build(spec, facts)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    return {path: -np.asarray(leaf) for path, leaf in flatten(updates).items()}


# The judge's own table, from the models' source: the axes that each layer's kernel sums over.
INPUTS = {
    ("query", "kernel"): (0,),
    ("key", "kernel"): (0,),
    ("value", "kernel"): (0,),
    ("out", "kernel"): (0, 1),
    ("up", "kernel"): (0,),
    ("down", "kernel"): (0,),
    ("wte", "embedding"): (0,),
    ("wpe", "embedding"): (0,),
    ("Conv_0", "kernel"): (0, 1, 2),
    ("Conv_1", "kernel"): (0, 1, 2),
    ("Dense_0", "kernel"): (0,),
}


def layers(path: Any, *arrays: Any) -> Any:
    """Returns the arrays layer by layer, if they are a scanned stack."""
    wide = [np.asarray(array, np.float64) for array in arrays]
    return zip(*wide, strict=True) if path[0] == "blocks" else [tuple(wide)]


def joined(path: Any, parts: list[np.ndarray]) -> np.ndarray:
    return np.stack(parts) if path[0] == "blocks" else parts[0]


def by_value(grads: Any, params: Any, limit: float) -> Any:
    return {
        path: np.clip(np.asarray(g, np.float64), -limit, limit) for path, g in grads.items()
    }


def by_norm(grads: Any, params: Any, limit: float) -> Any:
    norm = np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2) for g in grads.values()))
    return {
        path: np.asarray(g, np.float64) * min(1.0, limit / norm) for path, g in grads.items()
    }


def by_rms(grads: Any, params: Any, limit: float) -> Any:
    def one(g: np.ndarray) -> np.ndarray:
        return g / max(1.0, np.sqrt(np.mean(g**2)) / limit)

    return {p: joined(p, [one(g) for (g,) in layers(p, grad)]) for p, grad in grads.items()}


def by_unit(grads: Any, params: Any, ratio: float, eps: float = 1e-3) -> Any:
    def one(g: np.ndarray, x: np.ndarray, inputs: Any) -> np.ndarray:
        out = g.copy()
        rest = [n for a, n in enumerate(g.shape) if inputs is not None and a not in inputs]
        for place in np.ndindex(*rest):
            index: list[Any] = list(place)
            for axis in inputs if inputs is not None else range(g.ndim):
                index.insert(axis, slice(None))
            unit = tuple(index)
            most = ratio * max(np.linalg.norm(x[unit]), eps)
            norm = np.linalg.norm(g[unit])
            out[unit] = g[unit] * (most / norm) if norm > most else g[unit]
        return out

    return {
        path: joined(
            path,
            [one(g, x, INPUTS.get(path[-2:])) for g, x in layers(path, grad, params[path])],
        )
        for path, grad in grads.items()
    }


KINDS: list[tuple[Clip, Callable[..., Any], float]] = [
    (ClipNorm(3.0), by_norm, 3.0),
    (ClipValue(0.5), by_value, 0.5),
    (ClipBlockRms(1.2), by_rms, 1.2),
    (AdaptiveClip(0.7), by_unit, 0.7),
]


@pytest.mark.parametrize("model", ["GPT", "CNN"])
@pytest.mark.parametrize(
    ("clip", "oracle", "number"), KINDS, ids=[repr(clip) for clip, _, _ in KINDS]
)
def test_equals_the_float64_oracle(clip: Clip, oracle: Any, number: float, model: str) -> None:
    facts = facts_of(model)
    with jax.enable_x64(True):
        grads, params = draw(facts, 1, np.float64), draw(facts, 2, np.float64)
        ours = clipped(OptSpec("sgd", 1.0, clip=clip), facts, grads, params)
    flat = flatten(grads)
    wanted = oracle(flat, flatten(params), number)
    for path, array in wanted.items():
        # Sums of up to 288 squares in another order, in float64.
        np.testing.assert_allclose(ours[path], array, rtol=1e-13, atol=1e-15)
    kept = sum(np.sum(ours[path] == np.asarray(flat[path])) for path in flat)
    entries = sum(array.size for array in wanted.values())
    # Some entries are clipped, and for all kinds but the norm's some are left as they are.
    assert kept < entries and (kept > 0) != isinstance(clip, ClipNorm)


OPTAX: list[tuple[Clip, Any]] = [
    (ClipNorm(3.0), optax.clip_by_global_norm(3.0)),
    (ClipValue(0.5), optax.clip(0.5)),
    (ClipBlockRms(1.2), optax.clip_by_block_rms(1.2)),
    (AdaptiveClip(0.7), optax.adaptive_grad_clip(0.7)),
]


@pytest.mark.parametrize("model", ["MLP", "CNN"])
@pytest.mark.parametrize(("clip", "theirs"), OPTAX, ids=lambda v: type(v).__name__)
def test_equals_optax_where_nothing_is_stacked(clip: Clip, theirs: Any, model: str) -> None:
    facts = facts_of(model)
    grads, params = draw(facts, 1), draw(facts, 2)
    ours = clipped(OptSpec("sgd", 1.0, clip=clip), facts, grads, params)
    wanted, _ = jax.jit(theirs.update)(grads, theirs.init(params), params)
    assert deviation(ours, flatten(wanted)) <= FLOAT32_BAR


@pytest.mark.parametrize("clip", [ClipBlockRms(0.5), AdaptiveClip(0.3)], ids=repr)
def test_a_scanned_layer_is_clipped_as_if_it_stood_alone(clip: Clip) -> None:
    facts = facts_of("GPT")
    params, grads = draw(facts, 2), draw(facts, 1)
    huge = jax.tree.map(lambda g: g.at[1].multiply(1e4), grads["blocks"])
    spec = OptSpec("sgd", 1.0, clip=clip)
    plain = clipped(spec, facts, grads, params)
    spiked = clipped(spec, facts, {**grads, "blocks": huge}, params)
    for path in plain:
        if path[0] == "blocks":
            np.testing.assert_array_equal(plain[path][[0, 2]], spiked[path][[0, 2]])


def test_zeros_stay_zeros_and_can_start() -> None:
    facts = facts_of("MLP")
    zeros = jax.tree.map(jnp.zeros_like, draw(facts, 0))
    grads = draw(facts, 1)
    for clip in (ClipNorm(1.0), ClipValue(1.0), ClipBlockRms(1.0), AdaptiveClip(0.1, eps=0.0)):
        found = clipped(OptSpec("sgd", 1.0, clip=clip), facts, zeros, zeros)
        assert all(np.all(array == 0) for array in found.values())
    moved = clipped(OptSpec("sgd", 1.0, clip=AdaptiveClip(0.1)), facts, grads, zeros)
    norm = np.linalg.norm(moved["Dense_0", "bias"])
    assert norm == pytest.approx(0.1 * 1e-3, rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [ClipNorm, ClipBlockRms, AdaptiveClip, ClipValue])
def test_what_is_not_finite_is_not_hidden(kind: Any, bad: float) -> None:
    facts = facts_of("MLP")
    grads, params = draw(facts, 1), draw(facts, 2)
    grads["Dense_0"]["kernel"] = grads["Dense_0"]["kernel"].at[2, 3].set(bad)
    found = clipped(OptSpec("sgd", 1.0, clip=kind(0.5)), facts, grads, params)
    entry = found["Dense_0", "kernel"][2, 3]
    # An infinite entry becomes the bound; the step has seen it by then.
    assert entry == 0.5 if (kind is ClipValue and bad == np.inf) else np.isnan(entry)


def test_complex_entries_keep_their_direction() -> None:
    facts = facts_of("MLP")
    grads = jax.tree.map(lambda g: (3 + 4j) * jnp.ones_like(g), draw(facts, 1))
    params = jax.tree.map(lambda g: (1 + 0j) * g, draw(facts, 2))
    found = clipped(OptSpec("sgd", 1.0, clip=ClipValue(1.0)), facts, grads, params)
    for array in found.values():
        np.testing.assert_allclose(array, 0.6 + 0.8j, rtol=1e-6)


def test_gradients_of_16_bits_are_clipped_in_float32() -> None:
    facts = facts_of("MLP")
    grads, params = draw(facts, 1, jnp.bfloat16), draw(facts, 2, jnp.bfloat16)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (grads, params))
    for clip, _, _ in KINDS:
        spec = OptSpec("sgd", 1.0, clip=clip)
        ours, theirs = clipped(spec, facts, grads, params), clipped(spec, facts, *wide)
        assert {array.dtype for array in ours.values()} == {np.dtype("float32")}
        assert deviation(ours, theirs) <= FLOAT32_BAR


def test_clip_norm_is_clip_norm_in_front() -> None:
    facts = facts_of("MLP")
    grads, params = draw(facts, 1), draw(facts, 2)
    short = OptSpec("sgd", 1.0, clip_norm=3.0, clip=ClipValue(0.2))
    long = OptSpec("sgd", 1.0, clip=[ClipNorm(3.0), ClipValue(0.2)])
    assert short.clips == long.clips == (ClipNorm(3.0), ClipValue(0.2))
    assert short != long
    ours, theirs = (clipped(spec, facts, grads, params) for spec in (short, long))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


SCHEDULE = linear_schedule(1.0, 0.5, "50%")
DECLARED: list[tuple[Clip, str]] = [
    (ClipNorm(1), "ClipNorm(1.0)"),
    (ClipValue(np.float32(0.5)), "ClipValue(0.5)"),
    (ClipBlockRms(limit=2.0), "ClipBlockRms(2.0)"),
    (AdaptiveClip(), "AdaptiveClip()"),
    (AdaptiveClip(0.01, eps=0), "AdaptiveClip(eps=0.0)"),
    (ClipZScore(3, warmup="2%"), "ClipZScore(3.0, warmup='2%')"),
    (ClipValue(SCHEDULE), f"ClipValue({SCHEDULE!r})"),
]


@pytest.mark.parametrize(("clip", "text"), DECLARED, ids=lambda v: repr(v)[:30])
def test_a_clip_is_a_value(clip: Clip, text: str) -> None:
    assert repr(clip) == text
    assert clip == copy.deepcopy(clip) == clip.replace() == pickle.loads(pickle.dumps(clip))
    assert hash(clip) == hash(clip.replace())
    for spec in (
        OptSpec("sgd", 0.1, clip=clip),
        OptSpec("sgd", 0.1, groups=[Group("a", clip=clip)]),
    ):
        assert OptSpec.from_json(spec.to_json()) == spec
        assert repr(OptSpec.from_json(spec.to_json())) == repr(spec)
        assert spec != OptSpec("sgd", 0.1)
        assert spec.fingerprint() != OptSpec("sgd", 0.1).fingerprint()
    resolved = clip.resolve(Horizon(batches=1000))
    assert resolved == resolved.resolve(Horizon())


def test_durations_are_resolved_with_the_spec() -> None:
    clips = [ClipValue(SCHEDULE), ClipZScore(SCHEDULE, warmup="2%")]
    spec = OptSpec("sgd", 0.1, clip=clips, groups=[Group("a", clip=clips)])
    found = spec.resolve(Horizon(batches=1000))
    ready = linear_schedule(1.0, 0.5, 500)
    assert found.clip == (ClipValue(ready), ClipZScore(ready, warmup=20))
    assert found.groups[0].clip == found.clip
    assert found.resolve(Horizon()) == found
    # However short the run: one norm has no variance.
    assert spec.resolve(Horizon(batches=10)).clip[1] == ClipZScore(
        linear_schedule(1.0, 0.5, 5), warmup=2
    )


def test_the_data_and_the_difference_of_specs() -> None:
    a = OptSpec("sgd", 0.1, clip=[ClipValue(1.0), AdaptiveClip()])
    assert a.to_dict()["clip"] == [
        {"kind": "ClipValue", "limit": 1.0},
        {"kind": "AdaptiveClip"},
    ]
    b = a.replace(clip=[ClipValue(2.0), ClipZScore()])
    assert a.diff(b) == (
        "clip['ClipValue'].limit: 1.0 -> 2.0",
        "clip: 'AdaptiveClip' removed",
        "clip: 'ClipZScore' added",
    )
    assert a.diff(a.replace(clip=a.clip[::-1])) == (
        "clip: order ClipValue, AdaptiveClip -> AdaptiveClip, ClipValue",
    )


def test_each_kind_has_a_number_of_its_own_in_the_state() -> None:
    assert tuple(sorted(kind.number for kind in CLIPS)) == tuple(sorted(CLIP_NUMBERS))
    facts = facts_of("MLP")
    clips = [
        ClipNorm(1.0),
        ClipValue(2.0),
        ClipBlockRms(3.0),
        AdaptiveClip(4.0),
        ClipZScore(5.0),
    ]
    tx = build(OptSpec("sgd", 0.1, clip=clips), facts)
    state = tx.init(draw(facts, 0))
    numbers = state.hyperparams["default"]
    assert [float(numbers[c.number]) for c in clips] == [1.0, 2.0, 3.0, 4.0, 5.0]
    state = ft.set_hyperparameters(state, tx, clip_value=0.25, clip_z=3)
    assert float(state.hyperparams["default"]["clip_value"]) == 0.25
    for wrong in ({"clip_value": 0.0}, {"clip_z": -1.0}, {"clip_ratio": float("nan")}):
        with pytest.raises(ArgumentError, match="is out of range"):
            ft.set_hyperparameters(state, tx, **wrong)  # type: ignore[arg-type]


def test_a_bound_follows_its_schedule_and_edits_compile_nothing_anew() -> None:
    facts = facts_of("MLP")
    params = draw(facts, 2)
    ones = jax.tree.map(jnp.ones_like, params)
    schedule = linear_schedule(0.5, 0.1, 2)
    tx = build(OptSpec("sgd", 1.0, clip=[ClipValue(schedule), ClipNorm(1e6)]), facts)
    (update, traces), state = counted(tx.update), tx.init(params)
    for limit in (0.5, 0.3, 0.1):
        updates, state = update(ones, state, params)
        np.testing.assert_allclose(updates["Dense_0"]["bias"], -limit, rtol=1e-6)
    with pytest.raises(ArgumentError, match="follows a schedule"):
        ft.set_hyperparameters(state, tx, clip_value=0.2)
    state = ft.set_hyperparameters(state, tx, clip_norm=1e-3)
    updates, state = update(ones, state, params)
    assert float(global_norm(updates)) == pytest.approx(1e-3, rel=1e-5)
    assert len(traces) == 1


WRONG: list[tuple[Callable[[], Any], type[FlaxtrainError], tuple[str, ...]]] = [
    (lambda: ClipNorm(0.0), ArgumentError, ("limit=0.0 is out of range", "where: ClipNorm")),
    (lambda: ClipValue(-1.0), ArgumentError, ("limit=-1.0 is out", "where: ClipValue")),
    (
        lambda: ClipBlockRms(cast(Any, "1")),
        ArgumentTypeError,
        ("limit='1' is a str", "ClipBlockRms"),
    ),
    (lambda: ClipNorm(float("inf")), ArgumentError, ("limit=inf is out of range",)),
    (lambda: AdaptiveClip(float("nan")), ArgumentError, ("ratio=nan is out of range",)),
    (lambda: AdaptiveClip(0.01, eps=-1.0), ArgumentError, ("eps=-1.0 is out of range",)),
    (
        lambda: cast(Any, AdaptiveClip)(0.01, ep=1.0),
        ArgumentTypeError,
        ("did you mean 'eps'?",),
    ),
    (lambda: cast(Any, ClipValue)(), ArgumentTypeError, ("limit", "where: ClipValue")),
    (lambda: ClipZScore(0.0), ArgumentError, ("z=0.0 is out of range",)),
    (lambda: ClipZScore(decay=1.0), ArgumentError, ("decay=1.0 is out of range",)),
    (lambda: ClipZScore(warmup=1), ArgumentError, ("warmup=1", "at least 2 updates")),
    (lambda: ClipZScore(warmup="5 bananas"), ArgumentError, ("5 bananas", "ClipZScore(warmup")),
    (
        lambda: ClipValue(linear_schedule(1.0, 0.0, 5)),
        ArgumentError,
        ("limit=0.0 is out of range", "where: ClipValue"),
    ),
    (
        lambda: OptSpec("sgd", 0.1, clip=cast(Any, 1.0)),
        ArgumentTypeError,
        ("clip=1.0 is a float, not a kind of clipping", "where: OptSpec", "ClipNorm(...)"),
    ),
    (
        lambda: OptSpec("sgd", 0.1, clip=[ClipValue(1.0), cast(Any, "norm")]),
        ArgumentTypeError,
        ("clip='norm' is a str",),
    ),
    (
        lambda: OptSpec("sgd", 0.1, clip=cast(Any, None)),
        ArgumentTypeError,
        ("clip=None is a NoneType",),
    ),
    (
        lambda: Group("head", clip=cast(Any, ClipValue)),
        ArgumentTypeError,
        ("is a type, not a kind of clipping", "where: Group('head')"),
    ),
    (
        lambda: OptSpec("sgd", 0.1, clip=[ClipValue(1.0), ClipNorm(1.0), ClipValue(0.1)]),
        ArgumentError,
        ("clip= holds ClipValue twice", "fix:   say each kind once"),
    ),
    (
        lambda: OptSpec("sgd", 0.1, clip_norm=1.0, clip=[ClipValue(1.0), ClipNorm(2.0)]),
        ArgumentError,
        ("both clip_norm=1.0 and ClipNorm(2.0) limit the norm", "leave clip_norm out"),
    ),
    (
        lambda: Group("head", clip_norm=1.0, clip=ClipNorm(2.0)),
        ArgumentError,
        ("both clip_norm=1.0 and ClipNorm(2.0)", "where: Group('head')"),
    ),
    (
        lambda: OptSpec("sgd", 0.1, clip_value=1.0),
        FlaxtrainError,
        ("unknown argument 'clip_value'", "did you mean 'clip'?"),
    ),
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("make", "kind", "texts"), WRONG, ids=[w[2][0] for w in WRONG])
def test_a_wrong_clip_is_a_named_error(make: Any, kind: Any, texts: tuple[str, ...]) -> None:
    with pytest.raises(kind) as caught:
        make()
    for text in texts:
        assert text in str(caught.value)
