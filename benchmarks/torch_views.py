"""Plain PyTorch's augmentation on the device: the colour changes and the CutMix of the library's default.

Images are f32[B,3,H,W] in [0, 1], factors f32[B]. Random draws have the library's distributions, not its values.
"""

import torch
from torch import Tensor


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
    one = next(iter(tensors.values()))
    inside = boxes(one.shape[0], *one.shape[2:], one.device)
    return {name: torch.where(inside, x.roll(-1, 0), x) for name, x in tensors.items()}


def unit_image(image: Tensor) -> Tensor:
    """u8[B,H,W,3] -> f32[B,3,H,W] in [0, 1]; the bytes stay where they are, which makes it channels_last."""
    return image.permute(0, 3, 1, 2).float() / 255


def complementary_dropout(maps: tuple[Tensor, ...], share: float = 0.5) -> tuple[Tensor, ...]:
    """Of the rows i and i + b of maps [2b,C,h,w] each keeps the channels that the other drops, times 2.

    So does a random `share` of the pairs; the others stay as they are. Maps of equal channels have the same draws.
    """
    pairs, device = len(maps[0]) // 2, maps[0].device
    untouched = (torch.randperm(pairs, device=device) < int(pairs * (1 - share)))[:, None]
    factors = {}
    for channels in sorted({x.shape[1] for x in maps}):
        kept = torch.where(untouched, 1.0, 2.0 * (torch.rand(pairs, channels, device=device) < 0.5))
        factors[channels] = torch.cat([kept, 2 - kept])[:, :, None, None]
    return tuple(x * factors[x.shape[1]].to(x.dtype) for x in maps)
