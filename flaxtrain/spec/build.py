"""From a spec to the gradient transformation that a training step runs.

For a named optimizer, at update t = 1, 2, ... with learning rate a = learning_rate(t - 1):
    g <- clip(g)                                the whole gradient, see `spec.clips`
    g <- clip_of_group(g)                       of each group that has its own
    the stages of the optimizer in their order; for most of them
        u <- rule(g)                            the preconditioner, per parameter
        u <- u + weight_decay x                 where the decay mask is True
        update = -a u
Parameters of less than float32 precision are widened first; slots and updates are float32, and
the sum of parameter and update is rounded once, by `apply_updates`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.durations import Horizon
from flaxtrain.errors import ParameterError, nearest
from flaxtrain.optim import GradientTransformation, safe_increment
from flaxtrain.optim.transform import require_params
from flaxtrain.params import Facts
from flaxtrain.spec.applied import applied_learning_rates
from flaxtrain.spec.assignment import AssignedGroup, Assignment, assign
from flaxtrain.spec.clipping import clipped as clip_all
from flaxtrain.spec.clipping import first_memory, numbers_at
from flaxtrain.spec.group import DEFAULT
from flaxtrain.spec.hyperparameters import Numbers, Value
from flaxtrain.spec.needs import value_fn_of
from flaxtrain.spec.object_part import Leaves, ObjectPart
from flaxtrain.spec.opt_spec import OptSpec
from flaxtrain.spec.parts import Part, parts_of, rewarming
from flaxtrain.spec.phases import Phase
from flaxtrain.spec.state import OptState
from flaxtrain.tree import Path, is_none, key_of, path_name, unflatten, widened
from flaxtrain.typing import Array, Params, Updates

__all__ = ["build"]


def build(
    spec: OptSpec, facts: Facts, horizon: Horizon | None = None, *, step: int = 0
) -> GradientTransformation:
    """Makes the gradient transformation that a spec declares.

    `update` takes `grad_norm=` if the norm of the gradient is known already, and hands other
    extra arguments to optimizer objects; of `grad=` and `value_fn=` the part that is about
    their group. The trees are those of the trained parameters, as
    nested dicts: frozen parameters are simply not there.

    Args:
        spec: what the optimizer does.
        facts: the table of the model's parameters; groups and masks are made from it.
        horizon: the length of the run, for durations that are still relative.
        step: updates made so far; it decides what is frozen.

    Returns:
        A transformation whose state is an `OptState`. Its structure depends on the optimizers
        of the groups and on what is trained, not on any number.

    Raises:
        ParameterError: a selector or the decay mask does not fit the parameters.
        ArgumentError: `horizon` lacks what a relative duration needs.

    Example:
        >>> import flax.linen as nn
        >>> from flaxtrain.params import param_facts
        >>> facts = param_facts(nn.Dense(1), jnp.ones((1, 2)))
        >>> tx = build(OptSpec("sgd", learning_rate=0.5, weight_decay=0.1), facts)
        >>> params = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
        >>> grads = jax.tree.map(jnp.zeros_like, params)
        >>> updates, state = tx.update(grads, tx.init(params), params)
        >>> print(updates["kernel"].ravel(), updates["bias"], state.learning_rates["default"])
        [-0.05 -0.05] [-0.] 0.5
    """
    assignment = assign(spec, facts, horizon)
    return transformation(assignment, assignment.phase_at(step))


def transformation(assignment: Assignment, phase: Phase) -> GradientTransformation:
    """Returns the transformation of one phase of a run.

    Args:
        assignment: what the spec means for each parameter.
        phase: one of `assignment.phases`; what it freezes is not among the parameters.

    Raises:
        ArgumentError: an optimizer object holds a duration that is still relative.

    Example:
        >>> import flax.linen as nn
        >>> from flaxtrain.params import param_facts
        >>> from flaxtrain.spec import Freeze
        >>> facts = param_facts(nn.Dense(1), jnp.ones((1, 2)))
        >>> spec = OptSpec("adam", 0.1, freeze=Freeze("#bias", until=5))
        >>> assignment = assign(spec, facts)
        >>> params = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
        >>> parts = [{"kernel": params["kernel"]}, params]
        >>> for phase, trained in zip(assignment.phases, parts):
        ...     state = transformation(assignment, phase).init(trained)
        ...     print(state.count, sorted(state.slots["mu"]))
        0 ['kernel']
        5 ['bias', 'kernel']
    """
    parts = parts_of(assignment)
    groups = assignment.groups

    def init(params: Params, /) -> OptState:
        leaves = _leaves(params)
        _check_paths(leaves, assignment)
        slots = {part.label: part.init(_own(part, leaves)) for part in parts}
        inner = slots[parts[0].label] if len(parts) == 1 else slots
        return OptState(
            jnp.full([], phase.start, jnp.int32),
            {n: jnp.zeros((), jnp.float32) for part in parts for n in _rate_names(part, slots)},
            {group.name: group.hyperparameters.initial() for group in groups},
            inner,
            first_memory(assignment),
        )

    def update(
        updates: Updates,
        state: OptState,
        params: Params | None = None,
        *,
        grad_norm: Array | None = None,
        grad: Updates | None = None,
        value_fn: Callable[[Params], Array] | None = None,
        **extra_args: Any,
    ) -> tuple[Updates, OptState]:
        require_params(params, assignment.spec)
        count = state.count
        hyperparams = numbers_at(assignment, state)
        numbers = {group.name: _numbers(group, hyperparams[group.name]) for group in groups}
        _, structure = jax.tree.flatten(updates, is_leaf=is_none)
        grads, values = _leaves(updates), _leaves(params)
        # Widened before it is clipped: the factor must not be rounded to 16 bits.
        clipped, memory = clip_all(
            widened(grads), values, assignment, hyperparams, state.clip_memory, grad_norm
        )
        for part in parts:
            if isinstance(part, ObjectPart):
                # Objects keep slots in the dtype of what they are given.
                clipped |= _as_params(_own(part, clipped), values)
        slots = {parts[0].label: state.slots} if len(parts) == 1 else dict(state.slots)
        new: Leaves = {}
        _check_trained(grads, phase)
        for part in parts:
            own = _own(part, clipped)
            if own:
                arrays = (own, slots[part.label], {path: values[path] for path in own})
                extra = {**extra_args, **_beside(part, own, params, values, grad, value_fn)}
                done, slots[part.label] = part.update(count, phase, *arrays, numbers, **extra)
                new |= done
        found = {n: r for part in parts for n, r in _rates(part, slots, phase, numbers, count)}
        rates = {name: found.get(name, old) for name, old in state.learning_rates.items()}
        inner = slots[parts[0].label] if len(parts) == 1 else slots
        result = jax.tree.unflatten(structure, [new[path] for path in grads])
        return result, OptState(safe_increment(count), rates, hyperparams, inner, memory)

    arguments = {"spec": assignment.spec, "assignment": assignment, "phase": phase}
    return GradientTransformation(init, update, name="build", arguments=arguments)


def _leaves(tree: Any) -> Leaves:
    """Returns the leaves of any tree by path, None included, in jax's order."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_none)
    return {tuple(map(key_of, keys)): leaf for keys, leaf in found}


