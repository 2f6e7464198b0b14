"""Combining transformations: one after another, and on a part of the tree only."""

from __future__ import annotations

import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from flaxtrain.checks import is_concrete
from flaxtrain.errors import ArgumentError, ArgumentTypeError, ParameterError
from flaxtrain.optim.choice import chooser, some, uncovered
from flaxtrain.optim.transform import (
    GradientTransformation,
    TransformationLike,
    named,
    with_extra_args,
)
from flaxtrain.text import kind_of
from flaxtrain.typing import OptState, Params, PyTree, Updates

__all__ = ["Mask", "MaskedNode", "MaskedState", "chain", "masked", "named_chain"]

Mask: TypeAlias = PyTree | Callable[[Params], PyTree]
"""A tree of bools like the parameters or a prefix of it, with or without the level `params`; or
a mapping from patterns such as `"*/bias"` to bools, in which the first match decides; or a
function from the parameters, or their names, to one of these, or from one name to a bool (see
`mask_by_path`). It may be called several times: with arrays, and where it fails or says the
same of all of them, with names."""


class MaskedState(NamedTuple):
    """The state of the transformation inside."""

    inner_state: OptState


class MaskedNode(NamedTuple):
    """Stands where a masked tree has nothing: a node without leaves."""


@named
def chain(*args: TransformationLike) -> GradientTransformation:
    """Applies transformations one after another, from left to right.

    Extra arguments of `update` are handed to every part that takes them.

    Args:
        *args: transformations, ours or any other pair of `init` and `update`.

    Returns:
        A transformation whose state is the tuple of the parts' states.

    Raises:
        ArgumentTypeError: an argument is not a transformation.

    Example:
        >>> from flaxtrain.optim import clip_by_global_norm, scale
        >>> tx = chain(clip_by_global_norm(1.0), scale(-0.1))
        >>> updates, state = tx.update(100.0, tx.init(0.0))
        >>> print(updates)
        -0.1
    """
    parts = [with_extra_args(part) for part in args]

    def init(params: Params, /) -> tuple[OptState, ...]:
        return tuple(part.init(params) for part in parts)

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, tuple[OptState, ...]]:
        if len(state) != len(parts):
            raise ArgumentError(
                f"a chain of {len(parts)} parts got a state of {len(state)}",
                where="chain: update(updates, state)",
                fix="pass the state that this transformation's init or update returned",
            )
        states = []
        for part, before in zip(parts, state):
            updates, after = part.update(updates, before, params, **extra_args)
            states.append(after)
        return updates, tuple(states)

    return GradientTransformation(init, update)


@named
def named_chain(*args: tuple[str, TransformationLike]) -> GradientTransformation:
    """Applies transformations one after another, and keeps their states by name.

    Args:
        *args: pairs of a name and a transformation; names are unique.

    Returns:
        A transformation whose state is an OrderedDict from name to state.

    Raises:
        ArgumentTypeError: an argument is not a pair of a string and a transformation.
        ArgumentError: two parts have the same name.

    Example:
        >>> from flaxtrain.optim import scale, trace
        >>> tx = named_chain(("momentum", trace(0.9)), ("step", scale(-0.1)))
        >>> updates, state = tx.update(1.0, tx.init(0.0))
        >>> print(updates, state["momentum"].trace)
        -0.1 1.0
    """
    parts = [_pair(part) for part in args]
    names = [name for name, _ in parts]
    if len(set(names)) != len(names):
        raise ArgumentError(
            f"names of parts are not unique: {', '.join(names)}",
            where="named_chain",
            fix="give every part a name of its own",
        )

    def init(params: Params, /) -> OrderedDict[str, OptState]:
        return OrderedDict((name, part.init(params)) for name, part in parts)

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, OrderedDict[str, OptState]]:
        states: OrderedDict[str, OptState] = OrderedDict()
        for name, part in parts:
            updates, states[name] = part.update(updates, state[name], params, **extra_args)
        return updates, states

    return GradientTransformation(init, update)


def _pair(part: Any) -> tuple[str, GradientTransformation]:
    if not (isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], str)):
        raise ArgumentTypeError(
            f"{part!r} is not a pair of a name and a transformation",
            where="named_chain",
            fix='pass pairs such as ("momentum", trace(0.9))',
        )
    return part[0], with_extra_args(part[1])


