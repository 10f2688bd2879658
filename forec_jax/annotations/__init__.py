"""Annotations as other tools write them, made into a folder data set: `forec-jax import`."""

from forec_jax.annotations.gather import FORMATS, Request
from forec_jax.annotations.report import report
from forec_jax.annotations.write import Summary, import_annotations

__all__ = ["FORMATS", "Request", "Summary", "import_annotations", "report"]
