"""Data larger than memory: decoded as a stream, mapped, and equal to resident data in every use."""

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from pictures import picture, rows, write_part
from potstill import data
from potstill.core.errors import InputError
from potstill.core.state import Blocks, load_tree, map_tree, save_tree
from potstill.coresets import medoid_real, net_features, pixel_features
from potstill.data import Rows, cache
from potstill.data.rows import resident_budget
from potstill.functional import TrainSpec, accuracy, fit, mtt_segments
from potstill.nets import FlatNet, NetSpec, build


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture
def shapes(tmp_path):
    write_part(tmp_path / "shapes" / "train", {"a": 14, "b": 11, "c": 12}, size=(8, 8))
    write_part(tmp_path / "shapes" / "test", {"a": 3, "b": 2, "c": 2}, first=50, size=(8, 8))
    return f"folder:{tmp_path / 'shapes'}"


@pytest.fixture
def both(shapes, monkeypatch):
    """Return the same data set resident and mapped."""
    resident = data.open_data(shapes, limit=9)
    monkeypatch.setenv("POTSTILL_RESIDENT", "0")
    return resident, data.open_data(shapes, limit=9)


def test_rows_read_as_the_tensor_does():
    whole = torch.randint(0, 256, (11, 2, 3, 4)).to(torch.uint8)
    chosen = torch.tensor([7, 1, 1, 10, 3, 0])
    for some, tensor in (
        (Rows(whole.numpy()), whole),
        (Rows(whole.numpy()).subset(chosen), whole[chosen]),
        (Rows(whole.numpy()).subset(torch.arange(11) % 2 == 0), whole[::2]),
    ):
        n = len(tensor)
        assert (len(some), some.shape, some.dtype) == (n, tensor.shape, tensor.dtype)
        assert (some.device, some.nbytes, some.ndim) == (tensor.device, tensor.nbytes, 4)
        assert some.is_floating_point() is tensor.is_floating_point()
        for which in (
            torch.tensor([n - 1, 0, 0, -1]),
            torch.arange(n) % 3 == 1,
            slice(1, 4),
            slice(None),
            torch.tensor([], dtype=torch.int64),
        ):
            assert torch.equal(some[which], tensor[which])
        assert torch.equal(some.index_select(0, chosen % n), tensor.index_select(0, chosen % n))
        for size in (1, 2, n, 99):
            assert all(map(torch.equal, some.split(size), tensor.split(size)))
            assert len(list(some.split(size))) == len(tensor.split(size))
        some[:2].zero_()
        assert torch.equal(some[:], tensor)
    with pytest.raises(TypeError):
        Rows(whole.numpy()).index_select(1, chosen)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("500MB", 500 * 10**6),
        ("4GiB", 2**32),
        (" 1.5 kib ", 1536),
        ("7", 7),
        ("2t", 2e12),
    ],
)
def test_the_resident_budget(text, count, monkeypatch):
    monkeypatch.setenv("POTSTILL_RESIDENT", text)
    assert resident_budget() == count


@pytest.mark.parametrize("text", ["", "much", "-1", "4 GiB of it", "1ib", "nan"])
def test_a_bad_resident_budget(text, monkeypatch):
    monkeypatch.setenv("POTSTILL_RESIDENT", text)
    with pytest.raises(InputError, match=r"POTSTILL_RESIDENT is .* such as 4GiB"):
        data.open_data("digits")


def test_mapped_data_are_the_same_data(both):
    resident, mapped = both
    assert mapped.ref == resident.ref
    assert (mapped.classes, mapped.channels, mapped.size) == (("a", "b", "c"), 3, (8, 8))
    assert [len(s) for s in (mapped.train, mapped.val, mapped.test)] == [27, 3, 7]
    for part in ("train", "val", "test"):
        one, two = getattr(resident, part), getattr(mapped, part)
        assert isinstance(one.pixels, torch.Tensor)
        assert isinstance(two.pixels, Rows)
        assert torch.equal(one.pixels, two.pixels[:])
        assert torch.equal(one.labels, two.labels)
    again = data.reopen(mapped.ref)
    assert isinstance(again.train.pixels, Rows)
    assert np.shares_memory(again.train.pixels._array, again.val.pixels._array)
    assert not again.train.pixels._array.flags.writeable


def test_the_budget_counts_when_data_are_reopened(both, monkeypatch):
    _, mapped = both
    assert isinstance(data.reopen(mapped.ref).train.pixels, Rows)
    monkeypatch.setenv("POTSTILL_RESIDENT", "1GB")
    assert isinstance(data.reopen(mapped.ref).train.pixels, torch.Tensor)


def test_streamed_and_resident_data_are_one_file(shapes, cache_folder):
    opened = data.open_data(shapes)
    file = cache.data_path(opened.ref.identity)
    streamed = file.read_bytes()
    stored = cache.load(opened.ref.identity)
    file.unlink()
    made = data.from_arrays(
        stored.train.pixels,
        stored.train.labels,
        test_images=stored.test.pixels,
        test_labels=stored.test.labels,
        classes=stored.classes,
    )
    assert made.ref == opened.ref
    assert file.read_bytes() == streamed
    assert {f.name for f in cache_folder.iterdir()} == {"index", file.name}


