"""Sets of the Hugging Face Hub, from a stand-in of it on this machine."""

import http.server
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import numpy as np
import pytest

from pictures import picture, png, write_parquet
from potstill import data
from potstill.core.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"

SCRIPT = """
import json, sys
from potstill import data
from potstill.core.errors import InputError
found = []
for source in sys.argv[1:]:
    try:
        opened = data.open_data(source)
        found.append([opened.ref.identity, opened.classes, opened.notes, len(opened.test)])
    except InputError as error:
        found.append(str(error))
print(json.dumps(found))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Answer as the Hub does, of `repos`: id -> (files, card) or a word for an error."""

    repos: dict = {}
    asked: list = []

    def log_message(self, *_):
        pass

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        words = [unquote(word) for word in urlparse(self.path).path.strip("/").split("/")]
        if words[0] == "api":
            words = words[1:]
        name, rest = "/".join(words[1:3]), words[3:]
        repo = self.repos.get(name)
        if repo is None or words[0] != "datasets":
            return self.refuse(404, "RepoNotFound")
        if repo == "private":
            return self.refuse(401, "RepoNotFound")
        if repo == "broken":
            return self.refuse(400, "")
        files, card = repo[:2]
        converted = repo[2] if len(repo) > 2 else None
        if rest[:1] == ["revision"]:
            if converted is None:
                return self.refuse(404, "RevisionNotFound")
            files, card = converted, {}
        if rest[:1] != ["resolve"]:
            siblings = [{"rfilename": file, "size": len(body)} for file, body in files.items()]
            info = {"id": name, "sha": COMMIT, "siblings": siblings, "cardData": card}
            return self.send(json.dumps(info).encode())
        if card == {"gated": True}:
            return self.refuse(403, "GatedRepo")
        self.asked.append((self.command, name, *rest))
        return self.send(({**files, **(converted or {})})["/".join(rest[2:])])

    def send(self, body):
        self.send_response(200)
        self.send_header("ETag", f'"{len(body)}-{hash(body) % 10**9}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET


def parquet(tmp_path, labels, first=0, **options):
    """Return the bytes of a parquet file of pictures first, first + 1, ..."""
    file = tmp_path / "made" / "file.parquet"
    pictures = [png(picture(first + i)) for i in range(len(labels))]
    write_parquet(file, labels, pictures=pictures, **options)
    return file.read_bytes()


@pytest.fixture
def hub(tmp_path):
    """Yield a function that opens sources in a fresh process that asks the stand-in."""
    Hub.repos, Hub.asked = {}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def stop():
        server.shutdown()
        server.server_close()
        thread.join()

    def opened(*sources):
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "POTSTILL_CACHE": str(tmp_path / "cache"),
            "NO_PROXY": "127.0.0.1",
        }
        environment.pop("HF_TOKEN", None)
        command = [sys.executable, "-c", SCRIPT, *sources]
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        return json.loads(run.stdout)

    yield SimpleNamespace(open=opened, repos=Hub.repos, asked=Hub.asked, stop=stop)
    if thread.is_alive():
        stop()


def test_a_set_of_the_hub(hub, tmp_path, monkeypatch):
    named = {"names": ["cat", "dog"]}
    one = parquet(tmp_path, [0, 1, 0, 1], **named)
    two = parquet(tmp_path, [1, 0], first=4, **named)
    test = parquet(tmp_path, [0, 1, 1], first=50, **named)
    card = {
        "configs": [
            {
                "config_name": "plain_text",
                "data_files": [
                    {"split": "train", "path": "plain_text/train-*"},
                    {"split": "test", "path": "plain_text/test-*"},
                ],
            }
        ]
    }
    files = {
        "README.md": b"text",
        "plain_text/train-00000-of-00002.parquet": one,
        "plain_text/train-00001-of-00002.parquet": two,
        "plain_text/test-00000-of-00001.parquet": test,
    }
    hub.repos["me/pets"] = (files, card)
    plain = {name.replace("plain_text", "data"): body for name, body in files.items()}
    hub.repos["me/bare"] = (plain, None)
    two_labels = _two_labels(tmp_path)
    hub.repos["me/twice"] = ({"train.parquet": two_labels}, {})
    hub.repos["me/many"] = (
        {
            "a/train-0.parquet": one,
            "b/train-0.parquet": one,
            "b/validation-0.parquet": test,
            "c/other.csv": b"",
        },
        {
            "configs": [
                {"config_name": "a", "data_files": "a/*.parquet"},
                {
                    "config_name": "b",
                    "default": True,
                    "data_files": [
                        {"split": "train", "path": ["b/train-*"]},
                        {"split": "validation", "path": "b/validation-*"},
                    ],
                },
            ]
        },
    )
    pets, bare, twice, chosen, many = hub.open(
        "hf:me/pets", "hf:me/bare", "hf:me/twice?label=b", "hf:me/twice?label=a", "hf:me/many"
    )
    folder = tmp_path / "pq"
    folder.mkdir()
    for file, body in files.items():
        if file.endswith(".parquet"):
            (folder / file.split("/")[1]).write_bytes(body)
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "other"))
    direct = data.open_data(f"parquet:{folder}")
    assert pets == bare == [direct.ref.identity, ["cat", "dog"], [], 3]
    assert len(hub.asked) == len(set(hub.asked))
    assert twice[1] == ["x", "y", "z"]
    assert chosen[1] == ["u", "v"]
    assert many[3] == 3
    before = len(hub.asked)
    hub.repos["me/pets"] = (files, card)
    hub.stop()
    (again, lost) = hub.open("hf:me/pets", "hf:me/unseen")
    assert again == pets
    assert len(hub.asked) == before
    assert "hf:me/unseen was not downloaded before" in lost


