"""Rows of several runs side by side, from the records of runs that never ran."""

import json

import pytest
from made_run import make_run

from forec_jax import cli
from forec_jax.experiment import comparison
from forec_jax.experiment.comparison import HOW, Columns, compare_rows, records_of
from forec_jax.experiment.layout import Spread

HEADS = ("", "tune last teacher", "tune last student", "tune best teacher", "tune best student", "runs")


def make_sweep(workdir, rows, baseline="supervised"):
    """`rows`: row -> how many runs; the folders are ROW/SEED, some of which a test makes."""
    listed = [
        {
            "row": row,
            "baseline": baseline if row != baseline else "",
            "runs": [[f"seed={i}", f"{row}/{i}"] for i in range(count)],
        }
        for row, count in rows.items()
    ]
    (workdir / "sweep.json").write_text(json.dumps({"rows": listed, "splits": ["tune"]}))


def make_row(workdir, row, teachers, **more):
    for seed, miou in enumerate(teachers):
        scores = ((30, miou + 0.02, 0.3), (60, miou, 0.4))
        options = {"seed": seed, "data.labelled": f"balanced:16:{seed}"}
        make_run(workdir / row / str(seed), row, options, scores, labelled=f"l{seed}", **more)


def compared(workdir, columns=Columns(()), baseline=""):
    tables, (*notes, how) = compare_rows(records_of([workdir], baseline), columns)
    assert how == HOW
    return tables, notes


def rounded(table):
    return [[c._replace(mean=round(c.mean, 2), deviation=c.deviation and round(c.deviation, 2))
             if isinstance(c, Spread) else c for c in row] for row in table.rows]  # fmt: skip


def test_rows_have_mean_deviation_and_paired_differences_and_what_is_missing_is_no_zero(tmp_path):
    """Last teachers 50, 52, 57: mean 53, deviation sqrt(13). Pairs 60 - 50 and 58 - 52: mean 8, deviation sqrt(8)."""
    make_sweep(tmp_path, {"supervised": 3, "forec": 4, "reconstruction": 1})
    make_row(tmp_path, "supervised", [0.50, 0.52, 0.57])
    make_row(tmp_path, "forec", [0.60, 0.58])
    make_run(tmp_path / "forec" / "2", "forec", {"seed": 2}, ((30, 0.1, 0.1),), unfinished=True)
    (scores, differences), notes = compared(tmp_path)
    assert scores.head == differences.head == HEADS
    assert rounded(scores)[0] == [
        "supervised", Spread(53.0, 3.61, 3), Spread(40.0, 0.0, 3), Spread(55.0, 3.61, 3), Spread(30.0, 0.0, 3), "3 of 3",
    ]  # fmt: skip
    assert rounded(scores)[1][1:3] == [Spread(59.0, 1.41, 2), Spread(40.0, 0.0, 2)]
    assert rounded(scores)[1][-1] == "2 of 4"
    assert rounded(scores)[2] == ["reconstruction", None, None, None, None, "0 of 1"]
    assert rounded(differences)[0][:2] == ["forec - supervised", Spread(8.0, 2.83, 2, signed=True)]
    assert rounded(differences)[1][:2] == ["reconstruction - supervised", None]
    assert notes == [
        "missing: forec, seed=2: at step 30 of 60",
        "missing: forec, seed=3: not begun",
        "missing: reconstruction, seed=0: not begun",
    ]


def test_runs_on_other_labelled_images_or_with_another_seed_are_no_pair(tmp_path):
    make_sweep(tmp_path, {"supervised": 2, "forec": 2})
    make_row(tmp_path, "supervised", [0.5, 0.5])
    make_row(tmp_path, "forec", [0.6, 0.6])
    (tmp_path / "forec" / "1" / "split.json").write_text('{"labelled": "others", "unlabelled": "u", "pseudo": ""}')
    (scores, differences), notes = compared(tmp_path, Columns((), ("last",), ("teacher",)))
    assert scores.rows[1][1] == Spread(60.0, 0.0, 2)  # other draws are what a row is the mean of
    assert rounded(differences) == [["forec - supervised", Spread(10.0, None, 1, signed=True), "1 of 2"]]
    assert notes == ["forec, seed=1: no run of supervised with the same seed and labelled images to compare with"]


