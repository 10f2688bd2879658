"""The command `forec-jax`: one short function a subcommand."""

import errno
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_flags

from forec_jax.config import check_keys, config_path, load_config

Command = Callable[[Sequence[str]], int]

USAGE = """usage: forec-jax COMMAND [--flag=value ...]

  train      --config=FILE[:VARIANT] --workdir=DIR [--config.key=value ...]   goes on where DIR holds a checkpoint
             [--coordinator=HOST:PORT --processes=N --process=I]             one of several processes (launch/README.md)
  plan       --config=FILE[:VARIANT] [--devices=N] [--pool=IMAGES] [--rate=IMAGES/S]
                                                                           parameters, FLOPs, memory, hours; runs nothing
  evaluate   --workdir=DIR [--split=val] [--network=teacher|student] [--checkpoint=last|best]
  predict    --workdir=DIR --images=FILE|FOLDER --out=DIR [--network=...] [--checkpoint=...]
  visualize  --workdir=DIR[,DIR] --out=DIR --images=FILE|FOLDER|ID,ID [--class=NAME] [--k=4] [--correlate=SPLIT]
  visualize  --what=classes --workdir=DIR[,DIR] --out=DIR [--images=...]       class relations, ReCo's queries and keys
  labels     --config=FILE[:VARIANT] --out=DIR [--partial=1px,1%] [--count=8]    the masks that a training learns from
  table      --workdirs=DIR,DIR [--splits=val,...] [--network=...] [--checkpoint=...]       mIoU of several runs
  threshold  --workdir=DIR [--split=tune] [--network=...] [--checkpoint=...]      chooses the threshold of masks from tags
  bridge     --workdir=DIR --out=FOLDER [--keep=0.5] [--confidence=0.7] ...       masks from tags as labels (docs/data.md)
  chain      --config=configs/tags.py:DATA --workdir=DIR [--wsss.key=value ...]    classifier, WSSSByRec, bridge, segmenter
  prepare    --dataset=voc|camvid|cityscapes|sunrgbd|folder --source=FOLDER [--prepared=DIR]
  voc-masks  --source=VOCdevkit --sbd=FOLDER --out=FOLDER       VOC-Aug's masks from VOC's and SBD's own files
  convert    --from=SOURCE --arch=resnet101 --weights=FILE --out=FILE.safetensors [--network=...]   PyTorch's weights

FILE is for example configs/shapes.py, configs/voc.py or, for your own images, configs/folder.py;
`forec-jax COMMAND --help` tells a command's flags.
"""


def parse(argv: Sequence[str], define: Callable[[flags.FlagValues], None]) -> flags.FlagValues:
    """The flags of a subcommand."""
    values = flags.FlagValues()
    define(values)
    flags.DEFINE_bool("help", False, "shows the flags", short_name="h", flag_values=values)
    rest = values([f"forec-jax {argv[0]}", *argv[1:]])[1:]
    if rest:
        raise flags.Error(f"unexpected argument {rest[0]!r}; flags are written --flag=value")
    if values.help:
        print(values.main_module_help() or values.get_help())
        raise SystemExit(0)
    return values


def required(values: flags.FlagValues, *names: str) -> None:
    """Raises where a flag that has no default was not given."""
    for name in names:
        if not values[name].value:
            raise flags.Error(f"--{name} is missing")


def checkpoint_flags(values: flags.FlagValues) -> None:
    """The flags that choose a stored model."""
    flags.DEFINE_string("workdir", None, "work directory of a training run", flag_values=values)
    flags.DEFINE_enum("network", "teacher", ["teacher", "student"], "which network", flag_values=values)
    flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "which checkpoint", flag_values=values)


def process_flags(values: flags.FlagValues) -> None:
    """The flags that join processes to one run; Slurm, Open MPI and TPU pods need none of them."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0", flag_values=values)
    flags.DEFINE_integer("processes", None, "how many processes", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("process", None, "which one this is, from 0", lower_bound=0, flag_values=values)


def train(argv: Sequence[str]) -> int:
    """Trains."""

    argv = resolve_config(argv)

    def define(values: flags.FlagValues) -> None:
        config_flag(values, argv)
        flags.DEFINE_string("workdir", None, "where everything of the run goes", flag_values=values)
        process_flags(values)

    values = parse(argv, define)
    required(values, "workdir", "config")
    from forec_jax.parallel import join
    from forec_jax.runs import run_training

    join(values.coordinator, values.processes, values.process)
    return exit_code(run_training(values.config, Path(values.workdir)))


def exit_code(stopped_by: int | None) -> int:
    """A training's, with a word where a signal ended it."""
    if stopped_by is None:
        return 0
    tell(f"stopped by signal {stopped_by}; the same command goes on from here")
    return 128 + stopped_by


