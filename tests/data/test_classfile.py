"""classes.toml as people write it, and as they should not."""

import pytest

from forec_jax.contracts import IGNORE, UNLABELLED
from forec_jax.data import DataError
from forec_jax.data.classfile import EXAMPLE, class_file, read_classes


@pytest.fixture
def read(tmp_path):
    """Reads a class file of a content."""

    def read_content(content):
        (tmp_path / "classes.toml").write_text(content)
        return read_classes(tmp_path / "classes.toml")

    return read_content


def test_a_missing_class_file_shows_one_that_can_be_read(tmp_path, read):
    with pytest.raises(DataError, match=r"classes\.toml is missing; write one such as") as caught:
        read_classes(tmp_path / "classes.toml")
    assert str(caught.value).endswith(EXAMPLE)
    classes = read(EXAMPLE)
    assert (classes.names, classes.background) == (("background", "cat", "dog"), (0,))
    assert classes.palette[1] == (255, 0, 0)


def test_a_file_of_partial_masks_says_what_nobody_labelled(read):
    classes = read(class_file(("background", "cat"), "background", partial=True))
    assert classes.rule.table[[0, 1, 254, 255]].tolist() == [0, 1, UNLABELLED, IGNORE]
    assert read(class_file(("background", "cat"), "background")).rule.unlabelled == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('names = ["a"]', "two or more names"),
        ('names = ["a", 1]', "two or more names"),
        ('names = ["a", "b", "a"]', "names has a more than once"),
        ('names = ["a", "b"]\nshapes = []', r"unknown keys \['shapes'\]"),
        ('names = ["a", "b"', "cannot be read"),
        ('names = ["a", "b"]\nbackground = "c"', "background='c' is no class; choose one of a, b"),
        ('names = ["a", "b"]\nvoid = 1', "void=1 must be an index from 2 to 255"),
        ('names = ["a", "b"]\nunlabelled = 1', "unlabelled=1 must be an index from 2 to 255"),
        ('names = ["a", "b"]\nvoid = 9\nunlabelled = 9', "void and unlabelled are both 9"),
        ('names = ["a", "b"]\nvoid = [1, 2, 3]', "must be an index"),
        ('names = ["a", "b"]\ncolours = [[0, 0, 0]]', "a list of 2 colours"),
        ('names = ["a", "b"]\ncolours = [[0, 0, 0], [0, 0, 0]]', r"\[\(0, 0, 0\)\] more than once"),
        ('names = ["a", "b"]\ncolours = [[0, 0, 0], [1, 1, 1]]\nvoid = [1, 1, 1]', r"\[\(1, 1, 1\)\] more than once"),
        ('names = ["a", "b"]\ncolours = [[0, 0, 0], [0, 0, 256]]', "a colour is"),
        ('names = ["a", "b"]\ncolours = [[0, 0, 0], [1, 1, 1]]\nvoid = 255', "void holds 255; a colour is"),
    ],
)
def test_bad_class_files(tmp_path, content, message):
    file = tmp_path / "classes.toml"
    file.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_classes(file)
    assert str(file) in str(caught.value)


COLOURS = ((0, 0, 0), (255, 0, 0))


@pytest.mark.parametrize(
    "content",
    [
        'names = ["sky", "cat"]\ncolours = [[0, 0, 0], [255, 0, 0]]',
        'names = ["sky", "cat"]\ncolors = ["#000000", "#ff0000"]',
        'names = ["sky", "cat"]\ncolours = ["black", "red"]',
        'names = ["sky", "cat"]\n[colours]\ncat = "#f00"\nsky = [0, 0, 0]',
        '[colours]\nsky = "#000000"\ncat = [255, 0, 0]',
        '[names]\nsky = "#000000"\ncat = "#FF0000"',
    ],
)
def test_colours_are_read_however_they_are_written(read, content):
    classes = read(content)
    assert (classes.names, classes.palette, classes.rule.colours) == (("sky", "cat"), COLOURS, COLOURS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('names = ["a", "b"]\ncolours = ["#000000", "#ff000080"]', r"colours holds \[255, 0, 0, 128\]; a colour is"),
        ('names = ["a", "b"]\ncolours = ["#000000", "reddish"]', r"colours holds \['reddish'\]; a colour is"),
        ('names = ["a", "b"]\n[colours]\na = "#000000"\nc = "#ff0000"', "names and colours differ in b, c"),
        ('names = ["a", "b"]\ncolours = []\ncolors = []', "name one key in two spellings"),
        ('names = ["a", "b"]\nfirst = 1\ncolours = ["red", "blue"]', "first is for masks of indices"),
        ('names = ["a", "b"]\nfirst = 255', "first=255 must be the index of a in the masks"),
        ('names = ["a", "b"]\nvoid = 0', "void=0 must be an index from 2 to 255.*write `first = 1` too"),
        (
            'names = ["a", "b"]\nfirst = 1\nvoid = 2',
            r"void=2 must be an index from 0 to 255 that is no class's \(1 to 2\)",
        ),
        ("a = " + "[" * 3000 + "]" * 3000, r"cannot be read \(too deep or too long\)"),
        ("a = " + "9" * 5000, r"cannot be read \(too deep or too long\)"),
    ],
)
def test_class_files_that_contradict_themselves(read, content, message):
    with pytest.raises(DataError, match=message):
        read(content)


def test_a_first_index_and_several_void_values(read):
    rule = read('names = ["a", "b"]\nfirst = 1\nvoid = [0, 255]\nunlabeled = 9').rule
    assert (rule.values, rule.void, rule.unlabelled) == ((1, 2), (0, 255), (9,))


def test_another_tools_class_list_is_named(tmp_path):
    (tmp_path / "labelmap.txt").touch()
    with pytest.raises(
        DataError, match=r"missing; labelmap\.txt, which lies there, is not read: copy its names and col"
    ):
        read_classes(tmp_path / "classes.toml")


def test_annotations_instead_of_masks_are_named(tmp_path):
    (tmp_path / "coco.json").write_text('{"annotations": []}')
    with pytest.raises(
        DataError,
        match=r"missing; coco\.json holds annotations: make a data set of them by forec-jax import --from=coco",
    ):
        read_classes(tmp_path / "classes.toml")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_names_are_read_in_every_encoding_with_a_mark(tmp_path, encoding):
    (tmp_path / "classes.toml").write_bytes('names = ["Stra\u00dfe", "A\u0308pfel"]\r\n'.encode(encoding))
    assert read_classes(tmp_path / "classes.toml").names == ("Stra\u00dfe", "\u00c4pfel")
