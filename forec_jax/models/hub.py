"""Weights from the Hugging Face hub, by name and checksum."""

import re
from pathlib import Path
from typing import NamedTuple

from forec_jax.files import cache_folder, sha256_of
from forec_jax.models.convert import WeightsError

PREFIX = "hf:"
FILE = "model.safetensors"
_REFERENCE = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([^#]+))?(?:#sha256=([0-9a-fA-F]{64}))?")


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
    if reference.sha256 and (actual := sha256_of(path)) != reference.sha256:
        raise WeightsError(
            f"{text}: {path} has SHA-256 {actual}, not {reference.sha256}; "
            "if the checksum is right, delete that file and fetch it again"
        )
    return path


def _cache(of_the_client: str) -> Path:
    """The hub's own cache, where it is a place: without a home, and with an empty XDG_CACHE_HOME, it is a relative path."""
    place = Path(of_the_client)
    return place if place.is_absolute() else cache_folder() / "hub"