def tell(text: str) -> None:
    """A line on stderr, which may be a file on a full disk: then the exit code alone has to say it."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def plan(argv: Sequence[str]) -> int:
    """Tells what a training needs, without running it."""

    argv = resolve_config(argv)

    def define(values: flags.FlagValues) -> None:
        config_flag(values, argv)
        flags.DEFINE_integer("devices", None, "virtual CPU devices, not the machine's own", 1, flag_values=values)
        flags.DEFINE_float("rate", None, "images a second, for the hours", 1e-9, flag_values=values)
        flags.DEFINE_integer("pool", None, "images of the pool, for the epochs", 1, flag_values=values)

    values = parse(argv, define)
    required(values, "config")
    import jax

    if values.devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", values.devices)
    from forec_jax.planning import describe, plan_training

    print(describe(plan_training(values.config), values.config.steps, values.rate, values.pool))
    return 0


def config_flag(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flag --config=FILE[:VARIANT], with its overrides among `argv`."""
    # ml_collections reads the overrides from the process's arguments unless it is told otherwise.
    config_flags.DEFINE_config_file("config", None, "FILE[:VARIANT]", flag_values=values, sys_argv=list(argv))


def resolve_config(argv: Sequence[str]) -> list[str]:
    """The arguments with --config's file found. Raises ValueError for an unknown file, variant or key, by name."""
    resolved = []
    for argument in argv:
        if argument.startswith("--config="):
            path = config_path(argument.removeprefix("--config="))
            check_keys(load_config(path, {}), overridden(argv))
            argument = f"--config={path}"
        resolved.append(argument)
    return resolved


def overridden(argv: Sequence[str]) -> list[str]:
    """The keys of --config.key=value, of --config.key[0]=value as well."""
    options = (argument.removeprefix("--config.") for argument in argv if argument.startswith("--config."))
    return [option.partition("=")[0].partition("[")[0] for option in options]


def evaluate(argv: Sequence[str]) -> int:
    """Scores a stored model."""

    def define(values: flags.FlagValues) -> None:
        checkpoint_flags(values)
        flags.DEFINE_string("split", "val", "which split of the run's data set", flag_values=values)

    values = parse(argv, define)
    required(values, "workdir")
    from forec_jax.evaluation.metrics import format_iou
    from forec_jax.runs import evaluate_run, load_run

    run = load_run(Path(values.workdir), values.checkpoint)
    evaluation = evaluate_run(run, values.split, values.network)
    print(format_iou(evaluation.confusion, run.labels.classes))
    network = values.network if run.state.teacher else "student"
    print(f"{network} {values.checkpoint} step {int(run.state.step)} on {values.split}: {evaluation.miou:.4f} mIoU")
    return 0


def table(argv: Sequence[str]) -> int:
    """Compares stored models."""

    def define(values: flags.FlagValues) -> None:
        checkpoint_flags(values)
        flags.DEFINE_list("workdirs", None, "work directories of training runs", flag_values=values)
        flags.DEFINE_list("splits", "val", "splits of the runs' data set", flag_values=values)

    values = parse(argv, define)
    required(values, "workdirs")
    from forec_jax.runs import compare_runs

    print(f"\nmIoU (%) of the {values.network}, {values.checkpoint} checkpoint\n")
    print(compare_runs([Path(w) for w in values.workdirs], values.splits, values.network, values.checkpoint))
    return 0


def threshold(argv: Sequence[str]) -> int:
    """Chooses the threshold of masks from tags."""

    def define(values: flags.FlagValues) -> None:
        checkpoint_flags(values)
        flags.DEFINE_string("split", "tune", "split whose masks it is chosen on", flag_values=values)

    values = parse(argv, define)
    required(values, "workdir")
    from forec_jax.runs import choose_threshold, load_run

    workdir = Path(values.workdir)
    chosen = choose_threshold(load_run(workdir, values.checkpoint), workdir, values.split, values.network)
    for value, miou in chosen["miou"].items():
        print(f"{value}  {100 * miou:5.2f}{'  *' if float(value) == round(chosen['threshold'], 2) else ''}")
    print(f"threshold {chosen['threshold']:.2f}, chosen on the {chosen['masks']} masks of {values.split}")
    return 0


