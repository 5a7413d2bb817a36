"""Image sets of the Hugging Face Hub that are stored there as parquet files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from potstill.core.errors import InputError
from potstill.core.files import read_json, write_json
from potstill.core.store import default_cache, need_room
from potstill.data.layout import TEST_NAMES
from potstill.data.parquet import parquet_parts
from potstill.data.types import Parts, Reading

_CONVERTED = "refs/convert/parquet"
"""The branch on which the Hub keeps a copy in parquet of sets in other formats."""


@dataclass(frozen=True, kw_only=True)
class _Repo:
    """What a repository holds at a commit."""

    id: str
    commit: str
    sizes: Mapping[str, int]
    """Bytes of each parquet file."""
    configs: tuple[Mapping[str, Any], ...]
    """What its card says of configurations."""


def open_hub(rest: str, reading: Reading) -> Parts:
    """Return the parts of "ID", "ID,CONFIG" or "ID,CONFIG?label=COLUMN"; downloads once.

    Without a network a set that was downloaded before is used as it was then.

    Raises:
        InputError: if the set or its configuration is unknown, needs permission, is not stored as
            parquet or holds no images; if neither network nor an earlier download is there; if
            the disk is too small.
    """
    match = re.fullmatch(r"([^,?]+)(?:,([^?]+))?(?:\?label=(.+))?", rest)
    if match is None:
        raise InputError(f"A set of the Hub is named hf:ID or hf:ID,CONFIG, not {rest!r}.")
    repo = _repo(match[1])
    chosen = _chosen(repo, match[2])
    where = f"hf:{repo.id}"
    if "train" not in chosen:
        raise InputError(f"{where} has no part 'train' (it has: {', '.join(chosen) or 'none'}).")
    wanted = {name: chosen[name] for name in ("train", *TEST_NAMES) if name in chosen}
    return parquet_parts(_downloaded(repo, wanted), where, label=match[3])


def _repo(name: str) -> _Repo:
    """Return what the Hub says of a set, or said last if it does not answer."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    note = default_cache() / "data" / "hub" / f"{name.replace('/', '--')}.json"
    try:
        found = _asked(name)
    except GatedRepoError as error:
        raise _gated(name) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"There is no data set {name!r} on the Hugging Face Hub, or it is private: then "
            "`hf auth login` gives access."
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"hf:{name} is not stored as parquet; download it with `hf download {name} "
            "--repo-type dataset --local-dir DIR` and open what is in DIR."
        ) from error
    except Exception as error:  # what a missing network raises differs between versions
        try:
            return _Repo(**read_json(note))
        except (InputError, TypeError):
            raise InputError(
                f"hf:{name} was not downloaded before, and the Hugging Face Hub does not give it "
                f"now ({_line(error)})."
            ) from error
    write_json(note, dict(vars(found)))
    return found


def _asked(name: str) -> _Repo:
    from huggingface_hub import HfApi

    for revision in (None, _CONVERTED):
        info = HfApi().dataset_info(name, revision=revision, files_metadata=True)
        sizes = {
            item.rfilename: item.size or 0
            for item in info.siblings or ()
            if item.rfilename.endswith(".parquet")
        }
        if sizes or revision:
            break
    card = info.card_data.to_dict() if info.card_data is not None and not revision else {}
    configs = [item for item in card.get("configs") or () if "data_files" in item]
    return _Repo(id=name, commit=info.sha or "", sizes=sizes, configs=tuple(configs))


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _gated(name: str) -> InputError:
    return InputError(
        f"hf:{name} is only for people who accepted its terms: accept them on its page of the "
        "Hugging Face Hub, then sign in with `hf auth login`."
    )


def _chosen(repo: _Repo, config: str | None) -> dict[str, list[str]]:
    """Return the parquet files of each part of a configuration."""
    if not repo.configs:
        return _by_name(repo, config)
    named = {str(item.get("config_name", "default")): item for item in repo.configs}
    marked = [name for name, item in named.items() if item.get("default")]
    if config is None:
        single = list(named) if len(named) == 1 else []
        config = next(iter([*marked, *single, *(["default"] if "default" in named else [])]), None)
    if config not in named:
        raise _no_config(repo, config, named)
    files = named[config]["data_files"]
    if isinstance(files, list) and files and isinstance(files[0], Mapping):
        files = {item["split"]: item["path"] for item in files}
    patterns = files if isinstance(files, Mapping) else {"train": files}
    return {str(part): _matching(repo, each) for part, each in patterns.items()}


def _matching(repo: _Repo, patterns: str | list[str]) -> list[str]:
    every = [patterns] if isinstance(patterns, str) else patterns
    return sorted(
        file
        for file in repo.sizes
        if any(fnmatchcase(file, p.removeprefix("./")) or file.startswith(f"{p}/") for p in every)
    )


def _by_name(repo: _Repo, config: str | None) -> dict[str, list[str]]:
    """Return files by the name of a part in their paths, as CONFIG/train/0000.parquet."""
    parts: dict[str, list[str]] = {}
    partial = False
    for file in sorted(repo.sizes):
        if config is not None and not file.startswith(f"{config}/"):
            continue
        words = re.findall(rf"(?<![a-z])(train|{'|'.join(TEST_NAMES)})(?![a-z])", file.lower())
        partial |= "partial-" in file
        if words:
            parts.setdefault(words[-1], []).append(file)
    folders = sorted({file.split("/")[0] for file in parts.get("train", ()) if "/" in file})
    if len(folders) > 1 or not parts:
        tops = {file.split("/")[0] for file in repo.sizes if "/" in file}
        raise _no_config(repo, config, folders or tops)
    if partial:
        raise InputError(f"The Hub keeps only a part of hf:{repo.id} as parquet.")
    return parts


def _no_config(repo: _Repo, config: str | None, known: Iterable[str]) -> InputError:
    names = ", ".join(sorted(known)) or "none"
    if config is not None:
        return InputError(f"hf:{repo.id} has no configuration {config!r}; it has: {names}.")
    return InputError(f"hf:{repo.id} has several configurations ({names}): hf:{repo.id},CONFIG.")


def _downloaded(repo: _Repo, parts: Mapping[str, list[str]]) -> dict[str, list[Path]]:
    """Return where the files of the parts lie on the disk, after downloading what is missing."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError

    def there(file: str) -> bool:
        found = try_to_load_from_cache(
            repo.id, file, repo_type="dataset", revision=repo.commit or None
        )
        return isinstance(found, str)

    missing = sum(repo.sizes[file] for files in parts.values() for file in files if not there(file))
    hint = "make room there, or name another folder with HF_HOME"
    need_room(Path(constants.HF_HUB_CACHE), missing, what=f"files of hf:{repo.id}", hint=hint)
    try:
        return {
            name: [
                Path(hf_hub_download(repo.id, file, repo_type="dataset", revision=repo.commit))
                for file in files
            ]
            for name, files in parts.items()
        }
    except GatedRepoError as error:
        raise _gated(repo.id) from error
    except Exception as error:  # what a broken connection raises differs between versions
        raise InputError(f"hf:{repo.id} could not be downloaded ({_line(error)}).") from error
