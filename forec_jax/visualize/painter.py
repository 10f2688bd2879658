"""Running a network's reconstruction head: what it paints, and out of which latent images."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from forec_jax.contracts import Array, Method, Network, Variables
from forec_jax.data import Example
from forec_jax.evaluation import Buckets
from forec_jax.methods.tasks.reconstruction import RECONSTRUCTION, PixelSpace, unit_pixels
from forec_jax.visualize.latents import of_image


class Painted(NamedTuple):
    """What a reconstruction head makes of one image."""

    image: np.ndarray  # u8[H,W,3]
    latent: np.ndarray  # f32[h,w,D] at the decoder's stride: the channels entering the last 1x1 convolution


class Painter:
    """Paints images of any size, one at a time. Compiles once for each bucket of shapes.

    `space` is the one that the head was trained to paint in.
    """

    def __init__(self, name: str, network: Network, bucket: int, space: PixelSpace) -> None:
        self.name = name  # of the network among the method's
        self._buckets = Buckets(bucket, batch=1)
        self._paint = jax.jit(functools.partial(_paint, network, space))

    def __call__(self, variables: dict[str, Variables], example: Example) -> Painted:
        """The reconstruction of an example's image, clipped to the colours that exist; `variables` by network name."""
        _, padded = next(self._buckets.batches([example]))
        painted = self._paint(variables[self.name], padded.image, padded.valid)
        colours, latent = (np.asarray(array)[0] for array in painted)
        height, width = example.image.shape[:2]
        image = (255 * np.clip(colours[:height, :width], 0, 1)).round().astype(np.uint8)
        return Painted(image, of_image(latent, (height, width), padded.image.shape[1]))


def painter_of(method: Method, bucket: int, space: PixelSpace) -> Painter | None:
    """A painter with the first network that has a reconstruction head; None where no network has one."""
    for name, network in method.networks.items():
        if any(head.name == RECONSTRUCTION for head in network.heads):
            return Painter(name, network, bucket, space)
    return None


def _paint(
    network: Network, space: PixelSpace, variables: Variables, image: Array, valid: Array
) -> tuple[Array, Array]:
    """Colours f32[B,H,W,3] and latent images f32[B,h,w,D] for images u8[B,H,W,3]."""
    features, _ = network.encode(variables, image.astype(jnp.float32) / 255.0, valid=valid, train=False, rng=None)
    head, _ = network.decode(variables, RECONSTRUCTION, features, train=False, rng=None)
    return unit_pixels(head.output, space), head.latent.astype(jnp.float32)
