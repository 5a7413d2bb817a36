"""Residual networks: one trunk, and the stems, shortcuts and norms that the papers vary.

Sources: He, Zhang, Ren and Sun, CVPR 2016 (arXiv:1512.03385), in the forms of DC (arXiv:2006.05929)
and MTT (arXiv:2203.11932): `resnet18` and its kin; IDC (arXiv:2205.14959): `-idc`; SRe2L
(arXiv:2306.13092): `-tiny`; solo-learn (arXiv:2108.01775): `-sololearn`; DC-BENCH
(arXiv:2207.09639): depths 34 to 152. Parameters are named and ordered as in torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn

from potstill.nets.layers import map_size, norm_of
from potstill.nets.spec import NETS, NetSpec, Network, Size

Norm = Callable[[int], nn.Module]
Depth = Literal[10, 18, 34, 50, 101, 152]


@dataclass(frozen=True, kw_only=True)
class Stem:
    """What comes before the first residual block: a convolution, norm, ReLU, pooling."""

    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: Callable[[], nn.Module] = nn.Identity


def small_stem(side: int) -> Stem:
    """Return a 3x3 stem; from 64 pixels on with stride 2, as DC and DATM have it at 64."""
    return Stem(stride=2 if side >= 64 else 1)


def imagenet_stem(side: int) -> Stem:
    """Return the stem of the ImageNet networks, whatever the side."""
    return Stem(kernel=7, stride=2, padding=3, pool=partial(nn.MaxPool2d, 3, 2, 1))


def idc_stem(side: int) -> Stem:
    """Return IDC's stem: 3x3 up to 64 pixels, with a pooling up to 128, above as on ImageNet."""
    if side > 128:
        return imagenet_stem(side)
    return Stem(pool=partial(nn.MaxPool2d, 3, 2, 1)) if side > 64 else Stem()


def idc_ap_stem(side: int) -> Stem:
    """Return the stem of IDC's ResNetAP, which has no stride: average pooling 1, 2 or 4."""
    if side > 128:
        return Stem(kernel=7, padding=3, pool=partial(nn.AvgPool2d, 4))
    return Stem(pool=partial(nn.AvgPool2d, 2)) if side > 64 else Stem()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one residual network differs from another."""

    depth: Depth
    stem: Callable[[int], Stem] = small_stem
    average: bool = False
    """Blocks shrink their maps by average pooling instead of strides."""
    flat: bool = False
    """The classifier sees the whole last map, not its mean."""
    init: Literal["torch", "fan_out", "fan_out but stem"] = "torch"
    """First weights of convolutions: PyTorch's default, or N(0, 2 / (kernel area * outputs))."""


