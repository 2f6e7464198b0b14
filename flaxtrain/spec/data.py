"""Specs as JSON data, and back: names are looked up in fixed tables, nothing is executed."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from flaxtrain.errors import ArgumentError, ArgumentTypeError, unknown_name
from flaxtrain.optim import NAMED, GradientTransformation
from flaxtrain.schedules import Schedule, from_dict
from flaxtrain.spec.accumulation import AccumulateBatches
from flaxtrain.spec.averaging import Ema, Lookahead, Swa
from flaxtrain.spec.clips import CLIPS
from flaxtrain.spec.declaration import Declaration, defaults_of, name_of, names_of
from flaxtrain.spec.freeze import Freeze
from flaxtrain.spec.group import Group
from flaxtrain.spec.layer_decay import LayerDecay
from flaxtrain.spec.spikes import Spikes
from flaxtrain.text import kind_of

# Nothing here is public: `OptSpec.to_dict` and `OptSpec.from_dict` are.
__all__ = []

VERSION = 1
"""The version of the form; a reader refuses another one."""

KINDS: Mapping[str, type[Declaration]] = {
    kind.__name__: kind for kind in (AccumulateBatches, Ema, Lookahead, Spikes, Swa, *CLIPS)
}
"""Declarations that are data wherever they stand: `{"kind": name, argument: value}`. Those of a
field that takes one class only need no name: `Group`, `Freeze`, `LayerDecay`."""


def encode(spec: Declaration) -> dict[str, Any]:
    """Returns a spec's fields as JSON data.

    Raises:
        ArgumentTypeError: a value can't be data; it is named.
    """
    table: dict[str, Any] = {"version": VERSION}
    for name in names_of(type(spec)):
        value = getattr(spec, name)
        where = f"{type(spec).__name__}({name}=...)"
        if name == "hyperparameters":
            table[name] = {key: _as_data(v, f"OptSpec({key}=...)") for key, v in value}
        elif name == "optimizer":
            table[name] = _optimizer_as_data(value)
        else:
            table[name] = _as_data(value, where)
    return table


def _declaration_as_data(value: Declaration) -> dict[str, Any]:
    where = f"{type(value).__name__}({getattr(value, names_of(type(value))[0])!r}, "
    kind = type(value).__name__
    table: dict[str, Any] = {"kind": kind} if kind in KINDS else {}
    return table | {
        name: _part_as_data(name, part, f"{where}{name}=...)")
        for name, part in value.arguments().items()
    }


def _part_as_data(name: str, part: Any, where: str) -> Any:
    if name == "optimizer":
        return _optimizer_as_data(part)
    if name == "layer_of" and isinstance(part, Mapping):
        part = list(part.items())  # whose order says something, which that of keys does not
    return _as_data(part, where)


def _optimizer_as_data(value: Any) -> Any:
    return value if isinstance(value, str) else _object_as_data(value)


def _object_as_data(tx: Any) -> dict[str, Any]:
    if not isinstance(tx, GradientTransformation) or tx.name not in NAMED:
        raise ArgumentTypeError(
            f"the optimizer object {name_of(tx)} can't be written as data",
            where="OptSpec(optimizer)",
            fix=f"pass the optimizer by name: {', '.join(sorted(NAMED))}",
        )
    arguments = {key: _as_data(v, f"{tx.name}({key}=...)") for key, v in tx.arguments.items()}
    return {"object": tx.name, "arguments": arguments}


def _as_data(value: Any, where: str) -> Any:
    if isinstance(value, Schedule):
        return value.to_dict()
    if isinstance(value, Declaration):
        return _declaration_as_data(value)
    if isinstance(value, (tuple, list)):
        return [_as_data(child, f"{where}[{i}]") for i, child in enumerate(value)]
    if isinstance(value, Mapping):
        return {key: _as_data(child, f"{where}[{key!r}]") for key, child in value.items()}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return _finite(value, where)
    found = f"the function {name_of(value)}" if callable(value) else repr(value)
    raise ArgumentTypeError(
        f"{found} can't be written as data",
        where=where,
        fix="use numbers, names and schedules from flaxtrain.schedules",
    )


def _finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise ArgumentTypeError(
            f"{value} can't be written as data: JSON has no such number",
            where=where,
            fix="pass a finite number, or None where that means no bound",
        )
    return value


def decode(data: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Returns the arguments of `OptSpec` from JSON data.

    Args:
        data: what `encode` returned.
        names: the fields of a spec.

    Raises:
        UnknownNameError: a field, an optimizer or a schedule is not known.
        ArgumentError: the data are of another version, or name no optimizer.
        ArgumentTypeError: `data`, or a part of it, is not a mapping.
    """
    where = "OptSpec.from_dict"
    table = dict(_mapping(data, where))
    version = table.pop("version", VERSION)
    if version != VERSION:
        raise ArgumentError(
            f"the spec is of version {version!r}, this flaxtrain reads version {VERSION}",
            where=where,
            fix="read it with the flaxtrain that wrote it, or write it anew",
        )
    for name in table:
        if name not in names:
            raise unknown_name("field", str(name), names, where=where)
    if "optimizer" not in table:
        raise ArgumentError(
            "the spec names no optimizer",
            where=where,
            fix="add 'optimizer': 'adam', or another name",
        )
    hyperparameters = _mapping(table.pop("hyperparameters", {}), f"{where}: hyperparameters")
    arguments = {name: decoded(value) for name, value in table.items()}
    if isinstance(arguments["optimizer"], Mapping):
        arguments["optimizer"] = _object_from(arguments["optimizer"])
    for name, kind in (("groups", Group), ("freeze", Freeze)):
        rows = _sequence(arguments.get(name, ()), f"{where}: {name}")
        arguments[name] = tuple(_declared(kind, row, f"{where}: {name}") for row in rows)
    if isinstance(arguments.get("layer_decay"), Mapping):
        row = arguments["layer_decay"]
        arguments["layer_decay"] = _declared(LayerDecay, row, f"{where}: layer_decay")
    return {
        **arguments,
        "hyperparameters": {k: decoded(v) for k, v in hyperparameters.items()},
    }


