from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.data import Example
from forec_jax.evaluation import Buckets, ThresholdSweep, mean_iou
from forec_jax.evaluation.thresholds import THRESHOLDS


@dataclass(frozen=True)
class Brightness:
    """A class where the image is brighter than the threshold."""

    def scores(self, variables, image, valid):
        return jnp.stack([jnp.ones(image.shape[:3]), image[..., 0]], axis=-1)

    def at_threshold(self, scores, threshold):
        return scores.at[..., 0].multiply(threshold)


@dataclass(frozen=True)
class Grey:
    """Images of two sizes whose truth is what is brighter than 150 of 255, with void."""

    ids = ("a", "b", "c")

    def __len__(self):
        return 3

    def __getitem__(self, index):
        size = (20, 30 + 20 * (index == 1))
        image = 7 * np.random.default_rng(index).integers(0, 36, (*size, 1), dtype=np.uint8)  # none on a threshold
        label = (image[..., 0] > 150).astype(np.uint8)
        label[0] = 255
        return Example(self.ids[index], np.repeat(image, 3, axis=-1), label)

    def without_labels(self):
        return self


def test_a_sweep_is_the_miou_at_each_threshold():
    source = Grey()
    found = ThresholdSweep(Brightness(), 2, Buckets(32, batch=2))({}, source)
    assert tuple(found) == THRESHOLDS
    for threshold, miou in found.items():
        confusion = np.zeros((2, 2), np.int64)
        for index in range(3):
            example = source[index]
            counted = example.label != 255
            winner = (example.image[..., 0].astype(np.float32) / 255 > np.float32(threshold)).astype(int)
            np.add.at(confusion, (example.label[counted], winner[counted]), 1)
        assert miou == pytest.approx(mean_iou(confusion), abs=1e-9)
    assert max(found, key=found.get) == 0.6  # 153 of 255
