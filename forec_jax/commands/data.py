"""Commands that write data sets and weights: prepare, label, bridge, voc-masks, convert."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from forec_jax.commands.arguments import (
    checkpoint_flags,
    config_flag,
    parse,
    required,
    resolve_config,
    root_flag,
    scale_flag,
    scales_of,
)
from forec_jax.config import defaults
from forec_jax.data.datasets import DATASETS


def mask_flags(values: flags.FlagValues, keep: float) -> None:
    """The flags that say which masks of a run become labels; `keep` is the share's default."""
    flags.DEFINE_float("keep", keep, "share of the images, the surest, that get masks", 0, 1, flag_values=values)
    flags.DEFINE_float("confidence", 0.0, "pixels below it are void; 0: none is", 0, 1, flag_values=values)
    labelled = "masks from tags: images with their true masks, a list file or <count>:<seed>; by default none"
    flags.DEFINE_string("labelled", "", labelled, flag_values=values)


def mask_options(values: flags.FlagValues) -> dict[str, Any]:
    """What `mask_flags` said, as a `Labelling` takes it."""
    return {"keep": values.keep, "confidence": values.confidence, "labelled": values.labelled}


def out_flags(values: flags.FlagValues) -> None:
    """Which run labels, and where to."""
    checkpoint_flags(values)
    root_flag(values)
    flags.DEFINE_string("out", None, "new folder for the data set", flag_values=values)


def bridge(argv: Sequence[str]) -> int:
    """Writes masks from tags as a data set that other methods train on: `label` with --keep=0.5 (docs/data.md).

    forec-jax bridge --workdir=runs/wsss --out=masks --keep=0.5
    """

    def define(values: flags.FlagValues) -> None:
        out_flags(values)
        mask_flags(values, 0.5)

    values = parse(argv, define, bridge.__doc__)
    required(values, "workdir", "out")
    from forec_jax.experiment.label import only_from_tags, write_labels
    from forec_jax.experiment.masks import Labelling

    run = only_from_tags(_run_of(values))
    out = Path(values.out).expanduser()
    written = write_labels(run, out, Labelling(network=values.network, **mask_options(values)))
    print(f"{values.out}: {written.found} masks from tags, {written.true} true ones, {written.without} images without")
    print(f"train on it by --config=configs/folder.py:forec --config.data.root={values.out}")
    return 0


def label(argv: Sequence[str]) -> int:
    """Writes a run's images as a data set: those without labels get the masks that it finds.

    forec-jax label --workdir=runs/forec --out=labelled --confidence=0.9 --keep=0.5
    forec-jax train --config=configs/folder.py:supervised --config.data.root=labelled --workdir=runs/second

    The share --keep of them, the surest, have masks; pixels less sure than --confidence are void. --rank=agreement ranks by
    how well the run's milestones (--config.milestones when it was trained) agree with its last state (ST++). A method that
    takes stored masks beside true ones reads them by --config.data.pseudo=labelled (the variant st).
    """

    def define(values: flags.FlagValues) -> None:
        out_flags(values)
        mask_flags(values, 1.0)
        ranks = ["confidence", "agreement"]
        flags.DEFINE_enum("rank", "confidence", ranks, "by what images are ranked", flag_values=values)
        flags.DEFINE_bool("flips", False, "predict the mirrored image as well, and take the mean", flag_values=values)
        scale_flag(values, (1.0,))
        pixels = "share of each class's pixels, the surest, that are not void"
        flags.DEFINE_float("keep_pixels", 1.0, pixels, 0, 1, flag_values=values)
        stored = "write each pixel's confidence as well, which data.pseudo reads"
        flags.DEFINE_bool("pixel_confidence", False, stored, flag_values=values)

    values = parse(argv, define, label.__doc__)
    required(values, "workdir", "out")
    from forec_jax.experiment.label import write_labels
    from forec_jax.experiment.masks import Labelling

    how = Labelling(
        network=values.network,
        rank=values.rank,
        flips=values.flips,
        scales=scales_of(values),
        keep_pixels=values.keep_pixels,
        pixel_confidence=values.pixel_confidence,
        **mask_options(values),
    )
    written = write_labels(_run_of(values), Path(values.out).expanduser(), how)
    print(f"{values.out}: {written.found} predicted masks, {written.true} true ones, {written.without} images without")
    print(f"train on it by --config=configs/folder.py:supervised --config.data.root={values.out}")
    return 0


def _run_of(values: flags.FlagValues) -> Any:
    """The run that `checkpoint_flags` names."""
    from forec_jax.experiment.load import load_run

    return load_run(Path(values.workdir).expanduser(), values.checkpoint, values.data_root)


