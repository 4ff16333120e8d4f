"""Faiss indexes as a source: `source` decides how one is read, `pool` and `worker` ask Faiss itself in processes of its own."""
