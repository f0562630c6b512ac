"""Names for settings that belong together: how much time a separation may take.

What shifts and overlap are worth, as mean nSDR of the shipped small model on six held-out
synthetic songs of 30 s: 3.93 dB with overlap 0.1 or 0.25, 3.94 with overlap 0.5 or 0.75, 3.94
with two shifts at overlap 0.25. The steps are hundredths of a decibel, so ``standard`` keeps to
the reference's quarter of overlap and no shift, and ``best`` goes only as far as two shifts. The
authors of Demucs report up to 0.2 dB for shifts. What matters is the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.registry import DEFAULT_MODEL


@dataclass(frozen=True)
class Preset:
    """Model, shifts and overlap under one name.

    Parameters
    ----------
    name
        What ``--quality`` takes.
    model
        A model's name, or ``auto`` for the best that is installed.
    bags
        Whether ``auto`` may be a bag of several networks, which costs as many times as much.
    shifts, overlap
        As for :class:`~bridge.separator.SeparationOptions`.
    description
        One line for a user.
    """

    name: str
    model: str
    bags: bool
    shifts: int
    overlap: float
    description: str

    @property
    def relative_cost(self) -> float:
        """How often a frame is heard by the network, over how often ``standard`` has it heard.

        What the model itself costs comes on top.
        """
        return self._hearings / PRESETS[DEFAULT_PRESET]._hearings

    @property
    def _hearings(self) -> float:
        return max(1, self.shifts) / (1 - self.overlap)


DEFAULT_PRESET = "standard"

PRESETS = {
    preset.name: preset
    for preset in (
        Preset("preview", DEFAULT_MODEL, False, 0, 0.1, "a first impression: the small model"),
        Preset("standard", "auto", False, 0, 0.25, "the best installed model of one network"),
        Preset("best", "auto", True, 2, 0.25, "the best installed model or bag, and two shifts"),
    )
}
