"""Specs as JSON data, and back: names are looked up in fixed tables, nothing is executed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from flaxtrain.errors import ArgumentError, ArgumentTypeError, unknown_name
from flaxtrain.optim import NAMED, GradientTransformation
from flaxtrain.schedules import Schedule, from_dict
from flaxtrain.spec.validate import name_of

# Nothing here is public: `OptSpec.to_dict` and `OptSpec.from_dict` are.
__all__ = []

VERSION = 1
"""The version of the form; a reader refuses another one."""


def encode(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a spec's fields as JSON data.

    Raises:
        ArgumentTypeError: a value can't be data; it is named.
    """
    table: dict[str, Any] = {"version": VERSION}
    for name, value in values.items():
        if name == "hyperparameters":
            table[name] = {key: _as_data(v, f"OptSpec({key}=...)") for key, v in value}
        elif name == "optimizer" and not isinstance(value, str):
            table[name] = _object_as_data(value)
        else:
            table[name] = _as_data(value, f"OptSpec({name}=...)")
    return table


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
    if isinstance(value, Mapping):
        return {key: _as_data(child, f"{where}[{key!r}]") for key, child in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    found = f"the function {name_of(value)}" if callable(value) else repr(value)
    raise ArgumentTypeError(
        f"{found} can't be written as data",
        where=where,
        fix="use numbers, names and schedules from flaxtrain.schedules",
    )


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
    arguments = {name: _decoded(value) for name, value in table.items()}
    if isinstance(arguments["optimizer"], Mapping):
        arguments["optimizer"] = _object_from(arguments["optimizer"])
    return {
        **arguments,
        "hyperparameters": {k: _decoded(v) for k, v in hyperparameters.items()},
    }


def _object_from(data: Mapping[str, Any]) -> GradientTransformation:
    name = data.get("object")
    if not isinstance(name, str) or name not in NAMED:
        raise unknown_name("optimizer", str(name), NAMED, where="OptSpec.from_dict: optimizer")
    arguments = _mapping(data.get("arguments", {}), f"OptSpec.from_dict: {name}")
    return NAMED[name].factory(**arguments)


def _decoded(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if "schedule" in value and isinstance(value["schedule"], str):
        return from_dict(value)
    return {key: _decoded(child) for key, child in value.items()}


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ArgumentTypeError(
            f"{value!r} is a {type(value).__name__}, not a mapping",
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
            f"{text!r} is a {type(text).__name__}, not JSON text",
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
