"""The policy `ssl` against torchvision's functions, one image at a time, and against Pillow."""

from __future__ import annotations

import colorsys
import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from potstill.augment import SSL, Params, policy_of, ssl, text_of
from potstill.augment import colours as own
from potstill.augment.ssl import COLUMNS, MIXBT, MIXBT_TINY, SAS, SOLOLEARN, TOY, cubic_matrix
from potstill.augment.views import TRIES, boxes
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.core.vision import import_torchvision

torch.set_num_threads(1)
F64 = torch.float64
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
THEIR_GREY = (0.2989, 0.587, 0.114)
"""torchvision's on tensors; Pillow's, and ours, begin with 0.299."""
ALL = SSL(solarise_prob=0.3, mean=MEAN, std=STD)
NAMES = ("brightness", "contrast", "saturation")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vision():
    try:
        import_torchvision()
    except InputError as error:
        pytest.skip(str(error))
    from torchvision.transforms.v2 import functional

    return functional


def pictures(n: int, side=(16, 12), channels: int = 3, dtype=F64) -> Tensor:
    """Return images of pixels in [0, 1], some of them black, white, grey or of one strong hue."""
    x = torch.rand(n, channels, *side, dtype=F64, generator=rng(99))
    x[:, :, 0, 0], x[:, :, 0, 1], x[:, :, 0, 2] = 0, 1, 0.3
    if channels == 3:
        x[:, :, 1, 0], x[:, :2, 1, 1] = torch.tensor([1.0, 0, 0], dtype=F64), 0.8
    return x.to(dtype)


def normalised(x: Tensor) -> Tensor:
    return (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)


def hued(x: Tensor, turn: float) -> Tensor:
    """Return a picture with turned hues, pixel by pixel; torchvision does it in float32."""
    if turn == 0:
        return x
    pixels = [colorsys.rgb_to_hsv(*rgb) for rgb in x.flatten(1).T.tolist()]
    back = [colorsys.hsv_to_rgb((h + turn) % 1, s, v) for h, s, v in pixels]
    return torch.tensor(back, dtype=x.dtype).T.reshape(x.shape)


def plain(x: Tensor, row: dict[str, float], policy: SSL, f) -> Tensor:
    """Return one view of one picture [3, H, W], step by step by torchvision's functions."""
    from torchvision.transforms import InterpolationMode as Mode

    mode = Mode.BICUBIC if policy.bicubic else Mode.BILINEAR
    where = [int(row[name]) for name in ("top", "left", "height", "width")]

    def crop(x):
        x = f.resized_crop(x, *where, list(x.shape[1:]), interpolation=mode, antialias=True)
        return f.hflip(x.clamp(0, 1)) if row["flip"] else x.clamp(0, 1)

    x = x if policy.crop_last else crop(x)
    steps = [NAMES[int(row[at])] for at in ("first", "second", "third")]
    steps.insert(int(row["before"]), "hue")
    for step in steps:
        x = hued(x, row["hue"]) if step == "hue" else getattr(f, f"adjust_{step}")(x, row[step])
    x = f.rgb_to_grayscale(x, num_output_channels=3) if row["grey"] else x
    x = f.solarize(x, own.THRESHOLD) if row["solarise"] else x
    return crop(x) if policy.crop_last else x


@pytest.mark.parametrize(
    "changes",
    [{}, {"bicubic": True}, {"crop_last": True, "bicubic": True}, {"hue": 0.0}, {"hue": 0.5}],
    ids=str,
)
def test_each_view_equals_torchvisions(changes, monkeypatch):
    f, n = vision(), 60
    monkeypatch.setattr(own, "GREY", THEIR_GREY)
    policy = SSL(**{"solarise_prob": 0.3, "mean": MEAN, "std": STD} | changes)
    x = pictures(n)
    params = policy.sample(n, (3, 16, 12), rng(1))
    want = [
        plain(x[k], dict(zip(COLUMNS, row, strict=True)), policy, f)
        for k, row in enumerate(params.values.tolist())
    ]
    got = policy.apply(normalised(x), params)
    away = (got - normalised(torch.stack(want))).abs()
    assert away.max() < 1e-11
    near = policy.apply(normalised(x).float(), params)
    assert near.dtype == torch.float32
    # a pixel at the threshold of solarising, or of grey hue, may fall on the other side
    assert ((near - got).abs().amax(1) > 1e-4).double().mean() < 1e-3


def test_every_order_of_the_four_changes(monkeypatch):
    f = vision()
    monkeypatch.setattr(own, "GREY", THEIR_GREY)
    still = SSL(scale=(1, 1), ratio=(1, 1), flip_prob=0, jitter_prob=1, grey_prob=0)
    params = still.sample(400, (3, 8, 8), rng(2))
    v = dict(zip(COLUMNS, params.values.unbind(1), strict=True))
    found = set()
    for row in params.values.tolist():
        r = dict(zip(COLUMNS, row, strict=True))
        order = [int(r[at]) for at in ("first", "second", "third")]
        order.insert(int(r["before"]), 3)
        found.add(tuple(order))
    assert found == set(permutations(range(4)))
    assert all((v[name] != 1).all() for name in NAMES)
    x = pictures(400, (8, 8))
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in params.values.tolist()]
    want = torch.stack([plain(p, r, still, f) for p, r in zip(x, rows, strict=True)])
    assert (still.apply(x, params) - want).abs().max() < 1e-12


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.07, 0.5])
def test_hue_in_both_ways_of_others(turn):
    x = pictures(3)
    got = own.turned(x, torch.full((3,), turn, dtype=F64))
    assert (got - torch.stack([hued(one, turn) for one in x])).abs().max() < 1e-14
    assert (got - vision().adjust_hue(x, turn)).abs().max() < 2e-6  # in float32


