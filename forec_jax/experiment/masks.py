"""Masks that a run finds in images, and which of their pixels it is surest of."""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from forec_jax.contracts import IGNORE, Array, Thresholded, Variables
from forec_jax.data import Example, Source, evaluation_examples
from forec_jax.experiment import build
from forec_jax.experiment.load import Run
from forec_jax.models.scales import both_ways, mean_over_scales
from forec_jax.parallel import on_first_device

Finder = Callable[[Source], Iterator["Found"]]
"""Images -> their masks, in the order in which shape buckets fill."""

_Probabilities = Callable[..., Array]
"""(variables, unit images f32[B,H,W,3], valid, *, tags f32[B,K]) -> class probabilities f32[B,H,W,K]."""


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """How a run labels images."""

    network: str = "teacher"
    keep: float = 1.0  # the share of the images that get masks, the first by rank
    confidence: float = 0.0  # less sure pixels are void
    keep_pixels: float = 1.0  # the share of each class's pixels, the surest, that are not void
    rank: str = "confidence"  # the mean over an image's pixels, or "agreement" of milestones (label.py)
    flips: bool = False  # the mean with the mirrored image's prediction
    scales: tuple[float, ...] = (1.0,)  # of the image: the mean of what is predicted at each
    stored: str = ""  # a folder that was written before: images with a mask there keep it
    labelled: str = ""  # from tags: images with their true masks, a list file or "<count>:<seed>"; "" for none
    pixel_confidence: bool = False  # store each pixel's confidence as well, for data.pseudo


class Found(NamedTuple):
    """A mask that a model found."""

    example: Example
    label: np.ndarray  # u8[H,W], IGNORE where unsure
    confidence: np.ndarray  # f32[H,W] in [0, 1]


def _probabilities_of(run: Run) -> _Probabilities:
    """What the run says of images: of the classes among their tags alone, if it finds masks from tags."""
    method = run.method
    if isinstance(method, Thresholded):
        return lambda variables, image, valid, tags: method.at_threshold(
            method.scores(variables, image, valid, tags), method.mask_threshold
        )
    predicts = build.build_single(run.config, method)
    return lambda variables, image, valid, tags: predicts.predict(variables, image, valid)


def found_masks(run: Run, images: Source, how: Labelling) -> Iterator[Found]:
    """The masks that a run finds; pixels that it is too unsure of are IGNORE.

    With `how.keep_pixels` below 1 the images are looked at twice: first how sure the run is of the pixels of each class.
    """
    find = _finder(run, how)
    if how.keep_pixels == 1:
        return find(images)
    most = most_doubt(find(images), len(run.labels.classes), how.keep_pixels)
    return (surest_pixels(found, most) for found in find(images))


def _finder(run: Run, how: Labelling) -> Finder:
    """What finds the masks of images; pixels less sure than `how.confidence` are IGNORE."""
    predict, multiple = _probabilities_of(run), build.side_multiple(run.method)
    variables = on_first_device(build.network_variables(run.state, how.network))

    @jax.jit
    def winner(variables: dict[str, Variables], image: Array, valid: Array, tags: Array) -> tuple[Array, Array]:
        said = functools.partial(predict, variables, tags=tags)
        unit = image.astype(jnp.float32) / 255.0
        probabilities = mean_over_scales(both_ways(said) if how.flips else said, unit, valid, how.scales, multiple)
        return probabilities.argmax(-1).astype(jnp.uint8), probabilities.max(-1)

    buckets = build.build_buckets(run.config, run.method, run.config.eval.batch)

    def find(images: Source) -> Iterator[Found]:
        tags = np.zeros((buckets.batch, len(run.labels.classes)), np.float32)
        for examples, padded in buckets.batches(evaluation_examples(images)):
            for row, example in enumerate(examples):
                tags[row] = 0 if example.tags is None else example.tags
            labels, sure = map(np.asarray, winner(variables, padded.image, padded.valid, tags))
            for example, label, certainty in zip(examples, labels, sure, strict=False):
                yield _found_mask(example, label, certainty, how.confidence)

    return find


def _found_mask(example: Example, label: np.ndarray, certainty: np.ndarray, confidence: float) -> Found:
    """A mask cut to its image, IGNORE where the model is less sure than `confidence`."""
    height, width = example.image.shape[:2]
    inside = certainty[:height, :width]
    mask = np.where(inside >= confidence, label[:height, :width], IGNORE).astype(np.uint8)
    return Found(example, mask, inside)


_COARSENESS = 17
"""Bits of a float32 that are dropped: doubts within about 1.6 % of each other count as equal."""

_DOUBTS = (int(np.float32(1).view(np.uint32)) >> _COARSENESS) + 1


def doubts(confidence: np.ndarray) -> np.ndarray:
    """i64[...] in [0, _DOUBTS): how unsure f32[...] in [0, 1] is, the smaller the surer.

    The leading bits of 1 - confidence, which order positive numbers: fine where a model is nearly certain, as most are of
    most pixels, and few enough to be counted.
    """
    doubt = np.maximum(np.float32(1) - confidence.astype(np.float32), np.float32(0))
    return doubt.view(np.uint32).astype(np.int64) >> _COARSENESS


def most_doubt(found: Iterable[Found], classes: int, share: float) -> np.ndarray:
    """i64[K]: the doubt up to which the surest `share` in (0, 1] of all pixels that were found of a class is kept.

    Class by class, so that one that a model is never sure of keeps its share too (class-balanced self-training, CBST).
    Of pixels that are as unsure as the last one kept all are: never fewer than the share.
    """
    counts = np.zeros((classes, _DOUBTS), np.int64)
    for one in found:
        named = one.label < classes
        place = one.label[named].astype(np.int64) * _DOUBTS + doubts(one.confidence[named])
        counts += np.bincount(place, minlength=counts.size).reshape(counts.shape)
    wanted = np.ceil(np.round(share * counts.sum(1), 6))
    return np.sum(counts.cumsum(1) < wanted[:, None], axis=1)


def surest_pixels(found: Found, most: np.ndarray) -> Found:
    """The mask with pixels of more doubt than their class has in `most`, i64[K], void."""
    named = found.label < len(most)
    kept = doubts(found.confidence) <= most[np.where(named, found.label, 0)]
    return found._replace(label=np.where(named & kept, found.label, IGNORE).astype(np.uint8))
