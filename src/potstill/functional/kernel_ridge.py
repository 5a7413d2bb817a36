"""Kernel ridge regression on the features of a network, and the ages of a pool of networks.

Source: Lee et al., Self-Supervised Dataset Distillation for Transfer Learning (KRR-ST), ICLR 2024
(arXiv 2310.06511).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.core.spec import record


def ridge(features: Tensor, y: Tensor, *, lam: float = 1e-6, double: bool = True) -> Tensor:
    """Return W [D + 1, K], which minimises |[features, 1] W - y|^2 + lambda |W|^2.

    features [n, D], y [n, K]; the last row of W is the bias. lambda = lam * trace of the kernel
    matrix, through which no gradient goes. Solved by Cholesky in the smaller of the two forms,
    F^T (F F^T + lambda I)^-1 y or (F^T F + lambda I)^-1 F^T y; with `double` in float64, whatever
    the features are, since the condition number is about 1 / lam.

    Raises:
        InputError: if the kernel matrix is not positive definite.
    """
    f = with_bias(features)
    if len(f) <= f.shape[1]:
        return f.T @ _solved(f @ f.T, y, lam, double)
    return _solved(f.T @ f, f.T @ y, lam, double)


def krr_loss(
    features_s: Tensor,
    y_s: Tensor,
    features_r: Tensor,
    y_r: Tensor,
    lam: float = 1e-6,
    *,
    double: bool = True,
) -> Tensor:
    """Return the mean square (0-dim) of K_rs (K_ss + lambda I)^-1 y_s - y_r over all entries.

    features_s [n, D], y_s [n, K] are the distilled images', features_r [B, D], y_r [B, K] real
    ones' (in KRR-ST without a gradient); K_ss = F_s F_s^T and K_rs = F_r F_s^T with a column of
    ones appended to the features.

    Raises:
        InputError: as `ridge`.
    """
    return F.mse_loss(with_bias(features_r) @ ridge(features_s, y_s, lam=lam, double=double), y_r)


def with_bias(features: Tensor) -> Tensor:
    """Return [features, 1]: [n, D + 1] of [n, D]."""
    return torch.cat([features, torch.ones_like(features[:, :1])], dim=1)


def _solved(kernel: Tensor, y: Tensor, lam: float, double: bool) -> Tensor:
    """Return (kernel + lam trace(kernel) I)^-1 y in the dtype of y."""
    matrix = kernel.double() if double else kernel
    one = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    ridged = matrix + lam * matrix.detach().trace() * one
    root, info = torch.linalg.cholesky_ex(ridged)
    if bool(info) or not bool(root.diagonal().isfinite().all()):
        raise InputError(
            f"The kernel matrix of {len(kernel)} rows is not positive definite with lam {lam:g}: "
            "features are equal or not finite, so raise lam or solve in float64."
        )
    return torch.cholesky_solve(y.to(matrix), root).to(y)


@record
@dataclass(frozen=True, kw_only=True)
class PoolAges:
    """How many steps each network of a pool has been trained for since it was made anew.

    Raises:
        InputError: for an empty pool or a life below one step.
    """

    ages: tuple[int, ...]
    life: int = 1000
    """T: a network that reaches this age is made anew."""
    legacy: bool = False
    """Never set an age back, as the authors' code: a network that has once reached the end of its
    life is made anew after every later step, so that at last none is trained."""

    def __post_init__(self) -> None:
        if not self.ages or self.life < 1:
            raise InputError(
                f"A pool needs a network and a life of at least 1 step, not {len(self.ages)} "
                f"networks and {self.life} steps."
            )

    @classmethod
    def begun(cls, count: int, *, seed: int, life: int = 1000, legacy: bool = False) -> PoolAges:
        """Return the ages to which `count` networks are trained first: uniform in 1 ... T - 1.

        With a life of one step all are 0.

        Raises:
            InputError: as the record.
        """
        chance = generator(seed, "pool ages")
        ages = torch.randint(min(1, life - 1), max(1, life), (count,), generator=chance).tolist()
        return cls(ages=tuple(ages), life=life, legacy=legacy)

    def stepped(self, slot: int) -> tuple[PoolAges, bool]:
        """Return the ages after a step of network `slot`, and whether it is to be made anew."""
        age = self.ages[slot] + 1
        anew = age >= self.life
        age = 0 if anew and not self.legacy else age
        return replace(self, ages=(*self.ages[:slot], age, *self.ages[slot + 1 :])), anew
