"""What versions of labelling and of training on labels share, and whether ours is the plain one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import plain_recover
import torch
from checks import judged
from plain_recover import Labelling
from recover_setting import SPACE, compute_of, net_spec, trained
from torch import Tensor, nn

from potstill.artefact import LabelPlan, LabelStore, label_store, write_labels
from potstill.artefact.labels import epoch_of
from potstill.functional import TrainSpec, fit
from potstill.methods.labelled import ViewLabels
from potstill.nets import FlatNet, NetSpec, build, filled
from potstill.recover.gather import keep_images
from potstill.recover.relabel import FILE, RelabelSpec, relabel
from potstill.teachers import Teacher, keep_teacher

HALF = 2.0**-11
Files = list[list[Path]]
"""Of each epoch, of each batch."""


def of_space(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return mean and standard deviation of the images, [3, 1, 1], for the plain program."""
    parts = {"mean": SPACE.mean, "std": SPACE.std}
    return {name: torch.tensor(part, dtype=dtype).view(3, 1, 1) for name, part in parts.items()}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all versions share; `folder` holds teacher, images and all labels."""

    net: NetSpec
    module: nn.Module
    teacher: Teacher
    images: Tensor
    digest: str
    plan: LabelPlan
    recipe: TrainSpec
    folder: Path
    threads: int

    def fresh(self) -> nn.Module:
        """Return a network to be trained."""
        return student(self.net, self.images.shape[3], self.teacher.classes)


def student(net: NetSpec, side: int, classes: int) -> nn.Module:
    """Return a new network."""
    return build(net, channels=3, size=(side, side), classes=classes, seed=1)


def setting(
    folder: Path,
    *,
    side: int,
    count: int,
    batch: int,
    epochs: int,
    threads: int = 1,
    net: NetSpec | None = None,
) -> Setting:
    """Make the teacher and noise images, and keep both."""
    chosen, classes = net_spec(side)
    net, (own, pictures) = net or chosen, (folder / "teacher", folder / "images")
    for part in (own, pictures):
        part.mkdir()
    module = trained(student(net, side, classes), side, classes)
    chance = torch.Generator().manual_seed(2)
    images = torch.randint(256, (count, 3, side, side), generator=chance, dtype=torch.uint8)
    asked = ViewLabels(epochs=epochs, training=epochs, batch=batch, codes="float16")
    return Setting(
        net=net,
        module=module,
        teacher=keep_teacher(
            module, own, net=net, space=SPACE, shape=(3, side, side), classes=classes
        ),
        images=images,
        digest=keep_images(pictures, images, torch.arange(count) % classes),
        plan=asked.plan(0),
        recipe=asked.recipe,
        folder=folder,
        threads=threads,
    )


def labellings(s: Setting, epoch: int) -> Iterator[Labelling]:
    """Yield the batches of an epoch of ours for the plain program."""
    count, side = len(s.images), s.images.shape[3]
    made = epoch_of(s.plan, epoch, count, (3, side, side))
    for some in made.order.split(s.plan.batch):
        choices = []
        for values in made.crops[some].tolist():
            top, left, height, width, flip, *_ = map(int, values)
            choices.append(plain_recover.Choice((top, left, height, width), bool(flip)))
        place = {row: k for k, row in enumerate(some.tolist())}
        partner = torch.tensor([place[row] for row in made.partner[some].tolist()])
        top, bottom, left, right = made.box[some[0]].tolist()
        yield Labelling(some, choices, partner, (top, bottom, left, right))


def plain_labels(s: Setting, folder: Path, seed: int | None) -> Files:
    """Write the labels of all epochs by the plain program; no seed: with the choices of ours."""
    found, side = [], s.images.shape[3]
    chance = torch.Generator().manual_seed(seed or 0)
    for epoch in range(s.plan.epochs):
        own = folder / str(epoch)
        own.mkdir()
        if seed is None:
            batches = labellings(s, epoch)
        else:
            batches = plain_recover.labellings(len(s.images), side, s.plan.batch, chance)
        found.append(plain_recover.relabel(s.module, s.images, batches, own, **of_space()))
    return found


def our_labels(s: Setting, folder: Path, version: str) -> list[Path]:
    """Write the labels of all epochs by the tasks of a run; return the files."""
    context = {s.teacher.digest: str(s.folder / "teacher"), s.digest: str(s.folder / "images")}
    for epoch in range(s.plan.epochs):
        own = folder / str(epoch)
        own.mkdir()
        spec = RelabelSpec(
            images=s.digest,
            teachers=(s.teacher,),
            space=SPACE,
            plan=s.plan,
            epoch=epoch,
            compute=compute_of(version, threads=s.threads),
        )
        relabel(spec, context, own)
    return [folder / str(epoch) / FILE for epoch in range(s.plan.epochs)]


def store_of(s: Setting, files: Sequence[Path]) -> LabelStore:
    """Return the labels in files of ours."""
    classes = s.teacher.classes
    return label_store(torch.arange(len(s.images)) % classes, s.plan, files, classes=classes)


def plain_training(s: Setting, files: Files, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the weights of a network after training by the plain program."""
    net = s.fresh().to(dtype)
    plain_recover.train(net, s.images, files, **of_space(dtype))
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def our_training(s: Setting, files: Sequence[Path], version: str) -> Tensor:
    """Return the weights of a network after training by potstill; `double`: in float64."""
    double, store = version == "double", store_of(s, files)
    net = FlatNet(s.fresh(), recipe=s.net)
    return fit(
        net,
        net.theta0.double() if double else net.theta0,
        s.images.double() / 255 if double else s.images,
        store.labels,
        s.recipe,
        seed=0,
        prepare=SPACE.forward,
        replay=store.replay((3, s.images.shape[2], s.images.shape[3])),
        compute=compute_of("float32" if double else version, threads=s.threads),
    )


def check_labels(s: Setting) -> float:
    """Return how far stored labels of ours are from the plain ones, in parts of these.

    Raises:
        SystemExit: if it is more than the rounding of float16.
    """
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        store, far = store_of(s, our_labels(s, Path(other), "float32")), 0.0
        for epoch, files in enumerate(plain_labels(s, Path(one), None)):
            for batch, logits in map(plain_recover.stored, files):
                apart = store.logits(epoch, batch.rows) - logits
                far = max(far, float(apart.norm() / logits.norm()))
    if not far < HALF:
        raise SystemExit(f"The labels differ from the plain ones by {far:.1e}.")
    return far


def check_training(*, side: int = 16, width: int = 4) -> float:
    """Return how far 6 steps of ours lead from where the plain ones lead, in parts of their way.

    Raises:
        SystemExit: if it is above 1e-9 in float64.
    """
    net = filled(NetSpec(name="resnet10-bn", width=width))
    with TemporaryDirectory() as name:
        folder = Path(name)
        s = setting(folder, side=side, count=11, batch=4, epochs=2, net=net)
        files, own = plain_labels(s, folder, None), []
        for epoch, batches in enumerate(files):
            logits = torch.empty(len(s.images), s.teacher.classes)
            for batch, found in map(plain_recover.stored, batches):
                logits[batch.rows] = found
            own.append(folder / f"{epoch}.safetensors")
            write_labels(own[-1], logits, s.plan)
        end = plain_training(s, files, dtype=torch.float64)
        start = nn.utils.parameters_to_vector(s.fresh().parameters()).detach()
        return judged(our_training(s, own, "double"), end, end - start, "training")
