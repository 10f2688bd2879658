"""A synthetic data set in the library itself: six shapes on textured backgrounds, made while it is read.

A class is a shape. An object usually (`TYPICAL_RATE`) has its class's colour, and as often its class's texture, so neither
is enough, and what one cue tells can teach the other. Backgrounds have the same textures and the hues between those of
the classes. As in photographs, classes have a context: in `train`, `tune` and `val` the main object's class usually
(`CONTEXT_RATE`) stands on the background of its own, which shares its texture and has a hue near its own: object and
background are entangled, and a network can lean on the background instead of the object. In `val_decorrelated` the two
are independent, which measures how much it did.
"""

import colorsys
import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from forec_jax.data.source import DataEntry, DataError, Dataset, Example, Labels, dataset_of
from forec_jax.data.textures import PATTERNS, paint
from forec_jax.options import at_least, option

CLASSES = ("background", "disc", "square", "triangle", "star", "ring", "cross")
PALETTE = ((0, 0, 0), (228, 26, 28), (55, 126, 184), (77, 175, 74), (255, 200, 40), (152, 78, 163), (255, 127, 0))
LABELS = Labels(CLASSES, PALETTE, background_classes=(0,))
COUNTS = {"train": 512, "tune": 96, "val": 192, "val_decorrelated": 192}
CONTEXT_RATE = 0.87
"""How often the main object's class decides the background (outside val_decorrelated)."""

TYPICAL_RATE = 0.85
"""How often an object has its class's colour; apart from that, how often it has its class's texture."""
HUE_SPREAD = 0.03
"""Standard deviation of hues around the typical one; the whole circle is 1."""

_KINDS = tuple(PATTERNS)  # class k has kind k - 1 as its own, as its texture and as its background's
_OBJECT_SATURATION, _BACKGROUND_SATURATION = (0.45, 0.95), (0.15, 0.5)
_SUPERSAMPLING = 4


class _Thing(NamedTuple):
    """An object of a scene. Lengths are fractions of the image's side."""

    class_index: int
    centre: tuple[float, float]  # x, y
    radius: float
    stretch: float  # width over height
    angle: float  # radians
    kind: int  # index of its texture's kind
    colours: np.ndarray  # f32[2,3] in [0, 255]
    frequency: float


class _Scene(NamedTuple):
    """All that is drawn for one image, before pixels."""

    background: int  # index of the background's texture kind
    colours: np.ndarray  # f32[2,3] in [0, 255]
    frequency: float
    things: tuple[_Thing, ...]  # back to front; the last is the main object


def shapes_dataset(*, size: int = 96, seed: int = 0, counts: Mapping[str, int] | None = None) -> Dataset:
    """The shapes data set of images u8[size,size,3]; `counts` replaces the number of examples of a split.

    An example is a function of (seed, split, index, size) alone. Raises DataError for a size below 33 (the smallest
    crop), an unknown split or a negative count.
    """
    counts = {**COUNTS, **(counts or {})}
    if size < 33:
        raise DataError(f"shapes: size={size} is below the smallest crop; use at least 33")
    if unknown := set(counts) - set(COUNTS):
        raise DataError(f"shapes: counts has unknown splits {sorted(unknown)}; the splits are {', '.join(COUNTS)}")
    if negative := [split for split, count in counts.items() if count < 0]:
        raise DataError(f"shapes: counts is negative for {negative}; use 0 or more")
    sources = {split: ShapesSource(split, count, size, seed) for split, count in counts.items()}
    return dataclasses.replace(dataset_of("shapes", LABELS, sources), fixed=True)


@dataclass(frozen=True)
class ShapesSource:
    """One split, drawn when it is first read and kept in memory from then on."""

    split: str
    count: int
    size: int = 96
    seed: int = 0
    labels: bool = True
    _cache: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def ids(self) -> Sequence[str]:
        """`<split>_00000` and so on."""
        return tuple(f"{self.split}_{index:05d}" for index in range(self.count))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(f"shapes/{self.split} has {self.count} examples; there is no index {index}")
        if index not in self._cache:
            rng = self._rng(index)
            self._cache[index] = _render(rng, self._draw(rng), self.size)
        image, label = self._cache[index]
        return Example(f"{self.split}_{index:05d}", image, label if self.labels else None)

    def scene(self, index: int) -> _Scene:
        """What example `index` is made of."""
        return self._draw(self._rng(index))

    def without_labels(self) -> "ShapesSource":
        """The same images without masks."""
        return replace(self, labels=False)

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(self.split.encode()), index])

    def _draw(self, rng: np.random.Generator) -> _Scene:
        return _draw_scene(rng, 0.0 if self.split == "val_decorrelated" else CONTEXT_RATE)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}  # a worker process draws for itself; images need not travel


