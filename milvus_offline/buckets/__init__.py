"""Files in a bucket of an object store (`s3://bucket/backup/milvus`), read in place through fsspec.

`fileio` sends here whatever names a URL; nothing else has to know. A folder is listed once, with all below it. Files are
read by ranged requests of some MiB, several in flight where they are read from front to back, and retried. Credentials and the
endpoint come the SDK's usual ways (environment, configuration files, instance roles); nothing here takes or shows one.
"""

from __future__ import annotations

from .objects import SCHEMES, costs, forget, renew
from .paths import BucketPath, is_url, list_once, scan
from .reading import open_binary, open_read, warm
from .writing import Bucket, Upload, size_now

__all__ = [
    "SCHEMES",
    "Bucket",
    "BucketPath",
    "Upload",
    "costs",
    "forget",
    "is_url",
    "list_once",
    "open_binary",
    "open_read",
    "renew",
    "scan",
    "size_now",
    "warm",
]
