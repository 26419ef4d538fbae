"""Notebooks become pages, with the outputs and figures that are stored in them. mkdocs calls `on_files`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, and its figures; the notebook itself can be downloaded from the page."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        uri = PurePosixPath(notebook.src_uri)
        markdown, resources = MarkdownExporter().from_filename(str(notebook.abs_src_path))
        for name, data in resources["outputs"].items():
            files.append(File.generated(config, f"{uri.parent}/{uri.stem}/{name}", content=data))
            markdown = markdown.replace(f"]({name})", f"]({uri.stem}/{name})")
        title, _, text = markdown.lstrip().partition("\n")
        page = f"{title}\n\n[Download this notebook]({uri.name}): it runs from any folder.\n{text}"
        files.append(File.generated(config, f"{uri.parent}/{Path(uri.name).stem}.md", content=page))
    return files
