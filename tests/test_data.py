"""Data: sources, cache, splits and normalisers, on tiny generated files."""

import contextlib
import os
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from pictures import picture, png, rows, write_parquet, write_part
from potstill import data
from potstill.core import spec
from potstill.core.errors import InputError
from potstill.core.vision import import_torchvision
from potstill.data import cache, images

REAL = Path(os.environ.get("POTSTILL_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture
def pets(tmp_path):
    write_part(tmp_path / "pets" / "train", {"cat": 6, "dog": 4})
    write_part(tmp_path / "pets" / "test", {"cat": 2, "dog": 1}, first=50)
    return tmp_path / "pets"


def arrays(n=20, classes=2, shape=(1, 4, 4), seed=0):
    x = torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed))
    return x.to(torch.uint8), torch.arange(n) % classes


def test_digits_have_a_fixed_stratified_test_part():
    opened, again = data.open_data("digits"), data.open_data("digits")
    assert (opened.channels, opened.size, opened.n_classes) == (1, (8, 8), 10)
    assert len(opened.train) + len(opened.val) + len(opened.test) == 1797
    assert opened.train.pixels.dtype == torch.uint8
    assert set(opened.train.pixels.unique().tolist()) <= {round(v * 255 / 16) for v in range(17)}
    assert opened.ref == again.ref
    assert torch.equal(opened.test.pixels, again.test.pixels)
    whole = torch.bincount(torch.cat([opened.train.labels, opened.val.labels, opened.test.labels]))
    third = torch.bincount(opened.test.labels)
    assert third.tolist() == [round(n / 3) for n in whole.tolist()]


def test_folder_gives_the_files_pixels(pets):
    opened = data.open_data(f"folder:{pets}")
    assert opened.classes == ("cat", "dog")
    assert (opened.channels, opened.size) == (3, (4, 6))
    assert opened.notes == ()
    for part, splits in {"train": (opened.train, opened.val), "test": (opened.test,)}.items():
        expected = {
            (label, np.asarray(Image.open(file)).transpose(2, 0, 1).tobytes())
            for label, name in enumerate(opened.classes)
            for file in (pets / part / name).iterdir()
        }
        assert set().union(*map(rows, splits)) == expected
    assert torch.bincount(opened.val.labels).tolist() == [1, 1]


def test_folder_without_test_part_sets_a_fifth_aside(tmp_path):
    write_part(tmp_path / "flat", {"a": 10, "b": 3}, mode="L")
    opened = data.open_data(f"folder:{tmp_path / 'flat'}")
    assert opened.channels == 1
    assert torch.bincount(opened.test.labels).tolist() == [2, 1]
    assert "No test part found" in opened.notes[0]
    again = data.open_data(f"folder:{tmp_path / 'flat'}")
    assert (again.notes, again.ref) == (opened.notes, opened.ref)
    parts = [rows(split) for split in (opened.train, opened.val, opened.test)]
    assert len(set().union(*parts)) == sum(map(len, parts)) == 13


def test_one_colour_image_makes_all_rgb(pets):
    for file in pets.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    assert data.open_data(f"folder:{pets}").channels == 1
    picture(7).save(pets / "test" / "dog" / "0.png")
    opened = data.open_data(f"folder:{pets}")
    assert opened.channels == 3
    assert torch.equal(opened.train.pixels[:, 0], opened.train.pixels[:, 2])


def test_a_further_held_out_part_is_noted(pets):
    write_part(pets / "val", {"cat": 1})
    opened = data.open_data(f"folder:{pets}")
    assert opened.notes == ("'test' is the test part; not used: 'val'.",)
    assert len(opened.test) == 3


