"""Networks from outside: torchvision, timm, and functions of the user's own modules."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

from torch import nn

from potstill.core.errors import InputError, WorkError, unknown
from potstill.core.store import default_cache
from potstill.core.vision import import_torchvision
from potstill.nets.trial import Size, first_line

Make = Callable[[str, int, Size, int], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source of networks: how one is made from (name, channels, size, classes)."""

    form: str
    help: str
    make: Make


def torchvision_net(name: str, channels: int, size: Size, classes: int) -> nn.Module:
    """Make a classifier of torchvision from "NAME" or, with published weights, "NAME@WEIGHTS".

    Without weights any number of channels works: the first convolution is made anew. Weights are
    downloaded once into `downloads` in the user's cache; if they know another number of classes,
    the last layer is new.

    Raises:
        InputError: for an unknown name or weights, or images that the weights do not take.
        WorkError: if the weights cannot be had, or are not those published.
    """
    models: Any = import_torchvision().models
    name, at, wanted = name.partition("@")
    known = models.list_models(module=models)
    if name not in known:
        raise unknown("torchvision network", name, known)
    options: dict[str, Any] = {"image_size": size[0]} if name.startswith("vit_") else {}
    if name.startswith("vit_") and size[0] != size[1]:
        raise InputError(f"torchvision:{name} takes square images, not {size[0]}x{size[1]}.")
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": not at, "transform_input": bool(at)}
    if not at:
        net = models.get_model(name, weights=None, num_classes=classes, **options)
        return net if channels == 3 else _with_channels(net, channels)
    weights = {w.name: w for w in models.get_model_weights(name)}
    if wanted not in weights:
        raise unknown(f"weights of torchvision:{name}", wanted, weights)
    meta = weights[wanted].meta
    if channels != 3:
        raise InputError(
            f"The weights torchvision:{name}@{wanted} take 3 channels, not {channels}."
        )
    if "image_size" in options and size != meta["min_size"]:
        side = meta["min_size"][0]
        raise InputError(f"The weights torchvision:{name}@{wanted} take {side}x{side} pixels only.")
    own = len(meta["categories"])
    net = models.get_model(name, weights=None, num_classes=own, **options)
    _load(net, name, weights[wanted])
    return net if own == classes else _with_classes(net, own, classes)


def _load(net: nn.Module, name: str, weights: Any) -> None:
    """Put published weights into a network; they come from the cache or from the network."""
    folder, file = default_cache() / "downloads", weights.url.rsplit("/", 1)[-1]
    try:
        with redirect_stdout(sys.stderr):  # where torch says what it downloads
            state = weights.get_state_dict(
                model_dir=str(folder), progress=False, check_hash=True, weights_only=True
            )
        if name.startswith("densenet"):  # published under the names of an older torch
            state = {re.sub(r"(norm|conv)\.(\d)", r"\1\2", key): state[key] for key in state}
        net.load_state_dict({k: v for k, v in state.items() if not k.lower().startswith("aux")})
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise WorkError(
            f"Cannot get the weights {file} ({first_line(error)}); without a way to them put that "
            f"file into {folder}, and if one lies there that is not whole, remove it."
        ) from error


def _with_channels(net: nn.Module, channels: int) -> nn.Module:
    """Replace the first convolution of 3 channels by a new one of another number."""
    for name, part in net.named_modules():
        if isinstance(part, nn.Conv2d) and part.in_channels == 3:
            shape: Any = (part.kernel_size, part.stride, part.padding, part.dilation)
            bias = part.bias is not None
            return _swap(net, name, nn.Conv2d(channels, part.out_channels, *shape, bias=bias))
    raise InputError(f"This network takes 3 channels, not {channels}.")


def _with_classes(net: nn.Module, own: int, classes: int) -> nn.Module:
    """Replace the last layer with `own` outputs by a new one."""
    for name, part in reversed(list(net.named_modules())):
        if isinstance(part, nn.Linear) and part.out_features == own:
            return _swap(net, name, nn.Linear(part.in_features, classes, part.bias is not None))
        if isinstance(part, nn.Conv2d) and part.out_channels == own:
            return _swap(net, name, nn.Conv2d(part.in_channels, classes, 1))
    raise InputError(f"This network has no layer of {own} outputs to replace; it gives {own}.")


def _swap(net: nn.Module, name: str, new: nn.Module) -> nn.Module:
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, new)
    return net


def timm_net(name: str, channels: int, size: Size, classes: int) -> nn.Module:
    """Make an untrained network of timm for any channels, and for the size where it asks for one.

    Raises:
        InputError: for an unknown name, or one with pretrained weights ("NAME.TAG").
    """
    import_torchvision()  # timm imports it, and it may need help
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise InputError("This needs timm: pip install 'potstill[nets]'.") from None
    plain = name.split(".")[0].split("@")[0]
    if plain != name and timm.is_model(plain):
        raise InputError(
            f"timm's networks come untrained here: timm:{plain}, not timm:{name}; published "
            "weights are to be had as torchvision:NAME@WEIGHTS."
        )
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "timm.list_models() names all of them."
        raise InputError(f"Unknown timm network {name!r}: {hint}")
    options: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    try:
        return timm.create_model(name, pretrained=False, img_size=size, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    return timm.create_model(name, pretrained=False, **options)


def own_net(name: str, channels: int, size: Size, classes: int) -> nn.Module:
    """Make a network by the user's function, named "package.module.function".

    It is imported as Python does, also from the current directory, and called with keywords only:
    `function(channels=3, size=(32, 32), classes=10) -> nn.Module`.

    Raises:
        InputError: if there is no such function, or it fails, or returns something else.
    """
    where, _, function = name.rpartition(".")
    if not where:
        raise InputError(f"module:{name} should be module:PACKAGE.FUNCTION, with a dot.")
    with _current_directory():
        try:
            make = getattr(importlib.import_module(where), function)
        except ModuleNotFoundError as error:
            raise InputError(f"There is no module {error.name} for module:{name}.") from None
        except AttributeError:
            raise InputError(f"The module {where} has no function {function}.") from None
        except Exception as error:  # whatever the user's module does
            raise InputError(f"{where} cannot be imported ({first_line(error)}).") from error
        try:
            net = make(channels=channels, size=size, classes=classes)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"module:{name} failed for channels={channels}, size={size}, classes={classes} "
                f"({first_line(error)})."
            ) from error
    if not isinstance(net, nn.Module):
        raise InputError(f"module:{name} returned a {type(net).__name__}, not a torch module.")
    return net


@contextmanager
def _current_directory() -> Iterator[None]:
    """Let Python import from the current directory inside the block."""
    here = os.getcwd()
    if "" in sys.path or here in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


EXTERNAL: Mapping[str, Source] = {
    "torchvision": Source(
        form="torchvision:NAME[@WEIGHTS]",
        help="a network of torchvision, untrained or with its published weights",
        make=torchvision_net,
    ),
    "timm": Source(form="timm:NAME", help="a network of timm, untrained", make=timm_net),
    "module": Source(
        form="module:PACKAGE.FUNCTION",
        help="your own: FUNCTION(channels=, size=, classes=) returns a torch module",
        make=own_net,
    ),
}
