"""Semi-supervised and label-efficient semantic segmentation in JAX: FOrec and its neighbours.

import forec_jax

forec_jax.train("configs/shapes.py:forec", "runs/forec", {"steps": 400})
model = forec_jax.load("runs/forec")
model.predict("photo.jpg").label
"""

from typing import Any

__version__ = "0.2.0"
__all__ = ["Model", "Prediction", "__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    """The face of the library; imported when it is asked for, as the command line must first say where JAX's cache is."""
    if name in __all__:
        from forec_jax import face

        return getattr(face, name)
    raise AttributeError(f"module 'forec_jax' has no attribute {name!r}")
