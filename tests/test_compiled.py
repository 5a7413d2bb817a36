"""Compiled steps of the adjoint against the eager graph in float64, how often torch compiles."""

import pytest
import torch
from torch._dynamo.utils import counters

from potstill.augment import DSA
from potstill.core.errors import InputError, WorkError
from potstill.functional import SGD, Adam, Batch, ce, run_prefix, soft_ce, training_loss, unroll
from potstill.functional.steps import augmented, compiled, eager
from potstill.nets import FlatNet, NetSpec, build

SHAPE, CLASSES = (3, 8, 8), 3
SINGLE = [DSA(strategy=name) for name in DSA().ops]


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.getbasetemp() / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    torch.set_num_threads(1)


def network(*, seed=0, **settings):
    settings = {"name": "convnet1", "width": 4} | settings
    module = build(NetSpec(**settings), channels=3, size=SHAPE[1:], classes=CLASSES, seed=seed)
    net = FlatNet(module)
    net.train()
    return net


def numbers(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batches(count, policies, *, sizes=(4,), seed=0):
    """Draw batches of rows of 6, one with a repeated row, each augmented by the next policy."""
    chance, made = torch.Generator().manual_seed(seed), []
    for k in range(count):
        index = torch.randint(6, (sizes[k % len(sizes)],), generator=chance)
        policy = policies[k % len(policies)]
        made.append(Batch(index, policy.sample(len(index), SHAPE, chance)))
    return made


def outer(loss, theta, data, made, *, optimizer=None, lr=0.05, dtype=torch.float64, **how):
    """Return theta at the end and the gradients in lr and in every real tensor of the data."""
    leaves = [
        torch.tensor(lr, dtype=dtype),
        *(d.to(dtype) if d.is_floating_point() else d for d in data),
    ]
    wanted = [leaf.requires_grad_() for leaf in leaves if leaf.is_floating_point()]
    step, *data = leaves
    end = unroll(
        loss,
        theta.to(dtype),
        tuple(data),
        step,
        made,
        optimizer=optimizer or SGD(),
        prepare=augmented(DSA()),
        **how,
    )
    goal = numbers(*theta.shape, seed=4).to(dtype)
    return [end.detach(), *torch.autograd.grad((end - goal).square().sum(), wanted)]


def problem(*, soft):
    labels = numbers(6, CLASSES, seed=3).softmax(1) if soft else torch.arange(6) % CLASSES
    return numbers(6, *SHAPE, seed=2), labels


def assert_near(ours, reference, tolerance=1e-10):
    for a, b in zip(ours, reference, strict=True):
        assert b.norm() > 0
        assert float((a - b).norm() / b.norm()) < tolerance


def compiles():
    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "instance", "group", "layer", "batch"])
def test_compiled_adjoint_equals_the_graph_for_every_norm(norm):
    """With learned labels, every operation of DSA, a last smaller minibatch, two optimizers."""
    net = network(norm=norm)
    loss, data = training_loss(net, soft_ce), problem(soft=True)
    made = batches(6, SINGLE)
    statistics = {name: each.clone() for name, each in net.statistics(net.theta0).items()}
    before = compiles()
    for optimizer in (SGD(momentum=0.9), Adam(eps_root=1e-8)):
        graph, ours = (
            outer(loss, net.theta0, data, made, optimizer=optimizer, **how)
            for how in ({"strategy": "graph"}, {"strategy": "adjoint", "compiled": True})
        )
        assert_near(ours, graph)
    assert compiles() - before == 2
    for name, each in net.statistics(net.theta0.double()).items():
        assert torch.equal(each, statistics[name].to(each.dtype))


