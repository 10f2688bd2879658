import hashlib
import os
from pathlib import Path

import pytest

from forec_jax.data import DataError, class_coverage, resolve_split, select, shapes_dataset
from forec_jax.data.splits import draw, read_list

POOL = tuple(f"2007_{i:06d}" for i in range(40))
VALIDATION = tuple(f"2008_{i:06d}" for i in range(10))
SHARED = Path(os.environ.get("FOREC_SHARED", Path(__file__).resolve().parents[3] / "shared"))
PUBLISHED = SHARED / "data" / "published_splits"


def resolve(labelled, unlabelled="rest"):
    return resolve_split(pool_ids=POOL, validation_ids=VALIDATION, labelled=str(labelled), unlabelled=str(unlabelled))


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "line",
    [
        "2007_000003",
        "JPEGImages/2007_000003.jpg",
        "JPEGImages/2007_000003.jpg SegmentationClass/2007_000003.png",
        "/JPEGImages/2007_000003.jpg /SegmentationClassAug/2007_000003.png",
        "  2007_000003  ",
    ],
)
def test_the_published_formats_of_a_line(tmp_path, line):
    split = resolve(write(tmp_path / "labeled.txt", line, ""))
    assert split.labelled == ("2007_000003",)
    assert len(split.unlabelled) == 39


def test_cityscapes_lines(tmp_path):
    name = "jena_000078_000019"
    image, mask = f"leftImg8bit/train/jena/{name}_leftImg8bit.png", f"gtFine/train/jena/{name}_gtFine_labelTrainIds.png"
    assert read_list(write(tmp_path / "a.txt", f"{image} {mask}"), (name,)) == (name,)
    assert read_list(write(tmp_path / "b.txt", image), (name,)) == (name,)


def test_names_with_dots_spaces_and_folders_are_taken_as_they_are_known(tmp_path):
    known = ("a.v2", "my image", "left/x", "x.y.jpg")
    file = write(tmp_path / "a.txt", "a.v2", "my image.png", "left/x.png", "x.y.jpg")
    assert read_list(file, known) == known


def test_a_draw_is_nested_and_follows_neither_the_order_of_the_pool_nor_its_other_images():
    small, large = draw(POOL, 5, 3), draw(POOL, 20, 3)
    assert len(small) == 5
    assert set(small) < set(large)
    assert set(draw(POOL[::-1], 5, 3)) == set(small)
    assert draw(POOL, 5, 4) != small
    # A pinned draw: results that name "5:3" rely on it.
    ranked = sorted(POOL, key=lambda name: hashlib.sha256(f"3:{name}".encode()).hexdigest())
    assert set(small) == set(ranked[:5])


def test_parts_of_a_draw():
    split = resolve("8:0")
    assert split.name == "8:0"
    assert not set(split.labelled) & set(split.unlabelled)
    assert set(split.labelled) | set(split.unlabelled) == set(POOL)
    assert split.sha256 == hashlib.sha256("\n".join(sorted(split.labelled)).encode()).hexdigest()
    assert resolve("8:0", "none").unlabelled == ()


def test_all_labelled():
    split = resolve("all")
    assert (split.name, split.labelled, split.unlabelled) == ("all", POOL, ())


def test_equal_lists_have_equal_sums_and_names_without_machine_paths(tmp_path):
    (tmp_path / "92").mkdir()
    first = resolve(write(tmp_path / "92" / "labeled.txt", POOL[1], POOL[0]))
    second = resolve(write(tmp_path / "b.txt", f"JPEGImages/{POOL[0]}.jpg x.png", POOL[1]))
    assert first.sha256 == second.sha256
    assert first.name == "92/labeled"


def test_an_unlabelled_list(tmp_path):
    split = resolve("8:0", write(tmp_path / "u.txt", *resolve("8:0").unlabelled[:3]))
    assert len(split.unlabelled) == 3


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("2007_999999",), r"labelled part not in the pool of 40"),
        ((POOL[0], POOL[0]), "more than once"),
        ((VALIDATION[0],), "validation"),
        ((), "empty"),
    ],
)
def test_bad_labelled_lists(tmp_path, lines, message):
    path = write(tmp_path / "list.txt", *lines)
    with pytest.raises(DataError, match=message) as caught:
        resolve(path)
    assert str(path) in str(caught.value)


def test_bad_unlabelled_lists(tmp_path):
    with pytest.raises(DataError, match=r"labelled part .* too"):
        resolve("all", write(tmp_path / "u.txt", POOL[0]))
    with pytest.raises(DataError, match="unlabelled part in the validation split"):
        resolve("8:0", write(tmp_path / "u.txt", VALIDATION[0]))
    with pytest.raises(DataError, match="unlabelled part not in the pool"):
        resolve("8:0", write(tmp_path / "u.txt", "nothing"))


def test_a_pool_that_holds_validation_images_does_not_leak_them():
    def split(unlabelled):
        return resolve_split(pool_ids=POOL, validation_ids=POOL[-3:], labelled="1:5", unlabelled=unlabelled)

    with pytest.raises(DataError, match="validation"):
        split("rest")
    assert split("none").unlabelled == ()


def test_missing_and_binary_lists(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.txt: cannot read"):
        resolve(tmp_path / "nowhere.txt")
    (tmp_path / "x.txt").write_bytes(b"2007_000001\n\xff\x00\x81")
    with pytest.raises(DataError, match=r"x\.txt, line 2: the byte 0xff is no UTF-8; save the file as UTF-8"):
        resolve(tmp_path / "x.txt")


@pytest.mark.parametrize("spec", ["0:1", "41:1"])
def test_a_draw_larger_than_the_pool(spec):
    with pytest.raises(DataError, match="pool of 40"):
        resolve(spec)


def test_class_coverage_names_what_no_mask_shows():
    source = shapes_dataset(size=48).source("train")
    assert class_coverage(source, 7) == ()
    main = source.scene(0).things
    single = select(source, source.ids[:1])
    missing = class_coverage(single, 7)
    assert 0 not in missing
    assert main[-1].class_index not in missing
    assert class_coverage(source.without_labels(), 7) == tuple(range(7))


def test_selecting_an_unknown_id():
    with pytest.raises(DataError, match="not in the source"):
        select(shapes_dataset().source("val"), ["train_00000"])


def published(pattern):
    return sorted(PUBLISHED.glob(pattern))


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published lists are not here; set FOREC_SHARED to their folder")
def test_every_published_list_is_read():
    files = published("**/*.txt")
    assert len(files) > 40
    for file in files:
        ids = read_list(file, ())
        lines = [line for line in file.read_text().splitlines() if line.strip()]
        assert len(ids) == len(lines), file
        assert not any("/" in name or "." in name or "leftImg8bit" in name for name in ids), file


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published lists are not here; set FOREC_SHARED to their folder")
def test_the_classic_lists_agree_whatever_their_format():
    names = ("U2PL/pascal/92/labeled.txt", "UniMatch/pascal/92/labeled.txt", "PS-MT/92_train_supervised.txt")
    pool = read_list(PUBLISHED / "UniMatch" / "pascal" / "train_aug.txt", ())
    validation = read_list(PUBLISHED / "UniMatch" / "pascal" / "val.txt", ())
    splits = [
        resolve_split(pool_ids=pool, validation_ids=validation, labelled=str(PUBLISHED / name), unlabelled="rest")
        for name in names
    ]
    assert len({split.sha256 for split in splits}) == 1
    assert [(len(split.labelled), len(split.unlabelled)) for split in splits] == [(92, 10582 - 92)] * 3
