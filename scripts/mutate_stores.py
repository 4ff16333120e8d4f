"""Damages copies of the real stores under fixtures/ in thousands of ways and tells where the reader answers wrongly.

    python scripts/mutate_stores.py --count 10000 --seed 0 --jobs 2
    python scripts/mutate_stores.py --case crash_wal:mxlog-damaged:4711

Every failure is printed with its case, which reproduces it; at the end stands what became of each kind of damage. A run stopped
at seed n goes on with --seed n.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(HOME), str(HOME / "tests")]

from support.mutate import Bench, Case, Result, case_of  # noqa: E402

EXIT_CODES = {0, 1, 3, 4}


def through_cli(bench: Bench, case: Case) -> list[str]:
    """Inspects and exports a damaged store the way a person does, in a process of its own."""
    problems = []
    with bench.mutant(case) as mutant, tempfile.TemporaryDirectory() as out:
        catalog = ["--catalog", str(mutant.root / mutant.base.dump)] if mutant.base.dump else []
        root = str(mutant.root)
        for command in (
            ["inspect", root, "--json"],
            ["verify", root, "--json"],
            ["export", root, f"{out}/x", "--salvage", "all", "-q"],
        ):
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "milvus_offline", *command, *catalog], capture_output=True, timeout=120, cwd=HOME
                )
            except subprocess.TimeoutExpired:
                problems.append(f"{command[0]}: hangs")
                continue
            if done.returncode not in EXIT_CODES or b"Traceback" in done.stderr:
                problems.append(f"{command[0]}: exit code {done.returncode}, {done.stderr[-600:].decode(errors='replace')}")
            elif "--json" in command and done.returncode != 1:
                json.loads(done.stdout)
    return problems


def work(first: int, count: int, step: int, only: str, cli_every: int, failures: multiprocessing.Queue[Result]) -> None:
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        bench = Bench(Path(folder))
        for seed in range(first, first + count, step):
            case = case_of(seed, only)
            number = seed // step
            result = bench.run(case, measured=number % 16 == 0, thorough=number % 4 == 0)
            if cli_every and number % cli_every == 0:
                result.problems += through_cli(bench, case)
            failures.put(result)


VERDICTS = ("equal", "reported", "refused", "silent")


def table(verdicts: dict[str, Counter[str]]) -> str:
    """What became of each kind of damage: rows as before it, other rows and a finding, a store that is refused, other rows
    and not a word."""
    width = max(map(len, verdicts), default=0)
    lines = [f"{'kind':{width}}" + "".join(f"{v:>10}" for v in VERDICTS)]
    lines += [f"{kind:{width}}" + "".join(f"{found[v]:10}" for v in VERDICTS) for kind, found in sorted(verdicts.items())]
    total: Counter[str] = sum(verdicts.values(), Counter())
    return "\n".join([*lines, f"{'':{width}}" + "".join(f"{total[v]:10}" for v in VERDICTS)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cli-every", type=int, default=50, help="every n-th case goes through the command line, too; 0: none")
    parser.add_argument("--only", default="", metavar="PREFIX", help="only recipes whose names begin so, e.g. wal")
    parser.add_argument("--case", action="append", default=[], help="run this case only: store:recipe:seed; repeatable")
    arguments = parser.parse_args()
    if arguments.case:
        failed = 0
        with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
            bench = Bench(Path(folder))
            for text in arguments.case:
                result = bench.run(Case.parse(text), thorough=True)
                print(*([text] + [f"  damage: {d}" for d in result.damage]), sep="\n")
                print(
                    *[f"  {p}" for p in result.problems],
                    f"  {result.verdict}" + f": {result.error}" * bool(result.error),
                    sep="\n",
                )
                failed += bool(result.problems)
        return min(failed, 1)
    began, queue = time.monotonic(), multiprocessing.Queue()
    processes = [
        multiprocessing.Process(
            target=work,
            args=(arguments.seed + i, arguments.count - i, arguments.jobs, arguments.only, arguments.cli_every, queue),
        )
        for i in range(arguments.jobs)
    ]
    for process in processes:
        process.start()
    kinds: Counter[str] = Counter()
    verdicts: dict[str, Counter[str]] = defaultdict(Counter)
    silent: list[str] = []
    for done in range(1, arguments.count + 1):
        while True:
            try:
                answer = queue.get(timeout=5)
                break
            except Exception:
                if not any(p.is_alive() for p in processes):
                    print("a worker died")
                    return 1
        if answer.damage:  # not every store has what a kind of damage needs
            verdicts[answer.case.recipe][answer.verdict] += 1
        if answer.verdict == "silent":
            silent.append(str(answer.case))
        if answer.problems:
            kinds[answer.case.recipe] += 1
            print(f"FAILED {answer.case}", *(f"    damage: {d}" for d in answer.damage[:6]), sep="\n")
            print(*(f"    {p}" for p in answer.problems[:6]), sep="\n", flush=True)
        if done % 500 == 0:
            print(
                f"{done} cases from seed {arguments.seed}, {kinds.total()} failed, {time.monotonic() - began:.0f} s", flush=True
            )
    for process in processes:
        process.join()
    last = arguments.seed + arguments.count - 1
    print(table(verdicts))
    if silent:
        print(f"other rows in silence, e.g. {', '.join(silent[:12])}")
    print(f"{arguments.count} cases, seeds {arguments.seed} to {last}: {kinds.total()} failed {dict(kinds)}")
    return min(kinds.total(), 1)


if __name__ == "__main__":
    sys.exit(main())
