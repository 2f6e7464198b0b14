"""Do all processes mean the same run? Asked before the first step, and after the last.

Processes that differ in a shape hang in the first operation that they do together. Those that
differ in a seed or a learning rate train different models without a word.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flaxtrain.errors import ProcessError
from flaxtrain.parallel.processes import coordination
from flaxtrain.parallel.processes.coordination import Store
from flaxtrain.parallel.processes.meeting import awaited

__all__ = ["agree", "decided", "disagreement", "raise_disagreement"]

_KEY = "flaxtrain/agreement"
_ROUNDS = itertools.count()
# Characters of a value that are shown, around the first place where two of them differ.
_SHOWN = 60
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def agree(
    items: Mapping[str, Any],
    *,
    where: str = "before the first step",
    timeout: float = 300.0,
) -> None:
    """Compares what the processes mean to do; all of them raise the same error if they differ.

    Args:
        items: values that go through JSON, by name: the seed, a spec's text, shapes.
        where: the point in the program, for messages.
        timeout: seconds to wait for the slowest.

    Raises:
        ProcessError: an item differs; the message says what each process has. Or a process did
            not come in time.

    Example:
        >>> agree({"seed": 0, "rows": (32, 8)})
    """
    items = {name: _text(items[name]) for name in items}
    raise_disagreement(decided(items, disagreement, where=where, timeout=timeout), where)


def raise_disagreement(lines: Sequence[str], where: str) -> None:
    """Raises what `disagreement` returned, if that is anything.

    Args:
        lines: what differs.
        where: the point in the program, for messages.

    Raises:
        ProcessError: something does.
    """
    if lines:
        raise ProcessError(
            lines[0],
            where=where,
            details=lines[1:],
            fix="start every process with the same program, arguments and data",
        )


def decided(
    answer: Any,
    decide: Callable[[list[Any]], Any],
    *,
    where: str,
    timeout: float,
    look: Callable[[], object] | None = None,
) -> Any:
    """Returns what process 0 makes of the answers of all processes, which all call this.

    Args:
        answer: that of this process; it goes through JSON.
        decide: from the answers, in the order of the processes, to the outcome, which goes
            through JSON too.
        where: the point in the program, for messages.
        timeout: seconds to wait for the slowest.
        look: called while this waits, about once a second; may raise.

    Raises:
        ProcessError: a process did not come in time.

    Example:
        >>> decided(3, max, where="here", timeout=10.0)
        3
    """
    found = coordination.store()
    if found is None or found[2] == 1:
        return decide([answer])
    store, index, count = found
    key = f"{_KEY}/{next(_ROUNDS)}"
    store.put(f"{key}/{index}", json.dumps(answer))
    if index == 0:
        answers = _answers(store, key, count, timeout, look)
        outcome = [answers, None] if isinstance(answers, str) else [None, decide(answers)]
        store.put(f"{key}/outcome", json.dumps(outcome))
    # The first one to come waits for the last one to come, and for the outcome.
    text = awaited(store, f"{key}/outcome", timeout + 10.0, look)
    late, outcome = [_late(0), None] if text is None else json.loads(text)
    if late is not None:
        raise ProcessError(
            f"{late} within {timeout:g} seconds",
            where=where,
            fix="let every process come to it, with the same program, arguments and data",
        )
    return outcome


def _late(process: int) -> str:
    return f"process {process} did not come"


def _answers(
    store: Store, key: str, count: int, timeout: float, look: Callable[[], object] | None
) -> list[Any] | str:
    """Returns the answers of all processes, or who is late."""
    until = time.monotonic() + timeout
    answers = []
    for process in range(count):
        text = awaited(store, f"{key}/{process}", max(0.1, until - time.monotonic()), look)
        if text is None:
            return _late(process)
        answers.append(json.loads(text))
    return answers


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    # Where a function lies is no part of what it does, and another place in every process.
    return _ADDRESS.sub("", text)


def disagreement(answers: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns what differs between processes, as lines; none if nothing does.

    Args:
        answers: the items of each process, as texts.

    Example:
        >>> disagreement([{"seed": "0"}, {"seed": "0"}])
        []
        >>> print(*disagreement([{"seed": "0"}, {"seed": "1"}, {"seed": "0"}]), sep="; ")
        the processes disagree about seed; seed: 0 (processes 0, 2); 1 (process 1)
    """
    names = list(dict.fromkeys(name for answer in answers for name in answer))
    differing = {}
    for name in names:
        values: dict[str, list[int]] = {}
        for process, answer in enumerate(answers):
            values.setdefault(answer.get(name, "(nothing)"), []).append(process)
        if len(values) > 1:
            differing[name] = values
    if not differing:
        return []
    lines = [f"the processes disagree about {', '.join(differing)}"]
    for name, values in differing.items():
        start = _first_difference(list(values))
        shown = (f"{_shortened(v, start)} ({_listed(who)})" for v, who in values.items())
        lines.append(f"{name}: {'; '.join(shown)}")
    return lines


def _first_difference(texts: list[str]) -> int:
    columns = zip(*texts)
    return next(
        (place for place, column in enumerate(columns) if len(set(column)) > 1),
        min(map(len, texts)),
    )


def _shortened(text: str, place: int) -> str:
    if len(text) <= _SHOWN:
        return text
    start = max(0, min(place - _SHOWN // 3, len(text) - _SHOWN))
    end = start + _SHOWN
    return ("..." if start else "") + text[start:end] + ("..." if end < len(text) else "")


def _listed(processes: list[int]) -> str:
    shown = ", ".join(map(str, processes[:8])) + (", ..." if len(processes) > 8 else "")
    return f"{'process' if len(processes) == 1 else 'processes'} {shown}"
