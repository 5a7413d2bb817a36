"""Read the expert files of the original MTT code, as plain tensors only.

`replay_buffer_*.pt` is a list of experts; each is a list of epochs + 1 snapshots; each is a list
of tensors in the order of `net.parameters()`. Cazenavette et al., CVPR 2022 (arXiv 2203.11932).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.torchfile import kind_of, read_torch
from potstill.nets import FlatNet


def read_buffer(file: Path, net: FlatNet, name: str) -> Iterator[Tensor]:
    """Yield the snapshots [epochs + 1, P] of each expert in a file, float32 and finite.

    Args:
        file: a file of torch.save.
        net: the network whose parameters they are.
        name: what messages call it.

    Raises:
        InputError: for a file that is damaged or asks for more than tensors, or anything in it
            that is not a snapshot of the network; names the first such place.
    """
    experts = read_torch(file)
    if not isinstance(experts, (list, tuple)) or not experts:
        raise InputError(f"{file} must hold a list of experts, not {kind_of(experts)}.")
    for k, snapshots in enumerate(experts):
        where = f"{file}, expert {k}"
        if not isinstance(snapshots, (list, tuple)) or len(snapshots) < 2:
            raise InputError(
                f"{where} must be a list of at least 2 snapshots (before and after epoch 1), not "
                f"{kind_of(snapshots)}."
            )
        rows = torch.empty(len(snapshots), net.numel)
        for epoch, tensors in enumerate(snapshots):
            _check(tensors, net, name, f"{where}, epoch {epoch}")
            rows[epoch] = torch.cat([tensor.detach().flatten().float() for tensor in tensors])
        finite = torch.isfinite(rows).all(1)
        if not bool(finite.all()):
            epoch = int((~finite).nonzero()[0])
            raise InputError(f"{where}, epoch {epoch} holds numbers that are not finite.")
        yield rows


def _check(tensors: Any, net: FlatNet, name: str, where: str) -> None:
    """Refuse a snapshot that is not the parameters of the network."""
    if not isinstance(tensors, (list, tuple)):
        raise InputError(f"{where} must be a list of tensors, not {kind_of(tensors)}.")
    wanted = zip(net.names, net.shapes, strict=True)
    for k, (want, found) in enumerate(zip_longest(wanted, tensors)):
        if found is not None and not isinstance(found, Tensor):
            raise InputError(f"{where}: parameter {k} must be a tensor, not {kind_of(found)}.")
        if found is None or want is None or found.shape != want[1]:
            expected = "nothing" if want is None else f"{want[0]} {list(want[1])}"
            has = "nothing" if found is None else list(found.shape)
            raise InputError(
                f"{where}: parameter {k} of {name} should be {expected}, the file has {has}; say "
                "which network was trained with --net.name, --net.width and so on."
            )
        if not found.is_floating_point():
            raise InputError(f"{where}: parameter {k} has the type {found.dtype}, not float.")
        if found.layout != torch.strided or found.is_meta:
            raise InputError(
                f"{where}: parameter {k} is not a plain tensor that holds its numbers."
            )
