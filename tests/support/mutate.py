"""Damages copies of real stores in seeded ways, opens what is left, and judges the outcome.

A case is (store, recipe, seed). The recipe changes some files of a copy; `judge` then knows from the changed bytes alone what
may come out: it reads segments, catalog and log by itself, far simpler than the reader does, and asks that

- nothing but MilvusOfflineError is raised, in bounded time, and the store is not touched;
- every piece gives as many rows as it announces;
- rows of untouched segments come out exactly, as long as catalog and log are untouched;
- rows differ from the truth only where the damage cannot be seen (bits inside vectors, ids, names, catalog values),
  or beside a WARNING or ERROR that names the place.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import signal
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from milvus_offline.errors import MilvusOfflineError
from milvus_offline.milvus1.nocatalog import Assumptions
from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.salvage import collect
from milvus_offline.milvus1.store import Store
from milvus_offline.milvus1.verify import check_store
from milvus_offline.model import Finding, Piece, Severity
from milvus_offline.report import inspect_document, show_inspect
from milvus_offline.text import Places, Screen
from milvus_offline.watch import watching
from support.damage import RECIPES, ROWS, Mutant
from support.healthy import Keys, Outcome, base, keys_of, read_catalog, read_naively, read_piece, store_names

NEVER_SILENT = {"catalog-table-lost", "catalog-of-before", "catalog-segment-lost", "catalog-bit", "catalog-put-aside"}
"""Recipes whose damage must be told whenever the rows differ."""
FEW = 32
"""So many changed bytes inside of vectors and ids may go unseen."""
SECONDS = 120
"""More than this for one case counts as a hang: on a busy machine half a second can become twenty."""
SLACK = 48 << 20
"""Bytes that a reader may take beyond the sizes of the store's files."""


@dataclass(frozen=True)
class Case:
    store: str
    recipe: str
    seed: int

    def __str__(self) -> str:
        return f"{self.store}:{self.recipe}:{self.seed}"

    @classmethod
    def parse(cls, text: str) -> Case:
        store, name, seed = text.split(":")
        return cls(store, name, int(seed))


def case_of(seed: int, only: str = "") -> Case:
    """The case of a seed: all recipes (those whose names begin with `only`) in turn, all stores at random."""
    names = sorted(n for n in RECIPES if n.startswith(only))
    return Case(random.Random(seed).choice(store_names()), names[seed % len(names)], seed)


@dataclass
class Result:
    case: Case
    damage: list[str]
    problems: list[str] = field(default_factory=list)
    error: str | None = None
    """The error with which the store was refused."""
    verdict: str = "equal"
    """What a person gets: `equal` rows, others that are `reported`, a store that is `refused`, or other rows in silence."""
    peak: int = 0


