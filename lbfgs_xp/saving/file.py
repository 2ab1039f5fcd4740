"""One file with plain data and arrays: written whole or not at all, and checked when it is read.

It is an uncompressed npz file, which `numpy.load` opens: "header" holds the UTF-8 text of a JSON
document; "0", "1", ... the arrays, with their axes in the order in which they lie in memory, which
"axes" in the header names; and "digest" the SHA-256 of all before it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.saving.encoding import on_host

FORMAT = "lbfgs_xp"
VERSION = 1
_HEADER, _DIGEST = "header", "digest"


class Damaged(ValueError):
    """A file that cannot be read; the message says which, and what is wrong."""


# --- writing -----------------------------------------------------------------------------------


def write(path: Path, header: dict[str, Any], arrays: Sequence[Array], keep: int = 1) -> str:
    """Write a file in place of the one at `path`; return its digest.

    The file is complete and on the disk before it gets its name, so that a crash at any moment
    leaves the old file or the new one.

    keep : how many files to keep: the new one and those before it, at path.1, path.2, ...

    Raises
    ------
    OSError
        If it could not be written. What was there is still there, perhaps as path.1, path.2, ...
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            digest = _write_members(file, header, arrays)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):
            os.chmod(name, _mode_for(path))
        for number in range(keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(earlier(path, number - 1), earlier(path, number))
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    _sync_folder(path.parent)
    return digest


def remove_parts(path: Path) -> None:
    """Remove what processes have left that were killed while they wrote a file for this path. No
    other process may be writing one."""
    # Not those of a path that only begins like this one.
    name = re.compile(rf"\.{re.escape(path.name)}\.[^.]+\.part")
    for part in path.parent.glob(".*.part"):
        if name.fullmatch(part.name):
            with contextlib.suppress(OSError):
                part.unlink()


def earlier(path: Path, number: int) -> Path:
    """Where the file is kept that was written `number` files before the newest."""
    return path if number == 0 else path.with_name(f"{path.name}.{number}")


def _mode_for(path: Path) -> int:
    """The permissions of a new file at this path; temporary files have narrower ones."""
    with contextlib.suppress(OSError):
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a crash, where folders can be synchronised."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_members(file: BinaryIO, header: dict[str, Any], arrays: Sequence[Array]) -> str:
    digest = hashlib.sha256()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        axes = []
        # One array at a time reaches the host.
        for place, array in enumerate(arrays):
            host = on_host(array)
            order = _memory_order(host)
            axes.append(order)
            host = host.transpose(order)
            _write_array(archive, str(place), np.asarray(host, order="C"), digest)
        document = {"format": FORMAT, "format_version": VERSION, **header, "axes": axes}
        text = json.dumps(document, allow_nan=False).encode()
        _write_array(archive, _HEADER, np.frombuffer(text, np.uint8), digest)
        found = np.frombuffer(digest.digest(), np.uint8)
        _write_array(archive, _DIGEST, found, hashlib.sha256())
    return digest.hexdigest()


def _memory_order(array: np.ndarray) -> list[int]:
    """The axes of an array in the order of its memory, on which the rounding of sums may depend."""
    return sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))


def _write_array(archive: zipfile.ZipFile, name: str, array: np.ndarray, digest: Any) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)
    _add(digest, name, array)


def _add(digest: Any, name: str, array: np.ndarray) -> None:
    digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
    if array.size:
        digest.update(array.reshape(-1).view(np.uint8).data)


# --- reading -----------------------------------------------------------------------------------


def read(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The header of a file, with its "digest", and the arrays.

    Raises
    ------
    FileNotFoundError
        If there is none.
    Damaged
        If it is not a whole file of this kind.
    """
    try:
        with open(path, "rb") as stream, zipfile.ZipFile(stream) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if not {_HEADER, _DIGEST} <= set(names):
                raise Damaged(f"{path} was not written by lbfgs_xp: it is {_kind(archive)}")
            digest = hashlib.sha256()
            arrays = {}
            for name in names:
                with archive.open(f"{name}.npy") as member:
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
                if name != _DIGEST:
                    _add(digest, name, arrays[name])
        found = arrays.pop(_DIGEST).tobytes()
        header = json.loads(arrays.pop(_HEADER).tobytes())
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the beginning, which a damaged file names
            raise
        raise Damaged(f"{path} is no whole file of lbfgs_xp: {error}") from None
    except KeyError as error:
        raise Damaged(f"{path} was not written by lbfgs_xp ({error} is missing)") from None
    except Damaged:
        raise
    except zipfile.BadZipFile as error:
        foreign = _foreign(path)
        told = f"was not written by lbfgs_xp: it is {foreign}" if foreign else (
            f"is no whole file of lbfgs_xp: {error}"
        )
        raise Damaged(f"{path} {told}") from None
    except (
        zlib.error, struct.error, ValueError, EOFError, RuntimeError, IndexError
    ) as error:
        raise Damaged(f"{path} is no whole file of lbfgs_xp: {error}") from None
    if found != digest.digest():
        raise Damaged(f"{path} is damaged: its digest does not match its contents")
    if header.get("format") != FORMAT:
        raise Damaged(f"{path} was not written by lbfgs_xp")
    if header["format_version"] > VERSION:
        raise Damaged(
            f"{path} has the format {header['format_version']} of a newer lbfgs_xp; this one reads "
            f"up to {VERSION}"
        )
    return {**header, "digest": digest.hexdigest()}, [
        arrays[str(place)].transpose([order.index(axis) for axis in range(len(order))])
        for place, order in enumerate(header["axes"])
    ]


def _kind(archive: zipfile.ZipFile) -> str:
    """What an archive is that has no header of ours."""
    names = archive.namelist()
    if any(name.endswith("/data.pkl") for name in names):
        return "a file of torch.save, which torch.load reads"
    if names and all(name.endswith(".npy") for name in names):
        return "another npz file, which numpy.load reads"
    return "another zip archive"


def _foreign(path: Path) -> str:
    """What a file is that is no archive, as far as its first bytes say; "" if they do not."""
    with open(path, "rb") as stream:
        first = stream.read(6)
    kinds = {
        b"\x80": "a pickle or an old file of torch.save, which torch.load reads",
        b"\x93NUMPY": "an npy file, which numpy.load reads", b"\x89HDF": "an HDF5 file",
    }
    if not first:
        return "empty"
    return next((kind for start, kind in kinds.items() if first.startswith(start)), "")
