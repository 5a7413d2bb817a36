"""What a task that trains a network notes on the way."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from potstill.engine.progress import progress


class Watch:
    """The losses of a training of so many epochs, and a clock from now on; it tells progress."""

    def __init__(self, epochs: int) -> None:
        self.epochs, self.losses = epochs, list[float]()
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def epoch(self, epoch: int, theta: Tensor, loss: float) -> None:
        """Note an epoch, as `fit` tells it."""
        self.losses.append(loss)
        progress(epoch + 1, self.epochs, "epoch")

    def facts(self, context: Mapping[str, str]) -> dict[str, Any]:
        """Return source of the data, losses, version of torch and seconds so far."""
        return {
            "source": context.get("source"),
            "train_loss": self.losses,
            "torch": torch.__version__,
            "seconds": time.perf_counter() - self._clock,
            "cpu_seconds": time.process_time() - self._cpu,
        }