class _Hang(BaseException):
    pass


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _state(root: Path) -> dict[str, tuple[int, ...]]:
    """Everything about the tree that changes when somebody writes to it (a ctime cannot be put back)."""
    found = {}
    for path in (root, *root.rglob("*")):
        s = path.lstat()
        found[str(path)] = (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
    return found


class Bench:
    """Runs cases in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: set[str] = set()

    def _links(self, name: str) -> Path:
        links = self.folder / "base" / name
        if name not in self._made:
            shutil.copytree(base(name).root, links)
            for path in links.rglob("*"):
                path.chmod(path.stat().st_mode | 0o200)
            self._made.add(name)
        return links

    @contextlib.contextmanager
    def mutant(self, case: Case) -> Iterator[Mutant]:
        root = self.folder / "mutant"
        shutil.rmtree(root, ignore_errors=True)
        mutant = Mutant(base(case.store), self._links(case.store), root)
        mutant.recipe = case.recipe
        RECIPES[case.recipe](mutant, random.Random(f"{case.recipe} {case.seed}"))
        yield mutant

    def run(self, case: Case, *, measured: bool = False, thorough: bool = False) -> Result:
        """Opens, reads and reports the damaged store, and judges it. `measured`: the memory, too (slow);
        `thorough`: salvage, verify, and reading without the catalog, too."""
        with self.mutant(case) as mutant:
            result = Result(case, mutant.log)
            before = _state(mutant.root)
            if measured:
                tracemalloc.start()
            store = outcome = None
            try:
                with _limited(SECONDS * (5 if measured else 1)):
                    dump = mutant.base.dump
                    bare = Assumptions() if mutant.bare else None
                    store = open_store(mutant.root, mutant.root / dump if dump else None, without_catalog=bare)
                    with watching() as met:
                        outcome = Outcome.of(store)
                    found = [*store.findings, *met.findings()]
                    result.verdict = _verdict(mutant, outcome, found)
                    if result.verdict == "silent":
                        self._silent(mutant, store, outcome, result)
                    json.dumps(document := inspect_document(store))
                    show_inspect(Screen(shown := io.StringIO()), document, Places())
                    shown.getvalue().encode("utf-8")
                    if thorough:
                        self._further(mutant, store, result)
            except MilvusOfflineError as e:
                result.error = f"{type(e).__name__}: {e}"
                result.verdict = "refused"
                if store is not None:
                    result.problems.append(f"opened, but reading it fails: {result.error}")
            except _Hang:
                result.problems.append(f"hangs for more than {SECONDS} s")
            except Exception as e:
                place = traceback.extract_tb(e.__traceback__)[-1]
                own = [f for f in traceback.extract_tb(e.__traceback__) if "milvus_offline" in f.filename][-1]
                result.problems.append(
                    f"{type(e).__name__}: {e} ({Path(own.filename).name}:{own.lineno} {own.name}; {Path(place.filename).name})"
                )
            finally:
                if measured:
                    result.peak = tracemalloc.get_traced_memory()[1]
                    tracemalloc.stop()
                    if result.peak > mutant.base.bytes + SLACK:
                        result.problems.append(f"took {result.peak >> 20} MiB for a store of {mutant.base.bytes >> 20} MiB")
            if _state(mutant.root) != before:
                result.problems.append("the source was changed")
            if not result.problems and not mutant.bare:
                with _limited(SECONDS):
                    result.problems += judge(mutant, store, outcome, result.error)
            elif store is not None and not result.problems:
                result.problems += _judge_bare(mutant, store)
        return result

    def _silent(self, mutant: Mutant, store: Store, outcome: Outcome, result: Result) -> None:
        """Rows that differ without a word must be those of changed bytes inside ids and vectors; what `verify` sees is no
        silence then."""
        in_files = {_class_of(n) for n in mutant.touched} <= {"segment", "beside", "log"}  # of catalogs `judge` knows more
        if in_files and not only_few_bytes(mutant):
            result.problems.append(f"other rows in silence: {_summary(_all_differences(mutant, outcome))}")
        if any(f.severity is not Severity.INFO for f in check_store(store)[1]):
            result.verdict = "reported"

    def _further(self, mutant: Mutant, store: Store, result: Result) -> None:
        """Salvages everything, verifies, and reads the files without their catalog."""
        for item in collect(store, ["all"])[0]:
            self._count(f"salvaged {item.kind}", item.pieces, result)
        check_store(store)
        with contextlib.suppress(MilvusOfflineError):
            bare = open_store(mutant.root, without_catalog=Assumptions())
            for partition in (p for c in bare.collections for p in c.partitions):
                self._count("without a catalog", partition.pieces, result)

    def _count(self, what: str, pieces: Iterable[Piece], result: Result) -> None:
        for piece in pieces:
            read = read_piece(piece, 5000)
            if read.rows != read.given:
                result.problems.append(f"{what} {piece.id}: {read.rows} rows announced, {read.given} came")


def _verdict(mutant: Mutant, outcome: Outcome, findings: Iterable[Finding]) -> str:
    places = mutant.base.outcome.pieces.keys() | outcome.pieces.keys()
    if all(mutant.base.outcome.keys(*where) == outcome.keys(*where) for where in places):
        return "equal"
    alarmed = any(f.severity is not Severity.INFO and (f.code, f.where) not in mutant.base.findings for f in findings)
    return "reported" if alarmed else "silent"


def only_few_bytes(mutant: Mutant) -> bool:
    """Whether all damage is a few changed bytes inside of vectors, ids, or offsets of deletions."""
    unchanged = {n for n in mutant.touched if n.startswith("db/meta.")} if _same_catalog(mutant) else set()
    for name in mutant.touched - unchanged:
        path = mutant.root / name
        if _class_of(name) == "beside" or (not name.endswith((*ROWS, ".wal")) and mutant.recipe == "anything"):
            continue  # a file without rows, beside others
        if name not in mutant.base.files or not path.is_file() or path.stat().st_size != mutant.base.files[name].stat().st_size:
            return False
        old, new = (np.frombuffer(p.read_bytes(), np.uint8) for p in (mutant.base.files[name], path))
        hit = np.flatnonzero(old != new)
        if _is_exchanged(mutant, name, old, new):
            continue
        if name.endswith(".wal"):
            inside = all_in(hit, [(r.ids_at, r.end) for r in mutant.base.records if r.file == name])
        else:
            inside = name.endswith(ROWS) and hit.min(initial=8) >= 8
        if not inside or len(hit) > FEW:
            return False
    return True


def _is_exchanged(mutant: Mutant, name: str, old: Any, new: Any) -> bool:
    """Whether a file is that of another segment with just as many rows: of vectors, or of the same ids in any order."""
    if "swapped" not in mutant.recipe or not name.endswith((".rv", ".uid")) or (old[:8] != new[:8]).any():
        return False
    return name.endswith(".rv") or bool((np.sort(old[8:].view("<i8")) == np.sort(new[8:].view("<i8"))).all())


def _same_catalog(mutant: Mutant) -> bool:
    return mutant.base.catalog is not None and mutant.base.catalog == read_catalog(mutant.root / "db")


def all_in(places: Any, ranges: Iterable[tuple[int, int]]) -> bool:
    """Whether each of the places is in one of the ranges."""
    inside = np.zeros(len(places), np.bool_)
    for first, last in ranges:
        inside |= (places >= first) & (places < last)
    return bool(inside.all())


# Judging ------------------------------------------------------------------------------------------------------------------


def judge(mutant: Mutant, store: Store | None, outcome: Outcome | None, error: str | None) -> list[str]:
    """What is wrong with the outcome, in sentences."""
    touched = {_class_of(name) for name in mutant.touched}
    if store is None or outcome is None:
        only_rows = touched <= {"segment", "beside", "log"} and ((mutant.root / "db/tables").is_dir() or not mutant.base.dump)
        return [f"refused although only {', '.join(sorted(touched))} is damaged: {error}"] if only_rows else []
    problems = [
        f"{where} {piece_id}: {p.rows} rows announced, {p.given} came"
        for where, pieces in outcome.pieces.items()
        for piece_id, p in pieces.items()
        if p.rows != p.given
    ]
    alarms = [f for f in store.findings if f.severity is not Severity.INFO and (f.code, f.where) not in mutant.base.findings]
    if touched <= {"segment", "beside"}:
        return problems + _judge_segments(mutant, outcome, alarms)
    if touched <= {"log"}:
        return problems + _judge_log(mutant, outcome, alarms)
    if touched <= {"catalog"} and not mutant.base.dump:
        if mutant.log and mutant.recipe in NEVER_SILENT and not alarms and (lost := _all_differences(mutant, outcome)):
            problems.append(f"rows are lost or doubled without a finding: {_summary(lost)}")
        return problems + _judge_catalog(mutant, store, outcome, alarms)
    if touched <= {"config"}:
        return problems + _judge_config(mutant, outcome, alarms)
    if touched <= {"catalog"} and "cut to" in str(mutant.log) and not alarms:
        problems += [f"the dump is cut, no finding says so: {_summary(d)}" for d in [_all_differences(mutant, outcome)] if d]
    if not alarms and "segment" not in touched and "log" not in touched:
        problems += _only_stored(mutant, outcome)
    return problems


def _judge_bare(mutant: Mutant, store: Store) -> list[str]:
    """Without a catalog: all live rows of a table that has lost its vectors are told as lost, or as restored."""
    gone = {Path(n).stem for n in mutant.touched if n.endswith(".rv")}
    lost = sum(s.rows for i, s in mutant.base.live.items() if i in gone)
    told = sum(f.rows or 0 for f in store.findings if f.severity is Severity.ERROR or f.code == "vectors-restored")
    return [f"{lost} rows have lost their vectors, {told} are told"] if told < lost else []


def _class_of(name: str) -> str:
    if name.startswith("wal/") or name == "wal":
        return "log"
    if name.startswith("db/tables"):
        is_rows = name.endswith(ROWS) or name.count("/") < 4
        return "segment" if is_rows else "beside"
    if name.startswith(("db/meta.", "meta.")):
        return "catalog"
    return "config" if name == "server_config.yaml" else "other"


def _difference(expected: Outcome, outcome: Outcome, where: tuple[str, str]) -> tuple[Keys, Keys]:
    """Rows of a partition that are missing, and rows that are there beyond."""
    a, b = expected.pieces.get(where, {}), outcome.pieces.get(where, {})
    if {k: p.digest for k, p in a.items()} == {k: p.digest for k, p in b.items()}:
        return Counter(), Counter()
    before, now = expected.keys(*where), outcome.keys(*where)
    return before - now, now - before


def _all_differences(mutant: Mutant, outcome: Outcome) -> dict[tuple[str, str], tuple[Keys, Keys]]:
    places = {**mutant.base.outcome.pieces, **outcome.pieces}
    found = {w: _difference(mutant.base.outcome, outcome, w) for w in places}
    return {w: d for w, d in found.items() if d[0] or d[1]}


def _only_stored(mutant: Mutant, outcome: Outcome) -> list[str]:
    differences = _all_differences(mutant, outcome)
    strangers = sum((extra - mutant.base.stored).total() for _, extra in differences.values())
    return [f"{strangers} rows came out that are stored nowhere, without a finding"] if strangers else []


def _summary(differences: dict[tuple[str, str], tuple[Keys, Keys]]) -> str:
    return "; ".join(f"{w}: {a.total()} missing, {b.total()} too many" for w, (a, b) in differences.items())


def _judge_segments(mutant: Mutant, outcome: Outcome, alarms: list[Finding]) -> list[str]:
    problems = []
    damaged = {n.split("/")[3] for n in mutant.touched if n.count("/") > 3 and _class_of(n) == "segment"}
    damaged |= {s.split("/")[3] for s in mutant.base.segments if not (mutant.root / s).is_dir()}
    for where, expected in mutant.base.outcome.pieces.items():
        given = outcome.pieces.get(where, {})
        recovered = any(f.code == "rows-from-log" for f in alarms)
        held: Keys = Counter()
        unsure = False  # an index with flipped bits may have given other vectors
        for piece_id, piece in expected.items():
            got = given.get(piece_id)
            if piece_id not in damaged:
                if (got is None or got.digest != piece.digest) and not (piece_id == "wal" and recovered):
                    rows = f"{piece.rows} rows, now {got.rows if got else 'no piece'}"
                    problems.append(f"{where} {piece_id} is untouched but differs: {rows}")
                held += piece.keys()
                continue
            folder = mutant.root / next(s for s in mutant.base.segments if s.endswith("/" + piece_id))
            naive = read_naively(folder, mutant.base.row_bytes[where[0]])
            alarmed = any(piece_id in f.where or f.code == "tables-missing" for f in alarms)
            now = got.keys() if got else Counter()
            stored = mutant.base.live[piece_id]
            original = keys_of(stored.ids, stored.vectors)
            if naive is not None and naive.consistent:
                by_log = Counter({k: n for k, n in naive.live.items() if _id(k) in mutant.base.wal_deleted})
                if now != naive.live and (now - naive.live or (naive.live - now) - by_log) and not alarmed:
                    problems.append(f"{where} {piece_id}: looks sound, {naive.live.total()} rows, but {now.total()} came out")
                catalogued = _catalogued_bytes(mutant, piece_id)
                size = naive.rows * (naive.width + 8)
                if not alarmed and catalogued is not None and catalogued != size:
                    problems.append(f"{where} {piece_id}: {size} bytes where the catalog says {catalogued}, without a finding")
            elif not alarmed and now != piece.keys():
                problems.append(f"{where} {piece_id}: {piece.rows} rows became {now.total()} without a finding")
            held += (naive.stored if naive else Counter()) | original
            unsure |= _index_touched(mutant, piece_id)
        if any(p in damaged for p in expected) and not unsure:
            strangers = outcome.keys(*where) - (held | mutant.base.logged)
            if strangers:
                problems.append(f"{where}: {strangers.total()} rows that are stored nowhere, or came twice")
    return problems


def _index_touched(mutant: Mutant, segment_id: str) -> bool:
    return any(f"/{segment_id}/" in n and _class_of(n) == "beside" for n in mutant.touched)


def _catalogued_bytes(mutant: Mutant, segment_id: str) -> int | None:
    rows = (mutant.base.catalog or {}).get("TableFiles", {})
    return next((r[6] for r in rows.values() if r[2] == r[4] == segment_id.encode() and r[5] in (1, 2, 7)), None)


def _id(key: bytes) -> int:
    return int.from_bytes(key[:8], "little", signed=True)


def _doubled(mutant: Mutant, outcome: Outcome, places: Iterable[tuple[str, str]]) -> list[str]:
    """Rows that came out more often than segments or log hold them."""
    problems = []
    for where in places:
        live = mutant.base.outcome.pieces.get(where, {})
        held = sum((keys_of(s.ids, s.vectors) for p in live if (s := mutant.base.live.get(p))), Counter())
        ceiling = (held | mutant.base.logged) + (mutant.base.outcome.keys(*where) - held)
        if twice := Counter({k: n for k, n in (outcome.keys(*where) - ceiling).items() if k in ceiling}):
            problems.append(f"{where}: {twice.total()} rows came twice")
    return problems


def _judge_log(mutant: Mutant, outcome: Outcome, alarms: list[Finding]) -> list[str]:
    differences = _all_differences(mutant, outcome)
    if not differences or "that of" in str(mutant.log):
        return []
    if any(f.code.startswith(("wal", "mxlog", "flush")) for f in alarms):
        return _doubled(mutant, outcome, differences)
    missing = sum((d[0] for d in differences.values()), Counter())
    extra = sum((d[1] for d in differences.values()), Counter())
    ids, rows = set(), Counter()
    for name in mutant.touched:
        path = mutant.root / name
        if not name.endswith(".wal") or name not in mutant.base.files or not path.is_file():
            continue
        old, new = (np.frombuffer(p.read_bytes(), np.uint8) for p in (mutant.base.files[name], path))
        if len(new) < len(old):
            break
        hit = np.flatnonzero(old != new[: len(old)])
        for record in (r for r in mutant.base.records if r.file == name):
            inside = hit[(hit >= record.start) & (hit < record.end)]
            if len(inside) and (inside >= record.names_at).all():  # names, ids and vectors carry no check
                if record.is_delete:
                    ids |= set(record.ids)
                    ids |= set(new[record.ids_at : record.end].view("<i8").tolist())
                else:
                    rows.update(record.keys)
    count = rows.total()
    foreseen = set(rows) | {k for k in (missing | extra) if _id(k) in ids}
    lost = Counter({k: n for k, n in missing.items() if k not in foreseen})
    surplus = Counter({k: n for k, n in extra.items() if k not in foreseen})
    if lost or surplus.total() > count:
        return [f"without a finding about the log: {_summary(differences)}"]
    return []


def _judge_catalog(mutant: Mutant, store: Store, outcome: Outcome, alarms: list[Finding]) -> list[str]:
    if alarms:
        return []
    differences = _all_differences(mutant, outcome)
    if not differences:
        return []
    before, now = mutant.base.catalog, read_catalog(mutant.root / "db")
    assert before is not None
    if now is None:
        return [f"the catalog is damaged, no finding says so: {_summary(differences)}"]
    problems = _only_stored(mutant, outcome)
    changed = {
        table: {r for r in before[table].keys() | now[table].keys() if before[table].get(r) != now[table].get(r)}
        for table in before
    }
    removed = [f"db/meta.sqlite{s}" for s in ("-wal", "-shm") if not (mutant.root / f"db/meta.sqlite{s}").exists()]
    wal_lost = "db/meta.sqlite-wal" in mutant.touched and "values" not in str(mutant.log) and "ALTER" not in str(mutant.log)
    if (
        wal_lost
        and len(removed) < 2
        and "that of" not in str(mutant.log)
        and "TABLE" not in str(mutant.log)
        and "DELETE" not in str(mutant.log)
    ):
        problems.append(f"the -wal is damaged, no finding says so: {_summary(differences)}")
    if changed["Environment"] or _lsns(before) != _lsns(now):
        return problems
    names = {
        r[i].decode("utf-8", "replace") if isinstance(r[i], bytes) else str(r[i])
        for table, rows in changed.items()
        for rowid in rows
        for r in (before[table].get(rowid), now[table].get(rowid))
        if r is not None
        for i in ((0, 1, 10) if table == "Tables" else (0, 1))
    }
    concerned = names | {mutant.base.collection_of.get(n, n) for n in names}
    for where in differences:
        if where[0] not in concerned:
            problems.append(f"{where} is not concerned by the damage of the catalog but differs")
    return problems


def _lsns(catalog: dict[str, dict[Any, tuple[Any, ...]]]) -> dict[Any, Any]:
    return {rowid: row[-1] for rowid, row in catalog["Tables"].items()}


def _judge_config(mutant: Mutant, outcome: Outcome, alarms: list[Finding]) -> list[str]:
    differences = _all_differences(mutant, outcome)
    if not differences or alarms:
        return []
    documents = []
    for path in (mutant.root / "server_config.yaml", mutant.base.files.get("server_config.yaml")):
        try:
            document = yaml.safe_load(path.read_bytes()) if path and path.is_file() else None
        except (yaml.YAMLError, ValueError, RecursionError):
            document = None
        documents.append(document if isinstance(document, dict) else {})
    if all(documents[0].get(k) == documents[1].get(k) for k in ("storage", "wal", "general")):
        return [f"the configuration means the same, but: {_summary(differences)}"]
    return _only_stored(mutant, outcome)
