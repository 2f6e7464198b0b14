"""Running an optimizer over recorded gradients; and how far two runs or two trees are apart."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.errors import FlaxtrainError
from flaxtrain.optim import apply_updates
from flaxtrain.tree import named_leaves, unwrap_random_key_data

Extra = Callable[[Any], dict[str, Any]]
"""From a gradient to the extra arguments of `update`; see `Case.extra`."""

FLOAT32_BAR = 2e-6
"""The largest deviation between libraries: about 30 roundings. Under jit most rows are equal
bit for bit; without it, optax itself compiles some parts and not others."""

BITWISE_STACK = jax.__version_info__[:2] == (0, 10)
"""Whether equality of every bit is asserted: with the jax that `docs/parity.md` was measured
with. Which products and sums are fused is the compiler's choice, and changes with it: with jax
0.12.0 single leaves of two rows differ from optax's by roundings, and one more row is equal.
Which products of 16 bits XLA has on a CPU differs likewise."""

AS_IT_COMES: Any = {"xla_backend_optimization_level": 3} | (
    {"xla_cpu_use_fusion_emitters": True} if BITWISE_STACK else {}
)
"""Compiler options of what is compared with optax: jax's defaults, so that the numbers are a
user's; for all other programs the root `conftest.py` asks for less."""


def nothing(grad: Any) -> dict[str, Any]:
    return {}


def run(tx: Any, params: Any, grads: Any, extra: Extra = nothing) -> tuple[Any, Any, Any]:
    """Applies all gradients in one scan; returns parameters, state and all updates."""

    @functools.partial(jax.jit, compiler_options=AS_IT_COMES)
    def scanned(params: Any, grads: Any) -> Any:
        def step(carry: Any, grad: Any) -> Any:
            params, state = carry
            updates, state = tx.update(grad, state, params, **extra(grad))
            return (apply_updates(params, updates), state), updates

        return jax.lax.scan(step, (params, tx.init(params)), grads)

    (params, state), updates = scanned(params, grads)
    return params, state, updates


def walk(
    tx: Any, params: Any, grads: Any, *, jit: bool, extra: Extra = nothing
) -> tuple[Any, Any, list[Any]]:
    """Applies the gradients one call at a time."""
    update = jax.jit(tx.update, compiler_options=AS_IT_COMES) if jit else tx.update
    state, record = tx.init(params), []
    for index in range(len(jax.tree.leaves(grads)[0])):
        grad = at(grads, index)
        updates, state = update(grad, state, params, **extra(grad))
        params = apply_updates(params, updates)
        record.append(updates)
    return params, state, record


def counted(function: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    """Returns the compiled function, and a list with an entry for every time it was traced.

    jax's own number, `_cache_size`, is of a cache that all functions of the process share: an
    entry is dropped when it is full, and then less is counted than was compiled.
    """
    traces: list[int] = []

    @jax.jit
    def compiled(*args: Any, **kwargs: Any) -> Any:
        traces.append(1)
        return function(*args, **kwargs)

    return compiled, traces


def at(grads: Any, index: int) -> Any:
    """Returns the gradients of one step."""
    return jax.tree.map(lambda leaf: leaf[index], grads)


def deviation(ours: Any, reference: Any) -> float:
    """Returns the largest over leaves of `max|a - b| / max|b|`."""
    found = [0.0]
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        a, b = _exact(a), _exact(b)
        assert a.shape == b.shape
        gap, size = np.max(np.abs(a - b), initial=0.0), np.max(np.abs(b), initial=0.0)
        assert np.isfinite(gap), "an infinity or NaN hides every deviation"
        found.append(float(gap / size) if size else float(gap > 0))
    return max(found)


def ulps(ours: Any, reference: Any) -> float:
    """Returns the largest over bfloat16 leaves of `max|a - b|` in last places of `max|b|`."""
    found = [0.0]
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        if b.dtype != jnp.bfloat16:
            continue
        size = np.max(np.abs(_exact(b)), initial=0.0)
        if size == 0:
            continue
        unit = 2.0 ** np.floor(np.log2(size)) * float(jnp.finfo(b.dtype).eps)
        found.append(float(np.max(np.abs(_exact(a) - _exact(b))) / unit))
    return max(found)


def differing_leaves(ours: Any, reference: Any) -> list[str]:
    """Returns the paths of leaves that differ in shape, dtype or any bit."""

    def form(leaf: Any) -> tuple[Any, ...]:
        return leaf.shape, leaf.dtype, _exact(leaf).tobytes()

    pairs = zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(reference), strict=True
    )
    return [jax.tree_util.keystr(path) for (path, a), b in pairs if form(a) != form(b)]


