"""The command that trains many configs and compares them."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from forec_jax.commands.arguments import exit_code, parse, required
from forec_jax.commands.process import EXPLAINED, tell
from forec_jax.commands.train import percent, train, training_flags
from forec_jax.commands.use import format_flag, print_sweep

if TYPE_CHECKING:
    from forec_jax.experiment.jobs import Ended, Job
    from forec_jax.experiment.sweep import Planned, Sweep
    from forec_jax.experiment.sweep_state import State

LOG = "log.txt"
"""In a run's folder: what its training printed."""

FAILED = 1


def sweep(argv: Sequence[str]) -> int:
    """Trains methods x options x seeds x label lists, each in a process of its own, and compares them.

    forec-jax sweep --sweep=configs/sweeps/tiny.toml --workdir=runs/tiny
    forec-jax sweep --config=configs/shapes.py --methods=supervised,forec --seeds=0,1,2 --workdir=runs/two

    A run that is finished is left as it is, one that was stopped goes on, one that fails stops no other. --dry_run shows
    what there is to do. --config.key=value is an option of all runs. What a sweep file holds: docs/sweeps.md.
    """
    given = _given(argv)
    argv = [argument for argument in argv if not argument.startswith("--config.")]
    values = parse(argv, _flags, sweep.__doc__)
    required(values, "workdir")
    from forec_jax.experiment.sweep import trainings
    from forec_jax.experiment.sweep_state import keep_record

    workdir, what = Path(values.workdir).expanduser(), _sweep_of(values)
    planned = trainings(what, given)
    states = _states(planned, workdir, what.source)
    workdir.mkdir(parents=True, exist_ok=True)
    keep_record(workdir, planned, values.splits or what.splits)
    if values.dry_run:
        print(_plan(planned, states, workdir, values.rate))
        print(f"as a Slurm array: {_array_command(argv, given, len(planned))}")
        return 0
    if values.array_index is not None:
        return _one_of_an_array(planned, states, workdir, values.array_index)
    open_runs = [run for run, (state, _) in zip(planned, states, strict=True) if not state.done]
    tell(f"{len(planned)} runs: {len(planned) - len(open_runs)} done, {len(open_runs)} to do")
    failed, stopped_by = _train_all(open_runs, workdir, values.jobs)
    try:
        if stopped_by is None:
            print_sweep(workdir, values.format)
    finally:
        for line in failed:
            tell(line)
    if failed:
        tell(f"{len(failed)} of {len(planned)} runs failed; the same command tries them again and leaves the others")
    return exit_code(stopped_by) or (FAILED if failed else 0)


def _flags(values: flags.FlagValues) -> None:
    """The flags of a sweep."""
    flags.DEFINE_string("sweep", None, "the sweep's file, such as configs/sweeps/tiny.toml", flag_values=values)
    config = "instead of a file: FILE[:VARIANT], to which each method is added"
    flags.DEFINE_string("config", None, config, flag_values=values)
    flags.DEFINE_list("methods", None, "instead of a file: methods, such as supervised,forec", flag_values=values)
    flags.DEFINE_list("seeds", None, "instead of a file: seeds, such as 0,1,2", flag_values=values)
    lists = "instead of a file: label lists or draws (data.labelled), such as 92:0,92:1"
    flags.DEFINE_list("lists", None, lists, flag_values=values)
    vary = (
        "instead of a file: KEY=VALUE,VALUE,...: an option whose values all methods are trained with; may be repeated"
    )
    flags.DEFINE_multi_string("vary", [], vary, flag_values=values)
    flags.DEFINE_string("workdir", None, "where everything of the sweep goes", flag_values=values)
    at_once = "runs at a time, each with as many cores of its own"
    flags.DEFINE_integer("jobs", 1, at_once, lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "array_index", None, "train this run alone, from 0 (--dry_run lists them)", 0, flag_values=values
    )
    flags.DEFINE_bool("dry_run", False, "list runs and hours, and train nothing", flag_values=values)
    rate = "images a second, for the hours of --dry_run; by default what runs of the same row have shown"
    flags.DEFINE_float("rate", None, rate, 1e-9, flag_values=values)
    baseline = "the method that the others are compared with; stands over the file's"
    flags.DEFINE_string("baseline", None, baseline, flag_values=values)
    flags.DEFINE_list("splits", None, "splits that the table shows; stand over the file's", flag_values=values)
    format_flag(values)


def _given(argv: Sequence[str]) -> dict[str, str]:
    """The options of all runs: --config.key=value."""
    pairs = (a.removeprefix("--config.").partition("=") for a in argv if a.startswith("--config."))
    return {key: value for key, _, value in pairs}


def _sweep_of(values: flags.FlagValues) -> "Sweep":
    """The sweep that a file or the flags describe."""
    from forec_jax.experiment.sweep import Sweep, axis, method_choice, read_sweep

    by_flags = [name for name in ("config", "methods", "seeds", "lists", "vary") if values[name].value]
    if values.sweep:
        if by_flags:
            raise flags.Error(f"--{by_flags[0]} stands in the sweep's file; give --sweep, or the flags alone")
        found = read_sweep(values.sweep)
        return found._replace(baseline=values.baseline or found.baseline)
    if not by_flags:
        raise flags.Error("--sweep is missing; or give --config and --methods")
    required(values, "config", "methods")
    varied = []
    for argument in values.vary:
        key, equals, listed = argument.partition("=")
        if not equals or not listed:
            raise flags.Error(f"--vary={argument}: write KEY=VALUE,VALUE, such as --vary=optim.lr=1e-3,1e-4")
        varied.append(axis(key, listed.split(",")))
    repeated = {"seed": values.seeds or ["0"]} | ({"data.labelled": values.lists} if values.lists else {})
    return Sweep(
        "the flags",
        values.config,
        [method_choice(variant) for variant in values.methods],
        options={},
        vary=varied,
        repeat=[axis(key, listed) for key, listed in repeated.items()],
        baseline=values.baseline or "",
    )


