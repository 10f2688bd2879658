"""Tables as text, Markdown, CSV and LaTeX."""

import csv
import io

import pytest

from forec_jax.experiment.layout import FORMATS, Spread, Table, spread_of

ODD = 'a_b & 50% | {x}^2 ~ \\ #1 <$5>, "q"'
TABLES = [
    Table("Scores", ("", "val"), ((ODD, Spread(65.0, 1.5, 3)), ("none", None))),
    Table(
        "Difference",
        ("", "val"),
        (("b", Spread(-2.25, None, 1, signed=True)), ("c", Spread(0.5, 0.25, 2, signed=True))),
    ),
]
NOTES = ["missing: b, seed=1: not begun"]


def written(form, tables=TABLES, notes=NOTES):
    return FORMATS[form](tables, notes)


def test_the_deviation_is_that_of_a_sample():
    """1, 2, 4: mean 7/3, squared distances 16/9 + 1/9 + 25/9 = 14/3, over n - 1 = 2: 7/3."""
    found = spread_of([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    assert found.deviation == pytest.approx((7 / 3) ** 0.5)
    assert (found.n, spread_of([5.0])) == (3, Spread(5.0, None, 1))
    assert spread_of([]) is None


def test_text_has_columns_of_one_width():
    lines = written("text").splitlines()
    assert lines[0] == "Scores"
    widths = {len(line) for line in lines[2:5]}
    assert len(widths) == 1
    assert lines[3] == f"{ODD}  65.00 +- 1.50 (3)"
    assert lines[4].split() == ["none", "-"]
    assert lines[9].split() == ["b", "-2.25", "(1)"]
    assert lines[10].split() == ["c", "+0.50", "+-", "0.25", "(2)"]
    assert lines[-1] == NOTES[0]


def test_markdown_shows_every_letter_and_keeps_its_columns():
    lines = written("markdown").splitlines()
    assert lines[3] == "| --- | --- |"
    assert lines[4] == r'| a\_b & 50% \| {x}^2 ~ \\ #1 \<$5\>, "q" | 65.00 ± 1.50 (3) |'
    assert lines[5] == "| none | - |"
    assert lines[-1] == "- missing: b, seed=1: not begun"


def test_csv_is_read_back_as_it_was_with_numbers_apart_and_nothing_for_what_is_missing():
    rows = list(csv.reader(io.StringIO(written("csv"))))
    assert rows == [
        ["table", "", "val mean", "val sd", "val n"],
        ["Scores", ODD, "65.0000", "1.5000", "3"],
        ["Scores", "none", "", "", "0"],
        ["Difference", "b", "-2.2500", "", "1"],
        ["Difference", "c", "0.5000", "0.2500", "2"],
    ]
    of_runs = Table("mIoU", ("", "val"), (("run", "57.53"), ("other", "-")))
    assert list(csv.reader(io.StringIO(written("csv", [of_runs])))) == [
        ["table", "", "val"],
        ["mIoU", "run", "57.53"],
        ["mIoU", "other", ""],
    ]


def test_latex_has_no_letter_that_is_a_command_of_its_own():
    lines = written("latex").splitlines()
    assert lines[1:3] == [r"\begin{tabular}{lr}", r"\hline"]
    cell, number = lines[5].removesuffix(r" \\").rsplit(" & ", 1)
    assert cell == (
        r"a\_b \& 50\% \textbar{} \{x\}\textasciicircum{}2 \textasciitilde{} \textbackslash{} \#1 "
        r'\textless{}\$5\textgreater{}, "q"'
    )
    assert number == r"$65.00 \pm 1.50$ (3)"
    assert lines[6] == r"none & - \\"
    assert lines[-1] == f"% {NOTES[0]}"


def test_a_line_break_in_a_name_breaks_no_table():
    table = [Table("two\nlines", ("", "val"), (("a\nb", "1.00"),))]
    assert "| a b | 1.00 |" in written("markdown", table, [])
    assert "a b & 1.00" in written("latex", table, [])
    assert written("latex", table, ["x\n\\input{y}"]).splitlines()[-1] == r"% x \input{y}"
    assert list(csv.reader(io.StringIO(written("csv", table, []))))[1][1] == "a\nb"
