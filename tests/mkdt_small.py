"""A small MKDT on digits, and its work up to the loop."""

from dataclasses import replace

from potstill.augment import DSA
from potstill.data import open_data
from potstill.engine import Tasks, run_tasks
from potstill.functional.selfsup import BarlowTwins
from potstill.methods import Loop
from potstill.methods.mkdt import EXPERTS, MKDT
from potstill.nets import NetSpec
from potstill.run import Run, preflight
from potstill.teachers import EncoderPlan, SelfSupervised

NET = NetSpec(name="convnet2", width=8)
SELF = SelfSupervised(
    loss=BarlowTwins(lam=1 / 128),
    head="toy",
    epochs=2,
    warmup=1,
    batch=50,
    augment=DSA(strategy="crop"),
)
METHOD = MKDT(
    iterations=4,
    steps=3,
    expert_epochs=1,
    max_start_epoch=2,
    batch_syn=8,
    lr_img=10.0,
    lr_init=0.05,
    teacher=EncoderPlan(training=SELF),
    experts=replace(EXPERTS, count=3, epochs=5, batch=64),
)
RUN = Run(method=METHOD, data="digits", size="5%", net=NET, limit=30, threads=1)


def ready(store, method=METHOD, run=RUN):
    """Return the context of the loop of a run, whose tasks are done once for all tests."""
    run = replace(run, method=method)
    data = open_data(run.data, limit=run.limit)
    ctx, done = replace(preflight(run, data)[0], store=store), {}
    while isinstance(phase := method.phases(ctx, done), Tasks):
        done[phase.phase] = run_tasks(phase, store)
    assert isinstance(phase, Loop)
    return replace(ctx, nets=phase.nets, done=done)


def walked(method, ctx, steps, state=None, first=0):
    state, seen = method.init(ctx) if state is None else state, []
    for it in range(first, first + steps):
        state, numbers = method.step(ctx, state, it)
        seen.append(numbers)
    return state, seen
