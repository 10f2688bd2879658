"""The command `forec-jax`: finds the subcommand, and explains what it raises."""

import difflib
import importlib
import io
import keyword
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from forec_jax import __version__
from forec_jax.commands.process import (
    EXPLAINED,
    explain,
    fail,
    several_processes,
    tells_of_a_lost_process,
    use_compilation_cache,
    use_huge_pages,
)


class Command(NamedTuple):
    """Where a subcommand is, and what it does in a line."""

    module: str  # of forec_jax.commands
    sentence: str


COMMANDS = {
    "train": Command("train", "train by a config; goes on where the work directory holds a checkpoint"),
    "sweep": Command("sweep", "train methods x seeds x label lists x options, one after another, and compare them"),
    "options": Command("train", "list the options, or those that apply to a config"),
    "plan": Command("train", "say what a training needs: parameters, memory, hours; runs nothing"),
    "evaluate": Command("use", "score a trained model"),
    "predict": Command("use", "segment images with a trained model"),
    "table": Command("use", "compare trained models"),
    "export": Command("take", "write a trained model for use without this library: StableHLO, ONNX, safetensors"),
    "push": Command("take", "put a trained model on the Hugging Face hub"),
    "pull": Command("take", "fetch a trained model from the Hugging Face hub"),
    "visualize": Command("figures", "show predictions, latent images and class relations"),
    "report": Command("figures", "show runs on one page: scores, curves, confusion, examples, options"),
    "labels": Command("figures", "show the masks that a training learns from"),
    "prepare": Command("data", "pack a data set ahead of its first use"),
    "import": Command("importing", "make a data set of COCO's, Labelme's, CVAT's and other annotations"),
    "convert": Command("data", "arrange PyTorch's weights as this library's"),
    "voc-masks": Command("data", "make VOC-Aug's masks from VOC's and SBD's own files"),
    "label": Command("data", "write the masks that a run predicts for its unlabelled images as a data set"),
    "threshold": Command("use", "choose the threshold of masks from image tags"),
    "bridge": Command("data", "write masks from image tags as a data set"),
    "chain": Command("chain", "train in stages, all in a row: ST, ST++, DMT, or from image tags"),
}


def usage() -> str:
    """What `forec-jax` alone prints."""
    lines = (f"  {name:<10} {command.sentence}" for name, command in COMMANDS.items())
    return "\n".join(
        (
            "usage: forec-jax COMMAND [--flag=value ...]",
            "",
            *lines,
            "",
            "Try it:            forec-jax train --config=configs/shapes.py:forec --workdir=runs/forec",
            "Your own images:   forec-jax train --config=configs/folder.py:forec --workdir=RUN --config.data.root=FOLDER",
            "A command's flags: forec-jax COMMAND --help",
        )
    )


def run(argv: Sequence[str]) -> int:
    """Runs a command line (without the program's name); returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("forec_jax").setLevel(logging.INFO)
    name = argv[0] if argv else ""
    if name in ("--version", "version"):
        print(f"forec-jax {__version__}")
        return 0
    if name not in COMMANDS:
        asked = name in ("-h", "--help", "help")
        if name and not asked:
            print(unknown(name), file=sys.stderr)
        print(usage(), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    use_compilation_cache()  # before anything imports JAX
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the locale cannot spell, as on stderr
    return explained(argv)


def unknown(name: str) -> str:
    """That there is no such command, and which may be meant."""
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"forec-jax: there is no command {name!r}" + (f"; did you mean {near[0]}?" if near else "") + "\n"


def explained(argv: Sequence[str]) -> int:
    """Runs a subcommand; what it raises becomes a message and an exit code."""
    try:
        module = importlib.import_module(f"forec_jax.commands.{COMMANDS[argv[0]].module}")
        function = argv[0].replace("-", "_") + "_" * keyword.iskeyword(argv[0])
        code: int = getattr(module, function)(argv)
        return code
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


def main() -> NoReturn:
    """The entry point."""
    use_huge_pages()
    sys.exit(run(sys.argv[1:]))
