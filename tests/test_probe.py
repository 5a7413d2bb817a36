"""The linear probe against scikit-learn, nearest neighbours by hand, parts of the labels."""

import io
import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from potstill.core.errors import InputError, WorkError
from potstill.data import named_stats
from potstill.evaluation.probe import Probe, knn_accuracy, label_subset, linear_probe, ridge_probe
from potstill.nets import NetSpec, build
from potstill.nets.hidden import features as hidden

REAL = Path(os.environ.get("POTSTILL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def toy(n, d=20, classes=4, seed=0, apart=1.0):
    chance = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = apart * torch.randn(classes, d, generator=torch.Generator().manual_seed(9))
    x = centres[labels] + torch.randn(n, d, generator=chance) + 3  # all means far from zero
    return x.double(), labels


def loss(probe, x, y, l2):
    return F.cross_entropy(F.linear(x, *probe), y) + l2 * probe.weight.square().sum()


@pytest.mark.parametrize(("n", "d", "apart"), [(60, 20, 1), (15, 40, 1), (200, 10, 0.3)])
def test_the_probe_is_scikit_learns_optimum(n, d, apart):
    from sklearn.linear_model import LogisticRegression

    x, y = toy(n, d, apart=apart)
    ours = linear_probe(x, y, 4)
    theirs = LogisticRegression(C=1 / (2 * 1e-3 * n), tol=1e-9, max_iter=20000).fit(x, y)
    torch.testing.assert_close(ours.weight, torch.tensor(theirs.coef_), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.bias, torch.tensor(theirs.intercept_), rtol=1e-3, atol=1e-3)
    assert ours.accuracy(x, y) == pytest.approx(theirs.score(x, y), abs=1e-12)


def test_no_step_lowers_the_loss_of_a_probe():
    x, y = toy(50)
    probe = linear_probe(x, y, 4, l2=1e-2)
    leaves = [part.clone().requires_grad_() for part in probe]
    grads = torch.autograd.grad(loss(Probe(*leaves), x, y, 1e-2), leaves)
    assert max(float(grad.abs().max()) for grad in grads) < 2e-5  # of features that are not centred
    assert linear_probe(x.float(), y, 4).weight.dtype == torch.float32


@pytest.mark.parametrize("scale", [1e-3, 30])
def test_small_and_large_features_have_a_probe_too(scale):
    from sklearn.linear_model import LogisticRegression

    x, y = toy(200, 10)
    x = x * scale
    theirs = LogisticRegression(C=1 / (2 * 1e-3 * 200), tol=1e-9, max_iter=20000).fit(x, y)
    plain = Probe(torch.tensor(theirs.coef_), torch.tensor(theirs.intercept_))
    assert loss(linear_probe(x, y, 4), x, y, 1e-3) < loss(plain, x, y, 1e-3) + 1e-8


def test_a_class_without_labels_is_not_found_and_breaks_nothing():
    x, y = toy(40)
    probe = linear_probe(x, y, 6)
    assert bool(torch.isfinite(probe.bias).all())
    assert probe.accuracy(x, y) == linear_probe(x, y, 4).accuracy(x, y)
    assert F.linear(x, *probe).softmax(1)[:, 4:].max() < 1e-3


def test_bad_probes():
    x, y = toy(40)
    with pytest.raises(InputError, match="l2 of a linear probe must be above 0, not 0"):
        linear_probe(x, y, 4, l2=0)
    for huge in (1e6, 1e12):  # where L-BFGS ends before the optimum
        with pytest.raises(WorkError, match="did not reach its optimum"):
            linear_probe(toy(60, 3, apart=0.3)[0] * huge, toy(60, 3)[1], 4)
    x[3, 2] = math.nan
    with pytest.raises(WorkError, match="did not reach its optimum"):
        linear_probe(x, y, 4)


def test_ridge_probe_is_the_ridge_solution():
    x, y = toy(90, apart=2.0)
    probe = ridge_probe(x, y, 4, lam=1e-4)
    f = torch.cat([x, torch.ones(90, 1)], 1)
    ridged = f.T @ f + 1e-4 * f.square().sum() * torch.eye(21, dtype=f.dtype)
    plain = torch.linalg.solve(ridged, f.T @ F.one_hot(y, 4).double())
    torch.testing.assert_close(probe.weight, plain[:-1].T, rtol=1e-9, atol=1e-12)
    test, answers = toy(400, seed=5, apart=2.0)
    exact = linear_probe(x, y, 4).accuracy(test, answers)
    assert abs(probe.accuracy(test, answers) - exact) < 0.05
    assert exact > 0.9


def test_nearest_neighbours_vote_by_their_cosine():
    x, y = toy(60)
    test, answers = toy(35, seed=3)
    right = 0
    for point, answer in zip(test, answers, strict=True):
        near = sorted(((float(F.cosine_similarity(point, p, dim=0)), i) for i, p in enumerate(x)))
        votes = [0.0] * 4
        for cosine, place in near[-7:]:
            votes[int(y[place])] += math.exp(cosine / 0.07)
        right += votes.index(max(votes)) == int(answer)
    assert knn_accuracy(x, y, test, answers, k=7) == pytest.approx(right / 35, abs=1e-12)
    assert knn_accuracy(x, y, 5 * x, y, k=1) == 1
    with pytest.raises(InputError, match="k nearest of 60 images: k cannot be 61"):
        knn_accuracy(x, y, test, answers, k=61)


def test_fractions_of_the_labels():
    labels = torch.arange(10).repeat_interleave(torch.tensor([100] * 9 + [60]))
    labels = labels[torch.randperm(960, generator=torch.Generator().manual_seed(0))]
    rows = label_subset(labels, 10, fraction=0.05, seed=1)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert labels[rows].bincount().tolist() == [5] * 9 + [3]
    assert torch.equal(rows, label_subset(labels, 10, fraction=0.05, seed=1))
    assert not torch.equal(rows, label_subset(labels, 10, fraction=0.05, seed=2))
    plain = label_subset(labels, 10, fraction=0.29, stratified=False, seed=1)
    assert len(plain) == int(0.29 * 960)
    assert len(set(labels[plain].bincount().tolist())) > 2
    shots = label_subset(labels, 10, shots=4, seed=1)
    assert labels[shots].bincount().tolist() == [4] * 10
    assert set(shots.tolist()) <= set(label_subset(labels, 10, shots=9, seed=1).tolist())


def test_labels_that_leave_classes_out_are_refused():
    labels = torch.arange(200).repeat_interleave(29)  # CUB-like: 1 % is 58 labels of 200 classes
    with pytest.raises(InputError, match="1 % of 5800 labels leaves 142 of 200 classes without"):
        label_subset(labels, 200, fraction=0.01, seed=0)
    with pytest.raises(InputError, match=r"a stratified draw \(--stratified\), a larger fraction"):
        label_subset(labels, 200, fraction=0.05, stratified=False, seed=0)
    assert len(label_subset(labels, 200, fraction=0.01, force=True, seed=0)) == 58
    forced = label_subset(labels, 200, fraction=0.01, stratified=False, force=True, seed=0)
    assert len(forced) == 58
    assert label_subset(labels, 200, fraction=0.05, seed=0).shape == (290,)
    with pytest.raises(InputError, match="Class 0 has 29 labels, fewer than 30 shots"):
        label_subset(labels, 200, shots=30, seed=0)
    assert len(label_subset(labels, 200, shots=30, force=True, seed=0)) == 5800
    for bad in ({}, {"fraction": 0.1, "shots": 1}):
        with pytest.raises(InputError, match="either a fraction or a number of shots"):
            label_subset(labels, 200, seed=0, **bad)
    with pytest.raises(InputError, match=r"in \(0, 1\], not 1\.5"):
        label_subset(labels, 200, fraction=1.5, seed=0)
    with pytest.raises(InputError, match="at least 1, not 0"):
        label_subset(labels, 200, shots=0, seed=0)


@pytest.mark.slow
def test_a_random_convnet_on_cifar10():
    """A third of the test images are right with 500 labels (33.5 to 36.4 % on record)."""
    file = REAL / "cifar10" / "test-00000-of-00001.parquet"
    if not file.is_file():
        pytest.skip(f"no CIFAR-10 in {REAL} (POTSTILL_DATA names the folder that holds it)")
    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(file).slice(0, 3000)
    images = [Image.open(io.BytesIO(row["bytes"])) for row in table["image"].to_pylist()]
    arrays = np.stack([np.asarray(image.convert("RGB")) for image in images])
    pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    labels = torch.tensor(table["label"].to_pylist())
    net = build(NetSpec(name="convnet3"), channels=3, size=(32, 32), classes=512, seed=0).eval()
    space = named_stats("cifar10@mtt")
    with torch.no_grad():
        parts = pixels.split(100)
        x = torch.cat([hidden(net, net, space.forward(part), name="convnet3") for part in parts])
    rows = label_subset(labels[:1000], 10, shots=50, seed=0)
    probe = linear_probe(x[rows], labels[rows], 10)
    assert 0.30 < probe.accuracy(x[1000:], labels[1000:]) < 0.40
    assert ridge_probe(x[rows], labels[rows], 10).accuracy(x[1000:], labels[1000:]) > 0.30
    assert knn_accuracy(x[rows], labels[rows], x[1000:], labels[1000:]) > 0.25
