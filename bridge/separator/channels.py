"""Any channel count in front of a model of a fixed one.

A clip's channels become groups that a stereo model hears one by one: a mono clip is heard from
both sides; stereo is one group; surround is taken apart into its left-right pairs, and its centre
and LFE are heard as mono. Stems have the clip's channels again, in the clip's order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# SMPTE order (L R C LFE Ls Rs [Lb Rb]), as WAV and FLAC keep 5.1 and 7.1.
_SURROUND: dict[int, tuple[tuple[int, ...], ...]] = {
    3: ((0, 1), (2,)),
    5: ((0, 1), (2,), (3, 4)),
    6: ((0, 1), (2,), (3,), (4, 5)),
    8: ((0, 1), (2,), (3,), (4, 5), (6, 7)),
}


class ChannelGroups:
    """Which of a clip's channels a model hears together.

    Parameters
    ----------
    clip_channels
        Channel count of the clip.
    model_channels
        Channel count of the model: 1 or 2.
    """

    def __init__(self, clip_channels: int, model_channels: int) -> None:
        if model_channels not in (1, 2):
            raise ValueError(f"models hear 1 or 2 channels, not {model_channels}")
        self.clip_channels = clip_channels
        self.model_channels = model_channels
        self.groups = _groups(clip_channels, model_channels)
        # Then nothing has to be moved: the usual case, stereo in front of a stereo model.
        self._is_one_group = list(self.groups) == [tuple(range(model_channels))]

    def to_model(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return ``(groups, model_channels, frames)`` of a block ``(clip_channels, frames)``.

        It may share the block's memory.
        """
        if self._is_one_group:
            return block[None]
        heard = [
            np.resize(np.asarray(group), self.model_channels)  # a single channel is repeated
            for group in self.groups
        ]
        grouped: NDArray[np.float32] = block[np.stack(heard)]
        return grouped

    def from_model(self, stems: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return ``(stems, clip_channels, frames)`` of ``(groups, stems, model_channels, frames)``.

        What a mono channel became on both sides is averaged. It may share the stems' memory.
        """
        if self._is_one_group:
            only: NDArray[np.float32] = stems[0]
            return only
        _, stem_count, _, frames = stems.shape
        clip = np.empty((stem_count, self.clip_channels, frames), np.float32)
        for index, group in enumerate(self.groups):
            heard = stems[index]
            clip[:, group] = heard if len(group) == heard.shape[1] else heard.mean(1, keepdims=True)
        return clip


def _groups(clip_channels: int, model_channels: int) -> Sequence[tuple[int, ...]]:
    if model_channels == 1:
        return [(channel,) for channel in range(clip_channels)]
    if clip_channels in _SURROUND:
        return _SURROUND[clip_channels]
    return [
        tuple(range(first, min(first + 2, clip_channels))) for first in range(0, clip_channels, 2)
    ]
