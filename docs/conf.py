"""
The site: Sphinx, MyST, furo.

    python -m sphinx -W -n -b html docs docs/_build/html
"""

import re
from importlib.metadata import version as version_of
from typing import Any

from sphinx.util.nodes import make_refnode

project = "sb3_diffusion"
author = "the sb3_diffusion authors"
copyright = author
release = version = version_of("sb3_diffusion")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"sb3_diffusion {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
# Headings can be linked to, as in [text](page.md#heading).
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "both"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_default_options = {"show-inheritance": True}

# Our methods that override one of Gymnasium's or SB3's without a docstring of their own are not repeated here.
autodoc_inherit_docstrings = False

nitpicky = True
# The build needs no network, so names of other libraries are not looked up in their inventories. Some come without their
# module, from annotations that only a type checker reads.
LIBRARIES = "stable_baselines3 sb3_contrib rl_zoo3 torch th nn gymnasium gymnasium_robotics gym numpy np npt matplotlib minari"
STANDARD = "collections io os pathlib typing types"
BARE = "BaseAlgorithm BaseCallback VecEnv Figure MinariDataset"
nitpick_ignore_regex = [
    (r"py:.*", rf"({'|'.join((LIBRARIES + ' ' + STANDARD).split())})(\..*)?"),
    (r"py:class", rf"({'|'.join(BARE.split())})"),
    # Type variables and aliases
    (r"py:.*", r"(.*\.)?(Self[A-Z]\w+|Result|TableRows|RewardFunction|Picture|Observation|Dims)"),
]


def prepare(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings name pages by their file, as in ``docs/method.md``: links, here. And shapes are no emphasis: (n, *shape)."""
    for number, line in enumerate(lines):
        line = re.sub(r"docs/([\w-]+)\.md", r":doc:`docs/\1.md </\1>`", line)
        lines[number] = re.sub(r"(\(|, )\*(\w)", r"\1\\*\2", line)


def resolve(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """
    A name that is documented where it is exported is also found where it is defined, and by its last part, if that is unique:
    annotations and docstrings use both.
    """
    if node.get("refdomain") != "py":
        return None
    domain, target = env.domains["py"], node["reftarget"]
    named = {name: entry for name, entry in domain.objects.items() if not entry.aliased}
    # Of its own class, as written, or without the module that it is defined in
    for ending in (f"{node.get('py:class')}.{target}", target, target.rpartition(".")[2]):
        found = {name: entry for name, entry in named.items() if f".{name}".endswith(f".{ending}")}
        if found:
            break
    if len(found) != 1:
        return None
    ((name, entry),) = found.items()
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", prepare)
    app.connect("missing-reference", resolve)