def test_identity_follows_the_content_alone(pets, tmp_path):
    before = data.open_data(f"folder:{pets}").ref.identity
    shutil.copytree(pets, tmp_path / "moved")
    moved = tmp_path / "moved"
    assert data.open_data(f"folder:{moved}").ref.identity == before
    file = moved / "train" / "dog" / "2.png"
    changed = Image.open(file).copy()
    changed.putpixel((0, 0), tuple(v ^ 1 for v in changed.getpixel((0, 0))))
    changed.save(file)
    assert data.open_data(f"folder:{moved}").ref.identity != before
    (pets / "train" / "dog").rename(pets / "train" / "fox")
    (pets / "test" / "dog").rename(pets / "test" / "fox")
    assert data.open_data(f"folder:{pets}").ref.identity != before


def test_opening_again_decodes_nothing(pets, monkeypatch):
    first = data.open_data(f"folder:{pets}")

    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr("potstill.data.folders.decode_file", fail)
    again = data.open_data(f"folder:{pets}")
    assert torch.equal(first.train.pixels, again.train.pixels)
    with pytest.raises(AssertionError, match="decoded again"):
        data.open_data(f"folder:{pets}", resize=4)


@pytest.mark.parametrize("size", [(9, 5), (5, 9), (6, 6), (3, 4)])
def test_resize_fits_the_shorter_side_and_crops_the_centre(size):
    image = picture(3, size)
    side = 4
    fitted = images.fitted(image, side)
    assert fitted.size == (side, side)
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double()
    width, height = (int(s * side / min(size)) for s in size)
    reference = torch.nn.functional.interpolate(
        x, (height, width), mode="bilinear", antialias=True, align_corners=False
    )[0]
    top, left = round((height - side) / 2), round((width - side) / 2)
    reference = reference[:, top : top + side, left : left + side]
    got = torch.from_numpy(np.array(fitted)).permute(2, 0, 1).double()
    assert (got - reference).abs().max() <= 1.01


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (43, 30), (30, 31), (64, 48)])
def test_crops_are_those_of_torchvision(size):
    try:
        import_torchvision()
    except InputError as error:
        pytest.skip(str(error))
    from torchvision.transforms import CenterCrop, Compose, Resize

    image = picture(5, size)
    for side in (16, 22, 25):
        expected = np.asarray(Compose([Resize(side), CenterCrop(side)])(image))
        assert np.array_equal(np.asarray(images.fitted(image, side)), expected)


def test_linked_folders_are_followed(pets, tmp_path):
    before = len(data.open_data(f"folder:{pets}").test)
    write_part(tmp_path / "more", {"dog": 3}, first=80)
    (pets / "test" / "dog" / "linked").symlink_to(tmp_path / "more" / "dog")
    assert len(data.open_data(f"folder:{pets}").test) == before + 3


def test_mixed_sizes_need_resize(pets):
    picture(1, (8, 5)).save(pets / "train" / "dog" / "3.png")
    with pytest.raises(InputError, match=r"6x4, .*dog/3.png is 8x5 .*--resize N"):
        data.open_data(f"folder:{pets}")
    assert data.open_data(f"folder:{pets}", resize=4).size == (4, 4)
    with pytest.raises(InputError, match="resized to 0"):
        data.open_data(f"folder:{pets}", resize=0)


@pytest.mark.parametrize("broken", [b"", b"no image", png(picture(0))[:60]])
def test_a_corrupt_image_is_named(pets, tmp_path, broken):
    (pets / "train" / "cat" / "3.png").write_bytes(broken)
    with pytest.raises(InputError, match=r"Cannot read the image .*cat/3\.png"):
        data.open_data(f"folder:{pets}")
    pictures = [png(picture(0)), broken, *(png(picture(n)) for n in range(2, 6))]
    write_parquet(tmp_path / "pq" / "train-0.parquet", [0, 0, 0, 1, 1, 1], pictures=pictures)
    with pytest.raises(InputError, match=r"image in row 1 of .*train-0\.parquet"):
        data.open_data(f"parquet:{tmp_path / 'pq'}")


def test_no_damaged_bytes_escape_as_another_error():
    whole = png(picture(0))
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] = generator.integers(256)
        with contextlib.suppress(InputError):
            assert images.decode(bytes(damaged), "x.png").mode in ("L", "RGB")


