"""Makes the documentation site of what is written for the repository and for readers of the code.

As a hook of mkdocs: links of a page to files outside ``docs`` become plain text.
As an extension of griffe, which reads the docstrings: tables and lists that are aligned by hand,
and roles such as :class:`x`, become Markdown.
"""

import re
from typing import Any

import griffe

OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)]+)\)")
ROLE = re.compile(r":[a-z]+:`~?([^`<]+)`")
ROW = re.compile(r"^ *\S+(?: \S+)*   *\S")  # words, two blanks or more, words
KEY = re.compile(r"^\w[\w, *.]*: |^\w[\w, ]*\.$")  # name, other: what it is


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page whose links all lead to pages."""
    return OUTSIDE.sub(r"\1", markdown)


def as_markdown(text: str) -> str:
    """A docstring as Markdown: what is aligned by hand keeps its columns, keys become a list."""
    text = ROLE.sub(r"`\1`", text).replace("``", "`")
    return "\n\n".join(_paragraph(part) for part in re.split(r"\n\s*\n", text))


def _paragraph(text: str) -> str:
    lines = text.splitlines()
    own = [line for line in lines if not line.startswith(" ")]
    if lines[0].startswith("    ") or lines[0].startswith(">>>"):
        code = [line.removeprefix("    ") for line in lines]
        return "\n".join(["```pycon" if ">>>" in text else "```text", *code, "```"])
    if any(ROW.match(line) for line in lines):
        return "\n".join(["```text", *lines, "```"])
    if len(own) > 1 and all(KEY.match(line) for line in own):
        return "\n".join(f"- {line}" if line in own else line for line in lines)
    return text


class Docstrings(griffe.Extension):
    """Every docstring goes through :func:`as_markdown`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
