"""Known sets: stand-ins of the same shape in every layout that people have, and torchvision's."""

import functools
import hashlib
import http.server
import pickle
import tarfile
import threading
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from pictures import picture, png, rows, write_parquet, write_part
from potstill import data
from potstill.core.errors import InputError
from potstill.core.vision import import_torchvision
from potstill.data.named import NAMED


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def sets():
    if find_spec("torchvision") is None:
        pytest.skip("torchvision, an extra, is not installed")
    return import_torchvision().datasets


def noise(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape).astype(np.uint8)


def md5(file):
    return hashlib.md5(file.read_bytes()).hexdigest()


def labelled(split):
    """Return the (label, bytes) of all rows in order."""
    pairs = zip(split.labels.tolist(), split.pixels.numpy(), strict=True)
    return [(label, pixels.tobytes()) for label, pixels in pairs]


def expected(x, y):
    return [(int(label), image.tobytes()) for label, image in zip(y, x, strict=True)]


def check_parts(opened, train, test):
    assert rows(opened.train) | rows(opened.val) == set(expected(*train))
    assert labelled(opened.test) == expected(*test)


# ---- torchvision's own layouts


def write_cifar(root, sets, monkeypatch, name, classes):
    """Write CIFAR batches; return (train, test), each (images, labels)."""
    kind = getattr(sets, name)
    base = root / kind.base_folder
    base.mkdir(parents=True)
    fine = "labels" if classes == 10 else "fine_labels"
    parts, lists = [], []
    for file, count in (("one", 4), ("two", 2)):
        x, y = noise(classes * count, 3, 32, 32), np.arange(classes * count) % classes
        with open(base / file, "wb") as handle:
            pickle.dump({"data": x.reshape(len(x), -1), fine: y.tolist()}, handle)
        parts.append((x, y))
        lists.append([[file, md5(base / file)]])
    names = [f"class {i}" for i in range(classes)]
    with open(base / "meta", "wb") as handle:
        pickle.dump({kind.meta["key"]: names}, handle)
    monkeypatch.setattr(kind, "train_list", lists[0])
    monkeypatch.setattr(kind, "test_list", lists[1])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "filename": "meta", "md5": md5(base / "meta")})
    return parts


def write_svhn(root, sets, monkeypatch):
    from scipy.io import savemat

    root.mkdir(parents=True)
    parts, table = [], {}
    for name, count in (("train", 40), ("test", 20)):
        x, y = noise(count, 3, 32, 32), np.arange(count) % 10
        file = root / f"{name}_32x32.mat"
        savemat(file, {"X": x.transpose(2, 3, 1, 0), "y": np.where(y == 0, 10, y)[:, None]})
        parts.append((x, y))
        table[name] = ["", file.name, md5(file)]
    monkeypatch.setattr(sets.SVHN, "split_list", table)
    return parts


def write_mnist(root, name):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    parts = []
    for part, count in (("train", 40), ("t10k", 20)):
        x, y = noise(count, 28, 28), np.arange(count, dtype=np.uint8) % 10
        head = (0x803, count, 28, 28)
        images = b"".join(n.to_bytes(4, "big") for n in head) + x.tobytes()
        labels = b"".join(n.to_bytes(4, "big") for n in (0x801, count)) + y.tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
        parts.append((x[:, None], y))
    return parts


def write_flowers(root, sets, monkeypatch):
    from scipy.io import savemat

    base = root / "flowers-102"
    (base / "jpg").mkdir(parents=True)
    labels = np.arange(306) % 102 + 1
    for i in range(306):
        picture(i, (9, 8)).save(base / "jpg" / f"image_{i + 1:05d}.jpg", "PNG")
    savemat(base / "imagelabels.mat", {"labels": labels[None]})
    ids = np.arange(1, 307)[None]
    parts = {"trnid": ids[:, :204], "valid": ids[:, :0], "tstid": ids[:, 204:]}
    savemat(base / "setid.mat", parts)
    known = dict(sets.Flowers102._file_dict)
    for key, file in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        known[key] = (file, md5(base / file))
    monkeypatch.setattr(sets.Flowers102, "_file_dict", known)
    return labels - 1


