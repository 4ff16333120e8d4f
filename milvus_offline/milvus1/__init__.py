"""The bytes of Milvus 1.x: catalog, segments, write-ahead log, index files; a library of its own."""
