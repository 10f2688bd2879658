"""The command that trains in stages: ST, ST++, or from image tags."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from forec_jax.commands.arguments import (
    exit_code,
    overridden,
    parse,
    renamed,
    required,
    resolve_config,
    scale_flag,
    scales_of,
    with_choices,
)
from forec_jax.commands.data import mask_flags, mask_options
from forec_jax.config import load_config


def chain(argv: Sequence[str]) -> int:
    """Trains in stages, all in a row; the same command goes on where it was stopped.

    forec-jax chain --config=configs/voc.py:st_plus_plus --config.data.root=VOCdevkit --workdir=runs/st --first.steps=4000
    forec-jax chain --config=configs/tags.py:shapes --workdir=runs/tags --wsss.steps=400

    st and st_plus_plus, which other parts of a variant may go with, train from labels, write masks for the other images and
    train beside these. --config.key=value is an option of all trainings; --first.key, --second.key and (st_plus_plus)
    --third.key of one. configs/tags.py goes from image tags to a segmenter: --classifier.key, --wsss.key, --segmenter.key.
    """
    from forec_jax.experiment.self_training import chain_of

    return _self_training(argv) if chain_of(_given(argv).partition(":")[2]) else _from_tags(argv)


def _self_training(argv: Sequence[str]) -> int:
    """ST and ST++."""
    from forec_jax.experiment.self_training import HandOver, chain_of, run_self_training, stage_variants

    file, _, variant = _given(argv).partition(":")
    variants = stage_variants(variant)
    # All options are those of the last training, whose method is st: the first may have fewer.
    argv = resolve_config([f"--config={file}:{[*variants.values()][-1]}" if _names_config(a) else a for a in argv])
    file = _given(argv).partition(":")[0]
    files = {stage: f"{file}:{stage_variant}" for stage, stage_variant in variants.items()}
    argv = _for_stages(_shared(argv, tuple(files)), files)
    defaults = HandOver()

    def define(values: flags.FlagValues) -> None:
        _stage_flags(values, argv, files)
        network = "which network of a training labels; published: the one that is trained"
        flags.DEFINE_enum("network", defaults.network, ["student", "teacher"], network, flag_values=values)
        which = "which of its checkpoints; best: by the score on the validation images"
        flags.DEFINE_enum("checkpoint", defaults.checkpoint, ["last", "best"], which, flag_values=values)
        scale_flag(values, defaults.scales)
        flags.DEFINE_bool(
            "flips", defaults.flips, "label the mirrored image as well, and take the mean", flag_values=values
        )
        reliable = "st_plus_plus: share of the images, those with the most reliable masks, of the second training"
        flags.DEFINE_float("keep", defaults.keep, reliable, 0, 1, flag_values=values)

    values = parse(argv, define, chain.__doc__)
    required(values, "config", "workdir")
    how = HandOver(values.network, values.checkpoint, scales_of(values), values.flips, values.keep)
    workdir, configs = Path(values.workdir).expanduser(), _configs(values, files)
    if code := exit_code(run_self_training(chain_of(variant), configs, workdir, how)):
        return code
    print(f"\nmIoU (%) of the {how.network}, last checkpoint; masks by the {how.checkpoint} one\n")
    _print_table(workdir, tuple(files), configs["first"].eval.split, how.network)
    return 0


def _from_tags(argv: Sequence[str]) -> int:
    """From image tags to a segmenter: classifier, WSSSByRec, its masks, segmenter."""
    from forec_jax.experiment.stages import STAGES, run_chain

    argv = resolve_config(argv)
    given = _given(argv)
    files = {stage: f"{given}{'+' if ':' in given else ':'}{stage}" for stage in STAGES if given}
    argv = _for_stages(argv, files)

    def define(values: flags.FlagValues) -> None:
        _stage_flags(values, argv, files)
        flags.DEFINE_string("split", "tune", "split whose masks the thresholds are chosen on", flag_values=values)
        mask_flags(values, 0.5)

    values = parse(argv, define, chain.__doc__)
    required(values, "config", "workdir")
    workdir, configs = Path(values.workdir).expanduser(), _configs(values, files)
    if code := exit_code(run_chain(configs, workdir, split=values.split, masks=mask_options(values))):
        return code
    print("\nmIoU (%) of the teacher, last checkpoint\n")
    _print_table(workdir, STAGES, "val", "teacher")
    return 0


def _given(argv: Sequence[str]) -> str:
    """What --config names; "" where it is missing."""
    return next((a.removeprefix("--config=") for a in argv if _names_config(a)), "")


def _names_config(argument: str) -> bool:
    return argument.startswith("--config=")


def _shared(argv: Sequence[str], stages: Sequence[str]) -> list[str]:
    """The arguments with --config.key=value given to every stage instead, before what is given to one alone."""
    of_all = [a.removeprefix("--config") for a in argv if a.startswith("--config.")]
    rest = [a for a in argv if not a.startswith("--config.")]
    return [rest[0], *(f"--{stage}{option}" for stage in stages for option in of_all), *rest[1:]]


def _for_stages(argv: Sequence[str], files: Mapping[str, str]) -> list[str]:
    """The arguments with the options of every stage under their names of today."""
    argv = list(argv)
    for stage, file in files.items():
        c = with_choices(load_config(file, {}), overridden(argv, stage))
        argv = [renamed(argument, stage, c) for argument in argv]
    return argv


def _stage_flags(values: flags.FlagValues, argv: Sequence[str], files: Mapping[str, str]) -> None:
    """The flags of every chain: its config, its work directory, and the options of its stages."""
    flags.DEFINE_string("config", None, "FILE[:VARIANT], such as configs/voc.py:st_plus_plus", flag_values=values)
    for stage, file in files.items():
        config_flags.DEFINE_config_file(stage, file, "a stage's options", flag_values=values, sys_argv=list(argv))
    flags.DEFINE_string("workdir", None, "where everything of the stages goes", flag_values=values)


def _configs(values: flags.FlagValues, stages: Mapping[str, str]) -> dict[str, ConfigDict]:
    """The stages' configs."""
    return {stage: values[stage].value for stage in stages}


def _print_table(workdir: Path, stages: Sequence[str], split: str, network: str) -> None:
    """The scores of the stages side by side."""
    from forec_jax.experiment.layout import as_text
    from forec_jax.experiment.table import compare_runs

    table, notes = compare_runs([workdir / stage for stage in stages], [split], network, "last")
    print(as_text([table._replace(caption="")], notes))
