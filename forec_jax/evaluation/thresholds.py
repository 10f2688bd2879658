"""The mIoU of masks at many thresholds, from one prediction of each image."""

import jax
import jax.numpy as jnp
import numpy as np

from forec_jax.contracts import Array, Thresholded, Variables
from forec_jax.data import Source, evaluation_examples
from forec_jax.evaluation.evaluate import Buckets
from forec_jax.evaluation.metrics import confusion_matrix, mean_iou
from forec_jax.parallel import on_first_device

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))


class ThresholdSweep:
    """Scores a method's masks at each of `THRESHOLDS`, on the first device. Compiles once for each bucket of shapes."""

    def __init__(self, method: Thresholded, classes: int, buckets: Buckets) -> None:
        self._classes, self._buckets = classes, buckets

        @jax.jit
        def confusions(variables: dict[str, Variables], image: Array, label: Array, valid: Array) -> Array:
            scores = method.scores(variables, image.astype(jnp.float32) / 255.0, valid)

            def confusion(threshold: Array) -> Array:
                return confusion_matrix(label, method.at_threshold(scores, threshold).argmax(-1), classes)

            return jax.lax.map(confusion, jnp.array(THRESHOLDS))

        self._confusions = confusions

    def __call__(self, variables: dict[str, Variables], source: Source) -> dict[float, float]:
        """The mIoU in [0, 1] by threshold over every example of a source."""
        variables = on_first_device(variables)
        total = np.zeros((len(THRESHOLDS), self._classes, self._classes), np.int64)
        for _, padded in self._buckets.batches(evaluation_examples(source)):
            total += np.asarray(self._confusions(variables, *padded)).astype(np.int64)
        return dict(zip(THRESHOLDS, map(mean_iou, total), strict=True))