def inject(n: int, side: tuple[int, int], **columns: float) -> Params:
    start = {"height": side[0], "width": side[1], "second": 1, "third": 2, "before": 3}
    start |= dict.fromkeys(NAMES, 1.0) | columns
    row = torch.tensor([float(start.get(name, 0)) for name in COLUMNS], dtype=F64)
    return Params(ops=("ssl",), values=row.expand(n, -1))


def cut(image, *_):
    return image.crop((2, 3, 15, 12)).resize((24, 24), 3)  # bicubic


@pytest.mark.parametrize(
    ("columns", "bound", "pillow"),
    [
        ({"brightness": 1.37}, 1, lambda i, e, o: e.Brightness(i).enhance(1.37)),
        ({"contrast": 0.62}, 1 + 0.38 / 2, lambda i, e, o: e.Contrast(i).enhance(0.62)),
        ({"saturation": 1.4}, 1 + 0.4 / 2, lambda i, e, o: e.Color(i).enhance(1.4)),
        ({"grey": 1}, 0.51, lambda i, e, o: i.convert("L").convert("RGB")),
        ({"solarise": 1}, 1e-9, lambda i, e, o: o.solarize(i)),
        ({"top": 3, "left": 2, "height": 9, "width": 13}, (1 + 1.25) / 2, cut),
    ],
    ids=["brightness", "contrast", "saturation", "grey", "solarise", "bicubic"],
)
def test_pillow_agrees_up_to_its_rounding(columns, bound, pillow):
    """Blends are cut to 1/255 and their grey values rounded; so are the two passes of a resize."""
    import numpy as np
    from PIL import Image, ImageEnhance, ImageOps

    x = (64 + 127 * pictures(1, (24, 24))[0]).round()  # cubic weights leave it within 0..255
    image = Image.fromarray(x.permute(1, 2, 0).to(torch.uint8).numpy())
    want = pillow(image, ImageEnhance, ImageOps)
    want = torch.from_numpy(np.asarray(want).astype("float64")).permute(2, 0, 1)
    policy = SSL(solarise_prob=0.1, bicubic=True)
    got = 255 * policy.apply(x[None] / 255, inject(1, (24, 24), **columns))[0]
    assert (got - want).abs().max() <= bound
    assert (got - x).abs().max() > 20


def test_cubic_matrices():
    whole = cubic_matrix(torch.zeros(1, dtype=F64), torch.full((1,), 9, dtype=F64), 9)
    assert torch.equal(whole[0], torch.eye(9, dtype=F64))
    start, length = torch.tensor([2.0, 0, 8], dtype=F64), torch.tensor([5.0, 8, 1], dtype=F64)
    matrix = cubic_matrix(start, length, 9)
    assert (matrix.sum(2) - 1).abs().max() < 1e-14
    assert matrix[0, :, [0, 1, 7, 8]].abs().max() == 0
    assert (matrix[2, :, 8] == 1).all()


def test_draws_ranges_and_the_generator():
    n, policy = 20_000, SSL(brightness=0.3, contrast=1.5, solarise_prob=0.2)
    values = policy.sample(n, (3, 32, 32), rng()).values
    v = dict(zip(COLUMNS, values.unbind(1), strict=True))
    on = v["brightness"] != 1
    five = 5 * 0.5 / math.sqrt(n)
    for found, wanted in (
        (v["flip"], 0.5), (on.double(), 0.8), (v["grey"], 0.2), (v["solarise"], 0.2),
        (v["first"] == 2, 1 / 3), (v["before"] == 3, 1 / 4),
    ):  # fmt: skip
        assert abs(found.double().mean() - wanted) < five
    for name, low, high in (
        ("brightness", 0.7, 1.3), ("contrast", 0, 2.5), ("saturation", 0.6, 1.4),
        ("hue", -0.1, 0.1),
    ):  # fmt: skip
        drawn = v[name][on]
        assert low <= drawn.min() < low + 0.01
        assert high - 0.01 < drawn.max() <= high
        assert abs(drawn.mean() - (low + high) / 2) < 0.02 * (high - low)
        assert ((v[name] == (name != "hue")) == ~on).all()
    u = torch.rand((n, 2 * TRIES + 12), dtype=F64, generator=rng())
    assert torch.equal(values[:, :4], boxes(
        u[:, :20].view(n, 10, 2), u[:, 20:22], (32, 32), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)
    ))  # fmt: skip
    assert torch.equal(policy.sample(3, (3, 32, 32), rng()).values[0], values[0])
    square = TOY.sample(500, (3, 32, 32), rng()).values
    assert torch.equal(square[:, 2], square[:, 3])
    assert math.floor(math.sqrt(0.2 * 32**2)) <= square[:, 2].min() < 16


