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


def test_no_module_below_build_sees_a_config():
    for file in (ROOT / "forec_jax").rglob("*.py"):
        if file.name not in {"config.py", "build.py", "runs.py", "chain.py", "planning.py", "cli.py"}:
            assert "ml_collections" not in file.read_text(), file


def test_linen_lives_in_models_alone():
    for file in (ROOT / "forec_jax").rglob("*.py"):
        if file.parent.name != "models":
            assert not re.search(r"^(import|from) flax", file.read_text(), re.MULTILINE), file
