"""ZCA whitening, `zca-mtt` and `zca-kip`: applied, undone, stored; `whitening.py` fits it.

Both multiply flattened images by T = U diag(f) U^T with f = (S + r)^(-1/2), where U and S are
eigenvectors and eigenvalues of the covariance of the training images; they differ in what comes
before and in the regulariser r:

- `zca-mtt`: minus the mean image; covariance with divisor n - 1; r = 0.1. Cazenavette et al.,
  CVPR 2022 (arXiv 2203.11932), with the whitening of kornia.
- `zca-kip`: minus the mean of each image, divided by its norm; divisor n; r = 0.1 mean(S). Nguyen
  et al., NeurIPS 2021 (arXiv 2107.13034); Feng et al., ICLR 2024 (arXiv 2310.07506).

U, S and the mean are stored once, in float32; T and its inverse follow from them. Of rank k, T is
c I + U_k diag(f_k - c) U_k^T: the D - k values f of least spread share their midpoint c (under
these regularisers those of the smallest S, where f is flat), which keeps the worst error least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.spec import canonical, record
from potstill.core.state import tensor_digest
from potstill.core.threads import using_threads
from potstill.data.normalise import unit_range

KINDS = ("zca-mtt", "zca-kip")
FLAT = 1e-3
"""`zca-kip` divides by no smaller norm; one pixel value that differs by 1/255 has norm 0.004."""


@record
@dataclass(frozen=True, kw_only=True)
class ZcaRef:
    """Name a ZCA by its content: all of it but the tensors, and a digest of everything."""

    kind: str
    shape: tuple[int, int, int]
    """Channels, height and width of the images that it was fitted on."""
    rank: int
    """Eigenpairs kept; all of them make the whole matrix."""
    regulariser: float
    """r, added to the eigenvalues."""
    rest: float
    """c, the value of f in all directions that are not kept."""
    error: float = 0.0
    """RMS error of the whitened training images through the rank, relative to their RMS."""
    worst: float = 0.0
    """Largest error that any image can get, relative: |T - T_k| / |T| in the spectral norm."""
    brightness: float = 0.0
    """Mean of the training images in [0, 1], for the view of `zca-kip`."""
    contrast: float = 1.0
    """Mean norm of the training images minus their own means, for the view of `zca-kip`."""
    data: str = ""
    """Identity of the data set that it was fitted on."""
    digest: str = ""
    """SHA-256 of the tensors and of the fields above."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Zca:
    """Whiten images: `basis` U [D, k], `values` S [k] (falling), `mean` [D] of `zca-mtt`.

    Images are flattened as (channel, row, column), D = C H W. Equal if the digests are.

    Raises:
        InputError: if the tensors do not fit the record.
    """

    ref: ZcaRef
    basis: Tensor
    values: Tensor
    mean: Tensor | None = None
    _parts: dict[tuple, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        wide, rank = math.prod(self.ref.shape), self.ref.rank
        found = [tuple(t.shape) for t in (self.basis, self.values, self.mean) if t is not None]
        mean = [(wide,)] if self.ref.kind == "zca-mtt" else []
        if self.ref.kind not in KINDS or found != [(wide, rank), (rank,), *mean]:
            raise InputError(
                f"Tensors of {found} do not make a {self.ref.kind} of rank {rank} for images of "
                f"{_shape(self.ref.shape)}."
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Zca) and self.ref == other.ref

    def __hash__(self) -> int:
        return hash(self.ref)

    @property
    def channels(self) -> int:
        """Return the number of colour channels."""
        return self.ref.shape[0]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return whitened images [..., C, H, W]; float32, or float64 if `pixels` is float64.

        `pixels` is uint8, or floating in [0, 1]; differentiable in the latter case.

        Raises:
            InputError: if the shape is not the fitted one or the type is another integer.
        """
        x = unit_range(pixels)
        self.check(x.shape)
        return self.apply(x, self.parts(x.dtype, x.device))

    @staticmethod
    def apply(x: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """Whiten floating images in [0, 1] with what `parts` returned.

        Differs: an image of one colour becomes nearly 0 under `zca-kip`, not NaN.
        """
        rows = x.flatten(-3)
        if "mean" in parts:
            rows = rows - parts["mean"]
        else:
            rows = rows - rows.mean(-1, keepdim=True)
            rows = rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(FLAT)
        return _times(rows, parts).reshape(x.shape)

    def inverse(self, x: Tensor) -> Tensor:
        """Return whitened images [..., C, H, W] in view space, black 0 and white 1, not clipped.

        `zca-mtt` is undone exactly. Under `zca-kip` an image loses its mean and its norm, and a
        distilled image never had any, so this is a view only: T^-1 x, times the mean norm and
        plus the mean brightness of the training images.

        Raises:
            InputError: if the shape is not the fitted one.
        """
        self.check(x.shape)
        rows = _times(x.flatten(-3), self.parts(x.dtype, x.device, inverse=True))
        if self.mean is not None:
            rows = rows + self.mean.to(rows)
        else:
            rows = rows * self.ref.contrast + self.ref.brightness
        return rows.reshape(x.shape)

    def parts(
        self, dtype: torch.dtype, device: torch.device, *, inverse: bool = False
    ) -> dict[str, Tensor]:
        """Return the tensors that `apply` takes, or those of the inverse; computed in float64.

        They are the whole `matrix` if the rank is at least D / 2, which then is less work.
        """
        key = (dtype, device, inverse)
        if key not in self._parts:
            scale, rest = scale_of(self.values, self.ref.regulariser), self.ref.rest
            scale, rest = (1 / scale, 1 / rest) if inverse else (scale, rest)
            if 2 * self.ref.rank >= len(self.basis):
                basis = self.basis.double()
                with using_threads(1):  # whoever comes first, the bytes are the same
                    found = {"matrix": (basis * (scale - rest)) @ basis.T}
                found["matrix"].diagonal().add_(rest)
            else:
                weights, rest = scale - rest, scale.new_tensor(rest)
                found = {"basis": self.basis, "weights": weights, "rest": rest}
            if self.mean is not None:
                found["mean"] = self.mean
            self._parts[key] = {name: t.to(device, dtype) for name, t in found.items()}
        return self._parts[key]

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse images of another shape than the fitted one.

        Raises:
            InputError: naming both shapes.
        """
        if tuple(shape[-3:]) != self.ref.shape:
            raise InputError(
                f"This {self.ref.kind} was fitted on images of {_shape(self.ref.shape)}; it cannot "
                f"take the shape {tuple(shape)}."
            )

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored beside the record."""
        found = {"basis": self.basis, "values": self.values}
        return found if self.mean is None else {**found, "mean": self.mean}

    def nbytes(self) -> int:
        """Return the bytes of the stored tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def record(self) -> ZcaRef:
        """Return the record for specs, which `open_space` leads back to this."""
        return self.ref

    def describe(self) -> str:
        """Return kind, rank, errors and size in one short line."""
        full = self.ref.rank == math.prod(self.ref.shape)
        errors = f"error {self.ref.error:.1e}, at worst {self.ref.worst:.1e}"
        rank = "all directions" if full else f"rank {self.ref.rank} ({errors})"
        return f"{self.ref.kind}, {rank}, {self.nbytes() / 1e6:.1f} MB"


def sealed(space: Zca) -> Zca:
    """Return a ZCA as it is stored: float32, with its digest."""
    tensors = {name: t.to(torch.float32).contiguous() for name, t in space.tensors().items()}
    return Zca(ref=replace(space.ref, digest=_digest(space.ref, tensors)), **tensors)


def restored(ref: ZcaRef, tensors: Mapping[str, Tensor]) -> Zca:
    """Return the ZCA of a record and its stored tensors.

    Raises:
        InputError: if tensors are missing, or were altered, or belong to another record.
    """
    missing = {"basis", "values", *(["mean"] if ref.kind == "zca-mtt" else [])} - tensors.keys()
    if missing:
        raise InputError(f"The normaliser {ref.kind} lacks its {', '.join(sorted(missing))}.")
    if _digest(ref, tensors) != ref.digest:
        raise InputError(f"The tensors of the normaliser {ref.kind} are not those of its record.")
    return Zca(ref=ref, **tensors)


def _digest(ref: ZcaRef, tensors: Mapping[str, Tensor]) -> str:
    return tensor_digest(dict(tensors), canonical(replace(ref, digest="")))


def scale_of(values: Tensor, regulariser: float) -> Tensor:
    """Return f of eigenvalues [k] in float64; it rises as they fall."""
    return (values.double() + regulariser).rsqrt()


def _times(rows: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    if "matrix" in parts:
        return rows @ parts["matrix"]
    inside = (rows @ parts["basis"]) * parts["weights"]
    return rows * parts["rest"] + inside @ parts["basis"].T


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)
