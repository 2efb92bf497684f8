"""mkdocs hooks: links to files of the repository lead there, Sphinx's roles are plain code."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite what leaves the docs folder; a file that does not exist ends a strict build."""
    root = Path(config["docs_dir"]).parent

    def absolute(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = normpath(str(PurePosixPath("docs", page.file.src_uri).parent / target))
        if path.startswith("docs/"):
            return match[0]
        if not (root / path).exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {target}, which does not exist")
        kind = "tree" if (root / path).is_dir() else "blob"
        return f"[{text}]({config['repo_url'].rstrip('/')}/{kind}/main/{path}{anchor})"

    return LINK.sub(absolute, markdown)


ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):<code>~?([^<]*)</code>")


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Show the roles of docstrings, as in :class:`mim_plugins.Masking`, as code."""
    return ROLE.sub(r"<code>\1</code>", html)
