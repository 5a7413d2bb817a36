"""Targets of experts: what an encoder says of each training image, one file in the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.files import read_json, write_json
from potstill.core.spec import from_json, to_json
from potstill.core.state import load_tree, save_tree
from potstill.data import DataRef

TARGETS = "targets"
"""Under what the store files them."""
_FILE, _FACTS = "targets.safetensors", "targets.json"


def write_targets(
    folder: Path,
    values: Tensor,
    *,
    data: DataRef,
    mean: Tensor,
    std: Tensor,
    facts: Mapping[str, Any],
) -> None:
    """Write targets [N, D] of the training images of some data, in their order.

    `mean` and `std` [D] are those of the features before anything was done to them.

    Raises:
        WorkError: if the disk refuses.
    """
    save_tree(folder / _FILE, {"values": values, "mean": mean, "std": std})
    told = {"data": to_json(data), "shape": list(values.shape), **facts}
    write_json(folder / _FACTS, told)


def read_targets(folder: Path, *, data: DataRef, width: int | None = None) -> Tensor:
    """Return the targets in a folder, float32 [N, D]: row i is of training image i of the data.

    Raises:
        InputError: if there are none, or they belong to other data, or have another width than
            the one named, or were altered.
    """
    targets_width(folder, data=data, width=width)
    return load_tree(folder / _FILE)["values"]


def targets_width(folder: Path, *, data: DataRef, width: int | None = None) -> int:
    """Return the dimensions D of the targets in a folder, of which only the facts are read.

    Raises:
        InputError: if there are none, or they belong to other data, or have another width than
            the one named.
    """
    facts = targets_facts(folder)
    own = from_json(facts["data"])
    if own != data:
        whose = "another part of the data" if own.identity == data.identity else "another data set"
        raise InputError(
            f"The targets in {folder} belong to {whose} ({own.identity[:12]}, not "
            f"{data.identity[:12]})."
        )
    wide = facts["shape"][1]
    if width not in (None, wide):
        raise InputError(
            f"The targets in {folder} have {wide} dimensions, not {width} as those asked for."
        )
    return wide


def read_moments(folder: Path) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [D] of the features that the targets were made of.

    Raises:
        InputError: as `read_targets`.
    """
    found = load_tree(folder / _FILE)
    return found["mean"], found["std"]


def targets_facts(folder: Path) -> dict[str, Any]:
    """Return what was noted about the targets in a folder: data, shape, encoder, scale, seconds.

    Raises:
        InputError: if there are none.
    """
    facts = read_json(folder / _FACTS)
    if not isinstance(facts, dict) or not {"data", "shape"} <= facts.keys():
        raise InputError(f"{folder / _FACTS} does not describe targets.")
    return facts
