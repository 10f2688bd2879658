"""Commands that draw: visualize, report, labels."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from forec_jax.commands.arguments import (
    checkpoint_flags,
    config_flag,
    folders,
    model_flags,
    parse,
    required,
    resolve_config,
    root_flag,
)

if TYPE_CHECKING:
    from forec_jax.experiment.load import Run


def visualize(argv: Sequence[str]) -> int:
    """Shows what models make of images, and what their reconstruction decoders learned (docs/visualize.md).

    forec-jax visualize --workdir=runs/supervised,runs/forec --images=photos --out=sheets
    forec-jax visualize --what=classes --workdir=runs/reco --out=sheets
    """

    def define(values: flags.FlagValues) -> None:
        checkpoint_flags(values)
        root_flag(values)
        what = "images: predictions and latent images; classes: how alike the classes' features are, and ReCo's queries"
        flags.DEFINE_enum("what", "images", ["images", "classes"], what, flag_values=values)
        flags.DEFINE_string("images", None, "an image, a folder, or ids of the evaluation split", flag_values=values)
        flags.DEFINE_string("out", None, "folder for the sheets and figures", flag_values=values)
        flags.DEFINE_string("class", None, "whose mask; by default each image's largest object's", flag_values=values)
        flags.DEFINE_integer("k", 4, "latent images on a sheet", lower_bound=0, flag_values=values)
        flags.DEFINE_string("correlate", None, "split over which latents.json is measured", flag_values=values)

    values = parse(argv, define, visualize.__doc__)
    required(values, "workdir", "out")
    if values.what == "classes":
        return visualize_classes(values)
    if not values.images and not values.correlate:
        raise flags.Error("--images or --correlate is missing: say what to show, or over which split to measure")
    from forec_jax.experiment.figures import correlate_runs, visualize_runs

    runs, out = runs_of(values), Path(values.out).expanduser()
    if values.images:
        options = {"network": values.network, "class_name": values["class"].value, "count": values.k}
        print(f"{visualize_runs(runs, values.images, out, **options)} sheets in {out}")
    if values.correlate:
        for name, found in correlate_runs(runs, values.correlate, out)["runs"].items():
            print(f"{name}: mean correlation {found['mean_correlation']}, by class in {out / 'latents.json'}")
    return 0


def runs_of(values: flags.FlagValues) -> "dict[str, Run]":
    """The models that --workdir names."""
    from forec_jax.experiment.figures import load_runs

    return load_runs(folders(values.workdir.split(",")), values.checkpoint, values.data_root)


def visualize_classes(values: flags.FlagValues) -> int:
    """Shows how alike the features of the classes are and, on images, which queries and keys ReCo draws."""
    from forec_jax.experiment.figures import query_runs, relate_runs

    runs, out = runs_of(values), Path(values.out).expanduser()
    if values.images:
        print(f"{query_runs(runs, values.images, out, values['class'].value)} sheets in {out / 'queries'}")
    for name, found in relate_runs(runs, out).items():
        for embedding in ("encoder", "representation"):
            if embedding in found:
                mean = found[embedding]["mean_similarity"]
                shown = "none: fewer than two classes occur" if mean is None else f"{mean:.3f}"
                print(f"{name}, {embedding}: mean similarity of two classes {shown}")
    print(f"matrix and dendrogram in {out / 'classes.png'}, figures in {out / 'classes.json'}")
    return 0


def report(argv: Sequence[str]) -> int:
    """Writes one page that shows runs: scores, curves, confusion, examples, options. A browser opens it without network.

    forec-jax report runs/supervised runs/forec --out=report.html
    """
    folders_given = list(itertools.takewhile(lambda argument: not argument.startswith("-"), argv[1:]))

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_list("workdir", folders_given, "work directories of the runs", flag_values=values)
        model_flags(values)
        root_flag(values)
        flags.DEFINE_string("out", None, "the page, an HTML file", flag_values=values)
        flags.DEFINE_integer("examples", 6, "images that are shown", lower_bound=0, flag_values=values)
        scored = "score the runs anew, for the confusion matrix; without it: the scores that their trainings logged"
        flags.DEFINE_bool("score", True, scored, flag_values=values)

    values = parse([argv[0], *argv[1 + len(folders_given) :]], define, report.__doc__)
    required(values, "workdir", "out")
    from forec_jax.experiment.report import write_report

    out = Path(values.out).expanduser()
    which = {"network": values.network, "checkpoint": values.checkpoint, "root": values.data_root}
    write_report(folders(values.workdir), out, **which, examples=values.examples, score=values.score)
    print(f"{out}: open it in a browser")
    return 0


def labels(argv: Sequence[str]) -> int:
    """Shows the masks that a training learns from, and what partial labels leave of them.

    forec-jax labels --config=configs/shapes.py:partial_1pc --out=sheets --partial=1px,1%
    """

    argv = resolve_config(argv)

    def define(values: flags.FlagValues) -> None:
        config_flag(values, argv)
        flags.DEFINE_string("out", None, "folder for the sheets", flag_values=values)
        flags.DEFINE_list("partial", None, "shares to compare, 1px,1%,5%; by default data.partial", flag_values=values)
        flags.DEFINE_integer("count", 8, "how many labelled images", lower_bound=1, flag_values=values)

    values = parse(argv, define, labels.__doc__)
    required(values, "config", "out")
    from forec_jax.experiment.figures import show_labels
    from forec_jax.experiment.sources import build_training_data

    c = values.config
    own = [c.data.partial] if c.data.partial else []
    shares = own if values.partial is None else values.partial
    c.data.partial = ""  # the sheets show the whole masks too
    count = show_labels(
        build_training_data(c), shares, Path(values.out).expanduser(), values.count, c.data.partial_rounding
    )
    print(f"{count} sheets in {values.out}")
    return 0