def test_every_use_is_equal_on_mapped_data(both):
    torch.set_num_threads(1)
    one, two = both
    stats = data.measure_stats(one.train)
    assert data.measure_stats(two.train) == stats
    net = FlatNet(build(NetSpec(width=4), channels=3, size=(8, 8), classes=3, seed=0, key=()))
    spec = TrainSpec(lr=0.05, segments=mtt_segments(3), batch=8)
    thetas = [
        fit(
            net,
            net.theta0,
            each.train.pixels,
            each.train.labels,
            spec,
            seed=1,
            prepare=stats.forward,
        )
        for each in both
    ]
    assert torch.equal(*thetas)
    assert not torch.equal(thetas[0], net.theta0)
    theta = thetas[0]
    scores = [
        accuracy(net, theta, each.train.pixels, each.train.labels, batch=5, prepare=stats.forward)
        for each in both
    ]
    assert scores[0] == scores[1]
    deep = net_features(net, theta, stats, name="net")
    assert torch.equal(deep.fn(one.train.pixels), deep.fn(two.train.pixels[:]))
    for features in (deep, pixel_features(stats)):
        chosen = [medoid_real(each.train, (2, 2, 2), features) for each in both]
        assert chosen[0] == chosen[1]


def test_classes_of_mapped_data_from_the_cache(both):
    _, mapped = both
    whole = data.open_data(f"cached:{mapped.ref.identity}")
    assert whole.ref.identity == mapped.ref.identity
    some = data.open_data(f"cached:{mapped.ref.identity}", classes="c,a")
    assert some.classes == ("c", "a")
    every = set().union(
        *(
            rows(SimpleNamespace(pixels=p.pixels[:], labels=p.labels))
            for p in (whole.train, whole.val)
        )
    )
    renamed = {(("c", "a").index("abc"[label]), x) for label, x in every if label != 1}
    found = set().union(
        *(
            rows(SimpleNamespace(pixels=p.pixels[:], labels=p.labels))
            for p in (some.train, some.val)
        )
    )
    assert found == renamed


def test_a_mapped_file_is_checked_without_reading_it(both, shapes):
    _, mapped = both
    file = cache.data_path(mapped.ref.identity)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert isinstance(cache.load(mapped.ref.identity).train.pixels, Rows)
    for cut in (0, 5, 100, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"truncated"):
            cache.load(mapped.ref.identity)
    file.write_bytes(whole + b"x")
    with pytest.raises(InputError, match=r"should have"):
        cache.load(mapped.ref.identity)
    assert data.open_data(shapes, limit=9).ref == mapped.ref
    assert file.read_bytes() == whole


