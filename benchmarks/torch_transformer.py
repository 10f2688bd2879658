"""Plain PyTorch's DINOv2 with DPT's head, to measure the library against.

Attention is PyTorch's own fused one. The tensors' names are those of UniMatch V2's checkpoints, which
`forec_jax.models.dino_weights` reads; what such a network never uses (the mask token, one unit of the head) is left out.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_networks import Maps, PeerNetwork, resize

PATCH, TABLE, HEAD_SIZE = 14, 37, 64
OFFSET = 0.1  # that DINOv2 adds to a number of patches before it divides by the table's


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,C] -> [B,T,C]."""
        rows, tokens, channels = x.shape
        query, key, value = self.qkv(x).view(rows, tokens, 3, -1, HEAD_SIZE).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(rows, tokens, channels))


class Perceptron(nn.Module):
    """Two layers with a GELU between them, four times as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,C] -> [B,T,C]."""
        return self.fc2(functional.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A factor for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,C] -> [B,T,C]."""
        return x * self.gamma


class Block(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm, scaled by channel and added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=1e-6), nn.LayerNorm(channels, eps=1e-6)
        self.attn, self.mlp = Attention(channels), Perceptron(channels)
        self.ls1, self.ls2 = LayerScale(channels), LayerScale(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,C] -> [B,T,C]."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """A token for each patch of the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, PATCH, PATCH)

    def forward(self, image: Tensor) -> Tensor:
        """[B,3,14h,14w] -> [B,h*w,C]."""
        return self.proj(image).flatten(2).transpose(1, 2)


class DinoV2(nn.Module):
    """A vision transformer without registers; gives four maps of tokens, each after the last LayerNorm.

    Args:
      heads: of attention, 64 channels each.
      blocks: how many.
      taps: the blocks whose results are given.
    """

    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, heads: int, blocks: int, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.channels, self.taps = HEAD_SIZE * heads, taps
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.channels))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + TABLE**2, self.channels))
        self.patch_embed = PatchEmbedding(self.channels)
        self.blocks = nn.ModuleList([Block(self.channels) for _ in range(blocks)])
        self.norm = nn.LayerNorm(self.channels, eps=1e-6)

    def positions(self, height: int, width: int) -> Tensor:
        """The table of positions for a grid of patches, [1,1+height*width,C]."""
        if (height, width) == (TABLE, TABLE):
            return self.pos_embed
        table = self.pos_embed[:, 1:].view(1, TABLE, TABLE, -1).permute(0, 3, 1, 2).float()
        scale = [(number + OFFSET) / TABLE for number in (height, width)]
        table = functional.interpolate(table, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], 1)

    def forward(self, image: Tensor) -> Maps:
        """Normalised images [B,3,14h,14w] -> [B,C,h,w] four times."""
        height, width = image.shape[2] // PATCH, image.shape[3] // PATCH
        x = torch.cat([self.cls_token.expand(len(image), -1, -1), self.patch_embed(image)], 1)
        x = x + self.positions(height, width)
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                maps.append(self.norm(x)[:, 1:].transpose(1, 2).unflatten(2, (height, width)))
        return tuple(maps)


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,h,w] -> [B,C,h,w]."""
        return x + self.conv2(functional.relu(self.conv1(functional.relu(x))))


class Fusion(nn.Module):
    """Joins what was fused before with a level's map, and enlarges the result."""

    def __init__(self, channels: int, has_level: bool) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels, channels, 1)
        self.resConfUnit1 = ResidualUnit(channels) if has_level else None
        self.resConfUnit2 = ResidualUnit(channels)

    def forward(self, x: Tensor, level: Tensor | None, size: Any) -> Tensor:
        """[B,C,h,w] -> [B,C,*size]. The 1x1 convolution comes before the resize, which changes nothing and is cheaper."""
        if self.resConfUnit1 is not None:
            x = x + self.resConfUnit1(level)
        return resize(self.out_conv(self.resConfUnit2(x)), size)


class Dpt(nn.Module):
    """DPT's head for four maps of tokens, in UniMatch V2's form."""

    def __init__(self, inputs: int, outputs: int, channels: int, projections: tuple[int, ...]) -> None:
        super().__init__()
        a, b, _, d = projections
        self.projects = nn.ModuleList([nn.Conv2d(inputs, n, 1) for n in projections])
        self.resize_layers = nn.ModuleList(
            [nn.ConvTranspose2d(a, a, 4, 4), nn.ConvTranspose2d(b, b, 2, 2), nn.Identity(), nn.Conv2d(d, d, 3, 2, 1)]
        )
        self.scratch = nn.Module()
        for index, n in enumerate(projections, start=1):
            self.scratch.add_module(f"layer{index}_rn", nn.Conv2d(n, channels, 3, 1, 1, bias=False))
            self.scratch.add_module(f"refinenet{index}", Fusion(channels, index < 4))
        last = [nn.Conv2d(channels, channels, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(channels, outputs, 1)]
        self.scratch.output_conv = nn.Sequential(*last)

    def forward(self, maps: Maps, size: Any) -> Tensor:
        """[B,inputs,h,w] four times -> f32[B,outputs,*size]."""
        levels = [
            getattr(self.scratch, f"layer{index}_rn")(larger(project(x)))
            for index, (x, project, larger) in enumerate(
                zip(maps, self.projects, self.resize_layers, strict=True), start=1
            )
        ]
        x = self.scratch.refinenet4(levels[3], None, levels[2].shape[2:])
        x = self.scratch.refinenet3(x, levels[2], levels[1].shape[2:])
        x = self.scratch.refinenet2(x, levels[1], levels[0].shape[2:])
        x = self.scratch.refinenet1(x, levels[0], [2 * side for side in levels[0].shape[2:]])
        return resize(self.scratch.output_conv(x).float(), size)


def dpt_peer(
    heads: dict[str, int],
    *,
    attention_heads: int,
    blocks: int,
    taps: tuple[int, ...],
    channels: int,
    projections: tuple[int, ...],
) -> PeerNetwork:
    """A DINOv2 with a DPT for each head; `heads` are the channels of each one's output."""
    backbone = DinoV2(attention_heads, blocks, taps)
    return PeerNetwork(backbone, {name: Dpt(backbone.channels, n, channels, projections) for name, n in heads.items()})