def _two_labels(tmp_path):
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    features = Features(
        {
            "picture": ImageFeature(),
            "a": ClassLabel(names=["u", "v"]),
            "b": ClassLabel(names=["x", "y", "z"]),
        }
    )
    rows = {
        "picture": [{"bytes": png(picture(i)), "path": None} for i in range(18)],
        "a": [i % 2 for i in range(18)],
        "b": [i % 3 for i in range(18)],
    }
    file = tmp_path / "two.parquet"
    Dataset.from_dict(rows, features=features).to_parquet(str(file))
    return file.read_bytes()


def test_what_the_hub_refuses(hub, tmp_path):
    good = parquet(tmp_path, [0, 1] * 3)
    bad = parquet(tmp_path, [0, 1] * 3, label="kind")
    several = {"configs": [{"config_name": n, "data_files": f"{n}/*.parquet"} for n in "ab"]}
    part = {"split": "other", "path": "*.parquet"}
    hub.repos |= {
        "me/secret": "private",
        "me/broken": "broken",
        "me/gated": ({"train-0.parquet": good}, {"gated": True}),
        "me/script": ({"script.py": b"", "data.zip": b""}, {}),
        "me/nolabel": ({"train-0.parquet": bad}, {}),
        "me/noimage": ({"train-0.parquet": _texts(tmp_path)}, {}),
        "me/several": ({"a/x.parquet": good, "b/x.parquet": good}, several),
        "me/folders": ({"a/train/0.parquet": good, "b/train/0.parquet": good}, {}),
        "me/notrain": (
            {"x.parquet": good},
            {"configs": [{"config_name": "default", "data_files": [part]}]},
        ),
        "me/copied": ({"images.zip": b""}, {}, {"default/train/0000.parquet": good}),
        "me/partial": ({"images.zip": b""}, {}, {"default/partial-train/0000.parquet": good}),
    }
    cases = {
        "hf:me/none": r"There is no data set 'me/none' on the Hugging Face Hub, or it is private",
        "hf:me/secret": "`hf auth login`",
        "hf:not a name": "There is no data set 'not a name'",
        "hf:me/broken": "Hub does not give it now (Bad request",
        "hf:": "hf:ID or hf:ID,CONFIG",
        "hf:me/gated": "accepted its terms",
        "hf:me/script": "is not stored as parquet; download it with `hf download me/script",
        "hf:me/nolabel": "(label, fine_label, labels); its columns are: image, kind",
        "hf:me/noimage": "no image column",
        "hf:me/several": "has several configurations (a, b): hf:me/several,CONFIG",
        "hf:me/several,c": "has no configuration 'c'; it has: a, b",
        "hf:me/folders": "has several configurations (a, b)",
        "hf:me/folders,c": "has no configuration 'c'; it has: a, b",
        "hf:me/notrain": "has no part 'train' (it has: other)",
        "hf:me/several,a?label=no": "has no label column (no); its columns are: image, label",
        "hf:me/partial": "only a part of hf:me/partial",
    }
    good_ones = ["hf:me/several,a", "hf:me/folders,b", "hf:me/copied"]
    found = hub.open(*cases, *good_ones)
    for source, answer in zip(cases, found, strict=False):
        assert isinstance(answer, str), (source, answer)
        assert cases[source] in answer
        assert "\n" not in answer
    for answer in found[len(cases) :]:
        assert answer[1] == ["0", "1"]
    assert len({answer[0] for answer in found[len(cases) :]}) == 1


def test_files_that_do_not_fit_on_the_disk_are_not_downloaded():
    from potstill.data import hub

    repo = hub._Repo(id="me/huge", commit=COMMIT, sizes={"train.parquet": 10**18}, configs=())
    with pytest.raises(InputError, match=r"files of hf:me/huge .* GiB .* HF_HOME"):
        hub._downloaded(repo, {"train": ["train.parquet"]})


def _texts(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"text": ["a", "b"], "label": np.array([0, 1])})
    parquet.write_table(table, tmp_path / "text.parquet")
    return (tmp_path / "text.parquet").read_bytes()
