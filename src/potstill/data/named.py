"""Image sets known by name: where they come from, and what a user's own copy looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from potstill.core.errors import InputError
from potstill.data.archives import cub, dogs, tiny_imagenet
from potstill.data.folders import open_folder
from potstill.data.hub import open_hub
from potstill.data.layout import existing_folder
from potstill.data.parquet import open_parquet
from potstill.data.types import Parts, Reading
from potstill.data.vision import vision_parts


@dataclass(frozen=True, kw_only=True)
class Named:
    """Describe a known set.

    channels, size: of its images; size None if they differ; classes: how many; hub: its id on the
    Hugging Face Hub, from which it is downloaded; vision: its name in torchvision, which also
    downloads it if there is no id; origin: who gives it away; marker: a file or folder by which
    the layout of its archive (or of torchvision) is known; archive: reads that layout.
    """

    title: str
    channels: int
    size: int | None
    classes: int
    hub: str | None = None
    vision: str | None = None
    origin: str = ""
    marker: str
    archive: Callable[[Path], Parts] | None = None

    @property
    def help(self) -> str:
        """Return one line for people."""
        shape = f"{self.channels}x{self.size}x{self.size}" if self.size else "needs --resize"
        way = "downloaded, or NAME:DIR" if self.hub or self.vision else "NAME:DIR only"
        return f"{self.title}: {self.classes:,} classes, {shape} ({way})"


NAMED: dict[str, Named] = {
    "cifar10": Named(
        title="CIFAR-10",
        channels=3,
        size=32,
        classes=10,
        hub="uoft-cs/cifar10",
        vision="CIFAR10",
        marker="cifar-10-batches-py",
    ),
    "cifar100": Named(
        title="CIFAR-100",
        channels=3,
        size=32,
        classes=100,
        hub="uoft-cs/cifar100",
        vision="CIFAR100",
        marker="cifar-100-python",
    ),
    "svhn": Named(
        title="SVHN, cropped digits",
        channels=3,
        size=32,
        classes=10,
        hub="ufldl-stanford/svhn,cropped_digits",
        vision="SVHN",
        marker="train_32x32.mat",
    ),
    "mnist": Named(
        title="MNIST",
        channels=1,
        size=28,
        classes=10,
        hub="ylecun/mnist",
        vision="MNIST",
        marker="MNIST/raw",
    ),
    "fashion-mnist": Named(
        title="Fashion-MNIST",
        channels=1,
        size=28,
        classes=10,
        hub="zalando-datasets/fashion_mnist",
        vision="FashionMNIST",
        marker="FashionMNIST/raw",
    ),
    "tiny-imagenet": Named(
        title="Tiny-ImageNet",
        channels=3,
        size=64,
        classes=200,
        hub="zh-plus/tiny-imagenet",
        marker="val/val_annotations.txt",
        archive=tiny_imagenet,
    ),
    "imagenet-1k": Named(
        title="ImageNet-1K (ILSVRC 2012)",
        channels=3,
        size=None,
        classes=1000,
        origin="image-net.org",
        marker="train",
    ),
    "cub-200": Named(
        title="CUB-200-2011, birds",
        channels=3,
        size=None,
        classes=200,
        origin="Caltech (CUB_200_2011.tgz)",
        marker="train_test_split.txt",
        archive=cub,
    ),
    "aircraft": Named(
        title="FGVC-Aircraft, 100 variants",
        channels=3,
        size=None,
        classes=100,
        vision="FGVCAircraft",
        marker="fgvc-aircraft-2013b",
    ),
    "dogs": Named(
        title="Stanford Dogs",
        channels=3,
        size=None,
        classes=120,
        origin="Stanford (images.tar and lists.tar of Stanford Dogs)",
        marker="Images",
        archive=dogs,
    ),
    "flowers": Named(
        title="Oxford 102 Flowers",
        channels=3,
        size=None,
        classes=102,
        vision="Flowers102",
        marker="flowers-102",
    ),
}


def open_named(name: str, rest: str, reading: Reading) -> Parts:
    """Return the parts of a known set: downloaded, or from the folder that `rest` names.

    Raises:
        InputError: if images of many sizes are not resized; if there is no download; if the folder
            holds something else.
    """
    known = NAMED[name]
    if known.size is None and reading.resize is None:
        raise InputError(
            f"The images of {known.title} differ in size: add --resize N (in Python resize=N)."
        )
    parts = _own(name, existing_folder(rest, name), reading) if rest else _fetched(name, reading)
    if len(parts.classes) != known.classes:
        raise InputError(
            f"{known.title} has {known.classes} classes, {name}:{rest} has {len(parts.classes)}; "
            "other sets are opened with folder: or parquet:."
        )
    return replace(parts, shape=(known.channels, reading.resize or known.size))


def _fetched(name: str, reading: Reading) -> Parts:
    known = NAMED[name]
    if known.hub:
        try:
            return open_hub(known.hub, reading)
        except InputError as error:
            raise InputError(f"{error} A copy of your own is opened with {name}:DIR.") from error
    if known.vision:
        return vision_parts(known.vision, None)
    raise InputError(
        f"{known.title} is not downloaded by itself: get it from {known.origin}, unpack it and "
        f"write {name}:DIR."
    )


def _own(name: str, folder: Path, reading: Reading) -> Parts:
    """Return the parts of a user's copy, in the first layout that fits."""
    known = NAMED[name]
    if any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet")):
        return open_parquet(str(folder), reading)
    if known.vision:
        root = next((f for f in (folder, folder.parent) if (f / known.marker).exists()), None)
        if root is not None:
            return vision_parts(known.vision, root)
    if known.archive:
        inside = [folder, *(f for f in sorted(folder.iterdir()) if f.is_dir())]
        root = next((f for f in inside if (f / known.marker).exists()), None)
        if root is not None:
            return known.archive(root)
    if (folder / "train").is_dir():
        return open_folder(str(folder), reading)
    raise InputError(
        f"{folder} does not hold {known.title}: expected {known.marker} in it (as its authors pack "
        "it), train-*.parquet, or train/CLASS/ and test/CLASS/."
    )
