"""`potstill import`: distilled sets that others released."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from potstill.cli.expert_flags import ImageFlags
from potstill.cli.flags import one, parse, short
from potstill.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SetFlags(ImageFlags):
    """Flags of `import`."""

    format: str
    """Format of the file: idc, dc, ratbptt-h5, pdd-idc; of a folder: pdd-mtt, recovered, rded."""
    factor: int | None = None
    """Of idc and pdd-idc: cells a side into which each image is cut; 1 = none (IDC-I)."""
    decoder: Literal["single", "multi", "bound"] | None = None
    """Of idc and pdd-idc: all cells at this factor (the default, as published sets are scored), at
    every factor from 1 to it, or at most 128 images of a class."""
    experiment: int | None = None
    """Of dc: which of the sets in the file, from 0; the last by default."""
    augment: str | None = None
    """Of idc and pdd-idc: augmentation of training on the set: idc:color_crop_scale_rotate for
    digits (MNIST, SVHN), which are not mirrored. By default with flips; of one channel it must be
    named."""
    cutmix: float | None = None
    """Of idc and pdd-idc: the part of training steps whose images are mixed, by default 0.5; 0 for
    MNIST with a factor above 1."""
    stages: int | None = None
    """Of pdd-idc: how many stages the file holds, if its name does not say so (interval_4_data.pt
    holds five)."""
    labels: Path | None = None
    """Of recovered: a folder of a teacher's labels of augmented images (FKD), a folder an epoch."""
    out: Path
    """Folder of the distilled set, a new one."""


def import_command(arguments: list[str]) -> int:
    """Take over a released distilled set: potstill import FILE --format idc --out DIR."""
    name, rest = one(arguments, "import", "file")
    from potstill.artefact import FORMATS, LabelStore, Told, import_set
    from potstill.artefact.imports import checked
    from potstill.augment import text_of
    from potstill.data import Reading, make_space
    from potstill.nets import NetSpec, describe

    formats = "; ".join(f"{n}: {FORMATS.get(n).help}" for n in FORMATS.names())
    text = (
        "Make a distilled set of a file of another program, to be scored and used like any other. "
        f"Formats: {formats}."
    )
    net = ("net", NetSpec, dataclasses.field(default=NetSpec(name="auto")))
    flags_of = dataclasses.make_dataclass(
        "Flags",
        [net],
        bases=(SetFlags,),
        namespace={"__module__": __name__},
        frozen=True,
        kw_only=True,
    )
    flags = parse(flags_of, short(rest), name="import FILE", text=text)
    told = Told(**{part.name: getattr(flags, part.name) for part in dataclasses.fields(Told)})
    kind = checked(flags.format, told)  # refuses wrong flags before anything is read
    if flags.out.exists():
        raise InputError(f"{flags.out} is there already; name a new folder with --out.")
    data = flags.images()
    s = import_set(
        Path(name),
        format=flags.format,
        data=data,
        space=make_space(flags.normaliser, data),
        net=flags.net,
        told=told,
        reading=Reading(resize=flags.resize, fit=flags.fit, classes=flags.classes),
    )
    s.save(flags.out)
    for fact, value in s.origin.method_spec.items():
        if fact in ("epoch", "labels", "experiment", "stages", "step sizes", "images a class"):
            print(f"{fact}: {value}")
    labels = "class numbers" if s.targets.values.ndim == 1 else "learned weights of the classes"
    if isinstance(s.targets, LabelStore):
        labels = f"a teacher's labels of {s.targets.plan.epochs} epochs"
    print(f"{len(s)} images with {labels} are now the set {flags.out}, for {describe(s.net)};")
    if (count := len(s.decode.index(s.targets.classes))) != len(s):
        print(f"cut into {count} training images;")
    if "augment" in kind.takes:
        mixed = s.recipe.mix.prob if s.recipe.mix else 0
        print(f"trained on with the augmentation {text_of(s.recipe.augment)}, CutMix {mixed:g};")
    space = "pixels, normalised now by" if kind.raw else "in the space of"
    print(f"taken to be {space}: {s.space.describe()}. Score it:")
    rules = "" if isinstance(s.targets, LabelStore) else kind.published_by(s.shape)
    print(f"  potstill evaluate {flags.out}{rules and f' --protocol {rules}'}")
    return 0
