"""What the documents take from the code is what the code says."""

import re
from pathlib import Path

from forec_jax.config import every_block, options_in
from forec_jax.experiment.listing import options_page, options_table
from forec_jax.keys import new_key
from forec_jax.methods import METHODS
from forec_jax.methods.tasks import TASKS
from forec_jax.variants import SUMS, variants

ROOT = Path(__file__).parents[1]


def test_the_page_of_the_options_is_up_to_date():
    """Make it anew by: forec-jax options --markdown > docs/options.md"""
    own = {prefix for prefix in every_block() if "self_training" in prefix or "stripes" in prefix}
    assert not own, "a plugin of another test is listed"
    assert (ROOT / "docs" / "options.md").read_text() == options_page()


def test_every_option_that_the_documents_set_exists():
    keys = {key for key, _ in options_in(every_block())}
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").glob("*.py")):
        for key in re.findall(r"--config\.([a-z_0-9.]+[a-z_0-9])=", file.read_text()):
            today = {new_key(key, encoder) for encoder in ("resnet50", "mobilenet_v2", "unet")}
            if key not in ("auxiliary.edges.sharpness",):
                assert today & keys, f"{file.name}: --config.{key}"


def test_every_variant_has_its_line():
    text = (ROOT / "docs" / "variants.md").read_text()
    tags = {name for name, entry in METHODS.items() if entry.needs == {"tagged"}}
    for name in variants().keys() | SUMS.keys():
        assert name in tags or f"`{name}`" in text, name


def test_the_readme_names_every_method_and_task():
    text = (ROOT / "README.md").read_text()
    tags = {name for name, entry in METHODS.items() if entry.needs == {"tagged"}}
    for name in METHODS.keys() - tags | {variant for entry in TASKS.values() for variant in entry.variants}:
        assert f"`{name}`" in text, name


def test_options_are_listed_by_prefix():
    assert re.search(r"method\.ps_mt\.epsilon +2\.0 ", options_table("method.ps_mt", None))
    assert "optim.lr" not in options_table("method.ps_mt", None)
