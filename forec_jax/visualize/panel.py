"""The picture shown at every evaluation: what the networks make of a few examples."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from forec_jax.contracts import Method, TrainState, Variables
from forec_jax.data import Example, Labels
from forec_jax.evaluation import Buckets, Prediction, Predictor, Predicts
from forec_jax.methods.tasks.reconstruction import PixelSpace
from forec_jax.visualize.compare import truth_of
from forec_jax.visualize.legend import with_legend
from forec_jax.visualize.painter import painter_of
from forec_jax.visualize.palettes import colourise, overlay
from forec_jax.visualize.sheets import fit, heatmap, sheet

SIDES = 240, 512
"""The longer side of a picture in pixels: smaller images are enlarged, larger ones shrunk."""

COLUMNS = ("input", "overlay", "truth", "prediction", "confidence", "reconstruction")


class Panel:
    """Draws a sheet of examples: input, truth, prediction and confidence of the teacher (else the student).

    The overlay is the input under the truth's colours, or the prediction's where there is no truth. Where a student
    has a reconstruction head, what it paints is the last column; of several students, the first's.
    `predicts` is the method, or what predicts with it window by window.
    """

    def __init__(
        self,
        method: Method,
        predicts: Predicts,
        labels: Labels,
        examples: Sequence[Example],
        bucket: int,
        space: PixelSpace,
    ) -> None:
        self._labels, self._examples = labels, list(examples)
        self._predictor = Predictor(predicts, Buckets(bucket, batch=1))
        self._painter = painter_of(method, bucket, space)

    def draw(self, state: TrainState) -> np.ndarray | None:
        """u8[H,W,3], or None where there are no examples to show."""
        if not self._examples:
            return None
        student = {name: Variables(state.params[name], state.batch_stats[name]) for name in state.params}
        predictions = {p.example.id: p for p in self._predictor(state.teacher or student, self._examples)}
        rows = [self._row(predictions[example.id], student) for example in self._examples]
        maps = [*map(truth_of, self._examples), *(p.label for p in predictions.values())]
        return with_legend(sheet(rows, COLUMNS[: len(rows[0])]), self._labels, maps)

    def save(self, state: TrainState, path: Path) -> None:
        """Writes the sheet to a PNG file."""
        if (picture := self.draw(state)) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)

    def _row(self, prediction: Prediction, student: dict[str, Variables]) -> list[np.ndarray]:
        example = prediction.example
        palette, truth = self._labels.palette, truth_of(example)
        known = prediction.label if example.label is None else truth
        maps = [colourise(truth, palette), colourise(prediction.label, palette)]
        row = [example.image, overlay(example.image, known, palette), *maps, heatmap(prediction.confidence)]
        if self._painter is not None:
            row.append(self._painter(student, example).image)
        side = int(np.clip(max(example.image.shape), *SIDES))
        return [fit(picture, side) for picture in row]