def test_image_modes():
    deep = Image.fromarray(np.zeros((3, 3), np.uint16))
    with pytest.raises(InputError, match="more than 8 bits"):
        images.decode(png(deep), "deep.png")
    clear = picture(0).convert("P")
    clear.info["transparency"] = bytes(range(256))
    modes = {"RGBA": "RGB", "LA": "L", "1": "L", "P": "RGB"}
    for mode, expected in modes.items():
        assert images.decode(png(picture(0).convert(mode)), "x").mode == expected
    assert images.decode(png(clear), "clear").mode == "RGB"


@pytest.mark.parametrize("part", ["test-00000-of-00001", "validation-0", "val-0"])
def test_parquet(tmp_path, part):
    folder = tmp_path / "pq"
    write_parquet(folder / "train-00000-of-00002.parquet", [0, 1, 0, 1], names=["cat", "dog"])
    write_parquet(folder / "train-00001-of-00002.parquet", [1, 1, 0], names=["cat", "dog"])
    write_parquet(folder / f"{part}.parquet", [1], names=["cat", "dog"])
    opened = data.open_data(f"parquet:{folder}")
    assert opened.classes == ("cat", "dog")
    assert (len(opened.train), len(opened.val), len(opened.test)) == (5, 2, 1)
    expected = np.asarray(picture(0)).transpose(2, 0, 1)
    assert np.array_equal(opened.test.pixels[0].numpy(), expected)
    assert opened.test.labels.tolist() == [1]


def test_parquet_with_other_column_names_and_plain_labels(tmp_path):
    write_parquet(
        tmp_path / "pq" / "train-0.parquet", [0, 1, 2] * 3, image="img", label="fine_label"
    )
    opened = data.open_data(f"parquet:{tmp_path / 'pq'}")
    assert opened.classes == ("0", "1", "2")
    assert "No test part" in opened.notes[0]


def test_parquet_equals_folder_of_the_same_images(tmp_path):
    write_part(tmp_path / "train", {"a": 4, "b": 4})
    write_part(tmp_path / "test", {"a": 1, "b": 1}, first=50)
    for part in ("train", "test"):
        found = sorted((tmp_path / part).rglob("*.png"))
        write_parquet(
            tmp_path / "pq" / f"{part}-0.parquet",
            ["ab".index(f.parent.name) for f in found],
            names=["a", "b"],
            pictures=[f.read_bytes() for f in found],
        )
    # the folder holds pq/ as well, but only the class folders of train and test count
    folder, table = f"folder:{tmp_path}", f"parquet:{tmp_path / 'pq'}"
    assert data.open_data(folder).ref == data.open_data(table).ref


def test_parquet_leaves_the_settings_of_datasets_alone(tmp_path, capfd):
    import datasets

    write_parquet(tmp_path / "pq" / "train-0.parquet", [0, 1] * 3)
    datasets.enable_progress_bars()
    level = datasets.logging.get_verbosity()
    data.open_data(f"parquet:{tmp_path / 'pq'}")
    assert not datasets.are_progress_bars_disabled()
    assert datasets.logging.get_verbosity() == level
    assert capfd.readouterr().err == ""