def mask_flags(values: flags.FlagValues) -> None:
    """The flags that say how masks from tags become labels."""
    flags.DEFINE_float("keep", 0.5, "share of the images, the surest, that get masks", 0, 1, flag_values=values)
    flags.DEFINE_float("confidence", 0.0, "pixels below it are void; 0: none is", 0, 1, flag_values=values)
    labelled = "images with their true masks: a list file, or <count>:<seed>; by default none"
    flags.DEFINE_string("labelled", "", labelled, flag_values=values)


def mask_options(values: flags.FlagValues) -> dict[str, Any]:
    """What `mask_flags` said, as `write_masks` takes it."""
    return {"keep": values.keep, "confidence": values.confidence, "labelled": values.labelled}


def chain(argv: Sequence[str]) -> int:
    """Trains a segmenter from tags, stage after stage."""
    from forec_jax.chain import STAGES, run_chain
    from forec_jax.runs import compare_runs

    argv = resolve_config(argv)
    given = next((a.removeprefix("--config=") for a in argv if a.startswith("--config=")), "")

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("config", None, "FILE[:DATA], such as configs/tags.py:voc+dog", flag_values=values)
        for stage in STAGES if given else ():
            file = f"{given}{'+' if ':' in given else ':'}{stage}"
            config_flags.DEFINE_config_file(stage, file, "a stage's options", flag_values=values, sys_argv=list(argv))
        flags.DEFINE_string("workdir", None, "where everything of the stages goes", flag_values=values)
        flags.DEFINE_string("split", "tune", "split whose masks the thresholds are chosen on", flag_values=values)
        mask_flags(values)

    values = parse(argv, define)
    required(values, "config", "workdir")
    workdir = Path(values.workdir)
    configs = {stage: values[stage].value for stage in STAGES}
    if code := exit_code(run_chain(configs, workdir, split=values.split, masks=mask_options(values))):
        return code
    print("\nmIoU (%) of the teacher, last checkpoint\n")
    print(compare_runs([workdir / stage for stage in STAGES], ["val"], "teacher", "last"))
    return 0


def bridge(argv: Sequence[str]) -> int:
    """Writes masks from tags as a data set that other methods train on."""

    def define(values: flags.FlagValues) -> None:
        checkpoint_flags(values)
        flags.DEFINE_string("out", None, "new folder for the data set", flag_values=values)
        mask_flags(values)

    values = parse(argv, define)
    required(values, "workdir", "out")
    from forec_jax.bridge import write_masks
    from forec_jax.runs import load_run

    run = load_run(Path(values.workdir), values.checkpoint)
    written = write_masks(run, Path(values.out), network=values.network, **mask_options(values))
    print(
        f"{values.out}: {written.from_tags} masks from tags, {written.true} true ones, {written.without} images without"
    )
    print(f"train on it by --config=configs/folder.py:forec --config.data.root={values.out}")
    return 0


def predict(argv: Sequence[str]) -> int:
    """Predicts images."""

    def define(values: flags.FlagValues) -> None:
        checkpoint_flags(values)
        flags.DEFINE_string("images", None, "an image, or a folder of images", flag_values=values)
        flags.DEFINE_string("out", None, "folder for index/ and overlay/", flag_values=values)

    values = parse(argv, define)
    required(values, "workdir", "images", "out")
    from forec_jax.runs import load_run, predict_run

    run = load_run(Path(values.workdir), values.checkpoint)
    count = predict_run(run, Path(values.images), Path(values.out), values.network)
    print(f"{count} predictions in {values.out}: index/ holds class indices, overlay/ pictures")
    return 0


