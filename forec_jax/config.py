"""Every option with its default and its meaning, and the variants that all data sets share.

A file of configs/ starts from `defaults()`, sets what its data set needs, and applies the variant that the command line
names. Keys cannot be added from the command line: an unknown key is an error.
"""

import difflib
import runpy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

Change = Callable[[ConfigDict], None]


def defaults() -> ConfigDict:
    """The options that every run has."""
    c = ConfigDict()
    c.seed = 0  # of the initial weights, the order of the data, every random draw
    c.steps = 4000  # updates
    c.log_every = 50  # steps between two lines in metrics.jsonl
    c.evaluate_every = 500  # steps between two evaluations on eval.split
    c.checkpoint_every = 500  # steps between two checkpoints of the last state
    c.compute_dtype = "float32"  # or "bfloat16": activations of the student; weights, teacher and losses stay float32
    c.on_nan = "stop"  # a loss, gradient or metric that is not finite: "stop", or "skip" the update, warn and count
    c.accumulate = 1  # parts into which a batch is taken, for less memory; must divide the rows of each device

    c.batch = ConfigDict()
    c.batch.labelled = 8  # labelled rows a step, over all devices
    c.batch.unlabelled = 8  # unlabelled rows a step, over all devices; 0 for none
    c.batch.tagged = 0  # rows with image-level tags a step, over all devices; for the methods of configs/tags.py

    c.data = ConfigDict()
    c.data.name = ""  # "shapes", "voc", "camvid", "cityscapes", "sunrgbd" or "folder" (a data set of your own)
    c.data.root = ""  # voc: the folder that holds VOC2012/; otherwise the data set's own folder (docs/data.md)
    c.data.prepared = ""  # where prepared records go; empty: the user's cache folder
    c.data.size = 96  # shapes: side of an image in pixels
    c.data.background = ""  # "class,class": what FOrec takes as background; empty: the data set's own choice
    c.data.longest_side = 0  # larger images are scaled down to it first, in predictions too; 0: images as they are
    c.data.val_fraction = 0.2  # folder: part of the images with masks that is val where there is no val.txt
    c.data.pool = "train"  # the split that labelled and unlabelled images come from; voc: "train" or "train_aug"
    c.data.labelled = "all"  # a list file, "<count>:<seed>" (a draw), or "all": of the pool's images with masks; or
    # "balanced:<count>:<seed>[:<classes>]", a draw that shows every class about equally often (docs/data.md)
    c.data.unlabelled = "rest"  # a list file, "rest" (the pool without the labelled part), or "none"
    c.data.protocol = ""  # a published list that the split must be, such as "voc/classic/183" (docs/data.md); "": none
    c.data.partial = ""  # of a class in an image: "1px", "5%" (grown from it), "masks" (what they hold); "": all of it
    c.data.tags = "masks"  # where tags come from: "masks" (simulated annotation), "folders" (one a class), a CSV file
    c.data.tag = ""  # one class against the rest, such as "dog"; empty: every class of the data set
    c.data.crop = 321  # side of the square training crop in pixels, at least 33
    c.data.scale = (0.5, 2.0)  # range of the random scale, relative to the image's own size
    c.data.flip = True  # mirror half of the images
    c.data.half_below_one = False  # U2PL: shrink and grow equally often
    c.data.pad_label = 255  # label of the padding: 255 ignores it; U2PL trains on 0
    c.data.workers = 0  # processes that decode; 0: threads of this process
    c.data.on_corrupt = "raise"  # an unreadable training image: "raise", or "skip" it, count it and take the next

    c.model = ConfigDict()
    c.model.encoder = "resnet50"  # resnet18, resnet34, resnet50, resnet101, mobilenet_v2; unet: with its own decoders
    c.model.stem = "7x7"  # ResNets: "7x7", "deep" (three 3x3), or "d" (ResNet-D, timm's resnet50d)
    c.model.width = 1.0  # multiplies the encoder's channels; 1 is the published network
    c.model.output_stride = 16  # 8 or 16
    c.model.multi_grid = (1, 1, 1)  # ResNets: dilation factors of the last stage's blocks
    c.model.weights = ""  # a file, or hf:OWNER/NAME[@REVISION][#sha256=...] (docs/weights.md); empty: random
    c.model.bn_momentum = 0.9  # of BatchNorm's running statistics: new = momentum * old + (1 - momentum) * batch
    c.model.share_aspp = False  # all heads read one ASPP: less to compute, but not the paper's (docs/performance.md)
    c.model.remat = False  # keep less of the encoder for the backward pass and compute it again (docs/scaling.md)
    c.model.decoder = ConfigDict()
    c.model.decoder.rates = (6, 12, 18)  # dilation of the ASPP's branches
    c.model.decoder.channels = 256  # of the ASPP and the decoder
    c.model.decoder.low_level_channels = 48  # of the projected low-level features
    c.model.decoder.projection_size = 1  # after the ASPP's concatenation: 1, or U2PL's 3
    c.model.decoder.dropout = 0.0  # channel dropout after the ASPP and in the decoder; U2PL: 0.1
    c.model.decoder.align_corners = True  # of every bilinear resize

    c.augment = ConfigDict()  # colour changes, each image on its own (strengths of UniMatch and ST++)
    c.augment.brightness = 0.5
    c.augment.contrast = 0.5
    c.augment.saturation = 0.5
    c.augment.hue = 0.25
    c.augment.jitter_probability = 0.8
    c.augment.grayscale_probability = 0.2
    c.augment.blur_probability = 0.5
    c.augment.blur_sigma = (0.1, 2.0)  # in pixels
    c.augment.mixing = "cutmix"  # "none", "cutout", "cutmix", "cutmix_beta" (PS-MT's box), "cutout_half", "cutmix_half"
    # (ReCo's box), "classmix"
    c.augment.mixing_probability = 0.5  # of a row
    c.augment.mix_labelled = True  # mix labelled rows as well, among themselves; False: unlabelled rows alone (ReCo)

    c.method = ConfigDict()
    c.method.name = "mean_teacher"  # "supervised", "mean_teacher", "ps_mt", "s4gan", "tag_classifier", "wsss_rec"
    c.method.supervised_loss = "cross_entropy"  # L_s: "cross_entropy", or "ohem": of the hard pixels alone (Cityscapes)
    c.method.ohem_threshold = 0.7  # ohem: a pixel is hard where its true class has at most this probability
    c.method.ohem_min_kept = 100_000  # ohem: at least so many pixels a labelled row; UniMatch 100,000, U2PL 50,000
    c.method.threshold = 0.95  # confidence above which a pseudo-label counts; s4gan: the discriminator's, in an image
    c.method.supervised_weight = 1.0  # of L_s; 0 trains by the auxiliary tasks alone
    c.method.unsupervised_weight = 1.0  # of L_u; s4gan: of the self-training
    c.method.ramp = 0.0  # rise of that weight from 0, by a cosine: steps, or a fraction of `steps` below 1; 0: none
    c.method.normaliser = "valid"  # what L_u is divided by: "valid" (all pseudo-labelled pixels) or "kept" (confident);
    # "eta": all of them count, each image's times its share of confident ones (ReCo)

    c.method.classifier = ""  # wsss_rec: work directory of the trained tag_classifier that guides it
    c.method.mask_threshold = 0.5  # methods from tags: share that foreground must exceed (docs/methods.md)

    c.method.tag_classifier = ConfigDict()
    c.method.tag_classifier.tag_threshold = 0.5  # probability above which a class is said to be in an image

    c.method.wsss_rec = ConfigDict()
    c.method.wsss_rec.reconstruction_weight = 1.0  # of L_recon; 0 leaves a term out
    c.method.wsss_rec.mask_weight = 1e-3  # lambda_m, of L_mask
    c.method.wsss_rec.class_weight = 1e-3  # lambda_c, of L_cls
    c.method.wsss_rec.mask_loss = "area"  # L_mask by the masks' "area", or "size_penalty": pooled scores, focal penalty

    c.method.ps_mt = ConfigDict()
    c.method.ps_mt.warmup = 0.0625  # without L_u: steps, or a fraction of `steps` below 1; published: 5 of 80 epochs
    c.method.ps_mt.epoch = 0  # steps until the other teacher's turn; 0: the unlabelled images / batch.unlabelled
    c.method.ps_mt.epsilon = 2.0  # T-VAT: length of the perturbation of an image's features; 0: none

    c.method.s4gan = ConfigDict()
    c.method.s4gan.feature_matching_weight = 0.1  # of L_fm
    c.method.s4gan.lr = 1e-4  # of the discriminator's Adam, at the start
    c.method.s4gan.channels = 64  # of the discriminator's first convolution; the next three double them
    c.method.s4gan.dropout = 0.5  # of the discriminator's channels

    c.auxiliary = ConfigDict()  # tasks by name; the variants below add them with their options

    c.ema = ConfigDict()
    c.ema.decay = 0.99  # of the teacher: min(1 - 1/(t+1), decay)
    c.ema.bn_mode = "ema"  # the teacher's BatchNorm statistics: "ema" averages them, "copy" takes the student's, "own"

    c.optim = ConfigDict()
    c.optim.name = "sgd"  # or "adamw"
    c.optim.lr = 1e-3  # of the encoder, at the start
    c.optim.head_lr_multiplier = 10.0  # the heads' learning rate is that many times the encoder's
    c.optim.momentum = 0.9  # of SGD, nesterov off
    c.optim.weight_decay = 1e-4
    c.optim.decay_batch_norm = True  # False: no weight decay on BatchNorm and biases
    c.optim.poly_power = 0.9  # lr(t) = lr * (1 - t/steps)^poly_power
    c.optim.warmup = 0  # steps of a linear rise
    c.optim.clip_norm = 0.0  # bound on the gradient's norm; 0: none

    c.mesh = ConfigDict()
    c.mesh.fsdp = 1  # devices that share weights, teacher and optimiser (docs/scaling.md); must divide their number

    c.eval = ConfigDict()
    c.eval.split = "val"
    c.eval.mode = "whole"  # the whole image, "center_crop", or "sliding": the mean of overlapping windows (Cityscapes)
    c.eval.crop = 513  # side of the central crop or of the windows, in pixels
    c.eval.stride_fraction = 2 / 3  # sliding: from one window to the next, as a fraction of eval.crop
    c.eval.batch = 8  # images at a time, over all devices
    c.eval.bucket = 128  # sides are padded up to multiples of it (of 32 at least): fewer shapes to compile, same result
    c.eval.pictures = 4  # examples shown at each evaluation
    return c


