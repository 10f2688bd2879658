"""Commands that take a trained model elsewhere: export, push, pull."""

import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from forec_jax.commands.arguments import checkpoint_flags, parse, required
from forec_jax.options import OptionError


def export(argv: Sequence[str]) -> int:
    """Writes a trained model for use without this library, with a model.json beside it (docs/export.md).

    forec-jax export --workdir=runs/forec --out=taken --format=onnx --size=321x321
    forec-jax export --workdir=runs/forec --out=taken --format=onnx --size=512x512 --smaller

    Preprocessing is inside a program: it takes bytes and gives probabilities.
    """

    def define(values: flags.FlagValues) -> None:
        checkpoint_flags(values)
        flags.DEFINE_string("out", None, "folder for the model and model.json", flag_values=values)
        formats = "stablehlo (jax.export), onnx, or safetensors (the weights)"
        flags.DEFINE_enum("format", "onnx", ["stablehlo", "onnx", "safetensors"], formats, flag_values=values)
        sizes = "HEIGHTxWIDTH of the images, a file each; by default the run's crop"
        flags.DEFINE_list("size", [], sizes, flag_values=values)
        smaller = "take smaller images, too: each in the top left, its height and width in a second input"
        flags.DEFINE_bool("smaller", False, smaller, flag_values=values)
        dtype = "of activations and kernels"
        flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], dtype, flag_values=values)
        platforms = "that a stablehlo program is written for: cpu, cuda, tpu, rocm"
        flags.DEFINE_list("platforms", ["cpu", "cuda", "tpu"], platforms, flag_values=values)

    values = parse(argv, define, export.__doc__)
    required(values, "workdir", "out")
    sizes = tuple(_size(text) for text in values.size)
    from forec_jax.experiment import export as exporting
    from forec_jax.experiment.load import load_run

    wanted = exporting.Wanted(values.format, sizes, values.smaller, values.dtype, tuple(values.platforms))
    run = load_run(Path(values.workdir).expanduser(), values.checkpoint)
    about = exporting.export(run, values.network, Path(values.out).expanduser(), wanted)
    for file in about["files"]:
        found = file.get("largest_difference")
        compared = "" if found is None else f", at most {found:.1e} from the library's probabilities"
        print(f"{Path(values.out) / file['name']}{compared}")
    print(f"{Path(values.out) / 'model.json'} says how it is used")
    return 0


def _size(text: str) -> tuple[int, int]:
    """What --size says. Raises OptionError for what is no height and width."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise OptionError(f"--size={text} must be a height and a width in pixels, such as 480x640")
    return int(found[1]), int(found[2])


def push(argv: Sequence[str]) -> int:
    """Puts a trained model on the Hugging Face hub: weights, what they need, and a model card with the run's scores.

    forec-jax push --workdir=runs/forec --repository=OWNER/NAME --private

    Log in first: hf auth login (pip install 'forec-jax[hub]').
    """

    def define(values: flags.FlagValues) -> None:
        checkpoint_flags(values)
        flags.DEFINE_string("repository", None, "OWNER/NAME; made where there is none", flag_values=values)
        private = "make a new repository that only you see"
        flags.DEFINE_bool("private", False, private, flag_values=values)

    values = parse(argv, define, push.__doc__)
    required(values, "workdir", "repository")
    from forec_jax.experiment import share
    from forec_jax.experiment.load import load_run

    run = load_run(Path(values.workdir).expanduser(), values.checkpoint)
    print(share.push(run, values.network, values.repository, private=values.private))
    return 0


def pull(argv: Sequence[str]) -> int:
    """Fetches a model that `push` put on the Hugging Face hub, into a folder that other commands take as a --workdir.

    forec-jax pull --repository=OWNER/NAME --out=model
    forec-jax predict --workdir=model --images=photos --out=predictions
    """

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("repository", None, "OWNER/NAME, or OWNER/NAME@REVISION", flag_values=values)
        flags.DEFINE_string("out", None, "new folder", flag_values=values)

    values = parse(argv, define, pull.__doc__)
    required(values, "repository", "out")
    from forec_jax.experiment import share

    share.pull(values.repository, Path(values.out).expanduser())
    print(f"{values.out}: forec-jax predict --workdir={values.out} --images=photos --out=predictions")
    return 0
