import dataclasses
import unicodedata

import numpy as np
import pytest

from forec_jax.config import defaults
from forec_jax.data import (
    DataError,
    Dataset,
    Example,
    Labels,
    WithTags,
    read_tags,
    shapes_dataset,
    tags_of_masks,
)
from forec_jax.data.chosen import one_against_rest
from forec_jax.data.tags import balanced, check_tags, tag_indices, tags_of_folders
from forec_jax.experiment import sources
from forec_jax.methods.tag_classifier import foreground_classes
from forec_jax.options import OptionError

IDS = ("cat/a", "cat/b", "dog/c", "none/d")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images of one grey each; opening a mask is an error where it is forbidden."""

    ids: tuple[str, ...]
    masks: str = "yes"  # "yes", "no", "forbidden"

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        assert self.masks != "forbidden", "a mask was opened"
        label = np.full((40, 40), index, np.uint8) if self.masks == "yes" else None
        return Example(self.ids[index], np.full((40, 40, 3), 50 * index, np.uint8), label)

    def without_labels(self):
        return Pictures(self.ids, "no")


def write(folder, text):
    (folder / "tags.csv").write_text(text)
    return folder / "tags.csv"


def test_a_csv_names_images_by_id_or_path(tmp_path):
    lines = "image,tags\ncat/a,cat\nimages/cat/b.jpg,cat; dog\n/data/dog/c.png,dog\nnone/d,background\n"
    named = read_tags(write(tmp_path, lines), IDS)
    assert named == {"cat/a": ("cat",), "cat/b": ("cat", "dog"), "dog/c": ("dog",), "none/d": ("background",)}
    tags = tag_indices(named, ("sky", "cat", "dog"), ("sky", "cat", "dog"))
    assert tags == {"cat/a": {1}, "cat/b": {1, 2}, "dog/c": {2}, "none/d": set()}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cat/b,", "line 2: cat/b has no tag"),
        ("cat/b,cat,dog", "line 2: .* is not of the form image,tag;tag"),
        ("cat/x,cat", "line 2: 'cat/x' is no image of the pool"),
        ("cat/a,dog", "line 2: cat/a is there twice"),
        ("", r"3 images have no tag \(cat/b, dog/c, none/d\)"),
    ],
)
def test_what_is_wrong_with_a_csv_is_named(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        read_tags(write(tmp_path, f"cat/a,cat\n{line}\n"), IDS)


def test_a_missing_csv_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: cannot be read"):
        read_tags(tmp_path / "none.csv", IDS)


def test_a_folder_is_a_tag():
    assert tags_of_folders(("cat/a", "dog/old/c")) == {"cat/a": ("cat",), "dog/old/c": ("dog",)}
    with pytest.raises(DataError, match=r"lie in no folder of a class \(e\)"):
        tags_of_folders(("cat/a", "e"))


def test_an_unknown_tag_is_named_and_other_classes_are_the_rest():
    named = {"a": ("dog",), "b": ("cat",)}
    assert tag_indices(named, ("background", "cat", "dog"), ("background", "dog")) == {"a": {1}, "b": set()}
    with pytest.raises(DataError, match="a: unknown tag 'dog'; the classes are background, cat"):
        tag_indices(named, ("background", "cat"), ("background", "cat"))


def test_a_tag_that_no_image_or_every_image_has_cannot_be_learned():
    classes = ("background", "cat", "dog")
    check_tags({"a": frozenset({1}), "b": frozenset({2})}, classes, (1, 2))
    with pytest.raises(DataError, match="no image has the tag 'dog'"):
        check_tags({"a": frozenset({1}), "b": frozenset()}, classes, (1, 2))
    with pytest.raises(DataError, match="every image has the tag 'cat'"):
        check_tags({"a": frozenset({1}), "b": frozenset({1, 2})}, classes, (1, 2))


def test_one_class_against_the_rest():
    dataset = one_against_rest(shapes_dataset(size=48, counts={"train": 12}), "star")
    whole = shapes_dataset(size=48, counts={"train": 12}).source("train")
    assert (dataset.classes, dataset.background_classes) == (("background", "star"), (0,))
    for index, example in enumerate(dataset.source("train").source):
        np.testing.assert_array_equal(dataset.source("train")[index].label, (whole[index].label == 4).astype(np.uint8))
        assert example.id == whole[index].id
    assert dataset.source("train").without_labels()[0].label is None


def test_void_stays_void():
    @dataclasses.dataclass(frozen=True)
    class Void(Pictures):
        def __getitem__(self, index):
            return super().__getitem__(index)._replace(label=np.array([[0, 2, 1, 255]], np.uint8))

    dataset = Dataset("toy", ("sky", "cat", "dog"), ((0, 0, 0),) * 3, {"train": Void(("a",))})
    np.testing.assert_array_equal(one_against_rest(dataset, "dog").source("train")[0].label, [[0, 1, 0, 255]])


def test_balanced_repeats_the_rarer_side():
    tags = {name: frozenset({1} if name == "dog/c" else ()) for name in IDS}
    ids = balanced(Pictures(IDS), tags, 1).ids
    assert sorted(ids) == ["cat/a", "cat/b", "dog/c", "dog/c", "dog/c", "none/d"]


def test_tags_from_masks():
    assert tags_of_masks(Pictures(IDS), 3) == {"cat/a": {0}, "cat/b": {1}, "dog/c": {2}, "none/d": set()}
    with pytest.raises(DataError, match="tags come from the mask"):
        tags_of_masks(Pictures(IDS, "no"), 3)


def tagged_config(tags):
    c = defaults()
    c.data.name, c.data.tags, c.data.crop = "shapes", tags, 33
    c.batch.labelled, c.batch.unlabelled, c.batch.tagged = 0, 0, 2
    return c


def test_a_run_with_tags_from_a_file_opens_no_mask_of_its_pool(tmp_path, monkeypatch):
    """Neither while it is built nor while it trains."""
    pool = Pictures(IDS, "forbidden")
    dataset = Dataset("toy", ("sky", "cat", "dog"), ((0, 0, 0),) * 3, {"train": pool, "val": Pictures(("v",))})
    monkeypatch.setattr(sources, "build_full_dataset", lambda c, val_ids=None: dataset)
    csv = write(tmp_path, "cat/a,cat\ncat/b,cat\ndog/c,dog\nnone/d,background\n")
    for tag, width in (("", 3), ("dog", 2)):
        c = tagged_config(str(csv))
        c.data.tag = tag
        data = sources.build_training_data(c)
        stream = sources.build_streams(c, data).batches(0)
        batches = [next(stream) for _ in range(4)]
        assert all(batch.labelled is None and batch.unlabelled is None for batch in batches)
        assert batches[0].tagged.tags.shape == (2, width)
        assert data.tagged[list(data.tagged.ids).index("dog/c")].tags.tolist() == [0] * (width - 1) + [1]


def test_masks_are_opened_before_the_training_only():
    c = tagged_config("masks")
    c.data.shapes.size = 48
    data = sources.build_training_data(c)
    assert isinstance(data.tagged, WithTags)
    assert data.tagged.tags is not None
    assert data.tagged.source[0].label is None
    assert (len(data.split.tagged), data.split.labelled) == (512, ())


def test_a_pool_that_is_evaluated_on_is_an_error(monkeypatch):
    pool = Pictures(IDS)
    dataset = Dataset("toy", ("sky", "cat", "dog"), ((0, 0, 0),) * 3, {"train": pool, "val": Pictures(("cat/a",))})
    monkeypatch.setattr(sources, "build_full_dataset", lambda c, val_ids=None: dataset)
    with pytest.raises(DataError, match=r"1 id \(cat/a\) is of the tagged part in the validation split too"):
        sources.build_training_data(tagged_config("masks"))


def test_an_unknown_class_is_named():
    c = tagged_config("masks")
    c.data.tag = "background"
    with pytest.raises(OptionError, match=r"data\.tag='background': choose one of 'disc'"):
        sources.build_training_data(c)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Labels(("background",), ((0, 0, 0),), (0,)), "need a background and a class"),
        (Labels(("a", "b"), ((0, 0, 0),) * 2, ()), "need one background class, not 0"),
    ],
)
def test_tags_need_a_background_and_a_class(labels, message):
    with pytest.raises(OptionError, match=message):
        foreground_classes(labels)


def test_a_tag_list_as_windows_writes_it(tmp_path):
    file = tmp_path / "tags.csv"
    file.write_bytes("image,tags\r\nimages\\a.png,cat\r\nM\u00fcll.png,dog\r\n".encode("utf-16"))
    decomposed = unicodedata.normalize("NFD", "M\u00fcll")
    assert read_tags(file, ("a", decomposed)) == {"a": ("cat",), decomposed: ("dog",)}
