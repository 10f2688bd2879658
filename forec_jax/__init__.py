"""Semi-supervised and label-efficient semantic segmentation in JAX: FOrec and its neighbours."""

__version__ = "0.1.0"
