"""Rules that choose real images: each against a plain transcription on small sets."""

import itertools
import math

import pytest
import torch
from torch import nn

from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.coresets import (
    Features,
    expert_features,
    herding,
    highest,
    k_center,
    medoid_real,
    medoids,
    members_of,
    module_features,
    net_features,
    pixel_features,
    random_real,
    repeated,
)
from potstill.coresets.features import settle
from potstill.coresets.rules import error_norms, forgotten
from potstill.data import MeanStd, Split, from_arrays, measure_stats
from potstill.experts import ExpertPlan, Trajectory, expert_tasks, train_expert
from potstill.nets import FlatNet, NetSpec, build

SPACE = MeanStd(mean=(0.5,), std=(0.25,))


def chance(seed):
    return torch.Generator().manual_seed(seed)


def cloud(n, f, seed=0):
    return torch.rand(n, f, generator=chance(seed), dtype=torch.float64) ** 3


def toy(counts, seed=0):
    """Images [N, 1, 8, 8] with `counts[c]` of each class c, in mixed order."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=chance(seed))]
    noise = torch.rand(len(labels), 1, 8, 8, generator=chance(seed + 1))
    pixels = (255 * (0.5 * noise + 0.5 * labels[:, None, None, None] / len(counts))).byte()
    return Split(pixels, labels)


def plain_herding(points, k):
    mu, chosen = points.mean(0), []
    for t in range(k):
        total = sum((points[i] for i in chosen), torch.zeros_like(mu))
        left = [i for i in range(len(points)) if i not in chosen]
        chosen.append(min(left, key=lambda i: float(((t + 1) * mu - total - points[i]).norm())))
    return chosen


def plain_k_center(points, k):
    mu = points.mean(0)
    chosen = [min(range(len(points)), key=lambda i: float((points[i] - mu).norm()))]
    while len(chosen) < k:
        left = [i for i in range(len(points)) if i not in chosen]
        gap = [min(float((points[i] - points[j]).norm()) for j in chosen) for i in left]
        chosen.append(left[gap.index(max(gap))])
    return chosen


@pytest.mark.parametrize(("rule", "plain"), [(herding, plain_herding), (k_center, plain_k_center)])
@pytest.mark.parametrize(("n", "f", "away"), [(1, 3, 0), (12, 1, 0), (30, 5, 0), (25, 40, 100)])
def test_herding_and_k_center_against_plain_loops(rule, plain, n, f, away):
    points = cloud(n, f, seed=n) + away
    before = points.clone()
    whole = rule(points, n)
    assert whole == plain(points, n)
    assert sorted(whole) == list(range(n))
    for k in range(1, n):
        assert rule(points, k) == whole[:k]
    assert torch.equal(points, before)


def test_herding_on_a_line_by_hand():
    points = torch.tensor([[0.0], [1.0], [2.0], [7.0]], dtype=torch.float64)  # mu = 2.5
    assert herding(points, 3) == [2, 1, 3]  # |5 - 2 - 1| = 2; |7.5 - 3 - 7| = 2.5 < |4.5 - 0|


def test_k_center_on_a_line_by_hand():
    points = torch.tensor([[0.0], [1.0], [2.0], [7.0]], dtype=torch.float64)
    assert k_center(points, 3) == [2, 3, 0]


@pytest.mark.parametrize("rule", [herding, k_center])
def test_equal_points_are_chosen_once(rule):
    points = torch.full((5, 3), 0.1, dtype=torch.float64)
    assert sorted(rule(points, 4)) == sorted(set(rule(points, 4)))
    points[3] = 1.0
    assert sorted(rule(points, 5)) == list(range(5))


def test_medoids_against_brute_force():
    points = torch.randn(8, 2, generator=chance(4), dtype=torch.float64)
    best = min(  # all ways to put 8 points into 3 clusters, the first one into cluster 0
        (ls for rest in itertools.product(range(3), repeat=7) if len(set(ls := (0, *rest))) == 3),
        key=lambda labels: sum(_inertia(points, labels, c) for c in range(3)),
    )
    wanted = set()
    for cluster in range(3):
        inside = [i for i, label in enumerate(best) if label == cluster]
        centre = points[inside].mean(0)
        wanted.add(min(inside, key=lambda i: float((points[i] - centre).norm())))
    assert set(medoids(points, 3, seed=0)) == wanted


def _inertia(points, labels, cluster):
    inside = points[torch.tensor(labels) == cluster]
    return float(inside.var(0, correction=0).sum() * len(inside))


def test_medoids_are_nearest_to_the_centres_of_scikit_learn():
    from sklearn.cluster import KMeans

    points = cloud(60, 7)
    model = KMeans(n_clusters=6, n_init=3, random_state=5).fit(points.numpy())
    wanted = []
    for cluster, centre in enumerate(torch.as_tensor(model.cluster_centers_)):
        inside = [i for i, label in enumerate(model.labels_) if label == cluster]
        wanted.append(min(inside, key=lambda i: float((points[i] - centre).norm())))
    assert medoids(points, 6, seed=5) == wanted


def test_medoids_of_equal_points_are_distinct():
    assert len(set(medoids(torch.zeros(6, 2, dtype=torch.float64), 4, seed=0))) == 4


def test_forgetting_counts_by_hand():
    table = [  # correct after epochs 0 .. 4: one column an image
        [1, 0, 1, 0, 1, 0],
        [1, 0, 0, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 1, 1, 1, 1],
    ]
    found = forgotten(torch.tensor(table, dtype=torch.bool))
    assert found.tolist() == [0, 5, 2, 0, 1, 0]  # image 1 was never learned: maximal
    assert found.dtype == torch.float64


def test_error_norms_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [0.0, math.log(3)]])
    found = error_norms(logits, torch.tensor([0, 0, 0]))
    wanted = [(0.5**2 + 0.5**2) ** 0.5, (2 * 0.25**2) ** 0.5, (2 * 0.75**2) ** 0.5]
    assert found.tolist() == pytest.approx(wanted, abs=1e-7)


def test_highest_orders_equal_scores_by_chance_and_not_by_row():
    scores = torch.tensor([1.0, 3.0, 3.0, 3.0, 3.0, 5.0, 0.0])
    seen = [highest(scores, 4, chance=chance(seed)) for seed in range(40)]
    assert all(found[0] == 5 and set(found[1:]) < {1, 2, 3, 4} for found in seen)
    assert {place for found in seen for place in found[1:]} == {1, 2, 3, 4}
    assert len({tuple(found) for found in seen}) > 10
    assert seen[0] == highest(scores, 7, chance=chance(0))[:4]


def test_repeated_takes_every_place_once_before_any_twice():
    asked = []

    def pick(m):
        asked.append(m)
        return list(range(m))

    assert repeated(pick, 3, 2) == [0, 1]
    assert repeated(pick, 3, 3) == [0, 1, 2]
    assert repeated(pick, 3, 8) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert asked == [2, 3, 3, 3, 2]


def test_members_and_what_is_said_of_small_classes():
    split = toy([3, 5])
    for label, rows in enumerate(members_of(split, (3, 4))):
        assert rows.tolist() == [i for i, y in enumerate(split.labels.tolist()) if y == label]
    said = r"Class 'cat' has 3 .*fewer than ipc 4: lower ipc or add --replacement"
    with pytest.raises(InputError, match=said):
        members_of(split, (4, 4), classes=("cat", "dog"))
    with pytest.raises(InputError, match=r"Class 0 has 3 .*ipc 4"):
        random_real(split, (4, 4), seed=0)
    with pytest.raises(InputError, match=r"Class 2 has 0 "):
        members_of(split, (1, 1, 1), replacement=True)


def test_random_real_is_keyed_matched_and_without_repeats():
    split = toy([24, 24, 24])
    first, again, other = (random_real(split, (2, 0, 3), seed=d) for d in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 5
    assert split.labels[list(first)].tolist() == [0, 0, 2, 2, 2]


def test_replacement_changes_nothing_where_images_suffice():
    split = toy([3, 9])
    features = pixel_features(SPACE)
    plain = random_real(split, (3, 5), seed=0)
    assert plain == random_real(split, (3, 5), seed=0, replacement=True)
    for found in (
        random_real(split, (8, 5), seed=0, replacement=True),
        medoid_real(split, (8, 5), features, replacement=True),
    ):
        rows = torch.nonzero(split.labels == 0)[:, 0].tolist()
        assert sorted(found[:3]) == sorted(found[3:6]) == rows
        assert len(set(found[6:8])) == 2
        assert len(set(found[8:])) == 5
    assert random_real(split, (8, 5), seed=0, replacement=True)[:3] == plain[:3]


def test_medoid_real_uses_the_features_and_the_class():
    split = toy([12, 12, 12])
    first = Features("brightness", lambda pixels: pixels.float().mean((1, 2, 3))[:, None])
    chosen = medoid_real(split, (1, 1, 1), first)
    for label, index in enumerate(chosen):
        members = torch.nonzero(split.labels == label)[:, 0]
        values = first.fn(split.pixels[members])[:, 0]
        assert index == int(members[(values - values.mean()).abs().argmin()])
    assert sorted(medoid_real(split, (12, 12, 12), first)) == list(range(36))


def test_net_features_are_what_the_last_layer_sees():
    spec, pixels = NetSpec(name="convnet1", width=4), toy([80, 70]).pixels
    net = FlatNet(build(spec, channels=1, size=(8, 8), classes=3, seed=0))
    found = net_features(net, net.theta0, SPACE, name="net").fn(pixels)
    head = net.load(net.theta0)
    layer = [part for part in head.modules() if isinstance(part, nn.Linear)][-1]
    assert torch.allclose(layer(found), net(net.theta0, SPACE.forward(pixels)), atol=1e-6)
    assert torch.equal(pixel_features(SPACE).fn(pixels), SPACE.forward(pixels).flatten(1))


class Gated(nn.Module):
    """A linear layer inside, a 1x1 convolution as head."""

    def __init__(self):
        super().__init__()
        self.gate, self.head = nn.Linear(1, 1), nn.Conv2d(1, 3, 1)

    def forward(self, x):
        return self.head(x * self.gate(x.mean((2, 3)))[..., None, None]).mean((2, 3))


def test_networks_that_end_in_a_convolution_have_no_features():
    bare = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    with pytest.raises(InputError, match="'bare' does not end in a linear layer"):
        module_features(bare, SPACE, name="bare")
    features = module_features(Gated(), SPACE, name="gated")
    with pytest.raises(InputError, match="'gated' does not end in a linear layer"):
        features.fn(toy([3]).pixels)


def test_settle_measures_running_statistics_anew():
    split = toy([300, 213])
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(128, 2))
    net[1].running_mean.fill_(9.0)
    settle(net, split, SPACE)
    x = net[0](SPACE.forward(split.pixels))  # 513 images: 3 batches of 171
    assert torch.allclose(net[1].running_mean, x.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(net[1].running_var, x.var((0, 2, 3)), rtol=0.05)
    assert not net.training
    assert not net[1].training


def test_features_of_an_expert_are_those_of_its_last_epoch(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    split = toy([60, 60])
    data = from_arrays(split.pixels, split.labels)
    space, plan = measure_stats(data.train), ExpertPlan(count=1, epochs=2, batch=16)
    spec = NetSpec(name="convnet1", width=4, norm="batch")
    (task,) = expert_tasks(plan, data, space, spec, seed=0, compute=Compute(threads=1)).specs
    train_expert(task, {}, tmp_path)
    found = expert_features(task, tmp_path)
    assert found.name == "the last hidden layer of convnet1"
    net = FlatNet(build(spec, channels=1, size=(8, 8), classes=2, seed=5))
    module = net.load(Trajectory(tmp_path).row(2)).train()  # a batch of all images is its statistic
    wanted = module.features(space.forward(data.train.pixels)).flatten(1)
    assert torch.allclose(found.fn(data.train.pixels), wanted, atol=1e-3)
