"""What the best checkpoint is chosen by. A score is a mIoU, or None where the split had no pixel to count."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Best(NamedTuple):
    """The best evaluation so far."""

    step: int
    score: float | None


def score_of(results: Mapping[str, Any]) -> float | None:
    """An evaluation's score: the teacher's mIoU, or the student's where there is no teacher."""
    score = results.get("teacher_miou", results.get("student_miou"))
    return score if score is not None and math.isfinite(score) else None


def is_better(score: float | None, best: Best | None) -> bool:
    """Whether a new evaluation is better than the best before it.

    A score beats none; among evaluations without one the newest counts as the best, as it was trained for longest.
    """
    if best is None or best.score is None:
        return True
    return score is not None and score > best.score


def best_of(events: Iterable[Mapping[str, Any]]) -> Best | None:
    """The best evaluation among a run's events; None where there is none."""
    best: Best | None = None
    for event in events:
        if event["event"] == "evaluation" and is_better(score_of(event), best):
            best = Best(event["step"], score_of(event))
    return best