@pytest.mark.slow
def test_no_more_is_compiled_for_other_batches_step_sizes_operations_and_starts():
    net = network()
    loss, data = training_loss(net, ce), problem(soft=False)
    how, start = {"strategy": "adjoint", "compiled": True, "dtype": torch.float32}, compiles()
    for it in range(4):
        theta, lr = net.theta0 + 0.1 * numbers(net.numel, seed=it).float(), 0.01 * (it + 1)
        made = batches(6, SINGLE[it:] + SINGLE[:it], sizes=(4, 4, 2), seed=it)
        ours = outer(training_loss(net, ce), theta, data, made, lr=lr, **how)
        plain = outer(loss, theta, data, made, lr=lr, strategy="graph")
        assert_near(ours, plain, 1e-4)
        assert compiles() - start == 4  # two derivatives for batches of 4 and of 2
        prefix, _ = run_prefix(
            loss,
            theta,
            tuple(d.float() if d.is_floating_point() else d for d in data),
            torch.tensor(lr),
            made,
            optimizer=SGD(),
            prepare=augmented(DSA()),
            compiled=True,
        )
        assert torch.equal(prefix, ours[0])
    assert compiles() - start == 4


@pytest.mark.slow
def test_labels_that_need_no_gradient_and_unknown_losses():
    """Real labels that stay fixed; a loss linear in theta and one blind to the rows."""
    x, y = problem(soft=True)

    def plain(theta, rows):
        return soft_ce(torch.tanh(rows[0].flatten(1)[:, :4] @ theta.view(4, CLASSES)), rows[1])

    def blind(theta, rows):
        return theta.sum() + 0 * rows[0].sum()

    theta, v = numbers(4 * CLASSES, seed=1), numbers(4 * CLASSES, seed=5)
    for loss, moving in ((plain, (0,)), (plain, ()), (blind, (0,))):
        found, wanted = (
            of.product(theta, (x, y), v, moving) for of in (compiled(loss), eager(loss))
        )
        assert len(found) == 1 + len(moving)
        for a, b in zip(found, wanted, strict=True):
            assert float((a - b).norm()) <= 1e-12 * float(b.norm())


def test_a_tiny_compiled_step_and_a_loss_that_cannot_be_compiled():
    def loss(theta, rows):
        x, y = rows
        return soft_ce(torch.tanh(x.flatten(1)[:, :4] @ theta.view(4, CLASSES)), y)

    def looks(theta, rows):
        return theta.sum() if float(theta.sum()) > 0 else loss(theta, rows)

    data, made = problem(soft=True), batches(3, SINGLE)
    theta, how = numbers(4 * CLASSES, seed=1), {"strategy": "adjoint", "compiled": True}
    ours = outer(loss, theta, data, made, **how)
    assert_near(ours, outer(loss, theta, data, made, strategy="graph"))
    with pytest.raises(WorkError, match=r"torch.compile failed \(.{10,200}\); use --compile off"):
        outer(looks, theta, data, made, **how)


def test_a_compiled_graph_is_refused():
    with pytest.raises(InputError, match="need the strategy 'adjoint', not 'graph'"):
        outer(None, numbers(4, seed=1), problem(soft=True), [], strategy="graph", compiled=True)


def test_the_training_loss_of_a_network_is_one_function_in_training_mode():
    net = network(norm="batch")
    loss = training_loss(net, ce)
    assert training_loss(net, ce) is loss
    assert training_loss(net, soft_ce) is not loss
    assert training_loss(network(norm="batch"), ce) is not loss
    x, y = problem(soft=False)
    x, before = x.float(), {n: b.clone() for n, b in net.statistics(net.theta0).items()}
    net.eval()
    assert not torch.allclose(loss(net.theta0, (x, y)), ce(net(net.theta0, x), y))
    net.train()
    with net.keeping_statistics():
        assert torch.equal(loss(net.theta0, (x, y)), ce(net(net.theta0, x), y))
    assert all(torch.equal(b, before[n]) for n, b in net.statistics(net.theta0).items())
    with torch.no_grad():
        whole, half = (
            training_loss(net, ce, precision=name)(net.theta0, (x, y))
            for name in ("float32", "bfloat16")
        )
    assert half.dtype == torch.float32
    assert 0 < abs(float(whole - half)) < 0.05 * float(whole)
