"""A distilled set as a folder: set.safetensors, set.json, README.md and preview.png.

set.json names the SHA-256 of set.safetensors and carries a checksum of itself, so neither file
can be altered, by hand or by a bad disk, without notice. README.md and preview.png are for people
and are not read back. Equal sets give equal bytes. Labels of views lie in labels/, a file an epoch,
whose SHA-256 are in set.json; they are hard links to where they were made, if that can be.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.artefact.card import card
from potstill.artefact.labels import LabelPlan
from potstill.artefact.stored import LabelStore
from potstill.artefact.targets import Embedding, Hard, Soft, Targets
from potstill.artefact.types import DistilledSet
from potstill.core.errors import InputError
from potstill.core.files import file_hash, read_json, replacing_folder, write_json, write_text
from potstill.core.spec import canonical, from_json, to_json
from potstill.core.state import load_tree, save_tree
from potstill.core.version import __version__
from potstill.data.zca import Zca, ZcaRef, restored

FORMAT, VERSION = "potstill-set", 1
TENSORS, FACTS, CARD, PREVIEW = "set.safetensors", "set.json", "README.md", "preview.png"
LABELS = "labels"
FIELDS = ("classes", "space", "recipe", "net", "decode", "blocks", "ref", "origin")
STORED = ("plan", "teachers", "digests", "nbytes")
"""What set.json says of labels of views."""
TARGETS = {"hard": Hard, "soft": Soft, "stored": LabelStore, "embedding": Embedding}


def save(distilled: DistilledSet, path: str | Path) -> None:
    """Write a distilled set as a folder, which takes the place of a set already there.

    Raises:
        InputError: if something else is at that path, or labels of views are missing.
        WorkError: if the disk refuses.
    """
    from potstill.artefact.preview import sheet

    target = Path(path).expanduser().resolve()
    strangers = target.is_dir() and {f.name for f in target.iterdir()} - {
        TENSORS, FACTS, CARD, PREVIEW, LABELS,
    }  # fmt: skip
    if strangers or (target.exists() and not target.is_dir()):
        raise InputError(f"{path} holds other things than a distilled set; name a new folder.")
    if isinstance(distilled.targets, LabelStore):
        distilled.targets.check()
    with replacing_folder(target) as folder:
        tensors: dict[str, Any] = {"images": distilled.images}
        own = distilled.targets
        tensors["targets"] = own.kept if isinstance(own, Embedding) else own.values
        if isinstance(own, Soft | Embedding) and own.own is not None:
            tensors["classes"] = own.own
        if isinstance(distilled.space, Zca):
            tensors["space"] = distilled.space.tensors()
        save_tree(folder / TENSORS, tensors)
        if isinstance(distilled.targets, LabelStore):
            stored = distilled.targets
            for own, there in zip(stored.files, _shards(folder, stored.plan), strict=True):
                _linked(own, there)
        _write_facts(distilled, folder)
        sheet(distilled).save(folder / PREVIEW)


def load(path: str | Path) -> DistilledSet:
    """Read a distilled set from its folder, or from the folder of the run that made it.

    Labels of views are read, and checked, when a network is trained on them.

    Raises:
        InputError: if it is missing, truncated, altered, or made for a later potstill.
    """
    folder = _find(path)
    facts = _read_facts(folder / FACTS)
    if not (folder / TENSORS).is_file():
        raise InputError(f"The distilled set in {folder} is incomplete: it has no {TENSORS}.")
    if file_hash(folder / TENSORS) != facts["sha256"]:
        raise InputError(f"{folder / TENSORS} was truncated or altered after it was written.")
    tensors = load_tree(folder / TENSORS)
    try:
        fields = {name: from_json(facts[name]) for name in FIELDS}
        _ = TARGETS[facts["targets"]]
    except (KeyError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise InputError(
            f"The distilled set in {folder} needs something which this version of potstill "
            f"({__version__}) does not have: {reason}."
        ) from error
    try:
        if isinstance(fields["space"], ZcaRef):
            fields["space"] = restored(fields["space"], tensors.get("space", {}))
        targets = _targets(tensors, fields, facts, folder)
        return DistilledSet(images=tensors["images"], targets=targets, **fields)
    except InputError as error:
        raise InputError(f"The distilled set in {folder} is unsound: {error}") from error


def remember(path: str | Path, accuracy: Mapping[str, Any]) -> None:
    """Note a measured accuracy in a saved set: rewrite its facts and its card at once.

    Args:
        path: the folder of the set or of its run.
        accuracy: plain JSON data; takes the place of what was noted before.

    Raises:
        InputError: if the set cannot be loaded, or accuracy is not JSON.
    """
    folder = _find(path).resolve()
    distilled = load(folder)
    origin = replace(distilled.origin, accuracy=canonical(dict(accuracy)))
    with replacing_folder(folder) as fresh:
        shutil.copytree(folder, fresh, dirs_exist_ok=True, copy_function=_linked)
        _write_facts(replace(distilled, origin=origin), fresh)


def _write_facts(distilled: DistilledSet, folder: Path) -> None:
    facts: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    kinds = {kind: name for name, kind in TARGETS.items()}
    facts["targets"] = kinds[type(distilled.targets)]
    if isinstance(distilled.targets, LabelStore):
        facts |= {name: to_json(getattr(distilled.targets, name)) for name in STORED}
    if isinstance(distilled.targets, Embedding):
        facts["encoder"] = to_json(distilled.targets.by)
    records = {name: getattr(distilled, name) for name in FIELDS}
    records["space"] = distilled.space.record()
    facts |= to_json(records)
    facts["sha256"] = file_hash(folder / TENSORS)
    write_json(folder / FACTS, {**facts, "checksum": _checksum(facts)})
    write_text(folder / CARD, card(distilled))


def _targets(
    tensors: dict[str, Any], fields: dict[str, Any], facts: dict[str, Any], folder: Path
) -> Targets:
    """Return the targets that were read."""
    kind = TARGETS[facts["targets"]]
    if kind is Hard:
        return Hard(tensors["targets"])
    if kind is Soft:
        return Soft(tensors["targets"], tensors.get("classes"))
    if kind is Embedding:
        return Embedding(tensors["targets"], tensors.get("classes"), from_json(facts["encoder"]))
    told = {name: from_json(facts[name]) for name in STORED}
    width, files = len(fields["classes"]), _shards(folder, told["plan"])
    return LabelStore(labels=tensors["targets"], width=width, files=files, **told)


def _shards(folder: Path, plan: LabelPlan) -> tuple[Path, ...]:
    """Return where the labels of each epoch lie in the folder of a set."""
    return tuple(folder / LABELS / f"epoch-{e:03}.safetensors" for e in range(plan.epochs))


def _linked(source: str | Path, target: str | Path) -> None:
    """Make a file be there a second time: by a hard link, or else a copy."""
    Path(target).parent.mkdir(exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _checksum(facts: dict[str, Any]) -> str:
    body = {name: value for name, value in facts.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _find(path: str | Path) -> Path:
    base = Path(path).expanduser()
    for folder in (base, base / "distilled"):
        if (folder / FACTS).is_file():
            return folder
    looked = f"{base / FACTS} and {base / 'distilled' / FACTS}"
    raise InputError(f"There is no distilled set at {path}: looked for {looked}.")


def _read_facts(path: Path) -> dict[str, Any]:
    facts = read_json(path)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise InputError(f"{path} does not describe a distilled set of potstill.")
    if facts.get("version") != VERSION:
        raise InputError(
            f"{path} is of version {facts.get('version')} of the format; "
            f"potstill {__version__} reads version {VERSION}."
        )
    if facts.get("checksum") != _checksum(facts):
        raise InputError(f"{path} was altered after it was written (its checksum differs).")
    return facts
