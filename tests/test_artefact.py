import dataclasses
import json
import pickle
import subprocess
import sys

import pytest
import torch

import potstill
from potstill.artefact import (
    Block,
    Deployed,
    DistilledSet,
    Hard,
    Identity,
    Provenance,
    Soft,
    load,
    remember,
    set_digest,
)
from potstill.artefact.files import _checksum
from potstill.artefact.preview import GAP, LABEL, sheet
from potstill.core.errors import InputError
from potstill.core.files import file_hash
from potstill.core.spec import canonical, from_json, record, to_json
from potstill.data.normalise import MeanStd
from potstill.data.types import DataRef
from potstill.functional.optim import SGD
from potstill.functional.schedule import Segment, TrainSpec
from potstill.nets.spec import NetSpec, build

FILES = {"set.safetensors", "set.json", "README.md", "preview.png"}
SPACE = MeanStd(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))
RECIPE = TrainSpec(
    lr=0.0123456789, segments=(Segment(epochs=40),), batch=8, optimizer=SGD(momentum=0.9)
)
ORIGIN = Provenance(
    method=canonical({"type": "NoSuchMethod", "syn_steps": 30, "inner": {"type": "NoSuchPart"}}),
    data="folder:./birds",
    identity="ab" * 32,
    seed=3,
    version=potstill.__version__,
    iteration=500,
    cost=canonical({"seconds": 12.5}),
    parents=("0123",),
)


def colours(ipc=2, classes=3, size=(16, 16), channels=3, seed=0):
    """Return plain-coloured noisy pictures in [0, 1], class after class, and their labels."""
    labels = torch.arange(classes).repeat_interleave(ipc)
    draw = torch.Generator().manual_seed(seed)
    noise = 0.1 * torch.rand(len(labels), channels, *size, generator=draw)
    bright = torch.zeros_like(noise)
    for i, k in enumerate(labels.tolist()):
        bright[i, k % channels] = 0.8
    return bright + noise, labels


def make(pictures=None, labels=None, **changes):
    if pictures is None:
        pictures, labels = colours()
    channels = pictures.shape[1]
    space = SPACE if channels == 3 else MeanStd(mean=(0.5,) * channels, std=(0.2,) * channels)
    fields = {
        "images": space.forward(pictures),
        "targets": Hard(labels),
        "space": space,
        "recipe": RECIPE,
        "net": NetSpec(name="convnet2", width=16),
        "classes": tuple(f"class {i}" for i in range(int(labels.max()) + 1)),
        "ref": DataRef(identity="ab" * 32, validation=0.2),
        "origin": ORIGIN,
        "blocks": (Block(name="first", start=0, stop=2), Block(name="rest", start=2, stop=6))
        if len(labels) == 6
        else (),
    }
    return DistilledSet(**(fields | changes))


def softened(distilled):
    probabilities = torch.nn.functional.one_hot(distilled.targets.labels, 3) * 0.7 + 0.1
    recipe = dataclasses.replace(distilled.recipe, loss="soft_ce")
    return dataclasses.replace(distilled, targets=Soft(probabilities), recipe=recipe)


def assert_same(a, b):
    assert a.images.dtype == b.images.dtype
    assert torch.equal(a.images, b.images)
    assert type(a.targets) is type(b.targets)
    assert a.targets.values.dtype == b.targets.values.dtype
    assert torch.equal(a.targets.values, b.targets.values)
    assert torch.equal(a.targets.classes, b.targets.classes)
    for field in dataclasses.fields(DistilledSet):
        if field.name not in ("images", "targets"):
            assert getattr(a, field.name) == getattr(b, field.name), field.name


def edit(folder, change, *, signed=True):
    """Change set.json as another program would (signed) or by hand."""
    facts = json.loads((folder / "set.json").read_text())
    change(facts)
    if signed:
        facts["checksum"] = _checksum(facts)
    (folder / "set.json").write_text(json.dumps(facts))


@pytest.fixture
def saved(tmp_path):
    make().save(tmp_path / "set")
    return tmp_path / "set"


# --- the set itself


