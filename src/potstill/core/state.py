"""State trees: nested dicts, lists and tuples of tensors and JSON values, one file each.

The file is a safetensors file; its header holds the skeleton of the tree and a SHA-256 of
skeleton and tensor bytes, so a truncated or altered file is refused, and no pickle is read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.core.errors import InputError, WorkError
from potstill.core.files import replacing


def _split(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(tree, dict):
        if not all(isinstance(k, str) for k in tree):
            raise TypeError(f"The keys of a state tree are strings, unlike those of {name}.")
        return {"dict": {k: _split(v, f"{name}.{k}", tensors) for k, v in tree.items()}}
    if isinstance(tree, (list, tuple)):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [_split(v, f"{name}.{i}", tensors) for i, v in enumerate(tree)]}
    return {"value": tree}


def _join(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, body),) = skeleton.items()
    if kind == "tensor":
        return tensors[body]
    if kind == "dict":
        return {k: _join(v, tensors) for k, v in body.items()}
    if kind in ("list", "tuple"):
        items = [_join(v, tensors) for v in body]
        return items if kind == "list" else tuple(items)
    return body


def tensor_digest(tensors: dict[str, Tensor], *texts: str) -> str:
    """Return the SHA-256 of texts and of the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tree(path: Path, tree: Any) -> None:
    """Write a state tree atomically.

    Raises:
        TypeError: for a leaf that is neither a tensor nor JSON, or a key that is no string.
        WorkError: if the disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_split(tree, "t", tensors))
    head = json.dumps({"skeleton": skeleton, "sha256": tensor_digest(tensors, skeleton)})
    try:
        with replacing(path) as temporary:  # one entry: safetensors writes several in random order
            save_file(tensors, str(temporary), metadata={"potstill": head})
    except SafetensorError as error:
        raise WorkError(f"Cannot write {path}: {error}.") from error


def load_tree(path: Path) -> Any:
    """Read a state tree.

    Raises:
        InputError: if the file is missing, truncated or altered.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            meta = json.loads((file.metadata() or {})["potstill"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        skeleton = meta["skeleton"]
        sound = meta["sha256"] == tensor_digest(tensors, skeleton)
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{path} is truncated or not a potstill file ({error}).") from error
    if not sound:
        raise InputError(f"{path} was altered after it was written (its checksum differs).")
    return _join(json.loads(skeleton), tensors)
