"""From files of annotations to what configs/folder.py reads."""

import json
import logging

import numpy as np
import pytest
from annotated import photo
from PIL import Image

from forec_jax import cli
from forec_jax.annotations import Request, import_annotations
from forec_jax.data import DataError, folder_dataset

CAT, DOG = [1, 1, 9, 1, 9, 9, 1, 9], [5, 5, 13, 5, 13, 11, 5, 11]


def coco(file, images, shapes, names=("cat", "dog"), size=(12, 16)):
    """A COCO file of (image, category, outline)s; images are named and have ids from 1 on."""
    listed = [{"id": k, "file_name": name, "height": size[0], "width": size[1]} for k, name in enumerate(images, 1)]
    drawn = [
        {"id": k, "image_id": image, "category_id": category, "segmentation": [outline]}
        for k, (image, category, outline) in enumerate(shapes)
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(names, 1)]
    file.write_text(json.dumps({"images": listed, "annotations": drawn, "categories": categories}))
    return file


@pytest.fixture
def animals(tmp_path):
    """Four images: two with a cat and a dog, one on which nothing is drawn, one that is not listed, and one in a folder."""
    for name in ("a.png", "b.jpg", "c.png", "day/d.png"):
        photo(tmp_path / "photos" / name)
    shapes = [(1, 1, CAT), (1, 2, DOG), (2, 1, DOG), (2, 2, CAT)]
    return coco(tmp_path / "f.json", ["a.png", "b.jpg", "c.png"], shapes)


@pytest.fixture
def run(tmp_path, animals):
    def run(out="OUT", **options):
        request = Request(**{"kind": "coco", "annotations": animals, "images": tmp_path / "photos"} | options)
        return import_annotations(request, None if out is None else tmp_path / out)

    return run


def files(folder):
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def mask(folder, name):
    with Image.open(folder / "masks" / name) as image:
        return np.asarray(image)


def test_it_is_a_folder_data_set(run, tmp_path):
    """The cat is of 8 x 8 pixels and the dog of 8 x 6, 4 x 4 of them in both."""
    summary = run()
    out = tmp_path / "OUT"
    written = {"classes.toml", "images/a.png", "images/b.jpg", "masks/a.png", "masks/b.png"}
    written |= {"unlabelled/c.png", "unlabelled/day/d.png", "previews/0.png", "previews/1.png"}
    assert files(out) == written
    assert (out / "images" / "b.jpg").read_bytes() == (tmp_path / "photos" / "b.jpg").read_bytes()
    assert summary.contested == 2 * 16
    assert summary.pixels[:3].tolist() == [2 * (192 - 96), 48 + 48, 48 + 48]
    assert summary.images[:3].tolist() == [2, 2, 2]
    expected = np.zeros((12, 16), np.uint8)
    expected[1:9, 1:9] = 1
    expected[5:11, 5:13] = 2
    np.testing.assert_array_equal(mask(out, "a.png"), expected)
    data = folder_dataset(out, tmp_path / "prepared")
    assert (data.classes, data.background_classes) == (("background", "cat", "dog"), (0,))
    assert len(data.source("val")) == 1
    assert sorted(data.source("train").ids) == sorted({"a", "b", "c", "day/d"} - set(data.source("val").ids))


def test_the_smaller_or_the_later_is_seen(run, tmp_path):
    """In b the outlines are exchanged: its cat is smaller, and its dog later."""
    run()
    assert mask(tmp_path / "OUT", "b.png")[6, 6] == 1
    run("OTHER", overlap="order")
    assert mask(tmp_path / "OTHER", "b.png")[6, 6] == 2


def test_objects_of_one_class_do_not_contest(run, tmp_path):
    coco(tmp_path / "f.json", ["a.png"], [(1, 1, CAT), (1, 1, DOG)])
    assert run().contested == 0


def test_nothing_drawn_may_mean_background(run, tmp_path):
    summary = run(empty="background")
    assert not mask(tmp_path / "OUT", "c.png").any()
    assert (len(summary.labelled), len(summary.unlabelled)) == (3, 1)


