"""JAX functions as ONNX models."""

from forec_jax.export.graph import ExportError
from forec_jax.export.program import BATCH, Input, symbolic, to_onnx

__all__ = ["BATCH", "ExportError", "Input", "symbolic", "to_onnx"]
