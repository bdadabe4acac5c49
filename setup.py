"""The description of the package: README.md, whose links into the repository nobody could follow elsewhere, without them."""

import re
from pathlib import Path

from setuptools import setup

_IMAGE = re.compile(r"!\[[^\]]*\]\((?!https?://)[^)]*\)\n*")
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?://|#)([^)]*)\)")


def outside_the_repository(text: str) -> str:
    """Markdown without pictures of the repository; links into it as text that names the file."""

    def named(link: re.Match[str]) -> str:
        words, path = link.groups()
        return f"`{path}`" if path.startswith(words.strip("`").rstrip("/")) else f"{words} (`{path}`)"

    return _LINK.sub(named, _IMAGE.sub("", text))


if __name__ == "__main__":
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(long_description=outside_the_repository(readme), long_description_content_type="text/markdown")
