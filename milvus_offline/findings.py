"""Everything that the program may report, in one table; and what stages write their findings to.

`docs/findings.md` is written from `SECTIONS` (`scripts/update_docs.py`). The codes are stable: scripts rely on them.
"""

# long: one table, in which the one who looks a code up finds all of it

from __future__ import annotations

from typing import NamedTuple

from .model import Finding, Severity

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR


class Findings(list[Finding]):
    """What a run noticed, in the order in which it did. Stages are given one and write to it; none rewrites it."""

    def info(self, code: str, where: str, message: str, rows: int | None = None) -> None:
        """Nothing is missing, or a state that was resolved with certainty."""
        self.add(INFO, code, where, message, rows)

    def warning(self, code: str, where: str, message: str, rows: int | None = None) -> None:
        """What came out may be wrong or incomplete; the message says how it was decided."""
        self.add(WARNING, code, where, message, rows)

    def error(self, code: str, where: str, message: str, rows: int | None = None) -> None:
        """Rows, or what belongs to them, are lost or differ."""
        self.add(ERROR, code, where, message, rows)

    def add(self, severity: Severity, code: str, where: str, message: str, rows: int | None = None) -> None:
        """As `info`, `warning` and `error`, where the severity is the outcome of a comparison."""
        self.append(Finding(severity, code, where, message, rows))


class Code(NamedTuple):
    """A kind of finding: what it means, and what helps."""

    name: str
    severities: tuple[Severity, ...]
    meaning: str
    help: str = ""


def _alike(names: tuple[str, ...], severities: tuple[Severity, ...], meaning: str, help: str = "") -> tuple[Code, ...]:
    """Kinds that mean the same for a person."""
    return tuple(Code(name, severities, meaning, help) for name in names)


class Section(NamedTuple):
    title: str
    codes: tuple[Code, ...]


