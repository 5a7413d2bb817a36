"""Labels of views that a set brings: a teacher's logits, in files of one epoch each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from potstill.artefact.labels import Epoch, LabelPlan, epoch_of, views
from potstill.artefact.quantise import packed, unpacked
from potstill.core.errors import InputError
from potstill.core.files import file_hash
from potstill.core.state import load_tree, save_tree
from potstill.functional.advance import Inputs, Replay, Replayed

_VIEWS = tuple(part.name for part in fields(Epoch))


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelStore:
    """A class for each image, and a teacher's logits of its view in every epoch of a plan.

    `files` are looked at when their epoch is trained on, not before; `digests` are the SHA-256 of
    each, `nbytes` the bytes of all. Make one by `label_store`.
    """

    labels: Tensor
    """Class of each image, int64 [N]."""
    plan: LabelPlan
    width: int
    """Classes of the logits."""
    teachers: tuple[str, ...] = ()
    """Digests of the teachers that gave the labels; none if they are not known."""
    files: tuple[Path, ...]
    digests: tuple[str, ...]
    nbytes: int

    @property
    def values(self) -> Tensor:
        """Return the class of each image, int64 [N]."""
        return self.labels

    @property
    def classes(self) -> Tensor:
        """Return the class of each image, int64 [N]."""
        return self.labels

    def logits(self, epoch: int, rows: Tensor | None = None) -> Tensor:
        """Return what the teacher said in an epoch from 0 on: float32 [N, K], or of some rows.

        Raises:
            InputError: if the file of that epoch is missing or altered.
        """
        return _logits(self._read(epoch), self.plan, self.width, rows)

    def replay(self, shape: tuple[int, int, int]) -> Replay:
        """Return the epochs of a training on images of shape (C, H, W), for `fit`'s `replay`.

        Raises:
            InputError: by the epoch, if its file is missing or altered.
        """

        def replayed(epoch: int) -> Replayed:
            parts = self._read(epoch)
            if told := {name: parts[name] for name in _VIEWS if name in parts}:
                made = Epoch(**told)
            else:
                made = epoch_of(self.plan, epoch, len(self.labels), shape)

            def batch(rows: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
                x = views(self.plan, made, rows, inputs)
                return x, _logits(parts, self.plan, self.width, rows)

            return Replayed(order=made.order, batch=batch)

        return replayed

    def check(self) -> None:
        """Refuse a store of which a file is missing.

        Raises:
            InputError: naming the first one.
        """
        for epoch, file in enumerate(self.files):
            if not file.is_file():
                raise self._cut_short(epoch, "are missing")

    def _read(self, epoch: int) -> dict[str, Tensor]:
        epoch %= self.plan.epochs
        file = self.files[epoch]
        if not file.is_file():
            raise self._cut_short(epoch, "are missing")
        if file_hash(file) != self.digests[epoch]:
            raise self._cut_short(epoch, "were truncated or altered")
        parts: dict[str, Tensor] = load_tree(file)
        if len(parts["codes"]) != len(self.labels):
            raise self._cut_short(epoch, f"are of {len(parts['codes'])} images")
        return parts

    def _cut_short(self, epoch: int, what: str) -> InputError:
        return InputError(
            f"The labels of epoch {epoch} of {self.plan.epochs} (0 to {self.plan.epochs - 1}) "
            f"{what} ({self.files[epoch]}); put them back, or train the set on its classes "
            "(`hardened`, the regime hard) or by its teacher (the regime online)."
        )


def write_labels(
    file: Path, logits: Tensor | dict[str, Tensor], plan: LabelPlan, epoch: Epoch | None = None
) -> None:
    """Write the labels of one epoch: floating logits [N, K] by the row of the image.

    They may be packed in the plan's form before (`quantise.packed_rows`). `epoch` are the views
    themselves, where these do not follow from the plan's seed (labels that another program made).

    Raises:
        InputError: for logits that cannot be kept in the plan's form.
        WorkError: if the disk refuses.
    """
    told = {} if epoch is None else {name: getattr(epoch, name) for name in _VIEWS}
    told = {name: part for name, part in told.items() if part is not None}
    parts = packed(logits, plan.codes) if isinstance(logits, Tensor) else logits
    save_tree(file, {**parts, **told})


def read_labels(file: Path, plan: LabelPlan, classes: int, rows: Tensor | None = None) -> Tensor:
    """Return the logits in a file of one epoch: float32 [N, K], or of some rows.

    Raises:
        InputError: if the file is missing, truncated or altered, or of other classes.
    """
    return _logits(load_tree(file), plan, classes, rows)


def _logits(parts: dict[str, Tensor], plan: LabelPlan, classes: int, rows: Tensor | None) -> Tensor:
    found = {name: part for name, part in parts.items() if name not in _VIEWS}
    if rows is not None:
        found = {name: part[rows] for name, part in found.items()}
    return unpacked(found, plan.codes, classes)


def label_store(
    labels: Tensor,
    plan: LabelPlan,
    files: Sequence[Path],
    *,
    classes: int,
    teachers: tuple[str, ...] = (),
) -> LabelStore:
    """Return the labels of a set from the files that `write_labels` wrote.

    Args:
        labels: class of each image, int64 [N].
        plan: of the labels.
        files: one an epoch of the plan, in order.
        classes: of the logits.
        teachers: digests of the teachers that gave them, if they are known.

    Raises:
        InputError: if there is another number of files than epochs, or a file cannot be read.
    """
    if len(files) != plan.epochs:
        raise InputError(f"Labels of {plan.epochs} epochs are as many files, not {len(files)}.")
    files = tuple(file.absolute() for file in files)
    if absent := [file for file in files if not file.is_file()]:
        raise InputError(f"There is no file {absent[0]}.")
    return LabelStore(
        labels=labels.to(torch.int64),
        plan=plan,
        width=classes,
        teachers=teachers,
        files=files,
        digests=tuple(file_hash(file) for file in files),
        nbytes=sum(file.stat().st_size for file in files),
    )