def test_bad_parquet(tmp_path):
    folder = tmp_path / "pq"
    source = f"parquet:{folder}"
    file = folder / "train-0.parquet"
    table = pyarrow.table({"photo": [b"", b""], "label": [0, 1]})
    file.parent.mkdir()
    parquet.write_table(table, file)
    with pytest.raises(InputError, match=r"no image column .* columns are: photo, label"):
        data.open_data(source)
    write_parquet(file, [0, 1], label="kind")
    with pytest.raises(InputError, match=r"no label column .* columns are: image, kind"):
        data.open_data(source)
    write_parquet(file, [0, 0, -1, 1, 1])
    with pytest.raises(InputError, match="from -1 to 1"):
        data.open_data(source)
    write_parquet(file, [0, 1, 10**9])
    with pytest.raises(InputError, match="from 0 to 1000000000"):
        data.open_data(source)
    write_parquet(file, [0, 0, None, 1])
    with pytest.raises(InputError, match=r"Row 2 of .* label None"):
        data.open_data(source)
    write_parquet(file, [0, 0, 0, 1, 1, 1])
    write_parquet(folder / "test-0.parquet", [2])
    with pytest.raises(InputError, match=r"Row 0 of the test part has the label 2; .* 0 to 1"):
        data.open_data(source)
    write_parquet(folder / "test-0.parquet", [1], names=["a", "b"])
    with pytest.raises(InputError, match="name different classes"):
        data.open_data(source)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"train-0\.parquet is not a readable parquet file"):
        data.open_data(source)
    file.rename(folder / "part-0.parquet")
    with pytest.raises(InputError, match=r"no train-\*\.parquet .*part-0\.parquet"):
        data.open_data(source)


def test_bad_sources(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts" / "cat").mkdir(parents=True)
    (tmp_path / "texts" / "cat" / "a.txt").write_text("meow")
    (tmp_path / "bare" / "train").mkdir(parents=True)
    cases = {
        "digit": "Unknown data source 'digit': did you mean 'digits'",
        "digits:9": "takes nothing after its name, not '9'",
        "folder": "needs a folder: folder:DIR",
        "parquet:": "needs a folder: parquet:DIR",
        f"folder:{tmp_path / 'none'}": "There is no folder .*none",
        f"parquet:{tmp_path / 'none'}": "There is no folder .*none",
        f"folder:{tmp_path / 'empty'}": "empty is empty",
        f"folder:{tmp_path / 'texts'}": "No images found in .*texts",
        f"folder:{tmp_path / 'bare'}": "no class folders in .*train",
        f"parquet:{tmp_path / 'texts'}": "found: no parquet file",
        f"{tmp_path / 'empty'}": "is a folder: write folder:",
    }
    for source, message in cases.items():
        with pytest.raises(InputError, match=message):
            data.open_data(source)


def test_test_class_that_train_lacks(pets):
    write_part(pets / "test", {"emu": 1})
    with pytest.raises(InputError, match=r"class 'emu' of .*emu/0\.png is not in .*train"):
        data.open_data(f"folder:{pets}")


def test_classes_with_too_few_images(pets):
    for number in (1, 2, 3):
        (pets / "train" / "cat" / f"{number}.png").unlink()
    assert len(data.open_data(f"folder:{pets}").train) == 2 - 1 + 4 - 1 + 1
    (pets / "train" / "cat" / "4.png").unlink()
    (pets / "train" / "cat" / "5.png").unlink()
    message = "Class 'cat' has 1 image; at least 2 are needed: one to train on and one to validate."
    with pytest.raises(InputError) as caught:
        data.open_data(f"folder:{pets}")
    assert str(caught.value) == message
    with pytest.raises(InputError, match=r"Class '1' has 2 images; at least 3 .* one to test"):
        data.from_arrays(*arrays(5))
    with pytest.raises(InputError, match="Class 'c' has 0 images"):
        data.from_arrays(*arrays(), classes=["a", "b", "c"])


@pytest.mark.parametrize("fraction", [0.0, -0.1, 0.51, 1.0, float("nan")])
def test_validation_fraction(fraction):
    with pytest.raises(InputError, match=r"validation fraction is .* at most 0\.5"):
        data.from_arrays(*arrays(), validation=fraction)
    with pytest.raises(InputError, match=r"validation fraction is .* at most 0\.5"):
        data.open_data("digits", validation=fraction)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3, 0.5])
