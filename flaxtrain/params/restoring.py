"""Carrying out a `Restore`: which array goes where, whether it fits, and what to say if not."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from flaxtrain.errors import ArgumentTypeError, ParameterError, nearest
from flaxtrain.params.fitting import Fit, Misfit, fitted, placed, text_of
from flaxtrain.params.path_patterns import PathPattern, as_addressed, shown_name
from flaxtrain.params.restore import Restore
from flaxtrain.params.restore_report import RestoreRecord, RestoreReport, likely_renames
from flaxtrain.params.variable_trees import Variables, source_table
from flaxtrain.text import kind_of
from flaxtrain.tree import Path, keys_of, path_name
from flaxtrain.typing import PyTree

__all__ = ["apply_restore"]

_SHOWN = 40
_FIXES = {
    "shape": 'reshape={path: "interp2d"} or a function where it should be made to fit, '
    "skip=[path] where it should start anew",
    "reshape": "reshape= with a function that returns an array of the shape here",
    "dtype": 'dtype="cast" where a cast within floats or within integers is meant',
    "cast": "a function in reshape=, or the model in a wider dtype",
    "missing": "rename=, skip=[path] for what should start anew, or strict=False",
    "unused": "rename=, skip=[path] for what should be left out, or strict=False",
}


def apply_restore(
    restore: Restore, source_tree: PyTree, target: PyTree
) -> tuple[PyTree, RestoreReport]:
    r"""Returns the variables with the arrays of a source in them, and the report.

    Args:
        restore: says how paths, shapes and dtypes differ; its `source` is not read here.
        source_tree: arrays (numpy or jax) in nested containers: variables, params alone, or a
            training state. The paths of its collections need not all be there.
        target: variables such as `{"params": ..., "batch_stats": ...}`, or params alone, of
            arrays or of `jax.ShapeDtypeStruct`s.

    Returns:
        A tree of `target`'s structure. What was loaded is a copy: a jax array, on the devices
        of the one in its place, or a numpy array where that is one. Everything else is
        `target`'s own leaf.

    Raises:
        ParameterError: something does not fit, with all that does not; or nothing was loaded;
            or an entry of `rename`, `skip` or `reshape` has no effect.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"body": {"bias": jnp.zeros(2)}, "head": {"bias": jnp.zeros(1)}}
        >>> source = {"enc": {"bias": jnp.ones(2)}}
        >>> restore = Restore(source, rename={"enc/(.*)": r"body/\1"}, skip=["head"])
        >>> restored, report = apply_restore(restore, source, {"params": params})
        >>> restored["params"]["body"]
        {'bias': Array([1., 1.], dtype=float32)}
        >>> report.summary
        'loaded 1 array (1 renamed), skipped 1'
    """
    if not isinstance(restore, Restore):
        raise ArgumentTypeError(
            f"restore is {kind_of(restore)}, not a Restore",
            where="apply_restore",
            fix="pass Restore(source, ...)",
        )
    variables = Variables.of(target)
    stored, ignored = source_table(source_tree, variables)
    landed = _landed(restore, stored, variables)
    outcome = _Outcome(restore, variables, stored, landed)
    values = outcome.values()
    report = outcome.report(ignored)
    outcome.check(report)
    return variables.filled(values), report


def _landed(
    restore: Restore, stored: dict[Path, Any], variables: Variables
) -> dict[Path, Path]:
    """Returns, for each path at which an array of the source arrives, its path there."""
    collections = variables.collections | {path[0] for path in stored}
    entries = [(re.compile(pattern), text) for pattern, text in restore.rename.items()]
    decided = [0] * len(entries)
    landed: dict[Path, Path] = {}
    for path in stored:
        arrives = path
        for index, (expression, replacement) in enumerate(entries):
            name = path_name(as_addressed(expression.pattern, path))
            match = expression.fullmatch(name)
            if match is not None:
                decided[index] += 1
                arrives = _new_path(path, match.expand(replacement), collections)
                break
        if arrives in landed:
            both = f"{shown_name(landed[arrives])} and {shown_name(path)}"
            raise ParameterError(
                f"two arrays of the source arrive at one path: {both}",
                where=shown_name(arrives),
                fix="make the entries of rename= more precise",
            )
        landed[arrives] = path
    for count, pattern in zip(decided, restore.rename, strict=True):
        if not count:
            raise _no_effect("rename", pattern, list(stored))
    return landed


def _new_path(path: Path, name: str, collections: frozenset[str]) -> Path:
    keys = keys_of(name)
    if "" in keys:
        raise ParameterError(
            f"rename makes {name!r} of it, in which a key is empty",
            where=shown_name(path),
            fix="change the entry of rename= that matches it",
        )
    return keys if keys[0] in collections and len(keys) > 1 else (path[0], *keys)


def _no_effect(argument: str, pattern: str, paths: list[Path]) -> ParameterError:
    names = [shown_name(path) for path in paths]
    close = nearest(pattern, names, count=3) or names[:3]
    kind = "path of the source" if argument == "rename" else "path"
    left = " that earlier entries leave" if argument == "rename" else ""
    return ParameterError(
        f"the entry {pattern!r} matches no {kind}{left}",
        where=f"Restore({argument}=...)",
        fix=f"remove it or correct it; nearest: {', '.join(close) or '(there is none)'}",
    )


class _Outcome:
    """Decides on every path, and remembers it for the report and the errors."""

    def __init__(
        self,
        restore: Restore,
        variables: Variables,
        stored: dict[Path, Any],
        landed: dict[Path, Path],
    ) -> None:
        self.restore, self.stored, self.landed = restore, stored, landed
        self.table = variables.table
        self.problems: list[tuple[str, str]] = []
        self.fits: dict[Path, Fit] = {}
        every = list(dict.fromkeys([*self.table, *landed]))
        self.skipped = _matched("skip", restore.skip_patterns, every)
        patterns = [pattern for pattern, _ in restore.reshape_patterns]
        _matched("reshape", patterns, list(self.table))

    def values(self) -> dict[Path, Any]:
        """Returns the arrays that come in, by path; what does not fit becomes a problem."""
        for path in self.table.keys() & self.landed.keys() - self.skipped:
            try:
                self.fits[path] = self._fit(path)
            except Misfit as misfit:
                kind, found = misfit.args
                self.problems.append((kind, f"{shown_name(path)}: {found}"))
        self.problems.sort()
        if self.problems:
            return {}
        return {
            path: placed(fit.value, self.table[path], path) for path, fit in self.fits.items()
        }

    def _fit(self, path: Path) -> Fit:
        source, here = self.landed[path], self.table[path]
        patterns = self.restore.reshape_patterns
        how = next((how for pattern, how in patterns if pattern.matches(path)), None)
        exact = self.restore.dtype == "exact"
        fit = fitted(self.stored[source], here, how, exact=exact)
        return fit if source == path else Fit(fit.value, fit.changes | {"renamed"})

    @property
    def missing(self) -> list[Path]:
        return [path for path in self.table if path not in self.landed.keys() | self.skipped]

    @property
    def unused(self) -> list[Path]:
        return [path for path in self.landed if path not in self.table.keys() | self.skipped]

    def report(self, ignored: tuple[str, ...]) -> RestoreReport:
        """Returns the report; arrays that do not fit are in none of its lists."""
        loaded = {path: self._record(path) for path in self.table if path in self.fits}

        def changed(word: str) -> tuple[RestoreRecord, ...]:
            return tuple(loaded[path] for path in loaded if word in self.fits[path].changes)

        return RestoreReport(
            loaded=tuple(loaded.values()),
            renamed=changed("renamed"),
            reshaped=changed("reshaped"),
            cast=changed("cast"),
            skipped=tuple(
                self._record(path)
                for path in dict.fromkeys([*self.table, *self.landed])
                if path in self.skipped
            ),
            missing=tuple(map(self._record, self.missing)),
            unused=tuple(map(self._record, self.unused)),
            ignored=ignored,
        )

    def _record(self, path: Path) -> RestoreRecord:
        here = text_of(self.table[path]) if path in self.table else ""
        source = self.landed.get(path)
        if source is None:
            return RestoreRecord(shown_name(path), here)
        return RestoreRecord(
            shown_name(path), here, shown_name(source), text_of(self.stored[source])
        )

    def check(self, report: RestoreReport) -> None:
        """Raises one error about all that is wrong."""
        problems = list(self.problems)
        if self.restore.strict or not (report.loaded or problems):
            problems += [("missing", self._line(record)) for record in report.missing]
            problems += [("unused", self._line(record)) for record in report.unused]
        if report.loaded and not problems:
            return
        counts = Counter(kind for kind, _ in problems)
        told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        found = "the source does not fit the variables" if told else "all arrays are skipped"
        found += f": {told}" if told else ""
        lines = [report.summary, *(f"{kind:8} {line}" for kind, line in problems[:_SHOWN])]
        if len(problems) > _SHOWN:
            lines.append(f"... and {len(problems) - _SHOWN} more")
        raise ParameterError(
            "\n    ".join([found, *lines]), where=f"{self.restore!r}", fix=self._fix(counts)
        )

    def _line(self, record: RestoreRecord) -> str:
        """One line about a missing or unused array, with the nearest name on the other side."""
        if record.array:
            others = [shown_name(path) for path in self.unused]
            close = nearest(record.path, others)
            hint = f"; nearest unused: {close[0]}" if close else ""
            return f"{record.path}: {record.array} here, not in the source{hint}"
        return f"{record.source}: {record.source_array} in the source, not here"

    def _fix(self, counts: Counter[str]) -> str:
        shapes = {path: tuple(self.table[path].shape) for path in self.missing}
        spare = {path: tuple(self.stored[self.landed[path]].shape) for path in self.unused}
        others = len(spare) < len(self.stored)
        likely = likely_renames(shapes, spare, others=others) if counts["missing"] else {}
        hint = f"likely: rename={likely!r}; " if likely else ""
        if not counts:
            return "take entries out of skip=, so that something is loaded"
        return hint + "; ".join(f"{kind}: {_FIXES[kind]}" for kind in counts)


def _matched(argument: str, patterns: list[PathPattern], paths: list[Path]) -> set[Path]:
    """Returns the paths that any pattern matches, after making sure that each matches one."""
    found: set[Path] = set()
    for pattern in patterns:
        hits = [path for path in paths if pattern.matches(path)]
        if not hits:
            raise _no_effect(argument, pattern.text, paths)
        found.update(hits)
    return found
