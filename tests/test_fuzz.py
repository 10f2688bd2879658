"""Malformed files: every reader says what is wrong with which file, and does nothing else.

Each test has a few cases here and thousands with -m slow. Whole files are damaged where random bytes would end at the first
check: bytes overwritten, cut off, inserted.
"""

import copy
import io
import json
import os
import pickle
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file
from scipy.io import savemat

from forec_jax.contracts import IGNORE, UNLABELLED
from forec_jax.data import DataError
from forec_jax.data.classfile import read_classes
from forec_jax.data.datasets.folder import folder_dataset
from forec_jax.data.decode import Photo, decode_mask_of
from forec_jax.data.imagefile import SUFFIXES
from forec_jax.data.remarks import Remarks
from forec_jax.data.rules import ColourRule, MaskRule
from forec_jax.data.splits import read_list
from forec_jax.data.tags import read_tags
from forec_jax.data.voc_masks import read_sbd_mask, read_voc_mask
from forec_jax.evaluation import read_photo
from forec_jax.models.pretrained import load_weights
from forec_jax.models.weightfile import WeightsError, read_tensors

FEW, MANY = 40, int(os.environ.get("FOREC_FUZZ_CASES", "2000"))
few_or_many = pytest.mark.parametrize("cases", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


def fuzz(cases, strategy, check):
    """Runs `check` on so many draws."""
    quiet = settings(
        max_examples=cases, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    quiet(given(strategy)(check))()


def fuzz_file(cases, contents, file, check):
    """Runs `check` on a file of so many contents: it passes, or ends with a DataError that names the file."""

    def check_content(content):
        file.write_bytes(content)
        with allowed(DataError, str(file)):
            check(file)

    fuzz(cases, contents, check_content)


@contextmanager
def allowed(kind, name):
    """Passes over errors of a kind whose message has a name in it, and over no others."""
    try:
        yield
    except kind as error:
        if name not in str(error):
            raise AssertionError(f"a message without {name}: {error}") from error


@st.composite
def damaged(draw, whole):
    """One of some files' bytes with a few bytes overwritten, inserted or cut off."""
    content = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        match draw(st.integers(0, 2)):
            case 0:
                content[at : at + 4] = draw(st.binary(min_size=1, max_size=4))
            case 1:
                content[at:at] = draw(st.binary(min_size=1, max_size=8))
            case _:
                del content[at : at + draw(st.integers(1, 40))]
    return bytes(content)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(
        [0, -1, 1e300, 10**30, "", "../a", "/etc/passwd", "photo.png", [], {}, [[]], [[1, 2]], float("nan"), 2**31]
    ),
    st.text(max_size=4),
    st.lists(st.integers(-(10**9), 10**9), max_size=8),
)


def places(content, path=()):
    """The paths to everything in a JSON value."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def changed_json(draw, whole):
    """A JSON value in bytes, in which a few values are others, or gone."""
    content = json.loads(json.dumps(whole))
    for path in draw(st.lists(st.sampled_from(sorted(places(content), key=str)), min_size=1, max_size=3)):
        place = content
        try:
            for step in path[:-1]:
                place = place[step]
            if draw(st.integers(0, 3)):
                place[path[-1]] = copy.deepcopy(draw(ODD))  # ODD's lists are the same objects in every draw
            else:
                del place[path[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took it away
    return json.dumps(content).encode()


def encoded(kind, mode, seed=0, **options):
    """An image file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 3, (9, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


IMAGES = [
    encoded("PNG", "RGB"),
    encoded("PNG", "P"),
    encoded("PNG", "L"),
    encoded("JPEG", "RGB"),
    encoded("WEBP", "RGB"),
]
TURNED = Image.Exif()
TURNED[0x0112], TURNED[0x011A], TURNED[0x0110] = 6, 72.5, "camera"
IMAGES += [encoded("BMP", "RGB"), encoded("TIFF", "RGB", compression="tiff_lzw"), encoded("PNG", "RGBA")]
IMAGES += [encoded("GIF", "P", transparency=0), encoded("WEBP", "RGBA", lossless=True), encoded("TIFF", "L")]
IMAGES += [encoded(kind, "RGB", exif=TURNED) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
IMAGES += [encoded("PNG", "I;16"), encoded("PNG", "LA"), encoded("JPEG", "CMYK"), encoded("TIFF", "F")]
OTHERS = [encoded(kind, "RGB") for kind in ("EPS", "PDF", "PPM", "TGA", "PCX", "ICO", "SGI", "ICNS", "JPEG2000", "DDS")]


@few_or_many
def test_images_for_prediction(tmp_path, cases):
    """Whatever a file is called, its content decides; formats that are not read are refused, whole or damaged."""

    def check(drawn):
        content, suffix, side = drawn
        file = tmp_path / f"a{suffix}"
        file.write_bytes(content)
        with allowed(DataError, str(file)):
            photo = read_photo(file, side, Remarks())
            assert (photo.pixels.dtype, photo.pixels.shape[2]) == (np.uint8, 3)
            assert content[:2] not in {other[:2] for other in OTHERS}

    sides = st.sampled_from([0, 1, 5, 64])
    fuzz(cases, st.tuples(damaged(IMAGES + OTHERS), st.sampled_from([*SUFFIXES, ".txt"]), sides), check)


RULES = [
    MaskRule(3),
    MaskRule(2, (), class_file="classes.toml"),
    MaskRule(3, (0, 255), (1, 2, 3), (9,), "classes.toml"),
    ColourRule(((0, 0, 0), (1, 1, 1)), (2, 2, 2), transparent=0),
    ColourRule(((0, 0, 0), (1, 1, 1))),
]


@few_or_many
def test_masks(cases):
    """Of photographs of any orientation."""

    def check(drawn):
        content, rule, orientation, follow = drawn
        photo = Photo(np.zeros((9, 7, 3), np.uint8), (9, 7), orientation)
        with allowed(DataError, "mask.png"):
            label = decode_mask_of(photo, content, "mask.png", rule, follow, Remarks())
            assert label.shape == (9, 7)
            assert set(label.ravel().tolist()) <= {0, 1, 2, UNLABELLED, IGNORE}

    photos = st.sampled_from(RULES), st.integers(1, 8), st.sampled_from(["display", "file"])
    fuzz(cases, st.tuples(damaged(IMAGES), *photos), check)


def in_an_encoding(contents):
    """Contents in UTF-8 as other editors would save them: with a mark, in other encodings, with other line ends."""

    def saved(content, encoding, end):
        text = content.decode("utf-8", "replace").replace("\n", end)
        return text.encode(encoding, "replace")

    encodings = st.sampled_from(["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1", "cp1252"])
    return st.builds(saved, contents, encodings, st.sampled_from(["\n", "\r\n", "\r"]))


LINES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["/", ".", "..", "a.jpg b.png", "/JPEGImages/a.jpg", "a", " ", "#", "b\\a.png"]),
)


@few_or_many
def test_lists(tmp_path, cases):
    def check(file):
        assert all(read_list(file, {"a", "b"}))

    texts = st.lists(LINES, max_size=5).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
    fuzz_file(cases, st.one_of(texts, in_an_encoding(texts), st.binary(max_size=60)), tmp_path / "list.txt", check)


CLASSES = (
    b'names = ["background", "cat"]\ncolours = [[0, 0, 0], [255, 0, 0]]\nbackground = "background"\nvoid = [9, 9, 9]\n'
)
TAGS = b"image,tags\na.jpg,cat;dog\nimages/b,background\n"


@few_or_many
def test_tag_lists(tmp_path, cases):
    def check(file):
        assert all(read_tags(file, ("a", "b")).values())

    contents = st.one_of(damaged([TAGS]), in_an_encoding(damaged([TAGS])), st.binary(max_size=60))
    fuzz_file(cases, contents, tmp_path / "tags.csv", check)


@few_or_many
def test_masks_of_voc_and_sbd(tmp_path, cases):
    mat = tmp_path / "whole.mat"
    savemat(mat, {"GTcls": {"Segmentation": np.ones((9, 7), np.uint8), "Boundaries": 0}}, do_compression=True)
    plain = tmp_path / "plain.mat"
    savemat(plain, {"GTcls": {"Segmentation": np.ones((9, 7), np.uint8), "Boundaries": 0}})

    def check(drawn):
        (content, read), file = drawn, tmp_path / "mask"
        file.write_bytes(content)
        with allowed(DataError, str(file)):
            mask = read(file)
            assert mask.dtype == np.uint8
            assert (mask[mask != 255] <= 20).all()

    of_voc = st.tuples(damaged(IMAGES[1:3]), st.just(read_voc_mask))
    of_sbd = st.tuples(damaged([mat.read_bytes(), plain.read_bytes()]), st.just(read_sbd_mask))
    fuzz(cases, st.one_of(of_voc, of_sbd), check)


VALUES = st.one_of(st.integers(), st.text(max_size=5), st.lists(st.integers(-1, 256), max_size=4))


@few_or_many
def test_class_files(tmp_path, cases):
    def check(file):
        assert len(read_classes(file).names) >= 2

    keys = st.dictionaries(st.sampled_from(["names", "colors", "background", "void", "unlabelled", "first"]), VALUES)
    typed = keys.map(
        lambda content: "\n".join(f"{key} = {value!r}" for key, value in content.items()).encode("utf-8", "replace")
    )
    whole = [CLASSES, b'[colours]\na = "#ff0000"\nb = "blue"\n', b'names = ["a", "b"]\nfirst = 1\nvoid = [0, 255]\n']
    contents = st.one_of(damaged(whole), typed, deep(), in_an_encoding(damaged(whole)))
    fuzz_file(cases, contents, tmp_path / "classes.toml", check)


@st.composite
def deep(draw):
    """Brackets within brackets, dots after dots, digits after digits."""
    count = draw(st.integers(1, 10_000))
    start, end = draw(st.sampled_from([("[", "]"), ("{a=", "}"), ("[{a=", "}]"), ("9", ""), ("a.", "b=1"), ("'", "'")]))
    return (draw(st.sampled_from(["names = ", "colours = ", ""])) + start * count + end * count).encode()


FOLDER = {
    "classes.toml": CLASSES.replace(b"[[0, 0, 0], [255, 0, 0]]", b"[[0, 0, 0], [1, 1, 1]]"),
    "val.txt": b"c\n",
    **{f"images/{name}.png": encoded("PNG", "RGB", seed) for seed, name in enumerate("abc")},
    **{f"masks/{name}.png": encoded("PNG", "1") for name in "abc"},
}


@st.composite
def damaged_folder(draw):
    """The files of a folder data set by path, some of them damaged, gone, or under another name; a list may lead outside."""
    files = dict(FOLDER)
    if draw(st.booleans()):
        lines = draw(
            st.lists(st.sampled_from(["a", "c", "../outside", "images/../../outside", "/outside"]), max_size=3)
        )
        files["val.txt"] = "\n".join(lines).encode()
    for name in draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=3, unique=True)):
        content = files.pop(name)
        match draw(st.integers(0, 3)):
            case 0:
                files[name] = draw(damaged([content]))
            case 1:
                folder = draw(st.sampled_from(["images", "masks", "unlabelled", "images/.thumbs"]))
                stem = draw(st.sampled_from(["a", "b", "c", "d", "A", "a_mask", "B-label", ".d"]))
                files[f"{folder}/{stem}{draw(st.sampled_from(SUFFIXES))}"] = content
            case 2:
                files[name] = b""
    return files


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