def test_validation_part_is_disjoint_and_keyed(fraction):
    x, y = arrays(37, 3)
    state = torch.random.get_rng_state()
    opened = data.from_arrays(x, y, test_images=x[:1], test_labels=y[:1], validation=fraction)
    again = data.from_arrays(x, y, test_images=x[:1], test_labels=y[:1], validation=fraction)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(opened.val.pixels, again.val.pixels)
    assert not rows(opened.train) & rows(opened.val)
    assert len(rows(opened.train) | rows(opened.val)) == 37
    counts = torch.bincount(y).tolist()
    assert torch.bincount(opened.val.labels).tolist() == [
        max(1, round(fraction * n)) for n in counts
    ]


def test_arrays_of_all_layouts_are_one_data_set():
    x, y = arrays(shape=(3, 4, 5))
    forms = [x, x.numpy(), x.permute(0, 2, 3, 1), x.double() / 255, (x.float() / 255).numpy()]
    labels = [y, y.numpy(), y.tolist(), y.to(torch.int32), y.to(torch.uint8)]
    made = [data.from_arrays(a, b) for a, b in zip(forms, labels, strict=True)]
    assert len({each.ref for each in made}) == 1
    assert data.from_arrays(x[:, 0], y).ref == data.from_arrays(x[:, :1], y).ref
    first = made[0].test.pixels.clone()
    x.zero_()
    assert torch.equal(made[0].test.pixels, first)


def test_bad_arrays():
    x, y = arrays()
    nan = x.float() / 255
    nan[3, 0, 1, 1] = float("nan")
    cases = [
        ((x[:, 0, 0], y), {}, r"shape \(20, 4\); allowed"),
        ((x.repeat(1, 4, 1, 1), y), {}, r"shape \(20, 4, 4, 4\) may have .* first or last"),
        ((x[:0], y[:0]), {}, "N at least 1"),
        ((x.long(), y), {}, "allowed are uint8"),
        ((nan, y), {}, "contain NaN"),
        ((x.float(), y), {}, r"reach from .* must be in \[0, 1\]"),
        ((x.float() / 255 - 0.1, y), {}, r"reach from -0\.1"),
        (([["a"]], y), {}, "no array of numbers"),
        ((x, y[:5]), {}, r"labels have the shape \(5,\)"),
        ((x, y.float()), {}, "allowed are integers"),
        ((x, y - 1), {}, "from -1 to 0"),
        ((x, y), {"classes": ["a"]}, "label 1; allowed is 0 to 0"),
        ((x, y), {"classes": ["a", "a"]}, "same name"),
        ((x, y), {"test_images": x}, "given together"),
        ((x, y), {"test_images": x[:, :, 1:], "test_labels": y}, "must be equal"),
        ((x, y), {"test_images": x, "test_labels": y + 1}, "test part has the label 2"),
    ]
    for args, options, message in cases:
        with pytest.raises(InputError, match=message):
            data.from_arrays(*args, **options)


def test_reopen_reads_the_cache_alone(pets, cache_folder):
    for opened in (data.open_data(f"folder:{pets}", validation=0.3), data.from_arrays(*arrays())):
        again = data.reopen(spec.from_json(spec.to_json(opened.ref)))
        for part in ("train", "val", "test"):
            one, two = getattr(opened, part), getattr(again, part)
            assert torch.equal(one.pixels, two.pixels)
            assert torch.equal(one.labels, two.labels)
        assert again.classes == opened.classes
        assert data.reopen(opened.ref) is again
    lost = data.DataRef(identity="0" * 64)
    with pytest.raises(InputError, match="Name its source again"):
        data.reopen(lost)


def test_a_damaged_cache_is_made_again(pets, cache_folder):
    opened = data.open_data(f"folder:{pets}")
    file = cache.data_path(opened.ref.identity)
    for damage in (file.read_bytes()[:-5], b"", file.read_bytes()[:-1] + b"\x07"):
        file.write_bytes(damage)
        with pytest.raises(InputError, match="Name its source again"):
            data.reopen(opened.ref)
        assert data.open_data(f"folder:{pets}").ref == opened.ref
        assert torch.equal(cache.load(opened.ref.identity).test.pixels, opened.test.pixels)
    for index in (cache_folder / "index").iterdir():
        index.write_text("{")
    assert data.open_data(f"folder:{pets}").ref == opened.ref


