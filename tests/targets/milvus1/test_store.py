"""A new store: what a server 1.1.1 expects of every byte, and that nothing of a source is lost on the way."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.array_source import ArraySource, bits, floats
from support.filters import build_filter
from support.mariadb import MariaDB
from support.real import STORES, truth

from milvus_offline import cli
from milvus_offline.errors import DamageError, TargetError, UsageError
from milvus_offline.findings import Findings
from milvus_offline.loading import run_load
from milvus_offline.manifest import LEDGER
from milvus_offline.milvus1.catalog.write import MYSQL_SCHEMA, date_of, is_server_path
from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.segment.bloom import read_filter
from milvus_offline.milvus1.segment.files import Segment
from milvus_offline.milvus1.store import Store
from milvus_offline.model import Attribute, IndexSpec, Schema, Severity, SourceCollection, SourcePartition, VectorType
from milvus_offline.search.compare import check_searches
from milvus_offline.sources.milvus1 import open_store_source
from milvus_offline.targets import open_target
from milvus_offline.transfer import Stopped

NAMES = sorted(p.parent.name for p in STORES.glob("*/store"))


def create(source: Any, path: Path, **options: Any) -> list[str]:
    """Writes a store and returns the codes of what was said about it."""
    resume = options.pop("resume", False)
    return [f.code for f in run_load(source, open_target(f"milvus1:{path}", **options), resume=resume).findings]


def source_of(name: str) -> Any:
    store = STORES / name / "store"
    dump = store / "meta.default.sql"
    return open_store_source(store, catalog=dump if dump.exists() else None)


def rows_of(store: Store) -> dict[tuple[str, str], Counter[tuple[int, bytes]]]:
    result = {}
    for collection in store.collections:
        for partition in collection.partitions:
            batch = partition.read()
            result[collection.name, partition.name] = Counter(
                (int(i), v.tobytes()) for i, v in zip(batch.ids, batch.vectors, strict=True)
            )
    return result


def catalog(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path / "db" / "meta.sqlite") as connection:
        return connection.execute(sql).fetchall()


# Round trips of real stores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_real_store_comes_back_whole(name: str, tmp_path: Path) -> None:
    source = source_of(name)
    create(source, tmp_path / "new")
    new = open_store(tmp_path / "new")
    assert new.findings == ()
    assert [c.schema for c in new.collections] == [c.schema for c in source.collections]
    assert rows_of(new) == rows_of(source.store)
    assert rows_of(new) == truth(name)
    differences = Findings()
    asked = check_searches(source.collections, open_store_source(tmp_path / "new").collections, 100, differences)
    assert (asked > 0, differences) == (any(c.rows for c in source.collections), Findings())
    assert cli.run(["verify", str(tmp_path / "new"), "-q"]) == 0


class OneSegment:
    """A source that is a single segment, so that the new segment must have the same bytes."""

    kind, findings, salvage = "segment", (), ()

    def __init__(self, segment: Segment) -> None:
        schema = replace(segment.schema, index_file_size=4096 << 20)
        self.collections = [SourceCollection(schema, [SourcePartition("_default", [segment])])]

    def describe(self) -> dict[str, Any]:
        return {}

    def fingerprint(self) -> str:
        return ""


@pytest.mark.parametrize("name", ["flat_basic", "binary", "partitions", "indexed", "crash_index_1"])
def test_segments_have_the_bytes_of_the_servers(name: str, tmp_path: Path) -> None:
    compared = 0
    for collection in open_store(STORES / name / "store").collections:
        for partition in collection.partitions:
            for segment in partition.segments:
                if segment.deleted:
                    continue
                out = tmp_path / str(compared)
                create(OneSegment(segment), out)
                (new,) = open_store(out).collections[0].partitions[0].segments
                theirs, ours = Path(segment.raw_path).parent, Path(new.raw_path).parent
                files = [f"{new.id}.rv", f"{new.id}.uid", "bloom_filter", "deleted_docs"]
                assert sorted(p.name for p in ours.iterdir()) == files
                assert Path(new.raw_path).read_bytes() == Path(segment.raw_path).read_bytes()
                assert Path(new.ids_path).read_bytes() == Path(segment.ids_path).read_bytes()
                for file in ("deleted_docs", "bloom_filter"):
                    assert (ours / file).read_bytes() == (theirs / file).read_bytes()
                compared += 1
    assert compared >= 2


@pytest.mark.parametrize("name", ["flat_basic", "indexed", "partitions"])
def test_the_catalog_has_the_servers_schema(name: str, tmp_path: Path) -> None:
    create(ArraySource({"a": {"_default": [(np.arange(3), floats(3))]}}), tmp_path / "new")
    query = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY rowid"
    copy = tmp_path / "theirs" / "db"
    copy.mkdir(parents=True)
    for file in (STORES / name / "store" / "db").glob("meta.sqlite*"):
        (copy / file.name).write_bytes(file.read_bytes())
    assert catalog(tmp_path / "new", query) == catalog(tmp_path / "theirs", query)
    for pragma in ("page_size", "user_version", "encoding", "auto_vacuum"):
        assert catalog(tmp_path / "new", f"PRAGMA {pragma}") == catalog(tmp_path / "theirs", f"PRAGMA {pragma}")


# The catalog's rows and the files ------------------------------------------------------------------------------------


def schema(name: str = "c", dimension: int = 8, **more: Any) -> Schema:
    return Schema(name, dimension, **{"metric_type": "L2", **more})


def test_rows_of_the_catalog(tmp_path: Path) -> None:
    data = {
        "c": {"_default": [(np.arange(5000), floats(5000))], "p/1": [(np.arange(10), floats(10))], "empty": []},
        "b": {"_default": [(np.arange(4), bits(4))]},
    }
    schemas = {
        "c": schema(index=IndexSpec("IVF_SQ8", {"nlist": 16}), index_file_size=64 << 20, auto_id=False),
        "b": schema("b", 64, vector_type=VectorType.BINARY, metric_type="SUPERSTRUCTURE", auto_id=True),
    }
    before = time.time_ns() // 1000
    assert create(ArraySource(data, schemas), tmp_path / "new") == []
    tables = catalog(
        tmp_path / "new",
        "SELECT id, state, dimension, flag, index_file_size, engine_type, index_params, metric_type, owner_table, "
        "partition_tag, version, flush_lsn FROM Tables ORDER BY id",
    )
    assert tables == [
        (1, 0, 8, 2, 64 << 20, 3, '{"nlist":16}', 1, "", "", "1.1.1", 0),
        (2, 0, 8, 0, 64 << 20, 3, '{"nlist":16}', 1, "c", "p/1", "1.1.1", 0),
        (3, 0, 8, 0, 64 << 20, 3, '{"nlist":16}', 1, "c", "empty", "1.1.1", 0),
        (4, 0, 64, 1, 1024 << 20, 9, "{}", 7, "", "", "1.1.1", 0),
    ]
    ids = catalog(tmp_path / "new", "SELECT table_id, created_on FROM Tables ORDER BY id")
    assert ids[0][0] == "c"
    assert ids[3][0] == "b"
    assert all(len(t) == 19 and t.isdigit() and int(t) % 1000 == 0 for t, _ in ids[1:3])
    assert len({t for t, _ in ids}) == 4
    assert all(before <= made <= time.time_ns() // 1000 + 10 for _, made in ids)
    files = catalog(
        tmp_path / "new", "SELECT engine_type, file_type, file_size, row_count, flush_lsn FROM TableFiles ORDER BY id"
    )
    assert files == [(3, 2, 5000 * 40, 5000, 0), (3, 1, 10 * 40, 10, 0), (9, 1, 4 * 16, 4, 0)]
    for table, segment, file, made, date in catalog(
        tmp_path / "new", "SELECT table_id, segment_id, file_id, created_on, date FROM TableFiles"
    ):
        assert segment == file
        assert len(segment) == 19
        assert int(segment) // 1000 == made
        assert date == date_of(made)
        assert (tmp_path / "new/db/tables" / table / segment / f"{segment}.rv").is_file()
    assert catalog(tmp_path / "new", "SELECT * FROM Environment") == [(0,)]
    assert catalog(tmp_path / "new", "SELECT * FROM Fields") == []
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["db", "logs", "server_config.yaml", "wal"]
    assert list((tmp_path / "new" / "wal").iterdir()) == []
    assert sorted(p.name for p in (tmp_path / "new" / "db").iterdir()) == ["meta.sqlite", "tables"]


@pytest.mark.parametrize(
    ("rows", "index", "file_type"), [(4095, "IVF_FLAT", 1), (4096, "IVF_FLAT", 2), (4096, "FLAT", 1), (9000, "HNSW", 2)]
)
def test_what_waits_for_an_index(rows: int, index: str, file_type: int, tmp_path: Path) -> None:
    params = {"IVF_FLAT": {"nlist": 8}, "HNSW": {"M": 8, "efConstruction": 100}}.get(index, {})
    source = ArraySource({"c": {"_default": [(np.arange(rows), floats(rows))]}}, {"c": schema(index=IndexSpec(index, params))})
    assert create(source, tmp_path / "new") == []
    assert catalog(tmp_path / "new", "SELECT file_type FROM TableFiles") == [(file_type,)]


def test_date_counts_as_the_server_does(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for zone, date, first in (("UTC-8", 1261023, 700001), ("UTC", 1261022, 700001), ("UTC+8", 1261022, 691131)):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            assert (date_of(1795370649322570), date_of(0)) == (date, first)  # the server said 1261023, in UTC+8
    finally:
        monkeypatch.undo()
        time.tzset()


def test_segments_are_cut_so_that_no_server_merges_them(tmp_path: Path) -> None:
    pieces = [(np.arange(i * 20_000, (i + 1) * 20_000), floats(20_000, seed=i)) for i in range(4)]
    source = ArraySource({"c": {"_default": pieces}}, {"c": schema(index_file_size=1 << 20)})
    create(source, tmp_path / "new", jobs=2)
    sizes = catalog(tmp_path / "new", "SELECT row_count, file_size FROM TableFiles ORDER BY id")
    full = -(-(1 << 20) // 40)
    assert sizes == [(full, full * 40)] * 3 + [(80_000 - 3 * full, (80_000 - 3 * full) * 40)]
    assert full * 40 >= 1 << 20 > (full - 1) * 40
    read = open_store(tmp_path / "new")["c"]["_default"].read()
    np.testing.assert_array_equal(read.ids, np.arange(80_000))
    np.testing.assert_array_equal(read.vectors, np.concatenate([v for _, v in pieces]))


def test_bytes_of_a_segment(tmp_path: Path) -> None:
    ids, vectors = np.array([5, -1, 7, 5]), floats(4, 3)
    create(ArraySource({"c": {"_default": [(ids, vectors)]}}), tmp_path / "new")
    (folder,) = (tmp_path / "new/db/tables/c").iterdir()
    assert (folder / f"{folder.name}.rv").read_bytes() == struct.pack("<Q", 48) + vectors.tobytes()
    assert (folder / f"{folder.name}.uid").read_bytes() == struct.pack("<Qqqqq", 32, 5, -1, 7, 5)
    assert (folder / "deleted_docs").read_bytes() == bytes(8)
    bloom = (folder / "bloom_filter").read_bytes()
    assert struct.unpack("<QIdQ", bloom[:28]) == (0x00305F6D6F6F6C62, 4, 0.01, len(bloom) - 28)
    assert struct.unpack("<QQQ", bloom[28:52]) == (2**64 - 1, 5, 0)
    assert read_filter(folder / "bloom_filter").contains(ids).all()


@pytest.mark.parametrize(
    "ids",
    [[0], [7] * 300, list(range(8193)), [-(2**63), 2**63 - 1, 0, -1], list(range(10_000, 0, -1)), [1, 1, 2] * 4000],
    ids=["one", "saturated", "chunk and one", "extremes", "falling", "repeated"],
)
def test_bloom_filters_are_those_of_the_reference(ids: list[int], tmp_path: Path) -> None:
    array = np.array(ids, np.int64)
    create(ArraySource({"c": {"_default": [(array, floats(len(ids), 2))]}}), tmp_path / "new")
    (path,) = (tmp_path / "new/db/tables/c").glob("*/bloom_filter")
    with (tmp_path / "reference").open("wb") as f:
        build_filter([array], len(array)).write(f)
    assert path.read_bytes() == (tmp_path / "reference").read_bytes()


def test_no_segment_without_rows(tmp_path: Path) -> None:
    create(ArraySource({"c": {"_default": [(np.arange(0), floats(0))], "p": []}}), tmp_path / "new")
    assert catalog(tmp_path / "new", "SELECT * FROM TableFiles") == []
    assert catalog(tmp_path / "new", "SELECT flag FROM Tables") == [(0,), (0,)]
    assert len(list((tmp_path / "new/db/tables").iterdir())) == 2
    assert rows_of(open_store(tmp_path / "new")) == {("c", "_default"): Counter(), ("c", "p"): Counter()}


def test_a_source_that_becomes_shorter(tmp_path: Path) -> None:
    create(many(2), tmp_path / "one")
    source = open_store_source(tmp_path / "one")
    (raw,) = {Path(s.raw_path) for s in source.store["c"]["_default"].segments[:1]}
    os.truncate(raw, raw.stat().st_size - 32)
    with pytest.raises(DamageError, match="the file ends after"):
        create(source, tmp_path / "two")
    assert not (tmp_path / "two" / "db").exists()


def test_an_empty_source_is_an_empty_store(tmp_path: Path) -> None:
    create(ArraySource({}), tmp_path / "new")
    assert len(open_store(tmp_path / "new")) == 0


def test_ids_for_rows_that_have_none(tmp_path: Path) -> None:
    data = {"c": {"_default": [(np.arange(10), floats(10))], "p": [(np.arange(5), floats(5, seed=1))]}}
    create(ArraySource(data, without_ids=frozenset({"c"})), tmp_path / "new", jobs=2)
    store = open_store(tmp_path / "new")["c"]
    assert store.schema.auto_id is True
    ids = np.concatenate([store["_default"].read().ids, store["p"].read().ids])
    np.testing.assert_array_equal(np.diff(ids), 1)
    assert len(str(ids[0])) == 19
    np.testing.assert_array_equal(store["p"].read().vectors, floats(5, seed=1))


# Settings and names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "options", "code", "engine", "metric"),
    [
        ({"metric_type": None}, {}, "metric-assumed", 1, 1),
        ({"metric_type": None}, {"metric": "IP"}, None, 1, 2),
        ({"index": IndexSpec("DISKANN")}, {}, "index-unknown", 1, 1),
        ({"index": IndexSpec("IVF_PQ", {"nlist": 8})}, {}, "index-incomplete", 1, 1),
        ({"index": IndexSpec("BIN_IVF_FLAT", {"nlist": 8})}, {}, "index-unfit", 1, 1),
        ({"index": IndexSpec("IVF_FLAT", {"nlist": 8})}, {"index": "none"}, None, 1, 1),
        (
            {"index": IndexSpec("RNSG", dict.fromkeys(("search_length", "out_degree", "candidate_pool_size", "knng"), 9))},
            {},
            None,
            4,
            1,
        ),
        ({"index_file_size": 1 << 50}, {}, "index-file-size", 1, 1),
        ({"metric_type": "COSINE"}, {"metric": "IP"}, None, 1, 2),
        ({"attributes": (Attribute("age", "<i4"),)}, {}, "attributes-left-out", 1, 1),
    ],
)
def test_settings(changes: Any, options: Any, code: str | None, engine: int, metric: int, tmp_path: Path) -> None:
    source = ArraySource({"c": {"_default": [(np.arange(3), floats(3))]}}, {"c": schema(**changes)})
    assert create(source, tmp_path / "new", **options) == ([code] if code else [])
    assert catalog(tmp_path / "new", "SELECT engine_type, metric_type FROM Tables") == [(engine, metric)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric_type": "COSINE"}, "metric COSINE is none of Milvus 1.x"),
        ({"metric_type": "HAMMING"}, "does not go with float vectors"),
        ({"dimension": 40000}, "dimension 40000"),
        ({"dimension": 12, "vector_type": VectorType.BINARY, "metric_type": "HAMMING"}, "multiple of 8"),
    ],
)
def test_settings_that_cannot_be(changes: Any, message: str, tmp_path: Path) -> None:
    source = ArraySource({"c": {"_default": []}}, {"c": schema(**changes)})
    with pytest.raises(UsageError, match=message):
        create(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["1a", "a-b", "größe", "a b", "", "x" * 256])
def test_names_that_a_server_refuses(name: str, tmp_path: Path) -> None:
    source = ArraySource({name: {"_default": [(np.arange(3), floats(3))]}})
    with pytest.raises(UsageError, match=r"expected 1\.\.255 letters"):
        create(source, tmp_path / "new")
    create(source, tmp_path / "new", rename={name: "fine"})
    assert list(open_store(tmp_path / "new")) == ["fine"]


@pytest.mark.parametrize(("tag", "message"), [(" a", "blanks"), ("a\t", "blanks"), ("ö" * 128, "256 bytes"), ("", "0 bytes")])
def test_tags_that_a_server_refuses(tag: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        create(ArraySource({"c": {tag: [(np.arange(3), floats(3))]}}), tmp_path / "new")


def test_two_collections_of_one_name(tmp_path: Path) -> None:
    source = ArraySource({"a": {"_default": []}, "b": {"_default": []}})
    with pytest.raises(UsageError, match="two collections would be named 'b'"):
        create(source, tmp_path / "new", rename={"a": "b"})


@pytest.mark.parametrize("tag", ["a/b", "semi;colon", "東京", "emoji🙂", 'q"', "back\\slash", "%", "a.b", "ö" * 127])
def test_tags_as_they_are(tag: str, tmp_path: Path) -> None:
    assert create(ArraySource({"c": {tag: [(np.arange(3), floats(3))]}}), tmp_path / "new") == []
    assert open_store(tmp_path / "new")["c"][tag].rows == 3


def test_a_quote_in_a_tag_is_told(tmp_path: Path) -> None:
    source = ArraySource({"c": {"it's": [(np.arange(3), floats(3))]}})
    assert create(source, tmp_path / "new") == ["tag-quote"]
    assert open_store(tmp_path / "new")["c"]["it's"].rows == 3
    assert create(source, tmp_path / "other", new_catalog="mysql") == ["catalog-sql"]


# Configuration -------------------------------------------------------------------------------------------------------


def test_the_configuration_names_the_store(tmp_path: Path) -> None:
    assert create(ArraySource({}), tmp_path / "new") == []
    config = yaml.safe_load((tmp_path / "new" / "server_config.yaml").read_text())
    theirs = yaml.safe_load((STORES / "flat_basic/store/server_config.yaml").read_text())
    assert {k: sorted(v) if isinstance(v, dict) else v for k, v in config.items()} == {
        k: sorted(v) if isinstance(v, dict) else v for k, v in theirs.items()
    }
    assert config["storage"]["path"] == str(tmp_path / "new")
    assert config["wal"] == {**theirs["wal"], "path": str(tmp_path / "new" / "wal")}
    assert config["general"]["meta_uri"] == "sqlite://:@:/"


def test_a_path_that_a_server_refuses(tmp_path: Path) -> None:
    assert create(ArraySource({}), tmp_path / "v1.1") == ["server-path"]
    assert yaml.safe_load((tmp_path / "v1.1/server_config.yaml").read_text())["storage"]["path"] == "/var/lib/milvus"
    assert create(ArraySource({}), tmp_path / "v1.2", server_path="/data") == []
    assert yaml.safe_load((tmp_path / "v1.2/server_config.yaml").read_text())["wal"]["path"] == "/data/wal"
    assert len(open_store(tmp_path / "v1.1")) == 0


@pytest.mark.parametrize(
    ("path", "fine"),
    [
        ("/var/lib/milvus", True),
        ("/a-b/c_d", True),
        ("/a.b", False),
        ("/a b", False),
        ("a", False),
        ("/ä", False),
        ("/", False),
    ],
)
def test_server_paths(path: str, fine: bool) -> None:
    assert is_server_path(path) is fine


# MySQL ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mysql", "partitions", "indexed"])
def test_a_catalog_for_mysql(name: str, mariadb: MariaDB, tmp_path: Path) -> None:
    source = source_of(name)
    create(source, tmp_path / "new", new_catalog="mysql")
    assert not (tmp_path / "new/db/meta.sqlite").exists()
    dump = tmp_path / "new/meta.sql"
    offline = open_store(tmp_path / "new", catalog=dump)
    assert [f for f in offline.findings if f.severity is not Severity.INFO] == []
    assert rows_of(offline) == truth(name)
    mariadb.load(dump, f"new_{name}")
    live = open_store(tmp_path / "new", catalog=mariadb.url(f"new_{name}"))
    assert rows_of(live) == truth(name)
    assert [c.schema for c in live.collections] == [c.schema for c in source.collections]


def test_the_tables_of_mysql_are_the_servers(mariadb: MariaDB, tmp_path: Path) -> None:
    create(ArraySource({"a": {"größe": []}}), tmp_path / "new", new_catalog="mysql")
    mariadb.load(tmp_path / "new/meta.sql", "ours")
    mariadb.load(STORES / "mysql/store/meta.default.sql", "theirs")
    for table in ("Environment", "Tables", "TableFiles", "Fields"):
        assert mariadb.execute(f"DESCRIBE `{table}`", database="ours") == mariadb.execute(
            f"DESCRIBE `{table}`", database="theirs"
        )
    assert len(MYSQL_SCHEMA) == 4
    # a server reads through a latin1 connection: it must get the tag's own bytes
    (tag,) = mariadb.execute("SELECT partition_tag FROM Tables WHERE owner_table <> ''", database="ours", charset="latin1")[0]
    assert tag.encode("cp1252").decode() == "größe"


def test_what_mysql_has_no_room_for(tmp_path: Path) -> None:
    source = ArraySource({"c": {"_default": [(np.arange(1), floats(1, 32768))]}})
    with pytest.raises(UsageError, match="SMALLINT"):
        create(source, tmp_path / "new", new_catalog="mysql")
    index = IndexSpec("IVF_FLAT", {"nlist": 16, "remark": "x" * 500})
    with pytest.raises(UsageError, match="MySQL takes 512"):
        create(ArraySource({"c": {"_default": []}}, {"c": schema(index=index)}), tmp_path / "new", new_catalog="mysql")
    assert not (tmp_path / "new").exists()
    create(source, tmp_path / "other")


# Places and interruptions --------------------------------------------------------------------------------------------


def test_never_into_an_existing_store(tmp_path: Path) -> None:
    create(ArraySource({}), tmp_path / "new")
    (tmp_path / "new/db/mark").write_text("x")
    for resume in (False, True):
        with pytest.raises(UsageError, match="holds a store already"):
            create(ArraySource({}), tmp_path / "new", resume=resume)
    with pytest.raises(UsageError, match="holds a store already"):
        create(ArraySource({}), tmp_path / "new" / "db")
    assert (tmp_path / "new/db/mark").exists()


def test_places_that_are_taken(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").touch()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="not empty"):
        create(ArraySource({}), tmp_path / "folder")
    with pytest.raises(UsageError, match="found a file"):
        create(ArraySource({}), tmp_path / "file")
    create(ArraySource({}), tmp_path / "empty")
    with pytest.raises(UsageError, match="lies inside the source"):
        create(source_of("flat_basic"), STORES / "flat_basic/store/new")
    assert not (STORES / "flat_basic/store/new").exists()


def many(segments: int = 5) -> ArraySource:
    rows = segments * 30_000
    return ArraySource(
        {"c": {"_default": [(np.arange(rows), floats(rows))]}}, {"c": schema(index_file_size=1 << 20, auto_id=False)}
    )


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    source, path = many(), tmp_path / "new"

    class Stop:
        left = 2

        def start(self, *numbers: int) -> None: ...
        def now(self, what: str) -> None: ...
        def close(self) -> None: ...
        def advance(self, rows: int, nbytes: int) -> None:
            if (path / LEDGER).read_bytes().count(b"\n") > 3:
                raise Stopped

    with pytest.raises(Stopped):
        run_load(source, open_target(f"milvus1:{path}", jobs=1), progress=Stop())
    assert not (path / "db").exists()  # nobody takes it for a store
    with pytest.raises(UsageError, match="go on with --resume"):
        create(source, path)
    finished = {p: p.stat().st_mtime_ns for p in sorted(path.rglob("*.rv"))[:2]}
    with pytest.raises(UsageError, match="differs in: collections, source"):
        create(many(4), path, resume=True)
    assert create(source, path, resume=True) == []
    assert not (path / LEDGER).exists()
    for part, changed in finished.items():
        final = path / "db" / part.relative_to(path / "db.part")
        assert final.stat().st_mtime_ns == changed  # written once
    assert rows_of(open_store(path)) == {
        ("c", "_default"): Counter((int(i), v.tobytes()) for i, v in zip(*source.data["c"]["_default"][0], strict=True))
    }
    assert cli.run(["verify", str(path), "-q"]) == 0


def test_interrupted_between_the_last_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = many(2), tmp_path / "new"

    def lost(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("milvus_offline.ledger.Ledger.remove", lost)
    with pytest.raises(KeyboardInterrupt):
        create(source, path)
    monkeypatch.undo()
    assert (path / "db" / "meta.sqlite").exists()
    assert (path / LEDGER).exists()
    create(source, path, resume=True)
    assert open_store(path).rows == 60_000
    assert not (path / LEDGER).exists()


def test_killed_and_resumed(tmp_path: Path) -> None:
    create(many(8), tmp_path / "store")
    command = [sys.executable, "-m", "milvus_offline", "load", str(tmp_path / "store"), f"milvus1:{tmp_path / 'new'}", "-q"]
    run = subprocess.Popen([*command, "--jobs", "1"])
    deadline = time.monotonic() + 120
    while not list((tmp_path / "new").rglob("*.rv")) and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert subprocess.run([*command, "--resume"], check=False).returncode == (0 if run.returncode else 2)
    old, new = open_store(tmp_path / "store"), open_store(tmp_path / "new")
    assert rows_of(new) == rows_of(old)
    assert new.findings == ()


def test_a_source_that_changes_meanwhile(tmp_path: Path) -> None:
    source = many(2)
    ids, vectors = source.data["c"]["_default"][0]

    class Short(ArraySource):
        @property
        def collections(self) -> list[SourceCollection]:
            (c,) = super().collections
            (piece,) = c.partitions[0].pieces
            return [replace(c, partitions=[c.partitions[0]._replace(pieces=[Promises(piece)])])]

    class Promises:
        def __init__(self, piece: Any) -> None:
            self.id, self.rows, self.batches = piece.id, piece.rows + 5, piece.batches

    with pytest.raises(TargetError, match="were announced"):
        create(Short({"c": {"_default": [(ids, vectors)]}}, source.schemas), tmp_path / "new")


# The command line ----------------------------------------------------------------------------------------------------


def test_repair_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    assert cli.run(["load", str(STORES / "crash_dup/store"), f"milvus1:{out}", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"] == 800
    assert document["exit_code"] == 0
    assert document["target"] == {"kind": "milvus1", "where": f"milvus1:{out}"}
    assert [f["code"] for f in document["findings"]] == ["flush-unrecorded", "wal-rows"]
    assert cli.run(["inspect", str(out), "-q"]) == 0


@pytest.mark.parametrize("name", ["indexed", "partitions", "binary"])
def test_dump_and_restore(name: str, tmp_path: Path) -> None:
    assert cli.run(["dump", str(STORES / name / "store"), str(tmp_path / "dump"), "-q"]) == 0
    assert cli.run(["restore", str(tmp_path / "dump"), f"milvus1:{tmp_path / 'new'}", "-q"]) == 0
    old, new = open_store(STORES / name / "store"), open_store(tmp_path / "new")
    assert rows_of(new) == truth(name)
    assert [c.schema for c in new.collections] == [c.schema for c in old.collections]


def test_a_dry_run_says_what_it_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    assert cli.run(["load", str(STORES / "partitions/store"), f"milvus1:{out}", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert f"Would load into milvus1:{out}" in " ".join(text.split())
    assert "create   parts: " in text
    assert not out.exists()


@pytest.mark.parametrize(
    "wrong",
    [["--mode", "append"], ["--partitions", "merge"], ["--index", "auto"], ["--metric", "COSINE"], ["--names", "sanitize"]],
)
def test_options_that_do_not_go_with_it(wrong: list[str], tmp_path: Path) -> None:
    command = ["load", str(STORES / "flat_basic/store"), f"milvus1:{tmp_path / 'new'}", *wrong]
    assert cli.run(command) == 2
    assert not os.listdir(tmp_path)


def test_unknown_catalogs() -> None:
    with pytest.raises(UsageError, match="--new-catalog pg does not go with milvus1:PATH; it takes sqlite, mysql"):
        open_target("milvus1:x", new_catalog="pg")
