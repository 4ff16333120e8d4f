"""A collection is created by one load alone, however many begin at once."""

from __future__ import annotations

from ...errors import TargetError
from .client import Client
from .terms import CollectionPlan


def claim(client: Client, plan: CollectionPlan) -> bool:
    """Creates what is missing of the collection; False where another load has created it meanwhile.

    The mark in the description of the id field tells: of two that create a collection at once a server keeps the first, and
    refuses or passes over the second.
    """

    def is_others() -> bool:
        fields = client.describe(plan.name)["fields"] if plan.mark and client.has(plan.name) else []
        return any(f["name"] == plan.id_field and f.get("description") != plan.mark for f in fields)

    if is_others():
        return False
    try:
        client.create(plan)
    except TargetError:
        if is_others():
            return False
        raise
    return not is_others()
