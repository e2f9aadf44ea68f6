"""The documentation: its links hold, the README is short, its lines run, and the site is built from the same files."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def relative_links(page: Path) -> list[str]:
    """Where a page's links go, outside of blocks of code and without anchors."""
    targets = LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    return [target.partition("#")[0] for target in targets if "://" not in target and not target.startswith("#")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_that_exist(page):
    missing = [target for target in relative_links(page) if not (page.parent / target).exists()]
    assert not missing


def test_links_are_found():
    """As many as a reader counts, so that the test above looks at something."""
    assert {"docs/strip.png", "docs/results.md", "CONTRIBUTING.md"} <= set(relative_links(README))


def test_the_readme_is_short_and_says_how_to_start():
    text = README.read_text(encoding="utf-8")
    assert len(text.encode()) <= 9000
    assert "make run" in text and "make test" in text


def test_every_page_is_in_the_map_of_the_site():
    entries = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert {page.relative_to(ROOT / "docs").as_posix() for page in PAGES[3:]} <= set(entries)


def test_citation_and_templates_are_yaml_with_what_their_readers_need():
    read = YAML(typ="safe", pure=True).load
    citation = read(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors", "version"} <= citation.keys()
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2512.02899"
    for name in ("bug", "model"):
        form = read(ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml")
        assert form["name"] and form["description"] and form["body"]
    job = read(ROOT / ".github" / "workflows" / "check.yml")["jobs"]["check"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"] and job["steps"][-1] == {"run": "make check"}


@pytest.fixture(scope="module")
def hook():
    """.ci/site_pages.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / ".ci" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("file", "page", "link", "expected"),
    [
        ("README.md", "index.md", "docs/models/flux.md#memory", "models/flux.md#memory"),
        ("README.md", "index.md", "CONTRIBUTING.md", "contributing.md"),
        ("CONTRIBUTING.md", "contributing.md", "docs/style.md", "style.md"),
        ("docs/models/flux.md", "models/flux.md", "../results.md", "../results.md"),
        ("docs/models/flux.md", "models/flux.md", "../../README.md#run-it", "../index.md#run-it"),
        ("docs/pairs.md", "pairs.md", "#import", "#import"),
        ("docs/contract.md", "contract.md", "../pipeline/bundle/schemas/glance-3.json", "schemas/glance-3.json"),
        ("docs/pairs.md", "pairs.md", "https://arxiv.org/abs/2512.02899", "https://arxiv.org/abs/2512.02899"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(hook, file, page, link, expected):
    assert hook.relinked(f"see [it]({link}).", file, page) == f"see [it]({expected})."


@pytest.mark.slow
def test_the_site_is_built_without_warnings_and_loads_nothing_from_outside(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = {file: file.read_text(encoding="utf-8") for file in (tmp_path / "site").rglob("*.html")}
    assert len(pages) > len(PAGES), "one page each, and the page for what is not found"
    for file, text in pages.items():
        assert not re.findall(r"<(?:script|img|iframe)[^>]+src=\"?(?:https?:)?//[^>]+>", text), file
        assert not re.findall(r"<link[^>]+rel=\"?stylesheet\"?[^>]+href=\"?(?:https?:)?//[^>]+>", text), file
    assert "strip.png" in pages[tmp_path / "site" / "index.html"]
    schema = tmp_path / "site" / "schemas" / "glance-3.json"
    assert schema.read_bytes() == (ROOT / "pipeline" / "bundle" / "schemas" / "glance-3.json").read_bytes()


def test_the_lines_of_the_readme_make_the_image_of_the_command(project, tmp_path):
    """Plain diffusers with the README's own lines, against `glance generate` with the same prompt and seed."""
    (lines,) = [code for language, code in FENCE.findall(README.read_text(encoding="utf-8")) if language == "python"]
    shutil.copytree(project.folder / "artifacts", tmp_path / "artifacts")
    shutil.copytree(project.folder / "artifacts" / "bundle", tmp_path / "my-pair")
    command = [sys.executable, "-c", f"{lines}\nimage.save('theirs.png')\n"]
    done = subprocess.run(command, cwd=tmp_path, env=project.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "ours.png"
    project.succeed("glance", "generate", "a red star", "--seed", "7", "--out", str(out))
    theirs, ours = (np.asarray(Image.open(file)).astype(int) for file in (tmp_path / "theirs.png", out))
    assert ours.std() > 1 and np.abs(theirs - ours).max() <= 1
