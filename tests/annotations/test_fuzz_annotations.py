"""Annotations of unknown origin: each ends in an import, or in a message that names a file, and never elsewhere."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from annotated import FILES, photo
from hypothesis import strategies as st
from PIL import Image
from test_fuzz import allowed, changed_json, damaged, few_or_many, fuzz, in_an_encoding

from forec_jax.annotations import Request, import_annotations
from forec_jax.annotations.drawn import NothingDrawn
from forec_jax.annotations.gather import FORMATS, gather
from forec_jax.annotations.jsonfile import Node
from forec_jax.annotations.outline import by_centres, by_touch, circle_by_touch, rectangle_by_touch
from forec_jax.annotations.paint import Rule, paint
from forec_jax.annotations.runs import counts_of_text, mask_of_picture, mask_of_runs
from forec_jax.data import DataError
from forec_jax.data.remarks import Remarks

SIZE = 12, 16
COCO = {
    "images": [{"id": 1, "file_name": "photo.png", "height": 12, "width": 16}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": 0,
            "segmentation": [[1, 1, 9.5, 1, 9, 9], [3, 3, 4, 9, 8, 8]],
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 2,
            "iscrowd": 1,
            "segmentation": {"size": [12, 16], "counts": [3, 9, 180]},
        },
        {"id": 3, "image_id": 1, "category_id": 2, "segmentation": {"size": [12, 16], "counts": "3X1;P4"}},
    ],
}
POLYGONS = json.loads((FILES / "frankfurt_000000_000001_gtFine_polygons.json").read_text())
WHOLE = {
    "coco": COCO,
    "labelme": json.loads((FILES / "labelme.json").read_text()) | {"imageData": None},
    "cityscapes": POLYGONS,
}

NAMES = {
    "coco": "f.json",
    "labelme": "json/photo.json",
    "cityscapes": "json/photo_polygons.json",
    "cvat": "annotations.xml",
}


def contents(kind):
    if kind == "cvat":
        whole = [(FILES / "cvat.xml").read_bytes().replace(b"a.png", b"photo.png").replace(b'"8"', b'"16"')]
        return st.one_of(damaged(whole), in_an_encoding(damaged(whole)), st.binary(max_size=60))
    whole = [json.dumps(WHOLE[kind]).encode()]
    deep = st.integers(1, 10_000).map(lambda depth: b'{"images":' + b"[" * depth)
    return st.one_of(
        changed_json(WHOLE[kind]), changed_json(WHOLE[kind]), damaged(whole), in_an_encoding(damaged(whole)), deep
    )


@few_or_many
@pytest.mark.parametrize("kind", list(NAMES))
def test_files_of_annotations(tmp_path, cases, kind):
    """Read and painted; nothing is written, and no name leads to the image that lies outside."""
    photo(tmp_path / "images" / "photo.png")
    photo(tmp_path / "outside.png")
    file = tmp_path / NAMES[kind]
    file.parent.mkdir(exist_ok=True)
    given = file.parent if "/" in NAMES[kind] else file

    def check(content):
        file.write_bytes(content)
        remarks = Remarks()
        request = Request(kind=kind, annotations=given, images=tmp_path / "images")
        with allowed(DataError, str(tmp_path)):
            found = gather(request, remarks)
            rule = Rule({name: k for k, name in enumerate(found.classes)}, 0, FORMATS[kind].overlap)
            for picture in found.pictures:
                assert picture.path == "photo.png"
                if picture.drawn is not None:
                    label = paint(picture.drawn, SIZE, rule, remarks).label
                    assert label.shape == SIZE
                    assert set(np.unique(label).tolist()) <= {*range(len(found.classes)), 255}

    fuzz(cases, contents(kind), check)


@st.composite
def folder_of_masks(draw, kind):
    """Masks by path, some of them damaged or under other names."""
    buffer = io.BytesIO()
    pixels = np.zeros(SIZE, np.uint8)
    pixels[3:5, 4:9] = 1
    Image.fromarray(pixels).save(buffer, draw(st.sampled_from(["PNG", "BMP", "TIFF", "JPEG", "GIF"])))
    names = [
        "photo.png",
        "photo_cat.png",
        "cat/photo.png",
        "cat/photo_x.png",
        "photo_.png",
        "_photo.png",
        "cat/x/photo.tif",
    ]
    files = {name: buffer.getvalue() for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))}
    if draw(st.booleans()):
        files[draw(st.sampled_from(sorted(files)))] = draw(damaged([buffer.getvalue()]))
    if kind == "voc" and draw(st.booleans()):
        text = draw(damaged([b"# label\nbackground:0,0,0::\ncat:1,1,1::\n", b"_background_\ncat\n"]))
        files[draw(st.sampled_from(["labelmap.txt", "class_names.txt"]))] = text
    return files


@few_or_many
@pytest.mark.parametrize("kind", ["voc", "masks"])
def test_folders_of_masks(tmp_path, cases, kind):
    """Down to the data set on the disk, which is whole or not there."""
    photo(tmp_path / "images" / "photo.png")

    def check(files):
        for name, content in files.items():
            (tmp_path / "given" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "given" / name).write_bytes(content)
        request = Request(kind=kind, annotations=tmp_path / "given", images=tmp_path / "images")
        with allowed(DataError, str(tmp_path)):
            import_annotations(request, tmp_path / "OUT")
            assert (tmp_path / "OUT" / "classes.toml").exists()
        assert {file.name for file in tmp_path.iterdir()} <= {"given", "images", "OUT"}
        for name in ("given", "OUT"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)

    fuzz(cases // 4, folder_of_masks(kind), check)


NUMBERS = st.one_of(st.floats(-1e9, 1e9), st.integers(-20, 40), st.sampled_from([0, 1e-300, 1e9, -1e9, 0.5]))
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=8).map(lambda points: np.array(points, float).reshape(-1, 2))


@few_or_many
def test_outlines(cases):
    """Of any numbers: a mask of the image's size; pixels of one wholly inside lie between its outermost points."""

    def check(points):
        draws = [lambda: by_centres([points], "f", SIZE), lambda: by_touch(points, "f", SIZE)]
        if len(points) > 1:
            draws.append(lambda: rectangle_by_touch(points[:2], SIZE))
            draws.append(lambda: circle_by_touch(points[0], abs(points[1, 0]), "f", SIZE))
        for draw in draws[:2]:
            try:
                mask = draw()
            except NothingDrawn:
                continue
            assert (mask.shape, mask.dtype) == (SIZE, bool)
            if mask.any():
                (top, left), (bottom, right) = np.argwhere(mask).min(axis=0), np.argwhere(mask).max(axis=0)
                low, high = points.min(axis=0), points.max(axis=0)
                assert left >= low[0] - 1
                assert top >= low[1] - 1
                assert right <= high[0] + 1
                assert bottom <= high[1] + 1
        for draw in draws[2:]:
            assert draw().shape == SIZE

    fuzz(cases, POINTS, check)


@few_or_many
def test_masks_in_text(cases):
    buffer = io.BytesIO()
    Image.fromarray(np.eye(5, dtype=np.uint8)).save(buffer, "PNG")

    def check(drawn):
        text, picture, counts = drawn
        with allowed(DataError, "f.json"):
            assert mask_of_runs(counts_of_text(text, "f.json"), SIZE, "columns", "f.json").shape == SIZE
        with allowed(DataError, "f.json"):
            assert mask_of_picture(base64.b64encode(picture).decode(), "f.json").ndim == 2
        with allowed(DataError, "f.json"):
            assert (
                mask_of_runs([n.whole() for n in Node(counts, "f.json").each()], SIZE, "rows", "f.json").shape == SIZE
            )

    texts = st.one_of(st.text(max_size=20), st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=30))
    counts = st.lists(st.one_of(st.integers(-5, 192), st.integers()), max_size=6)
    fuzz(cases, st.tuples(texts, damaged([buffer.getvalue()]), counts), check)
