"""Artefacts that were made to harm or to confuse: refused by one error that names the file, nothing outside touched."""

import json
import os
import struct
import tracemalloc
import zlib

import pytest
import torch

from sparse_xmc.storage import tensor_file
from sparse_xmc.storage.checkpoint import CheckpointStore, manifest_document, read_folder, write_folder
from sparse_xmc.storage.errors import ArtefactError
from sparse_xmc.storage.regular import data_name, parse_json, plain_name, read_bytes
from sparse_xmc.storage.tensor_file import all_finite, load_tensors

TENSORS = {"model": {"w": torch.arange(6.0).view(2, 3), "i": torch.tensor([[3, 65535]], dtype=torch.uint16)}}
OUTSIDE = [
    "../x.json",
    "/etc/hostname",
    "a/b.json",
    "..",
    ".",
    "",
    "./x.json",
    "a\\b.json",
    "c:x.json",
    "x\0.json",
    "é.json",
]
OUTSIDE += [".hidden.json", "x.json.", "x" * 300 + ".json", " x.json", "x\n.json"]


def signed(folder, **changes):
    """Replaces files by others and makes the checksums right again."""
    for name, content in changes.items():
        stem, _, ending = name.rpartition("_")
        (folder / f"{stem}.{ending}").write_bytes(content)
    files = {
        p.name: [p.stat().st_size, zlib.crc32(p.read_bytes())] for p in folder.iterdir() if p.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(manifest_document(files, None)))


def safetensors(header, data=b""):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def folder(tmp_path):
    write_folder(str(tmp_path / "c"), TENSORS, {"spec": {"a": 1}})
    return tmp_path / "c"


@pytest.mark.parametrize("name", [*OUTSIDE, None, 3, ["x"]])
def test_only_plain_names_are_names(name):
    with pytest.raises(ArtefactError, match="no plain file name"):
        plain_name(name, "here")


@pytest.mark.parametrize("name", ["modeling.py", "a.PTH", "pytorch_model.bin", "x.pickle", "lib.so"])
def test_code_and_pickles_are_no_data(name):
    with pytest.raises(ArtefactError, match="brings no code or pickles"):
        data_name(name, "here")


@pytest.mark.parametrize("form", [1, 2])
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_that_names_other_files_opens_none(folder, monkeypatch, form, name):
    files = json.loads((folder / "manifest.json").read_text())["files"] | {name: [1, 2]}
    manifest = files if form == 1 else manifest_document(files, None)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    opened = []
    monkeypatch.setattr(
        "sparse_xmc.storage.regular.os.open", lambda path, flags, f=os.open: opened.append(path) or f(path, flags)
    )
    with pytest.raises(ArtefactError):
        read_folder(str(folder))
    assert set(opened) <= {str(folder / "manifest.json")}


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "device"])
@pytest.mark.parametrize("name", ["spec.json", "model.safetensors", "manifest.json"])
def test_files_of_an_artefact_are_regular(folder, tmp_path, kind, name):
    target = folder / name
    content = target.read_bytes()
    target.unlink()
    if kind == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        target.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        target.mkdir()
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        target.symlink_to("/dev/zero")
    with pytest.raises(ArtefactError):
        read_folder(str(folder))