def test_classes_may_be_chosen_and_the_rest_be_void(run, tmp_path):
    summary = run(classes=("dog", "background"), uncovered="void")
    assert summary.gathered.unwanted == {"cat": 2}
    assert set(np.unique(mask(tmp_path / "OUT", "a.png"))) == {0, 255}
    assert (tmp_path / "OUT" / "classes.toml").read_text().startswith('names = ["dog", "background"]\nbackground')
    run("MORE", classes=("dog",))  # the cat is background, and hides the dog in b
    assert set(np.unique(mask(tmp_path / "MORE", "a.png"))) == {0, 1}
    assert mask(tmp_path / "MORE", "b.png")[6, 6] == 0
    with pytest.raises(DataError, match=r"--classes: bird are not there; the annotations have cat, dog"):
        run("OTHER", classes=("bird",))
    with pytest.raises(DataError, match=r"has 1 classes \(dog\); a data set has 2"):
        run("OTHER", classes=("dog",), uncovered="void")


def test_val_has_its_own_annotations_or_a_list(run, tmp_path, caplog):
    val = coco(tmp_path / "v.json", ["day/d.png", "gone.png"], [(1, 1, CAT)])
    summary = run(val_annotations=val, classes=("cat",))
    out = tmp_path / "OUT"
    assert (out / "val.txt").read_text() == "day/d\n"
    assert (out / "train.txt").read_text() == "a\nb\n"
    assert [picture.id for picture in summary.unlabelled] == ["c"]
    assert "gone.png: annotated, and not in" in caplog.text
    assert folder_dataset(out, tmp_path / "prepared").source("train").ids == ("a", "b", "c")
    (tmp_path / "list.txt").write_text("b.jpg\n")
    assert run("OTHER", val_list=tmp_path / "list.txt").val == {"b"}
    (tmp_path / "list.txt").write_text("b\na\n")
    with pytest.raises(DataError, match="every image with a mask is in val; leave some to train on"):
        run("MORE", val_list=tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("c.png\n")
    with pytest.raises(DataError, match=r"list\.txt: c are no images with masks"):
        run("MORE", val_list=tmp_path / "list.txt")
    with pytest.raises(DataError, match=r"a\.png: is in --annotations and in --val_annotations"):
        run("MORE", val_annotations=coco(tmp_path / "v.json", ["a.png"], [(1, 1, CAT)]))


def test_names_that_would_collide_are_refused(run, tmp_path):
    photo(tmp_path / "more" / "A.jpg")
    val = coco(tmp_path / "v.json", ["A.jpg"], [(1, 1, CAT)])
    with pytest.raises(DataError, match=r"photos/a\.png and .*more/A\.jpg would have the same name, A; rename one"):
        run(val_annotations=val, val_images=tmp_path / "more")
    assert not (tmp_path / "OUT").exists()


@pytest.mark.parametrize(
    ("images", "shapes", "says"),
    [
        (["../photos/a.png"], [], r"f\.json: the image '\.\./photos/a\.png' lies outside of --images"),
        (["a.png", "x/a.png"], [], r"photos/a\.png is annotated twice, as a\.png in .*f\.json and as x/a\.png"),
        (["gone.png"], [(1, 1, CAT)], r"none of the 1 images that it names \(the first is 'gone\.png'\) is in"),
        (["a.png"], [], r"f\.json: nothing is drawn on any image"),
    ],
)
def test_what_cannot_be_imported_leaves_nothing(run, tmp_path, images, shapes, says):
    coco(tmp_path / "f.json", images, shapes)
    with pytest.raises(DataError, match=says):
        run()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["f.json", "photos"]


def test_what_is_written_is_not_read(run):
    with pytest.raises(DataError, match=r"--out=.*photos/OUT lies in --images=.*photos, and would be read with it"):
        run("photos/OUT")


def test_sizes_that_disagree_are_named(run, tmp_path):
    coco(tmp_path / "f.json", ["a.png"], [(1, 1, CAT)], size=(24, 32))
    with pytest.raises(DataError, match=r"a\.png was annotated at 32x24 pixels, and .*photos/a\.png has 16x12"):
        run()


def test_outlines_are_cut_off_and_left_out_with_a_word(run, tmp_path, caplog):
    outlines = [[-5, -5, 4, -5, 4, 4, -5, 4], [1, 1, 5, 5, 9, 9], [2.1, 2.1, 2.3, 2.1, 2.3, 2.3], [20, 1, 30, 1, 30, 9]]
    coco(tmp_path / "f.json", ["a.png"], [(1, 1, outline) for outline in outlines])
    summary = run()
    assert (summary.objects, summary.pixels[1]) == (1, 16)
    for word in (
        "an object reaches out of the image; what is outside is cut off",
        "an object has no area; it is left out",
        "an object covers no pixel; it is left out",
        "an object lies outside the image; it is left out",
    ):
        assert f"a.png: {word}" in caplog.text


def test_an_image_of_which_nothing_is_left_has_no_mask(run, tmp_path):
    coco(tmp_path / "f.json", ["a.png", "b.jpg"], [(1, 1, [1, 1, 5, 5, 9, 9]), (2, 1, CAT)])
    assert [picture.id for picture in run().unlabelled] == ["a", "c", "day/d"]


@pytest.mark.parametrize("names", [["cat\n", "dog"], [" ", "dog"], [f"c{k}" for k in range(300)]])
def test_names_that_no_class_file_holds_are_refused(run, tmp_path, names):
    coco(tmp_path / "f.json", ["a.png"], [(1, 1, CAT)], names)
    with pytest.raises(DataError, match=r"is no name of a class|has 301 classes"):
        run()


def test_names_of_any_script_and_quotes_are_kept(run, tmp_path):
    names = ['a "b" \\', "\u732b\U0001f431"]
    coco(tmp_path / "f.json", ["a.png", "b.jpg"], [(1, 1, CAT), (2, 2, CAT)], names)
    run()
    assert folder_dataset(tmp_path / "OUT", tmp_path / "prepared").classes == ("background", *names)


def turned(file, orientation, height, width):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return photo(file, height, width, exif=exif)


UPRIGHT = [0, 0, 2, 0, 2, 1, 0, 1]  # two pixels in the upper left corner


@pytest.mark.parametrize(
    ("orientation", "stored", "drawn", "follow", "rows", "word"),
    [
        (1, (4, 6), (4, 6), "file", ["##....", "......"], ""),
        (6, (4, 6), (6, 4), "display", ["##..", "...."], ""),  # shown at 4 x 6
        (6, (4, 6), (4, 6), "display", ["...#", "...#", "...."], "was drawn on before it was turned"),
        (6, (4, 4), (4, 4), "display", ["##..", "...."], "has an orientation tag, and its size does not tell"),
        (6, (4, 4), (4, 4), "file", ["...#", "...#", "...."], ""),
    ],
)
def test_what_is_drawn_on_photographs_with_an_orientation_tag(
    run, tmp_path, caplog, orientation, stored, drawn, follow, rows, word
):
    turned(tmp_path / "photos" / "b.jpg", orientation, *stored)
    coco(tmp_path / "f.json", ["b.jpg"], [(1, 1, UPRIGHT)], size=drawn)
    run(follow=follow)
    found = ["".join(".#"[k] for k in row) for row in mask(tmp_path / "OUT", "b.png").tolist()]
    assert found[: len(rows)] == rows
    assert sum(row.count("#") for row in found) == 2
    assert (f"b.jpg: {word}" in caplog.text) if word else not caplog.records


def test_an_image_that_is_too_large_is_not_decoded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(DataError, match=r"a\.png: too many pixels"):
        run()


def command(tmp_path, *more):
    flags = ["--from=coco", f"--annotations={tmp_path / 'f.json'}", f"--images={tmp_path / 'photos'}"]
    return cli.run(["import", *flags, f"--out={tmp_path / 'OUT'}", *more])


def test_the_command_ends_with_a_table_and_what_is_next(animals, tmp_path, capsys):
    assert command(tmp_path) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["class", "pixels", "share", "images"]
    assert lines[2].split() == ["cat", "96", "25.00", "%", "2"]
    assert "2 images with masks; 4 objects" in out
    assert "2 images without masks, in unlabelled/; on 1 of them nothing is drawn (--empty=background makes" in out
    assert "32 pixels lie in objects of different classes: the smaller one is seen (--overlap=order" in out
    assert lines[-1].strip().startswith("forec-jax train --config=configs/folder.py:small+forec --config.data.root=")
    assert command(tmp_path) == 2
    assert "OUT: exists and is not an empty folder; choose another --out" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(animals, tmp_path, capsys):
    assert command(tmp_path, "--dry-run", "--classes=cat") == 0
    out = capsys.readouterr().out
    assert "2 objects of dog, which is not among --classes, become background" in out
    assert "nothing was written" in out
    assert not (tmp_path / "OUT").exists()


def test_a_missing_library_is_named(animals, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    assert command(tmp_path) == 2
    assert "need pycocotools, which is not installed: pip install 'forec-jax[import]'" in capsys.readouterr().err


def test_the_log_has_no_word_where_all_is_well(run, caplog):
    with caplog.at_level(logging.WARNING):
        run()
    assert not caplog.records
