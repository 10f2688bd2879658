"""The same training step in plain PyTorch: what the library is measured against.

The same networks, batch, colour changes, mixing, losses, optimiser and EMA, written as one would for PyTorch: NCHW in
channels_last memory, autocast for bfloat16, multi-tensor updates, no read of a value within a step. Random draws have the
same distributions, not the same values. The tensors' names are torchvision's (encoder) and UniMatch's (decoder), which
`forec_jax.models.convert` reads, and for MobileNetV2 the library's own.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SEGMENTATION, RECONSTRUCTION = "segmentation", "reconstruction"
IGNORE = 255

# The networks.


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

    def forward(self, low: Tensor, high: Tensor, size: tuple[int, int]) -> Tensor:
        """Low- and high-level maps -> f32[B,outputs,*size]."""
        x = resize(self.head(high), low.shape[2:])
        x = self.classifier(self.fuse(torch.cat([self.reduce(low), x], 1)))
        return resize(x.float(), size)


def resize(x: Tensor, size: Any) -> Tensor:
    """Bilinear, corners aligned."""
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class PeerNetwork(nn.Module):
    """An encoder with named heads."""

    def __init__(
        self,
        encoder: str,
        heads: dict[str, int],
        *,
        output_stride: int = 16,
        channels: int = 256,
        low_channels: int = 48,
        rates: tuple[int, ...] = (6, 12, 18),
        width: float = 1.0,
    ) -> None:
        super().__init__()
        backbone = MobileNetV2(output_stride) if encoder == "mobilenet_v2" else ResNet(encoder, output_stride, width)
        self.backbone = backbone
        shape = (channels, low_channels, rates)
        self.heads = nn.ModuleDict({name: Decoder(*backbone.channels, n, *shape) for name, n in heads.items()})
        for name, values in (("mean", backbone.MEAN), ("std", backbone.STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """f32[B,3,H,W] in [0, 1] -> f32[B,outputs,H,W] by head."""
        low, high = self.backbone((image - self.mean) / self.std)
        return {name: head(low, high, image.shape[2:]) for name, head in self.heads.items()}


# Augmentation, on the device. Images are f32[B,3,H,W] in [0, 1], factors f32[B].


def per_image(value: Tensor) -> Tensor:
    """f32[B] -> f32[B,1,1,1]."""
    return value.view(-1, 1, 1, 1)


def grayscale(image: Tensor) -> Tensor:
    """The luma, as one channel."""
    return 0.299 * image[:, 0:1] + 0.587 * image[:, 1:2] + 0.114 * image[:, 2:3]


def blend(base: Tensor, image: Tensor, factor: Tensor) -> Tensor:
    """From `base` (0) over `image` (1) to beyond it."""
    return torch.lerp(base.expand_as(image), image, per_image(factor)).clamp(0, 1)


def adjust_hue(image: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue by `shift` full turns, through HSV."""
    red, green, blue = image.unbind(1)
    value, low = image.amax(1), image.amin(1)
    spread = value - low
    scale = torch.where(spread > 0, 1 / (6 * spread.clamp_min(1e-12)), 0)
    hue = torch.where(value == green, scale * (blue - red) + 1 / 3, scale * (red - green) + 2 / 3)
    hue = torch.where(value == red, scale * (green - blue), hue) + shift.view(-1, 1, 1)
    sector = torch.tensor([5.0, 3.0, 1.0], device=image.device).view(1, 3, 1, 1)
    at = (sector + 6 * hue[:, None]) % 6
    return (value[:, None] - spread[:, None] * torch.minimum(at, 4 - at).clamp(0, 1)).clamp(0, 1)


def blur_matrix(sigma: Tensor, size: int, radius: int) -> Tensor:
    """f32[B,size,size]: row i holds the Gaussian around pixel i, mirrored at the borders."""
    i = torch.arange(size, device=sigma.device)
    exponent = -0.5 / sigma.clamp_min(1e-3).square().view(-1, 1, 1)

    def kernel(distance: Tensor) -> Tensor:
        return torch.where(distance.abs() <= radius, torch.exp(exponent * distance.square()), 0)

    before, after = i[:, None] + i[None], 2 * (size - 1) - i[:, None] - i[None]
    first = torch.where(i > 0, kernel(before), 0)
    last = torch.where(i < size - 1, kernel(after), 0)
    matrix = kernel(i[:, None] - i[None]) + first + last
    return matrix / matrix.sum(-1, keepdim=True)


def gaussian_blur(image: Tensor, sigma: Tensor, radius: int = 8) -> Tensor:
    """A product with a matrix along either axis, as in the library: one kernel an image is no case for a convolution."""
    rows, columns = (blur_matrix(sigma, n, min(radius, n - 1))[:, None] for n in image.shape[2:])
    return (rows @ image.contiguous() @ columns.mT).clamp(0, 1)


