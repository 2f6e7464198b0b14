"""From one phase of a run to the next: what is trained changes, what was learnt stays."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.errors import ArgumentError
from flaxtrain.spec.assignment import Assignment
from flaxtrain.spec.build import transformation
from flaxtrain.spec.state import OptState
from flaxtrain.tree import Path, key_of, path_name, unflatten

__all__ = ["carried", "check_carries"]


def carried(fresh: OptState, old: OptState) -> OptState:
    """Returns the state with which a phase begins: old slots where there are, else fresh ones.

    Args:
        fresh: what the phase's own `init` made.
        old: the state at the end of the phase before.

    Returns:
        The count, learning rates, hyperparameters and memory of clips of `old`; its slots for
        the parameters that both know, and those of `fresh` for the others.

    Raises:
        ArgumentError: an array of the state has another shape in each of the two phases, so it
            can't be told what belongs to which parameter.

    Example:
        >>> fresh = OptState(jnp.int32(5), {}, {}, {"mu": {"a": 0.0, "b": 0.0}})
        >>> old = OptState(jnp.int32(5), {}, {}, {"mu": {"b": 2.0}})
        >>> carried(fresh, old).slots
        {'mu': {'a': 0.0, 'b': 2.0}}
    """
    known = _leaves(old.slots)
    entries, structure = jax.tree_util.tree_flatten_with_path(fresh.slots)
    leaves = [_older(_name(keys), leaf, known) for keys, leaf in entries]
    rates = {name: old.learning_rates.get(name, r) for name, r in fresh.learning_rates.items()}
    return old._replace(learning_rates=rates, slots=jax.tree.unflatten(structure, leaves))


def check_carries(assignment: Assignment) -> None:
    """Refuses a run whose state can't be carried from each phase to the next.

    Nothing is computed. Named optimizers always can; objects that join arrays can't.

    Args:
        assignment: what the spec means for each parameter, and the phases of the run.

    Raises:
        ArgumentError: as `carried` does.

    Example:
        >>> import flax.linen as nn
        >>> from flaxtrain import optim
        >>> from flaxtrain.params import param_facts
        >>> from flaxtrain.spec import Freeze, OptSpec, assign
        >>> facts = param_facts(nn.Dense(1), jnp.ones((1, 2)))
        >>> freeze = Freeze("#bias", start=5, slots="drop")
        >>> joined = OptSpec(optim.flatten(optim.adam(0.1)), freeze=freeze)
        >>> try:
        ...     check_carries(assign(joined, facts))
        ... except ArgumentError as error:
        ...     print(error.fix)
        pass the optimizer by name, or freeze for the whole run
    """
    if all(group.spec.name is not None for group in assignment.groups):
        return
    for before, after in pairwise(assignment.phases):
        states = []
        for phase in (before, after):
            facts = [assignment.params[path].fact for path in phase.with_slots]
            shapes = {f.path: jax.ShapeDtypeStruct(f.shape, f.dtype) for f in facts}
            init = transformation(assignment, phase).init
            states.append(jax.eval_shape(init, unflatten(shapes)))
        carried(states[1], states[0])


def _older(name: Path, fresh: Any, known: dict[Path, Any]) -> Any:
    old = known.get(name, fresh)
    if jnp.shape(old) != jnp.shape(fresh):
        raise ArgumentError(
            f"{path_name(name)!r} in the state of the optimizer object has shape "
            f"{jnp.shape(old)} in one phase of the run and {jnp.shape(fresh)} in the next: it "
            "joins parameters, so it can't go on when others are trained",
            where="OptSpec(freeze=...)",
            fix="pass the optimizer by name, or freeze for the whole run",
        )
    return old


def _leaves(tree: Any) -> dict[Path, Any]:
    return {_name(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(keys: tuple[Any, ...]) -> Path:
    return tuple(map(key_of, keys))
