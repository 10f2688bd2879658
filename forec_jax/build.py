"""From a config to the objects of a run: the only module below the command line that reads a ConfigDict."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from forec_jax.augment import BetaBox, ClassMix, CutMix, CutOut, NoMixing, Photometric, photometric
from forec_jax.contracts import AuxiliaryTask, HeadSpec, Method, Network, TrainState, Variables
from forec_jax.data import (
    Dataset,
    Geometry,
    PartialLabels,
    Source,
    Split,
    Tags,
    WithTags,
    balanced,
    camvid_dataset,
    check_tags,
    cityscapes_dataset,
    class_coverage,
    classes_in_images,
    folder_dataset,
    one_against_rest,
    parse_partial,
    read_tags,
    resolve_split,
    select,
    shapes_dataset,
    sunrgbd_dataset,
    tag_indices,
    tagged_split,
    tags_of_folders,
    tags_of_masks,
    voc_dataset,
    with_longest_side,
)
from forec_jax.data.published import check_protocol, protocol_names, published_name, published_origins
from forec_jax.evaluation import Buckets, Evaluator, Predicts, SlidingWindow
from forec_jax.evaluation.evaluate import Mode
from forec_jax.losses import mean_cross_entropy, ohem_cross_entropy
from forec_jax.methods import (
    Auxiliary,
    ForegroundReconstruction,
    ForegroundSegmentation,
    ImageReconstruction,
    MeanTeacher,
    PsMt,
    RegionalContrast,
    S4Gan,
    Supervised,
    TagClassifier,
    WsssRec,
)
from forec_jax.methods.reconstruction import RECONSTRUCTION, PixelSpace
from forec_jax.methods.s4gan import DISCRIMINATOR
from forec_jax.methods.segmentation_terms import SupervisedLoss
from forec_jax.methods.student import SEGMENTATION
from forec_jax.methods.tag_classifier import tags_head
from forec_jax.methods.teacher import BATCH_NORM_MODES
from forec_jax.methods.wsss_rec import MASK_LOSSES, wsss_heads
from forec_jax.models import (
    DeepLabOptions,
    WeightsError,
    deeplab_network,
    discriminator_network,
    filled,
    fitting_weights,
    load_weights,
    unet_network,
)
from forec_jax.parallel import global_batch, local_mesh, make_mesh
from forec_jax.training import Schedule, drop_not_finite, make_optimizer, poly_schedule, with_own_optimizers
from forec_jax.training.step import Step

log = logging.getLogger(__name__)


class ConfigError(ValueError):
    """An option whose value cannot be used; the message names the key and what it takes."""


FROM_TAGS = ("tag_classifier", "wsss_rec")
"""The methods that see image-level tags."""

METHODS = ("supervised", "mean_teacher", "ps_mt", "s4gan", *FROM_TAGS)


class Labels(NamedTuple):
    """What a model needs to know of the data set it was trained on."""

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    background_classes: tuple[int, ...]


class TrainingData(NamedTuple):
    """The sources of a run."""

    dataset: Dataset
    split: Split
    labelled: Source | None
    unlabelled: Source | None
    validation: Source
    tagged: WithTags | None = None


def choose(key: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """The value, if it is one of the choices; raises ConfigError otherwise."""
    if value not in choices:
        raise ConfigError(f"{key}={value!r}: choose one of {', '.join(repr(choice) for choice in choices)}")
    return value


ROOTS = {
    "voc": "VOC2012/",
    "camvid": "train/, trainannot/, val/ and valannot/",
    "cityscapes": "leftImg8bit/ and gtFine/",
    "sunrgbd": "image/ and label37/",
    "folder": "images/, masks/ and classes.toml",
}
"""What the folder data.root holds, by data set."""


def build_dataset(c: ConfigDict) -> Dataset:
    """The data set that data.name names, with one class against the rest where data.tag is set."""
    return with_tag(build_full_dataset(c), c.data.tag)


def with_tag(dataset: Dataset, tag: str) -> Dataset:
    """The data set with the class `tag` against the rest; with all its classes where `tag` is empty."""
    if not tag:
        return dataset
    classes = [name for k, name in enumerate(dataset.classes) if k not in dataset.background_classes]
    return one_against_rest(dataset, choose("data.tag", tag, tuple(classes)))


def build_full_dataset(c: ConfigDict) -> Dataset:
    """The data set that data.name names, with all its classes."""
    if choose("data.name", c.data.name, ("shapes", *ROOTS)) == "shapes":
        return with_background(shapes_dataset(size=c.data.size), c.data.background)
    if not c.data.root:
        raise ConfigError(f"data.root is empty: set it to the folder that holds {ROOTS[c.data.name]}")
    root, prepared = Path(c.data.root), Path(c.data.prepared) if c.data.prepared else None
    match c.data.name:
        case "voc":
            dataset = voc_dataset(root, prepared)
        case "camvid":
            dataset = camvid_dataset(root, prepared)
        case "cityscapes":
            dataset = cityscapes_dataset(root, prepared)
        case "sunrgbd":
            dataset = sunrgbd_dataset(root, prepared)
        case _:
            dataset = folder_dataset(root, prepared, c.data.val_fraction)
    return with_background(with_longest_side(dataset, c.data.longest_side), c.data.background)


def with_background(dataset: Dataset, names: str) -> Dataset:
    """The data set with other background classes, "name,name"; with its own where `names` is empty."""
    if not names:
        return dataset
    chosen = (choose("data.background", name.strip(), dataset.classes) for name in names.split(","))
    return dataclasses.replace(dataset, background_classes=tuple(dataset.classes.index(name) for name in chosen))


def labels_of(dataset: Dataset) -> Labels:
    """Its classes, colours and background."""
    return Labels(dataset.classes, dataset.palette, dataset.background_classes)


def build_training_data(c: ConfigDict) -> TrainingData:
    """Data set, split and sources; warns of classes that no labelled image shows."""
    if c.data.protocol and (c.batch.tagged or c.data.partial):
        raise ConfigError(
            f"data.protocol={c.data.protocol!r} claims the whole masks of a published list; "
            "leave it empty with tags and with data.partial"
        )
    if c.batch.tagged:
        return build_tagged_data(c)
    dataset = build_dataset(c)
    pool, validation = dataset.source(c.data.pool), dataset.source(c.eval.split)
    on_corrupt = choose("data.on_corrupt", c.data.on_corrupt, ("raise", "skip"))
    split = resolve_split(
        pool_ids=pool.ids,
        validation_ids=evaluation_ids(dataset, c.data.pool),
        maskless=dataset.maskless,
        labelled=c.data.labelled,
        unlabelled=c.data.unlabelled if c.batch.unlabelled else "none",
        classes_of=lambda ids: classes_in_images(select(pool, ids), len(dataset.classes), on_corrupt),
    )
    claim_protocol(c, split)
    labelled: Source = select(pool, split.labelled)
    if missing := class_coverage(labelled, len(dataset.classes), on_corrupt):
        names = ", ".join(dataset.classes[index] for index in missing)
        log.warning("no labelled image shows: %s. These classes cannot be learned; label an image of each", names)
    unlabelled = select(pool, split.unlabelled).without_labels() if c.batch.unlabelled else None
    return TrainingData(dataset, split, with_partial_labels(labelled, c.data.partial), unlabelled, validation)


def with_partial_labels(labelled: Source, partial: str) -> Source:
    """The source with a part of each mask, "1px" or "5%"; as it is where `partial` is empty, or "masks" hold a part."""
    if partial in ("", "masks"):
        return labelled
    try:
        share, seed = parse_partial(partial)
    except ValueError as error:
        raise ConfigError(f"data.partial={error}") from error
    return PartialLabels(labelled, share, seed)


def build_tagged_data(c: ConfigDict) -> TrainingData:
    """Data set and sources of a run that sees image-level tags; its tagged stream cannot open a mask.

    With data.tag, images with and without the tag are equally many (the paper draws a batch's halves from either).
    """
    full = build_full_dataset(c)
    dataset = with_tag(full, c.data.tag)
    pool = dataset.source(c.data.pool)
    split = tagged_split(pool_ids=pool.ids, validation_ids=evaluation_ids(dataset, c.data.pool))
    foreground = foreground_classes(labels_of(dataset))
    tags = build_tags(c, full, dataset)
    check_tags(tags, dataset.classes, foreground)
    images: Source = pool.without_labels()
    if c.data.tag:
        images = balanced(images, tags, foreground[0])
    tagged = WithTags(images, len(dataset.classes), {name: tuple(present) for name, present in tags.items()})
    return TrainingData(dataset, split, None, None, dataset.source(c.eval.split), tagged)


def build_tags(c: ConfigDict, full: Dataset, dataset: Dataset) -> Tags:
    """The tags of the pool's images as classes of `dataset`; names are looked up among those of the `full` one."""
    pool = dataset.source(c.data.pool)
    match c.data.tags:
        case "masks":
            return tags_of_masks(pool, len(dataset.classes))
        case "folders":
            named = tags_of_folders(pool.ids)
        case path:
            named = read_tags(Path(path), pool.ids)
    return tag_indices(named, full.classes, dataset.classes)


def foreground_classes(labels: Labels) -> tuple[int, ...]:
    """The classes that tags speak of: all but the background, which must be one class. Raises ConfigError otherwise."""
    if len(labels.classes) < 2:
        raise ConfigError(f"the classes are {', '.join(labels.classes)}: masks from tags need a background and a class")
    if len(labels.background_classes) != 1:
        names = [labels.classes[k] for k in labels.background_classes]
        raise ConfigError(
            f"masks from tags need one background class, not {len(names)} ({', '.join(names)}): set data.background=NAME, "
            "or background in classes.toml"
        )
    return tuple(k for k in range(len(labels.classes)) if k not in labels.background_classes)


def claim_protocol(c: ConfigDict, split: Split) -> None:
    """Says which published list a list file is, and holds the split to data.protocol; raises DataError where it differs."""
    if c.data.protocol:
        check_protocol(choose("data.protocol", c.data.protocol, ("", *protocol_names())), split)
    if Path(c.data.labelled).is_file():
        if name := published_name(split.sha256):
            is_what = f"the published list {name} ({published_origins(name)})"
        else:
            is_what = "no published list that the library knows"
        log.info("%s: %d images, SHA-256 %s, %s", c.data.labelled, len(split.labelled), split.sha256, is_what)


def evaluation_ids(dataset: Dataset, pool: str) -> set[str]:
    """The ids of every split that is not for training: none of them may be trained on."""
    return {
        i
        for name, source in dataset.sources.items()
        if not name.startswith("train") and name != pool
        for i in source.ids
    }


def build_geometry(c: ConfigDict) -> Geometry:
    """Scale, crop and flip of the training images."""
    return Geometry(
        crop=c.data.crop,
        scale=tuple(c.data.scale),
        flip=c.data.flip,
        half_below_one=c.data.half_below_one,
        pad_label=c.data.pad_label,
    )


def build_stream(c: ConfigDict, data: TrainingData) -> dict[str, Any]:
    """The arguments that say which examples a batch holds (see data.batch_ids)."""
    return {
        "labelled": data.labelled,
        "unlabelled": data.unlabelled,
        "tagged": data.tagged,
        "batch_labelled": c.batch.labelled,
        "batch_unlabelled": c.batch.unlabelled,
        "batch_tagged": c.batch.tagged,
        "seed": c.seed,
    }


def build_auxiliary(c: ConfigDict, labels: Labels, mesh: Mesh | None) -> tuple[Auxiliary, ...]:
    """The auxiliary tasks, in the order of their names."""
    return tuple(
        Auxiliary(options.weight, build_task(name, options, labels, mesh))
        for name, options in sorted(c.auxiliary.items())
    )


def build_task(name: str, o: ConfigDict, labels: Labels, mesh: Mesh | None) -> AuxiliaryTask:
    """One auxiliary task."""
    match choose("auxiliary", name, ("reconstruction", "foreground_segmentation", "reco")):
        case "foreground_segmentation":
            weights = {"labelled_weight": o.labelled_weight, "unlabelled_weight": o.unlabelled_weight}
            return ForegroundSegmentation(known_background(labels, name), threshold=o.threshold, **weights)
        case "reco":
            return build_reco(o, labels, mesh)
        case _:
            return build_reconstruction(o, labels)


def build_reconstruction(o: ConfigDict, labels: Labels) -> AuxiliaryTask:
    """Reconstruction of the image, or of its foreground (FOrec)."""
    space = choose("auxiliary.reconstruction.pixel_space", o.pixel_space, ("unit", "imagenet"))
    options = {
        "labelled_weight": o.labelled_weight,
        "unlabelled_weight": o.unlabelled_weight,
        "pixel_space": space,
    }
    if choose("auxiliary.reconstruction.target", o.target, ("image", "foreground")) == "image":
        return ImageReconstruction(**options)
    void = choose("auxiliary.reconstruction.void", o.void, ("exclude", "zero"))
    return ForegroundReconstruction(known_background(labels, "forec"), threshold=o.threshold, void=void, **options)


def build_reco(o: ConfigDict, labels: Labels, mesh: Mesh | None) -> RegionalContrast:
    """ReCo over the devices of a mesh; warns where there are few classes to contrast."""
    for name in ("channels", "queries", "negative_keys"):
        if o[name] < 1:
            raise ConfigError(f"auxiliary.reco.{name}={o[name]} must be at least 1")
    if o.queries_at_once < 0:
        raise ConfigError(f"auxiliary.reco.queries_at_once={o.queries_at_once} must be 0, for the machine's, or more")
    for name in ("temperature", "relation_temperature"):
        if o[name] <= 0:
            raise ConfigError(f"auxiliary.reco.{name}={o[name]} must be above 0; published: 0.5")
    if len(labels.classes) <= 2:
        log.warning(
            "auxiliary.reco contrasts classes, and there are only %d (%s): users of it report no gain with two",
            len(labels.classes),
            ", ".join(labels.classes),
        )
    return RegionalContrast(
        len(labels.classes),
        channels=o.channels,
        upsample=choose("auxiliary.reco.stride", o.stride, (4, 1)) == 1,
        queries=o.queries,
        negative_keys=o.negative_keys,
        key_sets=choose("auxiliary.reco.key_sets", o.key_sets, ("own", "shared")),
        query_sampling=choose("auxiliary.reco.query_sampling", o.query_sampling, ("hard", "easy", "random")),
        key_sampling=choose("auxiliary.reco.key_sampling", o.key_sampling, ("active", "random")),
        query_threshold=o.query_threshold,
        pixel_threshold=o.pixel_threshold,
        temperature=o.temperature,
        relation_temperature=o.relation_temperature,
        at_once=queries_at_once(o, mesh),
        mesh=mesh,
    )


def queries_at_once(o: ConfigDict, mesh: Mesh | None) -> int:
    """How many queries have their keys gathered together: all where several devices share them."""
    if mesh is not None and mesh.size > 1:
        return o.queries
    # Keys that stay in a CPU core's cache are gathered twice as fast; a GPU wants large pieces.
    return o.queries_at_once or (8 if jax.default_backend() == "cpu" else 256)


def known_background(labels: Labels, task: str) -> tuple[int, ...]:
    """The background classes, which a task needs; raises ConfigError where the data set names none."""
    if not labels.background_classes:
        raise ConfigError(
            f"{task} tells foreground from background, and no class is called background: put "
            f'background = "NAME" into classes.toml or set data.background, NAME one of {", ".join(labels.classes)}'
        )
    return labels.background_classes


def build_network(c: ConfigDict, heads: tuple[HeadSpec, ...]) -> Network:
    """The network; its first weights come from model.weights where that is set."""
    m = c.model
    if m.encoder == "unet":
        return build_unet(c, heads)
    network = deeplab_network(
        encoder=m.encoder,
        stem=m.stem,
        width=m.width,
        output_stride=m.output_stride,
        multi_grid=tuple(m.multi_grid),
        heads=heads,
        decoder=DeepLabOptions(**{**m.decoder.to_dict(), "rates": tuple(m.decoder.rates)}),
        bn_momentum=m.bn_momentum,
        share_aspp=m.share_aspp,
        remat=m.remat,
        compute_dtype=jnp.dtype(choose("compute_dtype", c.compute_dtype, ("float32", "bfloat16"))),
    )
    if not m.weights:
        return network
    try:
        stored = load_weights(m.weights, m.encoder, stem=m.stem, width=m.width)
        weights = fitting_weights(stored, jax.eval_shape(network.init, jax.random.key(c.seed)))
    except WeightsError as error:
        chosen = f"model.encoder={m.encoder!r}, model.stem={m.stem!r}, model.width={m.width}"
        published = "" if m.width == 1 else "; published weights need model.width=1"
        raise ConfigError(f"model.weights={m.weights!r} with {chosen}: {error}{published}") from error
    return network._replace(init=functools.partial(pretrained_init, network, weights))


def build_unet(c: ConfigDict, heads: tuple[HeadSpec, ...]) -> Network:
    """The U-Net of WSSSByRec, which there are no pretrained weights for."""
    if c.model.weights:
        raise ConfigError(
            f"model.weights={c.model.weights!r}: model.encoder='unet' starts from random weights; leave it empty"
        )
    if c.model.remat:
        raise ConfigError("model.remat=True: model.encoder='unet' has no residual blocks; set accumulate instead")
    if any(head.linear for head in heads):
        raise ConfigError(
            "model.encoder='unet' cannot classify tags: choose resnet18, resnet34, resnet50, ... for that"
        )
    return unet_network(
        heads=heads,
        width=c.model.width,
        align_corners=c.model.decoder.align_corners,
        compute_dtype=jnp.dtype(choose("compute_dtype", c.compute_dtype, ("float32", "bfloat16"))),
    )


def pretrained_init(network: Network, weights: Variables, key: jax.Array) -> Variables:
    """A network's first variables with pretrained ones in their places."""
    return filled(network.init(key), weights)


def build_mixing(c: ConfigDict, classes: int) -> Any:
    """The mixing of images within a batch."""
    p = c.augment.mixing_probability
    choices = {
        "none": NoMixing(),
        "cutout": CutOut(probability=p),
        "cutout_half": CutOut.half_area(probability=p),
        "cutmix": CutMix(probability=p),
        "cutmix_beta": CutMix(probability=p, box=BetaBox()),
        "cutmix_half": CutMix.half_area(probability=p),
        "classmix": ClassMix(classes, probability=p),
    }
    return choices[choose("augment.mixing", c.augment.mixing, tuple(choices))]


def build_colour(c: ConfigDict) -> Any:
    """The colour changes of the student's view."""
    a = c.augment
    options = Photometric(
        brightness=a.brightness,
        contrast=a.contrast,
        saturation=a.saturation,
        hue=a.hue,
        jitter_probability=a.jitter_probability,
        grayscale_probability=a.grayscale_probability,
        blur_probability=a.blur_probability,
        blur_sigma=tuple(a.blur_sigma),
    )
    return lambda key, image, valid: photometric(key, image, options, valid)


def build_supervised_loss(c: ConfigDict) -> SupervisedLoss:
    """L_s as a function of logits, labels and included pixels."""
    m = c.method
    if choose("method.supervised_loss", m.supervised_loss, ("cross_entropy", "ohem")) == "cross_entropy":
        return mean_cross_entropy
    if not 0 < m.ohem_threshold <= 1:
        raise ConfigError(f"method.ohem_threshold={m.ohem_threshold} must be a probability above 0; published: 0.7")
    if m.ohem_min_kept < 1:
        raise ConfigError(
            f"method.ohem_min_kept={m.ohem_min_kept} must be at least 1 pixel; published: 50000 to 100000"
        )
    return functools.partial(ohem_cross_entropy, threshold=m.ohem_threshold, min_kept=m.ohem_min_kept)


def build_method_from_tags(c: ConfigDict, labels: Labels, classifier: Network | None) -> Method:
    """A method that sees image-level tags; `classifier` is the trained network that guides wsss_rec."""
    foreground = foreground_classes(labels)
    (background,) = labels.background_classes
    if not 0 < c.method.mask_threshold < 1:
        raise ConfigError(f"method.mask_threshold={c.method.mask_threshold} must lie between 0 and 1")
    common: dict[str, Any] = {
        "foreground": foreground,
        "background": background,
        "mask_threshold": c.method.mask_threshold,
    }
    if len(c.auxiliary):
        raise ConfigError(
            f"method.name={c.method.name!r} has no labels for auxiliary tasks; leave {[*c.auxiliary]} out"
        )
    if c.method.name == "tag_classifier":
        network, threshold = build_network(c, (tags_head(foreground),)), c.method.tag_classifier.tag_threshold
        return TagClassifier(network, build_colour(c), **common, tag_threshold=threshold)
    if classifier is None:
        raise ConfigError(
            "method.classifier is empty: train one by --config=configs/tags.py:classifier, and name its work directory"
        )
    o = c.method.wsss_rec
    return WsssRec(
        build_network(c, wsss_heads(len(labels.classes))),
        classifier,
        **common,
        reconstruction_weight=o.reconstruction_weight,
        mask_weight=o.mask_weight,
        class_weight=o.class_weight,
        mask_loss=choose("method.wsss_rec.mask_loss", o.mask_loss, MASK_LOSSES),
        decay=c.ema.decay,
        bn_mode=choose("ema.bn_mode", c.ema.bn_mode, BATCH_NORM_MODES),
    )


def build_method(
    c: ConfigDict,
    labels: Labels,
    more: tuple[Auxiliary, ...] = (),
    classifier: Network | None = None,
    mesh: Mesh | None = None,
) -> Method:
    """The method with its networks and auxiliary tasks: those of the config, and `more`, which no config knows.

    `classifier` is the trained network that method.classifier names (`runs.trained_classifier`), `mesh` the devices of a
    training.
    """
    if c.method.name in FROM_TAGS:
        return build_method_from_tags(c, labels, classifier)
    auxiliary = (*build_auxiliary(c, labels, mesh), *more)
    heads = (HeadSpec(SEGMENTATION, len(labels.classes)), *(task.head for _, task in auxiliary))
    if len({head.name for head in heads}) < len(heads):
        raise ConfigError(f"two auxiliary tasks want the same head: {', '.join(head.name for head in heads)}")
    mixing = build_mixing(c, len(labels.classes))
    common: dict[str, Any] = {
        "network": build_network(c, heads),
        "colour": build_colour(c),
        "supervised_loss": build_supervised_loss(c),
        "auxiliary": auxiliary,
        "supervised_weight": c.method.supervised_weight,
        "decay": c.ema.decay,
        "bn_mode": choose("ema.bn_mode", c.ema.bn_mode, BATCH_NORM_MODES),
    }
    if choose("method.name", c.method.name, METHODS) == "supervised":
        return Supervised(**common, mixing=mixing if c.augment.mix_labelled else NoMixing())
    common |= {
        "partial_labels": bool(c.data.partial),
        "mixing": mixing,
        # Where labels are partial these rows are the ones that the teacher completes: they are mixed as such.
        "labelled_mixing": mixing if c.augment.mix_labelled or c.data.partial else NoMixing(),
        "threshold": c.method.threshold,
        "unsupervised_weight": c.method.unsupervised_weight,
        "ramp": in_steps(c, "method.ramp", c.method.ramp),
        "normaliser": choose("method.normaliser", c.method.normaliser, ("valid", "kept", "eta")),
    }
    match c.method.name:
        case "ps_mt":
            return build_ps_mt(c, common)
        case "s4gan":
            return build_s4gan(c, common, len(labels.classes))
        case _:
            return MeanTeacher(**common)


def in_steps(c: ConfigDict, key: str, length: float) -> int:
    """A length given in steps, or below 1 as a fraction of all steps."""
    if length < 0 or (length > 1 and length != int(length)):
        raise ConfigError(f"{key}={length} must be a whole number of steps, or a fraction of all steps between 0 and 1")
    return round(length * c.steps) if length < 1 else int(length)


def build_ps_mt(c: ConfigDict, common: dict[str, Any]) -> PsMt:
    """PS-MT with its own options."""
    o = c.method.ps_mt
    if o.epoch < 0 or o.epsilon < 0:
        raise ConfigError(f"method.ps_mt.epoch={o.epoch} and method.ps_mt.epsilon={o.epsilon} must not be negative")
    warmup = in_steps(c, "method.ps_mt.warmup", o.warmup)
    return PsMt(**common, warmup=warmup, epoch=o.epoch, epsilon=o.epsilon)


def build_s4gan(c: ConfigDict, common: dict[str, Any], classes: int) -> S4Gan:
    """S4GAN with its discriminator."""
    o = c.method.s4gan
    if c.augment.mixing == "classmix":
        raise ConfigError(
            "augment.mixing='classmix' pastes the classes of pseudo-labels, and s4gan has none before its student has "
            "seen the image: choose 'none', or a mixing by boxes"
        )
    if not 0 <= o.dropout < 1:
        raise ConfigError(f"method.s4gan.dropout={o.dropout} must be a probability below 1; published: 0.5")
    discriminator = discriminator_network(
        classes, channels=o.channels, dropout=o.dropout, compute_dtype=jnp.dtype(c.compute_dtype)
    )
    # Labelled rows are mixed alike whatever augment.mix_labelled says: boxes in predictions alone would give them away.
    common |= {"labelled_mixing": common["mixing"]}
    return S4Gan(**common, discriminator=discriminator, feature_matching_weight=o.feature_matching_weight)


def with_epoch(c: ConfigDict, data: TrainingData) -> ConfigDict:
    """The config with the epoch of PS-MT in steps, worked out from the data where it is 0; unchanged for other methods.

    An epoch is one of the unlabelled images; with partial labels alone, of the labelled ones.
    """
    if c.method.name != "ps_mt" or c.method.ps_mt.epoch:
        return c
    if data.unlabelled is not None:
        images, rows = len(data.unlabelled), c.batch.unlabelled
    elif data.labelled is not None:
        images, rows = len(data.labelled), c.batch.labelled
    else:
        return c
    resolved = c.copy_and_resolve_references()
    resolved.method.ps_mt.epoch = -(-images // rows)
    return resolved


def build_optimizer(c: ConfigDict) -> optax.GradientTransformation:
    """The optimiser with its schedule; a discriminator has Adam to itself (S4GAN), with the same decay over time."""
    shared = make_optimizer(steps=c.steps, **c.optim.to_dict())
    if c.method.name != "s4gan":
        return shared
    schedule = poly_schedule(c.method.s4gan.lr, c.steps, c.optim.poly_power, warmup=0)
    return with_own_optimizers(shared, {DISCRIMINATOR: optax.adam(schedule, b1=0.9, b2=0.99)})


def build_schedule(c: ConfigDict) -> Schedule:
    """When to log, evaluate and save."""
    return Schedule(c.steps, c.log_every, c.evaluate_every, c.checkpoint_every)


def build_guard(c: ConfigDict) -> Callable[[Step], Step]:
    """What on_nan puts around the step: nothing, as the loop stops by itself, or what drops an update."""
    return drop_not_finite if choose("on_nan", c.on_nan, ("stop", "skip")) == "skip" else lambda step: step


def build_mesh(c: ConfigDict) -> Mesh:
    """The device mesh; checks that the batch spreads evenly over it."""
    mesh = make_mesh(c.mesh.fsdp)
    for key in ("labelled", "unlabelled", "tagged"):
        rows = global_batch(mesh, c.batch[key], f"batch.{key}")
        if rows // mesh.size % c.accumulate:
            raise ConfigError(
                f"accumulate={c.accumulate} must divide the {rows // mesh.size} {key} rows of each device"
            )
    return mesh


def build_evaluator(c: ConfigDict, method: Method, labels: Labels, mesh: Mesh) -> Evaluator:
    """Scores the method on a source."""
    devices = local_mesh(mesh).size
    rows = -(-c.eval.batch // mesh.size) * devices
    seen: Mode = "center_crop" if c.eval.mode == "center_crop" else "whole"
    return Evaluator(
        build_predicts(c, method), len(labels.classes), mesh, Buckets(c.eval.bucket, rows), seen, c.eval.crop
    )


def build_predicts(c: ConfigDict, method: Method) -> Predicts:
    """What predicts an image: the method on all of it at once, or, with eval.mode="sliding", window by window."""
    if choose("eval.mode", c.eval.mode, ("whole", "center_crop", "sliding")) != "sliding":
        return method
    if not 0 < c.eval.stride_fraction <= 1:
        raise ConfigError(
            f"eval.stride_fraction={c.eval.stride_fraction} must be above 0 and at most 1; published: 2/3"
        )
    if c.eval.crop < 1:
        raise ConfigError(f"eval.crop={c.eval.crop} must be a number of pixels, usually data.crop")
    return SlidingWindow(method, c.eval.crop, max(round(c.eval.crop * c.eval.stride_fraction), 1))


def network_variables(state: TrainState, network: str) -> dict[str, Variables]:
    """The teacher's or the student's networks, as Method.predict takes them; the student's where there is no teacher."""
    if choose("--network", network, ("teacher", "student")) == "teacher" and state.teacher:
        return state.teacher
    return {name: Variables(state.params[name], state.batch_stats[name]) for name in state.params}


def pixel_space(c: ConfigDict) -> PixelSpace:
    """The space that the reconstruction head paints in; "unit" for a run without one."""
    return c.auxiliary.reconstruction.pixel_space if RECONSTRUCTION in c.auxiliary else "unit"


def protocol(c: ConfigDict) -> dict[str, Any]:
    """The choices that the papers leave open, as every result states them."""
    return {
        "encoder": c.model.encoder,
        "output_stride": c.model.output_stride,
        "share_aspp": c.model.share_aspp,
        "crop": c.data.crop,
        "longest_side": c.data.longest_side,
        "pool": c.data.pool,
        "claim": c.data.protocol,
        "bn_mode": c.ema.bn_mode,
        "ema_decay": c.ema.decay,
        "pad_label": c.data.pad_label,
        "partial": c.data.partial,
        "supervised_loss": c.method.supervised_loss,
        "threshold": c.method.threshold,
        "normaliser": c.method.normaliser,
        "supervised_weight": c.method.supervised_weight,
        "unsupervised_weight": c.method.unsupervised_weight,
        "ramp": c.method.ramp,
        "mixing": c.augment.mixing,
        "method_options": c.method[c.method.name].to_dict() if c.method.name in c.method else {},
        "mask_threshold": c.method.mask_threshold if c.method.name in FROM_TAGS else None,
        "tags": c.data.tags if c.batch.tagged else None,
        "auxiliary": c.auxiliary.to_dict(),
        "evaluation_split": c.eval.split,
        "evaluation_mode": c.eval.mode,
        "evaluation_crop": None if c.eval.mode == "whole" else c.eval.crop,
        "compute_dtype": c.compute_dtype,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
