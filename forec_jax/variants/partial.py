"""The parts of a variant's name that set partial labels: who labelled how much of the images."""

from collections.abc import Mapping

from forec_jax.variants.part import Variant


def _partial(share: str, meaning: str) -> Variant:
    """Partial labels on all images of the pool: the teacher labels the other pixels, and there are no other rows."""
    return Variant(
        {"data.partial": share, "data.labelled": "all", "data.unlabelled": "none", "batch.unlabelled": 0},
        meaning=meaning,
    )


PARTIAL_VARIANTS: Mapping[str, Variant] = {
    "partial_1px": _partial("1px", "ReCo's partial labels: a pixel of each class in an image"),
    "partial_1pc": _partial("1%", "1 % of each class in an image"),
    "partial_5pc": _partial("5%", "5 % of each class in an image"),
    "partial_25pc": _partial("25%", "25 % of each class in an image"),
    "partial_masks": _partial("masks", "scribbles and the like: a folder's own partial masks"),
    "two_streams": Variant(
        {
            "data.labelled": "all",
            "data.unlabelled": "all",
            "data.overlap": True,
            "data.partial_rounding": "down",
            "batch.unlabelled": lambda c: c.batch.labelled,
        },
        meaning="after partial_...: labelled and as many unlabelled rows, both of all images, as ReCo takes partial labels",
    ),
}
"""By name."""
