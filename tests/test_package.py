import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_wheel_holds_every_package_and_the_configs():
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "forec_jax").rglob("*.py")}
    packages = {".".join(folder.parts) for folder in folders} | {"forec_jax.configs"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages


def test_the_version_is_stated_once():
    source = (ROOT / "forec_jax" / "__init__.py").read_text()
    assert re.search(r'__version__ = "(.*)"', source)[1] == PROJECT["project"]["version"]


def test_every_dependency_says_why():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    named = [line for line in lines if re.match(r'\s+"[a-zA-Z-]+>=', line)]
    assert len(named) > 10
    assert all("#" in line for line in named)


def test_only_what_makes_and_reads_configs_knows_them():
    """Methods, networks, data and the training see dataclasses."""
    above = {"config.py", "options.py", "overrides.py"}
    for file in (ROOT / "forec_jax").rglob("*.py"):
        if file.parent.name not in {"experiment", "commands", "variants"} and file.name not in above:
            assert "ml_collections" not in file.read_text(), file


def test_linen_lives_in_models_alone():
    for file in (ROOT / "forec_jax").rglob("*.py"):
        if "models" not in file.relative_to(ROOT).parts:
            assert not re.search(r"^(import|from) flax", file.read_text(), re.MULTILINE), file


def test_nothing_but_its_own_file_and_the_list_names_a_method():
    """A method, a task, a data set and an encoder are one file each, and one line where they are listed."""
    names = {"ps_mt": "methods", "s4gan": "methods", "cityscapes": "datasets", "mobilenet_v2": "encoders"}
    for file in (ROOT / "forec_jax").rglob("*.py"):
        for name, folder in names.items():
            if file.stem == name or file == ROOT / "forec_jax" / ("data" if folder == "datasets" else "x"):
                continue
            if re.search(rf"import[^\n]*\b{name}\b", file.read_text()) and file.parent.name != folder:
                assert file.name in {"__init__.py", "pretrained.py"}, file


def test_no_file_is_longer_than_400_lines():
    for file in (ROOT / "forec_jax").rglob("*.py"):
        assert len(file.read_text().splitlines()) <= 400, file
