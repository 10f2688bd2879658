"""The command that trains in stages: ST, ST++, DMT, or from image tags."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from forec_jax.commands.arguments import (
    exit_code,
    given_options,
    option_flags,
    overridden,
    parse,
    renamed,
    required,
    resolve_config,
    with_choices,
)
from forec_jax.commands.data import mask_flags, mask_options
from forec_jax.config import load_config
from forec_jax.keys import new_key
from forec_jax.overrides import check_keys


def chain(argv: Sequence[str]) -> int:
    """Trains in stages, all in a row; the same command goes on where it was stopped.

    forec-jax chain --config=configs/voc.py:st_plus_plus --config.data.root=VOCdevkit --workdir=runs/st --first.steps=4000
    forec-jax chain --config=configs/voc.py:dmt+forec --config.data.root=VOCdevkit --workdir=runs/dmt --b.model.weights=FILE
    forec-jax chain --config=configs/tags.py:shapes --workdir=runs/tags --wsss.steps=400

    st, st_plus_plus and dmt train from labels, write masks for the other images and train beside these. Other parts of the
    variant go to all trainings, but for a method, which is that of the first ones in place of supervised.
    --config.key=value is an option of all trainings; --first.key, --second.key and (st_plus_plus) --third.key of one.
    dmt: --first.key and --rounds.key of both networks, --a.key and --b.key of one, --first_a.key and so on of one alone.
    configs/tags.py goes from image tags to a segmenter: --classifier.key, --wsss.key, --segmenter.key.
    """
    from forec_jax.experiment.chains import chain_of

    return _named(argv) if chain_of(_given(argv).partition(":")[2]) else _from_tags(argv)


def _named(argv: Sequence[str]) -> int:
    """The chain that a variant names."""
    from forec_jax.experiment.chains import CHAINS, begin_chain, chain_of, training_variants
    from forec_jax.experiment.stages import TrainingStage, run_stages

    file, _, variant = _given(argv).partition(":")
    variants = training_variants(variant)
    # All options are those of the last training, whose method learns from stored masks: the first may have fewer.
    argv = resolve_config([f"--config={file}:{list(variants.values())[-1]}" if _names_config(a) else a for a in argv])
    file = _given(argv).partition(":")[0]
    files = {kind: f"{file}:{of_kind}" for kind, of_kind in variants.items()}
    name = chain_of(variant)
    groups, options = CHAINS[name].groups, CHAINS[name].options
    for group, kinds in {**groups, **{kind: (kind,) for kind in files}}.items():
        _check_keys(argv, group, [files[kind] for kind in kinds])
    argv = _for_stages(_shared(argv, {"config": tuple(files), **groups}), files)

    def define(values: flags.FlagValues) -> None:
        _stage_flags(values, argv, files)
        option_flags(values, options)

    values = parse(argv, define, chain.__doc__)
    required(values, "config", "workdir")
    how = given_options(values, options)
    workdir, configs = Path(values.workdir).expanduser().absolute(), _configs(values, files)
    stages = begin_chain(name, configs, workdir, how)
    if code := exit_code(run_stages(stages, workdir)):
        return code
    print(f"\nmIoU (%) of the {how.network}, last checkpoint; handed over was the {how.checkpoint} one\n")
    trainings = [stage.name for stage in stages if isinstance(stage, TrainingStage)]
    _print_table(workdir, trainings, next(iter(configs.values())).eval.split, how.network)
    return 0


def _from_tags(argv: Sequence[str]) -> int:
    """From image tags to a segmenter: classifier, WSSSByRec, its masks, segmenter."""
    from forec_jax.experiment.stages import STAGES, run_chain

    # An option of all trainings need not be one of the config that they start from.
    shared = [a for a in argv if a.startswith("--config.")]
    argv = resolve_config([a for a in argv if not a.startswith("--config.")])
    given = _given(argv)
    files = {stage: f"{given}{'+' if ':' in given else ':'}{stage}" for stage in STAGES if given}
    _check_keys(shared, "config", list(files.values()))
    argv = _for_stages(_shared([*argv, *shared], {"config": tuple(files)}), files)

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


def _check_keys(argv: Sequence[str], group: str, files: Sequence[str]) -> None:
    """Raises ValueError for --GROUP.key=value with a key that no stage of the group uses."""
    given = overridden(argv, group)
    errors = []
    for file in files if given else ():
        c = with_choices(load_config(file, {}), given)
        try:
            check_keys(c, [new_key(key, c.model.encoder) for key in given], group)
        except ValueError as error:
            errors.append(error)
    if errors and len(errors) == len(files):
        raise errors[-1]


def _shared(argv: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The arguments with --GROUP.key=value given to every stage of the group instead, before what is given to one alone.

    Of two groups the later one wins.
    """
    rest, shared = list(argv), []
    for group, stages in groups.items():
        given = [a.removeprefix(f"--{group}") for a in rest if a.startswith(f"--{group}.")]
        rest = [a for a in rest if not a.startswith(f"--{group}.")]
        shared += [f"--{stage}{option}" for stage in stages for option in given]
    return [rest[0], *shared, *rest[1:]]


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