def write_aircraft(root):
    base = root / "fgvc-aircraft-2013b" / "data"
    (base / "images").mkdir(parents=True)
    variants = [f"Type {i:03d}" for i in range(100)]
    (base / "variants.txt").write_text("\n".join(variants) + "\n")
    for part, start, count in (("trainval", 0, 200), ("test", 200, 100)):
        lines = []
        for i in range(start, start + count):
            picture(i, (9, 8)).save(base / "images" / f"{i:07d}.jpg", "PNG")
            lines.append(f"{i:07d} {variants[i % 100]}")
        (base / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(("name", "classes"), [("CIFAR10", 10), ("CIFAR100", 100)])
def test_cifar(name, classes, tmp_path, sets, cache_folder, monkeypatch):
    downloads = cache_folder / "downloads" / "torchvision" / name
    train, test = write_cifar(downloads, sets, monkeypatch, name, classes)
    opened = data.open_data(f"torchvision:{name}")
    assert opened.classes[1] == "class 1"
    check_parts(opened, train, test)
    for place in (downloads, downloads / getattr(sets, name).base_folder):
        again = data.open_data(f"{name.lower()}:{place}")
        assert again.ref == opened.ref
    assert data.open_data(f"torchvision:{name}@{downloads}").ref == opened.ref


def test_svhn(tmp_path, sets, monkeypatch):
    train, test = write_svhn(tmp_path / "own", sets, monkeypatch)
    opened = data.open_data(f"svhn:{tmp_path / 'own'}")
    assert opened.classes == tuple("0123456789")
    check_parts(opened, train, test)


@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist(name, kind, tmp_path, sets):
    train, test = write_mnist(tmp_path / "own", kind)
    opened = data.open_data(f"{name}:{tmp_path / 'own'}")
    assert (opened.channels, opened.size, opened.n_classes) == (1, (28, 28), 10)
    check_parts(opened, train, test)


def test_flowers_and_aircraft(tmp_path, sets, monkeypatch):
    labels = write_flowers(tmp_path / "own", sets, monkeypatch)
    write_aircraft(tmp_path / "own")
    for name, classes, first in (("flowers", 102, "pink primrose"), ("aircraft", 100, "Type 000")):
        with pytest.raises(InputError, match=r"differ in size: add --resize N"):
            data.open_data(f"{name}:{tmp_path / 'own'}")
        opened = data.open_data(f"{name}:{tmp_path / 'own'}", resize=8)
        assert (opened.channels, opened.size, opened.n_classes) == (3, (8, 8), classes)
        assert opened.classes[0] == first
        start = 204 if name == "flowers" else 200
        x = np.asarray(picture(start, (9, 8)).crop((0, 0, 8, 8))).transpose(2, 0, 1)
        assert np.array_equal(opened.test.pixels[0].numpy(), x)
        assert opened.test.labels[0] == (labels[start] if name == "flowers" else start % 100)


@pytest.fixture
def served(tmp_path):
    """Return (a folder, the address at which its files are served)."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    (tmp_path / "served").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield tmp_path / "served", f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_download_happens_once(tmp_path, sets, served, cache_folder, monkeypatch, capfd):
    folder, address = served
    write_aircraft(tmp_path / "packed")
    with tarfile.open(folder / "aircraft.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "packed" / "fgvc-aircraft-2013b", "fgvc-aircraft-2013b")
    monkeypatch.setattr(sets.FGVCAircraft, "_URL", f"{address}/nothing.tar.gz")
    with pytest.raises(InputError, match=r"FGVCAircraft cannot be downloaded .*@DIR"):
        data.open_data("aircraft", resize=8)
    monkeypatch.setattr(sets.FGVCAircraft, "_URL", f"{address}/aircraft.tar.gz")
    opened = data.open_data("aircraft", resize=8)
    assert capfd.readouterr().out == ""
    monkeypatch.setattr(sets.FGVCAircraft, "_URL", "")
    assert data.open_data("aircraft", resize=8).ref == opened.ref
    assert (cache_folder / "downloads" / "torchvision" / "FGVCAircraft").is_dir()


def test_other_sets_of_torchvision(tmp_path, sets, cache_folder, monkeypatch):
    eurosat = cache_folder / "downloads" / "torchvision" / "EuroSAT" / "eurosat" / "2750"
    write_part(eurosat, {"crop": 5, "sea": 4}, size=(4, 4))
    opened = data.open_data("torchvision:EuroSAT")  # neither train= nor split=
    assert opened.classes == ("crop", "sea")
    assert "No test part" in opened.notes[0]
    with pytest.raises(InputError, match="'CIFAR1000'; nearest: CIFAR100, CIFAR10"):
        data.open_data("torchvision:CIFAR1000")
    with pytest.raises(InputError, match="no such image set 'ImageFolder'"):
        data.open_data("torchvision:ImageFolder")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").touch()
    with pytest.raises(InputError, match="other does not hold MNIST as torchvision lays it out"):
        data.open_data(f"torchvision:MNIST@{tmp_path / 'other'}")

    class Words(sets.VisionDataset):
        def __init__(self, root, train=True, download=False):
            super().__init__(root)

        def __len__(self):
            return 4

        def __getitem__(self, row):
            return "text", self.answers[row]

    monkeypatch.setattr(sets, "MNIST", Words)
    Words.answers = ["a", "b", "c", "d"]
    with pytest.raises(InputError, match="MNIST gives no class number"):
        data.open_data("torchvision:MNIST")
    Words.answers = [0, 1, 0, 1]
    with pytest.raises(InputError, match="MNIST gives str, no images"):
        data.open_data("torchvision:MNIST")


def test_without_torchvision_the_extra_is_named(monkeypatch):
    import builtins

    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "torchvision":
            raise ModuleNotFoundError("none", name="torchvision")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=r"pip install 'potstill\[nets\]'"):
        data.open_data("torchvision:CIFAR10")


# ---- archives as their authors pack them


def write_tiny(folder):
    for label in range(200):
        name = f"n{label:08d}"
        (folder / "train" / name / "images").mkdir(parents=True)
        (folder / "train" / name / f"{name}_boxes.txt").touch()
        for i in range(2):
            image = Image.fromarray(np.full((64, 64, 3), label, np.uint8))
            image.putpixel((0, 0), (i, 0, 0))
            image.save(folder / "train" / name / "images" / f"{name}_{i}.JPEG", "PNG")
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for i in range(200):
        label = 199 - i
        Image.new("L", (64, 64), label).save(folder / "val" / "images" / f"val_{i}.JPEG", "PNG")
        lines.append(f"val_{i}.JPEG\tn{label:08d}\t0\t0\t62\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (folder / "test" / "images").mkdir(parents=True)


def test_tiny_imagenet(tmp_path):
    write_tiny(tmp_path / "own" / "tiny-imagenet-200")
    opened = data.open_data(f"tiny-imagenet:{tmp_path / 'own'}")
    assert (opened.channels, opened.size, opened.n_classes) == (3, (64, 64), 200)
    assert opened.classes == tuple(f"n{label:08d}" for label in range(200))
    assert opened.test.labels.tolist() == list(range(199, -1, -1))
    for part in (opened.train, opened.val, opened.test):
        assert torch.equal(part.pixels[:, 1, 5, 5].long(), part.labels)
    (tmp_path / "own" / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text("val_0\n")
    with pytest.raises(InputError, match="line without a class"):
        data.open_data(f"tiny-imagenet:{tmp_path / 'own'}")


def write_cub(folder):
    lines, split = [], []
    for i in range(600):
        label = i % 200
        file = f"{label + 1:03d}.Bird_{label}/Bird_{i:04d}.jpg"
        (folder / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8), (label, i // 200, 0)).save(folder / "images" / file, "PNG")
        lines.append(f"{i + 1} {file}")
        split.append(f"{i + 1} {int(i < 400)}")
    (folder / "images.txt").write_text("\n".join(lines))
    (folder / "train_test_split.txt").write_text("\n".join(split))


def test_cub(tmp_path):
    write_cub(tmp_path / "CUB_200_2011")
    for place in (tmp_path, tmp_path / "CUB_200_2011"):
        opened = data.open_data(f"cub-200:{place}", resize=8)
        assert opened.n_classes == 200
        assert opened.classes[:2] == ("001.Bird_0", "002.Bird_1")
        assert len(opened.train) + len(opened.val) == 400
        for part in (opened.train, opened.val, opened.test):
            assert torch.equal(part.pixels[:, 0, 4, 4].long(), part.labels)
        assert opened.test.pixels[:, 1].unique().tolist() == [2]
    (tmp_path / "CUB_200_2011" / "train_test_split.txt").write_text("1 1\n")
    with pytest.raises(InputError, match="do not fit together"):
        data.open_data(f"cub-200:{tmp_path}", resize=8)


@pytest.mark.parametrize("lists", ["lists", "."])
def test_dogs(lists, tmp_path):
    from scipy.io import savemat

    folder = tmp_path / "dogs"
    (folder / lists).mkdir(parents=True)
    names = [f"n{20 + k:08d}-Dog_{k}" for k in range(120)]
    for part, numbers in (("train", (0, 1)), ("test", (2,))):
        files = [f"{name}/{name[:9]}_{i}.jpg" for name in names for i in numbers]
        for file in files:
            (folder / "Images" / file).parent.mkdir(parents=True, exist_ok=True)
            label = names.index(file.split("/")[0])
            Image.new("RGB", (9, 8), (label, 0, 0)).save(folder / "Images" / file, "PNG")
        cells = np.empty((len(files), 1), object)
        cells[:, 0] = files
        savemat(folder / lists / f"{part}_list.mat", {"file_list": cells})
    opened = data.open_data(f"dogs:{folder}", resize=8)
    assert opened.classes == tuple(names)
    assert (len(opened.train) + len(opened.val), len(opened.test)) == (240, 120)
    for part in (opened.train, opened.val, opened.test):
        assert torch.equal(part.pixels[:, 0, 4, 4].long(), part.labels)
    (folder / lists / "test_list.mat").write_bytes(b"no table")
    with pytest.raises(InputError, match=r"Cannot read the list of files .*test_list\.mat"):
        data.open_data(f"dogs:{folder}", resize=8)


def test_imagenet(tmp_path):
    for part, count in (("train", 2), ("val", 1)):
        for label in range(1000):
            folder = tmp_path / "in1k" / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", (3, 2), (label // 250, label % 250, i))
                image.save(folder / f"{i}.bmp")
    source = f"imagenet-1k:{tmp_path / 'in1k'}"
    with pytest.raises(InputError, match=r"ImageNet-1K .* differ in size: add --resize N"):
        data.open_data(source)
    opened = data.open_data(source, resize=2, fit="squash", classes="imagewoof@mtt")
    wanted = data.CLASS_LISTS.get("imagewoof@mtt").ids
    assert opened.classes == tuple(f"n{label:08d}" for label in wanted)
    pixels = opened.test.pixels[:, :, 0, 0].long()
    assert (250 * pixels[:, 0] + pixels[:, 1]).tolist() == [wanted[k] for k in opened.test.labels]
    whole = data.open_data(source, resize=2)
    assert (whole.n_classes, len(whole.train), len(whole.test)) == (1000, 1000, 1000)


# ---- what all names share


def test_cifar10_in_other_layouts(tmp_path):
    labels = list(range(10)) * 3
    pictures = [png(picture(i, (32, 32))) for i in range(30)]
    names = [f"c{i}" for i in range(10)]
    for part in ("train", "test"):
        write_parquet(tmp_path / "pq" / f"{part}-0.parquet", labels, pictures=pictures, names=names)
    write_part(tmp_path / "files" / "train", dict.fromkeys(names, 3), size=(32, 32))
    write_part(tmp_path / "files" / "test", dict.fromkeys(names, 1), size=(32, 32))
    assert data.open_data(f"cifar10:{tmp_path / 'pq'}").n_classes == 10
    assert data.open_data(f"cifar10:{tmp_path / 'files'}").n_classes == 10
    assert data.open_data(f"cifar10:{tmp_path / 'files'}", classes="c1,c2").n_classes == 2
    assert data.open_data(f"cifar10:{tmp_path / 'files'}", resize=8).size == (8, 8)
    with pytest.raises(InputError, match="MNIST"):
        data.open_data(f"mnist:{tmp_path / 'files' / 'train'}")
    with pytest.raises(InputError, match=r"are 3x32x32; expected is 1x28x28"):
        data.open_data(f"mnist:{tmp_path / 'files'}")
    with pytest.raises(InputError, match=r"CIFAR-100 has 100 classes, cifar100:.* has 10;"):
        data.open_data(f"cifar100:{tmp_path / 'files'}")


def test_sets_without_a_download_say_where_they_are():
    for name, words in {
        "imagenet-1k": r"get it from image-net\.org, .* imagenet-1k:DIR",
        "cub-200": r"get it from Caltech .* cub-200:DIR",
        "dogs": r"get it from Stanford .* dogs:DIR",
    }.items():
        with pytest.raises(InputError, match=words):
            data.open_data(name, resize=64)


def test_sets_that_the_hub_does_not_give_may_be_brought(monkeypatch):
    def gone(rest, reading):
        raise InputError(f"hf:{rest} is out of reach.")

    monkeypatch.setattr("potstill.data.named.open_hub", gone)
    with pytest.raises(InputError, match=r"out of reach\. .* opened with cifar10:DIR\.$"):
        data.open_data("cifar10")


def test_every_name_is_a_source_with_a_help_line():
    assert {"cifar10", "cifar100", "svhn", "mnist", "fashion-mnist", "tiny-imagenet"} <= set(NAMED)
    assert {"imagenet-1k", "cub-200", "aircraft", "dogs", "flowers"} <= set(NAMED)
    assert set(NAMED) < set(data.SOURCES.names())
    for name, known in NAMED.items():
        assert data.SOURCES.get(name).help == known.help
        assert "\n" not in known.help
        assert known.hub or known.vision or known.origin