def prepare(argv: Sequence[str]) -> int:
    """Packs a raw data set into records ahead of its first use.

    forec-jax prepare --dataset=voc --source=VOCdevkit
    forec-jax prepare --config=configs/folder.py:forec --config.data.root=PHOTOS

    A folder of your own is packed as its config says (data.longest_side and others): name the config.
    """
    argv = resolve_config(argv)

    def define(values: flags.FlagValues) -> None:
        names = [name for name, entry in DATASETS.items() if entry.holds]
        flags.DEFINE_enum("dataset", None, names, "which data set", flag_values=values)
        flags.DEFINE_string("source", None, "its folder, as data.root", flag_values=values)
        flags.DEFINE_string("prepared", "", "where the records go; by default the cache folder", flag_values=values)
        config_flag(values, argv)

    values = parse(argv, define, prepare.__doc__)
    if values.config is None:
        required(values, "dataset", "source")
    elif values.dataset or values.source:
        raise flags.Error("--dataset and --source are for a data set without --config; use --config.data.root=FOLDER")
    from forec_jax.experiment.sources import build_dataset

    c = values.config or defaults()
    if values.config is None:
        c.data.update({"name": values.dataset, "root": values.source})
    if values.prepared:
        c.data.prepared = values.prepared
    dataset = build_dataset(c)
    for split, source in dataset.sources.items():
        print(f"{split}: {len(source)} images")
    return 0


def voc_masks(argv: Sequence[str]) -> int:
    """Makes SegmentationClassAug from VOC's and SBD's own files.

    forec-jax voc-masks --source=VOCdevkit --sbd=SBD --out=VOCdevkit/VOC2012/SegmentationClassAug
    """

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("source", None, "the folder that holds VOC2012/", flag_values=values)
        flags.DEFINE_string("sbd", None, "SBD's folder that holds cls/", flag_values=values)
        flags.DEFINE_string("out", None, "new folder, usually VOC2012/SegmentationClassAug", flag_values=values)

    values = parse(argv, define, voc_masks.__doc__)
    required(values, "source", "sbd", "out")
    from forec_jax.data.voc_masks import write_voc_masks

    written = write_voc_masks(
        Path(values.source).expanduser(), Path(values.sbd).expanduser(), Path(values.out).expanduser()
    )
    print(f"{written.from_voc} masks of VOC and {written.from_sbd} of SBD in {values.out}; SHA-256 {written.sha256}")
    return 0


def convert(argv: Sequence[str]) -> int:
    """Arranges other projects' weights as this library's (docs/weights.md).

    forec-jax convert --from=torchvision --arch=resnet101 --weights=resnet101.pth --out=resnet101.safetensors
    """

    def define(values: flags.FlagValues) -> None:
        sources = ["torchvision", "timm", "transformers", "u2pl", "unimatch", "unimatch_v2", "slim"]
        sources += ["efficientnet_pytorch"]
        archs = ["resnet18", "resnet26", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2"]
        archs += ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
        archs += ["dinov2_small", "dinov2_base", "dinov2_large", "dinov2_giant"]
        flags.DEFINE_enum("from", None, sources, "whose names the tensors have", flag_values=values)
        flags.DEFINE_enum("arch", None, archs, "which encoder", flag_values=values)
        flags.DEFINE_string("weights", None, "a .safetensors, .npz or .pth", flag_values=values)
        flags.DEFINE_string("out", None, "the .safetensors to write", flag_values=values)
        networks = "which network of a checkpoint; by default the teacher where there is one"
        flags.DEFINE_enum("network", None, ["teacher", "student"], networks, flag_values=values)

    values = parse(argv, define, convert.__doc__)
    required(values, "from", "arch", "weights", "out")
    if not values.out.endswith(".safetensors"):
        raise flags.Error(f"--out={values.out}: the file's name ends in .safetensors")
    from forec_jax.models.dino_weights import convert_unimatch_v2
    from forec_jax.models.naming import UNIMATCH_V2
    from forec_jax.models.pretrained import convert_file

    paths, source = (Path(values.weights).expanduser(), Path(values.out).expanduser()), str(values["from"].value)
    if source == UNIMATCH_V2:
        variables, origin = convert_unimatch_v2(*paths, values.arch, values.network)
    else:
        variables, origin = convert_file(*paths, source, values.arch, values.network)
    form = f" ({origin.stem})" if origin.stem else ""
    print(f"{values.out}: {origin.arch}{form}, {' and '.join(variables.params)}, from {origin.source}")
    return 0
