"""A draw of labelled images that shows every class about equally often: ReCo's "Partial Dataset Full Labels"."""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from forec_jax.data.pipeline import OnCorrupt
from forec_jax.data.source import DataError, Source

log = logging.getLogger(__name__)


def classes_in_image(source: Source, index: int, num_classes: int, on_corrupt: OnCorrupt = "raise") -> frozenset[int]:
    """The classes that an example's mask shows: none where it has no mask or, with on_corrupt="skip", cannot be read."""
    try:
        label = source[index].label
    except DataError:
        if on_corrupt == "raise":
            raise
        label = None
    return frozenset() if label is None else frozenset(np.unique(label[label < num_classes]).tolist())


def classes_in_images(source: Source, num_classes: int, on_corrupt: OnCorrupt = "raise") -> list[frozenset[int]]:
    """`classes_in_image` of each example; reads every one."""
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(lambda k: classes_in_image(source, k, num_classes, on_corrupt), range(len(source))))


def balanced_draw(
    ids: Sequence[str], classes: Sequence[Collection[int]], *, count: int, seed: int, at_least: int = 1
) -> tuple[str, ...]:
    """`count` of the ids, in their order, that show every class about equally often.

    One image after another: of the class that the fewest chosen images show so far (the first of several), the image of
    the lowest rank that shows it, among those that show `at_least` classes where there are any. That is greedy: another
    draw may have the rarest class once more. An image's rank is the SHA-256 of "<seed>:<id>", as in other draws; so draws
    of one seed are nested. ReCo takes images of 3 classes or more on VOC and of 12 on Cityscapes, so many that each class
    is in 5, 15 and 50 of them: 60, 200 and 600 on VOC. What a pool gives, the log says.

    Args:
        ids: of the pool's images with masks.
        classes: what each of them shows; an image without any class is taken last.
        count: images to draw.
        seed: of the draw.
        at_least: classes that an image should show.

    Raises DataError for a count below 1 or above the pool's.
    """
    if not 1 <= count <= len(ids):
        raise DataError(
            f"labelled=balanced:{count}:{seed} cannot be drawn from a pool of {len(ids)} images with masks; "
            f"use 1 to {len(ids)}"
        )

    def rank(index: int) -> tuple[bool, bytes]:
        return len(classes[index]) < at_least, hashlib.sha256(f"{seed}:{ids[index]}".encode()).digest()

    left = sorted(range(len(ids)), key=rank)
    seen = dict.fromkeys(sorted(set().union(*classes)), 0)
    for _ in range(count):
        image = _next_image(left, classes, seen)
        left.remove(image)
        for k in classes[image]:
            seen[k] += 1
    option = f"balanced:{count}:{seed}" + (f":{at_least}" if at_least > 1 else "")
    log.info("%s: every class is in at least %d images", option, min(seen.values(), default=0))
    return tuple(ids[i] for i in sorted(set(range(len(ids))).difference(left)))


def _next_image(left: Sequence[int], classes: Sequence[Collection[int]], seen: Mapping[int, int]) -> int:
    """The first image that is left of the class least seen, of those that an image is left of; the first without any."""
    for k in sorted(seen, key=seen.__getitem__):
        for index in left:
            if k in classes[index]:
                return index
    return left[0]
