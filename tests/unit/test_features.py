"""A reader's clips: vectors and sentences in the book's format, or refused with the file, the line and the mend."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bridges.tasks.features import Clips, read_clips, write_clips

CLIPS = Clips(("a", "b", "c"), torch.arange(12.0).reshape(3, 4) / 7, ("eins", "zwei, drei", '"vier"'))


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Three clips of width 4 in `features`, named by `manifest.tsv` beside it."""
    write_clips(tmp_path / "features", tmp_path / "manifest.tsv", CLIPS)
    return tmp_path / "features"


@pytest.fixture
def manifest(features: Path) -> Path:
    return features.parent / "manifest.tsv"


def same(a: Clips, b: Clips) -> bool:
    return a.ids == b.ids and a.sentences == b.sentences and torch.equal(a.vectors, b.vectors)


def test_clips_come_back_as_written(features: Path, manifest: Path) -> None:
    read = read_clips(features, manifest)
    assert len(read) == 3
    assert read.vectors.dtype == torch.float32
    assert same(read, CLIPS)
    assert same(read_clips(features, manifest, width=4), CLIPS)
    assert manifest.read_bytes() == b'id\tsentence\na\teins\nb\tzwei, drei\nc\t"vier"\n'


def test_a_clip_that_looks_like_a_header_comes_back(tmp_path: Path) -> None:
    clips = Clips(("id", "x"), torch.ones(2, 3), ("text", "sentence"))
    write_clips(tmp_path / "deep" / "features", tmp_path / "other" / "train.tsv", clips)
    assert same(read_clips(tmp_path / "deep" / "features", tmp_path / "other" / "train.tsv"), clips)


@pytest.mark.parametrize(
    "text",
    [
        b"a\teins\nc\tdrei",
        b"id\ttext\na\teins\nc\tdrei\n",
        b"\n \t\nid\tsentence\n\na\teins\n\nc\tdrei\n\n",
        b"\xef\xbb\xbfid\tsentence\r\na\teins\r\nc\tdrei\r\n",
        b"\xef\xbb\xbfa\teins\nc\tdrei\n",
        b" a\t eins \nc \tdrei\n",
    ],
    ids=["no header", "text", "blank lines", "BOM and CRLF", "BOM, no header", "blanks"],
)
def test_a_manifest_from_elsewhere_is_read_as_it_was_meant(features: Path, manifest: Path, text: bytes) -> None:
    manifest.write_bytes(text)
    assert same(read_clips(features, manifest), Clips(("a", "c"), CLIPS.vectors[[0, 2]], ("eins", "drei")))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", "<i4", "u1", "longdouble"])
@pytest.mark.parametrize("shape", [(4,), (1, 4)])
def test_every_real_type_becomes_float32(features: Path, manifest: Path, dtype: str, shape: tuple[int, ...]) -> None:
    np.save(features / "a.npy", np.array([3, 1, 4, 1]).astype(dtype).reshape(shape))
    assert read_clips(features, manifest).vectors[0].tolist() == [3, 1, 4, 1]


LINES = {
    "b": "line 2: no tab and sentence after 'b': write its sentence",
    "b\t ": "line 2: no tab and sentence after 'b'",
    "\tzwei": "line 2: no id before the tab: name the clip",
    "b\tzwei\tdrei": "line 2: 3 columns, not 2: take the tabs after the first out",
    "a\tzwei": "line 2: a stands twice, first at line 1: give each clip an id of its own",
    "dev/b\tzwei": "line 2: 'dev/b' can name no file in the folder: give a short id without /, \\ and ..",
    "dev\\b\tzwei": "line 2: 'dev\\\\b' can name no file in the folder",
    "..\tzwei": "line 2: '..' can name no file in the folder",
    "b\0\tzwei": "line 2: 'b\\x00' can name no file in the folder",
    "ß" * 126 + "\tzwei": "ß' can name no file in the folder: give a short id",
    "z\tzwei": "z.npy: extract this clip's features again or take its line out",
}


