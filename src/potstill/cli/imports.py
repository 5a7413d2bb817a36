"""`potstill import`: distilled sets that others released."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from potstill.cli.expert_flags import ImageFlags
from potstill.cli.flags import one, parse, short
from potstill.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SetFlags(ImageFlags):
    """Flags of `import`."""

    format: str
    """Format of the file; ratbptt-h5 for example."""
    out: Path
    """Folder of the distilled set, a new one."""


def import_command(arguments: list[str]) -> int:
    """Take over a released distilled set: potstill import FILE --format ratbptt-h5 --out DIR."""
    name, rest = one(arguments, "import", "file")
    from potstill.artefact import FORMATS, import_set
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
    FORMATS.get(flags.format)  # refuses a wrong name before anything is read
    if flags.out.exists():
        raise InputError(f"{flags.out} is there already; name a new folder with --out.")
    data = flags.images()
    s = import_set(
        Path(name),
        format=flags.format,
        data=data,
        space=make_space(flags.normaliser, data),
        net=flags.net,
        reading=Reading(resize=flags.resize, fit=flags.fit, classes=flags.classes),
    )
    s.save(flags.out)
    for fact, value in s.origin.method_spec.items():
        if fact in ("epoch", "labels"):
            print(f"{fact}: {value}")
    kind = "class numbers" if s.targets.values.ndim == 1 else "learned weights of the classes"
    print(f"{len(s)} images with {kind} are now the set {flags.out}, for {describe(s.net)};")
    print(f"taken to be in the space of: {s.space.describe()}. Score it:")
    print(f"  potstill evaluate {flags.out} --protocol ratbptt")
    return 0
