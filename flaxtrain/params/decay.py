"""Which parameters weight decay applies to.

The default decays kernels, recurrent ones included, and nothing else: not biases, norms,
embeddings, tokens or gains. It goes by role, so that the scale of a norm inside `nn.scan`
(which has two axes) and the bias of an attention (which has two as well) are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from flaxtrain.errors import ArgumentTypeError, ParameterError, unknown_name
from flaxtrain.optim import ParamName
from flaxtrain.optim.choice import asked, is_constant
from flaxtrain.params.facts import Facts, ParamFact
from flaxtrain.tree import flatten, path_name

__all__ = ["DECAY_PRESETS", "decay_mask"]

DecayChoice: TypeAlias = (
    str | Mapping[str, Any] | Callable[[ParamFact], bool] | Callable[[ParamName], bool]
)

DECAY_PRESETS: dict[str, Callable[[ParamFact], bool]] = {
    "kernels": lambda fact: fact.role in ("kernel", "recurrent"),
    "all": lambda fact: True,
    "ndim": lambda fact: len(fact.shape) > 1,
}
"""The masks by name: `kernels` (the default), `all`, and `ndim` (more than one axis in the
params, lifted axes included: what many scripts do, kept for comparison)."""


def decay_mask(facts: Facts, preset: DecayChoice = "kernels") -> dict[str, Any]:
    """Returns which parameters are decayed, as nested dicts with the structure of the params.

    Args:
        facts: the table of parameters.
        preset: the name of a preset; or nested dicts of booleans, which are checked against the
            params; or a function from a `ParamFact`, or from a `ParamName` that knows the class
            of the parameter's module, to a boolean. A function that can't do with facts, or
            does not look at them, is given names.

    Returns:
        Nested dicts of booleans.

    Raises:
        UnknownNameError: there is no preset of that name.
        ParameterError: the nested dicts lack a parameter or have one too many.
        ArgumentTypeError: a leaf or a returned value is no boolean.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> facts = param_facts(nn.Dense(4), jnp.ones((1, 3)))
        >>> decay_mask(facts)
        {'bias': False, 'kernel': True}
        >>> decay_mask(facts, lambda fact: fact.size < 10)
        {'bias': True, 'kernel': False}
        >>> decay_mask(facts, lambda name: "bias" not in name and "norm" not in name)
        {'bias': False, 'kernel': True}
    """
    where = "decay_mask(facts, preset)"
    if isinstance(preset, str):
        if preset not in DECAY_PRESETS:
            raise unknown_name("decay preset", preset, DECAY_PRESETS, where=where)
        preset = DECAY_PRESETS[preset]
    return per_parameter(facts, preset, bool, where=where)


def per_parameter(
    facts: Facts,
    choice: Mapping[str, Any] | Callable[[Any], Any],
    kind: type[Any],
    *,
    where: str,
) -> dict[str, Any]:
    """Returns nested dicts with one value of type `kind` per parameter.

    Args:
        facts: the table of parameters.
        choice: a function of the fact or the name, or nested dicts with the structure of the
            params.
        kind: the type of the values.
        where: the argument, for messages.

    Raises:
        ParameterError: the structures differ.
        ArgumentTypeError: `choice` is neither, or a value is no `kind`.
    """
    if isinstance(choice, Mapping):
        table = flatten(choice)
        _check_paths(facts, table, where)
    elif callable(choice):
        names = [ParamName(fact.path, fact.owner) for fact in facts.params]
        answers = asked(
            lambda: [choice(fact) for fact in facts.params],
            lambda: [choice(name) for name in names],
            is_constant,
        )
        table = dict(zip(facts, answers))
    else:
        raise ArgumentTypeError(
            f"{choice!r} is neither nested dicts nor a function",
            where=where,
            fix="pass nested dicts with the structure of the params, or a function of a fact",
        )
    accepted = (bool, np.bool_) if kind is bool else kind
    for path, value in table.items():
        if not isinstance(value, accepted):
            raise ArgumentTypeError(
                f"{value!r} is a {type(value).__name__}, not a {kind.__name__}",
                where=f"{where}, parameter {path_name(path)!r}",
                fix=f"give one {kind.__name__} per parameter",
            )
    return facts.tree(lambda fact: kind(table[fact.path]))


def _check_paths(facts: Facts, table: Mapping[Any, Any], where: str) -> None:
    missing = [fact.name for fact in facts.params if fact.path not in table]
    unknown = [path_name(path) for path in table if path not in facts]
    if missing or unknown:
        parts = [
            f"{title} {', '.join(names[:5])}" for title, names in _titled(missing, unknown)
        ]
        raise ParameterError(
            f"the nested dicts don't have the structure of the params: {'; '.join(parts)}",
            where=where,
            fix="give one value per parameter; facts.tree(lambda fact: ...) makes such a tree",
        )


def _titled(missing: list[str], unknown: list[str]) -> list[tuple[str, list[str]]]:
    groups = [(f"{len(missing)} missing:", missing), (f"{len(unknown)} unknown:", unknown)]
    return [(title, names) for title, names in groups if names]
