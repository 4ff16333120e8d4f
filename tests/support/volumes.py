"""A volume whose files can share blocks: an XFS in a file, mounted where the machine allows it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.absent import absent


@contextlib.contextmanager
def xfs(folder: Path, mib: int = 512) -> Iterator[Path]:
    """The mounted volume; skips, and says what is then not tested, where there is no XFS or no right to mount one."""
    image, place = folder / "xfs.img", folder / "xfs"
    place.mkdir()
    if shutil.which("mkfs.xfs") is None:
        absent("mkfs.xfs is not here (apt-get install xfsprogs): sharing blocks was NOT tested")
    with image.open("wb") as f:
        f.truncate(mib << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True).returncode:
        pytest.skip("no XFS can be mounted on this machine: sharing blocks was NOT tested")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
        image.unlink()


def used(place: Path) -> int:
    """Bytes of the volume that are taken."""
    subprocess.run(["sync", "-f", str(place)], check=True)
    return shutil.disk_usage(place).used