def _states(planned: Sequence["Planned"], workdir: Path, source: str) -> list[tuple["State", ConfigDict]]:
    """How far each run is, and its config. Raises ValueError, before anything is trained, where one cannot be."""
    from forec_jax.experiment.sweep_state import state_of

    found = []
    for run in planned:
        try:
            c = training_flags(run.arguments(workdir)).config
            found.append((state_of(workdir / run.folder, c), c))
        except EXPLAINED as error:
            raise ValueError(f"{source}: {run.name}: {error}") from error
    return found


def _one_of_an_array(
    planned: Sequence["Planned"], states: Sequence[tuple["State", ConfigDict]], workdir: Path, index: int
) -> int:
    """Trains one run in this very process, which Slurm's signals then reach once."""
    if index >= len(planned):
        raise flags.Error(f"--array_index={index}: there are {len(planned)} runs, 0 to {len(planned) - 1}")
    run, (state, _) = planned[index], states[index]
    tell(f"run {index} of {len(planned)}: {run.name}" + (": done" if state.done else ""))
    return 0 if state.done else train(run.arguments(workdir))


def _train_all(runs: Sequence["Planned"], workdir: Path, at_once: int) -> tuple[list[str], int | None]:
    """Trains runs; returns a line for each that failed, and the signal that stopped the sweep, if one did."""
    from forec_jax.experiment.jobs import Job, run_jobs

    failed: list[str] = []
    count = 0

    def began(job: "Job") -> None:
        nonlocal count
        count += 1
        tell(f"[{count}/{len(runs)}] {job.name}: begins (log: {job.log})")

    def ended(end: "Ended") -> None:
        minutes = f"{end.seconds / 60:.1f} min"
        if end.code:
            failed.append(f"FAILED: {end.job.name}, {_how(end.code)}: {_last_line(end.job.log)} (log: {end.job.log})")
            tell(f"{end.job.name}: {_how(end.code)} after {minutes}")
        else:
            tell(f"{end.job.name}: {_scores(end.job.log.parent)} ({minutes})")

    jobs = [Job(run.name, _command(run, workdir), workdir / run.folder / LOG) for run in runs]
    stopped_by = run_jobs(jobs, at_once, began=began, ended=ended)
    return failed, stopped_by


def _command(run: "Planned", workdir: Path) -> list[str]:
    """The command that trains a run in a process of its own."""
    return [sys.executable, "-m", "forec_jax", *run.arguments(workdir)]


def _how(code: int) -> str:
    """An exit code in words."""
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _last_line(log: Path) -> str:
    """The last thing that a training said; of a bar that was drawn again and again the last one."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _scores(folder: Path) -> str:
    """What a finished run found."""
    from forec_jax.experiment.sweep_state import summary_of

    found: Mapping[str, Mapping[str, float | None]] = summary_of(folder)
    if "last" not in found:
        return "finished"
    return f"mIoU {percent(found['last']['miou'])} (best {percent(found['best']['miou'])})"


def _plan(
    planned: Sequence["Planned"], states: Sequence[tuple["State", ConfigDict]], workdir: Path, rate: float | None
) -> str:
    """The runs, how far they are, and the hours that are left of each."""
    from forec_jax.experiment.plan import hours
    from forec_jax.experiment.sweep_state import rate_of

    folders: dict[str, list[Path]] = {}
    for run in planned:
        folders.setdefault(run.row, []).append(workdir / run.folder)
    rates = {row: rate or rate_of(places) for row, places in folders.items()}
    lines, left, unknown = [], 0.0, 0
    for number, (run, (state, c)) in enumerate(zip(planned, states, strict=True)):
        said = "done" if state.done else f"step {state.step} of {c.steps}" if state.step else f"{c.steps} steps"
        if not state.done and (measured := rates[run.row]):
            needed = hours((c.steps - state.step) * sum(c.batch.values()), measured)
            left, said = left + needed, f"{said}, {needed:.2f} hours"
        unknown += not state.done and not rates[run.row]
        lines.append(f"{number:>4}  {run.name}: {said}")
    done = sum(state.done for state, _ in states)
    total = [f"{len(planned)} runs, {done} done"]
    if unknown < len(planned):
        total.append(f"{left:.1f} hours are left, one after another, without evaluations")
    if unknown:
        total.append(f"{unknown} runs have no rate yet: give one by --rate (forec-jax plan says what it is of)")
    return "\n".join([*lines, "; ".join(total)])


def _array_command(argv: Sequence[str], given: Mapping[str, str], count: int) -> str:
    """The line that trains all runs as an array of Slurm."""
    leave = ("--dry_run", "--rate", "--jobs", "--array_index")
    rest = [a for a in argv[1:] if not a.startswith(leave)] + [
        f"--config.{key}={value}" for key, value in given.items()
    ]
    return shlex.join(["sbatch", f"--array=0-{count - 1}", "launch/sweep.sbatch", *rest])
