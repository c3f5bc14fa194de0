"""How Sphinx builds these pages."""

import tomllib
from pathlib import Path

metadata = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))

project = "asyncsync"
author = "The asyncsync developers"
project_copyright = author
release = version = metadata["project"]["version"]

extensions = ["myst_parser", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"asyncsync {release}"

myst_fence_as_directive = {"mermaid"}
myst_heading_anchors = 4

suppress_warnings = [
    "misc.highlighting_failure",  # an excerpt with "..." in it is not valid JSON and need not be
]
