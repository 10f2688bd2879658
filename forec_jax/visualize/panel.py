"""The picture shown at every evaluation: what the networks make of a few examples."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from forec_jax.contracts import IGNORE, Method, TrainState, Variables
from forec_jax.data import Example
from forec_jax.evaluation import Buckets, Prediction, Predictor, Predicts
from forec_jax.methods.tasks.reconstruction import PixelSpace
from forec_jax.visualize.painter import painter_of
from forec_jax.visualize.palettes import colourise
from forec_jax.visualize.sheets import heatmap, sheet

COLUMNS = ("input", "truth", "prediction", "confidence", "reconstruction")


class Panel:
    """Draws a sheet of examples: input, truth, prediction and confidence of the teacher (else the student).

    Where a student has a reconstruction head, what it paints is the last column; of several students, the first's.
    `predicts` is the method, or what predicts with it window by window.
    """

    def __init__(
        self,
        method: Method,
        predicts: Predicts,
        palette: np.ndarray,
        examples: Sequence[Example],
        bucket: int,
        space: PixelSpace,
    ) -> None:
        self._palette, self._examples = palette, list(examples)
        self._predictor = Predictor(predicts, Buckets(bucket, batch=1))
        self._painter = painter_of(method, bucket, space)

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
        row = [example.image, *maps, heatmap(prediction.confidence)]
        if self._painter is not None:
            row.append(self._painter(student, example).image)
        return row
