"""The training loss: negative SDR per stem, so that quiet stems count as much as loud ones.

With an L1 loss on the samples, a small network trained for a short while leaves quiet stems at
zero. The soft threshold is from Wisdom et al. 2020, https://arxiv.org/abs/2006.12701: it bounds
the reward for stems that are already good, so that the others get the attention.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Loss", "separation_loss"]

# A stem this far below its mixture counts as silent.
SILENT_RATIO = 1e-4  # of the mixture's energy: -40 dB
# SDR beyond this is no longer rewarded.
SOFT_LIMIT = 1e-3  # of the source's energy: 30 dB


class Loss(NamedTuple):
    """The loss and what it is made of."""

    total: Tensor  # (), differentiable
    sdr_db: Tensor  # (stems,), the mean over the examples where the stem sounds; NaN if none does
    leak: Tensor  # (), the level of what is put into silent stems, relative to the mixture


def separation_loss(stems: Tensor, sources: Tensor, silent_weight: float = 3.0) -> Loss:
    """Negative SDR over sounding stems plus a small L1 term over silent ones.

    Parameters
    ----------
    stems, sources : Tensor
        Estimates and truth, (batch, stems, channels, frames), any scale.
    silent_weight : float
        What a silent stem filled at the mixture's own level costs, in dB.
    """
    with torch.no_grad():
        energy = sources.square().sum(dim=(2, 3))  # (batch, stems)
        mixture = sources.sum(dim=1)
        mixture_energy = mixture.square().sum(dim=(1, 2))[:, None].clamp_min(1e-8)  # (batch, 1)
        mixture_level = mixture.abs().mean(dim=(1, 2))[:, None].clamp_min(1e-6)  # (batch, 1)
        sounding = energy > SILENT_RATIO * mixture_energy
        # Close to silence the mixture sets the scale, or a faint stem would outweigh all.
        scale = torch.maximum(energy, SILENT_RATIO * mixture_energy)
    error = torch.linalg.vector_norm(sources - stems, dim=(2, 3)).square()  # (batch, stems)
    soft_sdr_db = -10 * torch.log10(error / scale + SOFT_LIMIT)
    leaks = stems.abs().mean(dim=(2, 3)) / mixture_level
    total = torch.where(sounding, -soft_sdr_db, silent_weight * leaks).mean()
    with torch.no_grad():
        sdr_db = (10 * torch.log10(scale / error.clamp_min(1e-12))).masked_fill(
            ~sounding, torch.nan
        )
        leak = leaks[~sounding].mean() if bool((~sounding).any()) else leaks.new_zeros(())
    return Loss(total, sdr_db.nanmean(dim=0), leak)