BLOCKS: Mapping[Depth, tuple[int, int, int, int]] = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut; average: the pooling follows the first ReLU."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm, average: bool) -> None:
        super().__init__()
        step, pool = (1, stride) if average else (stride, 1)
        self.conv1, self.bn1 = _conv(inputs, width, 3, step), norm(width)
        self.conv2, self.bn2 = _conv(width, width, 3), norm(width)
        self.downsample = _shortcut(inputs, width, step, pool, norm)
        self.relu, self.pool = nn.ReLU(), nn.AvgPool2d(pool) if pool > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return maps [B, width, H / stride, W / stride]."""
        y = self.pool(self.relu(self.bn1(self.conv1(x))))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 (strided), 1x1 to four times the width, and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm, average: bool) -> None:
        super().__init__()
        step, pool = (1, stride) if average else (stride, 1)
        self.conv1, self.bn1 = _conv(inputs, width, 1), norm(width)
        self.conv2, self.bn2 = _conv(width, width, 3, step), norm(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1), norm(4 * width)
        self.downsample = _shortcut(inputs, 4 * width, step, pool, norm)
        self.relu, self.pool = nn.ReLU(), nn.AvgPool2d(pool) if pool > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return maps [B, 4 width, H / stride, W / stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.pool(self.relu(self.bn2(self.conv2(y))))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def _shortcut(inputs: int, outputs: int, stride: int, pool: int, norm: Norm) -> nn.Module:
    if inputs == outputs and stride * pool == 1:
        return nn.Identity()
    between = (nn.AvgPool2d(pool),) if pool > 1 else ()
    return nn.Sequential(_conv(inputs, outputs, 1, stride), *between, norm(outputs))


class ResNet(nn.Module):
    """Stem, four stages of residual blocks, mean over the map (or the whole map), linear map."""

    def __init__(
        self, spec: NetSpec, channels: int, size: Size, classes: int, layout: Layout
    ) -> None:
        super().__init__()
        assert spec.width is not None
        norm, stem = norm_of(spec.norm), layout.stem(min(size))
        self.conv1 = nn.Conv2d(
            channels, spec.width, stem.kernel, stem.stride, padding=stem.padding, bias=False
        )
        self.bn1, self.relu, self.maxpool = norm(spec.width), nn.ReLU(), stem.pool()
        block = Basic if layout.depth < 50 else Bottleneck
        inputs, stages = spec.width, []
        for stage, count in enumerate(BLOCKS[layout.depth]):
            width, blocks = spec.width * 2**stage, []
            for k in range(count):
                stride = 2 if stage and not k else 1
                blocks.append(block(inputs, width, stride, norm, layout.average))
                inputs = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.flat = layout.flat
        height, width = map_size((self.conv1, self.maxpool), size)
        self.fc = nn.Linear(inputs * (height // 8) * (width // 8) if self.flat else inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, classes] of images [B, C, H, W]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.flatten(1) if self.flat else x.mean((2, 3)))


def resnet(spec: NetSpec, channels: int, size: Size, classes: int, *, layout: Layout) -> nn.Module:
    """Make a residual network.

    Differs: DC and MTT pool the last map by 4; here it is averaged whole, which is the same at 28,
        32 and 64 pixels and fits every other size.
    """
    net = ResNet(spec, channels, size, classes, layout)
    if layout.init != "torch":
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if layout.init == "fan_out but stem":
        net.conv1.reset_parameters()
    return net


def _add(name: str, norm: str, layout: Layout, text: str, width: int = 64, least: int = 9) -> None:
    NETS.add(name)(
        Network(
            make=partial(resnet, layout=layout),
            help=f"ResNet-{layout.depth}, {norm} norm, {text}",
            own={"width": width, "norm": norm},
            least=least,
        )
    )


for _end, _norm in (("", "instance"), ("-bn", "batch")):
    for _depth in BLOCKS:
        _of = "DC, MTT, PDD" if _depth < 34 else "DC-BENCH"
        _add(f"resnet{_depth}{_end}", _norm, Layout(depth=_depth), f"3x3 stem ({_of})")
    _pooled = Layout(depth=18, average=True, flat=True)
    _add(f"resnet18{_end}-ap", _norm, _pooled, "average pooling, no strides (DC)", least=16)
for _depth in (10, 18):
    _thin = Layout(depth=_depth, stem=lambda _: Stem(), init="fan_out")
    _wide = Layout(depth=_depth, stem=idc_stem, init="fan_out")
    _add(f"resnet{_depth}-idc", "batch", _thin, "widths 32 to 256 (IDC on CIFAR)", width=32)
    _add(f"resnet{_depth}-idc-wide", "batch", _wide, "widths 64 to 512 (IDC on other images)")
_pooled = Layout(depth=10, stem=idc_ap_stem, average=True, init="fan_out")
_padded = Layout(depth=18, stem=lambda _: Stem(padding=2), init="fan_out but stem")
_large = Layout(depth=18, stem=imagenet_stem)
_add(
    "resnetap10-idc", "instance", _pooled, "average pooling, no strides (IDC on ImageNet)", least=16
)
for _depth in (18, 50, 101):
    _tiny = Layout(depth=_depth, stem=lambda _: Stem(), init="fan_out but stem")
    _add(f"resnet{_depth}-tiny", "batch", _tiny, "3x3 stem of stride 1 at every size (SRe2L, CDA)")
_add("resnet18-sololearn", "batch", _padded, "3x3 stem of padding 2 (KRR-ST, MKDT)", least=7)
_add("resnet18-imagenet", "instance", _large, "7x7 stem and pooling (DC-BENCH at 64)", least=33)
