"""Into Milvus Lite, a Milvus 2.x or 3.x server, or Zilliz Cloud: planned, sent, and compared with the source."""
