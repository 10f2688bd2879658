"""Mixing within a batch: CutOut, CutMix and ClassMix of images together with everything known about their pixels.

A mixing is a function `(key, rows) -> rows`. The partner of a row is the next row of the batch; that of the last row is
the first. On a batch that is sharded over devices this roll moves one row from each device to its neighbour. PS-MT's two
mixings draw the partners instead, which moves rows between all devices.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from forec_jax.augment.boxes import AreaBox, BetaBox, Box, ClippedBox, HalfAreaBox, ShareBox, SquareBox
from forec_jax.augment.masking import mean_colour
from forec_jax.contracts import IGNORE, Array, PyTree
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
        fill = mean_colour()
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
        return paste(_boxes(key, self.box, self.probability, rows), rows, next_rows(rows))


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
        return paste(_boxes(box_key, self.box, self.probability, rows), rows, rows_at(rows, partner))


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
        mixed, apply = rows, coin(apply_key, self.probability, count)
        for box_key, partner_key in map(jax.random.split, keys):
            partner = jax.random.randint(partner_key, (count,), 0, count)
            mixed = paste(self.box(box_key, count, height, width) & apply, mixed, rows_at(rows, partner))
        return mixed


@dataclass(frozen=True)
class ToggledCutMix:
    """Paste several boxes of the next row into some rows; where two boxes meet, the row stays as it is (CutMix-Seg, CPS).

    With `pairs` rows 2i and 2i + 1 are each other's partners.
    """

    probability: float = 1.0
    box: ShareBox = field(default_factory=ShareBox)
    pairs: bool = False

    def __call__(self, key: Array, rows: Rows) -> Rows:
        """`rows` with the same boxes pasted in every field."""
        apply_key, *keys = jax.random.split(key, 1 + self.box.parts)
        rows = _ignore_padding(rows)
        boxes = [self.box(box_key, *rows.label.shape) for box_key in keys]
        mask = functools.reduce(jnp.logical_xor, boxes)
        partner = other_of_pair(rows) if self.pairs else next_rows(rows)
        return paste(mask & coin(apply_key, self.probability, len(mask)), rows, partner)


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
        partner = next_rows(rows)
        # Comparisons fuse into one pass over the pixels; a look-up of chosen[row, label] is a gather over the batch.
        is_class = (partner.label[..., None] == jnp.arange(self.classes)[None, None, None]) & partner.valid[..., None]
        chosen = _half_of(class_key, jnp.any(is_class, axis=(1, 2)))
        mask = jnp.any(is_class & chosen[:, None, None, :], axis=-1)
        return paste(mask & coin(apply_key, self.probability, mask.shape[0]), rows, partner)


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
        "cutmix_pairs",
        "cutout_half",
        "cutout_square",
        "cutmix_half",
        "classmix",
    ] = option(
        "cutmix",
        "of images within a batch; _half: ReCo's box, _beta: PS-MT's inside the image, _clipped: as published (VOC), "
        "_three: as published (Cityscapes); _toggled: CPS's three boxes, _pairs: "
        "the same of the two rows that show one image (data.unlabelled_pairs); _square: PseudoSeg's",
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
        "cutout_square": CutOut(p, SquareBox()),
        "cutmix": CutMix(p),
        "cutmix_beta": CutMix(p, BetaBox()),
        "cutmix_clipped": ShuffledCutMix(p),
        "cutmix_three": SeveralCutMix(p),
        "cutmix_toggled": ToggledCutMix(p),
        "cutmix_pairs": ToggledCutMix(p, pairs=True),
        "cutmix_half": CutMix.half_area(p),
        "classmix": ClassMix(classes, p),
    }
    return choices[o.mixing]


def _half_of(key: Array, present: Array) -> Array:
    """bool[B,K]: half (rounded down) of the True in bool[B,K], drawn uniformly for each row."""
    draw = jnp.where(present, jax.random.uniform(key, present.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(draw, axis=-1), axis=-1)  # absent classes come last
    return present & (rank < jnp.sum(present, axis=-1, keepdims=True) // 2)


def _boxes(key: Array, box: Box, probability: float, rows: Rows) -> Array:
    """bool[B,H,W]: a box in the rows that the probability picks, elsewhere False."""
    apply_key, box_key = jax.random.split(key)
    count, height, width = rows.label.shape
    return box(box_key, count, height, width) & coin(apply_key, probability, count)


def coin(key: Array, probability: float, rows: int) -> Array:
    """bool[rows,1,1], True with this probability."""
    return jax.random.bernoulli(key, float(probability), (rows,))[:, None, None]


def next_rows(rows: Rows) -> Rows:
    """In place of each row the next one of the batch."""
    return jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), rows)


def other_of_pair(rows: Rows) -> Rows:
    """In place of row 2i row 2i + 1, and the other way round; of an even number of rows."""

    def turned(x: Array) -> Array:
        return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)

    return jax.tree.map(turned, rows)


def rows_at(rows: Rows, partner: Array) -> Rows:
    """The rows i32[B] of a batch."""
    return jax.tree.map(lambda x: jnp.take(x, partner, axis=0), rows)


def paste(mask: Array, rows: Rows, partner: Rows) -> Rows:
    """The rows, where bool[B,H,W] is True the partner's pixels with all that is known of them."""
    return jax.tree.map(lambda own, theirs: _select(mask, theirs, own), rows, partner)


def _select(mask: Array, inside: Array, outside: Array) -> Array:
    return jnp.where(mask.reshape(mask.shape + (1,) * (inside.ndim - mask.ndim)), inside, outside)


def _ignore_padding(rows: Rows) -> Rows:
    """Padding never becomes a pseudo-label. Ground truth stays: what its padding says is the data set's choice."""
    keep = rows.valid | rows.is_ground_truth
    return rows._replace(label=jnp.where(keep, rows.label, IGNORE), confidence=jnp.where(keep, rows.confidence, 0.0))
