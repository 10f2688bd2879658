"""Evaluation: the global confusion matrix of a network over a source."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from forec_jax.contracts import IGNORE, Array, Stopped, Variables
from forec_jax.data import DataError, Example, Source, evaluation_examples
from forec_jax.data.transforms import PAD_COLOUR
from forec_jax.evaluation.boundary import boundary_confusion
from forec_jax.evaluation.metrics import class_iou, confusion_matrix, mean_iou
from forec_jax.evaluation.sliding import Predicts
from forec_jax.options import SCALES, at_least, must_be, option
from forec_jax.parallel import batch_sharding, local_mesh, on_local_devices, replicated, summed

MOST_PIXELS = 2**25  # of a bucket: a ResNet's first features alone take 2 GB there
Mode = Literal["whole", "center_crop"]


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """How a run is scored."""

    split: str = option("val", "which images")
    mode: Literal["whole", "center_crop", "sliding"] = option(
        "whole", 'the whole image, "center_crop", or "sliding": the mean of overlapping windows (Cityscapes)'
    )
    crop: int = option(
        513,
        "side of the central crop or of the windows, in pixels",
        must_be("a number of pixels, usually data.crop", lambda value: value >= 1),
    )
    stride_fraction: float = option(
        2 / 3,
        "sliding: from one window to the next, as a fraction of eval.crop",
        must_be("above 0 and at most 1; published: 2/3", lambda value: 0 < value <= 1),
    )
    scales: tuple[float, ...] = option((1.0,), "of the image, at which it is seen: the mean of what is said", SCALES)
    flip: bool = option(False, "the mirrored image is seen as well, at each of these scales, and the mean is taken")
    batch: int = option(8, "images at a time, over all devices", at_least(1))
    bucket: int = option(
        128, "sides are padded up to multiples of it: fewer shapes to compile, same result", at_least(1)
    )
    pictures: int = option(4, "examples shown at each evaluation", at_least(0))

    @property
    def stride(self) -> int:
        """Pixels from one window to the next."""
        return max(round(self.crop * self.stride_fraction), 1)


class Evaluation(NamedTuple):
    """What an evaluation finds."""

    miou: float  # in [0, 1]
    iou: np.ndarray  # f64[K], NaN for a class that neither occurs nor is predicted
    confusion: np.ndarray  # i64[K,K], truth by prediction
    boundary: np.ndarray | None = (
        None  # i64[K+1,K+1], of the pixels near contours (boundary_confusion); None: not asked for
    )

    @property
    def boundary_iou(self) -> np.ndarray:
        """f64[K], NaN for a class without pixels near its contours; `boundary` must be there."""
        assert self.boundary is not None, "the evaluation counted no boundaries"
        return class_iou(self.boundary)[:-1]


class _Padded(NamedTuple):
    """Images of one shape bucket, each in the top-left corner of its row."""

    image: np.ndarray  # u8[n,H,W,3]
    label: np.ndarray  # i32[n,H,W], IGNORE in the padding
    valid: np.ndarray  # bool[n,H,W]


@dataclasses.dataclass(frozen=True)
class Buckets:
    """How images of any size become batches of few shapes: sides are rounded up to multiples of `step`.

    `step` is a multiple of the network's, so that the masked result equals that on the image alone (contracts.Network).
    """

    step: int
    batch: int
    most: float = MOST_PIXELS  # of an image, padded

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """The bucket of an image."""
        return -(-height // self.step) * self.step, -(-width // self.step) * self.step

    def batches(self, examples: Iterable[Example]) -> Iterator[tuple[list[Example], _Padded]]:
        """Full batches of one bucket each, in the order in which they fill; the rest at the end, with empty rows."""
        waiting: dict[tuple[int, int], list[Example]] = {}
        for example in examples:
            shape = self.shape(*example.image.shape[:2])
            if shape[0] * shape[1] > self.most:
                raise DataError(
                    f"{example.id}: {example.image.shape[1]}x{example.image.shape[0]} pixels are too many to see at once; "
                    "scale the image down, or train with data.longest_side, which then does it here too; predict sees it in "
                    "tiles with --tile=1024"
                )
            rows = waiting.setdefault(shape, [])
            rows.append(example)
            if len(rows) == self.batch:
                yield rows, self.pad(waiting.pop(shape), shape)
        for shape, rows in waiting.items():
            yield rows, self.pad(rows, shape)

    def pad(self, examples: list[Example], shape: tuple[int, int]) -> _Padded:
        """The examples as one batch; missing labels and rows are IGNORE."""
        image = np.full((self.batch, *shape, 3), PAD_COLOUR, np.uint8)
        label = np.full((self.batch, *shape), IGNORE, np.int32)
        valid = np.zeros((self.batch, *shape), bool)
        for row, example in enumerate(examples):
            height, width = example.image.shape[:2]
            image[row, :height, :width] = example.image
            valid[row, :height, :width] = True
            if example.label is not None:
                label[row, :height, :width] = example.label
        return _Padded(image, label, valid)


def center_crop(example: Example, size: int) -> Example:
    """The central `size` x `size` pixels, or fewer where the image is smaller (U2PL's evaluation)."""
    height, width = example.image.shape[:2]
    top, left = max(height - size, 0) // 2, max(width - size, 0) // 2
    window = (slice(top, top + size), slice(left, left + size))
    label = None if example.label is None else example.label[window]
    return example._replace(image=example.image[window], label=label)


class Evaluator:
    """Scores a method's predictions. Compiles once for each bucket of shapes, whatever the number of calls.

    Each process scores every count-th example on its own devices, so that processes need not meet images of one size at
    one time, and the counts are added up. `buckets.batch` is the rows of a process, a multiple of its devices.
    `boundary` is the distance of the boundary IoU as a share of an image's diagonal; 0: it is not asked for.
    """

    def __init__(
        self,
        method: Predicts,
        classes: int,
        mesh: Mesh,
        buckets: Buckets,
        mode: Mode,
        crop: int,
        boundary: float = 0.0,
    ) -> None:
        self._mesh, self._buckets, self._mode, self._crop = mesh, buckets, mode, crop
        self._sides = (classes, classes + 1) if boundary else (classes,)  # of the matrices that are counted
        self._rows, whole = batch_sharding(local_mesh(mesh)), replicated(local_mesh(mesh))
        rows = self._rows
        self._counts = jax.jit(
            _counts_of(method, classes, boundary), in_shardings=(whole, rows, rows, rows), out_shardings=whole
        )

    def __call__(
        self, variables: dict[str, Variables], source: Source, stop: Callable[[], bool] = lambda: False
    ) -> Evaluation:
        """The mIoU of the networks' prediction over every example of a source.

        `stop` is asked after each batch. Raises Stopped, in every process, where any of them was told so.
        """
        variables = on_local_devices(self._mesh, variables)
        examples = evaluation_examples(source, process_index=jax.process_index(), process_count=jax.process_count())
        if self._mode == "center_crop":
            examples = (center_crop(example, self._crop) for example in examples)
        totals = [np.zeros((side, side), np.int64) for side in self._sides]
        pending: tuple[Array, ...] = ()
        stopped = False
        for _, padded in self._buckets.batches(examples):
            counted = self._counts(variables, *jax.device_put(tuple(padded), self._rows))
            # Read one batch late, so that the host pads the next one while the device works.
            _add(totals, pending)
            pending = counted
            if stopped := stop():
                break
        _add(totals, pending)
        if summed(np.asarray([stopped], np.int64)).any():
            raise Stopped("evaluation")
        confusion, *boundary = map(summed, totals)
        return Evaluation(mean_iou(confusion), class_iou(confusion), confusion, *boundary)


def _add(totals: list[np.ndarray], counted: tuple[Array, ...]) -> None:
    """Adds a batch's counts; there are none before the first batch."""
    for total, counts in zip(totals, counted, strict=False):
        total += np.asarray(counts).astype(np.int64)


def _counts_of(method: Predicts, classes: int, boundary: float) -> Callable[..., tuple[Array, ...]]:
    """The confusion matrix of a batch, and that near the contours where `boundary` is a distance."""

    def counts(variables: dict[str, Variables], image: Array, label: Array, valid: Array) -> tuple[Array, ...]:
        probabilities = method.predict(variables, image.astype(np.float32) / 255.0, valid)
        prediction = probabilities.argmax(-1)
        whole = confusion_matrix(label, prediction, classes)
        return (whole, boundary_confusion(label, prediction, valid, classes, boundary)) if boundary else (whole,)

    return counts
