"""State trees: nested dicts, lists and tuples of tensors and JSON values, one file each.

The file is a safetensors file; its header holds the skeleton of the tree and a SHA-256 of
skeleton and tensor bytes, so a truncated or altered file is refused, and no pickle is read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.files import replacing

if TYPE_CHECKING:
    import numpy as np

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNED = 64  # bytes; where torch's tensors on a CPU begin
_MAPPED = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "u1"}


@dataclass(frozen=True, eq=False)
class Blocks:
    """Stand in a tree for a uint8 tensor that is never whole in memory.

    `arrays` yields its bytes in order, once: contiguous uint8 arrays of any size.
    """

    shape: tuple[int, ...]
    arrays: Iterable[np.ndarray]
    dtype: torch.dtype = torch.uint8


def _split(tree: Any, name: str, tensors: dict[str, Tensor | Blocks]) -> Any:
    if isinstance(tree, (Tensor, Blocks)):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, dict):
        if not all(isinstance(k, str) for k in tree):
            raise TypeError(f"The keys of a state tree are strings, unlike those of {name}.")
        return {"dict": {k: _split(v, f"{name}.{k}", tensors) for k, v in tree.items()}}
    if isinstance(tree, (list, tuple)):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [_split(v, f"{name}.{i}", tensors) for i, v in enumerate(tree)]}
    return {"value": tree}


def _join(skeleton: Any, tensors: Mapping[str, Any]) -> Any:
    ((kind, body),) = skeleton.items()
    if kind == "tensor":
        return tensors[body]
    if kind == "dict":
        return {k: _join(v, tensors) for k, v in body.items()}
    if kind in ("list", "tuple"):
        items = [_join(v, tensors) for v in body]
        return items if kind == "list" else tuple(items)
    return body


def digest_head(name: str, leaf: Tensor | Blocks) -> bytes:
    """Return what `tensor_digest` hashes of a tensor before its bytes."""
    return f"{name}:{leaf.dtype}:{list(leaf.shape)}".encode()


def _arrays(leaf: Tensor | Blocks) -> Iterator[np.ndarray]:
    if isinstance(leaf, Blocks):
        yield from leaf.arrays
    else:
        yield leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def tensor_digest(tensors: Mapping[str, Tensor | Blocks], *texts: str) -> str:
    """Return the SHA-256 of texts and of the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256("".join(texts).encode())
    for name in sorted(tensors):
        digest.update(digest_head(name, tensors[name]))
        for array in _arrays(tensors[name]):
            digest.update(array.data)
    return digest.hexdigest()


def _header(
    leaves: Mapping[str, Tensor | Blocks], skeleton: str, checksum: str
) -> tuple[bytes, dict[str, int]]:
    """Return the head of a safetensors file and where in the file each tensor begins."""
    head = json.dumps({"skeleton": skeleton, "sha256": checksum})
    table: dict[str, Any] = {"__metadata__": {"potstill": head}}
    end = 0
    for name in sorted(leaves, key=lambda name: (-leaves[name].dtype.itemsize, name)):
        leaf, start = leaves[name], end
        if leaf.dtype not in _TYPES:
            raise TypeError(f"A state tree cannot hold a tensor of type {leaf.dtype}.")
        end += math.prod(leaf.shape) * leaf.dtype.itemsize
        table[name] = {
            "dtype": _TYPES[leaf.dtype],
            "shape": list(leaf.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    starts = {name: first + table[name]["data_offsets"][0] for name in leaves}
    return len(text).to_bytes(8, "little") + text, starts


def save_tree(path: Path, tree: Any) -> None:
    """Write a state tree atomically; the arrays of `Blocks` are read in the order of their names.

    Raises:
        TypeError: for a leaf that is neither a tensor nor JSON, or a key that is no string.
        WorkError: if the disk refuses.
    """
    leaves: dict[str, Tensor | Blocks] = {}
    skeleton = json.dumps(_split(tree, "t", leaves))
    head, starts = _header(leaves, skeleton, "0" * 64)
    digest = hashlib.sha256(skeleton.encode())
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(head)
        for name in sorted(leaves):
            digest.update(digest_head(name, leaves[name]))
            file.seek(starts[name])
            for array in _arrays(leaves[name]):
                digest.update(array.data)
                file.write(array.data)
        file.seek(0)
        file.write(_header(leaves, skeleton, digest.hexdigest())[0])


def load_tree(path: Path) -> Any:
    """Read a state tree; its tensors begin where torch's own do.

    Kernels add up in another order from other places, so that a state that is read computes the
    bytes of the one that was written.

    Raises:
        InputError: if the file is missing, truncated or altered.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            meta = json.loads((file.metadata() or {})["potstill"])
            tensors = {name: _aligned(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        skeleton = meta["skeleton"]
        sound = meta["sha256"] == tensor_digest(tensors, skeleton)
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{path} is truncated or not a potstill file ({error}).") from error
    if not sound:
        raise InputError(f"{path} was altered after it was written (its checksum differs).")
    return _join(json.loads(skeleton), tensors)


def _aligned(tensor: Tensor) -> Tensor:
    return tensor if tensor.data_ptr() % _ALIGNED == 0 else tensor.clone()


def map_tree(path: Path) -> Any:
    """Read a state tree with read-only NumPy arrays in the file for tensors: unread until used.

    Only the header and the size of the file are checked. A mapping that cannot be written to may
    be larger than the memory of the machine, other than that of `load_tree`.

    Raises:
        InputError: if the file is missing or truncated, or holds other types of tensors.
    """
    import numpy as np

    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            first = 8 + int.from_bytes(file.read(8), "little")
            table = json.loads(file.read(min(first, size) - 8))
        skeleton = json.loads(json.loads(table.pop("__metadata__")["potstill"])["skeleton"])
        end = max((entry["data_offsets"][1] for entry in table.values()), default=0)
        if size != first + end:
            raise ValueError(f"it should have {first + end} bytes")
        arrays = {
            name: np.memmap(
                path,
                dtype=_MAPPED[entry["dtype"]],
                mode="r",
                offset=first + entry["data_offsets"][0],
                shape=tuple(entry["shape"]),
            )
            if 0 not in entry["shape"]  # of which no file can be mapped
            else np.empty(entry["shape"], _MAPPED[entry["dtype"]])
            for name, entry in table.items()
        }
        return _join(skeleton, arrays)
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except (KeyError, TypeError, ValueError, OSError, AttributeError) as error:
        raise InputError(f"{path} is truncated or not a potstill file ({error}).") from error
