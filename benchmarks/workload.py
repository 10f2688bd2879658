"""What is measured: a method, a network and a batch, the same for every framework."""

import argparse
import dataclasses

import numpy as np
from ml_collections import ConfigDict

from forec_jax.config import apply_variant, defaults
from forec_jax.contracts import Batch, Labelled, Unlabelled
from forec_jax.data import Labels
from forec_jax.variants.encoders import ENCODER_VARIANTS

CLASSES = 21
LABELS = Labels(
    classes=("background", *(f"class{index}" for index in range(1, CLASSES))),
    palette=tuple((index, index, index) for index in range(CLASSES)),
    background_classes=(0,),
)
"""As many as PASCAL VOC has."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """A training step's size and shape."""

    method: str  # parts of a variant: supervised, mean_teacher, forec, forec+share_aspp, ...
    encoder: str  # or the part of a variant that chooses one, with its decoder and optimiser: dinov2_small, ...
    output_stride: int  # of an encoder that has one
    batch: int  # images a step; half of them labelled where the method takes both kinds
    crop: int
    dtype: str
    decoder_channels: int = 256  # DeepLabV3+'s
    freeze: bool = False  # whether the encoder keeps its weights

    def config(self) -> ConfigDict:
        """The library's config of it, with every other option at its default."""
        c = defaults()
        of_encoder = self.encoder in ENCODER_VARIANTS
        if not of_encoder:
            c.model.encoder, c.model.resnet.output_stride = self.encoder, self.output_stride
        c.model.deeplab.channels = self.decoder_channels
        apply_variant(c, f"{self.encoder}+{self.method}" if of_encoder else self.method)
        c.data.crop, c.compute_dtype = self.crop, self.dtype
        c.model.freeze = "encoder" if self.freeze else ""
        semi = c.batch.unlabelled > 0
        if semi and self.batch % 2:
            raise ValueError(
                f"--batch={self.batch} must be even: {self.method} takes half labelled, half unlabelled images"
            )
        c.batch.labelled = self.batch // 2 if semi else self.batch
        c.batch.unlabelled = self.batch // 2 if semi else 0
        return c


def random_batch(c: ConfigDict, seed: int = 0) -> Batch:
    """NumPy images of noise, with masks in blocks of 16 x 16 pixels."""
    rng, crop = np.random.default_rng(seed), c.data.crop

    def images(rows: int) -> np.ndarray:
        return rng.integers(0, 256, (rows, crop, crop, 3), dtype=np.uint8)

    def valid(rows: int) -> np.ndarray:
        return np.ones((rows, crop, crop), bool)

    rows, blocks = c.batch.labelled, -(-crop // 16)
    label = rng.integers(0, CLASSES, (rows, blocks, blocks)).repeat(16, 1).repeat(16, 2)[:, :crop, :crop]
    labelled = Labelled(images(rows), label.astype(np.int32), valid(rows), np.zeros(rows, np.int32))
    if not (rows := c.batch.unlabelled):
        return Batch(labelled)
    return Batch(labelled, Unlabelled(images(rows), valid(rows), np.zeros(rows, np.int32)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a workload."""
    parser.add_argument("--method", default="forec", help="supervised, mean_teacher, forec, or another variant")
    parser.add_argument("--encoder", default="resnet50", help="or a variant's part, such as dinov2_small")
    parser.add_argument("--output-stride", type=int, default=16, choices=(8, 16, 32))
    parser.add_argument("--batch", type=int, default=16, help="images a step; semi-supervised methods: half unlabelled")
    parser.add_argument("--crop", type=int, default=321)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--decoder-channels", type=int, default=256, help="of DeepLabV3+")
    parser.add_argument("--freeze", action="store_true", help="the encoder keeps its weights")


def from_arguments(values: argparse.Namespace) -> Workload:
    """The workload that the flags name."""
    return Workload(**{field.name: getattr(values, field.name) for field in dataclasses.fields(Workload)})
