"""Numba kernels that cut texts into terms and count them. A text is UTF-8 in lower case; offsets are int64.

A table of terms is open addressing over exact bytes: ``slots`` hold 0 or ``(upper half of the hash) << 32 | id + 1``, the
bytes of term ``id`` are ``arena[offsets[id]:offsets[id + 1]]``, the first of them as one number are ``heads[id]``.
"""

import numpy as np

from sparse_xmc.kernels.characters import SCRIPT, SPACE, WORD
from sparse_xmc.kernels.compiled import kernel

SCRIPT_GRAM = 3  # longest run of characters of such a script that is a term
ADD, FIND, HASH = 0, 1, 2  # unknown terms are added, passed over, or have a column by their hash
TERMS, BYTES = 0, 1  # what ``fill`` counts of a table


@kernel
def _character(text, i):
    """Code point and length of the character at ``i`` (the text is valid UTF-8, half surrogates allowed)."""
    # text [bytes]
    first = np.int64(text[i])
    if first < 0x80:
        return first, 1
    if first < 0xE0:
        return ((first & 0x1F) << 6) | (text[i + 1] & 0x3F), 2
    if first < 0xF0:
        return ((first & 0x0F) << 12) | ((text[i + 1] & 0x3F) << 6) | (text[i + 2] & 0x3F), 3
    return (
        ((first & 0x07) << 18) | ((text[i + 1] & 0x3F) << 12) | ((text[i + 2] & 0x3F) << 6) | (text[i + 3] & 0x3F),
        4,
    )


@kernel
def _head(text, start, end):
    """The first seven bytes of a term and, in the uppermost byte, its length or 8: a short term as one number."""
    # text [bytes]
    head = np.uint64(min(end - start, 8)) << np.uint64(56)
    for i in range(min(end - start, 7)):
        head |= np.uint64(text[start + i]) << np.uint64(8 * i)
    return head