@few_or_many
def test_whole_folders(tmp_path, cases):
    outside = {"outside.png": IMAGES[0], "images/outside.png": IMAGES[0], "masks/outside.png": FOLDER["masks/a.png"]}

    def check(files):
        root, prepared = tmp_path / "photos", tmp_path / "prepared"
        write(tmp_path, outside)
        write(root, files)
        with allowed(DataError, str(root)):
            dataset = folder_dataset(root, prepared)
            for source in dataset.sources.values():
                images = source.without_labels()
                assert all(images[index].image.shape[2] == 3 for index in range(len(images)))
                assert not any("outside" in name for name in source.ids)
        elsewhere = {path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(root)}
        elsewhere -= {path for path in elsewhere if path.is_relative_to(prepared)}
        assert elsewhere == {tmp_path / name for name in outside}
        for folder in (root, prepared):
            shutil.rmtree(folder, ignore_errors=True)

    fuzz(cases // 4, damaged_folder(), check)


@few_or_many
def test_prepared_records(tmp_path, cases):
    """What lies on the disk may rot after it was packed."""
    write(tmp_path / "photos", FOLDER)
    folder_dataset(tmp_path / "photos", tmp_path / "prepared")
    files = sorted(
        file for file in (tmp_path / "prepared").rglob("*") if file.is_file() and not file.name.startswith(".")
    )
    whole = {file: file.read_bytes() for file in files}

    def check(drawn):
        file, content = drawn
        file.write_bytes(content)
        with allowed(DataError, str(tmp_path)):
            source = folder_dataset(tmp_path / "photos", tmp_path / "prepared").source("train")
            assert [source[index].id for index in range(len(source))] == ["a", "b"]
        file.write_bytes(whole[file])

    one = st.sampled_from(files).flatmap(lambda file: st.tuples(st.just(file), damaged([whole[file]])))
    fuzz(cases // 4, one, check)


class Opens:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@few_or_many
def test_weights(tmp_path, cases):
    trap, marker = tmp_path / "trap.npz", tmp_path / "executed"
    np.savez(trap, a=np.array([Opens(marker)], dtype=object))
    np.savez(tmp_path / "whole.npz", a=np.zeros(3), b=np.ones((2, 2)))
    save_file(
        {"layer1.0.conv1.weight": np.zeros((2, 2), np.float32), "b": np.ones(2, np.int64)}, tmp_path / "w.safetensors"
    )
    files = [(tmp_path / name).read_bytes() for name in ("trap.npz", "whole.npz", "w.safetensors")]
    fuzz(cases, st.tuples(damaged(files), st.sampled_from(["npz", "safetensors"])), reads_weights(tmp_path, marker))
    with pytest.raises(WeightsError):
        read_tensors(trap)
    assert not marker.exists()


@few_or_many
def test_weights_of_pytorch(tmp_path, cases):
    """Both of its formats, and pickles that would make a folder: they do where PyTorch is not told to be careful."""
    torch = pytest.importorskip("torch")
    marker = tmp_path / "executed"
    content = {"layer1.0.conv1.weight": torch.zeros(2, 2), "epoch": 3}
    for name, stored in (("whole", content), ("trap", content | {"a": Opens(marker)})):
        torch.save(stored, tmp_path / f"{name}.pth")
        torch.save(stored, tmp_path / f"{name}_old.pth", _use_new_zipfile_serialization=False)
    files = [(tmp_path / f"{name}.pth").read_bytes() for name in ("whole", "whole_old", "trap", "trap_old")]
    files.append(pickle.dumps({"a": Opens(marker)}))
    fuzz(cases, st.tuples(damaged(files), st.just("pth")), reads_weights(tmp_path, marker))
    for name in ("trap", "trap_old"):
        with pytest.raises(WeightsError, match="pickles more than tensors"):
            read_tensors(tmp_path / f"{name}.pth")
    assert not marker.exists()
    torch.load(tmp_path / "trap.pth", weights_only=False)
    assert marker.exists()


def reads_weights(folder, marker):
    """The check of a file's content and suffix: it reads, or is refused by name, and nothing in it is executed."""

    def check(drawn):
        content, suffix = drawn
        file = folder / f"a.{suffix}"
        file.write_bytes(content)
        with allowed(WeightsError, str(file)):
            read_tensors(file)
        with allowed(WeightsError, ""):  # what does not fit is told by the tensors' names
            load_weights(file, "resnet18")
        assert not marker.exists()

    return check
