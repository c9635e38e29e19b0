"""The site: `sphinx-build -W --keep-going docs docs/_build`, after `pip install -e ".[docs]"`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from paddle_td_callback import __version__

project = "paddle_td_callback"
author = "paddle_td_callback contributors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "paddle_td_callback"
myst_heading_anchors = 3
autodoc_mock_imports = ["paddle"]  # the site can be built without it
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
default_role = "code"
napoleon_use_ivar = True
