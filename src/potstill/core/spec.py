"""Specs: frozen dataclasses that travel as JSON and are named by the hash of that JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from typing import Any, TypeVar

from potstill.core.errors import InputError, unknown

T = TypeVar("T")
_RECORDS: dict[str, type] = {}
_FLOAT, _INT = re.compile(r"\bfloat\b"), re.compile(r"\bint\b")


def record(cls: type[T]) -> type[T]:
    """Register a frozen dataclass under its class name, so that its JSON can be read back."""
    name = cls.__name__
    known = _RECORDS.get(name)
    if known is not None and known.__module__ != cls.__module__:
        raise InputError(f"Two records are named {name!r}: {known.__module__}, {cls.__module__}.")
    if not dataclasses.is_dataclass(cls):
        raise InputError(f"{name!r} must be a dataclass to be a record.")
    _RECORDS[name] = cls
    return cls


def later(default: Any) -> Any:
    """Return a field of a record that earlier versions did not have.

    At its default it is left out of the JSON, so that records without it keep their names.
    """
    return dataclasses.field(default=default, metadata={"later": True})


def to_json(value: Any) -> Any:
    """Return value as plain JSON data; a record becomes a dict with its class name as "type".

    A whole number in a field of type float is written as 1.0, so that equal specs have one text.

    Raises:
        InputError: for a value that JSON cannot hold (NaN, tensors, other objects).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        body = {
            f.name: to_json(_typed(f, value))
            for f in dataclasses.fields(value)
            if not ("later" in f.metadata and getattr(value, f.name) == f.default)
        }
        return {"type": type(value).__name__, **body}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"A spec cannot hold the number {value}.")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(f"A spec cannot hold a {type(value).__name__}.")


def _typed(field: dataclasses.Field[Any], owner: Any) -> Any:
    """Return a field's value, whole numbers as floats where its type is float or tuple of it."""
    value, kind = getattr(owner, field.name), str(field.type)
    if not _FLOAT.search(kind) or _INT.search(kind):
        return value
    if type(value) is int:
        return float(value)
    if isinstance(value, (list, tuple)):
        return [float(item) if type(item) is int else item for item in value]
    return value


def from_json(data: Any) -> Any:
    """Return the value that `to_json` wrote; lists come back as tuples.

    Raises:
        InputError: for an unknown record or a field that this version does not know.
    """
    if isinstance(data, list):
        return tuple(from_json(item) for item in data)
    if not isinstance(data, dict):
        return data
    if "type" not in data:
        return {key: from_json(item) for key, item in data.items()}
    body = {key: from_json(item) for key, item in data.items() if key != "type"}
    cls = _RECORDS.get(str(data["type"]))
    if cls is None:
        raise unknown("record", str(data["type"]), _RECORDS)
    fields = {f.name for f in dataclasses.fields(cls)}
    for key in body:
        if key not in fields:
            raise unknown(f"field of {data['type']}", key, fields)
    try:
        return cls(**body)
    except TypeError as error:
        raise InputError(f"The record {data['type']} is incomplete: {error}.") from error


def canonical(value: Any) -> str:
    """Return the one JSON text of a spec: sorted keys, no spaces."""
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def spec_hash(value: Any) -> str:
    """Return the name of a spec: 20 hexadecimal digits of the SHA-256 of its canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:20]


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return lines "path: old -> new" for every place in which two JSON values differ.

    Of records of two types only the types are named.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        if (types := (old.get("type"), new.get("type")))[0] != types[1]:
            return [f"{path}: {types[0]} -> {types[1]}"]
        keys = sorted(old.keys() | new.keys())
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if old == new else [f"{path}: {json.dumps(old)} -> {json.dumps(new)}"]
