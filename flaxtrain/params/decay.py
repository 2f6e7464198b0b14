"""Which parameters weight decay applies to.

The default decays kernels, recurrent ones included, and nothing else: not biases, norms,
embeddings, tokens or gains. It goes by role, so that the scale of a norm inside `nn.scan`
(which has two axes) and the bias of an attention (which has two as well) are left alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import numpy as np

from flaxtrain.errors import (
    ArgumentTypeError,
    ParameterError,
    UnknownNameError,
    nearest,
    unknown_name,
)
from flaxtrain.optim import ParamName
from flaxtrain.optim.choice import asked, is_constant
from flaxtrain.params.copied_rules import (
    big_vision_decays,
    hf_decays,
    levanter_decays,
    timm_decays,
)
from flaxtrain.params.facts import Facts, ParamFact
from flaxtrain.params.select import Selector, select, selector
from flaxtrain.text import kind_of, listed, with_article
from flaxtrain.tree import flatten, path_name

__all__ = ["DECAY_PRESETS", "check_decay_choice", "decay_mask", "preset_differences"]

DecayChoice: TypeAlias = (
    str
    | Selector
    | type[nn.Module]
    | list[Any]
    | tuple[Any, ...]
    | Mapping[str, Any]
    | Callable[[ParamFact], bool]
    | Callable[[ParamName], bool]
)

_WORD = re.compile(r"[\w-]+")

DECAY_PRESETS: dict[str, Callable[[ParamFact], bool]] = {
    "kernels": lambda fact: fact.role in ("kernel", "recurrent"),
    "all": lambda fact: True,
    "ndim": lambda fact: len(fact.shape) > 1,
    "timm": timm_decays,
    "hf": hf_decays,
    "big_vision": big_vision_decays,
    "levanter": levanter_decays,
}
"""The masks by name. `kernels` is the default. The others are kept for comparison and for
moving over: `all`; `ndim`, more than one axis in the params, lifted axes included, which many
scripts do; and the rules of four projects as they are, by names and axes: `timm`, `hf` (Hugging
Face's Trainer), `big_vision` and `levanter`."""


def decay_mask(facts: Facts, preset: DecayChoice = "kernels") -> dict[str, Any]:
    """Returns which parameters are decayed, as nested dicts with the structure of the params.

    Args:
        facts: the table of parameters.
        preset: the name of a preset; or what else `selector` takes (text such as
            `"#kernel & ~head/**"`, a class of modules, a list); or nested dicts of booleans,
            which are checked against the params; or a function from a `ParamFact`, or from a
            `ParamName` that knows the class of the parameter's module, to a boolean. A function
            that can't do with facts, or does not look at them, is given names.

    Returns:
        Nested dicts of booleans.

    Raises:
        UnknownNameError: there is no preset, module or parameter of that name.
        ParameterError: a selector selects nothing; or the nested dicts lack a parameter or have
            one too many.
        ArgumentError: the text of a selector can't be read.
        ArgumentTypeError: a leaf or a returned value is no boolean, or `preset` is none of the
            above.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> facts = param_facts(nn.Dense(4), jnp.ones((1, 3)))
        >>> decay_mask(facts)
        {'bias': False, 'kernel': True}
        >>> decay_mask(facts, "#kernel | #bias")
        {'bias': True, 'kernel': True}
        >>> decay_mask(facts, lambda fact: fact.size < 10)
        {'bias': True, 'kernel': False}
        >>> decay_mask(facts, lambda name: "bias" not in name and "norm" not in name)
        {'bias': False, 'kernel': True}
    """
    where = "decay_mask(facts, preset)"
    check_decay_choice(preset, where)
    if isinstance(preset, str) and preset in DECAY_PRESETS:
        return facts.tree(DECAY_PRESETS[preset])
    if isinstance(preset, (str, Selector, type, list, tuple)):
        _check_word(facts, preset, where)
        chosen = select(facts, preset, where=where)
        return facts.tree(lambda fact: fact.path in chosen)
    return per_parameter(facts, preset, bool, where=where)


def preset_differences(
    facts: Facts, decay: DecayChoice = "kernels"
) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Compares a choice with every preset.

    Args:
        facts: the table of parameters.
        decay: anything `decay_mask` takes.

    Returns:
        For each preset, in the order of `DECAY_PRESETS`, the names of the parameters that the
        preset decays and the choice does not, and of those that the choice decays and the
        preset does not, both in the order of the params.

    Raises:
        FlaxtrainError: as for `decay_mask`.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> facts = param_facts(nn.LayerNorm(), jnp.ones((1, 3)))
        >>> differences = preset_differences(facts, "#norm_scale")
        >>> differences["all"], differences["ndim"]
        ((('bias',), ()), ((), ('scale',)))
    """
    chosen = flatten(decay_mask(facts, decay))

    def compared(rule: Callable[[ParamFact], bool]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        differ = [fact for fact in facts.params if rule(fact) != chosen[fact.path]]
        more = tuple(fact.name for fact in differ if not chosen[fact.path])
        return more, tuple(fact.name for fact in differ if chosen[fact.path])

    return {name: compared(rule) for name, rule in DECAY_PRESETS.items()}


def check_decay_choice(choice: Any, where: str) -> None:
    """Refuses what can't be a choice of decay for any model.

    Paths and names of modules are judged later, by `decay_mask`, which knows the model; only a
    single word that is nearly a preset is taken for a misspelt one.

    Args:
        choice: what the user gave.
        where: the argument, for messages.

    Raises:
        UnknownNameError: the text is nearly a preset, or names an unknown role.
        ArgumentError: the text of a selector can't be read, or a list is empty.
        ArgumentTypeError: it is nothing that `decay_mask` takes, or a leaf of nested dicts is
            no boolean.

    Example:
        >>> check_decay_choice("encoder/**", "decay=")
        >>> check_decay_choice("#bais", "decay=")
        Traceback (most recent call last):
        ...
        flaxtrain.errors.UnknownNameError: unknown role 'bais'
          where: decay=
          fix:   did you mean 'bias'? Known: bias, ...
    """
    if isinstance(choice, str):
        if choice in DECAY_PRESETS:
            return
        if _WORD.fullmatch(choice) and _is_nearly_a_preset(choice):
            raise unknown_name("decay preset", choice, DECAY_PRESETS, where=where)
        selector(choice, where=where)
    elif isinstance(choice, Mapping):
        _check_leaves(choice, where, "decay")
    elif isinstance(choice, (Selector, type, list, tuple)):
        selector(choice, where=where)
    elif isinstance(choice, nn.Module) or not callable(choice):
        raise ArgumentTypeError(
            f"decay={choice!r} is {kind_of(choice)}",
            where=where,
            fix=f"pass a preset ({', '.join(DECAY_PRESETS)}), a selector such as "
            "'#kernel & ~head/**', nested dicts of bools, or a function from the facts of a "
            "parameter to a bool; the decay of a moving average is called b1, b2 or rho",
        )


def _is_nearly_a_preset(word: str) -> bool:
    """Whether a word begins a preset, or differs from one in a letter or two."""
    plain = word.lower()
    begins = len(plain) > 2 and any(name.startswith(plain) for name in DECAY_PRESETS)
    # A ratio of 0.8 is one letter in five: `levantor` is near, `encoder` isn't.
    return begins or bool(difflib.get_close_matches(plain, DECAY_PRESETS, n=1, cutoff=0.8))


def _check_word(facts: Facts, choice: Any, where: str) -> None:
    """Refuses a single word that is neither a preset nor the name of a module or parameter."""
    if not (isinstance(choice, str) and _WORD.fullmatch(choice)):
        return
    known = {fact.path[0] for fact in facts.params}
    if choice not in known | {"params"}:
        error = unknown_name("decay preset", choice, DECAY_PRESETS, where=where)
        close = ", ".join(sorted(nearest(choice, known, count=3)))
        hint = f"; as a path, nearest: {close}" if close else ""
        raise UnknownNameError(error.found, where=where, fix=f"{error.fix}{hint}")


def _check_leaves(tree: Mapping[Any, Any], where: str, place: str) -> None:
    for key, node in tree.items():
        inner = f"{place}[{key!r}]"
        if isinstance(node, Mapping):
            _check_leaves(node, where, inner)
        elif not isinstance(node, (bool, np.bool_)):
            raise ArgumentTypeError(
                f"{inner}={node!r} is {kind_of(node)}, not a bool",
                where=where,
                fix="pass True where the parameter decays and False where not",
            )


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
                f"{value!r} is {kind_of(value)}, not {with_article(kind.__name__)}",
                where=f"{where}, parameter {path_name(path)!r}",
                fix=f"give one {kind.__name__} per parameter",
            )
    return facts.tree(lambda fact: kind(table[fact.path]))


def _check_paths(facts: Facts, table: Mapping[Any, Any], where: str) -> None:
    missing = [fact.name for fact in facts.params if fact.path not in table]
    unknown = [path_name(path) for path in table if path not in facts]
    if missing or unknown:
        parts = [f"{title} {listed(names)}" for title, names in _titled(missing, unknown)]
        raise ParameterError(
            f"the nested dicts don't have the structure of the params: {'; '.join(parts)}",
            where=where,
            fix="give one value per parameter; facts.tree(lambda fact: ...) makes such a tree",
        )


def _titled(missing: list[str], unknown: list[str]) -> list[tuple[str, list[str]]]:
    groups = [(f"{len(missing)} missing:", missing), (f"{len(unknown)} unknown:", unknown)]
    return [(title, names) for title, names in groups if names]
