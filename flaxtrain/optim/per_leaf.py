"""An optimizer is a `Rule` about one array; this file lifts it to trees, once for all of them.

A rule says which slots an array needs (`init`), what depends on the step only (`scalars`), and
what one update does to one array (`update`). The lift owns everything else: the count, the
trees, leaves that are `None`, the dtype of the stored state, and sharing the trace of equal
shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.checks import is_concrete
from flaxtrain.errors import ArgumentError, ArgumentTypeError, ParameterError
from flaxtrain.optim.dtypes import stored_dtype
from flaxtrain.optim.rule import Rule
from flaxtrain.optim.transform import GradientTransformation, named, require_params
from flaxtrain.tree import is_none, named_leaves, widened
from flaxtrain.typing import Array, ArrayLike, DTypeLike, OptState, Params, PyTree, Updates

__all__ = ["in_float32", "init_slots", "per_leaf", "safe_increment", "update_slots"]


def safe_increment(count: ArrayLike) -> Array:
    """Returns `count + 1`, or `count` where that is the largest value its dtype can hold.

    Args:
        count: an integer or floating scalar, the number of updates already applied.

    Example:
        >>> print(safe_increment(jnp.int32(4)), safe_increment(jnp.int32(2**31 - 1)))
        5 2147483647
    """
    count = jnp.asarray(count)
    integral = jnp.issubdtype(count.dtype, jnp.integer)
    limits: Any = jnp.iinfo(count.dtype) if integral else jnp.finfo(count.dtype)
    return jnp.where(count < limits.max, count + 1, count).astype(count.dtype)


def init_slots(rule: Rule, params: Params, *, state_dtype: DTypeLike | None = None) -> Any:
    """Returns the slots of all parameters: one tree like `params` for each slot of the rule.

    Args:
        rule: what to do with one array.
        params: any pytree of arrays; `None` leaves have no slots.
        state_dtype: dtype of every inexact slot; default: what the rule chooses.

    Example:
        >>> from flaxtrain.optim.sgd import Trace
        >>> init_slots(Trace(0.9), {"w": jnp.ones(2)})
        TraceSlots(trace={'w': Array([0., 0.], dtype=float32)})
    """
    leaves, structure = jax.tree.flatten(params)
    arrays = map(_array, leaves)
    wide = arrays if state_dtype is None else map(widened, arrays)
    rows = [_stored(rule.init(array), state_dtype) for array in wide]
    return _by_slot(rule, rows, structure)


def update_slots(
    rule: Rule,
    t: Array | None,
    grads: Updates,
    slots: Any,
    params: Params | None = None,
    *,
    state_dtype: DTypeLike | None = None,
) -> tuple[Updates, Any]:
    """Applies the rule to every array of a tree.

    While tracing, the rule runs inside one inner `jax.jit`, so that arrays of equal shape and
    dtype share a trace. A leaf whose gradient is `None` gets the update `None` and keeps its
    slots.

    Args:
        rule: what to do with one array.
        t: int32 scalar, 1 at the first update; may be None for a rule without `scalars`.
        grads: a tree of arrays.
        slots: what `init_slots` or the last `update_slots` returned.
        params: a tree like `grads`; only rules with `needs_params` look at it.
        state_dtype: as for `init_slots`. When given, arithmetic and updates are in float32 or
            wider, whatever the dtype of gradients and slots.

    Returns:
        The updates, a tree like `grads`, and the new slots.

    Raises:
        ParameterError: the rule needs `params` and there are none, or the trees differ.

    Example:
        >>> from flaxtrain.optim.sgd import Trace
        >>> rule, params = Trace(0.5), {"w": jnp.ones(2)}
        >>> slots = init_slots(rule, params)
        >>> for t in (1, 2):
        ...     updates, slots = update_slots(rule, jnp.int32(t), params, slots)
        >>> updates
        {'w': Array([1.5, 1.5], dtype=float32)}
    """
    if rule.needs_params:
        require_params(params, type(rule).__name__)
    leaves, structure = jax.tree.flatten(grads, is_leaf=is_none)
    columns = [_align(structure, grads, tree, rule, what) for what, tree in _columns(slots)]
    values = _align(structure, grads, params, rule, "params") if rule.needs_params else None
    scalars = None if t is None else rule.scalars(t)
    step = _shared_step if _is_tracing(rule, grads, slots, params, t) else _step
    updates, rows = [], []
    for index, grad in enumerate(leaves):
        row = rule.Slots(*(column[index] for column in columns))
        if grad is not None:
            param = None if values is None else _array(values[index])
            grad, row = step(state_dtype, rule, _array(grad), row, param, scalars)
        updates.append(grad)
        rows.append(row)
    return jax.tree.unflatten(structure, updates), _by_slot(rule, rows, structure)


@named
def per_leaf(
    rule: Rule,
    state: Callable[..., OptState],
    *,
    state_dtype: DTypeLike | None = None,
    counter: str = "count",
) -> GradientTransformation:
    """Makes a gradient transformation of a rule.

    Args:
        rule: what to do with one array.
        state: a NamedTuple type with one field for each slot of the rule and, if the number of
            updates is to be kept, an int32 field for it.
        state_dtype: as for `update_slots`.
        counter: the name of that field.

    Raises:
        ArgumentTypeError: `rule` is not a Rule.
        ArgumentError: the fields of `state` don't fit the slots of the rule.

    Example:
        >>> from flaxtrain.optim.sgd import Trace, TraceState
        >>> tx = per_leaf(Trace(0.9), state=TraceState)
        >>> updates, state = tx.update(jnp.float32(1.0), tx.init(jnp.float32(0.0)))
        >>> print(state.trace)
        1.0
    """
    counted, make = _has_count(rule, state, counter), state

    def init(params: Params, /) -> OptState:
        count = {counter: jnp.zeros([], jnp.int32)} if counted else {}
        return make(**count, **init_slots(rule, params, state_dtype=state_dtype)._asdict())

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, OptState]:
        slots = rule.Slots(*(getattr(state, name) for name in _fields(rule.Slots)))
        t = safe_increment(getattr(state, counter)) if counted else None
        new, slots = update_slots(rule, t, updates, slots, params, state_dtype=state_dtype)
        return new, make(**({counter: t} if counted else {}), **slots._asdict())

    return GradientTransformation(init, update)


def in_float32(
    tx: GradientTransformation, state_dtype: DTypeLike | None
) -> GradientTransformation:
    """Returns `tx` for gradients and parameters that are made float32 or wider.

    A factory with a `state_dtype` puts its whole chain in it: the parts of a chain between two
    `per_leaf` (weight decay, a norm) know nothing of `state_dtype`.

    Args:
        tx: a transformation; its states stay as they are.
        state_dtype: None: `tx` itself is returned.

    Example:
        >>> from flaxtrain.optim import add_decayed_weights
        >>> tx, x = in_float32(add_decayed_weights(0.37), "float32"), jnp.bfloat16(1.0)
        >>> print(tx.update(0 * x, tx.init(x), x)[0])
        0.37
    """
    if state_dtype is None:
        return tx

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, OptState]:
        return tx.update(widened(updates), state, widened(params), **extra_args)

    return GradientTransformation(tx.init, update)


def _has_count(rule: Rule, state: Any, counter: str) -> bool:
    if not isinstance(rule, Rule):
        raise ArgumentTypeError(
            f"{rule!r} is not a Rule", where="per_leaf", fix="pass an instance of a Rule class"
        )
    fields, slots = _fields(state), _fields(rule.Slots)
    counted = counter in fields
    depends_on_step = type(rule).scalars is not Rule.scalars
    if set(fields) - {counter} != set(slots) or (depends_on_step and not counted):
        wanted = (counter, *slots) if depends_on_step else slots
        raise ArgumentError(
            f"{state.__name__} has the fields {fields}, {type(rule).__name__} needs {wanted}",
            where="per_leaf(rule, state=...)",
            fix="give the state one field for each slot, and the counter if scalars(t) is used",
        )
    return counted


def _fields(cls: Any) -> tuple[str, ...]:
    return cls._fields


def _step(
    state_dtype: Any, rule: Rule, grad: Array, slots: Any, param: Array | None, scalars: Any
) -> tuple[Array, Any]:
    """One array, one update; stored slots are widened before and narrowed after."""
    if state_dtype is None:
        return rule.update(grad, slots, param, scalars)
    grad, slots, param = widened((grad, slots, param))
    update, slots = rule.update(grad, slots, param, scalars)
    return update, _stored(slots, state_dtype)


# The module-level function is what makes traces shared: jit caches by function, by the rule's
# static fields (they are in its tree structure) and by the shapes and dtypes of the arrays.
_shared_step = partial(jax.jit, static_argnums=0)(_step)


def _is_tracing(*trees: PyTree) -> bool:
    return any(not is_concrete(leaf) for leaf in jax.tree.leaves(trees))


def _array(leaf: Any) -> Array:
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)


def _stored(slots: Any, state_dtype: DTypeLike | None) -> Any:
    if state_dtype is None:
        return slots
    return jax.tree.map(lambda slot: slot.astype(stored_dtype(slot, state_dtype)), slots)


def _columns(slots: Any) -> list[tuple[str, PyTree]]:
    return [(f"slot {name!r}", getattr(slots, name)) for name in _fields(type(slots))]


def _by_slot(rule: Rule, rows: list[Any], structure: Any) -> Any:
    """Turns a list of Slots, one for each leaf, into Slots of trees."""
    count = len(_fields(rule.Slots))
    columns = [[None if row is None else row[i] for row in rows] for i in range(count)]
    return rule.Slots(*(jax.tree.unflatten(structure, column) for column in columns))


def _align(structure: Any, grads: Updates, tree: PyTree, rule: Rule, what: str) -> list[Any]:
    """Returns the parts of `tree` at the places where the gradients have leaves."""
    try:
        return structure.flatten_up_to(tree)
    except ValueError as error:
        have, want = ({name for name, _ in named_leaves(x)} for x in (grads, tree))
        missing, extra = sorted(want - have)[:3], sorted(have - want)[:3]
        raise ParameterError(
            f"the gradients and {what} are trees of different structure: {error}",
            where=f"{type(rule).__name__}: missing gradients {missing}, unexpected {extra}",
            fix="pass gradients of exactly the parameters that the state was made for",
        ) from None
