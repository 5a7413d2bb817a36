"""Many classes: recover, relabel and gather stay small in memory, and linear in time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.artefact.quantise import packed
from potstill.data import Rows, open_data
from potstill.methods.chosen import Use
from potstill.methods.rded import RDED
from potstill.methods.recovering import CDA, SRe2L
from potstill.nets import NetSpec
from potstill.recover import CDA_TINY, SRE2L_TINY
from potstill.run import Run, Where, distil
from potstill.teachers import Squeeze, TeacherPlan


def folder_of(root, classes, images, least=32, most=64):
    """Write JPEGs of mixed sizes, each class with a colour of its own."""
    chance = np.random.default_rng(0)
    for c in range(classes):
        (root / f"c{c:05}").mkdir(parents=True)
        colour = chance.integers(0, 256, 3)
        for k in range(images):
            height, width = chance.integers(least, most + 1, 2)
            noise = chance.integers(-20, 21, (height, width, 3))
            pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"c{c:05}" / f"{k}.jpg", quality=80)


TEACHER = TeacherPlan(
    norm="batch", training=Squeeze(lr=0.1, epochs=8, warmup=1, batch=20, augment=None)
)
USE = Use(epochs=10)


@pytest.mark.parametrize(
    "method",
    [
        SRe2L(teacher=TEACHER, recovery=replace(SRE2L_TINY, iterations=3), batch=2, use=USE),
        CDA(teacher=TEACHER, recovery=replace(CDA_TINY, iterations=3), batch=2, use=USE),
        RDED(teacher=TEACHER, use=USE),
    ],
    ids=["sre2l", "cda", "rded"],
)
def test_streamed_folders_give_the_bytes_of_resident_ones(method, alone, tmp_path, monkeypatch):
    folder_of(tmp_path / "data" / "train", 4, 30)
    found = []
    for resident in ("4GiB", "1000"):
        monkeypatch.setenv("POTSTILL_RESIDENT", resident)
        monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / resident))
        run = Run(
            method=method,
            data=f"folder:{tmp_path / 'data'}",
            resize=16,
            ipc=2,
            net=NetSpec(name="convnet2", width=8),
            threads=1,
            device="cpu",
        )
        streamed = isinstance(open_data(run.data, resize=16).train.pixels, Rows)
        assert streamed == (resident == "1000")
        where = Where(store=tmp_path / resident / "store")
        found.append(distil(run, tmp_path / f"run-{resident}", where=where))
    assert torch.equal(found[0].images, found[1].images)


def test_labels_are_packed_alike_however_many_there_are():
    logits = torch.randn(2600, 7, generator=torch.Generator().manual_seed(0))
    for codes in ("float16", "uint8", "uint4"):
        whole, parts = packed(logits, codes), [packed(p, codes) for p in logits.split(900)]
        for name, values in whole.items():
            assert torch.equal(values, torch.cat([part[name] for part in parts]))


SCRIPT = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from potstill.artefact import LabelPlan
from potstill.core.compute import Compute
from potstill.core.store import Store
from potstill.core.usage import peak_memory
from potstill.data import MeanStd
from potstill.engine import run_tasks
from potstill.nets import NetSpec, build
from potstill.recover import SRE2L_TINY, gathered, recover_tasks, units_of
from potstill.recover.relabel import kept_images, relabel_tasks
from potstill.teachers import keep_teacher

root, found = Path(sys.argv[1]), []
one = Compute(threads=1)
for classes in map(int, sys.argv[2:]):
    store = Store(root / str(classes))
    folder = store.root / "teacher"
    folder.mkdir(parents=True)
    net = NetSpec(name="convnet1", width=4, norm="batch")
    module = build(net, channels=3, size=(8, 8), classes=classes, seed=0)
    space = MeanStd(mean=(0.5,) * 3, std=(0.25,) * 3)
    teacher = keep_teacher(module, folder, net=net, space=space, shape=(3, 8, 8), classes=classes)
    begun = time.process_time()
    tasks = recover_tasks(
        (teacher,), replace(SRE2L_TINY, iterations=1), units_of(classes, 2), seed=0, compute=one,
        folders={teacher.digest: folder}, store=store,
    )
    units = run_tasks(tasks, store)
    images = gathered(store, units, classes, 2)
    assert images.shape == (2 * classes, 3, 8, 8)
    digest, there = kept_images(store, images, torch.arange(classes).repeat_interleave(2))
    plan = LabelPlan(epochs=1, batch=64)
    labels = relabel_tasks(digest, there, {teacher: folder}, plan, space=space, compute=one)
    recovered = time.process_time() - begun
    run_tasks(labels, store)
    found.append([classes, recovered, peak_memory()])
print(json.dumps(found))
"""


def measured(script, folder, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder), *map(str, arguments)],
        env={**os.environ, "POTSTILL_CACHE": str(folder / "cache"), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_ten_thousand_classes_in_two_gigabytes(tmp_path):
    counts = (2600, 5200, 10450)
    found = measured(SCRIPT, tmp_path, *counts)
    assert [classes for classes, *_ in found] == list(counts)
    seconds = [spent for _, spent, _ in found]
    assert seconds[2] < 1.5 * 10450 / 5200 * seconds[1]
    assert found[-1][2] < 2 * 2**30


FOLDER = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from potstill.core.usage import peak_memory
from potstill.methods.labelled import ViewLabels
from potstill.methods.recovering import SRe2L
from potstill.nets import NetSpec
from potstill.recover import SRE2L_TINY
from potstill.run import Run, Where, distil
from potstill.teachers import Squeeze, TeacherPlan

root = Path(sys.argv[1])
training = Squeeze(lr=0.05, epochs=6, warmup=1, batch=50, augment=None)
teacher = TeacherPlan(norm="batch", training=training)
method = SRe2L(
    teacher=teacher, recovery=replace(SRE2L_TINY, iterations=2), labels=ViewLabels(epochs=1)
)
net = NetSpec(name="convnet1", width=16)
data = f"folder:{root / 'data'}"
run = Run(method=method, data=data, resize=16, ipc=1, net=net, threads=1, device="cpu")
s = distil(run, root / "run", where=Where(store=root / "store"))
assert len(s.images) == 1000
print(json.dumps(peak_memory()))
"""


@pytest.mark.slow
def test_a_folder_of_a_thousand_classes_in_two_gigabytes(tmp_path):
    folder_of(tmp_path / "data" / "train", 1000, 20)
    assert measured(FOLDER, tmp_path, POTSTILL_RESIDENT="1000000") < 2 * 2**30
