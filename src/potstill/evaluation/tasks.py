"""One evaluation task: train one fresh network on some images and measure it."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from potstill.core.files import write_json
from potstill.core.usage import peak_memory
from potstill.data import DataRef, Pixels, SpaceSpec, moved, open_space, prepared, reopen
from potstill.evaluation.lessons import Lesson, lesson_of
from potstill.evaluation.specs import Distilled, EvalSpec, among
from potstill.functional import accuracy, fit, fresh, predict
from potstill.functional.train import Prepare
from potstill.nets import FlatNet

__all__ = ["Distilled", "EvalSpec", "evaluate_one"]


def evaluate_one(spec: EvalSpec, context: dict[str, str], folder: Path) -> None:
    """Train one network, last epoch, and write `result.json`.

    It holds `val` and `test` (accuracies, fractions), `steps`, `target_bytes`, `teacher_bytes` (of
    teachers online), `label_bytes` (of views), `seconds`, `cpu_seconds` and `peak_bytes` (the most
    memory that the process held so far); `marks` with `epochs`, `val` and `test` of each.
    context[digest] is the folder of the distilled set, or teacher, of that digest;
    context["store"] the store with experts and labels.

    Raises:
        InputError: if the set or teacher in its folder is not the one of the spec.
    """
    data, lesson = reopen(spec.data), lesson_of(spec, context)
    net = fresh(spec.net, data, seed=spec.seed, key=("evaluate",))
    theta, marks, (seconds, cpu_seconds) = _trained(spec, net, lesson)
    result = {
        **_measured(spec, net, theta),
        "steps": spec.train.steps(len(lesson.images), lesson.ends),
        "target_bytes": lesson.targets.nbytes,
        "teacher_bytes": lesson.teacher_bytes,
        "label_bytes": lesson.label_bytes,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak_memory(),
        "marks": marks,
    }
    write_json(folder / "result.json", result)


def _trained(
    spec: EvalSpec, net: FlatNet, lesson: Lesson
) -> tuple[Tensor, list[dict[str, float]], list[float]]:
    """Return the weights, what was measured at each mark, and seconds and CPU seconds without."""
    marks, spent = [], [0.0, 0.0]

    def tick(sign: int) -> None:
        spent[0] += sign * time.perf_counter()
        spent[1] += sign * time.process_time()

    def on_epoch(epoch: int, theta: Tensor, _: float) -> None:
        if epoch + 1 in spec.marks:
            tick(1)
            marks.append({"epochs": epoch + 1, **_measured(spec, net, theta)})
            tick(-1)

    tick(-1)
    theta = fit(
        net,
        net.theta0.to(torch.device(spec.compute.device)),
        lesson.images,
        lesson.targets,
        spec.train,
        seed=spec.seed,
        key=("evaluate",),
        places=lesson.places,
        prepare=lesson.prepare,
        on_epoch=on_epoch if spec.marks else None,
        view=lesson.view,
        teach=lesson.teach,
        replay=lesson.replay,
        compute=spec.compute,
    )
    if theta.device.type == "cuda":
        torch.cuda.synchronize()
    tick(1)
    return theta, marks, spent


def _measured(spec: EvalSpec, net: FlatNet, theta: Tensor) -> dict[str, float]:
    """Return the accuracies on the validation and the test part, or their images of seen classes.

    Of the latter the largest logit of a seen class counts.
    """
    data, found = reopen(spec.data), {}
    for part in ("val", "test"):
        pixels, prepare = _pixels(spec.data, part, spec.space, spec.compute.device)
        labels, compute = getattr(data, part).labels, spec.compute
        if spec.seen is None:
            found[part] = accuracy(net, theta, pixels, labels, prepare=prepare, compute=compute)
            continue
        rows, seen = among(labels, spec.seen), torch.tensor(spec.seen)
        logits = predict(net, theta, pixels[rows], prepare=prepare, compute=compute).cpu()
        right = seen[logits[:, seen].argmax(1)] == labels[rows]
        found[part] = float(right.double().mean())
    return found


@lru_cache(maxsize=2)
def _pixels(
    ref: DataRef, part: str, space: SpaceSpec, device: str
) -> tuple[Pixels, Prepare | None]:
    """Return the images of a part as `prepared`, once a process."""
    pixels, prepare = prepared(open_space(space), getattr(reopen(ref), part).pixels)
    return moved(pixels, device), prepare