def readable(tree: Any) -> dict[str, np.ndarray]:
    """Returns the leaves of any tree by name, random keys as their integers."""
    return {name: np.asarray(unwrap_random_key_data(leaf)) for name, leaf in named_leaves(tree)}


def bits(tree: Any) -> dict[str, bytes]:
    """Returns the bytes of each leaf by name; a copy, so that the tree may be donated then."""
    return {name: leaf.tobytes() for name, leaf in readable(tree).items()}


def same(one: Any, other: Any) -> bool:
    """Whether two trees have the same names, and the same bits."""
    return bits(one) == bits(other)


def assert_agree(
    one: dict[str, np.ndarray],
    other: dict[str, np.ndarray],
    bar: float,
    narrow: tuple[str, ...] = (),
) -> None:
    """Asserts that named numbers are equal, relative to the largest of their kind.

    Args:
        one: numbers by name; a name begins with its kind, as in `params/head/kernel`. Entries
            of one gradient are compared with its largest: single ones may be zero.
        other: the others.
        bar: the largest deviation.
        narrow: how names of numbers begin that are float32 in a run in float64: for these the
            bar is 1e-6, about ten roundings.
    """
    assert one.keys() == other.keys()
    for kind in {name.partition("/")[0] for name in one}:
        names = [name for name in one if name.partition("/")[0] == kind]
        largest = max(np.abs(one[name]).max() for name in names)
        for name in names:
            assert one[name].shape == other[name].shape, name
            assert np.isfinite(one[name]).all(), name
            gap = np.abs(one[name] - other[name]).max()
            assert gap <= (1e-6 if name.startswith(narrow) else bar) * largest, (name, gap)


def layout(tree: Any) -> list[tuple[str, tuple[int, ...], str]]:
    """Returns path (with field names), shape and dtype of every leaf."""
    return [
        (jax.tree_util.keystr(path), leaf.shape, leaf.dtype.name)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def nodes(tree: Any) -> Any:
    """Returns the structure with classes by name and fields, so that two libraries compare."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree).__name__, {n: nodes(getattr(tree, n)) for n in tree._fields}
    if isinstance(tree, (tuple, list)):
        return type(tree).__name__, [nodes(item) for item in tree]
    if isinstance(tree, dict):
        return type(tree).__name__, {key: nodes(value) for key, value in tree.items()}
    return None if tree is None else (tree.shape, tree.dtype.name)


def _exact(array: Any) -> np.ndarray:
    if hasattr(array, "dtype") and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    array = np.asarray(array)
    wide = np.complex128 if np.iscomplexobj(array) else np.float64
    return array.astype(wide)


def moved(grads: Any) -> Any:
    """Returns float32 gradients with every entry one last place up or down, by a fixed coin."""
    rng = np.random.default_rng(7)

    def one(leaf: Any) -> Any:
        array = np.array(leaf)
        real = array.view(np.float32) if np.iscomplexobj(array) else array
        away = np.where(rng.integers(0, 2, real.shape) == 1, np.inf, -np.inf)
        return jnp.asarray(np.nextafter(real, away.astype(real.dtype)).view(array.dtype))

    return jax.tree.map(one, grads)


def benchmark(name: str) -> Any:
    """Returns a script of `benchmarks/`; they import one another from their own folder."""
    folder = str(Path(__file__).resolve().parents[1] / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def refused(call: Callable[[], Any], kind: type[FlaxtrainError], text: str) -> None:
    """Asserts that the call raises this error, with `text` in it and with what to do."""
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value) and caught.value.fix