def _draw_scene(rng: np.random.Generator, context_rate: float) -> _Scene:
    """A scene whose background is the main class's own with probability `context_rate`, any kind alike otherwise."""
    main = int(rng.integers(1, len(CLASSES)))
    background = main - 1 if rng.random() < context_rate else int(rng.integers(len(_KINDS)))
    colours = _two_colours(rng, (background + 0.5) / len(_KINDS), _BACKGROUND_SATURATION)
    others = [
        main if rng.random() < 0.6 else int(rng.integers(1, len(CLASSES)))
        for _ in range(rng.choice(4, p=[0.5, 0.3, 0.15, 0.05]))
    ]
    things = [_draw_thing(rng, k, (0.12, 0.22)) for k in others]
    things.append(_draw_thing(rng, main, (0.25, 0.42)))
    return _Scene(background, colours, rng.uniform(3.0, 9.0), tuple(things))


def _draw_thing(rng: np.random.Generator, class_index: int, radii: tuple[float, float]) -> _Thing:
    centre = rng.uniform(0.18, 0.82, 2)
    own = class_index - 1
    hue = own / len(_KINDS) if rng.random() < TYPICAL_RATE else rng.random()
    return _Thing(
        class_index,
        (float(centre[0]), float(centre[1])),
        radius=rng.uniform(*radii),
        stretch=float(np.exp(rng.uniform(-0.2, 0.2))),
        angle=rng.uniform(-0.35, 0.35),  # things mostly stand upright
        kind=own if rng.random() < TYPICAL_RATE else int(rng.integers(len(_KINDS))),
        colours=_two_colours(rng, hue, _OBJECT_SATURATION),
        frequency=rng.uniform(5.0, 14.0),
    )


def _two_colours(rng: np.random.Generator, hue: float, saturation: tuple[float, float]) -> np.ndarray:
    """A texture's two colours f64[2,3] in [0, 255], of one hue near `hue` and each of its own saturation and value."""
    hue = (hue + rng.normal(0, HUE_SPREAD)) % 1.0
    shades = [(rng.uniform(*saturation), rng.uniform(0.3, 0.95)) for _ in range(2)]
    return 255 * np.array([colorsys.hsv_to_rgb(hue, *shade) for shade in shades])


def _render(rng: np.random.Generator, scene: _Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The scene's image u8[size,size,3] and label u8[size,size]."""
    image = paint(rng, _KINDS[scene.background], size, scene.colours, scene.frequency)
    label = np.zeros((size, size), np.uint8)
    for thing in scene.things:
        cover = _coverage(thing, size)
        texture = paint(rng, _KINDS[thing.kind], size, thing.colours, thing.frequency)
        image += cover[..., None] * (texture - image)
        label[cover >= 0.5] = thing.class_index
    image *= rng.uniform(0.75, 1.1)
    image += rng.normal(0, 4, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), label


def _coverage(thing: _Thing, size: int) -> np.ndarray:
    """How much of each pixel the object covers, f32[size,size] in [0, 1]."""
    canvas = Image.new("L", (size * _SUPERSAMPLING, size * _SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    draw.polygon(_on_canvas(_outline(CLASSES[thing.class_index]), thing, canvas.width), fill=255)
    if CLASSES[thing.class_index] == "ring":
        draw.polygon(_on_canvas(0.55 * _outline("disc"), thing, canvas.width), fill=0)
    return np.asarray(canvas.reduce(_SUPERSAMPLING), np.float32) / 255.0


def _outline(shape: str) -> np.ndarray:
    """A shape's corners f64[n,2] (x, y) within the unit circle."""
    if shape == "cross":
        long, thin = 1.0, 0.34
        corner = np.array([(thin, long), (thin, thin), (long, thin)])
        quarters = [corner @ np.array([(c, s), (-s, c)]) for c, s in ((1, 0), (0, -1), (-1, 0), (0, 1))]
        return np.concatenate(quarters)
    corners = {"disc": 48, "ring": 48, "square": 4, "triangle": 3, "star": 10}[shape]
    turn = 2 * np.pi * (np.arange(corners) + (0.5 if shape == "square" else 0.0)) / corners  # a square stands on a side
    radius = np.where(np.arange(corners) % 2, 0.42, 1.0) if shape == "star" else 1.0
    return np.stack([radius * np.sin(turn), -radius * np.cos(turn)], axis=1)


def _on_canvas(points: np.ndarray, thing: _Thing, side: int) -> list[tuple[float, float]]:
    """Unit corners stretched, turned, scaled and moved to where the object is, in canvas pixels."""
    stretched = points * np.array([thing.stretch**0.5, thing.stretch**-0.5])
    c, s = np.cos(thing.angle), np.sin(thing.angle)
    placed = thing.radius * stretched @ np.array([(c, s), (-s, c)]) + np.array(thing.centre)
    return [(float(x), float(y)) for x, y in placed * side]


@dataclass(frozen=True)
class Options:
    """How large the images are."""

    size: int = option(96, "side of an image in pixels", at_least(33))


ENTRY = DataEntry("shapes", Options, lambda place, o: shapes_dataset(size=o.size), lambda root, _: LABELS)
