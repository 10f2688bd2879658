"""Mixing within a batch: CutOut, CutMix and ClassMix of images together with everything known about their pixels.

A mixing is a function `(key, rows) -> rows`. The partner of a row is the next row of the batch; that of the last row is
the first. On a batch that is sharded over devices this roll moves one row from each device to its neighbour. PS-MT's two
mixings draw the partners instead, which moves rows between all devices.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from forec_jax.contracts import IGNORE, IMAGENET_MEAN, Array, PyTree
from forec_jax.options import SHARE, option


class Rows(NamedTuple):
    """Images and what is known about each of their pixels."""

    clean: Array  # f32[B,H,W,3] in [0,1], before colour changes
    strong: Array  # f32[B,H,W,3] in [0,1], after colour changes
    label: Array  # i32[B,H,W]: ground truth, else the teacher's argmax; IGNORE where nothing is said
    confidence: Array  # f32[B,H,W] in [0,1]
    is_ground_truth: Array  # bool[B,H,W]
    valid: Array  # bool[B,H,W]: neither padding nor cut out
    extra: PyTree = ()  # arrays [B,H,W,...] that a method adds: mixed like the rest, and left as they are by CutOut


Mixing = Callable[[Array, Rows], Rows]
"""(key, rows) -> rows of the same shapes and dtypes."""


class Box(Protocol):
    """A distribution of boxes. A frozen dataclass."""

    def __call__(self, key: Array, rows: int, height: int, width: int) -> Array:
        """bool[rows,height,width], True inside a box drawn for each row."""
        ...


@dataclass(frozen=True)
class AreaBox:
    """A box of a share of the image drawn from `area` and an aspect (height / width) from `aspect`: UniMatch, ST++.

    Their code draws aspect and corner again until the box fits into the image. That is the uniform distribution over
    all placements that fit, which is drawn here at once, with the aspect in 64 steps. Where no aspect fits at all (a
    large area in a long image), boxes are cut to the image's size.
    """

    area: tuple[float, float] = (0.02, 0.4)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)

    def __call__(self, key: Array, rows: int, height: int, width: int) -> Array:
        """bool[rows,height,width], True inside a box drawn for each row."""
        area_key, place_key = jax.random.split(key)
        area = jax.random.uniform(area_key, (rows, 1), minval=self.area[0], maxval=self.area[1]) * (height * width)
        low, high = self.aspect
        aspect = low + (high - low) * (np.arange(64, dtype=np.float32)[None] + 0.5) / 64
        # At least one pixel, which UniMatch's truncation lets vanish in tiny images.
        box_height = jnp.maximum(jnp.sqrt(area * aspect).astype(jnp.int32), 1)  # i32[rows,64]
        box_width = jnp.maximum(jnp.sqrt(area / aspect).astype(jnp.int32), 1)
        return _place(place_key, box_height, box_width, height, width)


@dataclass(frozen=True)
class HalfAreaBox:
    """ReCo's and U2PL's box: a width between half and all of the image's, and always half of its area."""

    def __call__(self, key: Array, rows: int, height: int, width: int) -> Array:
        """bool[rows,height,width], True inside a box drawn for each row."""
        width_key, place_key = jax.random.split(key)
        low = width // 2 + 1
        box_width = jax.random.randint(width_key, (rows, 1), low, max(width, low + 1))
        box_height = jnp.maximum(jnp.round(height * width / 2 / box_width).astype(jnp.int32), 1)
        return _place(place_key, box_height, box_width, height, width)


@dataclass(frozen=True)
class BetaBox:
    """PS-MT's and CutMix's box: of the image's shape, a share of its area from Beta(alpha, alpha), wherever it fits.

    CutMix (Yun et al., ICCV 2019) draws the centre anywhere and cuts the box at the borders; here it lies inside.
    """

    alpha: float = 4.0

    def __call__(self, key: Array, rows: int, height: int, width: int) -> Array:
        """bool[rows,height,width], True inside a box drawn for each row."""
        area_key, place_key = jax.random.split(key)
        side = jnp.sqrt(jax.random.beta(area_key, self.alpha, self.alpha, (rows, 1)))
        box_height, box_width = (jnp.maximum(jnp.round(side * size).astype(jnp.int32), 1) for size in (height, width))
        return _place(place_key, box_height, box_width, height, width)