def visualize(argv: Sequence[str]) -> int:
    """Shows what models make of images, and what their reconstruction decoders learned."""

    def define(values: flags.FlagValues) -> None:
        checkpoint_flags(values)
        what = "images: predictions and latent images; classes: how alike the classes' features are, and ReCo's queries"
        flags.DEFINE_enum("what", "images", ["images", "classes"], what, flag_values=values)
        flags.DEFINE_string("images", None, "an image, a folder, or ids of the evaluation split", flag_values=values)
        flags.DEFINE_string("out", None, "folder for the sheets and figures", flag_values=values)
        flags.DEFINE_string("class", None, "whose mask; by default each image's largest object's", flag_values=values)
        flags.DEFINE_integer("k", 4, "latent images on a sheet", lower_bound=0, flag_values=values)
        flags.DEFINE_string("correlate", None, "split over which latents.json is measured", flag_values=values)

    values = parse(argv, define)
    required(values, "workdir", "out")
    if values.what == "classes":
        return visualize_classes(values)
    if not values.images and not values.correlate:
        raise flags.Error("--images or --correlate is missing: say what to show, or over which split to measure")
    from forec_jax.inspection import correlate_runs, load_runs, visualize_runs

    runs, out = load_runs([Path(w) for w in values.workdir.split(",")], values.checkpoint), Path(values.out)
    if values.images:
        options = {"network": values.network, "class_name": values["class"].value, "count": values.k}
        print(f"{visualize_runs(runs, values.images, out, **options)} sheets in {out}")
    if values.correlate:
        for name, found in correlate_runs(runs, values.correlate, out)["runs"].items():
            print(f"{name}: mean correlation {found['mean_correlation']}, by class in {out / 'latents.json'}")
    return 0


def visualize_classes(values: flags.FlagValues) -> int:
    """Shows how alike the features of the classes are and, on images, which queries and keys ReCo draws."""
    from forec_jax.inspection import load_runs, query_runs, relate_runs

    runs, out = load_runs([Path(w) for w in values.workdir.split(",")], values.checkpoint), Path(values.out)
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


def labels(argv: Sequence[str]) -> int:
    """Shows the masks that a training learns from, and what partial labels leave of them."""

    argv = resolve_config(argv)

    def define(values: flags.FlagValues) -> None:
        config_flag(values, argv)
        flags.DEFINE_string("out", None, "folder for the sheets", flag_values=values)
        flags.DEFINE_list("partial", None, "shares to compare, 1px,1%,5%; by default data.partial", flag_values=values)
        flags.DEFINE_integer("count", 8, "how many labelled images", lower_bound=1, flag_values=values)

    values = parse(argv, define)
    required(values, "config", "out")
    from forec_jax.build import build_training_data
    from forec_jax.inspection import show_labels

    c = values.config
    own = [c.data.partial] if c.data.partial else []
    shares = own if values.partial is None else values.partial
    c.data.partial = ""  # the sheets show the whole masks too
    print(f"{show_labels(build_training_data(c), shares, Path(values.out), values.count)} sheets in {values.out}")
    return 0


def prepare(argv: Sequence[str]) -> int:
    """Packs a raw data set into records ahead of its first use."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_enum(
            "dataset", None, ["voc", "camvid", "cityscapes", "sunrgbd", "folder"], "which data set", flag_values=values
        )
        flags.DEFINE_string("source", None, "its folder, as data.root", flag_values=values)
        flags.DEFINE_string("prepared", "", "where the records go; by default the cache folder", flag_values=values)

    values = parse(argv, define)
    required(values, "dataset", "source")
    from forec_jax.build import build_dataset
    from forec_jax.config import defaults

    c = defaults()
    c.data.update({"name": values.dataset, "root": values.source, "prepared": values.prepared})
    dataset = build_dataset(c)
    for split, source in dataset.sources.items():
        print(f"{split}: {len(source)} images")
    return 0


def voc_masks(argv: Sequence[str]) -> int:
    """Makes SegmentationClassAug from VOC's and SBD's own files."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("source", None, "the folder that holds VOC2012/", flag_values=values)
        flags.DEFINE_string("sbd", None, "SBD's folder that holds cls/", flag_values=values)
        flags.DEFINE_string("out", None, "new folder, usually VOC2012/SegmentationClassAug", flag_values=values)

    values = parse(argv, define)
    required(values, "source", "sbd", "out")
    from forec_jax.data.voc_masks import write_voc_masks

    written = write_voc_masks(Path(values.source), Path(values.sbd), Path(values.out))
    print(f"{written.from_voc} masks of VOC and {written.from_sbd} of SBD in {values.out}; SHA-256 {written.sha256}")
    return 0


