"""What a plan says about dtypes: of parameters, of what modules compute in, of the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.params import select
from flaxtrain.params.intercept import MethodCall, intercepted
from flaxtrain.precision import NEAREST, is_16_bits, rounding_rule, short_name
from flaxtrain.spec import Assignment
from flaxtrain.text import counted, listed, readable_bytes
from flaxtrain.train import PolicyCasts, Recipe, train_step
from flaxtrain.tree import Path, nbytes, path_name

__all__ = ["PlannedDtypes", "planned_dtypes", "precision_warnings"]


@dataclass(frozen=True)
class PlannedDtypes:
    """The dtypes of a run.

    Attributes:
        stored: by dtype, the number of parameters (arrays) that are stored in it, and their
            bytes.
        computed: by dtype, the classes of modules that compute in it by the policy; empty where
            the model runs as it was written.
        own: the same of modules whose `dtype` the model itself sets.
        output: of what the model puts out; `""` where that is the model's own business.
        update: how trained parameters of 16 bits are updated; `""` if there are none.
        carry: bytes that are kept for that, in the first phase.
    """

    stored: Mapping[str, tuple[int, int]]
    computed: Mapping[str, tuple[str, ...]]
    own: Mapping[str, tuple[str, ...]]
    output: str
    update: str
    carry: int

    def __str__(self) -> str:
        """Returns all of it in one line."""
        stored = (
            f"{dtype} ({counted(count, 'array')}, {readable_bytes(size)})"
            for dtype, (count, size) in self.stored.items()
        )
        parts = [f"parameters {', '.join(stored) or 'none'}"]
        if self.update:
            rule = rounding_rule(self.update)
            kept = f", {readable_bytes(self.carry)}" if self.carry else ""
            parts.append(f"updates of 16 bits: {rule.description}{kept}")
        if not self.output:
            return "; ".join([*parts, "computed as the model says"])
        parts.append(f"computed in {_by_dtype(self.computed) or 'nothing'}")
        if self.own:
            parts.append(f"by the model's own dtype= in {_by_dtype(self.own)}")
        return "; ".join([*parts, f"output {self.output}"])


def _by_dtype(table: Mapping[str, tuple[str, ...]]) -> str:
    return ", ".join(f"{dtype} ({listed(names)})" for dtype, names in table.items())


def planned_dtypes(recipe: Recipe, state: Any) -> PlannedDtypes:
    """Returns the dtypes of a run.

    Args:
        recipe: the recipe of its first phase.
        state: shapes and dtypes of the state with which it begins.
    """
    stored: dict[str, tuple[int, int]] = {}
    for leaf in jax.tree.leaves(state.params):
        count, size = stored.get(leaf.dtype.name, (0, 0))
        stored[leaf.dtype.name] = (count + 1, size + nbytes(leaf))
    casts = recipe.casts
    short = _trained_in_16_bits(recipe.assignment, recipe)
    is_cast = isinstance(casts, PolicyCasts)
    computed, own = _computed(recipe, casts, state) if is_cast else ({}, {})
    return PlannedDtypes(
        stored=stored,
        computed=computed,
        own=own,
        output=jnp.dtype(casts.precision.main.output).name if is_cast else "",
        update=casts.precision.update if short else "",
        carry=nbytes(state.rounding_carry),
    )


def _computed(
    recipe: Recipe, casts: PolicyCasts, state: Any
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Returns the classes of modules by dtype: as the policy says, and as the model does."""
    classes = {fact.owner_path: fact.owner_name for fact in recipe.facts.params}
    classes |= {path: seen.name for path, seen in casts.modules.items() if seen.has_dtype}
    computed: dict[str, dict[str, None]] = {}
    own: dict[str, dict[str, None]] = {}
    set_by_model = _set_by_model(recipe, casts, state)
    for path, name in classes.items():
        if path in set_by_model:
            own.setdefault(set_by_model[path], {})[name] = None
        elif path in casts.modules:  # adapters belong to no module
            computed.setdefault(casts.region_at(path).compute.name, {})[name] = None
    return (
        {dtype: tuple(names) for dtype, names in computed.items()},
        {dtype: tuple(names) for dtype, names in own.items()},
    )


def _set_by_model(recipe: Recipe, casts: PolicyCasts, state: Any) -> dict[Path, str]:
    """Returns the dtypes that the model itself sets, as a step finds them.

    A model may make one of the dtype of the module around, such as `self.dtype or jnp.float32`,
    which the policy has set by then.
    """
    modules = casts.modules.items()
    found = {path: seen.dtype.name for path, seen in modules if seen.dtype is not None}

    def note(call: MethodCall) -> Any:
        if call.path in found and getattr(call.module, "dtype", None) is not None:
            found[call.path] = jnp.dtype(call.module.dtype).name
        return call.run()

    if found:
        recipe = recipe.changed(casts=replace(casts, watched=True))
        with intercepted(note):
            jax.eval_shape(partial(train_step, recipe), state, recipe.example)
    return found


def _trained_in_16_bits(assignment: Assignment, recipe: Recipe) -> list[Path]:
    """Returns the parameters of 16 bits that are trained at some time."""
    trained = assignment.ever_trained
    return [path for path in trained if is_16_bits(recipe.facts[path].dtype)]


def precision_warnings(recipe: Recipe, total: int | None) -> Iterator[str]:
    """Yields what looks wrong in the dtypes of a run.

    Args:
        recipe: the recipe of any phase.
        total: number of updates in the run; None where that is not known.
    """
    short = _trained_in_16_bits(recipe.assignment, recipe)
    if short and recipe.rounding == NEAREST:
        yield (
            f"{counted(len(short), 'trained parameter')} of 16 bits, and updates are rounded "
            "to nearest: those below 1/512 (bfloat16) or 1/4096 (float16) of a value vanish; "
            "Precision(update='stochastic'), 'kahan' or 'master' keeps them"
        )
    if not short and recipe.rounding != NEAREST:
        yield (
            f"Precision(update={recipe.casts.precision.update!r}) has nothing to do: no "
            "trained parameter is stored in 16 bits; say p=bf16, or leave update out"
        )
    casts = recipe.casts
    if isinstance(casts, PolicyCasts):
        fields = [seen for seen in casts.modules.values() if seen.has_dtype]
        if fields and not any(seen.is_open for seen in fields):
            yield (
                f"precision={str(casts.precision.main)!r} does not reach any module: the model "
                "sets the dtype of all of them itself; leave dtype=None there"
            )
        yield from _overrides_in_vain(recipe, casts)


def _overrides_in_vain(recipe: Recipe, casts: PolicyCasts) -> Iterator[str]:
    """Yields overrides of modules whose dtype the model sets."""
    taken: set[Path] = set()
    for choice, policy in casts.precision.rules:
        chosen = select(recipe.facts, choice) - taken
        taken |= chosen
        owners = sorted({recipe.facts[path].owner_path for path in chosen})
        kept = [
            path_name(path)
            for path in owners
            if path in casts.modules and casts.modules[path].dtype not in (None, policy.compute)
        ]
        if kept and policy.compute is not None:
            yield (
                f"precision says c={short_name(policy.compute)} for {choice!r}, and the model "
                f"sets the dtype of {listed(kept)} itself; leave dtype=None there"
            )
