"""Scores of the training images by networks that are trained on them, one task a network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.files import write_json
from potstill.core.spec import record
from potstill.coresets.rules import error_norms, forgotten
from potstill.data import DataSet, Space, moved, open_space, prepared, reopen
from potstill.engine import Tasks
from potstill.experts import ExpertPlan, ExpertSpec, expert_tasks
from potstill.functional import fit, fresh, predict
from potstill.nets import NetSpec

Score = Literal["forgetting", "el2n"]
_FILE = "scores.safetensors"
_PART = 4096  # images whose logits are in memory at a time


@record
@dataclass(frozen=True, kw_only=True)
class ScoreSpec:
    """The scores by one network: everything that they depend on."""

    score: Score
    network: ExpertSpec
    """The network and its training, as an expert's."""
    revision: int = 2
    """Raised when the code changes what the scores become, so that old ones are not reused."""

    @property
    def compute(self) -> Compute:
        """Return how the task is computed."""
        return self.network.compute


def score_tasks(
    score: Score,
    plan: ExpertPlan,
    data: DataSet,
    space: Space,
    net: NetSpec,
    *,
    seed: int,
    compute: Compute,
) -> Tasks:
    """Return one task a network; network k of a seed is the same however many there are.

    Raises:
        InputError: for networks that learn anything but classes; as `expert_tasks`.
    """
    if plan.objective != "ce":
        raise InputError(f"Scores are of networks of objective 'ce', not {plan.objective!r}.")
    networks = expert_tasks(plan, data, space, net, seed=seed, compute=compute).specs
    specs = tuple(ScoreSpec(score=score, network=network) for network in networks)
    return Tasks(kind="scores", fn=score_images, specs=specs, label="scores")


def score_images(spec: ScoreSpec, context: dict[str, str], folder: Path) -> None:
    """Train one network and write a score of each training image (float64 [N]) into the folder.

    forgetting: `forgotten` of what the network classifies correctly after each epoch; el2n:
    `error_norms` after the last epoch.

    Differs: Toneva et al. count what is correct in the augmented minibatches during each epoch;
    here all images are classified after it, in evaluation mode and without augmentation.

    Raises:
        WorkError: if the parameters stop being finite.
    """
    network = spec.network
    data = reopen(network.data)
    net = fresh(network.net, data, seed=network.seed, key=("scores", network.index))
    compute, device = spec.compute, torch.device(spec.compute.device)
    pixels, prepare = prepared(open_space(network.space), data.train.pixels)
    pixels, labels = moved(pixels, device), data.train.labels.to(device)

    def judged(theta: Tensor, judge: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        def logits(x: Tensor) -> Tensor:
            return predict(net, theta, x, prepare=prepare, compute=compute)

        parts = zip(pixels.split(_PART), labels.split(_PART), strict=True)
        return torch.cat([judge(logits(x), y) for x, y in parts]).cpu()

    correct: list[Tensor] = []

    def look(epoch: int, theta: Tensor, loss: float) -> None:
        correct.append(judged(theta, lambda logits, of: logits.argmax(1) == of))

    clock, cpu = time.perf_counter(), time.process_time()
    theta = fit(
        net,
        net.theta0.to(device),
        pixels,
        labels,
        network.train,
        seed=network.seed,
        key=("scores", network.index),
        prepare=prepare,
        on_epoch=look if spec.score == "forgetting" else None,
        compute=compute,
    )
    if not bool(theta.isfinite().all()):
        raise WorkError(
            f"Network {network.index} diverged; lower its step size (now {network.train.lr:g})."
        )
    scores = forgotten(torch.stack(correct)) if correct else judged(theta, error_norms)
    facts = {
        "mean_score": float(scores.mean()),
        "torch": torch.__version__,
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
    }
    _write(folder, scores, facts)


def _write(folder: Path, scores: Tensor, facts: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file({"scores": scores}, str(folder / _FILE))
    write_json(folder / "scores.json", facts)


@lru_cache(maxsize=1)
def mean_scores(folders: tuple[Path, ...]) -> Tensor:
    """Return the mean over networks of the scores in their folders: float64 [N].

    Raises:
        InputError: if a file is missing or truncated.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return torch.stack([load_file(str(f / _FILE))["scores"] for f in folders]).mean(0)
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{folders[0].parent} holds scores that cannot be read.") from error