@pytest.mark.parametrize("kind", ["hard", "soft", "float64", "gray"])
def test_round_trip(tmp_path, kind):
    made = {
        "hard": make,
        "soft": lambda: softened(make()),
        "float64": lambda: make(*(colours()[0].double(), colours()[1])),
        "gray": lambda: make(*colours(channels=1)),
    }[kind]()
    made.save(tmp_path / "run" / "distilled")
    assert {f.name for f in (tmp_path / "run" / "distilled").iterdir()} == FILES
    assert_same(load(tmp_path / "run" / "distilled"), made)
    assert_same(load(str(tmp_path / "run")), made)


def test_equal_sets_give_equal_bytes(tmp_path):
    for i in range(8):  # the safetensors writer orders its metadata at random
        make().save(tmp_path / str(i))
    for name in FILES:
        assert len({file_hash(tmp_path / str(i) / name) for i in range(8)}) == 1, name


def test_summaries():
    distilled = make(*colours(ipc=2), classes=("a", "b", "c", "never seen"))
    assert distilled.ipc == (2, 2, 2, 0)
    assert softened(make()).ipc == (2, 2, 2)
    assert (len(distilled), distilled.shape) == (6, (3, 16, 16))
    assert distilled.nbytes() == {"images": 6 * 3 * 256 * 4, "targets": 6 * 8, "normaliser": 24}
    torch.testing.assert_close(distilled.view(), colours()[0], atol=1e-6, rtol=0)
    bright = dataclasses.replace(distilled, images=distilled.images * 100)
    assert (float(bright.view().min()), float(bright.view().max())) == (0, 1)


def holding(value):
    images = make().images.clone()
    images[4, 0, 3, 3] = value
    return images


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": holding(float("nan"))}, "1 of the 6 distilled images hold NaN"),
        ({"images": holding(float("inf"))}, "NaN or infinity"),
        ({"images": make().images[0]}, "floating [N, C, H, W]"),
        ({"images": colours()[0].int()}, "floating [N, C, H, W]"),
        ({"space": MeanStd(mean=(0.5,), std=(0.5,))}, "1 channels, the images have 3"),
        ({"targets": Hard(torch.zeros(5).long())}, "6 images but 5 targets"),
        ({"targets": Hard(torch.zeros(6))}, "int64 [N]"),
        ({"targets": Hard(torch.arange(6))}, "0 to 2"),
        ({"targets": Soft(torch.full((6, 4), 0.25))}, "[6, 3], not [6, 4]"),
        ({"targets": Soft(torch.full((6, 3), -1.0))}, "softmax of logits"),
        ({"targets": Soft(torch.full((6, 3), 0.3))}, "Soft targets need loss 'soft_ce', not 'ce'"),
        ({"blocks": (Block(name="b", start=4, stop=7),)}, "within the 6 images"),
    ],
)
def test_refuses_what_does_not_fit(changes, words):
    with pytest.raises(InputError) as caught:
        make(**changes)
    assert words in str(caught.value)


def test_provenance_holds_json_text_only():
    assert ORIGIN.method_spec["type"] == "NoSuchMethod"
    assert from_json(to_json(ORIGIN)) == ORIGIN
    assert (ORIGIN.costs, ORIGIN.measured) == ({"seconds": 12.5}, {})
    with pytest.raises(InputError, match="method must be the text of a JSON object"):
        dataclasses.replace(ORIGIN, method="mtt")


# --- files


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("set.safetensors", cut, "truncated or altered"),
        ("set.safetensors", flip, "truncated or altered"),
        ("set.safetensors", lambda path: path.unlink(), "has no set.safetensors"),
        ("set.json", cut, "not a readable JSON file"),
        ("set.json", lambda path: path.unlink(), "no distilled set at"),
        ("set.json", lambda path: path.write_text("[]"), "does not describe a distilled set"),
    ],
)
def test_damaged_files_are_refused(saved, name, damage, words):
    damage(saved / name)
    with pytest.raises(InputError, match=words):
        load(saved)


@pytest.mark.parametrize("name", ["README.md", "preview.png"])
@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink()])
def test_files_for_people_are_not_read_back(saved, name, damage):
    damage(saved / name)
    assert_same(load(saved), make())