def _reconstruction(target: str) -> ConfigDict:
    return ConfigDict(
        {
            "weight": 1.0,  # of the whole task
            "target": target,  # "image": every pixel; "foreground": FOrec, section 4.4
            "labelled_weight": 1.0,  # of the labelled rows' error
            "unlabelled_weight": 0.5,  # of the unlabelled rows' error
            "threshold": 0.95,  # foreground: confidence above which a pseudo-label says what a pixel is
            "pixel_space": "unit",  # targets in [0, 1], or "imagenet": normalised by ImageNet's mean and deviation
            "void": "exclude",  # foreground: void ground truth is left out, or "zero" as Eq. 3 to the letter
        }
    )


def _foreground_segmentation() -> ConfigDict:
    return ConfigDict({"weight": 1.0, "labelled_weight": 1.0, "unlabelled_weight": 0.5, "threshold": 0.95})


def _reco() -> ConfigDict:
    return ConfigDict(
        {
            "weight": 1.0,  # of the contrast
            "channels": 256,  # of the representation
            "stride": 4,  # resolution of the representation: 4, a quarter of the image's, or 1
            "queries": 256,  # pixels drawn of each class
            "negative_keys": 512,  # drawn for each query
            "queries_at_once": 0,  # whose keys are gathered together: memory and time, not the result; 0: 256, on a CPU 8
            "key_sets": "own",  # "own": each query has its own keys; "shared": those of a class share them (less memory)
            "query_sampling": "hard",  # queries: pixels up to the next threshold ("hard"), above it ("easy"), or "random"
            "query_threshold": 0.97,  # delta_s: the student's probability of a pixel's label up to which it is hard
            "key_sampling": "active",  # classes of the keys: "active", the similar ones more often, or "random" pixels
            "pixel_threshold": 0.7,  # delta_w: the teacher's confidence above which an unlabelled pixel takes part
            "temperature": 0.5,  # tau of the loss
            "relation_temperature": 0.5,  # active keys: of the softmax over the similarities; the paper's formula has 1
        }
    )


