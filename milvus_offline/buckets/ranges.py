"""Ranged requests to object stores: parts of objects, and by what a version of an object is told from a later one.

S3 and Azure answer with the ETag that they list. Google is asked for the generation that it listed, and no longer has it when
another object took its place.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

GOOGLE = ("gs", "gcs")


class Part(NamedTuple):
    """What was asked for of an object: bytes, how many they are (nothing is read of more), and the object's ETag, '' where that
    is not told."""

    data: bytes
    length: int
    tag: str


def tag_of(scheme: str, info: dict[str, Any]) -> str:
    """What a listing calls the contents of an object; '' where it says nothing."""
    found = info.get("ETag" if scheme == "s3" else "generation" if scheme in GOOGLE else "etag")
    return str(found or "").strip('"')


def read_part(scheme: str, fs: Any, key: str, start: int, end: int, tag: str) -> Part:
    """Bytes start..end-1 of an object that was listed with this tag. Raises what the SDK raises."""
    if scheme == "s3":
        return _of_s3(fs, key, start, end)
    if scheme in GOOGLE:
        return _whole(fs.cat_file(key, start=start, end=end, generation=tag or None))
    return _of_azure(fs, key, start, end)


def is_listed(scheme: str, fs: Any, key: str, tag: str) -> bool:
    """Whether a new listing has the object with this tag."""
    if scheme != "s3":
        return any(tag_of(scheme, info) == tag for info in fs.ls(key, detail=True))
    from fsspec.asyn import sync

    bucket, _, name = key.partition("/")

    async def get() -> bool:
        answer = await fs._call_s3("list_objects_v2", Bucket=bucket, Prefix=name, MaxKeys=1)
        return any(o["Key"] == name and tag_of("s3", o) == tag for o in answer.get("Contents", ()))

    return cast(bool, sync(fs.loop, get))


def _whole(data: bytes, tag: str = "") -> Part:
    return Part(data, len(data), tag)


def _of_s3(fs: Any, key: str, start: int, end: int) -> Part:
    from fsspec.asyn import sync

    bucket, _, name = key.partition("/")

    async def get() -> Part:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=name, Range=f"bytes={start}-{end - 1}")
        body, length = answer["Body"], int(answer["ContentLength"])
        try:
            return Part(await body.read() if length <= end - start else b"", length, tag_of("s3", answer))
        finally:
            body.close()

    return cast(Part, sync(fs.loop, get))


def _of_azure(fs: Any, key: str, start: int, end: int) -> Part:
    from azure.core.exceptions import ResourceNotFoundError
    from fsspec.asyn import sync

    container, _, name = key.partition("/")

    async def get() -> Part:
        async with fs.service_client.get_blob_client(container=container, blob=name) as client:
            try:
                stream = await client.download_blob(offset=start, length=end - start)
            except ResourceNotFoundError as e:
                raise FileNotFoundError(key) from e
            return _whole(await stream.readall(), str(stream.properties.etag or "").strip('"'))

    return cast(Part, sync(fs.loop, get))
