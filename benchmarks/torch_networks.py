"""Plain PyTorch's networks with convolutions, to measure the library against: ResNet, MobileNetV2, DeepLabV3+.

NCHW, for channels_last memory. The tensors' names are torchvision's (encoder) and UniMatch's (decoder), which
`forec_jax.models.convert` reads, and for MobileNetV2 the library's own.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Maps = tuple[Tensor, ...]
"""What an encoder gives and a head reads, [B,C,h,w] each."""


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the planes, and a shortcut."""

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        outputs = 4 * planes
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,H,W] -> [B,4 planes,H/stride,W/stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A dilated ResNet with the 7x7 stem; `width` multiplies its channels."""

    DEPTHS: ClassVar = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, variant: str, output_stride: int, width: float = 1.0) -> None:
        super().__init__()
        inputs = round(64 * width)
        self.conv1, self.bn1 = nn.Conv2d(3, inputs, 7, 2, 3, bias=False), nn.BatchNorm2d(inputs)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        stride, dilation = 4, 1
        for layer, depth in enumerate(self.DEPTHS[variant], start=1):
            first_stride, first_dilation = 1, dilation
            if layer > 1 and stride < output_stride:
                stride, first_stride = 2 * stride, 2
            elif layer > 1:
                dilation *= 2
            planes = round(32 * width * 2**layer)
            blocks = [Bottleneck(inputs, planes, first_stride, first_dilation)]
            blocks += [Bottleneck(4 * planes, planes, 1, dilation) for _ in range(depth - 1)]
            self.add_module(f"layer{layer}", nn.Sequential(*blocks))
            inputs = 4 * planes
        self.channels = (round(256 * width), inputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images -> maps at stride 4 and at the output stride."""
        low = self.layer1(self.pool(self.relu(self.bn1(self.conv1(x)))))
        return low, self.layer4(self.layer3(self.layer2(low)))


class SlimConv(nn.Module):
    """A convolution as MobileNetV2 has them: at stride 2 padded at the bottom and the right, BatchNorm's epsilon 1e-3."""

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int, dilation: int, groups: int, relu: bool
    ) -> None:
        super().__init__()
        margin = dilation * (size // 2) if stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, size, stride, margin, dilation, groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.activation = nn.ReLU6(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,H,W] -> [B,outputs,ceil(H/stride),ceil(W/stride)]."""
        if self.conv.stride[0] == 2:
            x = functional.pad(x, (0, 1 + x.shape[3] % 2, 0, 1 + x.shape[2] % 2))
        return self.activation(self.norm(self.conv(x)))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, dilation: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = SlimConv(inputs, hidden, 1, 1, 1, 1, True) if expansion > 1 else nn.Identity()
        self.depthwise = SlimConv(hidden, hidden, 3, stride, dilation, hidden, True)
        self.project = SlimConv(hidden, outputs, 1, 1, 1, 1, False)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,H,W] -> [B,outputs,H/stride,W/stride]."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_shortcut else y


class MobileNetV2(nn.Module):
    """A dilated MobileNetV2."""

    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        self.stem = SlimConv(3, 32, 3, 2, 1, 1, True)
        inputs, stride, dilation, index = 32, 2, 1, 0
        for expansion, outputs, depth, wanted in self.STAGES:
            first_stride, first_dilation = 1, dilation
            if wanted == 2 and stride < output_stride:
                stride, first_stride = 2 * stride, 2
            elif wanted == 2:
                dilation *= 2
            for block in range(depth):
                spatial = (first_stride, first_dilation) if block == 0 else (1, dilation)
                self.add_module(f"block{index}", InvertedResidual(inputs, outputs, expansion, *spatial))
                inputs, index = outputs, index + 1
        self.channels = (24, inputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] -> maps at stride 4 and at the output stride."""
        x = self.stem(x)
        low = x
        for index in range(17):
            x = getattr(self, f"block{index}")(x)
            low = x if index == 2 else low
        return low, x


def conv_norm(inputs: int, outputs: int, size: int, dilation: int = 1) -> list[nn.Module]:
    """Convolution, BatchNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, size, 1, dilation * (size // 2), dilation, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class ImagePooling(nn.Module):
    """The mean over the image, a 1x1 convolution, and the result at every pixel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,H,W] -> [B,outputs,H,W]."""
        return self.gap(x).expand(-1, -1, *x.shape[2:])


class Pyramid(nn.Module):
    """The atrous spatial pyramid."""

    def __init__(self, inputs: int, channels: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = nn.Sequential(*conv_norm(inputs, channels, 1))
        for index, rate in enumerate(rates, start=1):
            self.add_module(f"b{index}", nn.Sequential(*conv_norm(inputs, channels, 3, rate)))
        self.b4 = ImagePooling(inputs, channels)
        self.project = nn.Sequential(*conv_norm(5 * channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,h,w] -> [B,channels,h,w]."""
        return self.project(torch.cat([self.b0(x), self.b1(x), self.b2(x), self.b3(x), self.b4(x)], 1))


class Decoder(nn.Module):
    """DeepLabV3+'s decoder with an ASPP of its own."""

    def __init__(
        self, low: int, high: int, outputs: int, channels: int, low_channels: int, rates: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.head = Pyramid(high, channels, rates)
        self.reduce = nn.Sequential(*conv_norm(low, low_channels, 1))
        self.fuse = nn.Sequential(*conv_norm(low_channels + channels, channels, 3), *conv_norm(channels, channels, 3))
        self.classifier = nn.Conv2d(channels, outputs, 1)

    def forward(self, maps: Maps, size: Any) -> Tensor:
        """Low- and high-level maps -> f32[B,outputs,*size]."""
        low, high = maps
        x = resize(self.head(high), low.shape[2:])
        x = self.classifier(self.fuse(torch.cat([self.reduce(low), x], 1)))
        return resize(x.float(), size)


def resize(x: Tensor, size: Any) -> Tensor:
    """Bilinear, corners aligned."""
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class PeerNetwork(nn.Module):
    """An encoder with named heads, each of which reads the encoder's maps: head(maps, size) -> f32[B,outputs,*size].

    The encoder has the MEAN and STD of its images as attributes.
    """

    def __init__(self, backbone: nn.Module, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, nn.ModuleDict(heads)
        for name, values in (("mean", backbone.MEAN), ("std", backbone.STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def encode(self, image: Tensor) -> Maps:
        """f32[B,3,H,W] in [0, 1] -> the encoder's maps."""
        maps: Maps = self.backbone((image - self.mean) / self.std)
        return maps

    def decode(self, maps: Maps, size: Any) -> dict[str, Tensor]:
        """f32[B,outputs,*size] by head."""
        return {name: head(maps, size) for name, head in self.heads.items()}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """f32[B,3,H,W] in [0, 1] -> f32[B,outputs,H,W] by head."""
        return self.decode(self.encode(image), image.shape[2:])


def deeplab_peer(
    encoder: str,
    heads: dict[str, int],
    *,
    output_stride: int = 16,
    channels: int = 256,
    low_channels: int = 48,
    rates: tuple[int, ...] = (6, 12, 18),
    width: float = 1.0,
) -> PeerNetwork:
    """DeepLabV3+; `heads` are the channels of each one's output."""
    backbone = MobileNetV2(output_stride) if encoder == "mobilenet_v2" else ResNet(encoder, output_stride, width)
    shape = (channels, low_channels, rates)
    return PeerNetwork(backbone, {name: Decoder(*backbone.channels, n, *shape) for name, n in heads.items()})


def parameter_count(module: nn.Module) -> int:
    """The number of trained values."""
    return sum(math.prod(p.shape) for p in module.parameters())
