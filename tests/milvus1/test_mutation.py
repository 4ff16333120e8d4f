"""Damaged copies of real stores: no traceback, no hang, no wrong row without a finding.

This runs a slice; `python scripts/mutate_stores.py` runs as many as are wanted. A failure names its case, and
`scripts/mutate_stores.py --case CASE` shows it again.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from support.damage import RECIPES
from support.healthy import Outcome, base, keys_of, store_names
from support.mutate import Bench, Case, Result, case_of, judge

from milvus_offline.milvus1.opening import open_store
from milvus_offline.model import Finding, Severity

pytestmark = pytest.mark.slow

ROUNDS = 5
"""So often comes each kind of damage, to any of the stores; once it is looked at thoroughly."""
PARTS = 7


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("mutants"))


def told(result: Result) -> str:
    return "\n".join([str(result.case), *result.damage, *result.problems])


@pytest.mark.parametrize("part", range(PARTS))
def test_a_slice_of_all_damage(bench: Bench, part: int) -> None:
    for seed in range(part, ROUNDS * len(RECIPES), PARTS):
        result = bench.run(case_of(seed), measured=seed % 40 == 0, thorough=seed // len(RECIPES) == seed % ROUNDS)
        assert not result.problems, told(result)


NEVER_SILENT = (
    "deletes-zeroed",
    "deletes-swapped",
    "deletes-emptied",
    "deletes-repeated",
    "files-of-another-segment",
    "second-files-of-copiers",
    "segment-longer",
    "disk-blocks-lost",
    "log-blocks-lost",
)


@pytest.mark.parametrize("name", NEVER_SILENT)
def test_what_files_can_show_is_never_silent(bench: Bench, name: str) -> None:
    """`scripts/mutate_stores.py` counts many more; single bits in vectors and ids, which nothing shows, are other kinds."""
    for store in store_names():
        result = bench.run(Case(store, name, 1))
        assert not result.problems, told(result)
        expected = {"equal"} if name == "second-files-of-copiers" else {"equal", "reported"}
        assert result.verdict in expected, told(result)


FOUND = {
    # A frame of the catalog's -wal was damaged or cut off: SQLite took the older catalog, and whole collections were gone.
    "catalog's -wal, flipped": "crash_wal_partial:catalog-frames:3",
    "catalog's -wal, cut": "dropped_killed:catalog-frames:238",
    "catalog's -wal, a folder": "crash_wal_v081:catalog-is-folder:5",
    "catalog's -wal, first frame cut": "crash_index_1:catalog-frames:708",
    # All files of the log gone, renumbered, or folders now: its rows were missing without a word.
    "log removed": "crash_wal:wal-file-removed:39",
    "log emptied": "crash_wal_partial:wal-folder:228",
    "log renumbered": "crash_wal:wal-renumbered:468",
    "log a folder": "crash_wal_v081:wal-folder:416",
    # The last acknowledged record was damaged: taken for the torn end of the log.
    "last record gone": "crash_dup:wal-record-removed:91",
    "last record's length": "crash_wal_v081:wal-record-header:184",
    "last record's header": "mysql_crash:wal-bits-in-headers:507",
    # A flush that the catalog does not know of, and a damaged log or segment: 490 rows came twice.
    "unrecorded flush, a delete lost": "crash_dup:wal-record-removed:101376",
    "unrecorded flush, a delete damaged": "crash_dup:wal-record-header:101657",
    "unrecorded flush, ids damaged": "crash_dup:segment-zeroed:102494",
    "unrecorded flush, a vector damaged": "crash_dup:segment-bits:7",
    "unrecorded flush, vectors cut": "crash_dup:segment-cut:13",
    # More than half of the vectors: rows of the log came beside those of the segment.
    "unrecorded flush, vectors zeroed": "crash_dup:segment-zeroed:3000044",
    # A version of 5000 digits: a traceback.
    "catalog, a long version": "flat_basic:catalog-values:3005848",
    # A damaged name in the schema: SQLite's own message was not UTF-8, a traceback.
    "catalog's schema": "deletes_cleaned:dump-spoiled:103553",
    # A damaged name of a column: partitions became collections, without a word.
    "catalog, owner_tabne": "deletes_cleaned:dump-spoiled:7000098",
    # A binary collection of four dimensions: rows of no bytes, a division by zero.
    "catalog, four bits": "binary:catalog-values:200559",
    # A torn mxlog.meta hid the last call.
    "mxlog.meta torn": "crash_wal:mxlog-damaged:154",
    # Vectors and ids of another segment in place of its own: only the sizes in the catalog betray it.
    "another segment's files": "partitions:segment-pair-swapped:74",
    # deleted_docs with a length that is no multiple of four: eight deleted rows came back.
    "deleted_docs uneven": "mysql:segment-header:776",
    # A pipe in place of a file: opening it waits for ever.
    "pipe": "crash_rand_3:segment-file-is-pipe:22",
    # A configuration with a number that is none, and one with too many digits: a traceback.
    "configuration, no number": "dropped_killed:config-damaged:199",
    "configuration, a long number": "dropped_killed:config-damaged:434",
    # Type and tag of a record were damaged at once: its rows passed for those of a dropped partition, without a word.
    "type and tag of a record": "crash_wal_v081:wal-bits-in-headers:1001936",
}
"""Cases that found bugs, each with what broke."""


@pytest.mark.parametrize("case", FOUND.values(), ids=FOUND.keys())
def test_what_once_broke(bench: Bench, case: str) -> None:
    result = bench.run(Case.parse(case), thorough=True)
    assert result.damage, "the recipe does nothing any more"
    assert not result.problems, told(result)


# The judge itself -----------------------------------------------------------------------------------------------------------


def test_every_recipe_damages_some_store(bench: Bench) -> None:
    def damages(case: Case) -> bool:
        with bench.mutant(case) as mutant:
            return bool(mutant.touched)

    stores = store_names()
    for name in RECIPES:
        assert any(damages(Case(stores[seed % len(stores)], name, seed)) for seed in range(40)), name


def test_the_judge_sees_what_is_wrong(bench: Bench) -> None:
    """Rows dropped, changed, doubled or invented in silence, and findings that are missing."""
    with bench.mutant(Case("partitions", "segment-cut", 5)) as mutant:
        store = open_store(mutant.root)
        outcome = Outcome.of(store)
        alarms = [f for f in store.findings if f.severity is not Severity.INFO]
        assert alarms and judge(mutant, store, outcome, None) == []
        silent = store.__class__(**{**{f: getattr(store, f) for f in store.__dataclass_fields__}, "findings": ()})
        assert judge(mutant, silent, outcome, None), "rows are missing without a finding"
        untouched = next(w for w, p in outcome.pieces.items() if not any(w[0] in f.where for f in alarms) and p)
        del outcome.pieces[untouched]
        assert judge(mutant, store, outcome, None), "an untouched partition is missing"
    assert judge(mutant, None, None, "refused"), "a cut segment is no reason to refuse the store"


def test_the_naive_reader_counts_what_the_log_holds() -> None:
    original = base("crash_wal")
    last = original.records[-1]
    data = original.files[last.file].read_bytes()
    assert struct.unpack_from("<Q", data, last.start)[0] == last.end == len(data)
    assert sum(len(r.ids) for r in original.records if not r.is_delete) == original.logged.total() > 1500
    assert original.logged >= original.outcome.keys("a", "_default") > keys_of([], [])


def test_findings_name_the_damaged_segment(bench: Bench) -> None:
    with bench.mutant(Case("flat_basic", "segment-file-removed", 2)) as mutant:
        (gone,) = mutant.touched
        findings: list[Finding] = [f for f in open_store(mutant.root).findings if f.severity is not Severity.INFO]
        assert findings and all(Path(gone).parent.name in f.where or "log" in f.code for f in findings)
