"""The picture shown at every evaluation: what the networks make of a few examples."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from forec_jax.contracts import IGNORE, Array, Method, Network, TrainState, Variables
from forec_jax.data import Example
from forec_jax.evaluation import Buckets, Prediction, Predictor
from forec_jax.visualize.palettes import colourise
from forec_jax.visualize.sheets import heatmap, sheet

COLUMNS = ("input", "truth", "prediction", "confidence", "reconstruction")
RECONSTRUCTION = "reconstruction"

Painter = Callable[[Variables, np.ndarray, np.ndarray], Array]


class Panel:
    """Draws a sheet of examples: input, truth, prediction and confidence of the teacher (else the student).

    Where a student has a reconstruction head, what it paints is the last column.
    """

    def __init__(self, method: Method, palette: np.ndarray, examples: Sequence[Example], bucket: int) -> None:
        self._palette, self._examples = palette, list(examples)
        self._buckets = Buckets(bucket, batch=1)
        self._predictor = Predictor(method, self._buckets)
        self._painters = {
            name: jax.jit(functools.partial(paint, network))
            for name, network in method.networks.items()
            if any(head.name == RECONSTRUCTION for head in network.heads)
        }

    def draw(self, state: TrainState) -> np.ndarray | None:
        """u8[H,W,3], or None where there are no examples to show."""
        if not self._examples:
            return None
        student = {name: Variables(state.params[name], state.batch_stats[name]) for name in state.params}
        predictions = {p.example.id: p for p in self._predictor(state.teacher or student, self._examples)}
        rows = [self._row(predictions[example.id], student) for example in self._examples]
        return sheet(rows, COLUMNS[: len(rows[0])])

    def save(self, state: TrainState, path: Path) -> None:
        """Writes the sheet to a PNG file."""
        if (picture := self.draw(state)) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)

    def _row(self, prediction: Prediction, student: dict[str, Variables]) -> list[np.ndarray]:
        example = prediction.example
        truth = np.full_like(prediction.label, IGNORE) if example.label is None else example.label
        maps = [colourise(truth, self._palette), colourise(prediction.label, self._palette)]
        painted = [self._painted(painter, student[name], example) for name, painter in self._painters.items()]
        return [example.image, *maps, heatmap(prediction.confidence), *painted[:1]]

    def _painted(self, painter: Painter, student: Variables, example: Example) -> np.ndarray:
        height, width = example.image.shape[:2]
        _, padded = next(self._buckets.batches([example]))
        colours = np.asarray(painter(student, padded.image, padded.valid))[0, :height, :width]
        return (255 * np.clip(colours, 0, 1)).round().astype(np.uint8)


def paint(network: Network, student: Variables, image: Array, valid: Array) -> Array:
    """The reconstruction head's output f32[B,H,W,3] for images u8[B,H,W,3]."""
    features, _ = network.encode(student, image.astype(jnp.float32) / 255.0, valid=valid, train=False, rng=None)
    head, _ = network.decode(student, RECONSTRUCTION, features, train=False, rng=None)
    return head.output
