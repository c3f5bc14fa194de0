"""How Sphinx builds these pages."""

import re
from pathlib import Path

_version = Path(__file__).parent.parent / "asyncsync" / "version.py"

project = "asyncsync"
author = "The asyncsync developers"
project_copyright = author
release = version = re.findall(r'__version__ = "(.+)"', _version.read_text("utf-8"))[0]

extensions = ["myst_parser", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"asyncsync {release}"

myst_fence_as_directive = {"mermaid"}
myst_heading_anchors = 4

suppress_warnings = [
    "misc.highlighting_failure",  # an excerpt with "..." in it is not valid JSON and need not be
]