def test_other_validation_images_are_neither_averaged_nor_subtracted(tmp_path, monkeypatch):
    make_sweep(tmp_path, {"supervised": 2, "forec": 3})
    make_row(tmp_path, "supervised", [0.5, 0.5])
    make_row(tmp_path, "forec", [0.6, 0.6, 0.9])
    found = comparison.result_of

    def scored(stored, *which):
        result = found(stored, *which)
        other = str(stored.workdir).endswith("forec/1")
        return result._replace(question=result.question._replace(sha256="other")) if other else result

    monkeypatch.setattr(comparison, "result_of", scored)
    (scores, differences), notes = compared(tmp_path, Columns((), ("last",), ("teacher",)))
    assert [(row[0], row[1].n, row[2]) for row in scores.rows] == [
        ("supervised", 2, "2 of 2"),
        ("forec", 2, "2 of 3"),
        ("forec (2)", 1, "1 of 1"),
    ]
    assert [row[1] and row[1].n for row in differences.rows] == [1, None]
    text = "\n".join(notes)
    assert "NOT AVERAGED: forec (2), forec, seed=1, is another experiment than forec:" in text
    assert (
        "NOT COMPARABLE: supervised, seed=0 and forec, seed=1 were scored on different images or masks of tune" in text
    )


def test_a_run_with_other_options_or_another_number_of_labels_is_not_averaged(tmp_path):
    make_sweep(tmp_path, {"forec": 4}, baseline="forec")
    make_row(tmp_path, "forec", [0.6, 0.6])
    make_run(tmp_path / "forec" / "2", "forec", {"seed": 2, "optim.lr": 1.0}, labelled="l2")
    make_run(tmp_path / "forec" / "3", "forec", {"seed": 3}, labelled="l3", images=32)
    (scores,), notes = compared(tmp_path, Columns((), ("last",), ("teacher",)))
    assert [(row[0], row[1].n) for row in scores.rows] == [("forec", 2), ("forec (2)", 1), ("forec (3)", 1)]
    assert "  optim.lr: 0.002 | 1.0" in notes
    assert "  another number of images is trained on" in notes


def test_a_network_that_stands_for_another_is_named(tmp_path):
    make_run(tmp_path / "fixmatch", "fixmatch", {}, ((60, None, 0.4),))
    (scores,), notes = compared(tmp_path / "fixmatch", Columns((), ("last",)))
    assert [cell.mean for cell in scores.rows[0][1:3]] == [40.0, 40.0]
    assert notes == ["fixmatch has no teacher: its student stands in that column"]


def test_runs_of_their_own_have_differences_to_one_of_them(tmp_path, capsys):
    for name, teacher in (("one", 0.5), ("two", 0.62)):
        make_run(tmp_path / name, "forec", {"log_every": 7}, ((60, teacher, 0.4),))
    argv = ["table", f"--workdirs={tmp_path}/*", "--splits=tune", "--format=csv", "--checkpoint=last"]
    assert cli.run([*argv, "--baseline=one"]) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["table", "", *(f"tune last {n} {of}" for n in ("teacher", "student") for of in ("mean", "sd", "n")),
                       "runs"]  # fmt: skip
    assert rows[3][:4] == ["Difference to the baseline", "two - one", "12.0000", ""]
    assert cli.run([*argv, "--baseline=three"]) == 2
    assert "--baseline=three: there is no such row; the rows are: one; two" in capsys.readouterr().err
    assert cli.run(["table", f"--workdir={tmp_path}"]) == 2
    assert "Unknown command line flag 'workdir'. Did you mean: workdirs" in capsys.readouterr().err
    assert cli.run(["table", f"--workdirs={tmp_path}/none*"]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert cli.run([*argv, "--format=latex"]) == 0
    assert capsys.readouterr().out.splitlines()[5:7] == [r"one & 50.00 \\", r"two & 62.00 \\"]


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"rows": [{"row": "a", "baseline": "", "runs": [["", "../../etc"]]}], "splits": []}', '{"rows": 3}'],
)
def test_a_damaged_record_is_named_and_leaves_no_folder(tmp_path, content, capsys):
    (tmp_path / "sweep.json").write_text(content)
    assert cli.run(["table", f"--workdirs={tmp_path}"]) == 2
    assert f"{tmp_path / 'sweep.json'} is damaged" in capsys.readouterr().err
