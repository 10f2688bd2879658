"""The picture shown at every evaluation: what the networks make of a few examples."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from forec_jax.contracts import Method, TrainState, Variables
from forec_jax.data import Example
from forec_jax.evaluation import Buckets, Predictor
from forec_jax.visualize.palettes import colourise
from forec_jax.visualize.sheets import heatmap, sheet

COLUMNS = ("input", "truth", "prediction", "confidence")


class Panel:
    """Draws a sheet of examples: input, truth, prediction and confidence of the teacher (else the student)."""

    def __init__(self, method: Method, palette: np.ndarray, examples: Sequence[Example], bucket: int) -> None:
        self._palette, self._examples = palette, list(examples)
        self._predictor = Predictor(method, Buckets(bucket, batch=1))

    def draw(self, state: TrainState) -> np.ndarray | None:
        """u8[H,W,3], or None where there are no examples to show."""
        if not self._examples:
            return None
        variables = state.teacher or {
            name: Variables(state.params[name], state.batch_stats[name]) for name in state.params
        }
        found = {prediction.example.id: prediction for prediction in self._predictor(variables, self._examples)}
        rows = []
        for example in self._examples:
            prediction = found[example.id]
            truth = np.zeros_like(prediction.label) if example.label is None else example.label
            rows.append(
                [
                    example.image,
                    colourise(truth, self._palette),
                    colourise(prediction.label, self._palette),
                    heatmap(prediction.confidence),
                ]
            )
        return sheet(rows, COLUMNS)

    def save(self, state: TrainState, path: Path) -> None:
        """Writes the sheet to a PNG file."""
        if (picture := self.draw(state)) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
