"""What somebody types next, after a load: lines of Python that use the collection."""

from __future__ import annotations

from ...model import VectorType
from .connection import Connection
from .recall import EXACT, SEARCH_PARAMS
from .terms import CollectionPlan


def lines_of(plan: CollectionPlan, connection: Connection) -> tuple[str, ...]:
    """They connect, load the collection, show rows and search; a token is named, not shown."""
    vector = f"[[0.0] * {plan.dimension}]" if plan.vector_type is VectorType.FLOAT else f"[bytes({plan.dimension // 8})]"
    params = SEARCH_PARAMS.get(plan.index.type if plan.index else "", {})
    kind = plan.index.type if plan.index else "FLAT"
    how = f"# how exact {kind} is: milvus-offline verify {connection.name} --against SOURCE --search 100"
    return (
        *([] if kind in EXACT else [how]),
        "from pymilvus import MilvusClient",
        f"client = {connection.python}",
        f"client.load_collection({plan.name!r})",
        f"client.query({plan.name!r}, filter='', limit=3)",
        f"client.search({plan.name!r}, data={vector}, anns_field={plan.vector_field!r}, limit=10, "
        f"search_params={ {'metric_type': plan.metric_type, 'params': dict(params)}!r})",
    )
