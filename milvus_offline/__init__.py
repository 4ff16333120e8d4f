"""milvus_offline: reads the data of stopped or crashed Milvus 1.x servers straight from disk."""

__version__ = "0.1.0"
