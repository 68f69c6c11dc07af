"""Configure Sphinx for the site. The sources are those that stage.py has written."""

from importlib import metadata

import kdcore

for name in kdcore.__all__:
    getattr(kdcore, name)  # autodoc would import modules with TYPE_CHECKING set, in which pydantic fails

project = "kdcore"
copyright = "The kdcore authors"
release = metadata.version("kdcore")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
default_role = "code"  # docstrings mark code with single backticks
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False
toc_object_entries = False
suppress_warnings = ["ref.python"]  # a type in a signature, such as bytes, is also the name of an attribute
html_theme = "furo"
html_title = f"kdcore {release}"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["_static"]


def mark_code(app, what, name, obj, options, lines):
    """Make an indented block after a paragraph that ends with a colon a literal block."""
    for index in range(len(lines) - 2):
        depth = len(lines[index]) - len(lines[index].lstrip())
        follows = next((line for line in lines[index + 1 :] if line.strip()), "")
        if lines[index].endswith(":") and not lines[index + 1].strip() and follows.startswith(" " * (depth + 1)):
            lines[index] += ":"


def setup(app):
    """Connect the hook before that of napoleon."""
    app.connect("autodoc-process-docstring", mark_code, priority=100)
