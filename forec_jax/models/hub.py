"""Weights from the Hugging Face hub, by name and checksum."""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from forec_jax.files import cache_folder, read_json, sha256_of
from forec_jax.models.naming import WeightsError

log = logging.getLogger(__name__)

PREFIX = "hf:"
FILE = "model.safetensors"
CONFIG = "config.json"
_REFERENCE = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([^#]+))?(?:#sha256=([0-9a-fA-F]{64}))?")

_PLAIN_RESNET = {  # options without a tensor of their own, as a plain ResNet has them: transformers', then timm's
    "downsample_in_bottleneck": False,
    "downsample_in_first_stage": False,
    "hidden_act": "relu",
    "aa_layer": None,
    "act_layer": None,
    "avg_down": False,
}
_PLAIN_MOBILENET = {  # the same of a MobileNetV2
    "tf_padding": True,
    "layer_norm_eps": 0.001,
    "hidden_act": "relu6",
    "aa_layer": None,
    "act_layer": None,
    "pad_type": "",
}


class Reference(NamedTuple):
    """What `hf:OWNER/NAME[@REVISION][#sha256=...]` says."""

    repository: str
    revision: str | None
    sha256: str | None


def parse_reference(text: str) -> Reference:
    """Reads a reference; raises WeightsError where it is not one."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise WeightsError(f"{text}: weights on the hub are written hf:OWNER/NAME[@REVISION][#sha256=64 hex digits]")
    repository, revision, sha256 = match.groups()
    return Reference(repository, revision, sha256.lower() if sha256 else None)


def fetch(text: str) -> Path:
    """The local copy of a repository's model.safetensors, downloaded where the hub's cache does not hold it.

    Its config.json comes along where there is one, for `check_computes_alike`.

    Raises:
      WeightsError: the client is not installed, the hub cannot be reached, it has no such file, or the checksum is
        another.
    """
    reference = parse_reference(text)
    try:
        from huggingface_hub import constants, hf_hub_download, hf_hub_url
    except ImportError as error:
        raise WeightsError(f"{text}: the hub's client is not installed; pip install 'forec-jax[hub]'") from error
    page = hf_hub_url(reference.repository, FILE, revision=reference.revision)
    by_hand = f"download {page} by hand and set model.weights to the file"
    try:
        cache = _cache(constants.HF_HUB_CACHE)
        path = Path(hf_hub_download(reference.repository, FILE, revision=reference.revision, cache_dir=cache))
    except Exception as error:  # the client lets through what its HTTP library raises, and that library has changed
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{text} could not be fetched ({why}); check the name and the connection, or {by_hand}"
        ) from error
    _fetch_config(hf_hub_download, reference, cache)
    if reference.sha256 and (actual := sha256_of(path)) != reference.sha256:
        raise WeightsError(
            f"{text}: {path} has SHA-256 {actual}, not {reference.sha256}; "
            "if the checksum is right, delete that file and fetch it again"
        )
    return path


def _fetch_config(download: Callable[..., str], reference: Reference, cache: Path) -> None:
    """Puts the repository's config.json beside the tensors, where it has one: it says what they cannot."""
    try:
        download(reference.repository, CONFIG, revision=reference.revision, cache_dir=cache)
    except Exception as error:  # as above; without it the tensors are taken at their names
        why = type(error).__name__
        log.info(
            "%s has no %s to read (%s): what its network computes is not checked", reference.repository, CONFIG, why
        )


def check_computes_alike(weights: Path) -> None:
    """Raises WeightsError for an encoder with a plain one's tensors that, as its config.json says, computes otherwise.

    timm's resnetaa and resnetblur smooth what they shrink, its efficientnet_lite0 pads in another way than
    tf_efficientnet_lite0, transformers' options move a stride, or pad a MobileNetV2 in another way: no tensor shows it.
    """
    config = weights.with_name(CONFIG)
    if weights.name != FILE or not config.is_file():
        return
    try:
        content = read_json(config)
    except (ValueError, OSError, RecursionError) as error:
        raise WeightsError(f"{config} is damaged ({error}); fetch it again, or remove it") from error
    if isinstance(content, dict) and (otherwise := _computes_otherwise(content)):
        raise WeightsError(
            "take weights of a plain network, such as hf:timm/resnet50.a1_in1k or hf:timm/tf_efficientnet_lite0.in1k\n"
            f"{config} says {otherwise}: this network holds a plain one's tensors and computes something else"
        )


def _computes_otherwise(config: Mapping[str, Any]) -> str:
    """What a config says that no tensor shows, in words; empty where there is nothing."""
    architecture = str(config.get("architecture", ""))
    if re.match(r"resnet(aa|blur)|efficientnet_lite", architecture):
        return f"architecture={architecture}"
    given = {**config, **_as_dict(config.get("model_args"))}
    mobile = "mobilenet" in f"{architecture}{config.get('model_type', '')}"
    kept = _PLAIN_MOBILENET if mobile else _PLAIN_RESNET
    return ", ".join(f"{key}={given[key]}" for key, plain in kept.items() if given.get(key, plain) != plain)


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _cache(of_the_client: str) -> Path:
    """The hub's own cache, where it is a place: without a home, and with an empty XDG_CACHE_HOME, it is a relative path."""
    place = Path(of_the_client)
    return place if place.is_absolute() else cache_folder() / "hub"
