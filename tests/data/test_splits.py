import hashlib
import os
import unicodedata
from pathlib import Path

import pytest

from forec_jax.data import DataError, class_coverage, classes_not_shown, resolve_split, select, shapes_dataset
from forec_jax.data.splits import draw, group_rule, hold_out, read_list

POOL = tuple(f"2007_{i:06d}" for i in range(40))
VALIDATION = tuple(f"2008_{i:06d}" for i in range(10))
SHARED = Path(os.environ.get("FOREC_SHARED", Path(__file__).resolve().parents[3] / "shared"))
PUBLISHED = SHARED / "data" / "published_splits"


def resolve(labelled, unlabelled="rest", **options):
    return resolve_split(
        pool_ids=POOL, validation_ids=VALIDATION, labelled=str(labelled), unlabelled=str(unlabelled), **options
    )


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


def test_a_share_of_the_rest_is_a_nested_draw_of_it():
    rest, quarter, half = (resolve("8:0", value).unlabelled for value in ("rest", "rest:0.25:3", "rest:.5:3"))
    assert (len(rest), len(quarter), len(half)) == (32, 8, 16)
    assert set(quarter) < set(half) < set(rest)
    # A pinned draw, in the pool's order.
    ranked = sorted(rest, key=lambda name: hashlib.sha256(f"3:{name}".encode()).hexdigest())
    assert quarter == tuple(name for name in POOL if name in ranked[:8])
    assert resolve("8:0", "rest:0.25:4").unlabelled != quarter
    assert resolve("8:0", "rest:1:0").unlabelled == rest
    assert len(resolve("8:0", "rest:0.001:0").unlabelled) == 1
    assert resolve("all", "rest:0.5:0").unlabelled == ()


@pytest.mark.parametrize("value", ["rest:0:0", "rest:1.5:0", "rest:0.25", "rest:x:0", "rest:0.25:-1", "rest:0.25:0:1"])
def test_no_share_of_the_rest(value):
    with pytest.raises(DataError, match=rf"data\.unlabelled='{value}' is no share .* such as 'rest:0\.25:0'"):
        resolve("8:0", value)


def test_parts_may_overlap_where_that_is_asked_for(tmp_path):
    file = write(tmp_path / "u.txt", *POOL[:3])
    with pytest.raises(DataError, match=r"3 ids .* set data\.overlap=True"):
        resolve("all", file)
    with pytest.raises(DataError, match=r"40 ids .* set data\.overlap=True"):
        resolve("all", "all")
    assert resolve("all", file, overlap=True).unlabelled == POOL[:3]
    split = resolve("8:0", "all", overlap=True)
    assert (len(split.labelled), split.unlabelled) == (8, POOL)


def test_validation_images_are_in_no_part_even_where_parts_overlap(tmp_path):
    file = write(tmp_path / "u.txt", POOL[0], VALIDATION[0])
    for labelled, unlabelled in ((file, "rest"), ("all", file)):
        with pytest.raises(DataError, match="in the validation split too"):
            resolve(labelled, unlabelled, overlap=True)
    with pytest.raises(DataError, match="unlabelled part in the validation split too"):
        resolve_split(pool_ids=POOL, validation_ids=POOL[-1:], labelled="1:5", unlabelled="all", overlap=True)


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


NAMES = tuple(f"day{k % 7}/frame{k}" for k in range(200))


def test_a_drawn_val_only_grows():
    """The share of an id's hash decides, and nothing else."""
    small, _ = hold_out(NAMES[:50], 0.2, 0)
    large, forced = hold_out(NAMES, 0.2, 0)
    assert set(small) == set(large).intersection(NAMES[:50])
    assert set(large) < set(hold_out(NAMES, 0.3, 0)[0])
    share = {name: int(hashlib.sha256(f"0:{name}".encode()).hexdigest(), 16) / 2**256 for name in NAMES}
    assert (large, forced) == (tuple(name for name in NAMES if share[name] < 0.2), False)


@pytest.mark.parametrize(("fraction", "place"), [(1e-9, 0), (1 - 1e-9, slice(0, -1))])
def test_val_and_train_have_an_image_each(fraction, place):
    ranked = sorted(POOL[:5], key=lambda name: hashlib.sha256(f"0:{name}".encode()).hexdigest())
    held, forced = hold_out(POOL[:5], fraction, 0)
    assert set(held) == set([ranked[place]] if place == 0 else ranked[place])
    assert forced


def test_groups_stay_together():
    for rule in ("folder", "^(day[0-9])/"):
        held, _ = hold_out(NAMES, 0.5, 0, group_rule(rule))
        days = {name.split("/")[0] for name in held}
        assert 0 < len(days) < 7
        assert set(held) == {name for name in NAMES if name.split("/")[0] in days}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("(day", "is no regular expression"),
        ("day", "must be 'folder', or have one group in parentheses"),
        ("(day)(.)", "must be 'folder', or have one group in parentheses"),
        ("(night)", "does not fit the image day0/frame0"),
        ("(day)", "the 200 images with masks are one group; change data.folder.val_groups"),
    ],
)
def test_groups_that_make_no_sense(rule, message):
    with pytest.raises(DataError, match=message):
        hold_out(NAMES, 0.2, 0, group_rule(rule))


def test_lists_as_windows_writes_them(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeff# mine\r\nimages\\day\\a.png\r\n\r\nb\r\n#c.png\r\n".encode())
    assert read_list(tmp_path / "a.txt", ("day/a", "a", "b", "#c.png")) == ("day/a", "b", "#c.png")


def test_the_longest_reading_of_a_line_wins(tmp_path):
    assert read_list(write(tmp_path / "a.txt", "images/day/a.png"), ("a", "day/a")) == ("day/a",)
    assert read_list(write(tmp_path / "b.txt", "images/night/a.png"), ("a", "day/a")) == ("a",)


def test_names_of_another_unicode_form_are_known(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "M\u00fcll") for form in ("NFC", "NFD"))
    assert read_list(write(tmp_path / "a.txt", decomposed), (composed,)) == (composed,)
    assert read_list(write(tmp_path / "b.txt", composed), (decomposed,)) == (decomposed,)


def test_classes_that_no_mask_shows_are_named():
    source = shapes_dataset(size=48).source("val")
    one = select(source, source.ids[:1])
    names = tuple("abcdefg")
    shown = {names[k] for k in set(one[0].label.ravel().tolist())}
    assert classes_not_shown(one, names) == tuple(name for name in names if name not in shown)
    assert classes_not_shown(source, names) == ()
