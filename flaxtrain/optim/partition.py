"""Different optimizers for different parameters, by label.

Every parameter has a label, and every label names a transformation, which sees its own
parameters only and holds no state for the others. The groups are applied one after the other,
each in place of its own part of the tree.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax

from flaxtrain.checks import check_number
from flaxtrain.errors import ArgumentTypeError, ParameterError, nearest
from flaxtrain.optim.choice import chooser, named_choices
from flaxtrain.optim.combine import applied_where
from flaxtrain.optim.names import has_holes
from flaxtrain.optim.transform import (
    GradientTransformation,
    TransformationLike,
    named,
    with_extra_args,
)
from flaxtrain.text import kind_of
from flaxtrain.typing import OptState, Params, PyTree, Updates

__all__ = ["Labels", "MultiTransformState", "PartitionState", "multi_transform", "partition"]

Labels: TypeAlias = PyTree | Callable[[Params], PyTree]
"""A tree of labels like the parameters or a prefix of it, with or without the level `params`;
or a mapping from patterns such as `"*/bias"` to labels, in which the first match decides; or a
function from the parameters, or their names, to one of these, or from one name to its label.
It may be called several times: with arrays, and where it fails or says the same of all of them,
with names."""

Parts: TypeAlias = dict[Hashable, GradientTransformation]


class PartitionState(NamedTuple):
    """The states of the groups by label, each a `MaskedState`."""

    inner_states: dict[Hashable, Any]


MultiTransformState = PartitionState
"""Optax's older name of `PartitionState`."""


@named
def partition(
    transforms: Mapping[Any, TransformationLike],
    param_labels: Labels,
    *,
    mask_compatible_extra_args: bool = False,
    default: Hashable | None = None,
) -> GradientTransformation:
    """Applies to each parameter the transformation that its label names.

    Labels may also be learning-rate factors: real numbers (that name no transformation) under
    top-level keys that do name one. Then `{"embedding": 0.1, "decoder": 1.0}` means that each
    of the two is in the group of its key, and that the updates of `embedding` are multiplied
    by 0.1. Parameters that have labels beside them, or `default`, are not scaled.

    Args:
        transforms: label to transformation. Labels are strings, numbers, enums or other
            hashable values that sort among one another and are leaves of a tree; tuples are
            trees.
        param_labels: the label of every parameter; see `Labels`.
        mask_compatible_extra_args: restrict also those extra arguments that are trees like the
            updates.
        default: the label of all parameters that `param_labels` says nothing about; a key of
            `transforms`. None: there must be no such parameter.

    Returns:
        A transformation whose state is a `PartitionState`; the group of a label has
        `MaskedNode()` in the place of other groups' parameters.

    Raises:
        ArgumentTypeError: `transforms` is no mapping of transformations.
        ParameterError: `default`, or (from `init`, `update`) a label, names no transformation;
            or a parameter has no label, or a label belongs to no parameter, or (from `init`)
            a transformation other than the default has no parameters.

    Example:
        >>> from flaxtrain.optim import sgd
        >>> parts = {"slow": sgd(0.1), "fast": sgd(1.0)}
        >>> tx = partition(parts, {"*/bias": "fast"}, default="slow")
        >>> grads = {"params": {"Dense_0": {"kernel": 1.0, "bias": 1.0}}}
        >>> tx.update(grads, tx.init(grads))[0]
        {'params': {'Dense_0': {'bias': -1.0, 'kernel': -0.1}}}
    """
    parts = _checked_parts(transforms)
    if default is not None and default not in parts:
        raise _unknown_label(default, parts, "partition(default=...)")
    labels_of = chooser(param_labels, what="tree of labels", default=default)
    tx = by_label(parts, labels_of, mask_compatible_extra_args)

    def init(params: Params, /) -> PartitionState:
        groups, _ = _groups_and_factors(labels_of(params), parts)
        unused = set(parts) - set(jax.tree.leaves(groups)) - {default}
        # In a tree with holes they may be the labels of parameters that are elsewhere.
        if unused and not has_holes(params):
            raise ParameterError(
                f"no parameter has the label {', '.join(sorted(map(repr, unused)))}",
                where="partition: init(params)",
                fix="correct the labels, or leave that transformation out",
            )
        return tx.init(params)

    return GradientTransformation(init, tx.update)


multi_transform = partition
"""Optax's older name of `partition`."""


def by_label(
    parts: Parts, labels_of: Callable[[Params], PyTree], mask_extra_args: bool = False
) -> GradientTransformation:
    """Returns `partition` for labels that are a function already; unused groups pass."""

    def group(part: GradientTransformation, label: Hashable, groups: PyTree) -> Any:
        mask = jax.tree.map(lambda other: other == label, groups)
        return applied_where(part, lambda tree: mask, mask_extra_args)

    def init(params: Params, /) -> PartitionState:
        groups, _ = _groups_and_factors(labels_of(params), parts)
        return PartitionState(
            {label: group(part, label, groups).init(params) for label, part in parts.items()}
        )

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, PartitionState]:
        labels = labels_of(updates if params is None else params)
        groups, factors = _groups_and_factors(labels, parts)
        states: dict[Hashable, Any] = {}
        for label, part in parts.items():
            updates, states[label] = group(part, label, groups).update(
                updates, state.inner_states[label], params, **extra_args
            )
        if factors is not None:
            updates = jax.tree.map(_multiplied, factors, updates)
        return updates, PartitionState(states)

    return GradientTransformation(init, update)


def _multiplied(factor: float, updates: Updates) -> Updates:
    return updates if factor == 1 else jax.tree.map(lambda u: factor * u, updates)


def _checked_parts(transforms: Any) -> Parts:
    if not isinstance(transforms, Mapping):
        raise ArgumentTypeError(
            f"transforms is {kind_of(transforms)}, not a mapping",
            where="partition(transforms, ...)",
            fix="pass a dict from labels to transformations",
        )
    return {label: with_extra_args(tx) for label, tx in transforms.items()}


def _groups_and_factors(labels: PyTree, parts: Parts) -> tuple[PyTree, PyTree | None]:
    """Returns the labels, checked; and factors, where the labels are factors for groups."""
    choices = named_choices(labels)
    if all(_is_known(label, parts) for _, label in choices):
        return labels, None
    groups, factors = [], []
    for name, label in choices:
        key = name.path[0] if name.path else None
        if _is_number(label) and key in parts:
            where = f"partition: label of {str(name)!r}"
            check_number("factor", label, minimum=0.0, where=where)
            groups.append(key)
            factors.append(float(label))
        elif _is_known(label, parts):
            groups.append(label)
            factors.append(1.0)
        else:
            raise _unknown_label(label, parts, f"label of {str(name)!r}")
    structure = jax.tree.structure(labels)
    return jax.tree.unflatten(structure, groups), jax.tree.unflatten(structure, factors)


def _is_known(label: Any, parts: Parts) -> bool:
    try:
        return label in parts
    except TypeError:  # not hashable: an array
        return False


def _is_number(label: Any) -> bool:
    return isinstance(label, numbers.Real) and not isinstance(label, bool)


def _unknown_label(label: Any, parts: Parts, where: str) -> ParameterError:
    texts = {str(key): key for key in parts}
    close = nearest(str(label), texts)
    hint = f"did you mean {texts[close[0]]!r}? " if close else ""
    if _is_number(label):
        hint = "for learning-rate factors use scale_by_multipliers. "
    return ParameterError(
        f"the label {label!r} names no transformation",
        where=where,
        fix=f"{hint}Labels: {', '.join(map(repr, parts)) or '(none)'}",
    )
