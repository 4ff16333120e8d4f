"""Into Milvus 1.x: a new data directory written from nothing, or a server that runs."""
