"""Hook of mkdocs: files outside of docs/ become pages and files of the site, and links find them there."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "pipeline/bundle/schemas/glance-3.json": "schemas/glance-3.json",
}
"""Files of the repository, and what they become in the site."""
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and files that lie outside of docs/."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turns links of the repository into links of the site."""
    source = page.file.src_uri
    names = {to: name for name, to in PAGES.items()}
    return relinked(markdown, names.get(source, f"docs/{source}"), source)


def relinked(markdown: str, file: str, page: str) -> str:
    """The text of `file`, a path in the repository, with links that hold on `page`, a path in the site."""

    def replace(match: re.Match[str]) -> str:
        before, target, anchor, after = match.groups(default="")
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(file), target))
        there = PAGES.get(there, there.removeprefix("docs/"))
        return before + posixpath.relpath(there, posixpath.dirname(page) or ".") + anchor + after

    return LINK.sub(replace, markdown)