@dataclass(frozen=True)
class ClippedBox:
    """PS-MT's box as published for VOC: of the image's shape, one size for all rows, cut off at the image's borders.

    Its share of the area, before it is cut, is from Beta(alpha, alpha); its centre lies anywhere but in the first eighth of
    either side. The mean of what is left is 0.358 of the area, with a deviation of 0.134.
    """

    alpha: float = 4.0

    def __call__(self, key: Array, rows: int, height: int, width: int) -> Array:
        """bool[rows,height,width], True inside a box drawn for each row."""
        side_key, *centre_keys = jax.random.split(key, 3)
        side = jnp.sqrt(jax.random.beta(side_key, self.alpha, self.alpha))
        inside = []
        for centre_key, size in zip(centre_keys, (height, width), strict=True):
            half = (side * size).astype(jnp.int32) // 2
            centre = jax.random.randint(centre_key, (rows, 1), size // 8, size)
            place = jnp.arange(size)[None]
            inside.append((place >= centre - half) & (place < centre + half))
        return inside[0][:, :, None] & inside[1][:, None, :]


@dataclass(frozen=True)
class ShareBox:
    """A part of a random share of the image: CutMix-Seg's box (French et al., BMVC 2020), of which PS-MT pastes three.

    The share p is from `area`, the box's height p^u of the image's with u from [0, 1], its width p^(1-u) of it; both are
    then divided by the square root of `parts`. It lies anywhere inside.
    """

    parts: int = 3
    area: tuple[float, float] = (0.25, 0.5)

    def __call__(self, key: Array, rows: int, height: int, width: int) -> Array:
        """bool[rows,height,width], True inside a box drawn for each row."""
        area_key, aspect_key, *place_keys = jax.random.split(key, 4)
        share = jax.random.uniform(area_key, (rows, 1), minval=self.area[0], maxval=self.area[1])
        tall = jnp.power(share, jax.random.uniform(aspect_key, (rows, 1)))
        inside = []
        for place_key, part, size in zip(place_keys, (tall, share / tall), (height, width), strict=True):
            length = jnp.round(part * size / self.parts**0.5)
            first = jnp.round((size - length) * jax.random.uniform(place_key, (rows, 1)))
            place = jnp.arange(size, dtype=jnp.float32)[None]
            inside.append((place >= first) & (place < first + length))
        return inside[0][:, :, None] & inside[1][:, None, :]


@dataclass(frozen=True)
class NoMixing:
    """Every row stays as it is."""

    def __call__(self, key: Array, rows: Rows) -> Rows:
        """`rows`, with padding that is no ground truth ignored."""
        del key
        return _ignore_padding(rows)


@dataclass(frozen=True)
class CutOut:
    """Fill a box of some rows with the mean colour; nothing is asked there (ST++; ReCo with `half_area`).

    In the box the pixels are invalid, their label is IGNORE and their confidence 0; `is_ground_truth` stays.
    """

    probability: float = 0.5
    box: Box = field(default_factory=AreaBox)

    @classmethod
    def half_area(cls, probability: float = 1.0) -> "CutOut":
        """CutOut with ReCo's box."""
        return cls(probability, HalfAreaBox())

    def __call__(self, key: Array, rows: Rows) -> Rows:
        """`rows` with boxes cut out."""
        rows = _ignore_padding(rows)
        cut = _boxes(key, self.box, self.probability, rows)
        # The colour that normalisation turns into zeros.
        fill = jnp.asarray(IMAGENET_MEAN, rows.clean.dtype)[None, None, None]
        return rows._replace(
            clean=jnp.where(cut[..., None], fill, rows.clean),
            strong=jnp.where(cut[..., None], fill, rows.strong),
            label=jnp.where(cut, IGNORE, rows.label),
            confidence=jnp.where(cut, 0.0, rows.confidence),
            valid=rows.valid & ~cut,
        )


@dataclass(frozen=True)
class CutMix:
    """Paste a box of the next row into some rows; the defaults are UniMatch's."""

    probability: float = 0.5
    box: Box = field(default_factory=AreaBox)

    @classmethod
    def half_area(cls, probability: float = 1.0) -> "CutMix":
        """CutMix with ReCo's box."""
        return cls(probability, HalfAreaBox())

    def __call__(self, key: Array, rows: Rows) -> Rows:
        """`rows` with the same boxes pasted in every field."""
        rows = _ignore_padding(rows)
        return _paste(_boxes(key, self.box, self.probability, rows), rows, _partner(rows))


@dataclass(frozen=True)
class ShuffledCutMix:
    """Paste a box of another row into some rows: PS-MT on VOC. The partners are a random order of the rows."""

    probability: float = 1.0
    box: Box = field(default_factory=ClippedBox)

    def __call__(self, key: Array, rows: Rows) -> Rows:
        """`rows` with the same boxes pasted in every field."""
        box_key, partner_key = jax.random.split(key)
        rows = _ignore_padding(rows)
        partner = jax.random.permutation(partner_key, rows.label.shape[0])
        return _paste(_boxes(box_key, self.box, self.probability, rows), rows, _rows_at(rows, partner))


@dataclass(frozen=True)
class SeveralCutMix:
    """Paste several boxes into some rows, one over the other, each of a row of its own: PS-MT on Cityscapes."""

    probability: float = 1.0
    box: ShareBox = field(default_factory=ShareBox)

    def __call__(self, key: Array, rows: Rows) -> Rows:
        """`rows` with the same boxes pasted in every field."""
        rows = _ignore_padding(rows)
        count, height, width = rows.label.shape
        apply_key, *keys = jax.random.split(key, 1 + self.box.parts)
        mixed, apply = rows, _coin(apply_key, self.probability, count)
        for box_key, partner_key in map(jax.random.split, keys):
            partner = jax.random.randint(partner_key, (count,), 0, count)
            mixed = _paste(self.box(box_key, count, height, width) & apply, mixed, _rows_at(rows, partner))
        return mixed


@dataclass(frozen=True)
class ToggledCutMix:
    """Paste several boxes of the next row into some rows; where two boxes meet, the row stays as it is (CutMix-Seg, CPS)."""

    probability: float = 1.0
    box: ShareBox = field(default_factory=ShareBox)

    def __call__(self, key: Array, rows: Rows) -> Rows:
        """`rows` with the same boxes pasted in every field."""
        apply_key, *keys = jax.random.split(key, 1 + self.box.parts)
        rows = _ignore_padding(rows)
        boxes = [self.box(box_key, *rows.label.shape) for box_key in keys]
        mask = functools.reduce(jnp.logical_xor, boxes)
        return _paste(mask & _coin(apply_key, self.probability, len(mask)), rows, _partner(rows))


@dataclass(frozen=True)
class ClassMix:
    """Paste the pixels of half the classes in the next row's label into some rows (ClassMix, ReCo).

    Half is rounded down as in both codes, so that a partner of a single class gives nothing. Classes count where the
    label is valid and not IGNORE, however low the confidence; they are drawn uniformly for each row.
    """

    classes: int
    probability: float = 1.0

    def __call__(self, key: Array, rows: Rows) -> Rows:
        """`rows` with the drawn classes pasted in every field."""
        apply_key, class_key = jax.random.split(key)
        rows = _ignore_padding(rows)
        partner = _partner(rows)
        # Comparisons fuse into one pass over the pixels; a look-up of chosen[row, label] is a gather over the batch.
        is_class = (partner.label[..., None] == jnp.arange(self.classes)[None, None, None]) & partner.valid[..., None]
        chosen = _half_of(class_key, jnp.any(is_class, axis=(1, 2)))
        mask = jnp.any(is_class & chosen[:, None, None, :], axis=-1)
        return _paste(mask & _coin(apply_key, self.probability, mask.shape[0]), rows, partner)


@dataclass(frozen=True)
class MixingOptions:
    """Which mixing, and of which rows."""

    mixing: Literal[
        "none",
        "cutout",
        "cutmix",
        "cutmix_beta",
        "cutmix_clipped",
        "cutmix_three",
        "cutmix_toggled",
        "cutout_half",
        "cutmix_half",
        "classmix",
    ] = option(
        "cutmix",
        "of images within a batch; _half: ReCo's box, _beta: PS-MT's inside the image, _clipped: as published (VOC), "
        "_three: as published (Cityscapes); _toggled: CPS's three boxes",
    )
    mixing_probability: float = option(0.5, "of a row", SHARE)
    mix_labelled: bool = option(True, "mix labelled rows too, among themselves; False: unlabelled rows alone (ReCo)")


def mixing_of(o: MixingOptions, classes: int) -> Mixing:
    """The mixing that the options name, for so many classes."""
    p = o.mixing_probability
    choices: dict[str, Mixing] = {
        "none": NoMixing(),
        "cutout": CutOut(p),
        "cutout_half": CutOut.half_area(p),
        "cutmix": CutMix(p),
        "cutmix_beta": CutMix(p, BetaBox()),
        "cutmix_clipped": ShuffledCutMix(p),
        "cutmix_three": SeveralCutMix(p),
        "cutmix_toggled": ToggledCutMix(p),
        "cutmix_half": CutMix.half_area(p),
        "classmix": ClassMix(classes, p),
    }
    return choices[o.mixing]


def _half_of(key: Array, present: Array) -> Array:
    """bool[B,K]: half (rounded down) of the True in bool[B,K], drawn uniformly for each row."""
    draw = jnp.where(present, jax.random.uniform(key, present.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(draw, axis=-1), axis=-1)  # absent classes come last
    return present & (rank < jnp.sum(present, axis=-1, keepdims=True) // 2)


def _place(key: Array, box_height: Array, box_width: Array, height: int, width: int) -> Array:
    """bool[B,height,width]: one of all placements of the candidate boxes i32[B,n] in the image, uniformly.

    The draw is an integer below the number of placements, so that rounding cannot make devices disagree.
    """
    fits = (box_height <= height) & (box_width <= width)
    fits |= ~jnp.any(fits, axis=-1, keepdims=True)
    box_height, box_width = jnp.minimum(box_height, height), jnp.minimum(box_width, width)
    lefts = width - box_width + 1
    placements = jnp.where(fits, (height - box_height + 1) * lefts, 0)
    last = jnp.cumsum(placements, axis=-1)
    draw = jax.random.randint(key, last.shape[:1], 0, last[:, -1])[:, None]
    is_drawn = (draw < last) & (draw >= last - placements)  # exactly one in each row

    def of_drawn(values: Array) -> Array:
        return jnp.sum(jnp.where(is_drawn, values, 0), axis=-1)[:, None, None]

    offset = of_drawn(draw - (last - placements))
    top, left = offset // of_drawn(lefts), offset % of_drawn(lefts)
    y, x = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
    inside_rows = (y >= top) & (y < top + of_drawn(box_height))
    return inside_rows & (x >= left) & (x < left + of_drawn(box_width))


def _boxes(key: Array, box: Box, probability: float, rows: Rows) -> Array:
    """bool[B,H,W]: a box in the rows that the probability picks, elsewhere False."""
    apply_key, box_key = jax.random.split(key)
    count, height, width = rows.label.shape
    return box(box_key, count, height, width) & _coin(apply_key, probability, count)


def _coin(key: Array, probability: float, rows: int) -> Array:
    return jax.random.bernoulli(key, float(probability), (rows,))[:, None, None]


def _partner(rows: Rows) -> Rows:
    return jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), rows)


def _rows_at(rows: Rows, partner: Array) -> Rows:
    """The rows i32[B] of a batch."""
    return jax.tree.map(lambda x: jnp.take(x, partner, axis=0), rows)


def _paste(mask: Array, rows: Rows, partner: Rows) -> Rows:
    return jax.tree.map(lambda own, theirs: _select(mask, theirs, own), rows, partner)


def _select(mask: Array, inside: Array, outside: Array) -> Array:
    return jnp.where(mask.reshape(mask.shape + (1,) * (inside.ndim - mask.ndim)), inside, outside)


def _ignore_padding(rows: Rows) -> Rows:
    """Padding never becomes a pseudo-label. Ground truth stays: what its padding says is the data set's choice."""
    keep = rows.valid | rows.is_ground_truth
    return rows._replace(label=jnp.where(keep, rows.label, IGNORE), confidence=jnp.where(keep, rows.confidence, 0.0))