def _beside(
    part: Part,
    own: Leaves,
    params: Params | None,
    values: Leaves,
    grad: Updates | None,
    value_fn: Callable[[Params], Array] | None,
) -> dict[str, Any]:
    """Returns what an optimizer object gets beside its gradient, as far as it is known."""
    found: dict[str, Any] = {}
    if isinstance(part, ObjectPart) and grad is not None:
        found["grad"] = unflatten(_as_params(_own(part, _leaves(grad)), values))
    if isinstance(part, ObjectPart) and value_fn is not None:
        found["value_fn"] = value_fn_of(own, params, value_fn)
    return found


def _own(part: Part, leaves: Leaves) -> Leaves:
    """Returns the leaves of a part's groups."""
    paths = frozenset[Path]().union(*(group.paths for group in part.groups.values()))
    return {path: leaf for path, leaf in leaves.items() if path in paths}


def _as_params(grads: Leaves, params: Leaves) -> Leaves:
    """Returns gradients in the dtypes of their parameters."""
    return {
        path: None if grad is None else jnp.asarray(grad, jnp.asarray(params[path]).dtype)
        for path, grad in grads.items()
    }


def _check_paths(leaves: Leaves, assignment: Assignment) -> None:
    """Refuses parameters that the table does not know: their mask would be a guess."""
    for path in leaves:
        if path not in assignment.params:
            guess = nearest(path_name(path), map(path_name, assignment.params)) or ["(none)"]
            raise ParameterError(
                f"the model has no parameter {path_name(path)!r}",
                where="build(spec, facts): init(params)",
                fix=f"pass params of the model that facts describes; nearest: {guess[0]}",
            )


def _check_trained(grads: Leaves, phase: Phase) -> None:
    for path in grads:
        if path not in phase.trained:
            raise ParameterError(
                f"{path_name(path)!r} is frozen in the steps {phase.start}:{phase.stop or ''}",
                where="build(spec, facts): update(grads, ...)",
                fix="pass gradients and parameters without the frozen ones",
            )


def _numbers(group: AssignedGroup, hyperparams: Mapping[str, Value]) -> Numbers:
    """Returns the numbers of a group; an optimizer object keeps its rate to itself."""
    rate: Any = hyperparams.get("learning_rate", 0.0)
    return Numbers(rate if group.lr_mult == 1.0 else rate * group.lr_mult, hyperparams)


def _rates(
    part: Part,
    slots: Mapping[str, Any],
    phase: Phase,
    numbers: Mapping[str, Numbers],
    count: Any,
) -> Iterator[tuple[str, Array]]:
    """Yields the learning rates that an update applied, by group; 0 where all is frozen."""
    if isinstance(part, ObjectPart):
        # Asked of the state inside: a wrapper may count other updates than we do.
        trains = not part.group.paths.isdisjoint(phase.trained)
        for name, rate in _known(part, slots[part.label]).items():
            yield name, rate if trains else jnp.zeros_like(rate)
        return
    for name, group in part.groups.items():
        trained = {phase.trained[path] for path in group.paths if path in phase.trained}
        # Where parts of a group thawed at different times, the largest of their rates.
        factors = [jnp.asarray(rewarming(a, count), jnp.float32) for a in trained]
        largest = jnp.max(jnp.stack(factors)) if factors else 0.0
        yield name, jnp.asarray(numbers[name].learning_rate * largest, jnp.float32)


def _rate_names(part: Part, slots: Mapping[str, Any]) -> Iterable[str]:
    if isinstance(part, ObjectPart):
        return _known(part, slots[part.label])
    return [name for name, group in part.groups.items() if group.paths]


def _known(part: ObjectPart, state: Any) -> dict[str, Array]:
    """Returns the learning rates that an object tells, by group."""
    found = applied_learning_rates(state, part.tx)
    known = {name: rate for name, rate in found.items() if rate is not None}
    if part.label == DEFAULT:
        return known
    if len(known) == 1:
        return {part.label: next(iter(known.values()))}
    return {f"{part.label}.{name}": rate for name, rate in known.items()}
