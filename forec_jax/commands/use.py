"""Commands that use trained models: evaluate, predict, table, threshold."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from forec_jax.commands.arguments import checkpoint_flags, folders, parse, required, root_flag


def evaluate(argv: Sequence[str]) -> int:
    """Scores a trained model on a split of its data set.

    forec-jax evaluate --workdir=runs/forec --split=val --checkpoint=best
    """

    def define(values: flags.FlagValues) -> None:
        checkpoint_flags(values)
        root_flag(values)
        flags.DEFINE_string("split", "val", "which split of the run's data set", flag_values=values)

    values = parse(argv, define, evaluate.__doc__)
    required(values, "workdir")
    from forec_jax.evaluation.metrics import format_iou
    from forec_jax.experiment.load import load_run
    from forec_jax.experiment.use import evaluate_run

    run = load_run(Path(values.workdir).expanduser(), values.checkpoint, values.data_root)
    evaluation = evaluate_run(run, values.split, values.network)
    print(format_iou(evaluation.confusion, run.labels.classes))
    network = values.network if run.state.teacher else "student"
    print(f"{network} {values.checkpoint} step {int(run.state.step)} on {values.split}: {evaluation.miou:.4f} mIoU")
    return 0


def predict(argv: Sequence[str]) -> int:
    """Predicts images: index/ holds class indices, overlay/ pictures.

    forec-jax predict --workdir=runs/forec --images=photos --out=predictions
    """

    def define(values: flags.FlagValues) -> None:
        checkpoint_flags(values)
        flags.DEFINE_string("images", None, "an image, or a folder of images", flag_values=values)
        flags.DEFINE_string("out", None, "folder for index/ and overlay/", flag_values=values)

    values = parse(argv, define, predict.__doc__)
    required(values, "workdir", "images", "out")
    from forec_jax.experiment.load import load_run
    from forec_jax.experiment.use import predict_run

    run = load_run(Path(values.workdir).expanduser(), values.checkpoint)
    count = predict_run(run, Path(values.images).expanduser(), Path(values.out).expanduser(), values.network)
    print(f"{count} predictions in {values.out}: index/ holds class indices, overlay/ pictures")
    return 0


def table(argv: Sequence[str]) -> int:
    """Compares trained models: mIoU, a row a run and a column a split.

    forec-jax table --workdirs=runs/supervised,runs/forec --splits=val
    """

    def define(values: flags.FlagValues) -> None:
        checkpoint_flags(values)
        root_flag(values)
        flags.DEFINE_list("workdirs", None, "work directories of training runs", flag_values=values)
        flags.DEFINE_list("splits", "val", "splits of the runs' data set", flag_values=values)

    values = parse(argv, define, table.__doc__)
    required(values, "workdirs")
    from forec_jax.experiment.use import compare_runs

    print(f"\nmIoU (%) of the {values.network}, {values.checkpoint} checkpoint\n")
    which = values.splits, values.network, values.checkpoint, values.data_root
    print(compare_runs(folders(values.workdirs), *which))
    return 0


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
