"""The changes: a file, a text that is in it once, what stands there instead, and the tests that should notice.

Each is a mistake that somebody could make: a sign, a place off by one, a view for another, a mask forgotten.
"""

from typing import NamedTuple


class Change(NamedTuple):
    """One wrong line."""

    file: str
    before: str
    after: str
    tests: tuple[str, ...]


def _of(file: str, tests: str, *pairs: tuple[str, str]) -> list[Change]:
    """The changes of a file that the same tests, named with spaces between, should notice."""
    return [
        Change(f"forec_jax/{file}", before, after, tuple(f"tests/{test}" for test in tests.split()))
        for before, after in pairs
    ]


CHANGES = [
    *_of(
        "augment/geometry.py",
        "augment/test_geometry.py",
        ("jnp.maximum(scaled - length, 0) + 1)", "jnp.maximum(scaled - length, 0))"),
        ("window.offset[:, None] < window.scaled", "window.offset[:, None] <= window.scaled"),
        ("window.offset[:, None]) + 1  #", "window.offset[:, None])  #"),
        ("window.offset[:, None] + 0.5) * ratio - 0.5", "window.offset[:, None] + 0.5) * ratio"),
        ("/ jnp.maximum(ratio, 1.0)[..., None]", ""),
        ("label=nearest(rows.label, IGNORE)", "label=nearest(rows.label)"),
        ("clean=bilinear(rows.clean)", "clean=bilinear(rows.strong)"),
        ("strong=bilinear(rows.strong)", "strong=rows.strong"),
        ("valid=nearest(rows.valid)", "valid=nearest(rows.valid) | inside"),
        ("is_ground_truth=nearest(rows.is_ground_truth)", "is_ground_truth=rows.is_ground_truth"),
        ("field[:, :, ::-1]", "field[:, ::-1]"),
        (
            "zip(self.changes, jax.random.split(key, len(self.changes)), strict=True)",
            "((change, key) for change in self.changes)",
        ),
        ("before, after = (zoom, mirror) if", "before, after = ((*zoom, *mirror), ()) if"),
        (
            "row, column = _nearest(high, height), _nearest(wide, width)",
            "row, column = _nearest(high, height), _nearest(high, width)",
        ),
    ),
    *_of(
        "data/transforms.py",
        "data/test_pipeline.py data/test_transforms.py",
        ('part == "unlabelled" and self.unlabelled_plain', "self.unlabelled_plain"),
        ("scale=(1.0, 1.0), flip=False, half", "scale=(1.0, 1.0), half"),
    ),
    *_of(
        "methods/entry.py",
        "test_config.py",
        ("if self.student.student_labelled or completed else", "if self.student.student_labelled else"),
        ("if self.mix_labelled or completed else", "if self.mix_labelled else"),
    ),
]