def test_a_linked_folder_is_followed(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert read_folder(str(tmp_path / "link"))[1] == {"spec": {"a": 1}}


HEADERS = {
    "no length": b"\0" * 5,
    "huge": struct.pack("<Q", 1 << 60) + b"{}",
    "cut off": struct.pack("<Q", 100) + b"{}",
    "no JSON": safetensors(b"{,}"),
    "deep": safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "list": safetensors([]),
    "no entry": safetensors({"w": 3}),
    "no dtype": safetensors({"w": {"shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "dtype": safetensors({"w": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "list as dtype": safetensors({"w": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "shape": safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
    "negative": safetensors({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}),
    "huge shape": safetensors({"w": {"dtype": "F32", "shape": [1 << 61], "data_offsets": [0, 1 << 63]}}),
    "empty but huge": safetensors(
        {"w": {"dtype": "F32", "shape": [1 << 61, 1 << 61, 0, 1 << 70], "data_offsets": [0, 0]}}
    ),
    "fractions": safetensors({"w": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, b"1234"),
    "bools": safetensors({"w": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"1234"),
    "dimensions": safetensors({"w": {"dtype": "F32", "shape": [1] * 80, "data_offsets": [0, 4]}}, b"1234"),
    "hole": safetensors({"w": {"dtype": "U8", "shape": [1], "data_offsets": [3, 4]}}, b"1234"),
    "overlap": safetensors(
        {n: {"dtype": "U8", "shape": [3], "data_offsets": [i, i + 3]} for i, n in enumerate("ab")}, b"1234"
    ),
    "short": safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"),
    "long": safetensors({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"1234"),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_broken_tensor_files_with_right_checksums(folder, content):
    signed(folder, model_safetensors=content)
    with pytest.raises(ArtefactError, match=r"model\.safetensors is (damaged|truncated)"):
        read_folder(str(folder))


def test_a_shape_of_any_size_without_numbers_allocates_nothing(tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_bytes(safetensors({"w": {"dtype": "F32", "shape": [1 << 61, 0], "data_offsets": [0, 0]}}))
    try:
        assert load_tensors(str(path))[0]["w"].numel() == 0
    except ArtefactError as error:
        assert "is damaged" in str(error)


@pytest.mark.parametrize(
    "deep", [b"[" * 200_000 + b"]" * 200_000, b"[" * 65 + b"]" * 65, b'{"a":' * 70 + b"1" + b"}" * 70]
)
def test_nesting_is_bounded(folder, deep):
    for name in ("spec", "manifest"):
        with pytest.raises(ArtefactError, match="nested more than 64 deep"):
            signed(folder, spec_json=deep) if name == "spec" else (folder / "manifest.json").write_bytes(deep)
            read_folder(str(folder))
    assert parse_json(b"[" * 64 + b"]" * 64, "x")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": 1, "b": 2, "a": 1}', "key 'a' stands twice"),
        (b'[{"c": {"a": 1, "a": 2}}]', "key 'a' stands twice"),
        (b'{"a": NaN}', "NaN is no number"),
        ('{"a": 1}'.encode("utf-16"), "codec can't decode"),
        (b"\xef\xbb\xbf{}", "BOM"),
    ],
)
def test_json_means_the_same_to_every_reader(folder, text, reason):
    signed(folder, spec_json=text)
    with pytest.raises(ArtefactError, match=f"spec.json is damaged: no JSON: .*{reason}"):
        read_folder(str(folder))


def test_links_are_told_as_such(folder, tmp_path):
    os.rename(folder / "spec.json", tmp_path / "real.json")
    (folder / "spec.json").symlink_to(tmp_path / "real.json")
    with pytest.raises(ArtefactError, match=r"spec\.json is a link or no regular file"):
        read_folder(str(folder))


def test_size_is_bounded(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(str(tmp_path / "x"), 5) == b"12345"
    with pytest.raises(ArtefactError, match="x is longer than the 4 bytes"):
        read_bytes(str(tmp_path / "x"), 4)


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -float("nan")])
def test_numbers_that_are_not_finite_are_found(dtype, value):
    numbers = torch.linspace(-200, 200, 1001).to(dtype)
    highest = torch.finfo(dtype).max
    numbers[0], numbers[1] = highest, -highest
    assert all_finite(numbers) and all_finite(numbers[:0]) and all_finite(torch.tensor([1 << 30]))
    bad = torch.tensor(value).to(dtype)
    if not bad.double().isfinite():  # infinity saturates in a format without it
        numbers[777] = bad
        assert not all_finite(numbers)


@pytest.mark.parametrize("mapped", [False, True])
def test_files_are_read_alike_into_memory_and_mapped(tmp_path, monkeypatch, mapped):
    monkeypatch.setattr(tensor_file, "_CHECKED_BYTES", 64)
    tensors = {
        "a": torch.arange(100.0),
        "b": torch.arange(100).to(torch.uint16),
        "c": torch.ones(0, 3),
        "d": torch.tensor(5),
    }
    assert tensor_file.save_tensors(str(tmp_path / "t"), tensors) is None
    found, crc = load_tensors(str(tmp_path / "t"), finite=lambda name: True, mapped=mapped)
    assert crc == zlib.crc32((tmp_path / "t").read_bytes()) and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    for at in (0, 63, 64, 99):
        spoilt = {**tensors, "a": tensors["a"].clone().index_fill_(0, torch.tensor(at), float("inf"))}
        assert tensor_file.save_tensors(str(tmp_path / "t"), spoilt) is None
        with pytest.raises(ArtefactError, match="a holds NaN or infinity"):
            load_tensors(str(tmp_path / "t"), finite=lambda name: name == "a", mapped=mapped)
        assert len(load_tensors(str(tmp_path / "t"), finite=lambda name: name == "b", mapped=mapped)[0]) == 4


def test_headers_that_tell_of_other_sizes_take_no_memory(tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_bytes(safetensors({"w": {"dtype": "F32", "shape": [1 << 50], "data_offsets": [0, 1 << 52]}}))
    with pytest.raises(ArtefactError, match="is truncated: .* bytes, its header tells of 4,503,599,627"):
        load_tensors(str(path))
    assert tensor_file.save_tensors(str(path), {"w": torch.ones(3)}) is None
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ArtefactError, match="is damaged: .* bytes, its header tells of"):
        load_tensors(str(path))


def test_weights_that_are_not_finite_are_neither_written_nor_read(folder):
    spoilt = {"model": {"w": torch.tensor([1.0, float("nan")])}}
    with pytest.raises(FloatingPointError, match="c is not written: w holds NaN or infinity"):
        write_folder(str(folder), spoilt, {})
    with pytest.raises(FloatingPointError, match="a number in it is NaN or infinite"):
        write_folder(str(folder), TENSORS, {"spec": {"a": float("inf")}})
    assert read_folder(str(folder))[1] == {"spec": {"a": 1}}
    write_folder(str(folder), spoilt, {}, finite=lambda stem, name: False)
    with pytest.raises(ArtefactError, match=r"model\.safetensors is damaged: w holds NaN or infinity"):
        read_folder(str(folder))


def test_parts_of_two_runs_are_not_mixed(tmp_path):
    store = CheckpointStore(tmp_path / "s")
    for step, store.run in ((1, "a" * 32), (2, None), (3, "b" * 32)):
        store.save(step, TENSORS, {"n": step})
    store.run = "a" * 32
    reports = []
    assert store.load_latest(reports.append)[0] == 2  # which does not tell, as those of older versions
    assert len(reports) == 1 and "is of another run" in reports[0]


def test_a_manifest_of_a_later_format_is_named(folder):
    (folder / "manifest.json").write_text('{"format": 3, "files": {"spec.json": [1, 2]}}')
    with pytest.raises(ArtefactError, match="has format 3, this version reads up to 2"):
        read_folder(str(folder))


def test_what_killed_writers_left_is_swept(tmp_path):
    store = CheckpointStore(tmp_path / "s")
    store.save(3, TENSORS, {})
    for name in ("step-0000000002.partial", "step-0000000003.old", "step-0000000001.old", "mine.partial", "mine"):
        (tmp_path / "s" / name).mkdir()
        (tmp_path / "s" / name / "model.safetensors").write_bytes(b"x")
    (tmp_path / "s" / "step-0000000004.partial").mkdir()
    (tmp_path / "s" / "step-0000000004.partial" / "notes.txt").write_text("no checkpoint has such a file")
    store.sweep()
    left = {"step-0000000003", "step-0000000001.old", "mine.partial", "mine", "step-0000000004.partial"}
    assert set(os.listdir(tmp_path / "s")) == left


def test_a_small_document_takes_no_more_room_than_it_has_bytes(tmp_path):
    (tmp_path / "small.json").write_bytes(b"{}" * 1000)
    tracemalloc.start()
    try:
        assert len(read_bytes(str(tmp_path / "small.json"), 1 << 32)) == 2000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(ArtefactError, match="longer than the 1,999 bytes"):
        read_bytes(str(tmp_path / "small.json"), 1999)
