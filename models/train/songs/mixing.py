"""From dry parts to balanced stems: effects a stem, levels, and one gain curve for all."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pyloudnorm
from numpy.typing import NDArray
from pedalboard import (
    Chorus,
    Compressor,
    Delay,
    Distortion,
    HighpassFilter,
    HighShelfFilter,
    LowpassFilter,
    LowShelfFilter,
    PeakFilter,
    Phaser,
    Plugin,
    Reverb,
)
from scipy.ndimage import minimum_filter1d, uniform_filter1d

from models.train.songs.effects import apply
from models.train.songs.score import SAMPLE_RATE_HZ

Audio = NDArray[np.float32]
SILENCE_LUFS = -70.0
HIGHEST_PEAK = 0.97
_GAIN_BLOCK_FRAMES = 64


def loudness_lufs(sound: Audio) -> float:
    """Return the integrated loudness (BS.1770), at least `SILENCE_LUFS`."""
    if sound.shape[1] < round(0.45 * SAMPLE_RATE_HZ):
        return SILENCE_LUFS
    meter = pyloudnorm.Meter(SAMPLE_RATE_HZ)
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")  # of silence pyloudnorm warns, then returns -inf
        measured = float(meter.integrated_loudness(sound.T))
    return max(SILENCE_LUFS, measured) if np.isfinite(measured) else SILENCE_LUFS


def at_loudness(sound: Audio, lufs: float) -> Audio:
    """Scale a sound to a loudness; silence stays as it is."""
    measured = loudness_lufs(sound)
    if measured <= SILENCE_LUFS + 1:
        return sound
    return sound * np.float32(10 ** ((lufs - measured) / 20))


def at_level(sound: Audio, level_db: float) -> Audio:
    """Scale a sound so that the rms of where it plays is `level_db`; silence stays as it is.

    Rougher than `at_loudness` and much cheaper: enough to set what enters an effect.
    """
    block_frames = SAMPLE_RATE_HZ // 10
    whole = sound.shape[1] // block_frames * block_frames
    if not whole:
        return sound
    power = np.square(sound[:, :whole]).reshape(2, -1, block_frames).mean(axis=(0, 2))
    playing = power[power > 0.01 * float(power.max())]
    if not playing.size or float(power.max()) < 1e-10:
        return sound
    return sound * np.float32(10 ** (level_db / 20) / np.sqrt(float(playing.mean())))


def pan(sound: Audio, position: float) -> Audio:
    """Balance a stereo sound to the left (-1) or right (1) with constant power."""
    angle = np.pi / 4 * (1 + position)
    gains = np.sqrt(2) * np.array([[np.cos(angle)], [np.sin(angle)]], dtype=np.float32)
    return np.asarray(sound * gains, dtype=np.float32)


def widen(sound: Audio, width: float) -> Audio:
    """Scale the difference of the channels: 0 is mono, 1 leaves the sound as it is."""
    middle = sound.mean(axis=0, keepdims=True)
    return np.asarray(middle + np.float32(width) * (sound - middle), dtype=np.float32)


class Desk:
    """Draws the effect chains of a song; parts share the song's room."""

    def __init__(self, rng: np.random.Generator, style: str) -> None:
        self.rng = rng
        self.style = style
        self.room_size = float(rng.uniform(0.15, 0.85))
        self.wet = float(rng.uniform(0.4, 1.3)) * (1.3 if style == "ballad" else 1.0)

    def _between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def _chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _tone(self, spread_db: float) -> list[Plugin]:
        low_hz, centre_hz = self._between(100, 300), float(np.exp(self._between(5.7, 8.3)))
        gains_db = self.rng.normal(0, spread_db, 3)
        return [
            LowShelfFilter(low_hz, float(gains_db[0])),
            PeakFilter(centre_hz, float(gains_db[1]), self._between(0.5, 1.5)),
            HighShelfFilter(self._between(4000, 9000), float(gains_db[2])),
        ]

    def _room(self, wet: float) -> Reverb:
        level = float(np.clip(wet * self.wet, 0, 0.6))
        return Reverb(
            self.room_size, self._between(0.2, 0.8), level, 1 - 0.5 * level, self._between(0.6, 1.0)
        )

    def _squeeze(self, threshold_db: float, ratio: float) -> Compressor:
        return Compressor(threshold_db, ratio, self._between(2, 30), self._between(60, 250))

    def drums(self, sound: Audio) -> Audio:
        """Mix the drum bus."""
        scaled = at_level(sound, -18.0)
        chain = [*self._tone(2.0), self._squeeze(self._between(-24, -12), self._between(1.5, 5))]
        if self._chance(0.3):
            chain.append(Distortion(self._between(1, 7)))
        if self._chance(0.12):
            chain += [LowpassFilter(self._between(6000, 12000))]
        chain.append(self._room(self._between(0.01, 0.16)))
        return widen(apply(chain, scaled), self._between(0.4, 1.1))

    def bass(self, sound: Audio) -> Audio:
        """Mix the bass: compressed, nearly mono, with some amplifier."""
        scaled = at_level(sound, -20.0)
        chain = [*self._tone(2.5), self._squeeze(self._between(-30, -18), self._between(2, 6))]
        if self._chance(0.4):
            chain += [Distortion(self._between(2, 14)), LowpassFilter(self._between(2500, 9000))]
        if self._chance(0.2):
            chain.append(
                Chorus(
                    self._between(0.3, 1.2), self._between(0.05, 0.2), mix=self._between(0.1, 0.4)
                )
            )
        chain.append(HighpassFilter(30.0))
        return widen(apply(chain, scaled), self._between(0.0, 0.4))

    def accompaniment(self, family: str, sound: Audio) -> Audio:
        """Mix one part of `other`: tone, modulation, place in the room."""
        scaled = at_level(sound, -22.0)
        lowest = 70.0 if family in ("piano", "acoustic_guitar") else self._between(90, 220)
        chain: list[Plugin] = [HighpassFilter(lowest), *self._tone(3.0)]
        if self._chance(0.6):
            chain.append(self._squeeze(self._between(-30, -16), self._between(1.5, 4)))
        if family in (
            "electric_piano",
            "clean_guitar",
            "organ",
            "synth_pad",
            "subtractive_pad",
        ) and self._chance(0.5):
            chain.append(
                Chorus(self._between(0.4, 2), self._between(0.1, 0.35), mix=self._between(0.2, 0.5))
            )
        if family in ("electric_piano", "clean_guitar", "synth_lead") and self._chance(0.2):
            chain.append(Phaser(self._between(0.2, 1.2), mix=self._between(0.2, 0.5)))
        if family in (
            "electric_piano",
            "organ",
            "clean_guitar",
            "rock_guitar",
            "synth_lead",
        ) and self._chance(0.3):
            chain.append(Distortion(self._between(3, 18)))
        if ("lead" in family or "pluck" in family) and self._chance(0.5):
            chain.append(
                Delay(self._between(0.15, 0.45), self._between(0.1, 0.4), self._between(0.08, 0.3))
            )
        chain.append(self._room(self._between(0.03, 0.25)))
        wide = family in ("driven_guitar", "subtractive_pad", "strings", "synth_pad")
        place = self._between(-0.25, 0.25) if wide else self._between(-0.75, 0.75)
        return at_level(pan(apply(chain, scaled), place), -22.0 + float(self.rng.normal(0, 2.5)))

    def vocals(self, lines: Sequence[tuple[str, Audio]], tempo_bpm: float) -> Audio:
        """Mix sung lines (kind, (2, frames)): lead in the middle, the others around it."""
        total = np.zeros_like(lines[0][1])
        for kind, sound in lines:
            if kind == "lead":
                total += at_level(sound, -20.0)
                continue
            side = float(self.rng.choice([-1, 1])) * self._between(0.2, 0.8)
            total += pan(at_level(sound, -20.0 - self._between(4, 10)), side)
        chain: list[Plugin] = [
            HighpassFilter(self._between(70, 140)),
            *self._tone(2.0),
            HighShelfFilter(self._between(3000, 6000), self._between(0, 5)),
            self._squeeze(self._between(-30, -20), self._between(2, 5)),
        ]
        if self._chance(0.12):
            chain.append(Distortion(self._between(3, 14)))
        if self._chance(0.35):
            beat_seconds = 60 / tempo_bpm
            echo = beat_seconds * float(self.rng.choice([0.25, 0.5, 0.75, 1.0]))
            chain.append(Delay(min(echo, 1.0), self._between(0.1, 0.4), self._between(0.05, 0.2)))
        chain.append(self._room(self._between(0.04, 0.24)))
        return apply(chain, total)


