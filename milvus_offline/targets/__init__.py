"""Where rows go: one module per kind of target, the two interfaces they implement, and the tables that find them.

A new target is one module and one line: a dataclass with the options it knows and a method `open`, named in `SCHEMES` (targets
of `load`) or in `FORMATS` (files of `export`). An option that the chosen kind does not know, or a value that it does not take,
is refused by one rule (`options_for`), for the command line and for a Python caller alike.
"""

from __future__ import annotations

import contextlib
import importlib
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import UsageError
from ..ledger import Ledger
from ..model import Finding, Source
from ..names import printable
from ..transfer import Advance, Cluster, Progress, Result, Silent, Task
from . import words

# Files ---------------------------------------------------------------------------------------------------------------


class ExportTarget(Protocol):
    """Files in a folder: a target of `export`. Turns a source into tasks, and closes the work when they are done."""

    out: Path
    """The folder, or the place in a bucket."""
    processes: bool
    """Whether its tasks hold the interpreter and so want processes rather than threads."""
    sync: bool
    """Whether what is written is made durable; without it an interrupted export is not gone on with."""
    ledger: Ledger | None
    """What is finished; there after `prepare`."""
    manifest: dict[str, Any]
    """What was written; there after `finish`."""

    def prepare(self, source: Source, *, resume: bool) -> Sequence[Task]:
        """Checks that the whole job is sound, creates what the tasks write into, and returns them in a stable order.

        Nothing is created when something is refused (UsageError, TargetError).
        """

    def settle(self, tasks: Sequence[Task]) -> None:
        """Makes durable what these tasks, which are finished, have written."""

    def finish(self, results: Mapping[str, Result]) -> Sequence[Finding]:
        """Makes the work visible under its final names; the results are those of all tasks, of earlier runs too."""


# Collections of a Milvus ---------------------------------------------------------------------------------------------