def test_a_full_disk_is_told_before_anything_is_decoded(shapes, cache_folder, monkeypatch):
    seen = []
    real = data.images.decode_file
    monkeypatch.setattr(
        "potstill.data.folders.decode_file", lambda path: seen.append(path) or real(path)
    )
    free = SimpleNamespace(free=44 * 3 * 8 * 8 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(InputError, match=r"decoded images .* GiB.*has only .* GiB free"):
        data.open_data(shapes)
    assert len(seen) == 1  # the first image, for its size
    assert not list(cache_folder.iterdir())
    free.free += 1
    data.open_data(shapes)


def test_an_error_in_the_middle_of_the_stream_leaves_nothing(tmp_path, shapes, cache_folder):
    (tmp_path / "shapes" / "train" / "c" / "9.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="Cannot read the image"):
        data.open_data(shapes)
    assert not list(cache_folder.iterdir())


def test_what_a_killed_decoder_left_is_removed(shapes, cache_folder, monkeypatch):
    monkeypatch.setattr("potstill.data.cache.source_key", lambda *_: "thekey")
    cache_folder.mkdir(parents=True)
    for name in (".thekey.12345678.tmp", ".another.12345678.tmp"):
        (cache_folder / name).write_bytes(b"half")
    opened = data.open_data(shapes)
    names = {f.name for f in cache_folder.iterdir()}
    assert names == {"index", f"{opened.ref.identity}.safetensors", ".another.12345678.tmp"}


def test_two_openers_decode_once(shapes, monkeypatch):
    seen, found = [], []
    real = data.images.decode_file

    def slow(path):
        seen.append(path)
        time.sleep(0.002)
        return real(path)

    monkeypatch.setattr("potstill.data.folders.decode_file", slow)
    threads = [
        threading.Thread(target=lambda: found.append(data.open_data(shapes))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({opened.ref for opened in found}) == 1
    assert len(seen) == 44 + 1  # each once, and the first for its size


MEASURE = """
import os, sys, threading
import numpy, torch
from potstill import data
torch.set_num_threads(1)
data.open_data(sys.argv[1])  # what libraries and threads need once is not counted

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

start, peak, done = anonymous(), [0], threading.Event()

def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], anonymous())

watcher = threading.Thread(target=watch)
watcher.start()
opened = data.open_data(sys.argv[2], limit=1000)
sums = [sum(int(part.numpy().sum(dtype=numpy.int64)) for part in split.pixels.split(64))
        for split in (opened.train, opened.val, opened.test)]
data.measure_stats(opened.test)
done.set()
watcher.join()
print(peak[0] - start, type(opened.train.pixels).__name__, sum(sums))
"""


def bmp(number, side):
    array = np.full((side, side, 3), number % 251, np.uint8)
    array[0, 0, 0] = number // 251
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "BMP")
    return buffer.getvalue()


def large(kind, folder, count, side):
    """Write `count` images of two classes, in files or in row groups of 50, and name them."""
    folder.mkdir()
    if kind == "folder":
        for name in "ab":
            (folder / name).mkdir()
        for i in range(count):
            (folder / "ab"[i % 2] / f"{i}.bmp").write_bytes(bmp(i, side))
    else:
        schema = pyarrow.schema([("image", pyarrow.binary()), ("label", pyarrow.int64())])
        with parquet.ParquetWriter(folder / "train-0.parquet", schema) as writer:
            for start in range(0, count, 50):
                some = range(start, min(start + 50, count))
                columns = {"image": [bmp(i, side) for i in some], "label": [i % 2 for i in some]}
                writer.write_table(pyarrow.table(columns, schema=schema))
    return f"{kind}:{folder}"


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc to measure memory by")
@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_memory_stays_bounded(kind, tmp_path):
    count, side = 2000, 96
    decoded = count * 3 * side * side  # 55 MB
    sources = [large(kind, tmp_path / f"{n}", n, side) for n in (200, count)]
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *sources],
        env=dict(os.environ, POTSTILL_RESIDENT="10MB"),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    growth, name, total = run.stdout.split()
    assert name == "Rows"
    assert int(total) == sum((i % 251) * (3 * side * side - 1) + i // 251 for i in range(count))
    assert int(growth) < decoded / 3, f"{int(growth) / 1e6:.0f} MB for {decoded / 1e6:.0f} MB"


def test_streamed_leaves_of_a_tree(tmp_path):
    x = torch.randint(0, 256, (5, 2, 3)).to(torch.uint8)
    tree = {"x": x, "b": [torch.arange(3), torch.tensor(2.5)], "n": "text"}
    save_tree(tmp_path / "whole", tree)
    blocks = (part.contiguous().numpy() for part in x.split(2))
    save_tree(tmp_path / "streamed", {**tree, "x": Blocks((5, 2, 3), blocks)})
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "streamed").read_bytes()
    mapped = map_tree(tmp_path / "whole")
    assert np.array_equal(mapped["x"], x.numpy())
    assert (mapped["b"][0].tolist(), mapped["b"][1].item(), mapped["n"]) == ([0, 1, 2], 2.5, "text")
    assert torch.equal(load_tree(tmp_path / "whole")["x"], x)
    with pytest.raises(InputError, match="no file"):
        map_tree(tmp_path / "absent")


def test_a_map_may_be_larger_than_the_memory(tmp_path):
    shape = (2**21, 3, 512, 512)  # 1.5 TiB
    size = int(np.prod(shape))
    meta = {"potstill": json.dumps({"skeleton": json.dumps({"tensor": "t"}), "sha256": ""})}
    entry = {"dtype": "U8", "shape": shape, "data_offsets": [0, size]}
    head = json.dumps({"__metadata__": meta, "t": entry}).encode()
    file = tmp_path / "sparse"
    file.write_bytes(len(head).to_bytes(8, "little") + head)
    try:
        os.truncate(file, 8 + len(head) + size)
    except OSError:
        pytest.skip("this file system has no large sparse files")
    assert int(Rows(map_tree(file))[torch.tensor([0, 2**21 - 1])].sum()) == 0


def test_classes_of_very_different_sizes(tmp_path):
    counts = {"few": 3, "more": 30, "most": 300}
    folder = tmp_path / "skewed" / "train"
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            picture(1000 * label + i, size=(2, 2)).save(folder / name / f"{i}.png")
    source = f"folder:{tmp_path / 'skewed'}"
    opened = data.open_data(source, validation=0.1)
    assert torch.bincount(opened.test.labels).tolist() == [1, 6, 60]
    assert torch.bincount(opened.val.labels).tolist() == [1, 2, 24]
    assert torch.bincount(opened.train.labels).tolist() == [1, 22, 216]
    assert len(set().union(*map(rows, (opened.train, opened.val, opened.test)))) == 333
    few = data.open_data(source, validation=0.1, limit=20)
    assert torch.bincount(few.train.labels).tolist() == [1, 20, 20]
    assert rows(few.train) < rows(opened.train)
    assert rows(few.val) == rows(opened.val)
    half = data.open_data(source, validation=0.5)
    assert torch.bincount(half.train.labels).tolist() == [1, 12, 120]
