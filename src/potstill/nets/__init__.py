"""Networks by exact name, and their parameters as one flat vector."""

from potstill.nets import convnet as convnet
from potstill.nets.flat import FlatNet
from potstill.nets.spec import NETS, NetSpec, build, variant

__all__ = ["NETS", "FlatNet", "NetSpec", "build", "variant"]