def auxiliary_defaults() -> ConfigDict:
    """Every auxiliary task's options by its name; a config has those of the tasks that it uses."""
    return ConfigDict(
        {
            "reconstruction": _reconstruction("image"),
            "foreground_segmentation": _foreground_segmentation(),
            "reco": _reco(),
        }
    )


def _use_method(name: str) -> Change:
    def change(c: ConfigDict) -> None:
        c.method.name = name
        if name == "supervised":
            c.batch.unlabelled = 0

    return change


def _use_ps_mt(c: ConfigDict) -> None:
    """PS-MT as published; the weight is that of VOC's classic lists but 92's (there 0.06; train_aug 1.5, Cityscapes 3)."""
    c.method.name = "ps_mt"
    c.method.threshold = 0.6
    c.method.unsupervised_weight = 0.6
    c.method.ramp = 0.15  # 12 of 80 epochs
    c.ema.decay = 0.996
    c.method.normaliser = "kept"
    c.augment.mixing = "cutmix_beta"
    c.augment.mixing_probability = 1.0
    c.augment.mix_labelled = False


def _use_s4gan(c: ConfigDict) -> None:
    """S4GAN as published: images as they are, self-training in what the discriminator trusts (VOC 0.6, Cityscapes 0.7)."""
    c.method.name = "s4gan"
    c.method.threshold = 0.6
    c.method.normaliser = "kept"
    c.augment.mixing = "none"


