"""Sources: arrays with any number of channels, chosen classes, and ways of reading images."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pictures import picture, rows, write_parquet, write_part
from potstill import data
from potstill.core.errors import InputError
from potstill.data import CLASS_LISTS, Reading, images


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "channels_first"),
    [
        ((9, 2, 5, 7), True),
        ((9, 5, 7, 2), False),
        ((9, 4, 8, 8), True),
        ((9, 8, 8, 4), False),
        ((9, 30, 8, 8), True),
        ((9, 8, 8, 30), False),
        ((9, 3, 2, 3), True),
        ((9, 6, 6, 1), False),
        ((9, 1, 6, 2), True),
    ],
)
def test_where_the_channels_are(shape, channels_first):
    x = torch.from_numpy(noise(*shape))
    expected = x if channels_first else x.permute(0, 3, 1, 2)
    assert torch.equal(data.arrays.as_pixels(x), expected)


def test_channels_that_cannot_be_told(tmp_path):
    with pytest.raises(InputError, match=r"\(9, 8, 5, 8\) may have their channels first or last"):
        data.from_arrays(noise(9, 8, 5, 8), np.arange(9) % 3)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_npz(tmp_path, channels):
    file = tmp_path / "set.npz"
    x, y = noise(20, channels, 6, 9), np.arange(20) % 4
    test_x, test_y = noise(8, channels, 6, 9, seed=1), np.arange(8) % 4
    np.savez(file, images=x, labels=y, test_images=test_x, test_labels=test_y)
    opened = data.open_data(f"npz:{file}")
    assert (opened.channels, opened.size, opened.n_classes) == (channels, (6, 9), 4)
    assert np.array_equal(opened.test.pixels.numpy(), test_x)
    assert opened.ref == data.from_arrays(x, y, test_images=test_x, test_labels=test_y).ref
    last = np.moveaxis
    np.savez(file, train_images=last(x, 1, 3), train_labels=y[:, None], val_images=x, val_labels=y)
    if channels in (1, 2, 4):
        opened = data.open_data(f"npz:{file}")
        assert opened.notes[0] == "Not used: val_images, val_labels."
        assert "No test part" in opened.notes[1]
        assert len(opened.train) + len(opened.val) + len(opened.test) == 20


def test_npz_images_are_resized_as_files_are(tmp_path):
    folder = tmp_path / "pets"
    write_part(folder / "train", {"a": 4, "b": 3})
    write_part(folder / "test", {"a": 1, "b": 1}, first=60)
    whole = data.open_data(f"folder:{folder}")
    stored = data.cache.load(whole.ref.identity)
    parts = {
        "images": stored.train.pixels,
        "labels": stored.train.labels,
        "test_images": stored.test.pixels,
        "test_labels": stored.test.labels,
    }
    np.savez(tmp_path / "pets.npz", **{name: value.numpy() for name, value in parts.items()})
    for fit in ("crop", "squash"):
        one = data.open_data(f"folder:{folder}", resize=5, fit=fit)
        two = data.open_data(f"npz:{tmp_path / 'pets.npz'}", resize=5, fit=fit)
        assert torch.equal(one.train.pixels, two.train.pixels)
        assert torch.equal(one.test.pixels, two.test.pixels)


def test_bad_npz(tmp_path):
    file = tmp_path / "set.npz"
    x, y = noise(9, 2, 4, 4), np.arange(9) % 3

    def refused(message, **arrays):
        if arrays:
            np.savez(file, **arrays)
        with pytest.raises(InputError, match=message):
            data.open_data(f"npz:{file}")

    refused("There is no file")
    with pytest.raises(InputError, match="npz:FILE"):
        data.open_data("npz:")
    refused(r"no arrays 'images' and 'labels' .* has: pictures", pictures=x)
    refused("Python objects, which are never loaded", images=x, labels=y.astype(object))
    refused(r"labels have the shape \(5,\)", images=x, labels=y[:5])
    refused("allowed are uint8", images=x.astype(np.int32), labels=y)
    refused("given together", images=x, labels=y, test_images=x)
    refused(r"shape \(9, 4\)", images=x[:, 0, 0], labels=y)
    for broken in (b"", b"no archive", file.read_bytes()[:-30]):
        file.write_bytes(broken)
        refused("not a readable .npz file")
    np.save(tmp_path / "one.npy", x)
    (tmp_path / "one.npy").rename(file)
    refused(r"not a readable .npz file \(no archive\)")


def test_npz_of_the_other_byte_order(tmp_path):
    x, y = noise(12, 3, 4, 4), np.arange(12) % 3
    np.savez(tmp_path / "set.npz", images=(x / 255).astype(">f8"), labels=y.astype(">i4"))
    assert data.open_data(f"npz:{tmp_path / 'set.npz'}").ref == data.from_arrays(x, y).ref


@pytest.mark.parametrize("channels", [1, 2, 16])
def test_stand_ins_have_up_to_16_channels(channels):
    opened = data.open_data(f"standin:{channels}x8x3")
    assert (opened.channels, opened.n_classes) == (channels, 3)
    for wrong in (0, 17):
        with pytest.raises(InputError, match="1 to 16 channels"):
            data.open_data(f"standin:{wrong}x8x3")


@pytest.mark.parametrize("size", [(9, 5), (5, 9), (3, 4)])
def test_squash_keeps_the_whole_image(size):
    image = picture(3, size)
    got = torch.from_numpy(np.array(images.fitted(image, 4, "squash"))).permute(2, 0, 1).double()
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double()
    reference = torch.nn.functional.interpolate(
        x, (4, 4), mode="bilinear", antialias=True, align_corners=False
    )[0]
    assert (got - reference).abs().max() <= 1.01


def test_reading_is_checked():
    with pytest.raises(InputError, match="resized to 0"):
        Reading(resize=0)
    with pytest.raises(InputError, match="needs a size"):
        data.open_data("digits", fit="squash")
    with pytest.raises(InputError, match="Unknown fit 'squish': did you mean 'squash'"):
        Reading(resize=4, fit="squish")


@pytest.fixture
def zoo(tmp_path):
    for part, first in (("train", 0), ("test", 60)):
        write_part(tmp_path / "zoo" / part, dict.fromkeys(("ape", "bee", "cow", "dog"), 5), first)
    return f"folder:{tmp_path / 'zoo'}"


def test_classes_are_chosen_and_ordered(zoo, tmp_path):
    whole = data.open_data(zoo)
    some = data.open_data(zoo, classes=" dog,bee")
    assert some.classes == ("dog", "bee")
    assert some.ref.identity != whole.ref.identity
    renamed = {3: 0, 1: 1}
    for mine, all_ in (
        (rows(some.test), rows(whole.test)),
        (rows(some.train) | rows(some.val), rows(whole.train) | rows(whole.val)),
    ):
        assert mine == {(renamed[label], x) for label, x in all_ if label in renamed}
    assert data.open_data(zoo, classes="dog,bee").ref == some.ref
    assert data.open_data(zoo, classes="bee,dog").ref != some.ref
    assert data.open_data("digits", classes="7,1").classes == ("7", "1")


def test_only_chosen_classes_are_decoded(zoo, tmp_path):
    for part in ("train", "test"):
        (tmp_path / "zoo" / part / "cow" / "0.png").write_bytes(b"no image")
    labels = [0, 1, 2] * 4
    pictures = [b"no image" if label == 1 else _png(n) for n, label in enumerate(labels)]
    write_parquet(tmp_path / "pq" / "train-0.parquet", labels, pictures=pictures, names=list("abc"))
    assert len(data.open_data(zoo, classes="ape,dog").test) == 10
    assert data.open_data(f"parquet:{tmp_path / 'pq'}", classes="c,a").classes == ("c", "a")
    for source in (zoo, f"parquet:{tmp_path / 'pq'}"):
        with pytest.raises(InputError, match="Cannot read the image"):
            data.open_data(source)


def _png(number):
    from pictures import png

    return png(picture(number))


def test_bad_classes(zoo, tmp_path):
    cases = {
        "ape,dig": r"Unknown class 'dig' among 4: perhaps 'dog'\?",
        "ape,zebra": r"Unknown class 'zebra' among 4: perhaps 'ape' or 'bee' or 'cow'\?",
        "ape,bee,ape": "class 'ape' is named twice",
        "": "Unknown class ''",
        "imagenete@mtt": "Unknown class list 'imagenete@mtt': did you mean 'imagenette@mtt'",
        "imagenette@mtt": "list of ImageNet-1K classes; this source has 4",
    }
    for classes, message in cases.items():
        with pytest.raises(InputError, match=message):
            data.open_data(zoo, classes=classes)
    for file in (tmp_path / "zoo" / "test" / "cow").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="test part has no image of the classes cow"):
        data.open_data(zoo, classes="cow")


def test_class_names_with_commas():
    x, y = noise(12, 1, 4, 4), np.arange(12) % 3
    named = data.from_arrays(x, y, classes=["tench, Tinca", "b", "c"])
    opened = data.open_data(f"cached:{named.ref.identity}", classes="c; tench, Tinca")
    assert opened.classes == ("c", "tench, Tinca")
    opened = data.open_data(f"cached:{named.ref.identity}", classes="tench, Tinca")
    assert opened.classes == ("tench, Tinca",)


def test_class_lists_follow_the_papers():
    lengths = {name: len(CLASS_LISTS.get(name).ids) for name in CLASS_LISTS.names()}
    mtt = ("imagenette", "imagewoof", "imagefruit", "imageyellow", "imagemeow", "imagesquawk")
    assert lengths == {f"{n}@mtt": 10 for n in mtt} | {"imagenet10@idc": 10, "imagenet100@idc": 100}
    assert CLASS_LISTS.get("imagewoof@mtt").ids == (
        193,
        182,
        258,
        162,
        155,
        167,
        159,
        273,
        207,
        229,
    )
    ten, hundred = (CLASS_LISTS.get(f"imagenet{n}@idc") for n in (10, 100))
    assert hundred.wnids[:10] == ten.wnids
    assert (ten.wnids[0], ten.wnids[9]) == ("n02869837", "n01773797")
    assert len(set(hundred.wnids)) == 100
    timm = find_spec("timm")
    if timm is None or timm.origin is None:
        pytest.skip("timm, which lists the WordNet ids of ImageNet-1K, is not installed")
    text = Path(timm.origin).parent / "data" / "_info" / "imagenet_synsets.txt"
    known = text.read_text().split()
    for name in CLASS_LISTS.names():
        chosen = CLASS_LISTS.get(name)
        assert chosen.wnids == tuple(known[label] for label in chosen.ids)
        assert "\n" not in chosen.help


def test_class_lists_by_number_and_by_name(tmp_path):
    wanted = CLASS_LISTS.get("imagesquawk@mtt")
    labels = np.arange(3000) % 1000
    x = np.zeros((3000, 1, 2, 2), np.uint8)
    x[:, 0, 0, 0], x[:, 0, 0, 1], x[:, 0, 1, 0] = (
        labels // 250,
        labels % 250,
        np.arange(3000) // 1000,
    )
    whole = data.from_arrays(x, labels)
    some = data.open_data(f"cached:{whole.ref.identity}", classes="imagesquawk@mtt")
    assert some.classes == tuple(map(str, wanted.ids))
    found = some.train.pixels[:, 0, 0, 0].long() * 250 + some.train.pixels[:, 0, 0, 1].long()
    assert found.tolist() == [wanted.ids[label] for label in some.train.labels.tolist()]
    few = tmp_path / "few" / "train"
    for name in (*wanted.wnids, "n00000001"):
        (few / name).mkdir(parents=True)
        for i in range(3):
            picture(i + hash(name) % 1000, (2, 2)).save(few / name / f"{i}.png")
    opened = data.open_data(f"folder:{few.parent}", classes="imagesquawk@mtt")
    assert opened.classes == wanted.wnids


def test_parquet_in_which_a_held_out_part_has_no_labels(tmp_path):
    folder = tmp_path / "pq"
    write_parquet(folder / "train-0.parquet", [0, 1, 0, 1])
    write_parquet(folder / "test-0.parquet", [-1, -1])
    write_parquet(folder / "validation-0.parquet", [0, 1, 1])
    opened = data.open_data(f"parquet:{folder}")
    assert opened.notes == ("'test' has no labels (all are -1).",)
    assert opened.test.labels.tolist() == [0, 1, 1]
    (folder / "validation-0.parquet").unlink()
    write_parquet(folder / "train-0.parquet", [0, 1, 0, 1, 0, 1])
    opened = data.open_data(f"parquet:{folder}")
    assert len(opened.notes) == 2
    assert "No test part" in opened.notes[1]


def test_parquet_columns_are_found_by_their_features(tmp_path):
    folder = tmp_path / "pq"
    options = {"image": "photo", "label": "species", "names": ["a", "b"]}
    write_parquet(folder / "train-0.parquet", [0, 1] * 3, **options)
    assert data.open_data(f"parquet:{folder}").classes == ("a", "b")


def test_a_flat_held_out_part_is_refused_with_advice(tmp_path):
    write_part(tmp_path / "in1k" / "train", {"n01": 3, "n02": 3})
    (tmp_path / "in1k" / "val").mkdir()
    picture(1).save(tmp_path / "in1k" / "val" / "ILSVRC2012_val_00000001.png")
    with pytest.raises(InputError, match=r"val lie in no class folders.*val/WNID/"):
        data.open_data(f"folder:{tmp_path / 'in1k'}")


def test_a_large_source_is_known_by_size_and_date(tmp_path, zoo, monkeypatch):
    monkeypatch.setattr("potstill.data.cache.HASHED", 10)
    monkeypatch.setattr("potstill.data.cache.file_hash", None)
    before = data.open_data(zoo)
    monkeypatch.setattr("potstill.data.folders.decode_file", None)
    assert data.open_data(zoo).ref == before.ref
    monkeypatch.undo()
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("potstill.data.cache.HASHED", 10)
    file = tmp_path / "zoo" / "train" / "ape" / "0.png"
    Image.open(file).transpose(Image.Transpose.ROTATE_180).save(file, compress_level=0)
    assert data.open_data(zoo).ref != before.ref
