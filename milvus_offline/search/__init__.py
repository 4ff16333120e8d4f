"""Exact search and rows by id over the pieces of any source."""

from .exact import Hits, search
from .lookup import Found, find_rows

__all__ = ["Found", "Hits", "find_rows", "search"]
