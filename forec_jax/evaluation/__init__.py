"""Evaluation and prediction."""

from forec_jax.evaluation.averaged import Averaged
from forec_jax.evaluation.evaluate import Buckets, Evaluation, EvaluationOptions, Evaluator
from forec_jax.evaluation.metrics import class_iou, confusion_matrix, mean_iou
from forec_jax.evaluation.predict import Prediction, Predictor, image_files, read_image, read_photo
from forec_jax.evaluation.sliding import Predicts, SlidingWindow
from forec_jax.evaluation.thresholds import ThresholdSweep

__all__ = [
    "Averaged",
    "Buckets",
    "Evaluation",
    "EvaluationOptions",
    "Evaluator",
    "Prediction",
    "Predictor",
    "Predicts",
    "SlidingWindow",
    "ThresholdSweep",
    "class_iou",
    "confusion_matrix",
    "image_files",
    "mean_iou",
    "read_image",
    "read_photo",
]
