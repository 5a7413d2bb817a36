"""What a recipe is: a function from images to a full run, with the published number beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from potstill.core.errors import InputError
from potstill.core.registry import Registry
from potstill.nets import NetSpec, narrowed
from potstill.run import Run

SCALES = ("smoke", "cpu", "full")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number on record: test accuracy in percent."""

    accuracy: float
    std: float | None
    source: str
    kind: str = "the best test accuracy over checkpoints"
    """What the number is."""
    verified: bool = True
    """Whether the number is one that the authors published, as far as is known; else no run is said
    to meet it."""
    nets: tuple[tuple[str, float], ...] = ()
    """Accuracies of other networks trained on the same set."""
    protocol: str = "strict"
    """By which the number, or one that is the same here, was found."""
    regime: str | None = None
    """Labels that networks learned; None: those of the set."""
    labels: str | None = None
    """Of a probe: the part of the labels that it was given, 5%."""

    def __str__(self) -> str:
        """Return the number with its std, if one is known, and its source."""
        spread = "" if self.std is None else f" ± {self.std}"
        others = "".join(f", {net} {accuracy}" for net, accuracy in self.nets)
        return f"{self.accuracy}{spread} %{others} ({self.source})"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A published setting."""

    make: Callable[[str], Run]
    """From a data source to the full run."""
    data: str
    """The data set's name, for people."""
    shape: tuple[int, int, int]
    """Channels, height and width of its images."""
    classes: int
    published: Published | None
    """None: no number is known."""
    differs: tuple[str, ...] = ()
    """Where this version departs from the published setting so far that no run is said to meet or
    miss the number."""
    notes: tuple[str, ...] = ()
    """Where it departs in what hardly moves the number: shown, and no reason against a verdict."""
    settings: Literal["published", "inferred"] = "published"
    """inferred: there is no public command; the settings are those of the nearest one."""
    cost: str = ""
    """What the authors say that it costs."""


RECIPES: Registry[Recipe] = Registry("recipe")


def from_recipe(name: str, *, data: str | None, scale: str = "full") -> Run:
    """Return the run of a recipe at a scale.

    `cpu` and `smoke` change counts only: experts, epochs, iterations, images, width, networks.
    `smoke` makes at most 10 images a class (100 if their number in all is given) and needs no data:
    it takes a bundled stand-in of the recipe's channels, at most 32 px and 10 classes. No weights
    are published for that, so the teacher is trained; a network from outside, which has no width,
    is a narrow ResNet-18 there.

    Raises:
        InputError: for an unknown recipe or scale, or if the recipe's data are not given.
    """
    recipe = RECIPES.get(name)
    if data is None:
        if scale != "smoke":
            raise InputError(
                f"The recipe {name} needs {recipe.data}: name it with --data (parquet:DIR or "
                "folder:DIR), or try --scale smoke, which needs no data."
            )
        channels, height, _ = recipe.shape
        data = f"standin:{channels}x{min(height, 32)}x{min(recipe.classes, 10)}"
    run = recipe.make(data)
    if scale == "smoke" and run.ipc is not None:
        run = dataclasses.replace(run, ipc=min(run.ipc, 10))
    elif scale == "smoke" and (run.size or "").isdecimal():
        run = dataclasses.replace(run, size=str(min(_wanted(run), 100)))
    return scaled(run, scale)


def scaled(run: Run, scale: str) -> Run:
    """Return a run with the counts of a scale; nothing but counts changes."""
    if scale not in SCALES:
        raise InputError(f"scale must be one of {', '.join(SCALES)}, not {scale!r}.")
    if scale == "full":
        return run
    method = run.method.scaled(scale)
    smoke = scale == "smoke"
    base = getattr(method, "base", method)
    steps = getattr(base, "iterations", 1)  # coresets choose at once
    patches = getattr(base, "patches", None)
    factor = getattr(base, "factor", 1) if patches is None else patches.factor
    cells = factor**2  # real images that one stored image begins with
    standin = smoke and run.data.startswith("standin:")
    net = NetSpec(name="resnet18-tiny") if standin and ":" in run.net.name else run.net
    if standin and hasattr(method, "teacher"):
        method = dataclasses.replace(method, teacher=method.teacher.anew())
    return dataclasses.replace(
        run,
        method=method,
        net=narrowed(net, (8 if smoke else 32) / 128),
        resize=None if standin else run.resize,
        fit="crop" if standin else run.fit,
        classes=None if standin else run.classes,
        limit=min(run.limit or 1000, max(_wanted(run) * cells, 20) if smoke else 1000),
        select_every=0 if smoke else min(run.select_every, max(1, steps // 3)),
        scale=scale,
    )


def _wanted(run: Run) -> int:
    """Return so many images a class that what a run asks for is there, if their number is known."""
    if run.ipc is not None:
        return run.ipc
    return int(run.size) if run.size and run.size.isdecimal() else 0
