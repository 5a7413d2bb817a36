"""Decoders: round trips, order, counts, gradients, and sets that carry one."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch.nn import functional as F

from potstill.artefact import Identity, MultiFormation, load
from potstill.artefact.card import card
from potstill.artefact.preview import sheet
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.data import MeanStd, Zca
from potstill.data.whitening import fit_zca
from potstill.data.zca import sealed
from potstill.functional import Segment
from test_artefact import RECIPE, assert_same, colours, make

EPOCH = Segment(epochs=1)
pytestmark = pytest.mark.usefixtures("alone")


def noise(count, channels, height, width, dtype=torch.float64, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, height, width, dtype=dtype, generator=chance)


def naive(images, factor, pad, width_only=False):
    """The single decoder as it is told: pad at right and bottom, cut, enlarge; cell by cell."""
    _, _, height, width = images.shape
    down = 1 if width_only else factor
    tall, wide = -(-height // down), -(-width // factor)
    padded = F.pad(images, (0, factor * wide - width, 0, down * tall - height), value=pad)
    found = []
    for r in range(down):
        for c in range(factor):
            cell = padded[:, :, r * tall : (r + 1) * tall, c * wide : (c + 1) * wide]
            found.append(F.interpolate(cell, (height, width), mode="bilinear", align_corners=False))
    return torch.cat(found)


@pytest.mark.parametrize(("side", "factor"), [(28, 2), (32, 2), (32, 3), (224, 3), (28, 3)])
def test_constant_pictures_come_back(side, factor):
    decoder = MultiFormation(factor=factor)
    n, cells = 2, factor**2
    values = torch.arange(1, n * cells + 1, dtype=torch.float64)
    pictures = values.view(-1, 1, 1, 1).expand(-1, 3, side, side)
    stored = decoder.mosaic(pictures)
    assert stored.shape == (n, 3, side, side)
    index = decoder.index(torch.tensor([0, 1]))
    found = decoder.take(stored, index)
    assert found.shape == (n * cells, 3, side, side)
    cell_side = -(-side // factor)
    missing = factor * cell_side - side
    # a pixel of the result lies between rows of the cell; what is near the last own row mixes
    own = cell_side - missing
    clear = int((own - 0.5) * side / cell_side - 0.5) + 1 if missing else side
    for k, value in enumerate(values.tolist()):
        row, column = divmod(k // n, factor)
        tall = clear if row == factor - 1 else side
        wide = clear if column == factor - 1 else side
        assert (found[k, :, :tall, :wide] - value).abs().max() < 1e-12
        if missing and row == factor - 1:
            assert ((found[k, :, tall:] - 0.5).abs() < value - 0.5).all()
            assert ((found[k, :, -1] - 0.5).abs() < 1e-12).all()


def test_order_is_cell_by_cell_and_labels_follow():
    images, labels = colours(ipc=2)
    made = make(images, labels, decode=MultiFormation(factor=2))
    index = made.decode.index(labels)
    assert index.tolist() == [[i, 2, cell] for cell in range(4) for i in range(6)]
    decoded, targets = made.decoded()
    assert torch.equal(targets, labels.repeat(4))
    torch.testing.assert_close(decoded, naive(made.images, 2, 0.0))


def test_multi_is_every_single_one_after_another():
    images, labels = noise(2, 1, 12, 12), torch.tensor([0, 1])
    decoder = MultiFormation(factor=3, kind="multi")
    index = decoder.index(labels)
    assert index[:, 1].tolist() == [1] * 2 + [2] * 8 + [3] * 18
    singles = [
        d.take(images, d.index(labels)) for d in (MultiFormation(factor=g) for g in (1, 2, 3))
    ]
    assert torch.equal(decoder.take(images, index), torch.cat(singles))
    assert torch.equal(singles[0], images)


BOUND = MultiFormation(factor=3, kind="bound")


@pytest.mark.parametrize(("ipc", "count"), [(10, 90), (20, 125), (50, 123), (100, 127), (120, 126)])
def test_bound_counts_as_published(ipc, count):
    assert len(BOUND.index(torch.zeros(ipc, dtype=torch.int64))) == count


def test_bound_goes_class_by_class_and_cuts_the_first_images_finest():
    labels = torch.tensor([1, 0]).repeat(20)
    index = BOUND.index(labels)
    assert len(index) == 250
    for label, part in enumerate(index.split(125)):
        own = (labels == label).nonzero()[:, 0].tolist()
        fine = [[row, 3, cell] for cell in range(9) for row in own[:12]]
        middle = [[row, 2, cell] for cell in range(4) for row in own[12:15]]
        assert part.tolist() == fine + middle + [[row, 1, 0] for row in own[15:]]
    images = noise(40, 1, 9, 9)
    found = BOUND.take(images, index)
    for k in (0, 60, 115, 124, 249):
        row, factor, cell = index[k].tolist()
        assert torch.equal(found[k], naive(images[row : row + 1], factor, 0.5)[cell])
    with pytest.raises(InputError, match="bound of 128 training images is below the 130 stored"):
        BOUND.index(torch.zeros(130, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["single", "multi", "bound"])
def test_chosen_cells_equal_rows_of_the_whole(kind):
    images, labels = noise(6, 2, 11, 11), torch.arange(6) % 2
    decoder = MultiFormation(factor=3, kind=kind, bound=14, pad=(0.5, -1.0))
    index = decoder.index(labels)
    whole = decoder.take(images, index)
    chosen = torch.randperm(len(index), generator=torch.Generator().manual_seed(1))[:7]
    assert torch.equal(decoder.take(images, index[chosen]), whole[chosen])


@pytest.mark.parametrize(("shape", "factor"), [((8, 8), 2), ((7, 10), 3)])
def test_gradient_equals_that_of_a_naive_loop(shape, factor):
    images = noise(3, 2, *shape).requires_grad_()
    decoder = MultiFormation(factor=factor)
    weights = noise(3 * factor**2, 2, *shape, seed=1)
    found = decoder.take(images, decoder.index(torch.arange(3)))
    wanted = naive(images, factor, 0.5)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
    mine, theirs = (
        torch.autograd.grad((out.square() * weights).sum(), images)[0] for out in (found, wanted)
    )
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)


def test_second_derivatives_are_those_of_finite_differences():
    decoder, images = MultiFormation(factor=2), noise(1, 1, 3, 4).requires_grad_()
    index = decoder.index(torch.tensor([0]))[[3, 1]]
    assert torch.autograd.gradgradcheck(lambda x: decoder.take(x, index).square(), images)


@pytest.mark.parametrize("kind", ["single", "bound"])
def test_decoding_and_normalising_go_in_any_order(kind):
    images, space = noise(4, 3, 11, 11), MeanStd(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))
    raw = MultiFormation(factor=3, kind=kind)
    inner = raw.normalised(space)
    assert inner.pad == pytest.approx([0.0, 0.5, 2 / 3])
    index = raw.index(torch.arange(4) % 2)
    torch.testing.assert_close(
        inner.take(space.forward(images), index),
        space.forward(raw.take(images, index)),
        rtol=0,
        atol=1e-12,
    )


def test_whitening_does_not_go_with_cells():
    pixels = (255 * torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))).byte()
    space = sealed(fit_zca("zca-mtt", pixels, data="x"))
    assert isinstance(space, Zca)
    with pytest.raises(InputError, match="cut into cells cannot be whitened"):
        MultiFormation().normalised(space)


def test_axes_width_cuts_the_last_axis_alone():
    images = noise(2, 1, 6, 8)
    decoder = MultiFormation(factor=3, axes="width", pad=(0.0,))
    assert decoder.cells == 3
    index = decoder.index(torch.tensor([0, 1]))
    assert index.tolist() == [[i, 3, cell] for cell in range(3) for i in range(2)]
    torch.testing.assert_close(decoder.take(images, index), naive(images, 3, 0.0, width_only=True))
    mosaic = decoder.mosaic(noise(6, 1, 6, 8, seed=1))
    assert torch.equal(mosaic[1, :, :, 6:], noise(6, 1, 6, 8, seed=1)[5, :, :, ::4])
    many = dataclasses.replace(decoder, kind="bound", bound=7)
    assert many.index(torch.zeros(3, dtype=torch.int64))[:, 1].tolist() == [3, 3, 3, 2, 2, 1]


def test_mosaics_keep_the_type_and_take_nearest_pixels():
    pictures = (noise(8, 3, 8, 8) * 50 + 128).to(torch.uint8)
    mosaic = MultiFormation(factor=2).mosaic(pictures)
    assert mosaic.dtype == torch.uint8
    assert torch.equal(mosaic[1, :, 4:, :4], pictures[2 * 2 + 1, :, ::2, ::2])
    with pytest.raises(InputError, match="takes 4 pictures; 7 are no multiple"):
        MultiFormation(factor=2).mosaic(pictures[:7])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factor": 0}, "at least 1, not 0 and 128"),
        ({"bound": 0}, "at least 1, not 2 and 0"),
        ({"kind": "singel"}, "did you mean 'single'"),
        ({"axes": "height"}, "axes of a decoder 'height'"),
        ({"pad": ()}, r"one a channel, not \(\)"),
    ],
)
def test_wrong_decoders_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        MultiFormation(**fields)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (MultiFormation(factor=17), "16 x 16 pixels cannot be cut with the factor 17"),
        (MultiFormation(factor=12), "cannot be cut with the factor 12: a cell would have no pixel"),
        (MultiFormation(factor=16, kind="multi"), "cannot be cut with the factor 5"),
        (MultiFormation(pad=(0.1, 0.2)), "padding is for 2 channels; the images have 3"),
        (MultiFormation(kind="bound", bound=1), "bound of 1 training images is below the 2 stored"),
    ],
)
def test_sets_that_cannot_be_decoded_are_refused(decoder, message):
    with pytest.raises(InputError, match=message):
        make(decode=decoder)


def test_a_set_with_a_decoder_is_used_like_any_other(tmp_path):
    made = make(*colours(ipc=3), decode=MultiFormation(factor=3, kind="bound", bound=16))
    made.save(tmp_path / "set")
    back = load(tmp_path / "set")
    assert_same(back, made)
    assert from_json(to_json(made.decode)) == made.decode
    images, targets = made.decoded()
    assert len(images) == len(targets) == 3 * (9 + 4 + 1)
    assert sum(len(x) for x, _ in made.loader(batch_size=8)) == 42
    assert made.cut(1).decoded()[1].tolist() == [0] * 9 + [1] * 9 + [2] * 9
    assert len(made.taken(torch.tensor([0, 1])).decoded()[0]) == 13
    assert sheet(made).size == sheet(dataclasses.replace(made, decode=Identity())).size
    assert "| training images | 42 |" in card(made)
    assert "training images |" not in card(make())
    short = dataclasses.replace(made, recipe=dataclasses.replace(RECIPE, segments=(EPOCH,)))
    assert short.train("convnet1")(colours()[0]).shape == (6, 3)


def test_sets_of_earlier_versions_name_their_decoder_as_ever(tmp_path):
    make().save(tmp_path / "set")
    facts = json.loads((tmp_path / "set" / "set.json").read_text())
    assert facts["decode"] == {"type": "Identity"}
    assert load(tmp_path / "set").decode == Identity()


def test_a_prefix_of_a_set_with_a_decoder():
    made = make(decode=MultiFormation(factor=2))
    images, targets = made.prefix(1).decoded()
    assert targets.tolist() == [0, 0] * 4
    assert torch.equal(images, made.decoded()[0].view(4, 6, *made.shape)[:, :2].flatten(0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_types_are_kept(dtype):
    images = noise(2, 1, 8, 8).to(dtype)
    for decoder in (MultiFormation(factor=3, kind="multi"), Identity()):
        assert decoder.take(images, decoder.index(torch.tensor([0, 1]))).dtype == dtype


def test_a_compiled_step_may_decode():
    decoder = MultiFormation(factor=2)
    images, index = noise(2, 1, 8, 8), decoder.index(torch.tensor([0, 1]))
    graph = torch.export.export(Take(decoder), (images, index), strict=False)
    assert torch.equal(graph.module()(images, index), decoder.take(images, index))


class Take(torch.nn.Module):
    """`take` as a module, to be traced whole."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, images, index):
        return self.decoder.take(images, index)