def convert(argv: Sequence[str]) -> int:
    """Arranges other projects' weights as this library's."""

    def define(values: flags.FlagValues) -> None:
        sources = ["torchvision", "timm", "transformers", "u2pl", "unimatch"]
        archs = ["resnet18", "resnet34", "resnet50", "resnet101"]
        flags.DEFINE_enum("from", None, sources, "whose names the tensors have", flag_values=values)
        flags.DEFINE_enum("arch", None, archs, "which encoder", flag_values=values)
        flags.DEFINE_string("weights", None, "a .safetensors, .npz or .pth", flag_values=values)
        flags.DEFINE_string("out", None, "the .safetensors to write", flag_values=values)
        networks = "which network of a checkpoint; by default the teacher where there is one"
        flags.DEFINE_enum("network", None, ["teacher", "student"], networks, flag_values=values)

    values = parse(argv, define)
    required(values, "from", "arch", "weights", "out")
    if not values.out.endswith(".safetensors"):
        raise flags.Error(f"--out={values.out}: the file's name ends in .safetensors")
    from forec_jax.models.pretrained import convert_file

    paths = Path(values.weights), Path(values.out)
    variables, origin = convert_file(*paths, str(values["from"].value), values.arch, values.network)
    print(f"{values.out}: {origin.arch}, {origin.stem!r} stem, {' and '.join(variables.params)}, from {origin.source}")
    return 0


COMMANDS: dict[str, Command] = {
    "train": train,
    "plan": plan,
    "evaluate": evaluate,
    "table": table,
    "predict": predict,
    "visualize": visualize,
    "labels": labels,
    "threshold": threshold,
    "bridge": bridge,
    "chain": chain,
    "prepare": prepare,
    "voc-masks": voc_masks,
    "convert": convert,
}


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in the user's cache folder unless JAX_COMPILATION_CACHE_DIR says otherwise.

    Works because nothing above imports JAX, which reads the variable when it is imported.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "forec_jax" / "compiled"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))


def use_huge_pages() -> None:
    """Starts this process anew, as itself, with huge pages for its memory, where GLIBC_TUNABLES is not set.

    On a CPU a step works on some gigabytes that come from the C library anew each time; in pages of 4 KB the system hands
    out hundreds of thousands of them a step (docs/performance.md). glibc reads the setting when a process starts, hence
    the start; anywhere but on Linux with glibc this does nothing.
    """
    if sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names or "GLIBC_TUNABLES" in os.environ:
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


EXPLAINED = (ValueError, AttributeError, TypeError, KeyError, OSError, FloatingPointError, flags.Error)
"""What bad input, a bad environment or a diverging loss raise, with a message for the user."""


def tells_of_a_lost_process(error: BaseException) -> bool:
    """Whether an error of the runtime is about the connection to other processes, and not, say, about memory."""
    words = ("peer", "heartbeat", "coordination service", "connection", "gloo", "socket", "barrier")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def explain(error: Exception) -> str:
    """What went wrong in words, with a remedy where the error itself names none."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({error.filename or 'while writing'}); free some space and rerun: the same command goes on"
    return str(error)


def run(argv: Sequence[str]) -> int:
    """Runs a command line (without the program's name); returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("forec_jax").setLevel(logging.INFO)
    if not argv or argv[0] not in COMMANDS:
        asked = bool(argv) and argv[0] in ("-h", "--help", "help")
        print(USAGE, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    use_compilation_cache()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the locale cannot spell, as on stderr
    try:
        return COMMANDS[argv[0]](argv)
    except BaseException as error:
        wanted = bool(os.environ.get("FOREC_JAX_TRACEBACK"))
        if isinstance(error, EXPLAINED) and not wanted:
            return fail(argv[0], explain(error))
        if not several_processes():
            raise
        if tells_of_a_lost_process(error) and not wanted:
            reason = str(error).partition("\n")[0]
            return fail(
                argv[0], f"another process of the run has ended ({reason}); the same command on all goes on from here"
            )
        traceback.print_exception(error)
        return fail(argv[0], f"this process ends with {type(error).__name__}, and the others with it")


def fail(command: str, message: str) -> int:
    """Tells what went wrong; returns the exit code. One of several processes ends here: to tidy up is to wait for others."""
    tell(f"forec-jax {command}: {message}")
    if several_processes():
        os._exit(2)
    return 2


def several_processes() -> bool:
    """Whether this process has joined others."""
    jax = sys.modules.get("jax")  # nothing here imports it early (use_compilation_cache)
    return jax is not None and jax.distributed.is_initialized()


def main() -> NoReturn:
    """The entry point."""
    use_huge_pages()
    sys.exit(run(sys.argv[1:]))