@pytest.mark.parametrize(("line", "message"), LINES.items())
def test_a_line_that_is_no_clip_is_refused(features: Path, manifest: Path, line: str, message: str) -> None:
    manifest.write_text(f"a\teins\n{line}\nc\tdrei\n", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        read_clips(features, manifest)
    assert str(refused.value).startswith(f"{manifest} cannot be read as clips:\n  line 2: ")
    assert str(refused.value).count("\n") == 1


SAVED = {
    "holds complex128, not real numbers": np.ones(4, complex),
    "holds bool, not real numbers": np.ones(4, bool),
    "holds <U1, not real numbers: save it with numpy.save as float32": np.array(list("abcd")),
    "has the shape (7, 4), not (width,): save one vector for the clip": np.ones((7, 4)),
    "has the shape (1, 1, 4), not (width,)": np.ones((1, 1, 4)),
    "has the shape (), not (width,)": np.array(1.0),
    "has the shape (0,), not (width,)": np.ones(0),
    "has width 5, not the 4 of a.npy: use one encoder for all": np.ones(5),
    "2 of 4 values are NaN or infinite in float32: extract": np.array([1, np.nan, -np.inf, 1]),
    "1 of 4 values are NaN or infinite in float32": np.array([1, 2, 1e300, 1]),
}


@pytest.mark.parametrize(("message", "array"), SAVED.items())
def test_a_vector_that_is_none_is_refused(features: Path, manifest: Path, message: str, array: np.ndarray) -> None:
    np.save(features / "b.npy", array)
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        read_clips(features, manifest)
    assert f"\n  line 3: {features / 'b.npy'}" in str(refused.value)
    assert str(refused.value).count("\n") == 1


def test_a_width_asked_for_holds_for_every_file(features: Path, manifest: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.npy has width 4, not the 1024 asked for") as refused:
        read_clips(features, manifest, width=1024)
    assert str(refused.value).count("asked for") == 3


def test_the_width_is_that_of_the_first_sound_file(features: Path, manifest: Path) -> None:
    np.save(features / "a.npy", np.full(9, np.nan))
    np.save(features / "c.npy", np.ones(5))
    with pytest.raises(ValueError, match=r"c\.npy has width 5, not the 4 of b\.npy") as refused:
        read_clips(features, manifest)
    assert str(refused.value).count("\n  line ") == 2


def test_damaged_files_are_refused(features: Path, manifest: Path) -> None:
    whole = (features / "b.npy").read_bytes()
    np.savez(features / "archive.npz", b=np.ones(4))
    damaged = [
        b"",
        b"not numbers",
        whole[:40],
        whole[:-4],
        (features / "archive.npz").read_bytes(),
        whole.replace(b"(4,)", b"(4,("),  # a TokenError or SyntaxError from inside numpy
        whole.replace(b"(4,), }             ", b"(4999999999999999,)}"),  # more than any memory
    ]
    for content in damaged:
        (features / "b.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"line 3: .*b\.npy is no readable \.npy file \(.+\): extract") as refused:
            read_clips(features, manifest)
        assert str(refused.value).count("\n") == 1


def test_pickled_objects_are_not_loaded(features: Path, manifest: Path) -> None:
    np.save(features / "b.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"b\.npy is no readable \.npy file \(Object arrays cannot be loaded"):
        read_clips(features, manifest)
    np.array([{}], dtype=object).dump(features / "b.npy")  # a bare pickle
    with pytest.raises(ValueError, match=r"b\.npy is no readable \.npy file \(the magic string is not correct"):
        read_clips(features, manifest)


def test_all_faults_are_told_together(features: Path, manifest: Path) -> None:
    np.save(features / "b.npy", np.ones((2, 4)))
    np.save(features / "c.npy", np.full(4, np.nan))
    manifest.write_text("a\teins\nb\tzwei\n\nno tab\nc\tdrei\nb\tvier\nz\tx\n../a\tx\n")
    with pytest.raises(ValueError, match="cannot be read as clips") as refused:
        read_clips(features, manifest)
    first, *told = str(refused.value).split("\n  ")
    assert first == f"{manifest} cannot be read as clips:"
    assert [fault.partition(":")[0] for fault in told] == [f"line {n}" for n in (2, 4, 5, 6, 7, 8)]
    assert "b stands twice, first at line 2" in told[3]


def test_beyond_ten_faults_the_rest_is_counted(features: Path, manifest: Path) -> None:
    manifest.write_text("".join(f"x{i}\ty\n" for i in range(13)))
    with pytest.raises(ValueError, match=r"line 10: there is no .*\n  and 3 more$"):
        read_clips(features, manifest)


def test_a_manifest_or_folder_that_is_none_is_refused(features: Path, manifest: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere is not a folder: give the one that holds <id>\.npy"):
        read_clips(features / "nowhere", manifest)
    for text in ("", "\n \n", "id\tsentence\n"):
        manifest.write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.tsv holds no clips: write one line for each"):
            read_clips(features, manifest)
    manifest.write_bytes("a\tcaf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"manifest\.tsv is not UTF-8 \(.* at byte 5\): save it as UTF-8 text"):
        read_clips(features, manifest)
    manifest.unlink()
    with pytest.raises(ValueError, match=r"manifest\.tsv is not there: write one line for each clip"):
        read_clips(features, manifest)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (replace(CLIPS, ids=("a", "x/b", "c")), "clip 2: 'x/b' can name no file in the folder"),
        (replace(CLIPS, ids=("a", "", "c")), "clip 2: no id before the tab"),
        (replace(CLIPS, ids=("a", "b", "a")), "clip 3: a stands twice, first at clip 1"),
        (replace(CLIPS, ids=("a", " b", "c")), "clip 2: (' b', 'zwei, drei') has a tab, a line break or outer blanks"),
        (replace(CLIPS, sentences=("x\ty", "y", "z")), "clip 1: ('a', 'x\\ty') has a tab, a line break or outer"),
        (replace(CLIPS, sentences=("x", "y\nz", "z")), "clip 2: ('b', 'y\\nz') has a tab, a line break or outer"),
        (replace(CLIPS, sentences=("x", "y\rz", "z")), "clip 2: ('b', 'y\\rz') has a tab, a line break or outer"),
        (replace(CLIPS, sentences=("x", "y", " ")), "clip 3: no tab and sentence after 'c'"),
        (replace(CLIPS, sentences=("x", "y", "\ud800")), "clip 3: 'utf-8' codec can't encode"),
        (replace(CLIPS, vectors=CLIPS.vectors / 0), "clip 1: the vector of a is not finite in float32"),
        (Clips((), torch.zeros(0, 4), ()), "the vectors have the shape (0, 4): there is nothing to keep"),
    ],
)
def test_clips_that_would_not_come_back_are_not_written(tmp_path: Path, clips: Clips, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        write_clips(tmp_path / "features", tmp_path / "train.tsv", clips)
    assert not list(tmp_path.iterdir())


def test_clips_have_an_id_a_vector_and_a_sentence_each() -> None:
    with pytest.raises(ValueError, match="2 ids, 3 vectors and 3 sentences: one each for a clip"):
        replace(CLIPS, ids=("a", "b"))
