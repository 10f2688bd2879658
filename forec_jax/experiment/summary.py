"""What a run found: its scores, and everything that they depend on."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import forec_jax
from forec_jax.config import defaults
from forec_jax.contracts import TrainState
from forec_jax.data import Source
from forec_jax.data.published import published_name
from forec_jax.evaluation import Evaluator
from forec_jax.experiment import build
from forec_jax.experiment.sources import TrainingData
from forec_jax.keys import flat
from forec_jax.training.scores import best_of

NETWORKS = ("teacher", "student")


def evaluate_networks(
    evaluator: Evaluator, state: TrainState, source: Source, stop: Callable[[], bool]
) -> dict[str, Any]:
    """Teacher's (where there is one) and student's mIoU and per-class IoU; NaN becomes None, as JSON has no NaN.

    Raises Stopped where `stop` says so.
    """
    results: dict[str, Any] = {}
    for network in NETWORKS if state.teacher else ("student",):
        evaluation = evaluator(build.network_variables(state, network), source, stop)
        results[f"{network}_miou"] = evaluation.miou
        results[f"{network}_iou"] = [None if np.isnan(iou) else float(iou) for iou in evaluation.iou]
    return results


def evaluations(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The evaluation events among a run's events."""
    return [event for event in events if event["event"] == "evaluation"]


def summary(c: ConfigDict, data: TrainingData, events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The result of a run with everything that it depends on."""
    scored, classes = evaluations(events), data.dataset.classes
    content: dict[str, Any] = {
        "classes": list(classes),
        "method": c.method.name,
        "auxiliary": sorted(c.auxiliary.keys()),
        "split": _split_content(data),
        "seed": c.seed,
        "steps": c.steps,
        "options": _changed_options(c),
        "config": flat(c.to_dict()),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {"jax": jax.__version__, "forec_jax": forec_jax.__version__},
    }
    if (best := best_of(scored)) is not None:
        last = scored[-1]
        network = "teacher" if "teacher_miou" in last else "student"
        content |= {
            "best": {"step": best.step, "miou": best.score},
            "last": {"step": last["step"], "miou": last[f"{network}_miou"]},
            "student": {"step": last["step"], "miou": last["student_miou"]},
            "per_class": dict(zip(classes, last[f"{network}_iou"], strict=True)),
        }
    return content


def _split_content(data: TrainingData) -> dict[str, Any]:
    """Which images were trained on."""
    split = data.split
    return {
        "name": split.name,
        "sha256": split.sha256,
        "published": published_name(split.sha256),
        "labelled": len(split.labelled),
        "unlabelled": len(split.unlabelled),
        "tagged": len(split.tagged),
        "pseudo": len(split.pseudo),
        "pseudo_sha256": split.pseudo_sha256,
    }


def _changed_options(c: ConfigDict) -> dict[str, Any]:
    """Every option that is not at its default, by dotted key; an auxiliary task's all, as the task itself is not."""
    usual = flat(defaults().to_dict())
    return {key: value for key, value in sorted(flat(c.to_dict()).items()) if key not in usual or value != usual[key]}
