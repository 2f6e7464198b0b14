"""The table of names in `docs/parity.md`: where each of Optax's names lives here."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import optax

from flaxtrain.compat import optax as door

LIST = Path(__file__).resolve().parents[1] / "compat" / "optax_names.json"

INTRO = """## Names

Every public name of Optax 0.2.8 that belongs to the suite is at `flaxtrain.compat.optax`.
Every call that binds in Optax binds the same here (`tests/compat/test_names.py` compares names,
order, kinds and defaults of all arguments); what is added is keyword-only.
"""


def listed() -> list[dict[str, str]]:
    """Returns category and name of everything, sorted."""
    rows = json.loads(LIST.read_text(encoding="utf-8"))
    return sorted(rows, key=lambda row: (row["category"], row["name"]))


def found(module: Any, name: str) -> Any:
    """Returns the object of a dotted name."""
    for part in name.split("."):
        module = getattr(module, part)
    return module


def home(thing: Any) -> str:
    """Returns the module in which a name is defined; Python's own for a union of types."""
    found = getattr(thing, "__module__", None) or type(thing).__module__
    # The class of a union has moved between versions of Python.
    return "typing" if found == "types" else found


def added(name: str) -> list[str]:
    """Returns the arguments that Optax does not have."""
    try:
        ours, theirs = (
            inspect.signature(found(module, name)).parameters for module in (door, optax)
        )
    except (TypeError, ValueError):  # a type alias has no signature
        return []
    return [argument for argument in ours if argument not in theirs]


def name_tables() -> str:
    """Returns the section of names."""
    return "\n".join([INTRO, *_tables()])


def _tables() -> Iterator[str]:
    for category, rows in groupby(listed(), key=lambda row: row["category"]):
        yield f"### {category}\n\n| name | here | added arguments |\n|---|---|---|"
        for row in rows:
            name, thing = row["name"], found(door, row["name"])
            more = ", ".join(f"`{a}=`" for a in added(name)) if callable(thing) else ""
            yield f"| `{name}` | `{home(thing)}` | {more} |"
        yield ""
