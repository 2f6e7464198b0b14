"""Running the frozen modules of a model as in evaluation, without editing the model.

A module is frozen when all parameters below it are. While a training step applies the model,
its train flags are set to evaluation, dropout inside it is off, and its running statistics are
used and held, whatever its parent passes. The `Freeze` rule can say otherwise:

    mode     stats     train flags, dropout   BatchNorm normalises by   statistics
    eval     hold      evaluation             running statistics        held
    eval     update    evaluation             the batch                 updated
    train    hold      as the model says      running statistics        held
    train    update    as the model says      as the model says         updated
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import freeze

from flaxtrain.checks import check_choice
from flaxtrain.errors import ParameterError
from flaxtrain.params import Facts, ParamFact
from flaxtrain.params.intercept import MethodCall, intercepted_under_jit
from flaxtrain.params.low_rank import LORA
from flaxtrain.spec.freeze import MODES, STATS
from flaxtrain.train.flags import EVALUATION, force_attributes, forced_call
from flaxtrain.tree import Path, path_name
from flaxtrain.typing import Collections, Key

__all__ = ["NOTHING_FROZEN", "FrozenModule", "FrozenModules", "frozen_modules"]

# What arguments and attributes of these names are set to. Not to write statistics also matters
# within one call of the model: spectral norm reads what an earlier call has written.
_FORCED: Mapping[tuple[str, str], Mapping[str, bool]] = {
    ("eval", "hold"): {**EVALUATION, "use_running_average": True, "update_stats": False},
    ("eval", "update"): {**EVALUATION, "use_running_average": False, "update_stats": True},
    ("train", "hold"): {"use_running_average": True, "update_stats": False},
    ("train", "update"): {},
}
_FLAG = "frozen_modules"


@dataclass(frozen=True, order=True)
class FrozenModule:
    """A frozen module, with all modules inside it.

    Args:
        path: its path, as in the params; `()` is the whole model.
        stats: `"hold"` or `"update"` its running statistics.
        mode: whether it runs as in evaluation (`"eval"`) or as in training (`"train"`).

    Raises:
        UnknownNameError: `stats` or `mode` is another word.
    """

    path: Path
    stats: str = "hold"
    mode: str = "eval"

    def __post_init__(self) -> None:
        where = f"the frozen module {path_name(self.path)!r}"
        check_choice("stats", self.stats, STATS, where=where)
        check_choice("mode", self.mode, MODES, where=where)

    def covers(self, path: Path) -> bool:
        """Returns whether the module, or variable, at `path` is this one or inside it."""
        return path[: len(self.path)] == self.path

    def relative_to(self, path: Path) -> tuple[str, ...]:
        """Returns what a module at `path` has to know of this one, which is it or inside it."""
        return (path_name(self.path[len(path) :]), self.stats, self.mode)


@dataclass(frozen=True)
class FrozenModules:
    """The frozen modules of a model: a value, so a static argument of `jit`.

    Made by `frozen_modules`; without modules, nothing is frozen and nothing happens.

    Args:
        modules: none of them inside another one.

    Raises:
        ParameterError: a module is inside another one.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> class Model(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, train):
        ...         x = nn.BatchNorm(use_running_average=not train, name="first")(x)
        ...         return nn.BatchNorm(use_running_average=not train, name="second")(x)
        >>> x = jnp.arange(8.0).reshape(4, 2)
        >>> variables = Model().init(jax.random.key(0), x, train=False)
        >>> frozen = FrozenModules((FrozenModule(("first",)),))
        >>> with frozen.applied({}) as rngs:
        ...     _, new = Model().apply(
        ...         variables, x, train=True, rngs=rngs, mutable=["batch_stats"]
        ...     )
        >>> {name: float(stats["mean"][0]) for name, stats in new["batch_stats"].items()}
        {'first': 0.0, 'second': 0.029999...}
    """

    modules: tuple[FrozenModule, ...] = ()

    def __post_init__(self) -> None:
        for outer in self.modules:
            for inner in self.modules:
                if inner is not outer and outer.covers(inner.path):
                    raise ParameterError(
                        f"the frozen module {path_name(inner.path)!r} is inside "
                        f"{path_name(outer.path)!r}, or the same",
                        where="FrozenModules(modules=...)",
                        fix="leave one of them out",
                    )

    def at(self, path: Path) -> FrozenModule | None:
        """Returns the frozen module that the one at `path` is, or is inside of; else None."""
        prefixes = (path[:end] for end in range(len(path) + 1))
        return next((self._by_path[p] for p in prefixes if p in self._by_path), None)

    @cached_property
    def _by_path(self) -> dict[Path, FrozenModule]:
        return {module.path: module for module in self.modules}

    @cached_property
    def _held_paths(self) -> frozenset[Path]:
        return frozenset(module.path for module in self.modules if module.stats == "hold")

    @cached_property
    def _around(self) -> dict[Path, tuple[str, ...]]:
        """Paths of the modules around frozen ones; each with what is frozen inside, and how."""
        around: dict[Path, tuple[str, ...]] = {}
        for module in self.modules:
            for end in range(len(module.path)):
                path = module.path[:end]
                around[path] = (*around.get(path, ()), *module.relative_to(path))
        return around

    def applied(self, rngs: Mapping[str, Key]) -> AbstractContextManager[dict[str, Key]]:
        """Returns a context in which the frozen modules of a model run as frozen.

        For training only: in evaluation every module is in evaluation anyway. Enter it before
        `row_mask`, which has to see which BatchNorms form batch statistics.

        Train flags are found as arguments and as attributes of modules, under the names in
        `TRAIN_FLAGS`. `has_rng` answers no, as it does in evaluation; what is drawn without
        asking is still drawn. Methods with `nn.nowrap` can't be reached.

        Args:
            rngs: the random streams of the call; the context has streams to add to them.
        """
        if not any(_FORCED[module.mode, module.stats] for module in self.modules):
            return nullcontext({})
        return intercepted_under_jit(self._intercept, rngs, repr(self.modules))

    def _intercept(self, call: MethodCall) -> Any:
        self._mark(call.module.scope)
        for inside in _bound_fields(call.module) if call.path in self._around else ():
            self._mark(inside.scope)
        frozen = self.at(call.path)
        if frozen is None:
            return call.run()
        forced = _FORCED[frozen.mode, frozen.stats]
        force_attributes(call.module, forced)
        if frozen.mode == "eval":
            object.__setattr__(call.module, "has_rng", lambda name: False)
        return forced_call(call, forced).run()

    def _mark(self, scope: Any) -> None:
        """Says in a scope's flags what is frozen there: they are in the cache key of `nn.jit`.

        So modules of one class share a program only where the same is frozen in them. A method
        under `nn.jit` is intercepted within it, which is too late: therefore a scope marks its
        children when it makes them. A lift makes the scopes of modules that are fields itself.
        """
        path = scope.path
        frozen = self.at(path)
        mark = self._around.get(path, ()) if frozen is None else ("", frozen.stats, frozen.mode)
        if scope.flags.get(_FLAG, ()) != mark:
            scope.flags = freeze({**scope.flags, _FLAG: mark})
        if path in self._around and "push" not in vars(scope):
            vars(scope)["push"] = partial(self._push, scope)

    def _push(self, scope: Any, *args: Any, **kwargs: Any) -> Any:
        child = type(scope).push(scope, *args, **kwargs)
        self._mark(child)
        return child

    def held(self, new: Collections, old: Collections) -> dict[str, Any]:
        """Returns the new collections, with the old values below modules with held statistics.

        Args:
            new: the collections after a call of the model, or some of them.
            old: those before. What `old` doesn't have (a value that was sown) stays new.

        Example:
            >>> frozen = FrozenModules((FrozenModule(("a",)),))
            >>> old, new = {"a": {"x": 0}, "b": 0}, {"a": {"x": 1}, "b": 1}
            >>> frozen.held({"batch_stats": new}, {"batch_stats": old})
            {'batch_stats': {'a': {'x': 0}, 'b': 1}}
        """
        if not self._held_paths:
            return dict(new)
        return {
            name: self._keep(tree, old[name], (), False) if name in old else tree
            for name, tree in new.items()
        }

    def _keep(self, new: Any, old: Any, path: Path, inside: bool) -> Any:
        inside = inside or path in self._held_paths
        if not (isinstance(new, Mapping) and isinstance(old, Mapping)):
            return old if inside else new
        kept = {
            key: self._keep(value, old[key], (*path, key), inside) if key in old else value
            for key, value in new.items()
        }
        return {**old, **kept} if inside else kept


NOTHING_FROZEN = FrozenModules()
"""No module is frozen: nothing happens, at no cost."""


def frozen_modules(facts: Facts, frozen: Mapping[Path, tuple[str, str]]) -> FrozenModules:
    """Returns the modules all of whose parameters are frozen; of nested ones, the topmost.

    Where rules with different settings meet in one module, it is the modules inside it that are
    frozen. Integer parameters don't count, for no rule can train them, and neither do adapters,
    which no module knows of.

    Args:
        facts: the table of parameters.
        frozen: by path of the frozen parameters, `(stats, mode)` of the rule that froze them.

    Raises:
        UnknownParameterError: the model has no such parameter.
        UnknownNameError: a setting is not known.
        ParameterError: a frozen module's own parameters have different settings.

    Example:
        >>> from flaxtrain.params import param_facts
        >>> model = nn.Sequential([nn.BatchNorm(True), nn.Dense(2)])
        >>> facts = param_facts(model, jnp.ones((1, 3)))
        >>> paths = [("layers_0", "scale"), ("layers_0", "bias"), ("layers_1", "kernel")]
        >>> frozen_modules(facts, dict.fromkeys(paths, ("hold", "eval"))).modules
        (FrozenModule(path=('layers_0',), stats='hold', mode='eval'),)
    """
    for path, (stats, mode) in frozen.items():
        FrozenModule(facts[path].path, stats, mode)
    counted = [
        fact
        for fact in facts.params
        if jnp.issubdtype(fact.dtype, jnp.inexact) and fact.role != LORA
    ]
    return FrozenModules(tuple(_topmost((), counted, frozen)))


def _topmost(
    path: Path, inside: Sequence[ParamFact], frozen: Mapping[Path, tuple[str, str]]
) -> Iterator[FrozenModule]:
    """Yields the frozen modules at `path` and inside it, given the parameters below it."""
    settings = {frozen.get(fact.path) for fact in inside}
    setting = next(iter(settings), None)
    if len(settings) == 1 and setting is not None:
        yield FrozenModule(path, *setting)
        return
    if None not in settings:
        _check_agree([fact for fact in inside if fact.owner_path == path], frozen)
    children: dict[Path, list[ParamFact]] = {}
    for fact in inside:
        if fact.owner_path != path:
            children.setdefault(fact.owner_path[: len(path) + 1], []).append(fact)
    for child, below in children.items():
        yield from _topmost(child, below, frozen)


def _check_agree(own: Sequence[ParamFact], frozen: Mapping[Path, tuple[str, str]]) -> None:
    """Refuses settings that differ between the parameters of one module that is all frozen."""
    for fact in own[1:]:
        first, other = frozen[own[0].path], frozen[fact.path]
        if first != other:
            raise ParameterError(
                f"{own[0].name!r} is frozen with stats={first[0]!r}, mode={first[1]!r}, and "
                f"{fact.name!r} with stats={other[0]!r}, mode={other[1]!r}",
                where=f"{fact.owner_name} at {path_name(fact.owner_path)!r}",
                fix="freeze the parameters of one module with the same stats and mode",
            )


def _bound_fields(module: nn.Module) -> list[nn.Module]:
    """Returns the modules among a module's fields, or in lists and dicts there."""
    names = [field.name for field in fields(module) if field.name != "parent"]
    values = jax.tree.leaves([vars(module).get(name) for name in names])
    return [value for value in values if isinstance(value, nn.Module) and value.scope]