def _use_mixing(name: str) -> Change:
    """A baseline of ReCo's: this mixing in every unlabelled row, with the colours of ReCo and ClassMix."""

    def change(c: ConfigDict) -> None:
        c.augment.mixing = name
        c.augment.mixing_probability = 1.0
        c.augment.mix_labelled = False
        c.augment.brightness = c.augment.contrast = c.augment.saturation = c.augment.hue = 0.25
        c.augment.grayscale_probability = 0.0
        c.augment.blur_sigma = (0.15, 1.15)

    return change


def _sum_of(*parts: str) -> Change:
    def change(c: ConfigDict) -> None:
        for part in parts:
            VARIANTS[part](c)

    return change


def _use_reconstruction(target: str) -> Change:
    def change(c: ConfigDict) -> None:
        c.auxiliary.reconstruction = _reconstruction(target)

    return change


def _reconstruction_only(c: ConfigDict) -> None:
    c.method.supervised_weight = c.method.unsupervised_weight = 0.0
    c.auxiliary.reconstruction = _reconstruction("image")


def _use_foreground_segmentation(c: ConfigDict) -> None:
    c.auxiliary.foreground_segmentation = _foreground_segmentation()


def _use_reco(c: ConfigDict) -> None:
    c.auxiliary.reco = _reco()


def _eta(c: ConfigDict) -> None:
    c.method.normaliser = "eta"
    c.method.threshold = 0.97


def _reco_paper(c: ConfigDict) -> None:
    """ReCo, section 3.3 and appendix A: ClassMix with its colours, eta, one learning rate; VOC's crop and batch."""
    for part in ("reco", "eta", "classmix"):
        VARIANTS[part](c)
    c.model.encoder = "resnet101"
    c.ema.bn_mode = "own"
    c.batch.labelled = 10
    c.batch.unlabelled = 10 if c.batch.unlabelled else 0  # none for supervised training and partial labels
    c.data.crop = 321
    c.data.scale = (0.5, 1.5)
    c.optim.lr = 2.5e-3
    c.optim.head_lr_multiplier = 1.0
    c.optim.weight_decay = 5e-4
    c.steps = 40_000


def _use_partial(share: str) -> Change:
    """Partial labels on all images of the pool: the teacher labels the other pixels, and there are no other rows."""

    def change(c: ConfigDict) -> None:
        c.data.partial = share
        c.data.labelled = "all"
        c.data.unlabelled = "none"
        c.batch.unlabelled = 0

    return change


def _small(c: ConfigDict) -> None:
    """MobileNetV2 with a narrow decoder at crop 128: a run of a quarter of an hour on a CPU core."""
    c.model.encoder = "mobilenet_v2"
    c.model.output_stride = 8
    c.model.decoder.channels = 64
    c.model.decoder.low_level_channels = 24
    c.data.crop = 128
    c.data.scale = (0.3, 1.0)
    c.optim.name = "adamw"  # in so few steps SGD learns the background and little else
    c.optim.lr = 3e-4
    c.optim.head_lr_multiplier = 5.0
    c.optim.weight_decay = 1e-2
    c.steps = 400
    c.evaluate_every = c.checkpoint_every = 200


def _other_lambdas(c: ConfigDict) -> None:
    c.method.unsupervised_weight = 0.5
    for task in (task for task in c.auxiliary.values() if "labelled_weight" in task):
        task.labelled_weight = task.unlabelled_weight = 1.0


def _share_aspp(c: ConfigDict) -> None:
    c.model.share_aspp = True


def _u2pl_decoder(c: ConfigDict) -> None:
    c.model.stem = "deep"
    c.model.output_stride = 8
    c.model.multi_grid = (2, 2, 4)
    c.model.decoder.update({"rates": (12, 24, 36), "low_level_channels": 256, "projection_size": 3, "dropout": 0.1})