def test_altering_any_fact_by_hand_is_noticed(saved):
    facts = json.loads((saved / "set.json").read_text())
    assert facts["recipe"]["lr"] == RECIPE.lr
    for name in facts.keys() - {"format", "version"}:
        original = (saved / "set.json").read_text()
        edit(saved, lambda f, name=name: f.update({name: "x"}), signed=False)
        with pytest.raises(InputError, match="altered"):
            load(saved)
        (saved / "set.json").write_text(original)
    edit(saved, lambda f: f["recipe"].update(lr=0.02), signed=False)
    with pytest.raises(InputError, match="altered"):
        load(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.update(version=2), "version 2 of the format; potstill .* reads version 1"),
        (lambda f: f.update(format="other"), "does not describe a distilled set"),
        (lambda f: f.update(decode={"type": "Fancy"}), "needs something .*'Fancy'"),
        (lambda f: f["recipe"].update(loss="dice"), "needs something .*'dice'"),
        (lambda f: f["recipe"].update(ema=0.9), "needs something .*'ema'"),
        (lambda f: f.update(targets="shards"), "needs something .*'shards'"),
        (lambda f: f["classes"].pop(), "unsound: Labels must lie in 0 to 1"),
        (lambda f: f.pop("ref"), "needs something .*no 'ref'"),
    ],
)
def test_sets_of_a_later_version_are_refused(saved, change, words):
    edit(saved, change)
    with pytest.raises(InputError, match=words):
        load(saved)


def test_missing_sets_say_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"looked for .*set\.json and .*distilled/set\.json"):
        load(tmp_path / "nothing")