@kernel
def _mixed(h):
    h = (h ^ (h >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    h = (h ^ (h >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return h ^ (h >> np.uint64(32))


@kernel
def _hash(text, start, end, head):
    # text [bytes]
    h = _mixed(head)
    for i in range(start + 7, end, 8):
        rest = np.uint64(0)
        for j in range(i, min(i + 8, end)):
            rest = (rest << np.uint64(8)) | np.uint64(text[j])
        h = _mixed((h * np.uint64(0x9E3779B97F4A7C15)) ^ rest)
    return h


@kernel
def _rotate(x, by):
    return ((x << np.uint32(by)) | (x >> np.uint32(32 - by))) & np.uint32(0xFFFFFFFF)


@kernel
def _murmur3(text, start, end):
    """MurmurHash3 (x86, 32 bits, seed 0) by Austin Appleby, as a signed integer."""
    # text [bytes]
    c1, c2 = np.uint32(0xCC9E2D51), np.uint32(0x1B873593)
    h = np.uint32(0)
    length = end - start
    whole = start + length // 4 * 4
    for i in range(start, whole, 4):
        k = np.uint32(text[i]) | (np.uint32(text[i + 1]) << np.uint32(8))
        k |= (np.uint32(text[i + 2]) << np.uint32(16)) | (np.uint32(text[i + 3]) << np.uint32(24))
        k = np.uint32(_rotate(np.uint32(k * c1), 15) * c2)
        h = np.uint32(_rotate(np.uint32(h ^ k), 13) * np.uint32(5) + np.uint32(0xE6546B64))
    if whole < end:
        k = np.uint32(0)
        for i in range(end - 1, whole - 1, -1):
            k = np.uint32((k << np.uint32(8)) | np.uint32(text[i]))
        h = np.uint32(h ^ np.uint32(_rotate(np.uint32(k * c1), 15) * c2))
    h = np.uint32(h ^ np.uint32(length))
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.int64(np.int32(h ^ (h >> np.uint32(16))))


@kernel
def _same(text, start, end, offsets, arena, term):
    """Whether a term is ``text[start:end]``, of at least 8 bytes, where the heads are equal."""
    first = offsets[term]
    if offsets[term + 1] - first != end - start:
        return False
    same = True
    for i in range(7, end - start):
        same &= arena[first + i] == text[start + i]
    return same


@kernel
def _lookup(text, start, end, mode, slots, heads, offsets, arena, fill):
    """Id of the term ``text[start:end]``; -1 where it is unknown and ``mode`` does not add it."""
    head = _head(text, start, end)
    h = _hash(text, start, end, head)
    tag = np.int64(h >> np.uint64(33)) << 32
    mask = np.uint64(len(slots) - 1)
    place = h & mask
    while slots[place] != 0:
        slot = slots[place]
        if (slot >> 32) << 32 == tag:
            found = (slot & 0xFFFFFFFF) - 1
            if heads[found] == head and (end - start < 8 or _same(text, start, end, offsets, arena, found)):
                return found
        place = (place + np.uint64(1)) & mask
    if mode != ADD:
        return np.int64(-1)
    found, first = fill[TERMS], fill[BYTES]
    slots[place] = tag | (found + 1)
    heads[found] = head
    for i in range(end - start):
        arena[first + i] = text[start + i]
    offsets[found + 1] = first + end - start
    fill[TERMS] = found + 1
    fill[BYTES] = first + end - start
    return found


@kernel
def _cut_words(text, end, classes, max_word, begins, ends):
    """Writes where the words of ``text[:end]``, and the characters of scripts without spaces, begin and end.

    Runs of several words are written behind the text.

    Returns:
        the number of terms.
    """
    at, out, free = 0, 0, end
    earlier, last = np.int64(-1), np.int64(-1)  # starts of the characters before in a run of a script
    recent = np.zeros(max_word, np.int64)  # terms that are the last words
    words = 0
    while at < end:
        code, length = _character(text, at)
        kind = classes[code]
        if kind & SCRIPT:
            for begin in (at, last, earlier):
                if begin >= 0:
                    begins[out], ends[out] = begin, at + length
                    out += 1
            earlier, last, at = last, at, at + length
            continue
        earlier, last = np.int64(-1), np.int64(-1)
        if not kind & WORD:
            at += length
            continue
        begin, characters = at, 0
        while kind == WORD:
            at += length
            characters += 1
            if at >= end:
                break
            code, length = _character(text, at)
            kind = classes[code]
        if characters < 2:
            continue
        begins[out], ends[out] = begin, at
        out += 1
        if max_word == 1:
            continue
        recent[words % max_word] = out - 1
        words += 1
        for n in range(2, min(max_word, words) + 1):
            begin = free
            for w in range(words - n, words):
                term = recent[w % max_word]
                for j in range(begins[term], ends[term]):
                    text[free] = text[j]
                    free += 1
                text[free] = 32
                free += 1
            begins[out], ends[out] = begin, free - 1
            out += 1
    return out


@kernel
def _cut_characters(text, end, classes, lo, hi, out, begins, ends):
    """Writes the runs of characters of ``text[:end]`` behind the text, and from the ``out``-th on where they stand."""
    at, free = 0, len(text) - 1
    while at < end:
        code, length = _character(text, at)
        if classes[code] & SPACE:
            at += length
            continue
        begin, characters = at, 2
        while not classes[code] & SPACE:
            at += length
            characters += 1
            if at >= end:
                break
            code, length = _character(text, at)
        # from behind, as the words' runs stand in front; spaces mark the edges of the word
        word = free - (at - begin) - 2
        text[word], text[word + at - begin + 1] = 32, 32
        for j in range(begin, at):
            text[word + 1 + j - begin] = text[j]
        stop, free = free, word
        for n in range(lo, hi + 1):
            head, tail = word, word
            for _ in range(min(n, characters)):
                tail += _character(text, tail)[1]
            while True:
                free -= tail - head + 1
                text[free] = 126
                for j in range(tail - head):
                    text[free + 1 + j] = text[head + j]
                begins[out], ends[out] = free, free + 1 + tail - head
                out += 1
                if tail >= stop:
                    break
                head += _character(text, head)[1]
                tail += _character(text, tail)[1]
            if n >= characters:
                break
    return out


@kernel
def count_terms(
    text,
    starts,
    first,
    classes,
    limits,
    mode,
    slots,
    heads,
    offsets,
    arena,
    fill,
    seen,
    scratch,
    begins,
    ends,
    rows,
    ids,
    counts,
):
    """Counts the terms of texts ``first``, ``first + 1``, ... until there is no room left for those of the next text.

    Args:
        text, starts: UTF-8 bytes; text ``i`` is ``text[starts[i]:starts[i + 1]]``.
        classes: class of each code point ``[0x110000]``.
        limits: longest run of words, shortest and longest run of characters, number of columns for ``HASH``, then
            most terms of a text by its bytes and the most bytes of these.
        seen: for each term where it stands in the output of this row, counted over all calls; the last entry is the
            output of earlier calls.
        scratch, begins, ends: room for the bytes of the terms of a text, and for where these stand in there.
        rows, ids, counts: output in CSR form; ``rows[first]`` is given.

    Returns:
        the number of the next text.
    """
    max_word, lo, hi, columns = limits[0], limits[1], limits[2], limits[3]
    out = rows[first]
    for i in range(first, len(starts) - 1):
        size = starts[i + 1] - starts[i]
        most = limits[4] * (size + 2)
        if out + most > len(ids):
            return i
        if mode == ADD and (
            fill[TERMS] + most >= len(offsets)
            or 2 * (fill[TERMS] + most) > len(slots)
            or fill[BYTES] + limits[5] * (size + 2) > len(arena)
        ):
            return i
        for j in range(size):
            scratch[j] = text[starts[i] + j]
        terms = _cut_words(scratch, size, classes, max_word, begins, ends) if max_word > 0 else 0
        if hi > 0:
            terms = _cut_characters(scratch, size, classes, lo, hi, terms, begins, ends)
        row = out + seen[-1]
        for j in range(terms):
            if mode == HASH:
                term = abs(_murmur3(scratch, begins[j], ends[j])) % columns
            else:
                term = _lookup(scratch, begins[j], ends[j], mode, slots, heads, offsets, arena, fill)
                if term < 0:
                    continue
            place = seen[term]
            if place >= row:
                counts[place - seen[-1]] += 1
            else:
                seen[term] = out + seen[-1]
                ids[out] = term
                counts[out] = 1
                out += 1
        rows[i + 1] = out
    return len(starts) - 1


@kernel
def add_terms(text, starts, slots, heads, offsets, arena, fill, ids):
    """Adds the terms ``text[starts[i]:starts[i + 1]]`` to a table with room for them; ``ids [N]`` are theirs."""
    for i in range(len(starts) - 1):
        ids[i] = _lookup(text, starts[i], starts[i + 1], ADD, slots, heads, offsets, arena, fill)


@kernel
def fill_slots(slots, heads, offsets, arena, num_terms):
    """Enters the first ``num_terms`` terms of a table into new slots."""
    # slots [a power of 2], heads [terms], offsets [terms + 1], arena [bytes]
    mask = np.uint64(len(slots) - 1)
    for i in range(num_terms):
        h = _hash(arena, offsets[i], offsets[i + 1], heads[i])
        place = h & mask
        while slots[place] != 0:
            place = (place + np.uint64(1)) & mask
        slots[place] = (np.int64(h >> np.uint64(33)) << 32) | (i + 1)


@kernel
def add_frequencies(ids, counts, columns, documents, occurrences):
    """Adds the rows of a chunk to each column's number of documents and of occurrences."""
    # ids, counts [entries], columns [ids], documents, occurrences [D]
    for i in range(len(ids)):
        column = columns[ids[i]]
        documents[column] += 1
        occurrences[column] += counts[i]


@kernel
def weigh(rows, ids, counts, columns, logs, idf, out_rows, out_columns, out_values):
    """tf-idf of the rows of a chunk: ``(1 + ln count) * idf``, of length 1, in order of columns; returns the end.

    Args:
        columns: column of each id, -1: none.
        logs: ``ln`` of small counts.
    """
    # rows [n + 1], ids, counts [entries], columns [ids], logs [counts], idf [D]
    # out_rows [n + 1], out_columns, out_values [nnz]
    out = out_rows[0]
    keys = np.empty(16, np.int64)
    for i in range(len(rows) - 1):
        size = rows[i + 1] - rows[i]
        if size > len(keys):
            keys = np.empty(2 * size, np.int64)
        kept = 0
        for j in range(rows[i], rows[i + 1]):
            column = columns[ids[j]]
            if column >= 0:
                keys[kept] = (np.int64(column) << 32) | counts[j]
                kept += 1
        row = keys[:kept]
        row.sort()
        squares = 0.0
        for j in range(kept):
            column, count = row[j] >> 32, row[j] & 0xFFFFFFFF
            tf = logs[count] if count < len(logs) else np.float32(np.log(np.float32(count)))
            value = np.float32(np.float32(tf + np.float32(1)) * idf[column])
            out_columns[out + j] = column
            out_values[out + j] = value
            squares += np.float64(np.float32(value * value))
        norm = np.sqrt(squares)
        for j in range(out, out + kept):
            if norm > 0:
                out_values[j] = np.float32(out_values[j] / norm)
        out += kept
        out_rows[i + 1] = out
    return out