def colour_changes(image: Tensor) -> Tensor:
    """Jitter with 0.8, grayscale with 0.2, blur with 0.5, image by image."""
    rows, device = image.shape[0], image.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(rows, device=device).uniform_(low, high)

    def coin(probability: float) -> Tensor:
        return per_image(torch.rand(rows, device=device) < probability)

    jittered = (image * per_image(uniform(0.5, 1.5))).clamp(0, 1)
    jittered = blend(grayscale(jittered).mean((2, 3), keepdim=True), jittered, uniform(0.5, 1.5))
    jittered = blend(grayscale(jittered), jittered, uniform(0.5, 1.5))
    image = torch.where(coin(0.8), adjust_hue(jittered, uniform(-0.25, 0.25)), image)
    image = torch.where(coin(0.2), grayscale(image), image)
    return torch.where(coin(0.5), gaussian_blur(image, uniform(0.1, 2.0)), image)


def boxes(rows: int, height: int, width: int, device: torch.device) -> Tensor:
    """bool[rows,1,height,width]: with probability 0.5 a box of 2 to 40 % of the image, of an aspect of 0.3 to 3.3."""
    draw = torch.rand(5, rows, 1, 1, device=device)
    area, aspect = (0.02 + 0.38 * draw[0]) * height * width, 0.3 + (1 / 0.3 - 0.3) * draw[1]
    tall = (area * aspect).sqrt().clamp(1, height).floor()
    wide = (area / aspect).sqrt().clamp(1, width).floor()
    top, left = (draw[2] * (height - tall + 1)).floor(), (draw[3] * (width - wide + 1)).floor()
    y, x = torch.arange(height, device=device)[None, :, None], torch.arange(width, device=device)[None, None]
    inside = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
    return (inside & (draw[4] < 0.5))[:, None]


