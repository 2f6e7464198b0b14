"""A pretrained start: arrays of another tree put into a model's variables, by path.

Nothing is guessed and nothing is repaired: an array comes in if its path, its shape and its
dtype are those of the variables, or if an argument of `Restore` says how they differ.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from flaxtrain.answering import answering
from flaxtrain.checks import check_choice, check_flag
from flaxtrain.errors import ArgumentError, ArgumentTypeError, unknown_name
from flaxtrain.params.path_patterns import PathPattern, compiled
from flaxtrain.params.resampling import RESHAPES
from flaxtrain.text import counted, kind_of

__all__ = ["Reshape", "Restore"]

Reshape: TypeAlias = str | Callable[[np.ndarray, tuple[int, ...]], Any]
"""`"interp2d"`, or a function `(array, target_shape) -> array`."""


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Restore:
    r"""Says where initial values come from, and how their paths and shapes differ from here.

    Patterns and expressions are for paths inside of all collections: a rename of `enc/(.*)`
    renames the batch statistics of `enc` as well. One that begins with the name of a
    collection, such as `batch_stats/enc`, is for that collection. Restores compare by identity,
    since a source may be a tree of arrays.

    Args:
        source: the path of a checkpoint or file (see `checkpoint.read_source`), or a tree of
            arrays in memory: variables, params alone, or a training state, whose step and
            optimizer state are not looked at.
        rename: regular expressions for whole paths in the source, and their replacements, in
            which `\1` is the first group. The first entry that matches a path decides; a
            replacement that begins with the name of a collection moves the array there. An
            entry that decides nothing is an error.
        skip: what is left out, by its path here: arrays of the variables, which keep their
            initial values, and arrays of the source that would have such a path. `head` is the
            module with everything below it, `*` stands within a level, `**` for any number of
            levels, `re:` begins a regular expression.
        reshape: what makes an array fit, by patterns as in `skip`; the first that matches
            decides. `"interp2d"` resamples position embeddings and convolution kernels and
            leaves alone what fits. A function `(array, target_shape) -> array` of a numpy array
            is called for every array that the pattern matches, also for one that fits.
        strict: refuse a start in which an array of the variables has no counterpart, or an
            array of the source has no place. Otherwise both are only reported.
        dtype: `"exact"` refuses other dtypes. `"cast"` casts from float to float and from
            integer to integer, where no number becomes infinite or another integer.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: a pattern or an expression is malformed.
        UnknownNameError: a name of a reshaping, or an argument, is not known.

    Example:
        >>> Restore("/ckpt/vit", rename={"Transformer/(.*)": r"body/\1"}, skip=["head"])
        Restore('/ckpt/vit', rename={'Transformer/(.*)': 'body/\\1'}, skip=('head',))
        >>> Restore("/ckpt/vit", reshape={"pos_embedding": "interp3d"})
        Traceback (most recent call last):
        ...
        flaxtrain.errors.UnknownNameError: unknown reshaping 'interp3d'
          where: Restore(reshape={'pos_embedding': ...})
          fix:   did you mean 'interp2d'? Known: interp2d
    """

    source: Any
    rename: Mapping[str, str]
    skip: tuple[str, ...]
    reshape: Mapping[str, Reshape]
    strict: bool
    dtype: Literal["exact", "cast"]

    @answering
    def __init__(
        self,
        source: Any,
        *,
        rename: Mapping[str, str] | None = None,
        skip: Sequence[str] = (),
        reshape: Mapping[str, Reshape] | None = None,
        strict: bool = True,
        dtype: Literal["exact", "cast"] = "exact",
    ) -> None:
        _check_source(source)
        rename = {} if rename is None else rename
        reshape = {} if reshape is None else reshape
        _check_rename(rename)
        _check_skip(skip)
        _check_reshape(reshape)
        check_flag("strict", strict, where="Restore")
        check_choice("dtype", dtype, ("exact", "cast"), where="Restore")
        values = {
            "source": os.fspath(source) if isinstance(source, os.PathLike) else source,
            "rename": dict(rename),
            "skip": tuple(skip),
            "reshape": dict(reshape),
            "strict": bool(strict),
            "dtype": dtype,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def skip_patterns(self) -> list[PathPattern]:
        """The entries of `skip`."""
        return [PathPattern(text, "Restore(skip=...)") for text in self.skip]

    @property
    def reshape_patterns(self) -> list[tuple[PathPattern, Reshape]]:
        """The entries of `reshape`."""
        return [
            (PathPattern(text, "Restore(reshape=...)"), how)
            for text, how in self.reshape.items()
        ]

    def __repr__(self) -> str:
        """Returns the call that makes it; a tree in memory is only described."""
        defaults = {"rename": {}, "skip": (), "reshape": {}, "strict": True, "dtype": "exact"}
        changed = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)[1:]
            if getattr(self, field.name) != defaults[field.name]
        ]
        return f"Restore({', '.join([self.source_text(), *changed])})"

    def source_text(self) -> str:
        """Returns the path of the source in quotes, or what is known about a tree in memory."""
        if isinstance(self.source, str):
            return repr(self.source)
        count = counted(len(jax.tree.leaves(self.source)), "array")
        return f"<{type(self.source).__name__} of {count}>"


def _check_source(source: Any) -> None:
    if isinstance(source, (str, os.PathLike)):
        if not isinstance(os.fspath(source), str) or not os.fspath(source):
            raise ArgumentError(
                f"source={source!r} is not a path",
                where="Restore",
                fix="pass the path of a checkpoint or file as text",
            )
        return
    is_plain_sequence = type(source) in (list, tuple)
    if source is None or is_plain_sequence or jax.tree_util.all_leaves([source]):
        raise ArgumentTypeError(
            f"source is {kind_of(source)}, neither a path nor a tree of arrays",
            where="Restore",
            fix="pass the path of a checkpoint or file, or nested dicts of arrays",
        )


def _check_mapping(name: str, value: Any, example: str) -> None:
    if not isinstance(value, Mapping):
        raise ArgumentTypeError(
            f"{name} is {kind_of(value)}, not a mapping",
            where=f"Restore({name}=...)",
            fix=f"pass a dict such as {example}",
        )


def _check_rename(rename: Any) -> None:
    _check_mapping("rename", rename, r"{'enc/(.*)': r'backbone/\1'}")
    for pattern, replacement in rename.items():
        where = f"Restore(rename={{{pattern!r}: ...}})"
        if not isinstance(pattern, str) or not isinstance(replacement, str):
            raise ArgumentTypeError(
                f"the entry {pattern!r}: {replacement!r} is not a pair of strings",
                where=where,
                fix="map regular expressions to replacements",
            )
        expression = compiled(pattern, where)
        if not replacement:
            raise ArgumentError(
                "the replacement is empty",
                where=where,
                fix="to leave arrays of the source out, name their paths in skip=",
            )
        try:
            # Python reads the replacement first, whether or not anything matches.
            expression.sub(replacement, "")
        except (re.error, IndexError) as error:
            raise ArgumentError(
                f"the replacement {replacement!r} does not go with the expression: {error}",
                where=where,
                fix="put parentheses around what is kept, such as 'enc/(.*)' to r'body/\\1'",
            ) from None


def _check_skip(skip: Any) -> None:
    if isinstance(skip, str) or not isinstance(skip, Sequence):
        raise ArgumentTypeError(
            f"skip={skip!r} is {kind_of(skip)}, not a list of patterns",
            where="Restore(skip=...)",
            fix=f"pass a list, such as {[skip] if isinstance(skip, str) else ['head']}",
        )
    for text in skip:
        PathPattern(text, "Restore(skip=...)")


def _check_reshape(reshape: Any) -> None:
    _check_mapping("reshape", reshape, "{'pos_embedding': 'interp2d'}")
    for pattern, how in reshape.items():
        where = f"Restore(reshape={{{pattern!r}: ...}})"
        PathPattern(pattern, where)
        if isinstance(how, str):
            if how not in RESHAPES:
                raise unknown_name("reshaping", how, RESHAPES, where=where)
        elif not callable(how):
            raise ArgumentTypeError(
                f"{how!r} is {kind_of(how)}, not a way of reshaping",
                where=where,
                fix="pass 'interp2d' or a function (array, target_shape) -> array",
            )