VARIANTS: Mapping[str, Change] = {
    "supervised": _use_method("supervised"),
    "mean_teacher": _use_method("mean_teacher"),
    "ps_mt": _use_ps_mt,
    "ps_mt_forec": _sum_of("ps_mt", "forec"),
    "s4gan": _use_s4gan,
    "s4gan_forec": _sum_of("s4gan", "forec"),
    "cutout": _use_mixing("cutout_half"),
    "cutmix": _use_mixing("cutmix_half"),
    "classmix": _use_mixing("classmix"),
    "reconstruction": _use_reconstruction("image"),
    "forec": _use_reconstruction("foreground"),
    "reconstruction_only": _reconstruction_only,  # no segmentation loss: the autoencoder of the paper's Figure 1
    "foreground_segmentation": _use_foreground_segmentation,
    "reco": _use_reco,  # regional contrast, beside any method and any other task
    "reco_forec": _sum_of("reco", "forec"),  # reco+forec
    "reco_paper": _reco_paper,  # the ReCo paper's hyper-parameters, with reco
    "eta": _eta,  # L_u as ReCo weights it, with or without its contrast
    "partial_1px": _use_partial("1px"),  # ReCo's "Partial Labels Full Dataset"
    "partial_1pc": _use_partial("1%"),
    "partial_5pc": _use_partial("5%"),
    "partial_25pc": _use_partial("25%"),
    "partial_masks": _use_partial("masks"),  # scribbles and the like: a folder's own partial masks
    "other_lambdas": _other_lambdas,  # L = L_s + 0.5 L_u + 1 L_rec, the other reading of the paper's two lambdas
    "u2pl_model": _u2pl_decoder,  # DeepLabV3+ as in U2PL
    "small": _small,  # for a CPU
    "share_aspp": _share_aspp,  # a departure: the auxiliary tasks' heads read the segmentation's ASPP
}
"""What a part of a variant's name does. Parts join with "+" (`apply_variant`); the method is mean_teacher unless named."""


METHOD_PARTS = ("supervised", "mean_teacher", "ps_mt", "ps_mt_forec", "s4gan", "s4gan_forec")
"""Parts that choose the method; they come first, as they set what others change."""


def apply_variant(c: ConfigDict, variant: str, more: Mapping[str, Change] | None = None) -> ConfigDict:
    """Applies "part+part+..." to a config; `more` holds a data set's own parts.

    The method comes first and `other_lambdas` last, wherever they stand; the other parts from left to right, the later one
    winning. Raises ValueError for an unknown part and for two methods.
    """
    known, parts = {**VARIANTS, **(more or {})}, variant.split("+")
    for part in parts:
        if part not in known:
            raise ValueError(f"unknown variant {part!r} in {variant!r}; the parts are: {', '.join(sorted(known))}")
    if len(methods := [part for part in parts if part in METHOD_PARTS]) > 1:
        raise ValueError(f"variant {variant!r} names {len(methods)} methods, {' and '.join(methods)}; choose one")
    for part in sorted(parts, key=lambda part: (part == "other_lambdas") - (part in METHOD_PARTS)):
        known[part](c)
    return c


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict's leaves by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def check_keys(c: ConfigDict, keys: Iterable[str]) -> None:
    """Raises ValueError for a dotted key that the config does not have."""
    known = flat(c.to_dict())
    for key in keys:
        if key in known:
            continue
        task = key.split(".")[1] if key.startswith("auxiliary.") else ""
        if task in auxiliary_defaults() and task not in c.auxiliary:
            variants = "reconstruction or forec" if task == "reconstruction" else task
            raise ValueError(f"--config.{key}: this config has no task {task}; add it to the variant: +{variants}")
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean --config.{near[0]}?" if near else "forec_jax/config.py has all options"
        raise ValueError(f"--config.{key}: there is no such option; {hint}")


def config_path(value: str) -> str:
    """FILE[:VARIANT] with FILE looked up here, then among the configs that come with the library."""
    file, colon, variant = value.partition(":")
    package = Path(__file__).parent
    for candidate in (Path(file), package / file, package.parent / file):
        if candidate.is_file():
            return f"{candidate}{colon}{variant}"
    raise ValueError(f"--config={value}: no file {file}; for example --config=configs/shapes.py:forec")


def load_config(value: str, options: Mapping[str, Any]) -> ConfigDict:
    """The config FILE[:VARIANT] with `options` by dotted key: in Python what --config and --config.key=value are.

    Raises ValueError for an unknown file or variant, KeyError for an unknown key, TypeError for a value of another type.
    """
    file, _, variant = config_path(value).partition(":")
    get_config = runpy.run_path(file)["get_config"]
    c: ConfigDict = get_config(variant) if variant else get_config()
    c.lock()
    c.update_from_flattened_dict(options)
    return c
