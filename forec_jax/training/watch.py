"""A warning for runs that learn from their labels alone without a word, as no pseudo-label is sure enough."""

import logging
from collections.abc import Mapping

log = logging.getLogger(__name__)

PATIENCE = 50  # steps in a row
HARDLY_ANY = 1e-3  # of the pseudo-labels: what the log would show as 0.000 or 0.001


class PseudoLabelWatch:
    """Sees every step's metrics, and warns once when no pseudo-label was kept for `PATIENCE` steps in a row."""

    def __init__(self, threshold: float | None = None) -> None:
        self._threshold = "" if threshold is None else f"={threshold:g}"
        self._steps, self._confidence, self._warned = 0, 0.0, False

    def see(self, metrics: Mapping[str, float]) -> None:
        """Takes a step's metrics; a method without `kept` has no pseudo-labels."""
        if metrics.get("kept", 1.0) >= HARDLY_ANY:
            self._steps, self._confidence = 0, 0.0
            return
        self._steps += 1
        self._confidence += metrics.get("confidence", 0.0)
        if self._steps == PATIENCE and not self._warned:
            self._warned = True
            log.warning(
                "no pseudo-label passed method.threshold%s in %d steps (the teacher's mean confidence is %.2f);\n"
                "the unlabelled images teach nothing. Lower method.threshold, start from pretrained weights "
                "(model.weights),\nor train on the labels alone first (method.name=supervised) and go on from that run",
                self._threshold,
                PATIENCE,
                self._confidence / PATIENCE,
            )
