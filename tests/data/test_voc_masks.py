import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from forec_jax import cli
from forec_jax.data import DataError
from forec_jax.data.voc_masks import index_of_colours, read_sbd_mask, read_voc_mask, write_voc_masks

SHARED = Path(os.environ.get("FOREC_SHARED", Path(__file__).resolve().parents[3] / "shared"))
REAL = SHARED / "data" / "VOCdevkit" / "VOC2012" / "SegmentationClassAug"

# From the development kit's list of colours, not from the library's formula.
COLOURS = {0: (0, 0, 0), 1: (128, 0, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
MASK = np.array([[0, 1, 8, 15], [20, 255, 255, 0], [1, 1, 15, 20]], np.uint8)


def coloured(mask):
    return np.array([[COLOURS[k] for k in row] for row in mask.tolist()], np.uint8)


def save_sbd(file, mask, key="GTcls"):
    """A file laid out as SBD's: a struct of one element with the mask among its fields."""
    fields = {"Boundaries": np.zeros((20, 1)), "Segmentation": mask, "CategoriesPresent": np.array([[1], [15]])}
    savemat(file, {key: fields}, do_compression=True)


@pytest.fixture
def sources(tmp_path):
    """VOC with `both` and `voc`, SBD with `both` and `sbd`; their masks of `both` differ."""
    own, others = tmp_path / "VOCdevkit" / "VOC2012" / "SegmentationClass", tmp_path / "sbd" / "cls"
    own.mkdir(parents=True)
    others.mkdir(parents=True)
    for name in ("both", "voc"):
        Image.fromarray(coloured(MASK)).save(own / f"{name}.png")
    for name in ("both", "sbd"):
        save_sbd(others / f"{name}.mat", np.full((2, 5), 7, np.uint8))
    return tmp_path


def write(folder):
    return write_voc_masks(folder / "VOCdevkit", folder / "sbd", folder / "out")


def test_colours_to_indices():
    np.testing.assert_array_equal(index_of_colours(coloured(MASK), "m.png"), MASK)
    odd = coloured(MASK)
    odd[1, 2] = (1, 2, 3)
    with pytest.raises(DataError, match=r"m\.png: the colour \(1, 2, 3\) is neither"):
        index_of_colours(odd, "m.png")


def test_the_ways_in_which_a_mask_is_coded(tmp_path):
    rgb = Image.fromarray(coloured(MASK))
    rgb.save(tmp_path / "rgb.png")
    rgb.convert("RGBA").save(tmp_path / "rgba.png")
    rgb.quantize(8).save(tmp_path / "other_palette.png")  # the palette's order is not VOC's
    Image.fromarray(MASK).save(tmp_path / "grey.png")
    for file in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(read_voc_mask(file), MASK, err_msg=file.name)
    Image.fromarray(MASK + 21).save(tmp_path / "values.png")
    with pytest.raises(DataError, match=r"values\.png: the mask holds \[21, 22"):
        read_voc_mask(tmp_path / "values.png")


def test_an_sbd_file(tmp_path):
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    save_sbd(tmp_path / "a.mat", mask)
    found = read_sbd_mask(tmp_path / "a.mat")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, mask)


def test_bad_sbd_files_are_named(tmp_path):
    file = tmp_path / "a.mat"
    save_sbd(file, MASK, key="GTinst")
    with pytest.raises(DataError, match=r"a\.mat: has no readable GTcls\.Segmentation .*not inst/"):
        read_sbd_mask(file)
    save_sbd(file, np.full((2, 2), 21, np.uint8))
    with pytest.raises(DataError, match=r"a\.mat: .* no mask of the classes 0 to 20"):
        read_sbd_mask(file)
    save_sbd(file, np.random.default_rng(0).integers(0, 21, (90, 90), dtype=np.uint8))
    whole = file.read_bytes()
    for size in (0, 60, 150, len(whole) // 2, len(whole) - 9):
        file.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.mat: has no readable"):
            read_sbd_mask(file)


def test_vocs_own_mask_wins(sources):
    written = write(sources)
    assert (written.from_voc, written.from_sbd) == (2, 1)
    out = {}
    for file in (sources / "out").iterdir():
        with Image.open(file) as mask:
            assert mask.mode == "P"
            mask.load()
        out[file.stem] = mask
    assert set(out) == {"both", "voc", "sbd"}
    np.testing.assert_array_equal(out["both"], MASK)
    np.testing.assert_array_equal(out["both"].convert("RGB"), coloured(MASK))
    np.testing.assert_array_equal(out["sbd"], np.full((2, 5), 7))
    content = [("both", MASK), ("sbd", np.full((2, 5), 7, np.uint8)), ("voc", MASK)]
    expected = b"".join(f"{name} {mask.shape}\n".encode() + mask.tobytes() for name, mask in content)
    assert written.sha256 == hashlib.sha256(expected).hexdigest()


def test_nothing_is_overwritten_and_nothing_half_done_is_left(sources):
    (sources / "out").mkdir()
    (sources / "out" / "mine.png").touch()
    with pytest.raises(DataError, match="not an empty folder; choose another --out"):
        write(sources)
    (sources / "out" / "mine.png").unlink()
    (sources / "sbd" / "cls" / "sbd.mat").write_bytes(b"")
    with pytest.raises(DataError, match=r"sbd\.mat"):
        write(sources)
    assert sorted(file.name for file in sources.iterdir()) == ["VOCdevkit", "out", "sbd"]
    assert not list((sources / "out").iterdir())


def test_the_command(sources, capsys):
    flags = [f"--source={sources / 'VOCdevkit'}", f"--out={sources / 'out'}"]
    assert cli.run(["voc-masks", *flags, f"--sbd={sources / 'sbd' / 'cls'}"]) == 2
    assert "--sbd is the folder that holds cls/" in capsys.readouterr().err
    assert cli.run(["voc-masks", *flags, f"--sbd={sources / 'sbd'}"]) == 0
    assert "2 masks of VOC and 1 of SBD" in capsys.readouterr().out


@pytest.mark.skipif(not REAL.is_dir(), reason="no VOCdevkit here; set FOREC_SHARED")
def test_real_masks_are_read_by_colour_as_their_indices(tmp_path):
    files = sorted(REAL.glob("*.png"))[::150]
    assert len(files) > 20
    for file in files:
        with Image.open(file) as mask:
            index = np.asarray(mask)
            mask.convert("RGB").save(tmp_path / "rgb.png")
        np.testing.assert_array_equal(read_voc_mask(file), index, err_msg=file.name)
        np.testing.assert_array_equal(read_voc_mask(tmp_path / "rgb.png"), index, err_msg=file.name)


def test_a_file_that_ends_its_reader_is_named(tmp_path):
    """SciPy looks up what a number's type is without looking whether there is such a type; there is no type 8."""
    file = tmp_path / "a.mat"
    savemat(file, {"GTcls": {"Segmentation": np.full((4, 5), 3, np.uint8)}})
    whole = file.read_bytes()
    at = whole.index(bytes([2, 0, 0, 0, 20, 0, 0, 0]))  # the tag of the mask's 20 bytes
    file.write_bytes(whole[:at] + bytes([8]) + whole[at + 1 :])
    with pytest.raises(DataError, match=r"a\.mat: has no readable GTcls\.Segmentation"):
        read_sbd_mask(file)
    file.write_bytes(whole)
    assert (read_sbd_mask(file) == 3).all()
