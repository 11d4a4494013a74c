"""Whether a NIfTI file is complete. ITK reads a truncated file without a warning, and takes missing voxels for 0."""

import gzip
import math
import struct
import zlib
from pathlib import Path

NIFTI_HEADER = 348  # bytes, of NIfTI-1


def why_incomplete(file: Path) -> str:
    """Why a NIfTI file (``.nii``, ``.nii.gz``) does not have all the voxels that its header announces; "" if it has
    them, and for files of other kinds, which their readers check."""
    is_zipped = file.name.endswith(".nii.gz")
    if not file.is_file() or not (is_zipped or file.suffix == ".nii"):
        return ""
    try:
        with gzip.open(file) if is_zipped else file.open("rb") as stream:
            header = stream.read(NIFTI_HEADER)
            expected = _expected_bytes(header)
            if is_zipped and header and expected is not None and _bytes_zipped(file) == expected % 2**32:
                return ""  # without unzipping it
            found = len(header) + sum(map(len, iter(lambda: stream.read(1 << 20), b"")))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        return f"it is cut short or damaged ({error})"
    if expected is not None and found < expected:
        return f"it is cut short, {found} bytes of {expected}"
    return ""


def _expected_bytes(header: bytes) -> int | None:
    """The size of a NIfTI-1 file according to its header; None if the header does not say."""
    if len(header) < NIFTI_HEADER:
        return NIFTI_HEADER + 1  # longer than what was read
    order = next((order for order in "<>" if struct.unpack_from(f"{order}i", header)[0] == NIFTI_HEADER), None)
    if order is None:
        return None
    count, *sizes = struct.unpack_from(f"{order}8h", header, 40)
    (bits,) = struct.unpack_from(f"{order}h", header, 72)
    (start,) = struct.unpack_from(f"{order}f", header, 108)
    if not 1 <= count <= 7 or bits <= 0 or not start >= NIFTI_HEADER:
        return None
    return int(start) + math.prod(max(1, size) for size in sizes[:count]) * bits // 8


def _bytes_zipped(file: Path) -> int:
    """The size modulo 2^32 of the unzipped content, as a gzip file with a single part states it at its end."""
    with file.open("rb") as stream:
        stream.seek(-4, 2)
        return int(struct.unpack("<I", stream.read(4))[0])
