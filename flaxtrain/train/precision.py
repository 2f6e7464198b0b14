"""What a precision policy means for a model: found out by abstract evaluation.

Overrides are resolved against the table of parameters. Which modules have a field `dtype`, and
which of them the model has set, is seen in an abstract run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.errors import ArgumentError, ParameterError
from flaxtrain.params import Facts, select
from flaxtrain.params.intercept import MethodCall, intercepted_under_jit
from flaxtrain.params.low_rank import LORA
from flaxtrain.precision import Policy, Precision, short_name
from flaxtrain.train.casting import Casts, PolicyCasts, Region, SeenModule, has_dtype_field
from flaxtrain.tree import Path, path_name
from flaxtrain.typing import DTypeLike, Key

__all__ = ["casts_of"]

_WHERE = "Trainer(precision=...)"


def casts_of(
    precision: Precision,
    facts: Facts,
    run: Callable[[Mapping[str, Key]], Any],
    adapter_dtype: DTypeLike | None = None,
) -> Casts:
    """Finds out what a policy means for a model, by abstract evaluation.

    Args:
        precision: the policy.
        facts: the table of parameters.
        run: runs the model with further random streams.
        adapter_dtype: in which adapters are stored, unless an override says otherwise; None for
            that of the policy.

    Returns:
        `Casts`, which does nothing, for the default policy.

    Raises:
        ParameterError: an override selects nothing, or nothing that is left by earlier ones, or
            some of the parameters of a module that can have one dtype only.
        FlaxtrainError: a selector can't be read.
        ArgumentError: float64 is asked for, and jax is not set to it.

    Example:
        >>> import flax.linen as nn
        >>> from flaxtrain.params import param_facts
        >>> model, x = nn.Sequential([nn.Dense(2), nn.LayerNorm()]), jnp.ones((1, 3))
        >>> def run(streams):
        ...     return model.init({"params": jax.random.key(0), **streams}, x)
        >>> precision = Precision("bf16", {"@LayerNorm": "c=f32"})
        >>> casts = casts_of(precision, param_facts(model, x), run)
        >>> [(path, region.compute.name) for path, region in casts.regions.items()]
        [(('layers_0',), 'bfloat16'), (('layers_1',), 'float32')]
    """
    if precision.is_full:
        return Casts(precision)
    _check_dtypes(precision)
    lora = Policy(param=adapter_dtype).over(precision.main)
    parameters = {f.path: lora if f.role == LORA else precision.main for f in facts.params}
    partly: dict[Path, Policy] = {}
    for choice, policy in precision.rules:
        where = f"Precision(overrides={{{choice!r}: ...}})"
        chosen = select(facts, choice, where=where) - partly.keys()
        if not chosen:
            raise ParameterError(
                "earlier overrides have all of its parameters",
                where=where,
                fix="put the narrower override first: the first match wins",
            )
        parameters |= {path: policy.over(parameters[path]) for path in chosen}
        partly |= dict.fromkeys(chosen, policy)
    modules = _seen(run)
    own: dict[Path, set[Region]] = {}
    for fact in facts.params:
        # Adapters are merged into the parameters that they belong to.
        if jnp.issubdtype(fact.dtype, jnp.inexact) and fact.role != LORA:
            output = partly[fact.path].output if fact.path in partly else None
            compute: Any = parameters[fact.path].compute
            region = Region(np.dtype(compute), None if output is None else np.dtype(output))
            own.setdefault(fact.owner_path, set()).add(region)
    return PolicyCasts(precision, parameters, _regions(own, modules), modules)


def _regions(
    own: Mapping[Path, set[Region]], modules: Mapping[Path, SeenModule]
) -> dict[Path, Region]:
    """Returns what holds in modules, given what is said of their own parameters.

    One with a dtype goes by its own parameters, where it has any; all others by what is below
    them, if that agrees, and are otherwise as what is around them.
    """
    below: dict[Path, set[Region]] = {}
    for path, found in own.items():
        for end in range(len(path) + 1):
            below.setdefault(path[:end], set()).update(found)
    regions = {}
    for path in {**dict.fromkeys(below), **dict.fromkeys(modules)}:
        seen = modules.get(path)
        mine = own.get(path, set()) if seen is not None and seen.is_open else set()
        if len(mine) > 1:
            said = ", ".join(sorted(short_name(region.compute) for region in mine))
            raise ParameterError(
                f"the parameters of one {seen.name if seen else 'module'} differ in what an "
                f"override says of computing ({said}), and it has one dtype",
                where=f"{_WHERE}: {path_name(path) or 'the model'}",
                fix="select whole modules, such as '@LayerNorm' or 'head', or say only p=",
            )
        agreed = mine or below.get(path, set())
        if len(agreed) == 1:
            regions[path] = next(iter(agreed))
    return dict(sorted(regions.items()))


def _seen(run: Callable[[Mapping[str, Key]], Any]) -> dict[Path, SeenModule]:
    """Returns the modules of a model, each with the dtype that the model gives it."""
    found: dict[Path, SeenModule] = {}

    def note(call: MethodCall) -> Any:
        has_dtype = has_dtype_field(call.module)
        dtype = getattr(call.module, "dtype", None) if has_dtype else None
        seen = SeenModule(
            type(call.module).__name__, None if dtype is None else jnp.dtype(dtype), has_dtype
        )
        # Of modules that share a scope, one with a dtype counts.
        if call.is_own_method and (call.path not in found or has_dtype):
            found[call.path] = seen
        return call.run()

    with intercepted_under_jit(note, {}) as streams:
        jax.eval_shape(lambda: run(streams))
    return found


def _check_dtypes(precision: Precision) -> None:
    policies = [precision.main, *(policy for _, policy in precision.rules)]
    wide = any(dtype.itemsize > 4 for policy in policies for dtype in policy.dtypes)
    if wide and not jax.config.read("jax_enable_x64"):
        raise ArgumentError(
            "float64 is asked for, and jax is set to 32 bits",
            where=_WHERE,
            fix='call jax.config.update("jax_enable_x64", True) first, or pass "f32"',
        )
