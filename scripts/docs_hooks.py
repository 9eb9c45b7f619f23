"""What `mkdocs build` does to our pages beyond its plugins, so that they read the same on a code host and as a site.

- Formulas, written as code hosts write them (a fenced block `math`, or $`…`$ in a line), become MathML, which
  browsers draw themselves.
- Links that leave `docs/` name files of the repository, which are no part of the site: their text stays.
"""

import re
from typing import Any

from latex2mathml.converter import convert

_BLOCK = re.compile(r"^```math\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"\$`([^`]+)`\$")
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **_others: Any) -> str:
    """Return a page's Markdown as the site shows it."""
    depth = page.file.src_uri.count("/")
    markdown = _OUTSIDE.sub(lambda found: _link(found, depth), markdown)
    markdown = _BLOCK.sub(lambda found: f"<div>{convert(found[1], display='block')}</div>", markdown)
    # In a span: Markdown takes a line that begins with any other tag for a block of its own.
    return _INLINE.sub(lambda found: f"<span>{convert(found[1])}</span>", markdown)


def _link(found: re.Match[str], depth: int) -> str:
    """Keep a link within `docs/`; of another only the text, and the path where the text does not say it."""
    text, target = found[1], found[2]
    if target.count("../") <= depth:
        return found[0]
    path = target.replace("../", "")
    return text if path in text else f"{text} (`{path}`)"
