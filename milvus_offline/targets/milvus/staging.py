"""Import files that are written now and imported later: `--import-stage` and `--import-commit`.

Several machines write, each its part (`--part i/n`), and leave a list of what they wrote beside the files, last. One machine
commits: it refuses as long as a list is missing, notes that it has begun, and starts the jobs. Names follow from the source's
collections, the target and the options alone, so that all machines mean the same place.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ...errors import TargetError, UsageError
from ...ledger import Ledger
from ...model import Finding, Severity, Source
from ...transfer import Cluster, Result, Task
from .bucket import Bucket
from .bulk import SETS, FileSet, Importer, import_tasks
from .client import Client
from .tasks import LoadTask
from .terms import LoadOptions

FORMAT = "milvus-offline-staged"
_COMMIT = "commit.json"
_PART = re.compile(r"part-(\d+)-of-(\d+)\.json")


def staged_name(source: Source, where: Sequence[str], decisions: LoadOptions, bucket: Bucket) -> str:
    """The folder of a staged import: the same for the same rows, target and options, on every machine."""
    what = {
        "collections": [[c.schema.name, c.has_ids, [[p.name, p.rows] for p in c.partitions]] for c in source.collections],
        "target": list(where),
        "options": asdict(replace(decisions, part=None)),
        "format": bucket.file_format,
    }
    return f"milvus-offline-staged-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Staging:
    """The lists of one staged import, in the folder `name` of the bucket."""

    bucket: Bucket
    name: str
    step: Literal["stage", "commit"]

    def finish(self, part: tuple[int, int], sets: Mapping[str, Result]) -> Finding:
        """Lists a part that is written: its file sets, by the id of their task. Raises TargetError."""
        document = {"format": FORMAT, "version": 1, "part": list(part), "sets": dict(sorted(sets.items()))}
        self.bucket.put(self._path("part-{}-of-{}.json".format(*part)), json.dumps(document).encode())
        several = part[1] > 1
        text = (
            f"{'part {} of {}, '.format(*part) if several else ''}{sum(r['rows'] for r in sets.values()):,} rows in "
            f"{len(sets):,} file sets; they are not in the target until {'all parts are staged and ' if several else ''}"
            "the same command runs once with --import-commit"
        )
        return Finding(Severity.INFO, "import-staged", self.name, text)

    def read(self) -> dict[str, Result]:
        """All file sets. Raises UsageError while parts are missing, TargetError for a list that cannot be read."""
        found: dict[int, set[int]] = {}
        for match in filter(None, map(_PART.fullmatch, self.bucket.names(self.name))):
            found.setdefault(int(match[2]), set()).add(int(match[1]))
        if not found:
            raise UsageError(
                f"--import-commit: nothing is staged in {posixpath.join(self.bucket.folder, self.name)} for this source, "
                "target and these options: run the same command with --import-stage first"
            )
        if len(found) > 1:
            raise UsageError(
                f"--import-commit: staged in {' and in '.join(map(str, sorted(found)))} parts: remove one of the two"
            )
        ((of, parts),) = found.items()
        if missing := sorted(set(range(1, of + 1)) - parts):
            raise UsageError(f"--import-commit: of {of} parts these are not staged yet: {', '.join(map(str, missing))}")
        sets: dict[str, Result] = {}
        for number in sorted(parts):
            sets |= self._read(f"part-{number}-of-{of}.json")["sets"]
        return sets

    def committed_by(self) -> str | None:
        """Which run has begun to commit; None: none."""
        return str(self._read(_COMMIT)["run"]) if _COMMIT in self.bucket.names(self.name) else None

    def commit(self, run: str) -> None:
        """Notes that `run` commits. Raises UsageError when another one does, or did and was interrupted."""
        if (other := self.committed_by()) is None:
            self.bucket.put(self._path(_COMMIT), json.dumps({"format": FORMAT, "version": 1, "run": run}).encode())
            other = self.committed_by()
        if other != run:
            raise UsageError(
                f"--import-commit: another run has begun to commit this ({posixpath.join(self.bucket.folder, self.name)}): "
                "go on there with --resume; a second commit would double the rows"
            )

    def remove(self) -> None:
        """The lists, when all is imported."""
        names = self.bucket.names(self.name)
        self.bucket.remove([self._path(n) for n in sorted(names) if n == _COMMIT or _PART.fullmatch(n)])

    def _path(self, name: str) -> str:
        return posixpath.join(self.name, name)

    def _read(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        try:
            document = json.loads(self.bucket.get(path))
            if document["format"] == FORMAT and document["version"] == 1:
                return dict(document)
        except (ValueError, KeyError, TypeError) as e:
            raise TargetError(f"{posixpath.join(self.bucket.folder, path)}: is no list of staged files ({e})") from e
        raise TargetError(f"{posixpath.join(self.bucket.folder, path)}: is no list of staged files of this version")


def jobs_of(  # many: what imports, from where, and what is known of it
    tasks: Sequence[LoadTask],
    client: Client,
    bucket: Bucket,
    ledger: Ledger,
    staging: Staging | None,
    *,
    resumed: bool,
    at_once: int,
    workers: Cluster | None = None,
) -> Sequence[Task]:
    """`tasks`, a file set each, as import jobs; or of those what `staging` wants: files alone, or jobs for what is there.

    `at_once`: jobs that the server has at the same time.
    Raises UsageError when it cannot be, TargetError when the server does not see the bucket.
    """
    run = str(ledger.done["begun"]["at"])
    name = f"milvus-offline-{hashlib.sha256(str(ledger.path).encode()).hexdigest()[:8]}-{run}"
    staged = None
    if staging:
        name = staging.name
        if staging.step == "commit":
            staged = staging.read()
        elif staging.committed_by():
            raise UsageError(f"--import-stage: {name} is being imported: wait until --import-commit has ended")
    importer = Importer(client, bucket, ledger, name, staged, workers, at_once)
    if not resumed and tasks:
        importer.check_seen(tasks[0].job.plan.name)
    if staging and staging.step == "commit":
        staging.commit(run)
    if staging and staging.step == "stage":
        return [FileSet(t, importer) for t in tasks]
    if "sets" not in ledger.done:  # a later run must cut the same jobs
        ledger.add({"sets": {"each": SETS if importer.service.takes_sets else 1}})
    return import_tasks(tasks, importer, ledger.done["sets"]["each"])
