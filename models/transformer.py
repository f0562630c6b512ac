"""The cross-domain transformer at the bottom of Hybrid Transformer Demucs.

Papers
------
Rouard, Massa, Défossez, "Hybrid Transformers for Music Source Separation" (2022),
https://arxiv.org/abs/2211.08553 -- the encoder below.
Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762.
Likhomanenko et al., "CAPE" (2021), https://arxiv.org/abs/2106.03143 -- centred positions.
Touvron et al., "Going deeper with Image Transformers" (2021), https://arxiv.org/abs/2103.17239 --
the layer scales.

Two rows of tokens run side by side: one of the spectrogram (a token for each hop and band, hop
by hop), one of the waveform. Layers alternate between attention within each row and attention
from each row to the other, where both look at what the other row was before that layer::

    spectrogram ─ norm + position ─ self ─┬─ cross ─┬─ self ─ ...
                                          ╳         ╳
    waveform    ─ norm + position ─ self ─┴─ cross ─┴─ self ─ ...

The names of the parameters are those of the published version 4 checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.dconv import LayerScale

__all__ = ["CrossTransformer", "TransformerConfig"]

EMBEDDINGS = ("sin", "cape", "scaled")
EMBEDDING_BOOST = 3.0  # what a learned position is multiplied by, wherever it is used
MAX_LAYERS = 64


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a :class:`CrossTransformer`; the defaults are the reference's.

    The two group counts normalise over all tokens together where they are not 0, and token by
    token where they are.
    """

    dim: int  # channels of a token; a multiple of 4 and of `heads`
    layers: int = 5
    heads: int = 8
    hidden_scale: float = 4.0  # width of the feed-forward part, in units of `dim`
    emb: str = "sin"  # positions of waveform tokens: "sin", "cape" or "scaled" (learned)
    max_positions: int = 10000  # waveform tokens that "scaled" knows
    max_period: float = 10000.0
    weight_pos_embed: float = 1.0
    cape_mean_normalize: bool = True
    norm_in: bool = True
    norm_in_group: int = 0  # read where norm_in is False
    group_norm: int = 0
    norm_first: bool = True
    norm_out: bool = True  # read where norm_first is True
    layer_scale: bool = True
    gelu: bool = True
    cross_first: bool = False

    def __post_init__(self) -> None:
        if self.emb not in EMBEDDINGS:
            raise ValueError(f"t_emb must be one of {', '.join(EMBEDDINGS)}, not {self.emb!r}")
        if not 0 < self.layers <= MAX_LAYERS:
            raise ValueError(f"t_layers must be 1 to {MAX_LAYERS} here, not {self.layers}")
        if self.heads <= 0 or self.dim <= 0 or self.dim % 4 or self.dim % self.heads:
            raise ValueError(
                f"the transformer's width must be a multiple of 4 and of its heads"
                f" ({self.heads}), not {self.dim}"
            )
        for name in ("norm_in_group", "group_norm"):
            groups = getattr(self, name)
            if groups < 0 or (groups and self.dim % groups):
                raise ValueError(f"t_{name} must divide the transformer's width, not {groups}")
        if self.hidden_dim <= 0 or self.max_positions <= 0 or not self.max_period > 0:
            raise ValueError("t_hidden_scale, t_max_positions and t_max_period must be positive")

    @property
    def hidden_dim(self) -> int:
        """Channels between the two linear maps of a feed-forward part."""
        return int(self.dim * self.hidden_scale)

    def is_self_layer(self, index: int) -> bool:
        """Whether layer `index` attends within a row of tokens, not to the other row."""
        return index % 2 == int(self.cross_first)


class TokenGroupNorm(nn.GroupNorm):
    """Group normalisation of (batch, tokens, channels), over all tokens together."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, channels) to the same shape."""
        if self.num_groups > 1:
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        # One group is one long layer, which needs no turning around.
        x = F.layer_norm(x, x.shape[1:], eps=self.eps)
        return torch.addcmul(self.bias, x, self.weight)


