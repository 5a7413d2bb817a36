"""A network for the images of a data set."""

from __future__ import annotations

from potstill.core.keys import Part
from potstill.data import DataSet
from potstill.nets import FlatNet, NetSpec, flat


def fresh(net: NetSpec, data: DataSet, *, seed: int = 0, key: tuple[Part, ...] = ()) -> FlatNet:
    """Return a new network that takes the images of the data and tells their classes apart.

    Raises:
        InputError: as `flat`.
    """
    return flat(
        net,
        channels=data.channels,
        size=data.size,
        classes=data.n_classes,
        seed=seed,
        key=key,
    )