@named
def masked(
    inner: TransformationLike, mask: Mask, *, mask_compatible_extra_args: bool = False
) -> GradientTransformation:
    """Applies `inner` to a part of the tree; the rest passes through as it is.

    What passes through is the raw gradient: `masked` is for parts of an optimizer such as
    weight decay. It does not freeze parameters; `freeze` and `selective_transform` do.

    Args:
        inner: the transformation; it sees `MaskedNode()` where the mask is False.
        mask: a tree of bools like the parameters or a prefix of it, or a function that makes
            one from the parameters (from the updates, where `update` gets no parameters); see
            `Mask`. It must be known while tracing.
        mask_compatible_extra_args: mask also those extra arguments that are trees like the
            updates.

    Returns:
        A transformation whose state is a `MaskedState`.

    Raises:
        ArgumentTypeError: `inner` is not a transformation, or the mask has a leaf that is not a
            bool.
        ParameterError: (from `init`, `update`) the mask does not fit the parameters.

    Warns:
        UserWarning: (from `init`, once) `inner` has a learning rate, so that what passes
            through is neither frozen nor scaled. Of transformations that are not ours, such as
            `optax.sgd(0.1)`, that is not known. Nor does `masked` know what follows it in a
            chain: where another part takes care of the rest, silence the warning by
            `warnings.filterwarnings("ignore", message="masked")`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flaxtrain.optim import scale
        >>> tx = masked(scale(10.0), {"kernel": True, "bias": False})
        >>> grads = {"kernel": 1.0, "bias": 1.0}
        >>> tx.update(grads, tx.init(grads))[0]
        {'bias': 1.0, 'kernel': 10.0}
    """
    part, mask_of = with_extra_args(inner), mask_function(mask)
    tx = applied_where(part, mask_of, mask_compatible_extra_args)
    if not _has_learning_rate(part):
        return tx
    warned: list[str] = []

    def init(params: Params, /) -> OptState:
        raw = [] if warned else uncovered(mask_of(params), params)
        if raw:
            warned.extend(raw)
            warn_caller(
                f"masked({part.name}, ...) passes on the raw gradient of {len(raw)} "
                f"parameters: {some(raw)}. To hold them still use selective_transform or "
                "freeze; to give them another optimizer use partition."
            )
        return tx.init(params)

    return GradientTransformation(init, tx.update)


def warn_caller(message: str) -> None:
    """Warns, and names the line of the user's code that led here, not ours or jax's."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and _is_inside(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _is_inside(module: str) -> bool:
    # The last two stand between callers and callees where types are checked at run time.
    return module.partition(".")[0] in ("flaxtrain", "jax", "jaxtyping", "typeguard")


def applied_where(
    part: GradientTransformation, mask_of: Callable[[Params], PyTree], mask_extra_args: bool
) -> GradientTransformation:
    """Returns `masked` for a mask that is a function already; it never warns."""

    def init(params: Params, /) -> MaskedState:
        return MaskedState(part.init(_keep(mask_of(params), params)))

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, MaskedState]:
        mask = mask_of(updates if params is None else params)
        if mask_extra_args:
            like = jax.tree.structure(updates)
            extra_args = {
                name: _keep(mask, value) if jax.tree.structure(value) == like else value
                for name, value in extra_args.items()
            }
        kept = None if params is None else _keep(mask, params)
        new, inner_state = part.update(
            _keep(mask, updates), state.inner_state, kept, **extra_args
        )
        merged = jax.tree.map(lambda m, a, b: a if m else b, mask, new, updates)
        return merged, MaskedState(inner_state)

    return GradientTransformation(init, update)


def mask_function(mask: Mask) -> Callable[[Params], PyTree]:
    """Returns the function that gives the mask of a tree, and checks every mask it gives.

    All arguments that are masks go through here.
    """
    return chooser(mask, what="mask", check=_checked)


def _checked(mask: PyTree) -> PyTree:
    for path, leaf in jax.tree_util.tree_leaves_with_path(mask):
        if not _is_bool(leaf):
            raise ArgumentTypeError(
                f"a mask holds {leaf!r}, {kind_of(leaf)}",
                where=f"mask{jax.tree_util.keystr(path)}",
                fix="a mask is a tree of True and False, known while tracing, or a function "
                "from parameters to one",
            )
    return mask


def _is_bool(leaf: Any) -> bool:
    if isinstance(leaf, (bool, np.bool_)):
        return True
    if isinstance(leaf, int):
        return leaf in (0, 1)
    return is_concrete(leaf) and getattr(leaf, "shape", None) == () and leaf.dtype == bool


def _keep(mask: PyTree, tree: PyTree) -> PyTree:
    """Replaces the subtrees where the mask is False by `MaskedNode()`."""
    try:
        return jax.tree.map(lambda m, subtree: subtree if m else MaskedNode(), mask, tree)
    except ValueError as error:  # it was made for the parameters
        raise ParameterError(
            f"the mask does not fit the tree: {error}",
            where="masked: update(updates, state, params)",
            fix="pass updates of the structure of the parameters",
        ) from None


def _has_learning_rate(value: Any) -> bool:
    """Whether an optimizer of ours was made with a learning rate, at any depth."""
    if isinstance(value, GradientTransformation):
        given = value.arguments
        return given.get("learning_rate") is not None or _has_learning_rate(given)
    if isinstance(value, (Mapping, tuple, list)):
        return any(
            map(_has_learning_rate, value.values() if isinstance(value, Mapping) else value)
        )
    return False
