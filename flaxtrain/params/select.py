r"""Which parameters somebody means: by path, class, role or function, and combinations.

A *selector* is written as text, and means

- `"encoder/**"`: a glob on the path, from its beginning to its end. `**` stands for any number
  of levels, none included; `*`, `?`, `[abc]`, `[!abc]` stand for characters within one level.
- `"encoder"`, `"head/Dense_0"`: a path without wildcards is that parameter, or everything in
  that module. Levels are whole: `enc` is not `encoder`. A leading `params/` may be left out.
- `"re:.*/(query|key)/.*"`: a regular expression that the whole path has to match.
- `"@LayerNorm"`: the class of the parameter's module or of a module around it, or a base class
  of these, by name.
- `"#bias"`: the role of the parameter, one of `ROLES`.
- `"#hidden"`: the matrices between hidden activations, for optimizers such as Shampoo and Muon;
  not the first layer, embeddings, and the readout. See `ParamFact.hidden`.

`&`, `|`, `~` and parentheses combine them, as in `"#kernel & ~head/**"`. A regular expression
takes all that follows, so in a combination it stands in parentheses: `"#kernel & (re:a|b)"`. A
backslash takes the meaning from the character behind it.

Where a selector is expected, a module class, a function of a `ParamFact`, and a list of all
these (any of them) do as well.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

import flax.linen as nn
import jax

from flaxtrain.errors import (
    ArgumentError,
    ArgumentTypeError,
    ParameterError,
    UnknownParameterError,
    nearest,
)
from flaxtrain.params.facts import Facts, ParamFact, check_facts
from flaxtrain.params.recorder import declared_class
from flaxtrain.params.selector_text import FORMS, parse
from flaxtrain.params.selectors import (
    Asked,
    Glob,
    Hidden,
    OfClass,
    OfRole,
    Regex,
    Selector,
    classes_around,
)
from flaxtrain.text import kind_of
from flaxtrain.tree import Path, path_name

__all__ = ["Selector", "SelectorLike", "select", "selected_tree", "selector"]

SelectorLike: TypeAlias = (
    str | Selector | type[nn.Module] | Callable[[ParamFact], bool] | list[Any] | tuple[Any, ...]
)
"""What says which parameters are meant: the text of a selector, a `Selector`, a class of
modules, a function from a `ParamFact` to a bool, or a list of these."""

Tree = TypeVar("Tree", bound=Mapping[str, Any])


def selector(choice: SelectorLike, *, where: str = "selector(choice)") -> Selector:
    """Makes a selector.

    Args:
        choice: text in the syntax above; a class of Linen modules, which also selects those of
            its subclasses and is written as `@` and its name; a function of a `ParamFact`; a
            list or tuple of choices, for what any of them selects; or a selector.
        where: the argument, for messages.

    Returns:
        The selector. It knows no model yet, so paths in it may turn out not to exist.

    Raises:
        ArgumentTypeError: `choice` is none of these.
        ArgumentError: the text can't be read, or the list is empty.
        UnknownNameError: there is no such role.

    Example:
        >>> import flax.linen as nn
        >>> selector(["head/**", nn.LayerNorm])
        selector('head/** | @LayerNorm')
        >>> selector("#kernel&~(re:.*/(query|key)/.*)") == selector("#kernel") & ~selector(
        ...     "re:.*/(query|key)/.*"
        ... )
        True
    """
    if isinstance(choice, Selector):
        return choice
    if isinstance(choice, str):
        return parse(choice, where)
    if isinstance(choice, type) and issubclass(choice, nn.Module):
        cls = declared_class(choice)
        return OfClass(cls.__name__, cls)
    if isinstance(choice, (list, tuple)):
        return _any_of(choice, where)
    if isinstance(choice, (type, nn.Module)) or not callable(choice):
        raise _no_selector(choice, where)
    return Asked(choice)


def select(
    facts: Facts, choice: SelectorLike, *, where: str = "select(facts, choice)"
) -> frozenset[Path]:
    """Returns the paths of the parameters that a choice means.

    Args:
        facts: the table of parameters.
        choice: anything that `selector` takes.
        where: the argument, for messages.

    Returns:
        The paths, at least one.

    Raises:
        ParameterError: nothing is selected; or a path in the choice fits no parameter, or a
            class is known neither to the model nor to Linen, whatever else is selected: it is
            misspelt, and behind `~` it would select too much.
        ArgumentTypeError: `choice` is no selector, or a function returned no bool.
        ArgumentError: the text of a selector can't be read.
        UnknownNameError: there is no such role.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> facts = param_facts(nn.Sequential([nn.Dense(4), nn.LayerNorm()]), jnp.ones((1, 3)))
        >>> sorted(select(facts, "#bias | @LayerNorm"))
        [('layers_0', 'bias'), ('layers_1', 'bias'), ('layers_1', 'scale')]
    """
    check_facts(facts, where=where)
    wanted = selector(choice, where=where)
    paths = frozenset(fact.path for fact in facts.params if wanted.matches(fact))
    for part in wanted.simple():
        if not (paths and _may_be_absent(part)) and not _any_match(facts, part):
            raise ParameterError(
                f"no parameter matches {_shown(part)}"
                + ("" if part == wanted else f" in {_shown(wanted)}"),
                where=where,
                fix=_closest(facts, part),
            )
    if not paths:
        counts = (f"{_shown(part)}: {_count(facts, part)}" for part in wanted.simple())
        raise ParameterError(
            f"no parameter matches {_shown(wanted)}",
            where=where,
            fix=f"of {len(facts)} parameters, its parts alone match {', '.join(counts)}",
        )
    return paths


def selected_tree(
    facts: Facts,
    params: Tree,
    choice: SelectorLike,
    *,
    where: str = "selected_tree(facts, params, choice)",
) -> Tree:
    """Returns whether each parameter of a tree is selected, as a tree like it.

    Args:
        facts: the table of parameters.
        params: parameters of that model, all or a part of them, as nested dicts or FrozenDicts,
            with or without the level `params` above them.
        choice: anything that `selector` takes.
        where: the argument, for messages.

    Returns:
        Mappings of the same types as `params`, with bools at the leaves.

    Raises:
        ParameterError: nothing is selected; see `select`.
        UnknownParameterError: the model has no parameter of a path in `params`.
        ArgumentTypeError: `params` is no mapping, or as for `select`.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> facts = param_facts(nn.Dense(4), jnp.ones((1, 3)))
        >>> selected_tree(facts, {"params": {"bias": 0.0, "kernel": 1.0}}, "#bias")
        {'params': {'bias': True, 'kernel': False}}
    """
    chosen = select(facts, choice, where=where)
    if not isinstance(params, Mapping):
        raise ArgumentTypeError(
            f"params is {kind_of(params)}",
            where=where,
            fix="pass nested dicts or FrozenDicts of parameters",
        )
    has_level = set(params) == {"params"}  # flax lets no module of a model be called that

    def visit(path: Path, node: Any) -> Any:
        if isinstance(node, Mapping):
            like: Any = type(node)
            return like({key: visit((*path, key), child) for key, child in node.items()})
        if path not in facts:
            close = nearest(path_name(path), _names(facts), count=3)
            raise UnknownParameterError(
                f"no parameter {path_name(path)!r}",
                where=where,
                fix=f"pass parameters of the model; nearest: {', '.join(close) or 'none'}",
            )
        return jax.tree.map(lambda _: path in chosen, node)  # inside a metadata box too

    if not has_level:
        return visit((), params)
    like: Any = type(params)
    return like({"params": visit((), params["params"])})


def _any_of(choices: list[Any] | tuple[Any, ...], where: str) -> Selector:
    if not choices:
        raise ArgumentError(f"an empty {type(choices).__name__}", where=where, fix=FORMS)
    parts = (selector(one, where=f"{where}, item {at}") for at, one in enumerate(choices))
    return functools.reduce(operator.or_, parts)


def _no_selector(choice: Any, where: str) -> ArgumentTypeError:
    fix = f"{FORMS}; or pass a module class, a function of a ParamFact, or a list of these"
    if isinstance(choice, nn.Module):
        fix = f"pass the class, {type(choice).__name__}, or the path of the module"
    elif isinstance(choice, type):
        return ArgumentTypeError(
            f"{choice.__name__} is no class of Linen modules", where=where, fix=fix
        )
    elif isinstance(choice, re.Pattern):
        fix = f"write it as text: {'re:' + str(choice.pattern)!r}"
    return ArgumentTypeError(f"{choice!r} is {kind_of(choice)}", where=where, fix=fix)


def _may_be_absent(part: Selector) -> bool:
    """Whether a part that matches nothing can be meant, where others match."""
    known_class = isinstance(part, OfClass) and (part.cls or hasattr(nn, part.name))
    return bool(known_class) or isinstance(part, (OfRole, Hidden, Asked))


def _any_match(facts: Facts, part: Selector) -> bool:
    return any(part.matches(fact) for fact in facts.params)


def _count(facts: Facts, part: Selector) -> int:
    return sum(part.matches(fact) for fact in facts.params)


def _shown(one: Selector) -> str:
    return repr(one).removeprefix("selector(").removesuffix(")")


def _names(facts: Facts) -> list[str]:
    """Returns the names of all parameters and modules."""
    paths = (fact.path[:end] for fact in facts.params for end in range(1, len(fact.path) + 1))
    return list(dict.fromkeys(map(path_name, paths)))


def _closest(facts: Facts, part: Selector) -> str:
    """Says what could have been meant by a selector that matches nothing."""
    if not facts:
        return "the model has no parameters"
    if isinstance(part, OfRole):
        return f"roles in the model: {_listed(fact.role for fact in facts.params)}"
    if isinstance(part, Hidden):
        return (
            "no kernel has a kernel or an embedding before it and another behind it, as the "
            "second of three Dense layers has; '#kernel' selects them all"
        )
    if isinstance(part, OfClass):
        present = {cls.__name__ for fact in facts.params for cls in classes_around(fact)}
        close = nearest(part.name, present, count=3)
        start = f"nearest: {', '.join(close)}; " if close else ""
        return f"{start}classes in the model: {_listed(present)}"
    if isinstance(part, (Glob, Regex)):
        return _closest_path(facts, part)
    return f"the function says False for each of {len(facts)} parameters"


def _closest_path(facts: Facts, part: Glob | Regex) -> str:
    text = str(part)
    if isinstance(part, Glob):
        wider = [Glob(f"{text}/**"), Glob(f"**/{text}"), Glob(f"**/{text}/**")]
        wanted = "/".join(level for level in text.split("/") if level not in ("*", "**"))
    else:
        wider = [Regex(f"{part.pattern}/.*"), Regex(f".*{part.pattern}.*")]
        wanted = part.pattern
    meant = [repr(str(one)) for one in wider if _any_match(facts, one)][:1]
    close = nearest(wanted, _names(facts), count=3) or _names(facts)[:3]
    hint = f"did you mean {meant[0]}, for it has to fit the whole path? " if meant else ""
    return f"{hint}nearest: {', '.join(close)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))