def test_save_replaces_a_set_but_nothing_else(tmp_path, saved):
    softened(make()).save(saved)
    assert isinstance(load(saved).targets, Soft)
    (saved / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for path in (saved, tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="holds other things"):
            make().save(path)
    assert (saved / "notes.txt").read_text() == "mine"
    assert {f.name for f in tmp_path.iterdir()} == {"set", "file"}


def test_remember_notes_the_accuracy(tmp_path):
    make().save(tmp_path / "distilled")
    (tmp_path / "distilled" / "notes.txt").write_text("mine")
    assert "Not measured yet" in (tmp_path / "distilled" / "README.md").read_text()
    before = file_hash(tmp_path / "distilled" / "set.safetensors")
    measured = {"convnet3": {"mean": 0.46213, "std": 0.004, "n": 5}}
    remember(tmp_path, measured)
    assert load(tmp_path).origin.measured == measured
    assert "| convnet3.mean | 0.46213 |" in (tmp_path / "distilled" / "README.md").read_text()
    assert (tmp_path / "distilled" / "notes.txt").read_text() == "mine"
    assert file_hash(tmp_path / "distilled" / "set.safetensors") == before
    assert [f.name for f in tmp_path.iterdir()] == ["distilled"]
    with pytest.raises(InputError):
        remember(tmp_path, {"convnet3": float("nan")})
    assert load(tmp_path).origin.measured == measured


def test_loads_in_a_fresh_process_without_methods(saved):
    code = (
        "import sys; sys.modules['potstill.methods'] = None; import potstill.artefact as a;"
        f"s = a.load({str(saved)!r}); print(s.origin.method_spec['type'], len(s));"
        "print([m for m in ('PIL', 'sklearn', 'datasets', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["NoSuchMethod 6", "[]"]


# --- card and preview


def test_card_says_what_matters(saved):
    text = (saved / "README.md").read_text()
    for words in (
        "6 images of 3 x 16 x 16",
        "2 images per class",
        'potstill.load("path/to/this/folder").train("convnet2")',
        "| syn_steps | 30 |",
        "| bytes.images | 18432 |",
        "| seed | 3 |",
        "| lr | 0.0123457 |",
        "![The images of each class, in view space](preview.png)",
        "inherits the licence",
        "not anonymised",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    ("ipc", "classes", "size", "channels", "pixels"),
    [
        (2, 3, (16, 16), 3, (LABEL + 2 * (48 + GAP), GAP + 3 * (48 + GAP))),
        (12, 23, (10, 20), 1, (LABEL + 10 * (100 + GAP), GAP + 20 * (50 + GAP))),
        (1, 2, (64, 64), 2, (LABEL + 64 + GAP, GAP + 2 * (64 + GAP))),
    ],
)
def test_preview(ipc, classes, size, channels, pixels):
    pictures, labels = colours(ipc, classes, size, channels)
    names = tuple("long and strange\nname \udcff" for _ in range(classes))
    distilled = make(pictures, labels, classes=names)
    picture = sheet(distilled)
    assert picture.size == pixels
    darkest, _ = picture.crop((0, 0, LABEL, picture.height)).convert("L").getextrema()
    assert darkest < 64  # the names are written
    scale = -(-48 // min(size))
    height, width = size
    last = min(ipc, 10) - 1  # the last image shown of the second class, read back pixel by pixel
    left, top = LABEL + last * (width * scale + GAP), GAP + height * scale + GAP
    shown = pictures[ipc + last] if channels == 3 else pictures[ipc + last][:1].expand(3, -1, -1)
    for y, x in ((0, 0), (height - 1, width - 1), (3, 5)):
        for dy, dx in ((0, 0), (scale - 1, scale - 1)):
            got = picture.getpixel((left + x * scale + dx, top + y * scale + dy))
            want = (shown[:, y, x] * 255).round().tolist()
            assert all(abs(a - b) <= 1 for a, b in zip(got, want, strict=True))


def test_preview_skips_classes_without_images():
    distilled = make(classes=("a", "b", "c", "never seen"))
    assert sheet(distilled).size == sheet(make()).size


# --- use


def test_loader_covers_all_and_repeats():
    distilled = make()
    loader, again = (distilled.loader(batch_size=4, seed=1) for _ in range(2))
    assert len(loader) == 2
    passes = [[torch.cat(part) for part in zip(*loader, strict=True)] for _ in range(3)]
    for images, targets in passes:
        rows = [int((distilled.images == image).flatten(1).all(1).nonzero()) for image in images]
        assert sorted(rows) == list(range(6))
        assert torch.equal(targets, distilled.targets.labels[rows])
    assert len({tuple(targets.tolist()) for _, targets in passes}) > 1
    for images, _ in passes:
        assert torch.equal(images, torch.cat([batch for batch, _ in again]))
    other = torch.cat([batch for batch, _ in distilled.loader(seed=2)])
    assert not torch.equal(other, passes[0][0])
    assert torch.equal(next(iter(distilled.loader(shuffle=False)))[0], distilled.images)
    with pytest.raises(InputError, match="at least 1, not 0"):
        distilled.loader(batch_size=0)


def test_loader_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    list(make().loader())
    assert torch.equal(torch.random.get_rng_state(), before)


@record
@dataclasses.dataclass(frozen=True, kw_only=True)
class Halves:
    """Decode an image into its left and its right half."""

    def check(self, shape):
        assert shape[2] % 2 == 0

    def index(self, classes):
        rows = torch.arange(len(classes)).repeat_interleave(2)
        return torch.stack([rows, torch.full_like(rows, 2), torch.tensor([0, 1] * len(classes))], 1)

    def take(self, images, index):
        return torch.stack(images.chunk(2, dim=3), 1)[index[:, 0], index[:, 2]]


def test_decoders_that_make_several_images_of_one(tmp_path):
    made = make(decode=Halves())
    images, targets = made.decoded()
    assert images.shape == (12, 3, 16, 8)
    assert targets.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert torch.equal(images[3], made.images[1, :, :, 8:])
    made.save(tmp_path / "set")
    assert load(tmp_path / "set").decode == Halves()
    assert make().decode == Identity()


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_train_returns_a_model_for_pictures(tmp_path, kind):
    pictures, labels = colours(ipc=4)
    made = make(pictures, labels, recipe=dataclasses.replace(RECIPE, augment=None))
    made = softened(made) if kind == "soft" else made
    state = torch.random.get_rng_state()
    model = made.train("convnet2", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert isinstance(model, Deployed)
    assert not model.training
    fresh, truth = colours(ipc=8, seed=9)
    assert (model(fresh).argmax(1) == truth).all()
    assert (model((fresh * 255).round().byte()).argmax(1) == truth).all()
    torch.testing.assert_close(model(fresh), model.net(made.space.forward(fresh)))
    assert torch.equal(model(fresh), made.train("convnet2", seed=1)(fresh))
    assert not torch.equal(model(fresh), made.train("convnet2", seed=2)(fresh))

    assert torch.equal(pickle.loads(pickle.dumps(model))(fresh), model(fresh))
    empty = build(made.net, channels=3, size=(16, 16), classes=3, seed=5)
    other = Deployed(empty, MeanStd(mean=(0.0,) * 3, std=(1.0,) * 3), (3, 16, 16)).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(fresh), model(fresh))


def test_train_resolves_the_name_of_the_network():
    distilled = make(recipe=dataclasses.replace(RECIPE, segments=(Segment(epochs=1),)))

    def width(net):
        return next(distilled.train(net).net.parameters()).shape[0]

    assert width("convnet2") == 16  # as the set was made
    assert width("convnet1") == 16  # a ConvNet of another depth, with the same options
    assert width(None) == 16
    assert width(NetSpec(name="convnet2", width=8)) == 8
    with pytest.raises(InputError, match="convnet9000"):
        distilled.train("convnet9000")


def test_deployed_refuses_what_is_no_picture():
    distilled = make()
    net = build(distilled.net, channels=3, size=(16, 16), classes=3, seed=0)
    model = Deployed(net, distilled.space, (3, 16, 16))
    pictures, _ = colours()
    for wrong in (pictures[0], pictures[:, :1], pictures[:, :, :8], pictures.movedim(1, 3)):
        with pytest.raises(InputError, match=r"\[N, 3, 16, 16\]"):
            model(wrong)
    for wrong in (pictures * 255, distilled.images, (pictures * 255).int()):
        with pytest.raises(InputError, match=r"in \[0, 1\]"):
            model(wrong)


def test_prefix_is_a_set_of_its_own(tmp_path):
    whole = make(origin=dataclasses.replace(ORIGIN, accuracy='{"mean": 0.5}', rows=tuple(range(6))))
    first = whole.prefix(1)
    assert (len(first), first.ipc, first.blocks) == (2, (2, 0, 0), whole.blocks[:1])
    assert torch.equal(first.images, whole.images[:2])
    assert first.origin == dataclasses.replace(whole.origin, accuracy="{}", rows=(0, 1))
    assert torch.equal(softened(whole).prefix(1).targets.values, softened(whole).targets.values[:2])
    assert_same(whole.prefix(2), dataclasses.replace(whole, origin=whole.prefix(2).origin))
    first.save(tmp_path / "set")
    assert (tmp_path / "set" / "set.safetensors").stat().st_size < 2 * first.images.nbytes
    assert_same(load(tmp_path / "set"), first)


def test_wrong_prefixes_are_refused():
    for k in (0, 3):
        with pytest.raises(InputError, match=f"2 blocks; a prefix takes the first 1 to 2, not {k}"):
            make().prefix(k)
    apart = (Block(name="a", start=0, stop=2), Block(name="b", start=4, stop=6))
    for blocks in ((), apart):
        with pytest.raises(InputError, match="has no blocks that follow one another"):
            make(blocks=blocks).prefix(1)


def test_sets_of_pixels_are_those_of_floats(tmp_path):
    pixels, labels = colours()
    pixels = (255 * pixels).byte()
    one = dataclasses.replace(make(), images=pixels, targets=Hard(labels))
    two = dataclasses.replace(one, images=SPACE.forward(pixels))
    assert torch.equal(one.inputs, two.inputs)
    assert torch.equal(one.view(), pixels / 255)
    assert all(torch.equal(a, b) for a, b in zip(one.decoded(), two.decoded(), strict=True))
    batches = [list(s.loader(batch_size=4, seed=1)) for s in (one, two)]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(*batches, strict=True))
    x = pixels[:4]
    with torch.no_grad():
        assert torch.equal(one.train()(x), two.train()(x))
    assert one.nbytes()["images"] * 4 == two.nbytes()["images"]
    one.save(tmp_path / "one")
    again = load(tmp_path / "one")
    assert again.images.dtype == torch.uint8
    assert torch.equal(again.images, one.images)
    assert set_digest(again) == set_digest(one) != set_digest(two)
    assert torch.equal(one.cut(1).images, one.images[[0, 2, 4]])
