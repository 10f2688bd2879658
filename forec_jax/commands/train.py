"""Commands that train, or say what a training needs: train, plan, options."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from forec_jax.commands.arguments import config_flag, exit_code, parse, required, resolve_config


def train(argv: Sequence[str]) -> int:
    """Trains, and goes on where the work directory holds a checkpoint.

    forec-jax train --config=configs/shapes.py:forec --workdir=runs/forec --config.steps=400

    FILE:VARIANT is a file of configs/ and what to train ("+" joins parts: small+mean_teacher+forec). The options that
    --config.key=value sets are listed by: forec-jax options --config=FILE:VARIANT
    """
    values = training_flags(argv)
    from forec_jax.experiment.run import run_training
    from forec_jax.parallel import is_primary, join

    join(values.coordinator, values.processes, values.process, values.bind)
    workdir = Path(values.workdir).expanduser()
    code = exit_code(run_training(values.config, workdir))
    if not code and is_primary():
        print(ending(workdir))
    return code


def training_flags(argv: Sequence[str]) -> flags.FlagValues:
    """The flags of a training: its config with all overrides, its work directory, its processes."""
    argv = resolve_config(argv)

    def define(values: flags.FlagValues) -> None:
        config_flag(values, argv)
        flags.DEFINE_string("workdir", None, "where everything of the run goes", flag_values=values)
        process_flags(values)

    values = parse(argv, define, train.__doc__)
    required(values, "workdir", "config")
    return values


def ending(workdir: Path) -> str:
    """What a finished training says: its scores, its pictures, and the next command."""
    from forec_jax.experiment.workdir import stored_summary

    summary = stored_summary(workdir)
    lines = [f"finished: {workdir}"]
    if "last" in summary:
        scores = {which: summary[which] for which in ("last", "best")}
        said = (f"{which} {percent(found['miou'])} (step {found['step']})" for which, found in scores.items())
        lines.append(f"mIoU       {', '.join(said)}")
    if (workdir / "pictures" / "last.png").exists():
        lines.append(f"pictures   {workdir / 'pictures' / 'last.png'}")
    lines.append(f"next       forec-jax predict --workdir={workdir} --images=FOLDER --out=predictions")
    return "\n".join(lines)


def percent(miou: float | None) -> str:
    """A score in percent; a split without a pixel to count has none."""
    return "none" if miou is None else f"{100 * miou:.2f} %"


def process_flags(values: flags.FlagValues) -> None:
    """The flags that join processes to one run; Slurm, Open MPI and TPU pods need none of them."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0", flag_values=values)
    bind = "address on which process 0 listens for the others (docs/launch.md); by default loopback where it can"
    flags.DEFINE_string("bind", None, bind, flag_values=values)
    flags.DEFINE_integer("processes", None, "how many processes", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("process", None, "which one this is, from 0", lower_bound=0, flag_values=values)


def plan(argv: Sequence[str]) -> int:
    """Tells what a training needs, without running it: parameters, FLOPs, memory, hours.

    forec-jax plan --config=configs/voc.py:forec --config.data.root=VOCdevkit --rate=60
    """

    argv = resolve_config(argv)

    def define(values: flags.FlagValues) -> None:
        config_flag(values, argv)
        flags.DEFINE_integer("devices", None, "virtual CPU devices, not the machine's own", 1, flag_values=values)
        flags.DEFINE_float("rate", None, "images a second, for the hours", 1e-9, flag_values=values)
        flags.DEFINE_integer("pool", None, "images of the pool, for the epochs", 1, flag_values=values)

    values = parse(argv, define, plan.__doc__)
    required(values, "config")
    import jax

    if values.devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", values.devices)
    from forec_jax.experiment.plan import describe, plan_training

    print(describe(plan_training(values.config), values.config.steps, values.rate, values.pool))
    return 0


def options(argv: Sequence[str]) -> int:
    """Lists options with their defaults and meanings: all, or those that apply to a config, with its values.

    forec-jax options optim
    forec-jax options --config=configs/voc.py:small+ps_mt
    """
    prefix = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else ""
    argv = [argv[0], *argv[2:]] if prefix else argv
    argv = resolve_config(argv)

    def define(values: flags.FlagValues) -> None:
        config_flag(values, argv)
        flags.DEFINE_bool("markdown", False, "print docs/options.md", flag_values=values)

    values = parse(argv, define, options.__doc__)
    from forec_jax.experiment.listing import options_page, options_table

    print(
        options_page() if values.markdown else options_table(prefix, values.config), end="" if values.markdown else "\n"
    )
    return 0
