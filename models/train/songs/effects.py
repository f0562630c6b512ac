"""Effect chains by pedalboard, from arrays to arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pedalboard import Pedalboard, Plugin  # type: ignore[attr-defined]

from models.train.songs.score import SAMPLE_RATE_HZ


def apply(effects: Sequence[Plugin], sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a sound through effects.

    Parameters
    ----------
    sound
        float32 (channels, frames) or, for one channel, (frames,).

    Returns
    -------
    float32 of the same shape.
    """
    channels = sound[None] if sound.ndim == 1 else sound
    processed = np.asarray(Pedalboard(list(effects))(channels, SAMPLE_RATE_HZ), dtype=np.float32)
    return processed.reshape(sound.shape)