def _object_from(data: Mapping[str, Any]) -> GradientTransformation:
    name = data.get("object")
    if not isinstance(name, str) or name not in NAMED:
        raise unknown_name("optimizer", str(name), NAMED, where="OptSpec.from_dict: optimizer")
    arguments = _mapping(data.get("arguments", {}), f"OptSpec.from_dict: {name}")
    return NAMED[name].factory(**arguments)


def decoded(value: Any) -> Any:
    """Returns a value from its JSON form: schedules and declarations of a kind, at any depth.

    Raises:
        UnknownNameError: a kind, a schedule or an argument is not known.
    """
    if isinstance(value, (list, tuple)):
        return tuple(map(decoded, value))
    if not isinstance(value, Mapping):
        return value
    if "schedule" in value and isinstance(value["schedule"], str):
        return from_dict(value)
    if "kind" in value and isinstance(value["kind"], str):
        return _of_kind(value)
    return {key: decoded(child) for key, child in value.items()}


def _of_kind(row: Mapping[str, Any]) -> Declaration:
    table = {key: decoded(child) for key, child in row.items()}
    name = table.pop("kind")
    if name not in KINDS:
        raise unknown_name("kind", name, KINDS, where="OptSpec.from_dict")
    return _declared(KINDS[name], table, f"OptSpec.from_dict: {name}")


def _declared(kind: Any, row: Any, where: str) -> Any:
    """Returns a declaration from its row."""
    table, names = dict(_mapping(row, where)), names_of(kind)
    takes_more = "hyperparameters" in names
    for name in table:
        if not isinstance(name, str) or not (takes_more or name in names):
            raise unknown_name("field", str(name), names, where=where)
    if names[0] not in table and defaults_of(kind)[names[0]] is inspect.Parameter.empty:
        example = "'head/**'" if names[0] == "select" else "0.75"
        raise ArgumentError(
            f"no {names[0]!r} is given",
            where=where,
            fix=f"add {names[0]!r}: {example}, or the like",
        )
    if isinstance(table.get("optimizer"), Mapping):
        table["optimizer"] = _object_from(table["optimizer"])
    return kind(**table)


def _sequence(value: Any, where: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ArgumentTypeError(
            f"{value!r} is {kind_of(value)}, not a list",
            where=where,
            fix="pass what OptSpec.to_dict returned",
        )
    return value


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ArgumentTypeError(
            f"{value!r} is {kind_of(value)}, not a mapping",
            where=where,
            fix="pass what OptSpec.to_dict returned",
        )
    return value


def read_json(text: str) -> Any:
    """Parses JSON text.

    Raises:
        ArgumentError: it is not JSON.
        ArgumentTypeError: it is not text.
    """
    if not isinstance(text, (str, bytes)):
        raise ArgumentTypeError(
            f"{text!r} is {kind_of(text)}, not JSON text",
            where="OptSpec.from_json",
            fix="pass a string; for a mapping use OptSpec.from_dict",
        )
    try:
        return json.loads(text)
    except ValueError as error:
        raise ArgumentError(
            f"not JSON: {error}",
            where="OptSpec.from_json",
            fix="pass what OptSpec.to_json returned",
        ) from None
