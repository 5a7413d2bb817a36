"""The cache of decoded data: one file a data set, named by its content, and an index to it.

`<cache>/data/<identity>.safetensors` holds pixels, labels and class names of the whole training
part and the test part. `<cache>/data/index/<key>.json` leads from the files of a source to the
identity, so that a source that was opened before is not decoded again. All files are replaced
whole, so any number of processes may write at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from potstill.core.errors import InputError
from potstill.core.files import file_hash, read_json, write_json
from potstill.core.state import load_tree, save_tree, tensor_digest
from potstill.core.store import default_cache
from potstill.data.types import Parts, Split

FORMAT = 1


def data_path(identity: str) -> Path:
    """Return where the decoded data of that identity lie or would lie."""
    return default_cache() / "data" / f"{identity}.safetensors"


def _index_path(key: str) -> Path:
    return default_cache() / "data" / "index" / f"{key}.json"


def source_key(files: Mapping[str, Path], kind: str, resize: int | None) -> str:
    """Return the SHA-256 of the kind of source, its files (relative name, bytes) and resize."""
    named = [(name, file_hash(files[name])) for name in sorted(files)]
    return hashlib.sha256(json.dumps([FORMAT, kind, resize, named]).encode()).hexdigest()


def _tensors(parts: Parts) -> dict:
    splits = {"train": parts.train, "test": parts.test}
    return {
        f"{name}.{field}": getattr(split, field)
        for name, split in splits.items()
        for field in ("pixels", "labels")
    }


def load(identity: str) -> Parts:
    """Return the decoded data of that identity, without notes.

    Raises:
        InputError: if they are not in the cache, or the file is damaged.
    """
    tree = load_tree(data_path(identity))
    try:
        train = Split(tree["train.pixels"], tree["train.labels"])
        test = Split(tree["test.pixels"], tree["test.labels"])
        return Parts(train=train, test=test, classes=tree["classes"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{data_path(identity)} holds no data set.") from error


def store(parts: Parts) -> str:
    """File decoded data with a test part, unless sound already, and return their identity.

    Raises:
        WorkError: if the disk refuses.
    """
    tensors = _tensors(parts)
    identity = tensor_digest(tensors, json.dumps(parts.classes))
    try:
        load(identity)
    except InputError:
        save_tree(data_path(identity), {**tensors, "classes": parts.classes})
    return identity


def remember(key: str, identity: str, notes: tuple[str, ...]) -> None:
    """Note in the index that the source of that key is the data set of that identity."""
    write_json(_index_path(key), {"identity": identity, "notes": list(notes)})


def recall(key: str) -> tuple[str, Parts] | None:
    """Return identity and data of the source of that key, or None if absent or damaged."""
    try:
        entry = read_json(_index_path(key))
        identity, notes = entry["identity"], tuple(entry["notes"])
        found = load(identity)
    except (InputError, KeyError, TypeError):
        return None
    return identity, Parts(train=found.train, test=found.test, classes=found.classes, notes=notes)
