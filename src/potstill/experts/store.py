"""Trajectories on disk: one memory-mapped array [epochs + 1, P] an expert, and its facts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.files import read_json, write_json


def write_trajectory(folder: Path, rows: Tensor, facts: dict[str, Any]) -> None:
    """Write the snapshots [epochs + 1, P] and the facts of one expert."""
    from safetensors.torch import save_file

    save_file({"theta": rows.contiguous()}, str(folder / "trajectory.safetensors"))
    write_json(folder / "expert.json", facts)


@dataclass(frozen=True)
class Trajectory:
    """One expert's snapshots; rows are read from disk one by one."""

    folder: Path

    @property
    def shape(self) -> tuple[int, int]:
        """Return (epochs + 1, P)."""
        from safetensors import SafetensorError, safe_open

        path = self.folder / "trajectory.safetensors"
        try:
            with safe_open(str(path), framework="pt") as file:
                rows, numel = file.get_slice("theta").get_shape()
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{path} is missing, truncated or not a trajectory.") from error
        return rows, numel

    def row(self, epoch: int) -> Tensor:
        """Return the parameters [P] after `epoch` epochs (0 = initial) and read nothing else."""
        from safetensors import SafetensorError, safe_open

        path = self.folder / "trajectory.safetensors"
        try:
            with safe_open(str(path), framework="pt") as file:
                theta = file.get_slice("theta")
                last = theta.get_shape()[0] - 1
                if not 0 <= epoch <= last:
                    raise InputError(f"{path} holds epochs 0 to {last}, not {epoch}.")
                return theta[epoch : epoch + 1][0].clone()
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is missing, truncated or not a trajectory.") from error

    @property
    def facts(self) -> dict[str, Any]:
        """Return what was noted when the expert was trained."""
        return read_json(self.folder / "expert.json")