class PlannedCollection(Protocol):
    """What becomes of one collection."""

    @property
    def source(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def action(self) -> words.Action: ...
    @property
    def rows(self) -> int: ...
    def summary(self) -> str:
        """Partitions, vectors, metric and index in half a line, for a person."""

    def to_json(self) -> dict[str, Any]: ...


C = TypeVar("C", bound=PlannedCollection, covariant=True)


class Estimate(NamedTuple):
    """What a load will take, without indexes. `network`: bytes a second to the target, None where it was not measured.
    `storing`: bytes a second that a target of its kind stored elsewhere. No times: too little is loaded for them to help."""

    rows: int
    bytes: int
    network: float | None
    storing: float
    seconds: float | None
    verify: str
    verify_rows: int
    """Rows that are read back and compared."""
    verify_seconds: float | None
    limit: float | None = None
    """Bytes a second that the user allows."""

    def held_to(self, rate: float) -> Estimate:
        """The same at `rate` bytes a second at most."""
        return self._replace(seconds=max(self.seconds or 0, self.bytes / rate), limit=rate)


@dataclass(frozen=True)
class LoadPlan(Generic[C]):
    """All decisions of a load, made before anything is created. `target` says what was found there (kind, version)."""

    target: Mapping[str, Any]
    collections: Sequence[C]
    findings: Sequence[Finding]
    estimate: Estimate | None = None

    @property
    def dropped(self) -> list[str]:
        """Collections of the target that go before theirs is created."""
        return [c.name for c in self.collections if c.action == "recreate"]


class LoadTarget(ABC):
    """Where a load goes. `loading.run_load` calls, in this order, `claim`, `plan` (or `recall` when an interrupted load goes
    on), `remember`, `begin`, the tasks, `flush`, `finish`, `prove`, and in any case `close`.

    Every method may raise UsageError and TargetError; before `begin` nothing is created or changed in the target.
    """

    name: str
    """The target as messages name it: without what is secret."""
    where: Sequence[str]
    """Tells the target from others, in the ledger and in the name of the state folder: the same for the same target."""
    jobs: int = 1
    """Tasks at the same time; the last word is spoken after `begin`."""
    verified: words.Verify = "none"
    """What `prove` compares."""
    checked_rows: int = 0
    """Rows that `prove` read back and compared."""
    staged: bool = False
    """Whether rows are only written for a later load, see `milvus.staging`."""
    ledger_name: str = "ledger.jsonl"
    progress: Progress | None = None
    """Shows the phases that take time: `run_load` sets it."""
    workers: Cluster | None = None
    """Workers elsewhere that do what they can of the tasks: `run_load` sets it, where the target takes any."""

    @property
    def takes_workers(self) -> bool:
        """Whether workers elsewhere can do some of the work."""
        return False

    @property
    def home(self) -> Path | None:
        """The folder of the ledger where the target keeps it itself; None: it lies in the user's state folder."""
        return None

    def places(self) -> Sequence[Path]:
        """Folders of this machine that the target writes into; none may lie in the source."""
        return ()

    def claim(self, source: Source, *, resume: bool) -> None:  # noqa: B027 - nothing to do for most
        """Refuses a target that cannot be had."""

    @abstractmethod
    def plan(self, source: Source, folder: Path | None) -> LoadPlan[PlannedCollection]:
        """Asks the target, reads the source where it must, and decides everything. `folder` is the state folder, where large
        amounts may be kept meanwhile; None in a dry run."""

    def key(self) -> Mapping[str, Any]:
        """What a load that goes on must have in common with the one before it, apart from source and target."""
        return {}

    def remember(self, folder: Path) -> None:  # noqa: B027 - nothing to do for most
        """Keeps the plan in the state folder, so that a load that goes on decides nothing anew."""

    def recall(self, source: Source, folder: Path) -> LoadPlan[PlannedCollection]:
        """The plan that `remember` kept. By default it is made again."""
        return self.plan(source, folder)

    @abstractmethod
    def begin(self, source: Source, ledger: Ledger, *, resumed: bool) -> Sequence[Task]:
        """Creates what is missing and returns the tasks in a stable order. What an interrupted load may have done without
        writing it down (see `transfer.UNNOTED_EACH`), its tasks find out or undo."""

    def flush(self) -> None:  # noqa: B027 - nothing to do for most
        """Waits until the target has what was sent."""

    @abstractmethod
    def finish(self, results: Mapping[str, Result]) -> Sequence[Finding]:
        """Indexes, final names: what makes the rows usable. The results are those of all tasks, of earlier runs too."""

    @abstractmethod
    def prove(self, results: Mapping[str, Result]) -> Sequence[Finding]:
        """Looks whether the rows are there; differences are findings `verify-...` of severity ERROR."""

    @contextlib.contextmanager
    def phase(self, what: str, rows: int = 0, nbytes: int = 0) -> Iterator[Advance]:
        """Shows a part of the load that takes time; the function counts rows and bytes, where there are any."""
        shown = self.progress or Silent()
        shown.start(rows, nbytes, 0, 0)
        try:
            shown.now(what)
            yield shown.advance
        finally:
            shown.close()

    def first_use(self) -> Sequence[str]:
        """What somebody types next: lines of Python, or of a shell, that use what was loaded. There after `prove`."""
        return ()

    def compare(self, source: Source, searches: int = 0) -> tuple[int, Sequence[Finding]]:
        """`verify TARGET --against SOURCE`: rows of the source that were looked at, and what the target lacks or has otherwise
        (findings `verify-...` of severity ERROR). Nothing is changed. `searches`: so many sampled rows of each collection are
        searched for on both sides, too."""
        raise UsageError(f"{self.name}: this kind of target cannot be compared with a source")

    def close(self) -> None:  # noqa: B027 - nothing to do for most
        """Lets go of connections; called once, whatever happened."""


# Tables --------------------------------------------------------------------------------------------------------------


class TargetOptions(Protocol):
    """A dataclass whose fields are the options that a kind of target knows, named as on the command line. Where a field's
    type is a Literal, its values are those that the kind takes."""

    def open(self, address: str) -> Any:
        """The target at `address`: a LoadTarget, or for files an ExportTarget. Nothing is created yet."""


class Kind(NamedTuple):
    """A kind of target: how a person writes it, how it is recognised, and (module, class) of its options below this package."""

    example: str
    recognises: Callable[[str], bool]
    module: str
    options: str = "Options"

    def options_class(self) -> type[TargetOptions]:
        found: type[TargetOptions] = getattr(importlib.import_module(f"{__name__}.{self.module}"), self.options)
        return found


def _is_url(address: str) -> bool:
    return address.startswith(("http://", "https://", "tcp://"))


SCHEMES: list[Kind] = [
    Kind("milvus1://HOST:PORT", lambda a: a.startswith("milvus1://"), "milvus1.server"),
    Kind("milvus1:PATH", lambda a: a.startswith("milvus1:"), "milvus1.store"),
    Kind("http(s)://HOST:PORT", _is_url, "milvus.kinds", "MilvusServer"),
    Kind("./some.db", lambda a: "://" not in a and a.endswith(".db"), "milvus.kinds", "MilvusLite"),
]
"""Targets of `load`; the first that recognises an address takes it."""

FORMATS: dict[str, Kind] = {
    "hdf5": Kind("--format hdf5", lambda a: True, "hdf5"),
    "parquet": Kind("--format parquet", lambda a: True, "columnar", "ParquetOptions"),
    "npy": Kind("--format npy", lambda a: True, "columnar", "NpyOptions"),
}
"""Kinds of files that `export` writes."""

FLAGS = {"load": "--load/--no-load", "token": "--ask-token", "sync": "--no-sync"}
"""Options whose name on the command line is another one."""


def scheme_of(address: str) -> Kind:
    """The kind of target that an address means. Raises UsageError."""
    for kind in SCHEMES:
        if kind.recognises(address):
            return kind
    examples = ", ".join(k.example for k in SCHEMES)
    hint = ""
    if "://" not in address:
        host, _, port = address.rpartition(":")
        hint = (
            f"; did you mean http://{printable(address)}?"
            if host and port.isdecimal()
            else f"; did you mean {printable(address)}.db?"
        )
    raise UsageError(f"{_shown(address)}: a target is one of {examples}{hint}")


def _shown(address: str) -> str:
    """An address without what may be a password."""
    scheme, separator, rest = address.partition("://")
    return printable(scheme + separator + rest.rpartition("@")[2])


def open_target(address: str, **options: Any) -> LoadTarget:
    """The target of a load. Raises UsageError for an address that means nothing and for options that do not go with it."""
    kind = scheme_of(address)
    target: LoadTarget = options_for(kind, options, SCHEMES).open(address)
    return target


def options_of(address: str) -> dict[str, Any]:
    """Options that the target of a load knows, with the values they have when nobody names them."""
    return defaults_of(scheme_of(address))


def open_export(out: str, file_format: str = "hdf5", **options: Any) -> ExportTarget:
    """The target of an export into the folder `out`. Raises UsageError for options that do not go with the format."""
    if file_format not in FORMATS:
        raise UsageError(f"format {file_format!r} is unknown; there are: {', '.join(FORMATS)}")
    target: ExportTarget = options_for(FORMATS[file_format], options, list(FORMATS.values())).open(out)
    return target


def options_for(kind: Kind, given: Mapping[str, Any], kinds: Sequence[Kind]) -> TargetOptions:
    """The options of a kind with what was given. Raises UsageError for what does not go with it.

    This is the one rule: an option must be a field of the kind's options, and its value one of the field's where those are
    counted (a Literal). `kinds` are those that the message may name instead.
    """
    made = kind.options_class()
    known = _fields(made)
    for name, value in given.items():
        flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
        if name not in known:
            others = [k.example for k in kinds if k is not kind and name in _fields(k.options_class())]
            hint = f"; it goes with {', '.join(dict.fromkeys(others))}" if others else ""
            raise UsageError(f"{flag} does not go with {kind.example}{hint}")
        field, taken = known[name]
        if taken and value not in taken:
            why = field.metadata.get("why", "")
            there = ", ".join(map(str, taken))
            raise UsageError(f"{flag} {value} does not go with {kind.example}" + (f": {why}" if why else f"; it takes {there}"))
    return made(**given)


def defaults_of(kind: Kind) -> dict[str, Any]:
    """Options of a kind with the values they have when nobody names them."""
    return vars(kind.options_class()()).copy()


def _fields(options: type[Any]) -> dict[str, tuple[Field[Any], tuple[Any, ...]]]:
    """Option -> (field, the values it takes; none where they are not counted)."""
    hints = get_type_hints(options)
    return {f.name: (f, _literals(hints[f.name])) for f in fields(options)}


def _literals(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        parts = get_args(hint)
        found = [value for part in parts for value in _literals(part)]
        return (*found, None) if found and type(None) in parts else ()
    return ()