class Attention(nn.Module):
    """Scaled dot-product attention of several heads, with torch's packed projections."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Let each token of `x` look at all tokens of `context`, or of `x` itself.

        (batch, tokens, dim) and (batch, context tokens, dim) to (batch, tokens, dim).
        """
        dim = x.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if context is None:
            queries, keys, values = self._heads(F.linear(x, weight, bias))
        else:
            (queries,) = self._heads(F.linear(x, weight[:dim], bias[:dim]))
            keys, values = self._heads(F.linear(context, weight[dim:], bias[dim:]))
        x = F.scaled_dot_product_attention(queries, keys, values)  # (batch, heads, tokens, -1)
        projected: Tensor = self.out_proj(x.transpose(1, 2).flatten(2))  # (batch, tokens, dim)
        return projected

    def _heads(self, packed: Tensor) -> tuple[Tensor, ...]:
        """Split (batch, tokens, n * dim) into n times (batch, heads, tokens, dim / heads)."""
        count = packed.shape[-1] // self.out_proj.in_features
        batch, tokens, _ = packed.shape
        x = packed.view(batch, tokens, count, self.heads, -1)
        # One copy is less than what attention loses on rows that lie apart.
        return x.permute(2, 0, 3, 1, 4).contiguous().unbind()


class Layer(nn.Module):
    """What self and cross layers share: a feed-forward part, and how branches are added."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm_first = config.norm_first
        self.activation = F.gelu if config.gelu else F.relu
        self.linear1 = nn.Linear(dim, config.hidden_dim)
        self.linear2 = nn.Linear(config.hidden_dim, dim)
        self.norm1, self.norm2 = _norm(dim, config.group_norm), _norm(dim, config.group_norm)
        self.norm_out = TokenGroupNorm(1, dim) if config.norm_first and config.norm_out else None
        self.gamma_1 = LayerScale(dim) if config.layer_scale else None
        self.gamma_2 = LayerScale(dim) if config.layer_scale else None

    def feed_forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, dim) to the same shape, token by token."""
        y: Tensor = self.linear2(self.activation(self.linear1(x)))
        return y

    @staticmethod
    def add(x: Tensor, branch: Tensor, gamma: LayerScale | None) -> Tensor:
        """Add a branch, scaled channel by channel where the layer has scales."""
        return x + branch if gamma is None else torch.addcmul(x, branch, gamma.scale)


class SelfLayer(Layer):
    """Attention within one row of tokens, then the feed-forward part."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.self_attn = Attention(config.dim, config.heads)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, dim) to the same shape."""
        if self.norm_first:
            x = self.add(x, self.self_attn(self.norm1(x)), self.gamma_1)
            x = self.add(x, self.feed_forward(self.norm2(x)), self.gamma_2)
            return x if self.norm_out is None else self.norm_out(x)
        x = self.norm1(self.add(x, self.self_attn(x), self.gamma_1))
        x = self.norm2(self.add(x, self.feed_forward(x), self.gamma_2))
        return x


class CrossLayer(Layer):
    """Attention from one row of tokens to the other, then the feed-forward part."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.cross_attn = Attention(config.dim, config.heads)
        self.norm3 = _norm(config.dim, config.group_norm)  # stored, used or not

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Map (batch, tokens, dim) to the same shape, looking at (batch, other tokens, dim)."""
        if self.norm_first:
            attended = self.cross_attn(self.norm1(x), self.norm2(other))
            x = self.add(x, attended, self.gamma_1)
            x = self.add(x, self.feed_forward(self.norm3(x)), self.gamma_2)
            return x if self.norm_out is None else self.norm_out(x)
        x = self.norm1(self.add(x, self.cross_attn(x, other), self.gamma_1))
        x = self.norm2(self.add(x, self.feed_forward(x), self.gamma_2))
        return x


