"""A collection is filled by one load alone, however many begin at once; the parts of one load (`--part`) share it.

Of two that create a collection at once a server keeps the first, and refuses or passes over the second: the mark in the
description of the id field tells whose it is. An empty collection that was there before cannot be marked so. For as long as it
is filled, an alias whose name is the mark names it: each load adds its own first and then looks for those of others, so that of
two that begin at once at least one sees the other. A killed load leaves its alias behind, for `--resume`; a load that begins
anew in the same state folder takes it away.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from pathlib import Path

from ...errors import TargetError
from .client import CLAIM, Client
from .terms import CollectionPlan


def claim(client: Client, plan: CollectionPlan, ended: Collection[str] = ()) -> None:
    """Drops the collection if it is to be made anew, and creates what is missing of it.

    `ended` are aliases of loads that will not go on. Raises TargetError where another load has created it, or is filling it.
    """
    if ended and client.has(plan.name):
        for alias in set(ended).intersection(client.claims(plan.name)):
            client.drop_alias(alias)
    if plan.action == "recreate" and client.has(plan.name):
        for alias in client.claims(plan.name):  # of killed loads
            client.drop_alias(alias)
        client.drop(plan.name)
    if plan.action == "reuse":
        client.create(plan)
        hold(client, plan)
        if plan.mark and client.stored(plan.name):
            raise _taken(client, plan, "has rows by now")
        return

    def is_others() -> bool:
        fields = client.describe(plan.name)["fields"] if plan.mark and client.has(plan.name) else []
        return any(f["name"] == plan.id_field and f.get("description") != plan.mark for f in fields)

    if not is_others():
        try:
            client.create(plan)
        except TargetError:
            if not is_others():
                raise
        if not is_others():
            return
    raise _taken(client, plan, "appeared meanwhile: another load has created it")


def hold(client: Client, plan: CollectionPlan) -> None:
    """Takes an empty collection that was there before, in each run anew. Raises TargetError when another load has it."""
    if plan.action != "reuse" or not plan.mark:
        return
    mine = _alias(plan)
    with contextlib.suppress(TargetError):  # without the right to it, others are still seen
        client.switch_alias(mine, plan.name)
    if others := [a for a in client.claims(plan.name) if a != mine]:
        release(client, plan)
        free = f"{client.connection.python}.drop_alias({others[0]!r})"
        why = f"is being filled by another load, as an alias says; if that load was killed for good, free it in Python: {free}"
        raise _taken(client, plan, why)


def release(client: Client, plan: CollectionPlan) -> None:
    """Gives up what `hold` took, if anything."""
    if plan.action == "reuse" and plan.mark:
        with contextlib.suppress(TargetError):
            client.drop_alias(_alias(plan))


def claims_of(path: Path) -> frozenset[str]:
    """The aliases of the load whose plan was kept at `path`; none where there is no such plan."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        marks = [str(c["mark"]) for c in json.loads(path.read_text(encoding="utf-8"))["collections"]]
        return frozenset(CLAIM + mark.rpartition(" ")[2] for mark in marks if mark)
    return frozenset()


def _alias(plan: CollectionPlan) -> str:
    return CLAIM + plan.mark.rpartition(" ")[2]


def _taken(client: Client, plan: CollectionPlan, why: str) -> TargetError:
    return TargetError(
        f"{client.connection.name}: collection {plan.name!r} {why}. Wait for that one, or cut the load with --part if several "
        "machines are to fill it"
    )
