"""What lies in a segment's folder: vectors, ids, deletions, bloom filter, index files (FORMAT §4)."""
