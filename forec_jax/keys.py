"""Dotted keys of options, and the names that some had before."""

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

_RENAMED = {
    "data.size": "data.shapes.size",
    "data.val_fraction": "data.folder.val_fraction",
    "method.classifier": "method.wsss_rec.classifier",
    "model.share_aspp": "model.deeplab.share_aspp",
}
_OF_THE_ENCODER = ("stem", "width", "output_stride", "multi_grid", "remat")
_FAMILIES = ("resnet", "efficientnet_lite")  # of encoders whose options are not called as they are themselves
_OF_THE_DECODER = "model.decoder."


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict's leaves by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def new_key(key: str, encoder: str) -> str:
    """Today's name of a dotted key, of a config with this encoder (model.encoder); most have always had theirs."""
    family = next((name for name in _FAMILIES if encoder.startswith(name)), encoder)
    if key in _RENAMED:
        return _RENAMED[key]
    if key.startswith(_OF_THE_DECODER):
        return f"model.{'unet' if family == 'unet' else 'deeplab'}.{key.removeprefix(_OF_THE_DECODER)}"
    if key.startswith("model.") and key.removeprefix("model.") in _OF_THE_ENCODER:
        return f"model.{family}.{key.removeprefix('model.')}"
    return key


def with_new_keys(options: Mapping[str, Any], encoder: str) -> dict[str, Any]:
    """Options by today's keys; the log names those that were given by an old one.

    `encoder` is what model.encoder is where the options do not say.
    """
    encoder = options.get("model.encoder", encoder)
    renamed = {key: new_key(key, encoder) for key in options}
    for old, new in renamed.items():
        if old != new:
            log.warning("%s is now called %s; the old name goes with the next release", old, new)
    return {new: options[old] for old, new in renamed.items()}
