"""Networks by exact name, and their parameters as one flat vector."""

from potstill.nets import alexnet as alexnet
from potstill.nets import classic as classic
from potstill.nets import convnet as convnet
from potstill.nets import densenet as densenet
from potstill.nets import resnet as resnet
from potstill.nets import vgg as vgg
from potstill.nets import vit as vit
from potstill.nets.external import EXTERNAL
from potstill.nets.flat import FlatNet
from potstill.nets.projector import HEADS, VIEWS_HEAD, HeadSpec, projected, without_head
from potstill.nets.spec import (
    NET_POOLS,
    NETS,
    NetSpec,
    Network,
    build,
    describe,
    filled,
    fitting,
    flat,
    narrowed,
    variant,
)
from potstill.nets.trial import flops, hindrance, kept_bytes

__all__ = [
    "EXTERNAL",
    "HEADS",
    "NETS",
    "NET_POOLS",
    "VIEWS_HEAD",
    "FlatNet",
    "HeadSpec",
    "NetSpec",
    "Network",
    "build",
    "describe",
    "filled",
    "fitting",
    "flat",
    "flops",
    "hindrance",
    "kept_bytes",
    "narrowed",
    "projected",
    "variant",
    "without_head",
]
