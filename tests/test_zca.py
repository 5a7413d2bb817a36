"""ZCA against plain formulas, its forms of a rank, its way back, and where it is kept."""

import dataclasses
import itertools
import json
import math
import subprocess
import sys

import pytest
import torch

from potstill import data
from potstill.core import spec, state
from potstill.core.errors import InputError
from potstill.data import Rows, Zca, ZcaRef, keep_space, make_space, open_space, prepared
from potstill.data.space import _opened
from potstill.data.whitening import LARGEST, cut, fit_zca
from potstill.data.zca import restored, sealed

KINDS = ("zca-mtt", "zca-kip")
SHAPE = (3, 5, 4)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "spaces"


def pictures(n=400, shape=SHAPE, seed=0):
    """Return uint8 pictures whose neighbouring pixels and channels go together."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, *shape, generator=draw, dtype=torch.float64)
    smooth = noise.cumsum(-1).cumsum(-2) + 2 * noise.mean(1, keepdim=True)
    return (128 + 25 * smooth).clamp(0, 255).to(torch.uint8)


def dataset(n=400, shape=SHAPE):
    return data.from_arrays(pictures(n, shape), torch.arange(n) % 4)


def plain_mtt(train, x):
    """Transcribe trajectory-matching.md 3.1 for float64 rows in [0, 1]; return T and T_inv too."""
    mu = train.sum(0) / len(train)
    sigma = (train - mu).T @ (train - mu) / (len(train) - 1)
    u, s, _ = torch.linalg.svd(sigma)
    t = u @ torch.diag((s + 0.1) ** -0.5) @ u.T
    t_inv = u @ torch.diag((s + 0.1) ** 0.5) @ u.T
    return (x - mu) @ t, t, t_inv, s


def plain_kip(train, x):
    """Transcribe meta-gradients.md 8, values in the order H, W, C there; return W too."""

    def centred(rows):
        rows = rows - rows.mean(1)[:, None]
        return rows / rows.square().sum(1).sqrt()[:, None]

    own = centred(train)
    cov = own.T @ own / len(own)
    v, e, _ = torch.linalg.svd(cov)
    w = v @ torch.diag(1 / (e + 0.1 * e.mean()).sqrt()) @ v.T
    return centred(x) @ w, w, torch.linalg.inv(w), e


PLAIN = {"zca-mtt": plain_mtt, "zca-kip": plain_kip}


def rows_of(x):
    return x.double().flatten(1) / 255


# --- the formulas


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_plain_formula(kind):
    train, test = pictures(), pictures(50, seed=1)
    space = fit_zca(kind, train)
    want, matrix, _, values = PLAIN[kind](rows_of(train), rows_of(test))
    got = space.forward(test.double() / 255)
    assert got.dtype == torch.float64
    assert got.shape == test.shape
    torch.testing.assert_close(got.flatten(1), want, rtol=0, atol=1e-10)
    parts = space.parts(torch.float64, torch.device("cpu"))
    torch.testing.assert_close(parts["matrix"], matrix, rtol=0, atol=1e-10)
    torch.testing.assert_close(space.values, values, rtol=0, atol=1e-12)
    # as stored, in float32: from bytes and from floats in [0, 1] alike
    stored = sealed(space)
    assert {t.dtype for t in stored.tensors().values()} == {torch.float32}
    for x in (test, test.double().float() / 255):
        z = stored.forward(x)
        assert z.dtype == torch.float32
        torch.testing.assert_close(z.flatten(1).double(), want, rtol=0, atol=5e-5)


def test_the_order_of_the_values_of_an_image_does_not_matter():
    train = pictures()
    space = fit_zca("zca-kip", train)
    z, *_ = plain_kip(rows_of(train.movedim(1, 3)), rows_of(train.movedim(1, 3)))
    height, width = SHAPE[1:]
    want = z.view(-1, height, width, 3).movedim(3, 1)
    torch.testing.assert_close(space.forward(train.double() / 255), want, rtol=0, atol=1e-10)


def test_whitening_decorrelates():
    train = pictures(2000)
    space = fit_zca("zca-mtt", train)
    z = space.forward(train.double() / 255).flatten(1)
    z = z @ space.basis  # in the directions of the eigenvectors
    got = z.T @ z / (len(z) - 1)
    want = torch.diag(space.values / (space.values + 0.1))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    assert float(z.mean(0).abs().max()) < 1e-10
    assert 0.3 < float(want.max()) < 1  # the pictures do have structure to take away


def test_fewer_images_than_values():
    space = fit_zca("zca-mtt", pictures(7))
    assert float(space.values.min()) == 0
    assert bool(space.forward(pictures(3)).isfinite().all())
    with pytest.raises(InputError, match="at least 2 training images, not 1"):
        fit_zca("zca-kip", pictures(1))


def test_images_of_one_colour_are_no_trouble():
    space = fit_zca("zca-kip", torch.cat([pictures(), torch.full((9, *SHAPE), 77).byte()]))
    usual = float(space.forward(pictures()).flatten(1).norm(dim=1).mean())
    for colour in (0, 25, 255):
        plain = space.forward(torch.full((1, *SHAPE), colour, dtype=torch.uint8))
        assert float(plain.norm()) < 0.01 * usual
    x = torch.full((1, *SHAPE), 0.3, requires_grad=True)
    space.forward(x).sum().backward()
    assert bool(x.grad.isfinite().all())


def test_any_part_of_the_images_at_a_time_gives_the_same_fit(monkeypatch):
    train = pictures(300, (3, 4, 4))
    once = {kind: fit_zca(kind, train) for kind in KINDS}

    class InParts:
        """Only what a memory-mapped array of images offers."""

        shape = train.shape

        def __len__(self):
            return len(train)

        def split(self, n):
            return iter(train.split(min(n, 41)))

    for kind in KINDS:
        other = fit_zca(kind, InParts())
        z = (fit.forward(train.double()) for fit in (once[kind], other))
        torch.testing.assert_close(*z, rtol=0, atol=1e-9)
        mapped = fit_zca(kind, Rows(train.numpy()))
        assert torch.equal(mapped.basis, once[kind].basis)
    assert torch.equal(fit_zca("zca-mtt", InParts()).mean, once["zca-mtt"].mean)
    seen, _ = prepared(once["zca-mtt"], Rows(train.numpy(), torch.arange(9, 30)))
    torch.testing.assert_close(seen, once["zca-mtt"].forward(train[9:30]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_does_not_move_a_bit(kind):
    train, before = pictures(300, (3, 16, 16)), torch.get_num_threads()
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        space = sealed(fit_zca(kind, train))
        cpu = torch.device("cpu")
        parts = [space.parts(torch.float64, cpu, inverse=way)["matrix"] for way in (False, True)]
        found.append((space.ref, *parts))
    torch.set_num_threads(before)
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1:], found[1][1:], strict=True))


def test_the_caller_keeps_its_threads_and_random_numbers():
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    fit_zca("zca-mtt", pictures(20))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [None, 40, 12])
def test_gradients(kind, rank):
    space = fit_zca(kind, pictures(80, (1, 7, 6)))
    space = space if rank is None else cut(space, rank)
    x = pictures(2, (1, 7, 6), seed=3).double() / 255
    assert torch.autograd.gradcheck(space.forward, x.requires_grad_())
    assert torch.autograd.gradcheck(space.inverse, x)


# --- the way back


@pytest.mark.parametrize("rank", [None, 50, 20])
def test_mtt_is_undone_exactly(rank):
    train, x = pictures(), pictures(30, seed=5).double() / 255
    space = fit_zca("zca-mtt", train)
    space = space if rank is None else cut(space, rank)
    torch.testing.assert_close(space.inverse(space.forward(x)), x, rtol=0, atol=1e-10)
    single = sealed(space)
    back = single.inverse(single.forward(x.float()))
    torch.testing.assert_close(back, x.float(), rtol=0, atol=5e-6)
    if rank is None:  # kornia's form of the same: (z + mu T) T_inv
        z, t, t_inv, _ = plain_mtt(rows_of(train), x.flatten(1))
        want = (z + space.mean @ t) @ t_inv
        got = space.inverse(z.view(x.shape)).flatten(1)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rank", [None, 20])
def test_the_view_of_kip_has_the_contrast_and_brightness_of_the_training_images(rank):
    train = pictures()
    space = fit_zca("zca-kip", train)
    space = space if rank is None else cut(space, rank)
    x = train.double() / 255
    flat = x.flatten(1)
    norms = (flat - flat.mean(1, keepdim=True)).norm(dim=1)
    assert space.ref.brightness == pytest.approx(float(flat.mean()), abs=1e-12)
    assert space.ref.contrast == pytest.approx(float(norms.mean()), abs=1e-12)
    view = space.inverse(space.forward(x)).flatten(1)
    same = (flat - flat.mean(1, keepdim=True)) / norms[:, None]
    want = same * norms.mean() + flat.mean()
    torch.testing.assert_close(view, want, rtol=0, atol=1e-10)


# --- forms of a rank


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 12, 29, 45, 59])
def test_the_stated_errors_are_the_measured_ones(kind, rank):
    train = pictures()
    x = train.double() / 255
    full = fit_zca(kind, train)
    form = cut(full, rank)
    parts = form.parts(torch.float64, torch.device("cpu"))
    dense = parts.get("matrix")
    if dense is None:
        basis = parts["basis"]
        dense = parts["rest"] * torch.eye(60).double() + (basis * parts["weights"]) @ basis.T
    assert ("matrix" in parts) == (rank >= 30)
    whole = full.parts(torch.float64, torch.device("cpu"))["matrix"]
    norm = torch.linalg.matrix_norm
    assert form.ref.worst == pytest.approx(float(norm(dense - whole, 2) / norm(whole, 2)), abs=1e-9)
    z, about = full.forward(x), form.forward(x)
    assert form.ref.error == pytest.approx(float((about - z).norm() / z.norm()), abs=1e-9)
    assert form.basis.shape == (60, rank)
    inverse = form.inverse(about)
    want = full.inverse(full.forward(x))
    torch.testing.assert_close(inverse, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_choice_of_directions_has_a_smaller_worst_error(kind):
    full = fit_zca(kind, pictures(300, (1, 3, 2)))
    scale = (full.values + full.ref.regulariser) ** -0.5
    for rank in range(1, 6):
        worst = min(
            float(scale[list(rest)].max() - scale[list(rest)].min()) / 2
            for rest in itertools.combinations(range(6), 6 - rank)
        )
        assert cut(full, rank).ref.worst == pytest.approx(worst / float(scale.max()), abs=1e-12)


def test_errors_fall_with_the_rank_and_the_kept_directions_are_the_strong_ones():
    full = fit_zca("zca-mtt", pictures())
    forms = [cut(full, rank) for rank in (5, 15, 30, 50)]
    assert [f.ref.worst for f in forms] == sorted((f.ref.worst for f in forms), reverse=True)
    assert [f.ref.error for f in forms] == sorted((f.ref.error for f in forms), reverse=True)
    assert torch.equal(forms[1].values, full.values[:15])


def test_bytes_are_those_of_the_stored_tensors(tmp_path):
    space = sealed(fit_zca("zca-mtt", pictures()))
    assert space.nbytes() == 4 * (60 * 60 + 60 + 60)
    assert sealed(fit_zca("zca-kip", pictures())).nbytes() == 4 * (60 * 60 + 60)
    form = sealed(cut(space, 20))
    assert form.nbytes() == 4 * (60 * 20 + 20 + 60)
    state.save_tree(tmp_path / "file", form.tensors())
    assert 0 < (tmp_path / "file").stat().st_size - form.nbytes() < 2000
    assert space.describe() == "zca-mtt, all directions, 0.0 MB"
    errors = f"error {form.ref.error:.1e}, at worst {form.ref.worst:.1e}"
    assert form.describe() == f"zca-mtt, rank 20 ({errors}), 0.0 MB"


# --- names, records, the cache


@pytest.mark.parametrize("name", ["zca-mtt", "zca-kip", "zca-mtt:full", "zca-mtt:20"])
def test_made_once_and_opened_by_its_record(cache_folder, monkeypatch, name):
    opened = dataset()
    space = make_space(name, opened)
    record = space.record()
    assert isinstance(record, ZcaRef)
    assert spec.from_json(json.loads(spec.canonical(record))) == record
    assert record.data == opened.ref.identity
    assert space == open_space(record)
    assert hash(space) == hash(open_space(record))
    for key, tensor in open_space(record).tensors().items():
        assert torch.equal(tensor, space.tensors()[key])
    monkeypatch.setattr("potstill.data.space.fit_zca", None)  # from here on nothing is fitted
    assert make_space(name, opened) == space
    assert make_space(f"{record.kind}:7", opened).ref.rank == 7
    kind = record.kind.removeprefix("zca-")
    full = make_space(record.kind, opened)
    by_hand = fit_zca(f"zca-{kind}", opened.train.pixels, data=opened.ref.identity)
    assert full == sealed(by_hand)


def test_fitted_on_the_training_part_alone():
    opened = dataset()
    space = make_space("zca-mtt", opened)
    mean = opened.train.pixels.double().mean(0).flatten() / 255
    torch.testing.assert_close(space.mean.double(), mean, rtol=0, atol=1e-7)
    other = data.from_arrays(pictures(), torch.arange(400) % 4, validation=0.3)
    assert make_space("zca-mtt", other) != space


def test_missing_and_altered_tensors(cache_folder):
    opened = dataset()
    space = make_space("zca-mtt", opened)
    file = cache_folder / f"{space.ref.digest}.safetensors"
    body = bytearray(file.read_bytes())
    body[-9] ^= 1
    file.write_bytes(bytes(body))
    with pytest.raises(InputError, match=r"zca-mtt cannot be read from the cache .*altered"):
        open_space(space.record())
    keep_space(space)  # mends it
    assert open_space(space.record()) == space
    _opened.cache_clear()
    file.unlink()
    with pytest.raises(InputError, match=r"zca-mtt cannot be read .*no file.* Name its data"):
        open_space(space.record())
    assert make_space("zca-mtt", opened) == space  # fitted anew
    assert file.exists()
    # a sound file of other tensors
    state.save_tree(file, {**space.tensors(), "mean": space.mean + 1})
    _opened.cache_clear()
    with pytest.raises(InputError, match="not those of its record"):
        open_space(space.record())
    for index in (cache_folder / "index").iterdir():
        index.write_text("{}")
    assert make_space("zca-mtt", opened) == space


def test_every_number_of_the_record_is_covered_by_the_digest():
    space = sealed(cut(fit_zca("zca-kip", pictures()), 20))
    assert restored(space.ref, space.tensors()) == space
    changes = {"rest": 1.0, "regulariser": 0.2, "contrast": 2.0, "error": 0.0, "data": "else"}
    for name, value in changes.items():
        with pytest.raises(InputError, match="not those of its record"):
            restored(dataclasses.replace(space.ref, **{name: value}), space.tensors())
    with pytest.raises(InputError, match="lacks its basis, values"):
        restored(space.ref, {})
    mtt = sealed(fit_zca("zca-mtt", pictures()))
    with pytest.raises(InputError, match="lacks its mean"):
        restored(mtt.ref, {"basis": mtt.basis, "values": mtt.values})
    with pytest.raises(InputError, match="do not make a zca-mtt of rank 60"):
        Zca(ref=mtt.ref, basis=mtt.basis[:5], values=mtt.values, mean=mtt.mean)


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_another_shape(kind):
    space = make_space(kind, dataset())
    assert space.channels == 3
    for wrong in ((2, 3, 4, 5), (2, 1, 5, 4), (60,), (2, 60)):
        with pytest.raises(InputError, match=r"fitted on images of 3 x 5 x 4; it cannot take"):
            space.forward(torch.zeros(wrong))
        with pytest.raises(InputError, match=r"fitted on images of 3 x 5 x 4"):
            space.inverse(torch.zeros(wrong))
    with pytest.raises(InputError, match=r"uint8 or floating, not torch\.int64"):
        space.forward(torch.zeros(1, 3, 5, 4, dtype=torch.int64))
    assert space.forward(torch.zeros(3, 5, 4)).shape == (3, 5, 4)


def test_large_images_are_refused_unless_asked_for(monkeypatch):
    side = math.isqrt(LARGEST // 3)
    opened = data.from_arrays(torch.zeros(40, 3, 64, 64).byte(), torch.arange(40) % 4)
    for name, then in (("zca-mtt", ""), ("zca-mtt:800", ", from which zca-mtt:800 is cut then")):
        with pytest.raises(InputError) as caught:
            make_space(name, opened)
        assert str(caught.value) == (
            "zca-mtt of images (3, 64, 64) needs a matrix of 604 MB: make them smaller "
            f"(--resize {side} or less), or ask for all of it with zca-mtt:full{then}."
        )
    assert 3 * side * side <= LARGEST < 3 * (side + 1) ** 2
    monkeypatch.setattr("potstill.data.space.LARGEST", 30)
    small = dataset()
    with pytest.raises(InputError, match=r"images \(3, 5, 4\) needs a matrix"):
        make_space("zca-kip:10", small)
    full = make_space("zca-kip:full", small)
    assert full.ref.rank == 60
    assert make_space("zca-kip:10", small) == sealed(cut(full, 10))  # the fit is there now
    with pytest.raises(InputError, match="needs a matrix"):
        make_space("zca-kip", small)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zca", "Unknown normaliser 'zca': did you mean 'zca-"),
        ("nothing", "Unknown normaliser 'nothing': known: .*measured.*zca-mtt"),
        ("cifar10@mtx", "Unknown statistics 'cifar10@mtx': did you mean 'cifar10@mtt'"),
        ("mnist@dc", "'mnist@dc' are for 1 channels; the images of arrays have 3"),
        ("zca-mtt:", None),
        ("zca-mtt:many", "After zca-mtt: comes a rank, as in zca-mtt:800, or full, not 'many'"),
        ("zca-mtt:-3", "not '-3'"),
        ("zca-mtt:0", "the rank must lie in 1 to 59"),
        ("zca-mtt:60", "the rank must lie in 1 to 59"),
    ],
)
def test_names_that_are_no_normaliser(monkeypatch, name, words):
    if words is None:
        assert make_space(name, dataset()).ref.rank == 60
        return
    monkeypatch.setattr("potstill.data.space.fit_zca", None)  # refused before anything is fitted
    with pytest.raises(InputError, match=words):
        make_space(name, dataset())


@pytest.mark.parametrize("kind", KINDS)
def test_prepared_images_are_those_of_every_batch(kind, monkeypatch):
    train = pictures(600)
    space = make_space(kind, dataset())
    images, prepare = prepared(space, train)
    assert prepare is None
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, space.forward(train), rtol=0, atol=1e-5)
    assert torch.equal(images, torch.cat([space.forward(x) for x in train.split(256)]))
    monkeypatch.setattr("potstill.data.space.RESIDENT", images.nbytes - 1)
    same, prepare = prepared(space, train)
    assert same is train
    assert torch.equal(prepare(train), space.forward(train))
    stats = make_space("measured", dataset())
    assert prepared(stats, train)[0] is train
    assert keep_space(stats) is None
    assert open_space(stats) is stats.record() is stats


def test_another_process_opens_it(cache_folder):
    space = make_space("zca-kip:20", dataset())
    x = pictures(3, seed=8)
    code = (
        "import sys, json, torch; from potstill.core.spec import from_json;"
        "from potstill.data import open_space; space = open_space(from_json(json.load(sys.stdin)));"
        "torch.save(space.forward(torch.load(sys.argv[1])), sys.argv[2])"
    )
    files = [str(cache_folder / name) for name in ("in.pt", "out.pt")]
    torch.save(x, files[0])
    text = spec.canonical(space.record())
    subprocess.run([sys.executable, "-c", code, *files], input=text, text=True, check=True)
    torch.testing.assert_close(torch.load(files[1]), space.forward(x), rtol=0, atol=1e-5)
