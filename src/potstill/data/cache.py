"""The cache of decoded data: one file a data set, named by its content, and an index to it.

`<cache>/data/<identity>.safetensors` holds pixels, labels and class names of the whole training
part and the test part. `<cache>/data/index/<key>.json` leads from the files of a source to the
identity, so that a source that was opened before is not decoded again. All files are replaced
whole, so any number of processes may write at once. Images are decoded one after the other into
the file; a file above the resident budget is mapped and not read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from potstill.core.errors import InputError, WorkError
from potstill.core.files import file_hash, holding, read_json, sweep, write_json
from potstill.core.state import Blocks, digest_head, load_tree, map_tree, save_tree, tensor_digest
from potstill.core.store import default_cache, need_room
from potstill.data.images import arrays
from potstill.data.rows import Pixels, Rows, resident_budget
from potstill.data.types import Listed, Parts, Reading, Split, Stored

if TYPE_CHECKING:
    import numpy as np

FORMAT = 3
HASHED = 2**30
"""Sources of up to so many bytes are known again by their bytes, larger ones by size and date."""


class _Colour(Exception):
    """An image with colour among images that began as grayscale."""


def data_path(identity: str) -> Path:
    """Return where the decoded data of that identity lie or would lie."""
    return default_cache() / "data" / f"{identity}.safetensors"


def _index_path(key: str) -> Path:
    return default_cache() / "data" / "index" / f"{key}.json"


def source_key(files: Mapping[str, str | Path], kind: str, reading: Reading, parts: Parts) -> str:
    """Return the SHA-256 of the kind of source, its files, its labels and how images are read.

    A file counts by its name and bytes; if all together have more than `HASHED` bytes, by name,
    size and time of change.

    Raises:
        InputError: if a file cannot be read.
    """
    try:
        stats = {name: os.stat(path) for name, path in sorted(files.items())}
        whole = sum(stat.st_size for stat in stats.values()) <= HASHED
        named = [
            (name, file_hash(Path(files[name])) if whole else (stat.st_size, stat.st_mtime_ns))
            for name, stat in stats.items()
        ]
    except OSError as error:
        raise InputError(f"Cannot read {error.filename} ({error.strerror}).") from error
    labels = {"train": parts.train.labels} | ({"test": parts.test.labels} if parts.test else {})
    text = json.dumps([FORMAT, kind, reading.resize, reading.fit, named, parts.classes])
    return tensor_digest(labels, text)


def load(identity: str) -> Stored:
    """Return the decoded data of that identity.

    Above the resident budget the pixels are `Rows`, and their bytes are not checked.

    Raises:
        InputError: if they are not in the cache, or the file is damaged.
    """
    path = data_path(identity)
    mapped = path.is_file() and path.stat().st_size > resident_budget()
    tree = map_tree(path) if mapped else load_tree(path)

    def split(name: str) -> Split:
        pixels, labels = tree[f"{name}.pixels"], tree[f"{name}.labels"]
        return Split(Rows(pixels), torch.tensor(labels)) if mapped else Split(pixels, labels)

    try:
        return Stored(train=split("train"), test=split("test"), classes=tree["classes"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} holds no data set.") from error


def fetch(parts: Parts, kind: str, reading: Reading) -> tuple[str, Stored]:
    """Return the identity and the data of a source with a test part, decoded at most once.

    Raises:
        InputError: if a file or image cannot be used, or the disk is too small.
        WorkError: if the disk refuses.
    """
    if parts.identity is not None:
        return parts.identity, load(parts.identity)
    if parts.files is None:
        return store(parts, reading)
    key = source_key(parts.files, kind, reading, parts)
    found = recall(key)
    if found is None:
        folder = data_path("").parent
        with holding(folder / f".{key}.lock", wait=True):  # another process may be at it
            sweep(folder, key)
            found = recall(key) or store(parts, reading, key)
            write_json(_index_path(key), {"identity": found[0]})
    return found


def recall(key: str) -> tuple[str, Stored] | None:
    """Return identity and data of the source of that key, or None if absent or damaged."""
    try:
        identity = read_json(_index_path(key))["identity"]
        return identity, load(identity)
    except (InputError, KeyError, TypeError):
        return None


def store(parts: Parts, reading: Reading, key: str = "") -> tuple[str, Stored]:
    """File data with a test part and return their identity and what `load` gives; as `fetch`.

    Images that are still to be decoded go into a file named by `key` until they are.
    """
    train, test = parts.train, parts.test
    if isinstance(train, Listed) and isinstance(test, Listed):
        identity = _streamed(train, test, parts.classes, reading, key)
        return identity, load(identity)
    assert isinstance(train, Split)
    assert isinstance(test, Split)
    identity = tensor_digest(_held(train, test), json.dumps(parts.classes))
    try:
        return identity, load(identity)
    except InputError:
        _need_room(train.pixels.nbytes + test.pixels.nbytes)
        save_tree(data_path(identity), {**_held(train, test), "classes": parts.classes})
        return identity, load(identity)


def _held(train: Split, test: Split) -> dict[str, Tensor | Blocks]:
    def leaf(pixels: Pixels) -> Tensor | Blocks:
        if isinstance(pixels, Tensor):
            return pixels
        return Blocks(pixels.shape, (part.numpy() for part in pixels.split(256)))

    return _tree(leaf(train.pixels), train.labels, leaf(test.pixels), test.labels)


def _tree(train: Any, train_labels: Any, test: Any, test_labels: Any) -> dict[str, Any]:
    return {
        "train.pixels": train,
        "train.labels": train_labels,
        "test.pixels": test,
        "test.labels": test_labels,
    }


def _need_room(nbytes: int) -> None:
    hint = "make room there, or name another folder with POTSTILL_CACHE"
    need_room(default_cache() / "data", nbytes, what="decoded images", hint=hint)


def _streamed(
    train: Listed, test: Listed, classes: tuple[str, ...], reading: Reading, key: str
) -> str:
    """Decode images into the cache, never many at once, and return the identity."""
    shape = next(arrays(islice(test.named(test.rows), 1), reading)).shape
    file = default_cache() / "data" / key
    try:
        try:
            identity = _written(file, train, test, classes, reading, shape)
        except _Colour:
            identity = _written(file, train, test, classes, reading, (3, *shape[1:]))
        os.replace(file, data_path(identity))
    except OSError as error:
        raise WorkError(f"Cannot write {file}: {error.strerror or error}.") from error
    return identity


def _written(
    file: Path,
    train: Listed,
    test: Listed,
    classes: tuple[str, ...],
    reading: Reading,
    shape: tuple[int, ...],
) -> str:
    _need_room((len(train) + len(test)) * math.prod(shape))
    images = arrays(chain(test.named(test.rows), train.named(train.rows)), reading)
    identity = hashlib.sha256(json.dumps(classes).encode())

    def blocks(name: str, part: Listed) -> Blocks:
        def pixels() -> Iterator[np.ndarray]:
            labels = part.labels
            identity.update(digest_head(f"{name}.labels", labels) + labels.numpy().tobytes())
            identity.update(digest_head(f"{name}.pixels", leaf))
            for array in islice(images, len(part)):
                if len(array) > shape[0]:
                    raise _Colour
                array = array if len(array) == shape[0] else array.repeat(shape[0], 0)
                identity.update(array.data)
                yield array

        leaf = Blocks((len(part), *shape), pixels())
        return leaf

    tree = _tree(blocks("train", train), train.labels, blocks("test", test), test.labels)
    save_tree(file, {**tree, "classes": classes})
    return identity.hexdigest()
