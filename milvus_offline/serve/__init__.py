"""The gRPC service of Milvus 1.x, read-only, answered from the files of a store whose server is gone."""
