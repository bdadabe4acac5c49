"""Mutations of bytes and of documents."""

import random
from typing import Any

TOKENS = (
    b"\n", b"\r\n", b"\r", b"\0", b'"', b"'", b"{", b"}", b"[", b"]", b":", b",", b";", b"|", b"\t", b" ", b"#", b"\\",
    b"\\ud800", b"\xef\xbb\xbf", b"\xff", b"\xc3", b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80", b"-1", b"0", b"00", b"1e999", b"nan",
    b"inf", b"1_0", b"2147483648", b"18446744073709551616", b"9" * 400, b"true", b"null", b"{}", b"[]", b"[[[[[[[[",
    b"\x1f\x8b", b"PK\x03\x04", b"PAR1", b"\x93NUMPY", b"0:1", b"1:", b":1", b"2 3", b"2 3 4", b"text", b"labels",
)  # fmt: skip
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    float("nan"),
    2**31,
    2**63,
    10**400,
    "",
    "x",
    "\ud800",
    "a;b|c,d",
    [],
    [[]],
    {},
    [None],
)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four small changes: bits, spans, lines, tokens, an early end."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = rng.choice((_bit, _byte, _token, _token, _cut, _repeat, _swap_lines, _drop_line, _end))(content, rng)
    return content


def _place(content: bytes, rng: random.Random) -> int:
    return rng.randint(0, len(content))


def _bit(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return content
    i = rng.randrange(len(content))
    return content[:i] + bytes([content[i] ^ 1 << rng.randrange(8)]) + content[i + 1 :]


def _byte(content: bytes, rng: random.Random) -> bytes:
    i = _place(content, rng)
    return content[:i] + bytes([rng.randrange(256)]) + content[i + 1 :]


def _token(content: bytes, rng: random.Random) -> bytes:
    i = _place(content, rng)
    return content[:i] + rng.choice(TOKENS) + content[i + rng.choice((0, 0, 1, 5)) :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    i = _place(content, rng)
    return content[:i] + content[i + rng.randint(1, 20) :]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    i = _place(content, rng)
    j = min(len(content), i + rng.randint(1, 40))
    return content[:j] + content[i:j] * rng.randint(1, 4) + content[j:]


def _swap_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    rng.shuffle(lines)
    return b"\n".join(lines)


def _drop_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    del lines[rng.randrange(len(lines))]
    return b"\n".join(lines)


def _end(content: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)]


def changed(document: Any, rng: random.Random) -> Any:
    """A copy of a JSON document in which one value is another one, is missing, or has another name."""
    if isinstance(document, dict) and document and rng.random() < 0.8:
        document = dict(document)
        name = rng.choice(list(document))
        action = rng.randrange(4)
        if action == 0:
            del document[name]
        elif action == 1:
            document[rng.choice(("text", "title", "labels", "x"))] = document.pop(name)
        else:
            document[name] = changed(document[name], rng)
        return document
    if isinstance(document, list) and document and rng.random() < 0.8:
        document = list(document)
        i = rng.randrange(len(document))
        document[i] = changed(document[i], rng)
        return document
    return rng.choice(VALUES)