class CrossTransformer(nn.Module):
    """The two rows of layers; see the module's head for the papers."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList()  # of the spectrogram
        self.layers_t = nn.ModuleList()  # of the waveform
        for index in range(config.layers):
            kind = SelfLayer if config.is_self_layer(index) else CrossLayer
            self.layers.append(kind(config))
            self.layers_t.append(kind(config))
        if config.norm_in or config.norm_in_group:
            groups = 0 if config.norm_in else config.norm_in_group
            self.norm_in: nn.Module = _norm(config.dim, groups)
            self.norm_in_t: nn.Module = _norm(config.dim, groups)
        else:
            self.norm_in, self.norm_in_t = nn.Identity(), nn.Identity()
        self.position_embeddings = _Positions(config) if config.emb == "scaled" else None
        # The last positions computed, with what they were computed for: segments are of one size.
        self._known_spectrogram: tuple[object, Tensor] | None = None
        self._known_waveform: tuple[object, Tensor] | None = None

    def forward(self, x: Tensor, xt: Tensor) -> tuple[Tensor, Tensor]:
        """Let spectrogram and waveform see themselves and each other.

        Parameters
        ----------
        x : Tensor
            (batch, dim, bands, hops): the spectrogram's branch.
        xt : Tensor
            (batch, dim, steps): the waveform's branch.

        Returns
        -------
        tuple of Tensor
            Both, in the shapes that they came in.

        Raises
        ------
        ValueError
            There are more steps than a learned embedding knows.
        """
        bands, hops = x.shape[2:]
        x = x.permute(0, 3, 2, 1).flatten(1, 2)  # (batch, hops * bands, dim)
        x = self.norm_in(x) + self._spectrogram_positions(x, bands)
        xt = xt.transpose(1, 2)  # (batch, steps, dim)
        xt = self.norm_in_t(xt) + self._waveform_positions(xt)
        for layer, layer_t in zip(self.layers, self.layers_t, strict=True):
            if isinstance(layer, SelfLayer):
                x, xt = layer(x), layer_t(xt)
            else:
                x, xt = layer(x, xt), layer_t(xt, x)
        x = x.view(len(x), hops, bands, -1)
        return x.permute(0, 3, 2, 1), xt.transpose(1, 2)

    def _spectrogram_positions(self, x: Tensor, bands: int) -> Tensor:
        """Give the positions of (hop, band) tokens: (hops * bands, dim)."""
        hops = x.shape[1] // bands
        wanted = (hops, bands, x.device, x.dtype)
        if self._known_spectrogram is None or self._known_spectrogram[0] != wanted:
            table = plane_positions(hops, bands, self.config.dim, self.config.max_period)
            table = (self.config.weight_pos_embed * table).to(x)
            self._known_spectrogram = (wanted, table)
        return self._known_spectrogram[1]

    def _waveform_positions(self, xt: Tensor) -> Tensor:
        """Give the positions of waveform tokens: (steps, dim)."""
        config, steps = self.config, xt.shape[1]
        if self.position_embeddings is not None:
            learned: Tensor = self.position_embeddings(steps)
            return config.weight_pos_embed * learned
        wanted = (steps, xt.device, xt.dtype)
        if self._known_waveform is None or self._known_waveform[0] != wanted:
            centred = config.emb == "cape" and config.cape_mean_normalize
            table = line_positions(steps, config.dim, config.max_period, centred=centred)
            table = (config.weight_pos_embed * table).to(xt)
            self._known_waveform = (wanted, table)
        return self._known_waveform[1]


class _Positions(nn.Module):
    """A learned vector for each position."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.max_positions, config.dim)

    def forward(self, steps: int) -> Tensor:
        known = self.embedding.num_embeddings
        if steps > known:
            raise ValueError(f"the segment has {steps} steps; this model knows {known} positions")
        return EMBEDDING_BOOST * self.embedding.weight[:steps]


def line_positions(steps: int, dim: int, max_period: float, *, centred: bool) -> Tensor:
    """Sinusoids of positions on a line: (steps, dim), cosines in the first half of `dim`.

    The periods grow geometrically from 2 pi to 2 pi `max_period`. Positions count from 0, or
    from the middle if `centred`.
    """
    position = torch.arange(steps, dtype=torch.float32)[:, None]  # (steps, 1)
    if centred:
        position = position - position.mean()
    exponent = torch.arange(dim // 2, dtype=torch.float32) / (dim // 2 - 1)
    phase = position / max_period**exponent  # (steps, dim / 2)
    return torch.cat([torch.cos(phase), torch.sin(phase)], dim=1)


def plane_positions(hops: int, bands: int, dim: int, max_period: float) -> Tensor:
    """Sinusoids of positions on a plane: (hops * bands, dim), sines and cosines in turn.

    The first half of `dim` tells the hop, the second half the band.
    """
    half = dim // 2
    rate = torch.exp(torch.arange(0, half, 2).float() * (-math.log(max_period) / half))
    along_hops = _waves(hops, rate)[:, None].expand(-1, bands, -1)  # (hops, bands, half)
    along_bands = _waves(bands, rate)[None].expand(hops, -1, -1)
    return torch.cat([along_hops, along_bands], dim=-1).flatten(0, 1)


def _waves(count: int, rate: Tensor) -> Tensor:
    """Sine and cosine in turn at each rate: (count, 2 * rates)."""
    phase = torch.arange(count).float()[:, None] * rate  # (count, rates)
    return torch.stack([torch.sin(phase), torch.cos(phase)], dim=-1).flatten(1)


def _norm(dim: int, groups: int) -> nn.Module:
    """Normalise token by token, or all tokens together in `groups` groups of channels."""
    return TokenGroupNorm(groups, dim) if groups else nn.LayerNorm(dim)
