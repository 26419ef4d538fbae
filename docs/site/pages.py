"""Pages of the site that are not files in docs/: those at the root of the repository, and the API reference.

mkdocs calls the functions whose names begin with `on_`.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "lightning_estimators"

AT_THE_ROOT = {"RESULTS.md": "results.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Files at the root of the repository, and the pages that they become."""

REFERENCE = {
    "estimators": ("Estimators", ["estimators"]),
    "baselines": ("Baselines", ["baselines"]),
    "schedules": ("Schedules", ["schedules", "schedulers"]),
    "objectives": ("Objectives", ["objectives"]),
    "rules": ("Rules of stochastic backpropagation", ["rules"]),
    "comparison": ("Comparison", ["comparison", "moments", "moment_errors", "module_gradients"]),
    "modules": ("Modules and optimizers", ["modules", "chained_optimizer"]),
    "callbacks": ("Callbacks", ["callbacks"]),
    "datamodules": ("Data", ["datamodules"]),
    "networks": ("Networks", ["networks"]),
    "policies": ("Policies and environments", ["policies", "environments", "rollout"]),
    "testing": ("Testing", ["testing"]),
    "distributions": ("Distributions and noise", ["distributions", "noise", "counter_noise"]),
    "command_line": ("Command line and checkpoints", ["cli", "checkpoints", "checkpoint_io", "configurable"]),
    "parts": (
        "Parts for modules and estimators of your own",
        ["arguments", "isolation", "logged_steps", "model_parts", "norm_layers", "running_statistics"],
    ),
}
"""Pages of the API reference: title, and the modules whose `__all__` is on them."""

NO_REFERENCE = {"commandline", "private_api"}
"""Modules that are not for users: what the command line is made of, and what is asked of other libraries' insides."""

LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and every file of the repository that some page links to."""
    for name, uri in AT_THE_ROOT.items():
        files.append(File.generated(config, uri, content=relink((ROOT / name).read_text(), ROOT, uri)))
    for name, (title, modules) in REFERENCE.items():
        files.append(File.generated(config, f"api/{name}.md", content=reference(title, modules)))
    check_complete()
    linked = [file for name in AT_THE_ROOT for file in linked_files((ROOT / name).read_text(), ROOT)]
    for page in DOCS.rglob("*.md"):
        linked += linked_files(page.read_text(), page.parent)
    for path in sorted(set(linked)):
        files.append(File.generated(config, site_uri(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that lead out of docs/ lead to the pages and files above."""
    source = page.file.abs_src_path or DOCS / page.file.src_uri  # of a notebook's page
    return relink(markdown, Path(source).parent, page.file.src_uri)


def site_uri(path: Path) -> str:
    """Return where a file of the repository is on the site."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    return AT_THE_ROOT.get(name, f"repository/{name}")


def linked_files(markdown: str, folder: Path) -> list[Path]:
    """Return the files outside docs/ that a page in `folder` links to, without those that are pages."""
    targets = [(folder / target).resolve() for _, target, _ in LINK.findall(markdown) if "://" not in target]
    return [path for path in targets if path.is_file() and site_uri(path).startswith("repository/")]


def relink(markdown: str, folder: Path, uri: str) -> str:
    """Rewrite the links of a page in `folder`, which becomes the page `uri` of the site."""

    def replace(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        path = (folder / target).resolve()
        if "://" in target or not (path.is_file() and path.is_relative_to(ROOT)):
            return match.group()
        return before + os.path.relpath(site_uri(path), os.path.dirname(uri) or ".") + after

    return LINK.sub(replace, markdown)


def exported(module: str) -> list[str]:
    """Return the names in `__all__` of a module of the package, without importing it."""
    path = PACKAGE / f"{module}.py"
    tree = ast.parse((path if path.is_file() else PACKAGE / module / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def summary(module: str) -> str:
    """Return the docstring of a module."""
    path = PACKAGE / f"{module}.py"
    tree = ast.parse((path if path.is_file() else PACKAGE / module / "__init__.py").read_text())
    return ast.get_docstring(tree) or ""


def reference(title: str, modules: list[str]) -> str:
    """Return a page of the API reference, with everything that the modules export."""
    lines = [f"# {title}", ""]
    for module in modules:
        path = f"lightning_estimators.{module}"
        lines += [f"**`{path}`**", "", summary(module), ""]
        for name in exported(module):
            lines += [f"::: {path}.{name}", ""]
    return "\n".join(lines)


def check_complete() -> None:
    """Refuse to build a reference that leaves out a module."""
    there = {path.stem for path in PACKAGE.glob("*") if path.suffix == ".py" or (path / "__init__.py").is_file()}
    public = {name for name in there if not name.startswith("_")} - NO_REFERENCE
    listed = {module for _, modules in REFERENCE.values() for module in modules}
    if public != listed:
        raise PluginError(f"docs/site/pages.py and the package differ in the modules {sorted(public ^ listed)}")