def draw_levels(rng: np.random.Generator) -> dict[str, float]:
    """Draw the balance: LU of drums and bass against other, and of vocals against all the rest."""
    return {
        "drums": float(np.clip(rng.normal(0.5, 2.2), -4, 5)),
        "bass": float(np.clip(rng.normal(-2.5, 2.2), -7, 2)),
        "vocals": float(np.clip(rng.normal(-2.5, 2.2), -7, 2.5)),
    }


def balance(stems: Mapping[str, Audio], levels: Mapping[str, float]) -> dict[str, Audio]:
    """Bring the stems to the drawn levels (loudness of where each plays)."""
    mixed = {
        "drums": at_loudness(stems["drums"], -20 + levels["drums"]),
        "bass": at_loudness(stems["bass"], -20 + levels["bass"]),
        "other": at_loudness(stems["other"], -20.0),
    }
    rest_lufs = loudness_lufs(np.sum(list(mixed.values()), axis=0))
    target_lufs = (rest_lufs if rest_lufs > SILENCE_LUFS + 1 else -18.0) + levels["vocals"]
    mixed["vocals"] = at_loudness(stems["vocals"], target_lufs)
    return mixed


def _block_peaks(sounds: Sequence[Audio]) -> NDArray[np.float64]:
    frames = sounds[0].shape[1]
    blocks = -(-frames // _GAIN_BLOCK_FRAMES)
    peaks = np.zeros(blocks)
    for sound in sounds:
        padded = np.zeros(blocks * _GAIN_BLOCK_FRAMES, dtype=np.float32)
        padded[:frames] = np.abs(sound).max(axis=0)
        peaks = np.maximum(peaks, padded.reshape(blocks, -1).max(axis=1))
    return peaks


def _curve(block_gains: NDArray[np.float64], frames: int) -> NDArray[np.float32]:
    centres = (np.arange(len(block_gains)) + 0.5) * _GAIN_BLOCK_FRAMES
    return np.interp(np.arange(frames), centres, block_gains).astype(np.float32)


def bus_compression(mixture: Audio, threshold_db: float, ratio: float) -> NDArray[np.float32]:
    """Return a compressor's gain curve (frames,) for a mixture, to be applied to every stem."""
    level_db = 20 * np.log10(_block_peaks([mixture]) + 1e-6)
    wanted_db = -(1 - 1 / ratio) * np.maximum(0.0, level_db - threshold_db)
    block_seconds = _GAIN_BLOCK_FRAMES / SAMPLE_RATE_HZ
    attack, release = np.exp(-block_seconds / 0.012), np.exp(-block_seconds / 0.14)
    gain_db, smooth = 0.0, np.empty_like(wanted_db)
    for index, target in enumerate(wanted_db.tolist()):
        memory = attack if target < gain_db else release
        gain_db = memory * gain_db + (1 - memory) * target
        smooth[index] = gain_db
    return _curve(10 ** (smooth / 20), mixture.shape[1])


def limiting(sounds: Sequence[Audio]) -> NDArray[np.float32]:
    """Return a look-ahead gain curve (frames,) that keeps every sound within `HIGHEST_PEAK`."""
    needed = np.minimum(1.0, HIGHEST_PEAK / np.maximum(_block_peaks(sounds), 1e-9))
    # The minimum reaches further than the smoothing, so the smooth curve never exceeds the need.
    held = minimum_filter1d(needed, 65, mode="nearest")
    return _curve(uniform_filter1d(held, 61, mode="nearest"), sounds[0].shape[1])


def master(rng: np.random.Generator, stems: Mapping[str, Audio]) -> dict[str, Audio]:
    """Compress, bring to a release's loudness, and limit: the same gain on all stems.

    The stems returned sum to the mixture by construction; neither they nor the mixture exceed
    `HIGHEST_PEAK`.
    """
    parts = {name: np.asarray(sound, dtype=np.float32) for name, sound in stems.items()}
    mixture = np.sum(list(parts.values()), axis=0)
    peak_db = 20 * np.log10(float(np.abs(mixture).max()) + 1e-9)
    curve = bus_compression(
        mixture, peak_db - float(rng.uniform(4, 12)), float(rng.uniform(1.3, 3.0))
    )
    target_lufs = float(np.clip(rng.normal(-14.5, 1.8), -19, -10))
    gain = 10 ** ((target_lufs - loudness_lufs(mixture * curve)) / 20)
    parts = {name: sound * (curve * np.float32(gain)) for name, sound in parts.items()}
    limit = limiting([*parts.values(), np.sum(list(parts.values()), axis=0)])
    return {name: np.asarray(sound * limit, dtype=np.float32) for name, sound in parts.items()}
