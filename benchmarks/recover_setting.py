"""What versions of recovery share, and whether ours is the plain program, in float32."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import plain_recover
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core.compute import Compute, fast_bfloat16
from potstill.core.keys import generator
from potstill.data import MeanStd
from potstill.nets import NetSpec, build, filled
from potstill.nets.taps import Tapped
from potstill.recover import CDA_TINY, Recovery, Unit, recovered

SPACE = MeanStd(mean=(0.48, 0.45, 0.40), std=(0.28, 0.27, 0.28))
TOLERANCE, EPS = 1e-5, 1e-3
Losses = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What all versions share: two units of `batch` images, of which most versions take one."""

    plain: nn.Module
    taps: Sequence[plain_recover.Statistics]
    teacher: Tapped
    x: Tensor
    units: tuple[Unit, Unit]
    device: str
    threads: int

    @property
    def side(self) -> int:
        """Return the side of the images."""
        return self.x.shape[3]


def net_spec(side: int) -> tuple[NetSpec, int]:
    """Return the teacher's network for images of that side, and its classes."""
    small = side <= 64
    spec = NetSpec(name="resnet18-tiny" if small else "resnet18-imagenet", norm="batch")
    return filled(spec), 200 if small else 1000


def trained(net: nn.Module, side: int, classes: int, *, steps: int = 2) -> nn.Module:
    """Return a network, frozen after some steps of SGD on noise, which give it statistics."""
    chance, sgd = torch.Generator().manual_seed(0), torch.optim.SGD(net.parameters(), lr=0.01)
    net.train()
    for _ in range(steps):
        x = torch.randn(8, 3, side, side, generator=chance)
        sgd.zero_grad()
        F.cross_entropy(net(x), torch.randint(classes, (8,), generator=chance)).backward()
        sgd.step()
    return net.eval().requires_grad_(False)


def problem(
    *, side: int, batch: int, device: str = "cpu", threads: int = 1, net: NetSpec | None = None
) -> Problem:
    """Make the teacher and two units of first images, of the classes from 0 on."""
    chosen, classes = net_spec(side)
    fresh = build(net or chosen, channels=3, size=(side, side), classes=classes, seed=0)
    module = trained(fresh, side, classes)
    own = copy.deepcopy(module).to(device)
    norms = [part for part in own.modules() if isinstance(part, nn.BatchNorm2d)]
    chance = torch.Generator().manual_seed(1)
    first, second = (Unit(classes=tuple(range(batch)), indices=(k,)) for k in range(2))
    return Problem(
        plain=own,
        taps=[plain_recover.Statistics(norm) for norm in norms],
        teacher=Tapped(module).to(device),
        x=torch.randn(2 * batch, 3, side, side, generator=chance),
        units=(first, second),
        device=device,
        threads=threads,
    )


def settings_of(steps: int, *, check: bool = False) -> Recovery:
    """Return CDA's constants for Tiny-ImageNet with so many steps.

    For a check with the losses of every step and a larger eps of Adam, whose first steps else only
    look at the signs of a gradient, also where this is rounding.
    """
    settings = replace(CDA_TINY, iterations=steps, log_every=1 if check else steps)
    return replace(settings, optimizer=replace(settings.optimizer, eps=EPS)) if check else settings


def same_choices(p: Problem, unit: Unit, settings: Recovery, seed: int) -> Iterator:
    """Yield the choices that ours makes for a unit, for the plain program."""
    chance = generator(seed, "recover", *unit.key)
    for t in range(settings.iterations):
        drawn = settings.crops(t).sample(len(unit), (3, p.side, p.side), chance)
        top, left, height, width, flip, down, right = map(int, drawn.values[0].tolist())
        yield plain_recover.Choice((top, left, height, width), bool(flip), (down, right))


def plain_steps(
    p: Problem, steps: int, seed: int, *, which: int = 0, check: bool = False
) -> tuple[Tensor, Losses]:
    """Return images of a unit and losses after some steps of the plain program."""
    unit, settings = p.units[which], settings_of(steps, check=check)
    reach, chance = round(settings.roll * p.side), torch.Generator().manual_seed(seed)
    black, white = (
        [(end - m) / s for m, s in zip(SPACE.mean, SPACE.std, strict=True)] for end in (0, 1)
    )
    return plain_recover.recover(
        p.plain,
        p.taps,
        p.x.split(len(unit))[which].to(p.device),
        unit.labels().to(p.device),
        same_choices(p, unit, settings, seed)
        if check
        else plain_recover.curriculum(steps, p.side, reach, chance),
        steps=steps,
        lr=settings.lr,
        bn=settings.bn,
        black=black,
        white=white,
        eps=settings.optimizer.eps,
    )


def compute_of(name: str, *, device: str = "cpu", threads: int = 1) -> Compute:
    """Return how a version of ours is computed."""
    half = name == "bfloat16" or (name != "float32" and fast_bfloat16(device))
    return Compute(
        threads=threads,
        device="cuda" if device == "cuda" else "cpu",
        precision="bfloat16" if half else "float32",
        compiled=name in ("compiled", "grouped"),
    )


def our_steps(
    p: Problem, name: str, steps: int, seed: int, *, check: bool = False, units: int = 0
) -> tuple[Tensor, Losses]:
    """Return images and losses after some steps of ours."""
    count = units or (2 if name == "grouped" else 1)
    found = recovered(
        [p.teacher],
        p.x[: count * len(p.units[0])],
        p.units[:count],
        settings_of(steps, check=check),
        SPACE,
        seed=seed,
        compute=compute_of(name, device=p.device, threads=p.threads),
    )
    return found.images, [(entropy, far) for _, entropy, far in found.losses]


def apart(ours: Losses, plain: Losses) -> float:
    """Return the largest relative difference of a loss."""
    pairs = zip(torch.tensor(ours).flatten(), torch.tensor(plain).flatten(), strict=True)
    return max(float((a - b).abs() / b.abs()) for a, b in pairs)


def check_equal(p: Problem, versions: Sequence[str], *, steps: int = 3) -> dict[str, float]:
    """Return how far the losses of each version are from the plain ones, in parts of these.

    `images`: the median distance of a value of an image, in float32.

    Raises:
        SystemExit: if those of float32, of one unit or of two side by side, differ by 1e-5.
    """
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        plain = [plain_steps(p, steps, 0, which=k, check=True) for k in range(2)]
        x, losses = our_steps(p, "float32", steps, 0, check=True)
        _, side_by_side = our_steps(p, "float32", steps, 0, check=True, units=2)
    alone = plain[0][1]
    both = torch.stack([torch.tensor(own) for _, own in plain]).mean(0).tolist()
    found = {"float32": apart(losses, alone), "two units": apart(side_by_side, both)}
    for name, far in found.items():
        if not far < TOLERANCE:
            raise SystemExit(f"The losses of {name} differ from the plain ones by {far:.1e}.")
    found["images"] = float((x - plain[0][0].cpu()).abs().median())
    for name in [name for name in versions if name not in ("plain", "float32")]:
        _, own = our_steps(p, name, steps, 0, check=True)
        found[name] = apart(own, both if name == "grouped" else alone)
    return found