def test_concurrent_writers_leave_one_sound_file(cache_folder):
    x, y = arrays(200)
    threads = [threading.Thread(target=data.from_arrays, args=(x, y)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(cache_folder.glob("*"))) == 1
    assert len(data.reopen(data.from_arrays(x, y).ref).train) == 144


def test_every_source_is_described():
    assert {"digits", "folder", "parquet", "standin", "cached"} <= set(data.SOURCES.names())
    assert all("\n" not in data.SOURCES.get(n).help for n in data.SOURCES.names())


def test_mean_std_against_plain_arithmetic():
    stats = data.named_stats("cifar100@mtt")
    assert stats.mean == (0.4914, 0.4822, 0.4465)
    x, _ = arrays(shape=(3, 4, 4))
    wide = x.double() / 255
    z = stats.forward(wide)
    assert z.dtype == torch.float64
    for c in range(3):
        plain = (wide[:, c] - stats.mean[c]) / stats.std[c]
        assert torch.allclose(z[:, c], plain, rtol=0, atol=1e-14)
    assert torch.allclose(stats.inverse(z), wide, rtol=0, atol=1e-14)
    assert stats.forward(x).dtype == stats.forward(wide.half()).dtype == torch.float32
    assert torch.allclose(stats.forward(x).double(), z, rtol=0, atol=1e-6)
    assert stats.inverse(z + 9).max() > 1
    assert stats.nbytes() == 24
    assert spec.from_json(spec.to_json(stats)) == stats


def test_measured_statistics():
    x, y = arrays(shape=(3, 4, 4))
    x[:, 2] = 51
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stats = data.measure_stats(data.Split(x, y))
    wide = x.double() / 255
    assert stats.mean == pytest.approx(wide.mean((0, 2, 3)).tolist(), abs=1e-13)
    assert stats.std[:2] == pytest.approx(wide.std((0, 2, 3), correction=0).tolist()[:2], abs=1e-13)
    assert (stats.mean[2], stats.std[2]) == (0.2, 1.0)


def test_bad_normalisers():
    with pytest.raises(InputError, match="did you mean 'cifar10@mtt'"):
        data.named_stats("cifar10@mt")
    stats = data.named_stats("tiny@mtt")
    with pytest.raises(InputError, match=r"3 channels, not for the shape \(20, 1, 4, 4\)"):
        stats.forward(arrays()[0])
    with pytest.raises(InputError, match=r"uint8 or floating, not torch\.int64"):
        stats.forward(torch.zeros(1, 3, 4, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="above 0"):
        data.MeanStd(mean=(0.5,), std=(0.0,))
    with pytest.raises(InputError, match="one mean and one std"):
        data.MeanStd(mean=(0.5,), std=(1.0, 1.0))


def test_real_cifar10_subset(tmp_path):
    source = REAL / "cifar10"
    if not source.is_dir():
        pytest.skip(f"no CIFAR-10 in {source} (POTSTILL_DATA names the folder that holds it)")
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    table = Dataset.from_parquet(
        str(source / "test-00000-of-00001.parquet"), cache_dir=str(tmp_path / "scratch")
    )
    (tmp_path / "pq").mkdir()
    table.select(range(600)).to_parquet(str(tmp_path / "pq" / "train-0.parquet"))
    table.select(range(600, 700)).to_parquet(str(tmp_path / "pq" / "test-0.parquet"))
    opened = data.open_data(f"parquet:{tmp_path / 'pq'}")
    assert (opened.channels, opened.size, opened.n_classes) == (3, (32, 32), 10)
    assert opened.classes[:2] == ("airplane", "automobile")
    assert len(opened.train) + len(opened.val) == 600
    plain = np.asarray(table[650]["image"].convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(opened.test.pixels[50].numpy(), plain)
    assert opened.test.labels[50] == table[650]["label"]