SECTIONS = (
    Section(
        "The store is not whole",
        (
            Code(
                "segment-missing",
                (ERROR,),
                "The catalog lists a segment whose folder is not there.",
                "If it is on a volume that is not mounted, mount it; name secondary roots with `--secondary`.",
            ),
            Code(
                "tables-missing",
                (ERROR,),
                "The folder `tables/` is not there, and all segments with it.",
                "Copy it too, or mount the volume that it is a link to.",
            ),
            Code(
                "secondary-missing",
                (WARNING,),
                "The configuration names a secondary root that is not there.",
                "Mount that volume, or name the root's new place with `--secondary`.",
            ),
            Code(
                "segment-unreadable",
                (ERROR,),
                "The disk refuses to read a segment, or some of its rows (the message names the places); all other rows "
                "are read.",
                "Copy the disk with ddrescue before it gets worse, and read the copy.",
            ),
            Code(
                "disk-refuses",
                (WARNING,),
                "The disk refuses to read files that had to be compared with each other.",
                "Copy the disk with ddrescue before it gets worse, and read the copy.",
            ),
            Code(
                "segment-incomplete",
                (ERROR,),
                "A segment lacks its ids or its vectors, and no index file has them.",
                "Look for the missing file in an older copy of the store.",
            ),
            Code(
                "segment-ambiguous",
                (ERROR,),
                "A segment folder has two files of a kind; none of them is read.",
                "Remove the wrong one in a copy of the store.",
            ),
            Code(
                "file-short",
                (ERROR,),
                "A file ends before its header says; what is there is read.",
                "The copy may have been cut short: compare its size with that of the original, or of an older copy.",
            ),
            Code(
                "rows-lost",
                (ERROR,),
                "The rows that are missing at the end of a short file.",
                "Look for an older copy of the file. `export --lost-ids FILE` lists the ids that are known.",
            ),
            Code(
                "header-wrong",
                (WARNING,),
                "A header contradicts the file's size and the other file; the size is used.",
                "`verify` reads every row; compare with an older copy if there is one.",
            ),
            Code(
                "payload-uneven",
                (WARNING,),
                "A file ends in the middle of a row; whole rows are read.",
                "The copy may have been cut short: compare its size with that of the original.",
            ),
            Code(
                "vectors-restored",
                (WARNING,),
                "The vectors come out of the segment's index file, exact to the bit.",
                "The rows are whole: export them before more of the store is lost.",
            ),
            Code("index-unusable", (INFO,), "An index file could not stand in for lost vectors."),
            Code(
                "foreign-file",
                (INFO,),
                "A segment's folder holds a file that no server wrote, such as a second copy. The server's own files are used.",
            ),
            Code(
                "file-name-differs",
                (WARNING,),
                "A segment's file has another name than the segment, and no segment has that name: it is used.",
                "It was probably renamed by hand: give it its old name back, in a copy of the store.",
            ),
            Code(
                "files-of-another-segment",
                (ERROR,),
                "A segment's folder holds the files of another one. The rows of this segment are lost.",
                "Look for an older copy of this folder.",
            ),
            Code(
                "ids-foreign",
                (ERROR,),
                "The ids in a segment's file are not those of the segment: its bloom filter was made for others.",
                "Look for an older copy of this folder.",
            ),
            Code("file-longer", (WARNING,), "A file of vectors or ids is longer than its header says; its rows are in doubt."),
            *(
                Code(
                    f"deleted-docs-{what}",
                    (WARNING,),
                    f"The list of a segment's deletions {how}. Deletions that its bloom filter knows are applied; other "
                    "deleted rows come back.",
                )
                for what, how in (
                    ("missing", "is missing"),
                    ("short", "is cut"),
                    ("unreadable", "cannot be read, or not all of it"),
                    ("damaged", "lost entries, or is that of another segment"),
                    ("outside", "names rows that the segment does not have"),
                )
            ),
            *_alike(
                ("attribute-missing", "attribute-short"),
                (ERROR,),
                "A hybrid collection's attribute has no file, or too short a one; its values are 0.",
                "Ids and vectors are whole; an older copy of the attribute's file has its values.",
            ),
            Code("attribute-unknown", (INFO,), "An attribute's file that belongs to no field."),
            Code(
                "size-differs",
                (ERROR,),
                "A segment's files are not as large as the catalog says: they were cut, or copied at another time.",
                "Copy the segment again from the original, or look for an older copy.",
            ),
            Code(
                "container-wrong",
                (WARNING,),
                "0.5/0.6: the container of a raw file contradicts its size; the rows are complete.",
                "Nothing is missing; `verify` reads every row.",
            ),
            Code("row-numbers", (WARNING,), "There are no ids; rows are numbered from 0 (`--first-id`, `--ids`)."),
        ),
    ),
    Section(
        "The catalog",
        (
            Code(
                "catalog-damaged",
                (ERROR, WARNING),
                "The database was read page by page; collections or segments may be missing, deleted ones may come back.",
                "Look for an older copy of the catalog, or a dump of it, and name it with `--catalog`.",
            ),
            Code(
                "dump-truncated",
                (ERROR,),
                "The dump ends early; what follows is lost.",
                "Make the dump again; a whole one ends with `-- Dump completed`.",
            ),
            Code(
                "dump-damaged",
                (ERROR,),
                "The dump holds text between its statements that no tool writes, or it contradicts itself.",
                "Make the dump again, or look for another copy.",
            ),
            Code(
                "dump-note",
                (INFO, WARNING),
                "A part of the dump is not of Milvus, or could not be read.",
            ),
            *_alike(
                ("catalog-row-refused", "catalog-row-unreadable"),
                (ERROR,),
                "A row of the catalog has values that cannot be right; it is left out.",
                "Look for an older copy of the catalog, and name it with `--catalog`.",
            ),
            Code(
                "catalog-older",
                (WARNING,),
                "A segment is newer than everything in the catalog, whose `-wal` may be missing.",
                "`--salvage orphans` exports its rows.",
            ),
            Code(
                "table-missing",
                (WARNING,),
                "The catalog lists live segments of a table that it does not describe: it has lost a row.",
                "Look for an older copy of the catalog; `--salvage orphans` exports the rows.",
            ),
            Code(
                "folder-unknown",
                (WARNING,),
                "A folder holds segments of a collection or partition that the catalog has never known: it may be the "
                "catalog of another store, or of another time.",
                "`--catalog` names another one, `--no-catalog` reads the files alone, `--salvage orphans` exports the rows.",
            ),
            Code(
                "log-stranger",
                (WARNING,),
                "Records after the last flush name a collection or partition that the catalog neither knows nor has dropped: "
                "the names are damaged.",
                "`--salvage dropped` exports the rows.",
            ),
            Code(
                "log-unknown",
                (INFO, WARNING),
                "The catalog holds no collection at all, and the log holds rows. Everything was dropped; a warning where the "
                "folders of these collections are still there, so that the catalog must be new and empty.",
                "`--catalog` names the right one, `--no-catalog` reads the log alone, `--salvage dropped` exports the rows.",
            ),
            Code(
                "segment-unknown",
                (WARNING,),
                "A complete segment that the catalog does not list, with rows that are nowhere else.",
                "`--salvage orphans` exports its rows.",
            ),
            Code(
                "put-aside-alone",
                (WARNING,),
                "A segment that the catalog calls put aside for deletion, whose rows no later segment has: no merge did that.",
                "`--salvage to-delete` exports its rows.",
            ),
            Code(
                "copied-while-running",
                (WARNING,),
                "The catalog and the folders were copied at two moments, with a merge between them; each row is read once.",
                "If the server still exists, copy the store again: from a snapshot, or with the server stopped.",
            ),
            Code(
                "catalog-value",
                (WARNING,),
                "A value of the catalog is one that no server writes, or contradicts another row: a bit has flipped.",
                "Look for an older copy of the catalog.",
            ),
            Code(
                "drop-half-done",
                (WARNING,),
                "A collection or partition is marked as dropped, but its segments are not: the server crashed in the middle of "
                "a drop, or the mark is damaged.",
                "`--salvage dropped` exports its rows.",
            ),
            Code("partition-twice", (WARNING,), "Two live partitions have one tag; their rows are put together."),
            Code("tag-encoding", (INFO,), "A tag that was encoded twice is repaired."),
            Code("zombie-partition", (INFO,), "A partition of a dropped collection; it counts as dropped."),
            Code(
                "file-type-unknown",
                (ERROR,),
                "A segment is in a state that no 1.x server knows; it is left out.",
                "Look for an older copy of the catalog, and name it with `--catalog`.",
            ),
            Code(
                "server-running",
                (WARNING,),
                "A server holds the store's lock.",
                "Stop the server, or read a snapshot: files change while they are read.",
            ),
            Code(
                "config-unreadable",
                (INFO,),
                "The store's `server_config.yaml` cannot be read. Use `--catalog`, `--wal` and `--secondary` in its place.",
            ),
            Code("s3-storage", (INFO,), "The server kept segments in S3; the message says which objects to copy where."),
            Code(
                "path-mapped",
                (INFO, WARNING),
                "A path of the configuration does not exist here, or may be another server's; another place is used for it.",
            ),
        ),
    ),
    Section(
        "What a crash left",
        (
            Code("merge-half-done", (INFO,), "A segment is there in two forms; its rows are read once."),
            Code("segment-contained", (INFO, WARNING), "A segment is there in two forms; its rows are read once."),
            Code("compaction-half-done", (INFO,), "A segment is there in two forms; its rows are read once."),
            Code("raw-row-missing", (WARNING,), "The catalog lists only the segment's index; the segment is included."),
            Code("backup-without-index", (WARNING,), "A server would hide these rows; they are included."),
            Code("index-and-raw", (INFO,), "A segment is listed with its index; it is read once."),
            Code(
                "row-id-race",
                (WARNING,),
                "A catalog row was overwritten by that of another segment (a bug of 0.10.4 to 1.1.1).",
            ),
            Code(
                "flush-unrecorded",
                (INFO, WARNING),
                "Rows are in the log and in a segment; they are read once. A restarted server would double them.",
            ),
            Code(
                "partition-flushed",
                (INFO,),
                "Up to 0.9: a restarted server would insert a partition's rows once more; they are read once.",
            ),
        ),
    ),
    Section(
        "What a running server lost",
        (
            Code(
                "flush-lost",
                (WARNING,),
                "Rows that the server acknowledged and then lost, in a flush that failed as a whole or in a segment that its "
                "catalog forgot. They are read from the log; a server would not show them.",
            ),
            Code(
                "segment-forgotten",
                (WARNING,),
                "Acknowledged rows that the server lost are no longer in a log, but in a complete folder that it never "
                "recorded. They are read.",
            ),
            Code(
                "deletes-lost",
                (WARNING,),
                "A delete in the log names rows that are still live in a segment. They are left out.",
                "`--salvage deleted` exports them.",
            ),
            Code(
                "rows-doubled",
                (WARNING,),
                "The server merged a wrong folder, so rows are in segments more often than they were inserted. They are "
                "read once.",
            ),
            Code(
                "log-differs",
                (WARNING,),
                "The log and the segments hold different vectors for the same ids; those of the segments are used.",
                "`--salvage unseen` exports those of the log.",
            ),
            Code(
                "race-undecided",
                (WARNING,),
                "A segment's catalog row was overwritten, so nothing says whether its rows were live. They are left out.",
                "`--salvage orphans` exports them.",
            ),
        ),
    ),
    Section(
        "The log",
        (
            Code(
                "wal-rows",
                (INFO,),
                "Rows or deletions that only the log holds, or lost rows that were found in it. They are applied.",
            ),
            Code(
                "rows-from-log",
                (INFO, WARNING),
                "Rows or deletions that only the log holds, or lost rows that were found in it. They are applied.",
            ),
            Code(
                "wal-deletes",
                (INFO,),
                "Rows or deletions that only the log holds, or lost rows that were found in it. They are applied.",
            ),
            Code("wal-not-replayed", (WARNING,), "`--no-wal` left these rows out.", "Leave `--no-wal` out to have them."),
            Code(
                "wal-lacks-rows",
                (WARNING,),
                "The catalog lists unflushed rows, and the log holds none of them: it was emptied or cut, or is another "
                "server's.",
                "Name the right log with `--wal`.",
            ),
            Code(
                "flush-lsn-wrong",
                (WARNING,),
                "The catalog says that the log was flushed up to a place where no record ends: it is damaged, or the log "
                "is another's.",
                "Name the right log with `--wal`.",
            ),
            Code(
                "wal-cut",
                (ERROR,),
                "A file of the log ends too early; the records at its end are lost.",
                "Copy the log again from the original disk, if it is still there.",
            ),
            Code(
                "wal-missing",
                (INFO, WARNING),
                "There is no log. A warning where the catalog lists unflushed rows, an info where the server had a log before: "
                "if it was stopped in order, nothing is missing.",
                "If the log is in another place, name it with `--wal DIR`.",
            ),
            Code(
                "wal-disabled",
                (INFO, WARNING),
                "The server later ran without a log, so this one is a leftover. If the catalog says otherwise, `--wal` "
                "replays it.",
            ),
            Code(
                "wal-stale",
                (WARNING,),
                "Rows of the log are in segments already, so the server later ran without a log. This one is not replayed.",
                "Name the right log with `--wal DIR`.",
            ),
            Code(
                "wal-gap",
                (WARNING, ERROR),
                "A file in the middle of the log is missing.",
                "Look for the missing file in another copy of the log's folder.",
            ),
            *_alike(
                ("wal-short", "wal-torn", "wal-unreadable"),
                (ERROR,),
                "A file of the log ends early, cannot be read, or holds bytes that are no records; the rows there are lost.",
                "Copy the log again from the original disk, if it is still there.",
            ),
            Code(
                "wal-shape",
                (ERROR,),
                "The log holds records whose vectors do not fit the collection; they are left out.",
                "This may be the log of another store: name the right one with `--wal DIR`.",
            ),
            *_alike(
                ("mxlog-missing", "mxlog-stale", "mxlog-torn", "mxlog-inside"),
                (WARNING,),
                "The list of acknowledged calls is missing, out of date or damaged; the message says what was used.",
                "The last calls before the crash are in doubt: compare them with what the clients were told.",
            ),
        ),
    ),
    Section(
        "`--no-catalog`",
        (
            Code(
                "no-catalog",
                (WARNING,),
                "Names, metrics and indexes are inferred; dropped collections may be among the live ones.",
                "`--catalog` takes a dump that turns up later; `--rename` and `--assume` correct what was inferred.",
            ),
            Code("metric-guessed", (WARNING,), "The metric is not stored anywhere. Set it with `--assume COLLECTION=METRIC`."),
            Code(
                "catalog-meta-json",
                (INFO,),
                "The catalog is a meta.json of milvus-migration: live segments, dimensions and metrics, but no names of "
                "partitions, no indexes, no empty collections. A metadata database, or a dump of one, has these.",
            ),
            Code("partition-unnamed", (WARNING,), "A partition's folder does not say its name. Set it with `--partition-map`."),
            *_alike(
                ("partition-named-by-log", "partition-from-log", "collection-from-log"),
                (WARNING,),
                "The log says which collection or partition these rows belong to; the folders do not.",
            ),
            Code("collection-empty", (WARNING,), "The dimension is not known; the collection is left out."),
            Code(
                "collection-lost",
                (ERROR,),
                "All vectors of a collection are gone; the ids of its rows are left.",
                "Look for an older copy of its `.rv` files.",
            ),
            Code("dated-files", (WARNING,), "Files of 0.5 or 0.6 lie beside segments of a later version; they are not read."),
        ),
    ),
    Section(
        "`--salvage`",
        (
            Code("salvage-copy", (INFO,), "All of these rows are live elsewhere; they are not written again."),
            Code("salvage-unreadable", (INFO,), "Rows that are not live cannot be read."),
            Code(
                "schema-guessed", (INFO,), "The catalog does not describe the rows; their type comes from the sizes of files."
            ),
            Code("salvage-left-out", (INFO,), "The salvaged rows of an export are not read with its live ones."),
        ),
    ),
    Section(
        "`verify` of a store",
        (
            Code(
                "rows-differ",
                (ERROR,),
                "The rows that were read are not those that were counted, or (`--against`) not those of the source.",
                "Export again into another folder, and verify that one.",
            ),
            Code(
                "search-differs",
                (ERROR,),
                "Searches for sampled rows (`--search`) give other ids or distances in the export, or in a target with an "
                "exact index, than in the source, beyond ties and rounding.",
                "Verify without `--search` to see which rows differ, then export again.",
            ),
            Code(
                "vectors-differ",
                (ERROR,),
                "Vectors of a segment differ from those in its index file, which was made from them, or in the log.",
                "One of the two files is damaged: compare both with an older copy.",
            ),
            Code(
                "blocks-lost",
                (ERROR,),
                "Whole disk blocks are zero: this is a copy of a failing disk. Use an older copy if there is one.",
                "`export --lost-ids FILE` lists the rows whose vectors are hit, as far as their ids are whole.",
            ),
            Code(
                "segments-equal",
                (INFO,),
                "Two segments hold the same rows: inserted twice, or doubled by a server that was killed while it flushed.",
            ),
            Code(
                "bloom-misses",
                (ERROR,),
                "Live ids are not in the bloom filter: the ids or the filter are damaged.",
                "Compare the `.uid` file with an older copy.",
            ),
            *_alike(
                ("bloom-missing", "bloom-damaged"),
                (INFO, WARNING),
                "A bloom filter is missing or damaged. No row needs it, but servers up to 1.1.0 do.",
            ),
            Code(
                "row-count-differs",
                (INFO, WARNING),
                "The catalog and the files count different numbers of live rows. Where the catalog counts fewer, "
                "deletions may be lost.",
            ),
            Code(
                "file-differs",
                (ERROR,),
                "A segment's file is longer than its header says.",
                "Compare with an older copy of the segment.",
            ),
            Code(
                "deletes-differ",
                (ERROR,),
                "Deletions of a segment are lost or in doubt; the findings on its `deleted_docs` tell which.",
                "Look for an older copy of its `deleted_docs`.",
            ),
            Code("not-finite", (INFO,), "Vectors hold NaN or infinity; Milvus 2.x refuses these."),
            *_alike(
                ("index-missing", "index-damaged", "index-differs"),
                (WARNING,),
                "An index file is not there, cannot be read, or is not that of its segment; the rows do not depend on it.",
                "No row depends on it: a server builds it again after a `load`.",
            ),
        ),
    ),
    Section(
        "`verify` of an export",
        (
            Code(
                "checksum",
                (ERROR,),
                "Rows changed since the export.",
                "Take another copy of this export, or export again from the store.",
            ),
            *_alike(
                ("file-missing", "file-size", "file-unreadable"),
                (ERROR,),
                "A file is missing, or not as the manifest describes it.",
                "Take another copy of this export, or export again from the store.",
            ),
            Code(
                "structure-differs",
                (ERROR, INFO),
                "The bytes that tell HDF5 what a file of an export holds changed, or cannot be read. Its rows are read without "
                "HDF5, where the manifest says that they lie.",
                "Export again from the store, or write this export anew: `milvus-offline export OLD NEW`.",
            ),
            Code(
                "description",
                (ERROR,),
                "The attributes of an HDF5 file are not as the manifest describes them.",
                "Take another copy of this export, or export again from the store.",
            ),
            Code(
                "manifest-damaged",
                (ERROR,),
                "The manifest is damaged, or was changed.",
                "Take another copy of this export, or export again from the store.",
            ),
            *_alike(
                ("partition-missing", "partition-unknown"),
                (ERROR,),
                "`--against`: only one of the two has this partition.",
                "If both were made with the same options (`-c`, `-p`, `--rename`), export again.",
            ),
            Code(
                "schema-differs",
                (ERROR,),
                "`--against`: metric, dimension or index differ.",
                "If both were made with the same options (`-c`, `-p`, `--rename`), export again.",
            ),
            Code("not-selected", (INFO,), "`--against`: partitions that `-c`, `-p` or `--exclude` left out of the export."),
            Code("linked-unchecked", (INFO,), "A linked file has no checksums; `--against` compares its rows."),
        ),
    ),
    Section(
        "Writing files",
        (
            Code("link-copied", (INFO,), "A partition could not be linked; it is copied."),
            Code("attributes-left-out", (WARNING,), "The target keeps no attributes, or no texts."),
        ),
    ),
    Section(
        "Files of other programs as the source",
        (
            Code(
                "rows-never-written",
                (ERROR,),
                "Rows were never written, or the file that holds them is missing. HDF5 would show zeros; they are left out.",
                "Look for a complete copy, or for the file that was not copied.",
            ),
            Code(
                "rows-unreadable",
                (ERROR,),
                "Rows of an HDF5 file, an array or a file of vectors cannot be read: the disk refuses their bytes, or a "
                "compressed chunk is damaged (the message names the places). They are left out, all others are read.",
                "Look for a complete copy of the file. Where the disk refuses it, copy the disk with ddrescue before it gets "
                "worse.",
            ),
            Code(
                "rows-look-unwritten",
                (WARNING,),
                "The last rows of a file are zeros with the id 0: its writer may have been interrupted.",
                "Compare the count with what its writer reported.",
            ),
            Code(
                "taken-as-bits",
                (INFO, WARNING),
                "uint8 was read as bits; in another layout than MilvusDM's this may be wrong.",
                "If they are numbers: `--vector-type float`, or `--metric L2`.",
            ),
            Code(
                "task-note",
                (INFO,),
                "A key of the task file is ignored, as MilvusDM did, or a value of it was corrected.",
            ),
            Code("columns-chosen", (INFO,), "Which datasets, arrays or columns are read as vectors and ids."),
            Code("ids-not-numbers", (INFO,), "Ids that are no whole numbers were left out, as `--ids auto` or `row` says."),
            Code("metric-of-file", (INFO,), "The metric comes from the distance that the file names."),
            Code(
                "metric-unknown",
                (WARNING,),
                "A file in MilvusDM's folder that no yaml describes: its metric is not known.",
                "`--metric` sets it.",
            ),
            Code("beyond-float32", (WARNING,), "`--beyond-float32 inf`: numbers that float32 cannot hold became infinity."),
            Code("documents-differ", (WARNING,), "LangChain: index.pkl and index.faiss have different numbers of rows."),
            Code(
                "converted", (INFO,), "Numbers of another type became float32, or bits; the message says whether that rounds."
            ),
            Code("no-ids", (INFO,), "The files have no ids: the target makes them, or row numbers are used."),
        ),
    ),
    Section(
        "A Faiss index as the source",
        (
            Code(
                "faiss-lossy",
                (WARNING,),
                "The index holds only approximations of the vectors; these are read, as `--lossy` says.",
            ),
            Code(
                "faiss-rounded",
                (INFO,),
                "The index rounded the vectors to 16-bit or 8-bit numbers; these come out exactly.",
            ),
            Code(
                "faiss-transformed",
                (WARNING,),
                "The index transformed the vectors, which cannot be undone: they are read as it holds them.",
            ),
            Code(
                "faiss-transform-undone",
                (INFO,),
                "The index rotated the vectors, which was undone; the message has the measured error.",
            ),
            Code(
                "faiss-row-count",
                (WARNING,),
                "The header of the index gives another number of rows than the index holds.",
                "The file may not have been copied whole: compare its size with that of the original.",
            ),
            Code("faiss-duplicates-lost", (ERROR,), "The index keeps rows as duplicates of others, and has lost those."),
            *_alike(
                ("faiss-lists-elsewhere", "faiss-lists-differ"),
                (INFO, WARNING),
                "The inverted lists were read from another file; it may be that of another index.",
            ),
            Code("faiss-trailing-bytes", (INFO,), "Bytes after the end of the index were not read."),
            Code(
                "faiss-metric",
                (INFO, WARNING),
                "Milvus does not have the metric of the index. Choose one with `--metric`.",
            ),
        ),
    ),
    Section(
        "`load`",
        (
            *_alike(
                ("verify-count", "verify-rows"),
                (ERROR,),
                "The target does not hold the rows that were sent.",
                "Look at the server's log, then load again with `--mode overwrite`.",
            ),
            Code("verify-limited", (INFO,), "Not everything could be verified; the message says what was left out."),
            Code("import-faster", (INFO,), "A bulk import (`--import-to`) would take minutes less, by the plan's estimate."),
            Code("import-staged", (INFO,), "Files for a bulk import were written, and not imported yet (`--import-stage`)."),
            Code(
                "search-recall",
                (INFO,),
                "`verify TARGET --against SOURCE --search N`: how many of the true nearest rows the target's index finds.",
            ),
            *_alike(("metric-changed", "metric-assumed"), (INFO,), "The metric that the collection gets in the target."),
            Code("unit-vectors", (INFO,), "Sampled vectors have length 1: COSINE would rank as IP does."),
            Code(
                "index-changed",
                (INFO, WARNING),
                "The target has another index, or none; the rows are there.",
            ),
            Code(
                "index-refused",
                (INFO, WARNING),
                "The target has another index, or none; the rows are there.",
                "The rows are there: build the index in the target by hand.",
            ),
            Code(
                "index-unknown",
                (INFO, WARNING),
                "The target has another index, or none; the rows are there.",
            ),
            Code(
                "index-unfit",
                (INFO, WARNING),
                "The target has another index, or none; the rows are there.",
                "The rows are there: build the index in the target by hand.",
            ),
            *_alike(
                ("index-incomplete", "index-file-size"),
                (INFO, WARNING),
                "The target has another index, or none; the rows are there.",
            ),
            Code("nonfinite-skipped", (ERROR,), "Rows with NaN or infinity were left out."),
            *_alike(
                ("duplicates-kept", "duplicates-dropped", "duplicates-collapsed"),
                (INFO, ERROR),
                "What became of rows with equal ids; `--duplicates` chooses.",
            ),
            *_alike(
                ("appended", "skipped", "overwritten", "refused"),
                (INFO, WARNING),
                "What became of a collection that the target had already; `--mode` chooses.",
            ),
            Code("renamed", (INFO,), "A name that the target refuses was written another way, see `--names`."),
            Code("append-replaces", (INFO,), "Milvus Lite replaces rows that have the same id."),
            Code(
                "skip-differs",
                (WARNING,),
                "`--mode skip` left a collection alone, and it differs from the source.",
                "If an earlier load was interrupted, `--resume` it; if not, load with `--mode overwrite`.",
            ),
            Code(
                "load-refused",
                (WARNING,),
                "The rows are in the target, but it does not load the collection into memory.",
                "Give the server more memory, then load it there; or choose another `--index`.",
            ),
            Code(
                "verify-schema",
                (ERROR,),
                "A collection of the target differs from the source's in dimension, type or metric.",
                "If it is another collection, name the right one with `--rename`; `--mode overwrite` replaces it.",
            ),
            Code("alias-switched", (INFO,), "An alias names the new collection, `--switch-alias`."),
            Code("alias-kept", (WARNING,), "`--switch-alias` did not move the alias, as verification found differences."),
            *_alike(
                ("ids-replaced", "id-not-shown"),
                (INFO, WARNING),
                "The target makes its own ids, or does not show one of them.",
            ),
            *_alike(
                ("partitions-merged", "partitions-in-field"),
                (INFO,),
                "The partitions of the source are merged, or their names are kept in a field.",
            ),
            Code("tag-quote", (WARNING,), "A tag holds a quote, which 1.x servers cannot take."),
            *_alike(
                ("server-version", "server-path", "catalog-sql"), (INFO,), "What to know of the server, or of the new store."
            ),
        ),
    ),
)

CODES = {code.name: code for section in SECTIONS for code in section.codes}
