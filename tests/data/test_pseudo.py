import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from forec_jax.contracts import IGNORE
from forec_jax.data import DataError, Example, Geometry, content_sha256, train_batches, with_pseudo_labels

CLASSES = ("background", "cat")
SHAPE = (40, 48)


@dataclass(frozen=True)
class Photos:
    """Grey images that show their index; their masks must not be opened."""

    ids: tuple[str, ...] = ("a/0", "b", "c", "d")

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return Example(self.ids[index], np.full((*SHAPE, 3), index, np.uint8))

    def without_labels(self):
        return self


@pytest.fixture
def folder(tmp_path):
    """Masks of three of the four images; the model was unsure of the first column, and stored how sure it was of b."""
    (tmp_path / "classes.toml").write_text('names = ["background", "cat"]\nbackground = "background"\nvoid = 255\n')
    for index, name in enumerate(("a/0", "b", "c")):
        mask = np.full(SHAPE, index % 2, np.uint8)
        mask[:, 0] = IGNORE
        save(tmp_path / "masks" / f"{name}.png", mask)
    save(tmp_path / "confidence" / "b.png", np.full(SHAPE, 51, np.uint8))
    return tmp_path


def save(file, pixels):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def test_images_with_a_stored_mask_carry_it_and_its_confidence(folder):
    labels = with_pseudo_labels(Photos(), folder, CLASSES, leave_out=["c"])
    assert (tuple(labels.ids), len(labels)) == (("a/0", "b"), 2)
    first, second = labels[0], labels[1]
    assert (first.label[0, 0], first.label[0, 1], second.label[0, 1]) == (IGNORE, 0, 1)
    assert (set(np.unique(first.confidence)), set(np.unique(second.confidence))) == ({255}, {51})
    assert labels.without_labels()[1].label is None


def test_a_batch_holds_rows_of_them_and_the_other_streams_stay_as_they_are(folder):
    labels = with_pseudo_labels(Photos(), folder, CLASSES, leave_out=["a/0", "c"])
    given = {"labelled": labels, "batch_labelled": 2, "geometry": Geometry(57, (1.0, 1.0)), "seed": 3}
    batch = next(train_batches(**given, pseudo=labels, batch_pseudo=4))
    assert (batch.pseudo.label.shape, batch.pseudo.confidence.dtype) == ((4, 57, 57), np.uint8)
    assert set(np.unique(batch.pseudo.label[batch.pseudo.valid])) == {1, IGNORE}
    assert set(np.unique(batch.pseudo.label[~batch.pseudo.valid])) == {IGNORE}
    assert set(np.unique(batch.pseudo.confidence[batch.pseudo.valid])) == {51}
    alone = next(train_batches(**given))
    assert alone.pseudo is None
    for one, other in zip(batch.labelled, alone.labelled, strict=True):
        np.testing.assert_array_equal(one, other)


def test_padding_says_nothing_even_where_the_labelled_rows_is_background(folder):
    labels = with_pseudo_labels(Photos(), folder, CLASSES, leave_out=())
    geometry = Geometry(57, (1.0, 1.0), pad_label=0)
    batch = next(
        train_batches(labelled=None, batch_labelled=0, pseudo=labels, batch_pseudo=2, geometry=geometry, seed=0)
    )
    assert set(np.unique(batch.pseudo.label[~batch.pseudo.valid])) == {IGNORE}


def test_the_sum_follows_every_stored_file(folder, tmp_path):
    def total():
        return content_sha256(with_pseudo_labels(Photos(), folder, CLASSES, leave_out=()))

    whole = total()
    save(folder / "confidence" / "b.png", np.full(SHAPE, 52, np.uint8))
    other_confidence = total()
    (folder / "masks" / "c.png").unlink()
    assert len({whole, other_confidence, total()}) == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: save(f / "masks" / "b.png", np.zeros((4, 4), np.uint8)), r"b\.png"),
        (lambda f: save(f / "masks" / "b.png", np.full(SHAPE, 7, np.uint8)), r"b\.png"),
        (
            lambda f: save(f / "confidence" / "b.png", np.zeros((4, 4), np.uint8)),
            r"confidence.b\.png: is not a grey image",
        ),
        (lambda f: (f / "masks" / "b.png").write_bytes(b"no image"), r"b\.png"),
    ],
)
def test_a_stored_file_that_does_not_fit_is_named(folder, damage, message):
    labels = with_pseudo_labels(Photos(), folder, CLASSES, leave_out=())
    damage(folder)
    with pytest.raises(DataError, match=message):
        labels[1]


def test_other_classes_and_no_masks_are_said(folder):
    with pytest.raises(DataError, match=r"its classes are background, cat, the data set's cat, background"):
        with_pseudo_labels(Photos(), folder, ("cat", "background"), leave_out=())
    shutil.rmtree(folder / "masks")
    with pytest.raises(DataError, match=r"no mask in masks/ is of an image of data\.pool"):
        with_pseudo_labels(Photos(), folder, CLASSES, leave_out=())
