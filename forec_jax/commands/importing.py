"""The command that makes a data set of other tools' annotations: import."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from forec_jax.commands.arguments import parse, required


def import_(argv: Sequence[str]) -> int:
    """Makes a folder data set of annotations as other tools write them (docs/annotations.md).

    forec-jax import --from=coco --annotations=instances.json --images=photos --out=PHOTOS
    forec-jax import --from=labelme --annotations=json --images=photos --classes=cat,dog --out=PHOTOS --dry-run
    """

    def define(values: flags.FlagValues) -> None:
        kinds = ["coco", "labelme", "cvat", "voc", "cityscapes", "masks"]
        flags.DEFINE_enum("from", None, kinds, "what wrote the annotations; masks: one a class", flag_values=values)
        flags.DEFINE_string("annotations", None, "the JSON or XML file, or the folder of files", flag_values=values)
        flags.DEFINE_string("images", None, "the folder of the images", flag_values=values)
        flags.DEFINE_string("out", None, "new folder for the data set", flag_values=values)
        flags.DEFINE_bool(
            "dry_run", False, "read all, say what would be written, and write nothing", flag_values=values
        )
        flags.DEFINE_alias("dry-run", "dry_run", flag_values=values)
        flags.DEFINE_list("classes", [], "the classes in order; by default all that there are", flag_values=values)
        about = "annotations of the images for val; by default val is drawn when the data set is read"
        flags.DEFINE_string("val_annotations", None, about, flag_values=values)
        flags.DEFINE_string("val_images", None, "their folder, by default --images", flag_values=values)
        flags.DEFINE_string("val_list", None, "a text file with the names of the images for val", flag_values=values)
        about = "what pixels become that show no object of a class; by default background, of cityscapes void"
        flags.DEFINE_enum("uncovered", None, ["background", "void"], about, flag_values=values)
        about = "which of two objects is seen: the smaller one, or the later of the file; by default as its tool has it"
        flags.DEFINE_enum("overlap", None, ["area", "order"], about, flag_values=values)
        flags.DEFINE_enum("crowd", "void", ["void", "class"], "what COCO's crowds become", flag_values=values)
        about = "what an image is on which nothing is drawn: unlabelled, or background all over"
        flags.DEFINE_enum("empty", "unlabelled", ["unlabelled", "background"], about, flag_values=values)
        about = (
            "what was drawn on, for photographs with an orientation tag: as viewers show them, or as their file lies"
        )
        flags.DEFINE_enum("masks_follow", "display", ["display", "file"], about, flag_values=values)

    values = parse(argv, define, import_.__doc__)
    required(values, "from", "annotations", "images", "out")
    if values.val_images and not values.val_annotations:
        raise flags.Error("--val_images is the folder of the images of --val_annotations, which is missing")
    from forec_jax.annotations import Request, import_annotations, report

    request = Request(
        kind=str(values["from"].value),
        annotations=Path(values.annotations).expanduser(),
        images=Path(values.images).expanduser(),
        val_annotations=_path(values.val_annotations),
        val_images=_path(values.val_images),
        val_list=_path(values.val_list),
        classes=tuple(values.classes),
        uncovered=values.uncovered or "",
        overlap=values.overlap,
        crowd=values.crowd,
        empty=values.empty,
        follow=values.masks_follow,
    )
    out = Path(values.out).expanduser()
    summary = import_annotations(request, None if values.dry_run else out)
    print(report(summary, request, out, values.dry_run))
    return 0


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name).expanduser()