def test_a_row_for_all_and_each_its_own():
    x = normalised(pictures(4))
    one = ALL.sample(1, (3, 16, 12), rng(5))
    same = Params(ops=one.ops, values=one.values.expand(4, -1))
    assert (ALL.apply(x, one) - ALL.apply(x, same)).abs().max() < 1e-13
    each = ALL.sample(4, (3, 16, 12), rng(5))
    alone = [
        ALL.apply(x[k : k + 1], Params(ops=each.ops, values=each.values[k : k + 1]))
        for k in range(4)
    ]
    assert (ALL.apply(x, each) - torch.cat(alone)).abs().max() < 1e-13


def test_what_does_nothing_changes_nothing_and_colours_clip():
    x = torch.randn(3, 3, 8, 8, dtype=F64, generator=rng())
    for chance, want in ((0, x), (1e-12, x.clamp(0, 1))):
        still = SSL(scale=(1, 1), ratio=(1, 1), flip_prob=0, jitter_prob=chance, grey_prob=0)
        assert torch.equal(still.apply(x, still.sample(3, (3, 8, 8), rng())), want)


def test_grey_images_take_what_needs_no_colours():
    policy = SSL(saturation=0, hue=0, grey_prob=0, solarise_prob=0.5, mean=(0.3,), std=(0.2,))
    x = pictures(50, channels=1)
    params = policy.sample(50, (1, 16, 12), rng(3))
    got = policy.apply((x - 0.3) / 0.2, params)
    three = policy.apply((x - 0.3).expand(-1, 3, -1, -1) / 0.2, params)
    assert (got - three[:, :1]).abs().max() < 1e-12  # weights of grey values add up to 1
    assert got.shape == x.shape


def test_differentiable():
    x = (0.4 + 0.2 * torch.rand(2, 3, 2, 3, dtype=F64, generator=rng())).requires_grad_()
    policy = SSL(brightness=0.1, contrast=0.1, saturation=0.1, mean=(0.01,), std=(0.9,))
    p = policy.sample(2, (3, 2, 3), rng(1))
    assert torch.autograd.gradcheck(lambda t: policy.apply(t, p), x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale must be two numbers above 0"),
        ({"scale": (0.5, 1.5)}, r"share of a crop \(scale\) is 1, not 1.5"),
        ({"jitter_prob": 2}, "jitter_prob lies between 0 and 1, not at 2"),
        ({"hue": 0.6}, "its hue between 0 and 0.5"),
        ({"contrast": -0.1}, "are at least 0"),
        ({"mean": (0.5, 0.5)}, "equally many numbers"),
        ({"std": (0.0,)}, "std only above 0"),
    ],
)
def test_wrong_settings_are_one_sentence(changes, message):
    with pytest.raises(InputError, match=message):
        SSL(**changes)


def test_images_that_do_not_suit_are_refused():
    uncoloured = SSL(grey_prob=0, hue=0, saturation=0, mean=MEAN, std=STD)
    for policy, channels, message in (
        (SSL(), 1, "1 channel have no colours: saturation, hue and grey_prob"),
        (SSL(jitter_prob=0), 1, "1 channel have no colours"),
        (SSL(), 4, "3 channels, not 4"),
        (uncoloured, 1, "3 numbers, the images 1"),
    ):
        with pytest.raises(InputError, match=message):
            policy.sample(2, (channels, 8, 8), rng())


def test_presets_by_the_tables():
    for p in (SOLOLEARN, MIXBT, SAS):
        assert (p.scale, p.brightness, p.contrast, p.hue) == ((0.08, 1.0), 0.4, 0.4, 0.1)
        assert (p.flip_prob, p.jitter_prob, p.grey_prob, p.solarise_prob) == (0.5, 0.8, 0.2, 0)
    assert (SOLOLEARN.saturation, MIXBT.saturation, SAS.saturation) == (0.2, 0.4, 0.4)
    assert SSL(saturation=0.2, solarise_prob=0.2) == ssl.SOLOLEARN_SECOND
    assert (SAS.bicubic, MIXBT.bicubic, MIXBT_TINY.bicubic) == (True, False, True)
    assert (MIXBT_TINY.scale, MIXBT_TINY.grey_prob, MIXBT_TINY.crop_last) == ((0.2, 1), 0.1, True)
    assert (TOY.scale, TOY.ratio, TOY.jitter_prob) == ((0.2, 1), (1, 1), 1)
    assert (TOY.brightness, TOY.contrast, TOY.saturation, TOY.hue) == (0.4, 0.4, 0, 0)
    assert (TOY.grey_prob, TOY.flip_prob) == (0.2, 0.5)


def test_as_a_record_and_by_its_name():
    assert from_json(to_json(ALL)) == ALL
    assert text_of(SSL()) == "ssl"
    with pytest.raises(InputError, match="for protocols and recipes only"):
        policy_of("ssl")
