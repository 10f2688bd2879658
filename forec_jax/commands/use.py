"""Commands that use trained models: evaluate, predict, table, threshold."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from forec_jax.commands.arguments import (
    checkpoint_flags,
    folders,
    model_flags,
    parse,
    required,
    root_flag,
    scales_of,
    seen_flags,
)
from forec_jax.commands.process import tell

if TYPE_CHECKING:
    from forec_jax.evaluation import Evaluation
    from forec_jax.experiment.layout import Table
    from forec_jax.experiment.load import Run
    from forec_jax.experiment.results import Result
    from forec_jax.experiment.use import Seen


def evaluate(argv: Sequence[str]) -> int:
    """Scores a trained model on a split of its data set, or on any folder of images with a folder of their masks.

    forec-jax evaluate --workdir=runs/forec --split=val --checkpoint=best
    forec-jax evaluate --workdir=runs/forec --images=test/images --masks=test/masks
    forec-jax evaluate --workdir=runs/forec --csv=scores.csv --confusion=confusion.png

    The result is kept in the run's evaluations.json.
    """

    def define(values: flags.FlagValues) -> None:
        checkpoint_flags(values)
        root_flag(values)
        seen_flags(values, "whole", "sliding", "center_crop")
        flags.DEFINE_string("split", "val", "which split of the run's data set", flag_values=values)
        flags.DEFINE_string("images", None, "instead of a split: a folder of images", flag_values=values)
        flags.DEFINE_string("masks", None, "the folder of their masks, named as they are", flag_values=values)
        flags.DEFINE_bool("json", False, "print the result as JSON", flag_values=values)
        flags.DEFINE_string("csv", None, "a file for the scores and counts, a line a class", flag_values=values)
        flags.DEFINE_string("confusion", None, "a .png file for the confusion matrix", flag_values=values)
        near = (
            "also the boundary IoU, of pixels at most so far from contours, as a share of the image's diagonal: 0.02 as on "
            "COCO, 0.005 as on Cityscapes; 0: not"
        )
        flags.DEFINE_float("boundary", 0.0, near, lower_bound=0.0, upper_bound=1.0, flag_values=values)

    values = parse(argv, define, evaluate.__doc__)
    required(values, "workdir", *(["images", "masks"] if values.images or values.masks else []))
    if values.images and not values["split"].using_default_value:
        raise flags.Error("--split is of the run's data set; leave it out beside --images")
    from forec_jax.experiment.score import evaluated, evaluated_pairs

    run = loaded(values, values.data_root)
    which = values.network, values.checkpoint, values.boundary
    if values.images:
        folders_given = Path(values.images).expanduser(), Path(values.masks).expanduser()
        evaluation, result = evaluated_pairs(run, *folders_given, *which)
    else:
        evaluation, result = evaluated(run, run.dataset(), values.split, *which)
    print(_told(evaluation, result, run.labels.classes, values))
    _write_scores(evaluation, run.labels.classes, values)
    return 0


def _told(evaluation: "Evaluation", result: "Result", classes: Sequence[str], values: flags.FlagValues) -> str:
    """What `evaluate` prints."""
    from forec_jax.evaluation.report import as_dict, as_text
    from forec_jax.experiment.results import as_entry
    from forec_jax.files import to_json

    q = result.question
    if values.json:
        return to_json(
            as_entry(result) | {"boundary": values.boundary or None} | as_dict(evaluation, classes), indent=1
        )
    last = f"{q.network} {values.checkpoint} step {q.step} on {q.split}: {evaluation.miou:.4f} mIoU"
    return f"{as_text(evaluation, classes)}\n\n{last}"


def _write_scores(evaluation: "Evaluation", classes: Sequence[str], values: flags.FlagValues) -> None:
    """Writes the files that `evaluate` was asked for. Raises DataError for one that cannot be written."""
    from PIL import Image

    from forec_jax.data import DataError
    from forec_jax.evaluation.report import as_csv
    from forec_jax.visualize import confusion_picture

    try:
        if values.csv:
            made(values.csv).write_text(as_csv(evaluation, classes), encoding="utf-8")
        if values.confusion:
            Image.fromarray(confusion_picture(evaluation.confusion, classes)).save(made(values.confusion), format="PNG")
    except OSError as error:
        raise DataError(f"--csv or --confusion cannot be written ({error}); choose another file") from error


def made(file: str) -> Path:
    """A file that a flag names, its folder made."""
    path = Path(file).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def loaded(values: flags.FlagValues, root: str | None = None) -> "Run":
    """The model that the flags choose, with images shown as they say."""
    from forec_jax.experiment.load import load_run

    run = load_run(Path(values.workdir).expanduser(), values.checkpoint, root)
    return run._replace(config=seen(values).of(run.config))


def seen(values: flags.FlagValues) -> "Seen":
    """How images are shown."""
    from forec_jax.experiment.use import Seen

    return Seen(values.mode, values.window, values.stride, scales_of(values) if values.scales else None, values.flip)


def predict(argv: Sequence[str]) -> int:
    """Predicts images: index/ holds class indices, overlay/ pictures.

    forec-jax predict --workdir=runs/forec --images=photos --out=predictions
    forec-jax predict --workdir=runs/forec --images=aerial.tif --out=predictions --tile=1024 --overlap=128
    """

    def define(values: flags.FlagValues) -> None:
        checkpoint_flags(values)
        seen_flags(values, "whole", "sliding")
        flags.DEFINE_string("images", None, "an image, a folder of images, or a video", flag_values=values)
        flags.DEFINE_string("out", None, "folder for index/ and overlay/", flag_values=values)
        written = "write those of all classes too: float16 [H,W,K] in probabilities/NAME.npz, key probabilities"
        flags.DEFINE_bool("probabilities", False, written, flag_values=values)
        tile = "side in pixels of the tiles in which an image is seen that is too large for the memory; 0: all at once"
        flags.DEFINE_integer("tile", 0, tile, lower_bound=0, flag_values=values)
        overlap = "pixels that neighbouring tiles share; half of them are seen and not used"
        flags.DEFINE_integer("overlap", 128, overlap, lower_bound=0, flag_values=values)

    values = parse(argv, define, predict.__doc__)
    required(values, "workdir", "images", "out")
    from forec_jax.evaluation.tiles import Tiles
    from forec_jax.experiment.use import predict_run

    tiles = Tiles(values.tile, values.overlap).check()
    places = Path(values.images).expanduser(), Path(values.out).expanduser()
    count = predict_run(loaded(values), *places, values.network, probabilities=values.probabilities, tiles=tiles)
    print(f"{count} predictions in {values.out}: index/ holds class indices, overlay/ pictures")
    return 0


def table(argv: Sequence[str]) -> int:
    """Compares trained models: mIoU, a row a run and a column a split; then what the runs differ in.

    forec-jax table --workdirs=runs/supervised,runs/forec --splits=val
    forec-jax table --workdirs=runs/tiny --format=markdown

    The work directory of a sweep has a row for each of its rows: mean, standard deviation and number of runs, and paired
    differences to its baseline.
    """

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_list("workdirs", None, "work directories of training runs or of sweeps", flag_values=values)
        model_flags(values)
        root_flag(values)
        seen_flags(values, "whole", "sliding", "center_crop")
        splits = "splits of the runs' data set; by default val, or what a sweep names"
        flags.DEFINE_list("splits", None, splits, flag_values=values)
        row = "a row (a run, or a method of a sweep) to which paired differences are shown"
        flags.DEFINE_string("baseline", None, row, flag_values=values)
        format_flag(values)

    values = parse(argv, define, table.__doc__)
    required(values, "workdirs")
    from forec_jax.experiment.sweep_state import RECORD
    from forec_jax.experiment.table import compare_runs

    workdirs = folders(values.workdirs)
    if values.baseline or any((workdir / RECORD).exists() for workdir in workdirs):
        _print_rows(workdirs, values)
        return 0
    which = values.splits or ["val"], values.network, values.checkpoint, values.data_root
    found, notes = compare_runs(workdirs, *which, seen(values))
    _print_tables([found], notes, values.format)
    return 0


def format_flag(values: flags.FlagValues) -> None:
    """The flag that says how a table is written."""
    flags.DEFINE_enum("format", "text", ["text", "markdown", "csv", "latex"], "how it is written", flag_values=values)


def _print_rows(workdirs: Sequence[Path], values: flags.FlagValues) -> None:
    """Prints the rows of sweeps, and runs as rows of their own, as the flags of a table say."""
    from forec_jax.experiment.comparison import Columns, compare_rows, records_of

    records = records_of(workdirs, values.baseline or "")
    splits = values.splits or [split for record in records.values() for split in record.splits]
    columns = Columns(list(dict.fromkeys(splits)))
    if not values["checkpoint"].using_default_value:
        columns = columns._replace(checkpoints=(values.checkpoint,))
    if not values["network"].using_default_value:
        columns = columns._replace(networks=(values.network,))
    _print_tables(*compare_rows(records, columns, values.data_root, seen(values)), values.format)


def print_sweep(workdir: Path, form: str) -> None:
    """Prints the table of a sweep as it is by default."""
    from forec_jax.experiment.comparison import Columns, compare_rows, records_of

    records = records_of([workdir], "")
    _print_tables(*compare_rows(records, Columns(records[workdir].splits)), form)


def _print_tables(tables: "Sequence[Table]", notes: Sequence[str], form: str) -> None:
    """Prints tables; what is to know of them goes to stderr where the format has no place for it."""
    from forec_jax.experiment.layout import FORMATS

    written = FORMATS[form](tables, notes)
    print(f"\n{written}" if form == "text" else written)
    for note in notes if form == "csv" else ():
        tell(note)


def threshold(argv: Sequence[str]) -> int:
    """Chooses the threshold of masks from tags by their mIoU on a split.

    forec-jax threshold --workdir=runs/wsss --split=tune
    """

    def define(values: flags.FlagValues) -> None:
        checkpoint_flags(values)
        root_flag(values)
        flags.DEFINE_string("split", "tune", "split whose masks it is chosen on", flag_values=values)

    values = parse(argv, define, threshold.__doc__)
    required(values, "workdir")
    from forec_jax.experiment.load import choose_threshold, load_run

    workdir = Path(values.workdir).expanduser()
    chosen = choose_threshold(
        load_run(workdir, values.checkpoint, values.data_root), workdir, values.split, values.network
    )
    for value, miou in chosen["miou"].items():
        print(f"{value}  {100 * miou:5.2f}{'  *' if float(value) == round(chosen['threshold'], 2) else ''}")
    print(f"threshold {chosen['threshold']:.2f}, chosen on the {chosen['masks']} masks of {values.split}")
    return 0