def cutmix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pastes a box of the next row into some rows, in every tensor [B,C,H,W] alike."""
    image = tensors["clean"]
    inside = boxes(image.shape[0], *image.shape[2:], image.device)
    return {name: torch.where(inside, x.roll(-1, 0), x) for name, x in tensors.items()}


# The step.


def unit_image(image: Tensor) -> Tensor:
    """u8[B,H,W,3] -> f32[B,3,H,W] in [0, 1]; the bytes stay where they are, which makes it channels_last."""
    return image.permute(0, 3, 1, 2).float() / 255


class TorchStep:
    """A student, its EMA teacher and the optimiser; a call runs steps on one resident batch.

    Args:
      network: of the student.
      method: "supervised", "mean_teacher" or "forec".
      batch: NumPy arrays, as the library's `Batch`.
      dtype: "float32", or "bfloat16" for autocast.
      compiled: whether to let torch.compile fuse augmentation, network and losses.
    """

    name = "PyTorch"
    METHODS = ("supervised", "mean_teacher", "forec")

    def __init__(self, network: PeerNetwork, method: str, batch: Any, dtype: str, *, compiled: bool, lr: float = 1e-3):
        if method not in self.METHODS:
            raise ValueError(f"--method={method}: the PyTorch counterpart has {', '.join(self.METHODS)}")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.method, self.dtype, self.lr, self.count = method, dtype, lr, 0
        torch.backends.cudnn.benchmark = True
        self.student = network.to(self.device, memory_format=torch.channels_last).train()
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
        for name in set(self.teacher.heads) - {SEGMENTATION}:
            del self.teacher.heads[name]
        self.pairs = self._pairs()
        groups = [
            {"params": list(self.student.backbone.parameters())},
            {"params": list(self.student.heads.parameters())},
        ]
        self.optimiser = torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=1e-4, foreach=True)
        parts = {"labelled": batch.labelled, "unlabelled": batch.unlabelled}
        self.batch = {
            name: {key: torch.from_numpy(np.asarray(value)).to(self.device) for key, value in part._asdict().items()}
            for name, part in parts.items()
            if part is not None
        }
        self._loss: Callable[[], Tensor] = torch.compile(self.loss) if compiled else self.loss

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """The teacher's parameters and BatchNorm statistics, and the student's that they follow."""
        student = {**dict(self.student.named_parameters()), **dict(self.student.named_buffers())}
        teacher = {**dict(self.teacher.named_parameters()), **dict(self.teacher.named_buffers())}
        names = [name for name, value in teacher.items() if value.is_floating_point()]
        return [teacher[name] for name in names], [student[name].detach() for name in names]

    def autocast(self) -> torch.autocast:
        """bfloat16 where it is asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

    @torch.no_grad()
    def views(self) -> dict[str, Tensor]:
        """What the student sees and what it should say, f32, i64 or bool [B,C,H,W]."""
        part = self.batch["labelled"]
        clean, label = unit_image(part["image"]), part["label"][:, None].long()
        rows = cutmix(
            {
                "clean": clean,
                "strong": colour_changes(clean),
                "label": label,
                "confidence": torch.ones_like(label, dtype=torch.float32),
                "truth": torch.ones_like(label, dtype=torch.bool),
                "valid": part["valid"][:, None],
            }
        )
        if self.method == "supervised":
            return rows
        more = cutmix(self.pseudo_labelled(self.batch["unlabelled"]))
        return {name: torch.cat([rows[name], more[name]]) for name in rows}

    def pseudo_labelled(self, part: dict[str, Tensor]) -> dict[str, Tensor]:
        """The unlabelled rows with the teacher's labels."""
        clean, valid = unit_image(part["image"]), part["valid"][:, None]
        with self.autocast():
            logits = self.teacher(clean)[SEGMENTATION]
        confidence, label = logits.softmax(1).max(1, keepdim=True)
        return {
            "clean": clean,
            "strong": colour_changes(clean),
            "label": torch.where(valid, label, IGNORE),
            "confidence": torch.where(valid, confidence, 0),
            "truth": torch.zeros_like(valid),
            "valid": valid,
        }

    def loss(self) -> Tensor:
        """The method's loss on the batch."""
        views = self.views()
        with self.autocast():
            image = views["strong"].contiguous(memory_format=torch.channels_last)
            outputs = self.student(image)
        label, truth = views["label"], views["truth"]
        error = functional.cross_entropy(outputs[SEGMENTATION], label[:, 0], ignore_index=IGNORE, reduction="none")[
            :, None
        ]
        known = label != IGNORE
        total = masked_mean(error, truth & known, truth & known)
        if self.method == "supervised":
            return total
        candidate = ~truth & views["valid"] & known
        total = total + masked_mean(error, candidate & (views["confidence"] > 0.95), candidate)
        return total + self.reconstruction(outputs, views) if self.method == "forec" else total

    def reconstruction(self, outputs: dict[str, Tensor], views: dict[str, Tensor]) -> Tensor:
        """FOrec's term: foreground as it is, background as 0, unknown pixels left out."""
        label, truth = views["label"], views["truth"]
        included = views["valid"] & (label != IGNORE) & (truth | (views["confidence"] > 0.95))
        target = torch.where(included & (label != 0), views["clean"], 0)
        error = (outputs[RECONSTRUCTION] - target).square().mean(1, keepdim=True)
        labelled, unlabelled = included & truth, included & ~truth
        return masked_mean(error, labelled, labelled) + 0.5 * masked_mean(error, unlabelled, unlabelled)

    def step(self) -> tuple[Tensor, Tensor]:
        """One update; the loss and the gradient's norm stay on the device."""
        rate = self.lr * (1 - self.count / 4000) ** 0.9 if self.count < 4000 else 0.0
        for group, factor in zip(self.optimiser.param_groups, (1.0, 10.0), strict=True):
            group["lr"] = rate * factor
        loss = self._loss()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.optimiser.step()
        decay = min(1 - 1 / (self.count + 1), 0.99)
        torch._foreach_lerp_(*self.pairs, 1 - decay)
        self.count += 1
        return loss.detach(), norm

    def run(self, steps: int) -> None:
        """Steps, to the end of the last."""
        for _ in range(steps):
            self.step()
        synchronise()

    def flops(self) -> float:
        """Of a step's convolutions and matrix products; the backward pass as twice the forward pass.

        PyTorch's own count of a backward pass takes a depthwise convolution for a dense one.
        """
        from torch.utils.flop_counter import FlopCounterMode

        image = unit_image(self.batch["labelled"]["image"])
        with FlopCounterMode(display=False) as counter, torch.no_grad(), self.autocast():
            self.teacher(image)
        teacher = counter.get_total_flops()
        # In train mode this would move the running statistics.
        with FlopCounterMode(display=False) as counter, torch.no_grad(), self.autocast():
            self.student.eval()(image)
        self.student.train()
        student = counter.get_total_flops()
        unlabelled = int(self.method != "supervised")  # as many rows as labelled ones
        return float(3 * (1 + unlabelled) * student + unlabelled * teacher)

    def peak_bytes(self) -> int | None:
        """The most memory the GPU has held; None on a CPU, where PyTorch does not count it."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None


def masked_mean(error: Tensor, included: Tensor, counted: Tensor) -> Tensor:
    """The sum over the included pixels by the number of the counted ones; 0 where there are none."""
    return torch.where(included, error, 0).sum() / counted.sum().clamp_min(1)


def synchronise() -> None:
    """Waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class TorchMatmul:
    """A square matrix product: what the device reaches at best."""

    def __init__(self, size: int, dtype: str) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.flops = 2.0 * size**3
        self._matrix = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)

    def run(self) -> None:
        """One product, to its end."""
        self._matrix @ self._matrix
        synchronise()


def parameter_count(module: nn.Module) -> int:
    """The number of trained values."""
    return sum(math.prod(p.shape) for p in module.parameters())
