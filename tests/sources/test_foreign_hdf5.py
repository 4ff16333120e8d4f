"""HDF5 of others: every way of writing vectors gives back the same rows; what no one wrote is never a row."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.command import call, exported, manifest
from support.foreign import IDS, ROWS, VECTORS, WIDTH, cases, rows_of, strings, write

from milvus_offline.errors import DamageError, UsageError
from milvus_offline.model import Source
from milvus_offline.sources.hdf5 import open_hdf5
from milvus_offline.sources.hdf5.links import Place, open_dataset


def codes(source: Source) -> dict[str, str]:
    return {f.code: f.severity.value for f in source.findings}


def floats(n: int = 40, d: int = 8) -> Any:
    return np.random.default_rng(1).standard_normal((n, d)).astype("<f4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.mark.parametrize(("vectors", "ids", "layout", "link"), list(cases()))
def test_every_way_of_writing_gives_the_same_rows(folder: Path, vectors: str, ids: str, layout: str, link: str) -> None:
    make, options = VECTORS[vectors]
    data, right = make()
    numbers = np.arange(ROWS, dtype=np.int64) * 3 + 5
    write(folder / "a.h5", data, IDS[ids](numbers), layout, link)
    source = open_hdf5(folder / "a.h5", **options)
    found_ids, found = rows_of(source)
    assert found_ids.tolist() == numbers.tolist()
    assert found.tobytes() == right.tobytes()
    assert not set(codes(source).values()) - {"info"}
    (piece,) = source.collections[0].partitions[0].pieces
    assert np.concatenate([b.ids.copy() for b in piece.batches(999, start=50)]).tolist() == numbers[50:].tolist()


# Links ----------------------------------------------------------------------------------------------------------------


def test_a_link_is_read_and_not_what_lies_at_that_place_of_this_file(folder: Path, tmp_path: Path) -> None:
    write(folder / "part.h5", floats(200), np.arange(1000, 1200))
    with h5py.File(folder / "master.h5", "w") as h:
        h["other"] = np.full(4000, 7, "f4")
        h["embeddings"], h["ids"] = h5py.ExternalLink("part.h5", "/embeddings"), h5py.ExternalLink("part.h5", "/ids")
    assert call("export", folder / "master.h5", tmp_path / "out").code == 0
    ((_, found),) = exported(tmp_path / "out").items()
    assert sorted(i for i, _ in found) == list(range(1000, 1200))


@pytest.mark.parametrize("way", ["external", "storage", "virtual"])
def test_files_elsewhere_are_only_followed_when_asked(folder: Path, tmp_path: Path, way: str) -> None:
    write(tmp_path / "part.h5", floats(), np.arange(40))
    (tmp_path / "secret").write_bytes(floats().tobytes())
    with h5py.File(folder / "a.h5", "w") as h:
        h["ids"] = np.arange(40)
        if way == "external":
            h["embeddings"] = h5py.ExternalLink(str(tmp_path / "part.h5"), "/embeddings")
        elif way == "storage":
            h.create_dataset("embeddings", (40, 8), "f4", external=[(str(tmp_path / "secret"), 0, 40 * 32)])
        else:
            layout = h5py.VirtualLayout((40, 8), "f4")
            layout[:] = h5py.VirtualSource(str(tmp_path / "part.h5"), "embeddings", (40, 8))
            h.create_virtual_dataset("embeddings", layout)
    for command in (["export", folder / "a.h5", tmp_path / "out"], ["inspect", folder / "a.h5"]):
        done = call(*command)
        assert (done.code, "--follow-external" in done.err) == (2, True)
        assert call(*command, "--follow-external").code == 0
    ((_, found),) = exported(tmp_path / "out").items()
    assert found == {(i, v.tobytes()): 1 for i, v in enumerate(floats())}
    assert call("verify", tmp_path / "out", "--against", folder / "a.h5", "--follow-external").code == 0


def test_storage_is_found_beside_the_file_and_not_where_the_command_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.bin").write_bytes(bytes(40 * 32))
    (folder / "data.bin").write_bytes(floats().tobytes())
    monkeypatch.chdir(tmp_path)
    with h5py.File(folder / "a.h5", "w") as h:
        h["ids"] = np.arange(40)
        h.create_dataset("embeddings", (40, 8), "f4", external=[("data.bin", 0, h5py.h5f.UNLIMITED)])
    assert rows_of(open_hdf5("in/a.h5"))[1].tobytes() == floats().tobytes()


def test_links_that_lead_nowhere_are_named_with_their_target(folder: Path) -> None:
    with h5py.File(folder / "a.h5", "w") as h:
        h["embeddings"], h["ids"] = h5py.SoftLink("/gone"), np.arange(3)
    with pytest.raises(DamageError, match="'embeddings' is a link to '/gone', which is not in this file"):
        open_hdf5(folder / "a.h5")
    with h5py.File(folder / "a.h5", "w") as h:
        h["embeddings"] = h5py.ExternalLink("gone.h5", "/x")
    with pytest.raises(DamageError, match=r"gone\.h5: there is no such file.*put that file beside this one"):
        open_hdf5(folder / "a.h5")
    (folder / "gone.h5").symlink_to("/mnt/nothing")
    with pytest.raises(DamageError, match=r"gone\.h5 is a link to /mnt/nothing, which does not exist here"):
        open_hdf5(folder / "a.h5")
    with h5py.File(folder / "a.h5", "w") as h:
        h["embeddings"], h["b"] = h5py.SoftLink("b"), h5py.SoftLink("embeddings")
    with pytest.raises(DamageError, match="in a circle"):
        open_hdf5(folder / "a.h5")


# Rows that no one wrote -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
@pytest.mark.parametrize("chunk", [(10, 8), (10, 3), (40, 8), (1, 8)])
def test_chunks_that_were_never_written_are_no_rows(
    folder: Path, tmp_path: Path, chunk: tuple[int, int], compression: Any
) -> None:
    with h5py.File(folder / "a.h5", "w") as h:
        d = h.create_dataset("embeddings", (100, 8), "f4", chunks=chunk, compression=compression)
        d[:40], d[60:] = floats(), floats()
        h["ids"] = np.arange(100)
    written = [*range(40), *range(60, 100)] if chunk[0] != 40 else list(range(100))  # its one chunk has all of them
    done = call("export", folder / "a.h5", tmp_path / "out", "--json")
    assert done.code == (3 if len(written) < 100 else 0)
    ((_, found),) = exported(tmp_path / "out").items()
    assert sorted(i for i, _ in found) == written
    if len(written) < 100:
        (lost,) = [f for f in done.json["findings"] if f["code"] == "rows-never-written"]
        assert (lost["rows"], "rows 40 to 59 of 'embeddings' were never written" in lost["message"]) == (20, True)
        assert call("verify", tmp_path / "out", "--against", folder / "a.h5").code == 3


@pytest.mark.parametrize("which", ["embeddings", "ids"])
def test_a_dataset_that_was_never_written_is_refused(folder: Path, tmp_path: Path, which: str) -> None:
    with h5py.File(folder / "a.h5", "w") as h:
        for name, data in (("embeddings", floats()), ("ids", np.arange(40))):
            made = h.create_dataset(name, data.shape, data.dtype)
            if name != which:
                made[...] = data
    done = call("export", folder / "a.h5", tmp_path / "out")
    assert (done.code, f"of {which!r} were never written" in done.err) == (1, True)
    assert not (tmp_path / "out").exists()
    again = call("export", folder / "a.h5", tmp_path / "out", "--ids", "row")
    assert again.code == (0 if which == "ids" else 1)


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("how", ["gone", "short", "unwritten", "renamed"])
def test_missing_sources_of_a_virtual_dataset_are_no_rows(folder: Path, missing: int, how: str) -> None:
    write(folder / "a.h5", floats(90), np.arange(90), link="virtual")
    part = folder / f"a-embeddings-{missing}.h5"
    if how == "gone":
        part.unlink()
    else:
        with h5py.File(part, "w") as h:
            if how == "short":
                h["group/data"] = floats(90)[30 * missing :][:20]
            elif how == "unwritten":
                h.create_dataset("group/data", (30, 8), "f4")
            else:
                h["data"] = floats(30)
    source = open_hdf5(folder / "a.h5")
    lost = range(30 * missing, 30 * missing + 30)
    found_ids, found = rows_of(source)
    assert found_ids.tolist() == [i for i in range(90) if i not in lost]
    assert found.tobytes() == np.delete(floats(90), list(lost), axis=0).tobytes()
    assert [f.rows for f in source.findings if f.code == "rows-never-written"] == [len(lost)]


def test_sources_side_by_side_are_whole_or_refused(folder: Path) -> None:
    """Each source has half of the columns: without one of them no row is whole."""
    layout = h5py.VirtualLayout((40, 8), "f4")
    for n in (0, 1):
        with h5py.File(folder / f"half{n}.h5", "w") as h:
            h["x"] = floats()[:, 4 * n : 4 * n + 4]
        layout[:, 4 * n : 4 * n + 4] = h5py.VirtualSource(f"half{n}.h5", "x", (40, 4))
    with h5py.File(folder / "a.h5", "w") as h:
        h.create_virtual_dataset("embeddings", layout)
        h["ids"] = np.arange(40)
    assert rows_of(open_hdf5(folder / "a.h5"))[1].tobytes() == floats().tobytes()
    (folder / "half1.h5").unlink()
    with pytest.raises(DamageError, match="40 of 40 rows have no values"):
        open_hdf5(folder / "a.h5")


@pytest.mark.parametrize("there", [0, 5, 39])
def test_storage_that_is_too_short_gives_the_rows_that_are_there(folder: Path, there: int) -> None:
    write(folder / "a.h5", floats(), np.arange(40), link="storage")
    data = folder / "a.embeddings"
    data.write_bytes(data.read_bytes()[: 4 + 32 * there + 7])
    if not there:
        with pytest.raises(DamageError, match="is too short"):
            open_hdf5(folder / "a.h5")
        return
    source = open_hdf5(folder / "a.h5")
    assert rows_of(source)[0].tolist() == list(range(there))
    assert [f.rows for f in source.findings] == [40 - there]


def test_rows_of_zeros_at_the_end_look_unwritten(folder: Path) -> None:
    """HDF5 fills a contiguous dataset with zeros when its first row is written."""
    with h5py.File(folder / "a.h5", "w") as h:
        v, i = h.create_dataset("embeddings", (10000, 8), "f4"), h.create_dataset("ids", (10000,), "i8")
        v[:40], i[:40] = floats(), np.arange(40)
    source = open_hdf5(folder / "a.h5")
    assert [(f.code, f.rows) for f in source.findings] == [("rows-look-unwritten", 9960)]
    assert source.collections[0].rows == 10000  # the file has them; a person decides
    with h5py.File(folder / "b.h5", "w") as h:
        h["embeddings"], h["ids"] = np.zeros((50, 8), "f4"), np.arange(50)[::-1]
    assert codes(open_hdf5(folder / "b.h5")) == {}


# Types ----------------------------------------------------------------------------------------------------------------


def test_uint8_are_bits_in_the_layout_of_milvusdm_and_it_is_told(folder: Path) -> None:
    write(folder / "a.h5", strings(), np.arange(ROWS))
    source = open_hdf5(folder / "a.h5")
    assert (source.collections[0].schema.dimension, codes(source)) == (8 * WIDTH, {"taken-as-bits": "info"})
    write(folder / "b.h5", strings(), np.arange(ROWS), names=("vectors", "ids"))
    assert codes(open_hdf5(folder / "b.h5"))["taken-as-bits"] == "warning"
    numbers = open_hdf5(folder / "b.h5", target_metric="IP")
    assert numbers.collections[0].schema.dimension == WIDTH
    assert rows_of(numbers)[1].tobytes() == strings().astype("<f4").tobytes()


def test_strings_that_lost_their_trailing_zeros_get_the_dimension_of_the_task(folder: Path) -> None:
    """Where every vector ends with zeros, numpy made the strings shorter than the vectors."""
    short = np.array([b"\1\2", b"\3"], "S2")
    write(folder / "a.h5", short, np.arange(2))
    assert rows_of(open_hdf5(folder / "a.h5", dimension=32))[1].tolist() == [[1, 2, 0, 0], [3, 0, 0, 0]]
    assert rows_of(open_hdf5(folder / "a.h5"))[1].tolist() == [[1, 2], [3, 0]]
    with pytest.raises(UsageError, match="16 dimensions, not 8"):
        open_hdf5(folder / "a.h5", dimension=8)


def test_strings_keep_a_zero_inside_whatever_their_padding(folder: Path) -> None:
    bits = strings()
    bits[:, 2] = 0
    for padding in (h5py.h5t.STR_NULLPAD, h5py.h5t.STR_NULLTERM, h5py.h5t.STR_SPACEPAD):
        kind = h5py.h5t.C_S1.copy()
        kind.set_size(WIDTH)
        kind.set_strpad(padding)
        for chunks in (None, (10,)):
            with h5py.File(folder / "a.h5", "w") as h:
                plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                if chunks:
                    plist.set_chunk(chunks)
                made = h5py.h5d.create(h.id, b"embeddings", kind, h5py.h5s.create_simple((ROWS,)), plist)
                made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(bits).view(f"S{WIDTH}")[:, 0], kind)
                h["ids"] = np.arange(ROWS)
            assert rows_of(open_hdf5(folder / "a.h5"))[1].tobytes() == bits.tobytes()


@pytest.mark.parametrize("value", [1e300, -3.5e38, 1e39])
def test_numbers_beyond_float32_are_never_infinity_in_silence(folder: Path, tmp_path: Path, value: float) -> None:
    data = floats().astype("f8")
    data[3, 1] = value
    data[5] = [np.inf, -np.inf, np.nan, 0, 0, 0, 0, 0]
    write(folder / "a.h5", data, np.arange(40))
    done = call("export", folder / "a.h5", tmp_path / "out")
    assert (done.code, "row 3 holds" in done.err, "--beyond-float32" in done.err) == (2, True, True)
    done = call("export", folder / "a.h5", tmp_path / "out", "--beyond-float32", "inf", "--overwrite")
    assert (done.code, "beyond-float32" in done.out) == (3, True)
    skipped = call("load", folder / "a.h5", tmp_path / "x.db", "--nonfinite", "skip", "--dry-run", "--json")
    assert [f["rows"] for f in skipped.json["findings"] if f["code"] == "nonfinite-skipped"] == [2]


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([b"00ff", b"0a"], "texts such as '00ff' (row 0)"),
        ([b"1", b"007"], "texts such as '007' (row 1)"),
        ([b"1", b"99999999999999999999"], "texts such as '99999999999999999999' (row 1)"),
        ([1.0, 2.5], "2.5 at row 1, stored as float64"),
        ([1.0, np.nan], "nan at row 1"),
        ([1.0, 2.0**60], "stored as float64"),
        (np.array([1, 2**24 + 2], "f4"), "stored as float32"),
        (np.array([1, 2**63], "u8"), "over 2**63 - 1"),
    ],
)
def test_ids_that_are_no_whole_numbers_are_named_with_what_helps(folder: Path, tmp_path: Path, ids: Any, text: str) -> None:
    write(folder / "a.h5", floats(2), np.array(ids))
    done = call("export", folder / "a.h5", tmp_path / "out")
    assert done.code == 2
    assert text in done.err and "--ids row" in done.err and "--ids auto" in done.err
    assert call("export", folder / "a.h5", tmp_path / "out", "--ids", "row").code == 0
    ((_, found),) = exported(tmp_path / "out").items()
    assert sorted(i for i, _ in found) == [0, 1]
    auto = call("load", folder / "a.h5", tmp_path / "x.db", "--ids", "auto", "--dry-run")
    assert (auto.code, "ids made by the target" in " ".join(auto.out.split())) == (0, True), auto.out


def test_bools_that_fill_no_bytes_are_refused_or_numbers(folder: Path) -> None:
    write(folder / "a.h5", np.ones((3, 5), bool), np.arange(3))
    with pytest.raises(UsageError, match="--vector-type float"):
        open_hdf5(folder / "a.h5")
    assert rows_of(open_hdf5(folder / "a.h5", vector_type="float"))[1].tolist() == [[1.0] * 5] * 3


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [("vectors", "id"), ("emb", "pk"), ("features", "item_ids"), ("dataset_1", "key"), ("train", "ids"), ("a/b", "a/id")],
)
def test_the_only_candidates_are_taken_and_told(folder: Path, names: tuple[str, str]) -> None:
    write(folder / "a.h5", floats(), np.arange(40) + 9, names=names)
    source = open_hdf5(folder / "a.h5")
    assert rows_of(source)[0].tolist() == list(range(9, 49))
    assert [f.code for f in source.findings] == ["columns-chosen"] * (2 if names[1] != "ids" else 1)


def test_a_file_of_ann_benchmarks_gives_its_train_set_and_its_metric(folder: Path) -> None:
    for distance, metric in (("angular", "COSINE"), ("euclidean", "L2"), ("dot", "IP")):
        with h5py.File(folder / "a.hdf5", "w") as h:
            h["train"], h["test"], h["neighbors"] = floats(), floats(5), np.zeros((5, 10), "i4")
            h["distances"] = np.zeros((5, 10), "f4")
            h.attrs["distance"] = distance
        source = open_hdf5(folder / "a.hdf5")
        assert (source.collections[0].rows, source.collections[0].schema.metric_type) == (40, metric)
        assert set(codes(source)) == {"columns-chosen", "metric-of-file", "no-ids"}


def test_where_several_could_be_meant_a_person_says_it(folder: Path, tmp_path: Path) -> None:
    with h5py.File(folder / "a.h5", "w") as h:
        h["x"], h["y"], h["id"], h["pk"] = floats(), floats(), np.arange(40), np.arange(40) + 40
    for given, text in (
        ((), "--embeddings"),
        (("--embeddings", "x"), "--ids-dataset"),
        (("--embeddings", "z"), "no dataset 'z'"),
    ):
        done = call("inspect", folder / "a.h5", *given)
        assert (done.code, text in done.err) == (2, True)
    missing = call("inspect", folder / "a.h5", "--embeddings", "x", "--ids-dataset", "gone")
    assert (missing.code, "no dataset 'gone'" in missing.err) == (2, True)
    for command in (["inspect", folder / "a.h5"], ["export", folder / "a.h5", tmp_path / "out"]):
        assert call(*command, "--embeddings", "y", "--ids-dataset", "pk").code == 0
    assert call("verify", tmp_path / "out", "--against", folder / "a.h5", "--embeddings", "y", "--ids-dataset", "pk").code == 0
    assert call("verify", tmp_path / "out", "--against", folder / "a.h5", "--embeddings", "y", "--ids-dataset", "id").code == 4


def test_labels_are_no_ids(folder: Path) -> None:
    with h5py.File(folder / "a.h5", "w") as h:
        h["embeddings"], h["labels"] = floats(), np.zeros(40, "i8")
    assert not open_hdf5(folder / "a.h5").collections[0].has_ids


# Packages and file systems --------------------------------------------------------------------------------------------


def test_lzf_needs_no_further_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    write(folder / "a.h5", floats(), np.arange(40), layout="lzf")
    assert rows_of(open_hdf5(folder / "a.h5"))[1].tobytes() == floats().tobytes()


def test_the_cache_holds_a_row_of_chunks(folder: Path) -> None:
    """Without it each of many small batches would unpack a large chunk anew."""
    with h5py.File(folder / "a.h5", "w") as h:
        h.create_dataset("embeddings", (40_000, 64), "f4", chunks=(40_000, 16), compression="gzip")
    with h5py.File(folder / "a.h5") as h:
        dataset = open_dataset(h, Place(str(folder / "a.h5"), "/embeddings"))
        assert dataset.id.get_access_plist().get_chunk_cache()[1] >= 40_000 * 64 * 4


def test_strings_of_milvusdm_are_exported_and_verified(folder: Path, tmp_path: Path) -> None:
    write(folder / "None.h5", strings().view(f"S{WIDTH}")[:, 0], np.arange(ROWS))
    assert call("export", folder / "None.h5", tmp_path / "out").code == 0
    ((_, found),) = exported(tmp_path / "out").items()
    assert found == {(i, v.tobytes()): 1 for i, v in enumerate(strings())}
    assert manifest(tmp_path / "out")["collections"][0]["vector_type"] == "binary"
    assert call("verify", tmp_path / "out", "--against", folder / "None.h5").code == 0


def test_no_lock_is_needed_to_read_or_to_write(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS and CIFS refuse locks (ENOLCK): each opening that would take one fails as HDF5 fails there."""
    write(folder / "a.h5", floats(), np.arange(40))
    opened = h5py.File.__init__

    def refuses(self: Any, *arguments: Any, locking: Any = None, **options: Any) -> None:
        if locking is not False and isinstance(arguments[0], (str, Path)):
            raise OSError("[Errno 37] Unable to synchronously open file (unable to lock file, errno = 37)")
        opened(self, *arguments, locking=locking, **options)

    monkeypatch.setattr(h5py.File, "__init__", refuses)
    for compression in ("none", "gzip"):
        assert call("export", folder / "a.h5", tmp_path / compression, "--compression", compression).code == 0
