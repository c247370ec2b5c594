"""The pages behind the codes of diagnoses."""

from __future__ import annotations

import functools
import textwrap
from importlib.resources import files

from bisect_tool.errors import BisectError


@functools.cache
def codes() -> dict[str, str]:
    """Every code with its title, in order."""
    found: dict[str, str] = {}
    for page in sorted(files(__package__).joinpath("pages").iterdir(), key=lambda each: each.name):
        if page.name.endswith(".md"):
            code, _, title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").partition(": ")
            found[code] = title
    return found


def page(code: str) -> str:
    """What a code means, how it shows, an example and the remedy, as Markdown.

    Raises:
        BisectError: there is no such code; those that there are are listed.
    """
    known = codes()
    wanted = code.strip().upper()
    if wanted not in known:
        raise BisectError(f"no page for {code!r}", hint=f"codes are: {', '.join(known)}")
    return files(__package__).joinpath("pages", f"{wanted}.md").read_text(encoding="utf-8")


def wrapped(text: str, width: int) -> str:
    """A page as plain text: paragraphs folded to a width, the title without its mark, code and lists as they are."""
    parts = []
    for part in text.strip().split("\n\n"):
        if part.startswith(("```", "- ", "    ", "|")):
            parts.append(part)
        else:
            body = part.removeprefix("# ").replace("\n", " ")
            parts.append(textwrap.fill(body, width, break_long_words=False, break_on_hyphens=False))
    return "\n\n".join(parts)


CATALOGUE_HEAD = """# Causes

Written by this command; do not edit by hand. Each page is what `bisect-tool explain CODE` prints.

```console
$ scripts/docs-causes
```
"""


def catalogue() -> str:
    """All pages in one, with a table of contents, as Markdown."""
    known = codes()
    table = ["| code | cause |", "|---|---|", *(f"| [{code}](#{_anchor(code)}) | {known[code]} |" for code in known)]
    pages = [page(code).strip().replace("# ", "## ", 1) for code in known]
    return "\n".join([CATALOGUE_HEAD, *table, ""]) + "\n" + "\n\n".join(pages) + "\n"


def _anchor(code: str) -> str:
    """As code hosts name the heading of a page: small letters, hyphens for spaces, no other signs."""
    kept = (each for each in f"{code}: {codes()[code]}".lower() if each.isalnum() or each in " -_")
    return "".join(kept).replace(" ", "-")
