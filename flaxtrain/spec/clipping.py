"""Clipping of the gradient of an update: the whole first, then the groups that say so.

Of each list of clips, those that know one norm and return one factor are joined: the gradient
is multiplied once, and no entry is ever divided. The norm of the whole gradient is known
already, since the step has to know whether it is finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from flaxtrain.spec.assignment import AssignedGroup, Assignment
from flaxtrain.spec.clip import ArrayClip, ScaleClip
from flaxtrain.spec.group import DEFAULT
from flaxtrain.spec.hyperparameters import Value
from flaxtrain.spec.object_part import Leaves
from flaxtrain.spec.packed_numbers import PackedNumbers
from flaxtrain.spec.state import ClipMemory, OptState
from flaxtrain.tree import flatten, global_norm, unflatten, widened
from flaxtrain.typing import Array, Params, Updates

# Nothing here is public: `build` clips, and the step reports the norm.
__all__ = []


class Clipped(NamedTuple):
    """Gradients after clipping, and what the clips remember."""

    grads: Leaves
    memory: ClipMemory


def first_memory(assignment: Assignment) -> ClipMemory:
    """Returns what the clips of each group remember before the first update."""
    memory = {
        group.name: {c.number: c.memory() for c in group.clips if c.memory()}
        for group in assignment.groups
    }
    return {name: own for name, own in memory.items() if own}


def numbers_at(assignment: Assignment, state: OptState) -> dict[str, PackedNumbers]:
    """Returns the numbers of each group in the update that begins at `state`."""
    return {
        group.name: group.hyperparameters.at(state.count, state.hyperparams[group.name])
        for group in assignment.groups
    }


def clips_anything(assignment: Assignment) -> bool:
    """Whether a spec clips at all."""
    return any(group.clips for group in assignment.groups)


def clipped(
    grads: Leaves,
    params: Leaves,
    assignment: Assignment,
    hyperparams: Mapping[str, Mapping[str, Value]],
    memory: ClipMemory,
    norm: Array | None = None,
) -> Clipped:
    """Clips the gradients of one update.

    Args:
        grads: gradients of the trained parameters by path, of float32 precision at least: the
            factor must not be rounded to 16 bits.
        params: those parameters.
        assignment: the groups and their clips.
        hyperparams: the numbers of each group at this update.
        memory: what the clips remember.
        norm: the norm of all gradients, if it is known.
    """
    grads, memory = dict(grads), dict(memory)
    for group in reversed(assignment.groups):  # the default one is last: the whole
        whole = group.name == DEFAULT
        own = {p: g for p, g in grads.items() if g is not None and (whole or p in group.paths)}
        if group.clips and own:
            known = norm if whole else None
            numbers, before = hyperparams[group.name], memory.get(group.name, {})
            new, after = _by_list(group, own, params, assignment, numbers, before, known)
            grads |= new
            if after:
                memory[group.name] = after
    return Clipped(grads, memory)


def _by_list(
    group: AssignedGroup,
    grads: Leaves,
    params: Leaves,
    assignment: Assignment,
    numbers: Mapping[str, Value],
    memory: Mapping[str, PackedNumbers],
    norm: Array | None,
) -> tuple[Leaves, dict[str, PackedNumbers]]:
    """Applies the clips of one group in their order."""
    factor: Array | None = None
    after = dict(memory)
    for clip in group.clips:
        bound: Any = numbers[clip.number]
        if isinstance(clip, ScaleClip):
            norm = global_norm(grads) if norm is None else norm
            remembered = after.get(clip.number, PackedNumbers.of({}))
            own, remembered = clip.factor(norm, bound, remembered)
            if remembered:
                after[clip.number] = remembered
            own = own.astype(norm.dtype)
            norm, factor = norm * own, own if factor is None else factor * own
        elif isinstance(clip, ArrayClip):
            grads = {
                path: _clip_array(clip, grad, bound, params[path], assignment.params[path].fact)
                for path, grad in _scaled(grads, factor).items()
            }
            norm = factor = None
    return _scaled(grads, factor), after


def _clip_array(clip: ArrayClip, grad: Array, bound: Array, param: Any, fact: Any) -> Array:
    return clip.clip(grad, bound.astype(grad.real.dtype), widened(param), fact)


def _scaled(grads: Leaves, factor: Array | None) -> Leaves:
    if factor is None:
        return grads
    return {path: factor.astype(grad.real.dtype) * grad for path, grad in grads.items()}


def clipped_gradient(
    assignment: Assignment,
    grads: Updates,
    params: Params,
    state: OptState,
    norm: Array | None = None,
) -> dict[str, Any]:
    """Returns the gradient as the optimizer gets it in the update that begins at `state`.

    In one compiled function with the update itself it costs nothing: both compute the same.

    Args:
        assignment: the groups and their clips.
        grads: gradients of the trained parameters.
        params: those parameters.
        state: the state before the update.
        norm: the norm of all gradients, if it is known.

    Returns:
        Nested dicts like `grads`.
    """
    hyperparams = numbers_at(assignment, state)
    leaves = widened(flatten(grads))
    result = clipped(leaves, flatten(params), assignment, hyperparams, state.clip_memory, norm)
    return unflatten(result.grads)
