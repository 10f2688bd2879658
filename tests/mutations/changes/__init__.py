"""The changes: a file, a text that is in it once, what stands there instead, and the tests that should notice.

Each is a mistake that somebody could make: a sign, a place off by one, a view for another, a mask forgotten.
"""

from changes.change import Change
from changes.images import IMAGES
from changes.methods import METHODS
from changes.networks import NETWORKS
from changes.runs import RUNS

__all__ = ["CHANGES", "Change"]

CHANGES = [*IMAGES, *NETWORKS, *METHODS, *RUNS]
