"""`Journal`: the finished parts of a sweep in one folder, so that a killed sweep continues where it stopped.

1. The first process that opens a folder writes its `manifest.json`: the key (everything that the numbers depend on) and
   the plan (how the sweep is divided). Later processes get the stored plan, or are refused if their key differs.
2. A part (a chunk of values, a block of runs) is one Parquet file. It is written under a temporary name, synced and
   renamed, so that a file with its final name is complete.
3. The file's footer has a checksum of the manifest, the part's name and the file's bytes: a file that is damaged, or
   belongs to another sweep, is ignored. The same columns give the same bytes, so that it does not matter which of two
   processes wrote last.
4. A temporary file is locked while its process lives. Temporary files without a lock are removed when the journal is
   opened again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.errors import ConfigError, OutputError
from interp.files.checksums import BLANK, is_sound, sealed
from interp.files.whole_files import DESKTOP_FILES, PARTIAL, partial_file, read_regular, remove_leftovers
from interp.version import __version__

FORMAT = "interp.Journal 1"
MANIFEST = "manifest.json"
PART = re.compile(r"[a-z]+-[0-9]+")
SUFFIX = ".parquet"
DIGEST = re.compile(r"[0-9a-f]{32,}")
FULL = {
    errno.ENOSPC: ("disk full", "free some space"),
    errno.EDQUOT: ("disk quota used up", "free some space"),
    errno.EFBIG: ("file size limit reached", "raise it (ulimit -f)"),
    errno.EIO: ("the disk failed", "check it"),
}
NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


@dataclass(frozen=True)
class Journal:
    """The finished parts of one sweep; make it with `Journal.open`.

    A part is named by its kind and number, such as `chunk-00012` or `runs-00000`.

    Attributes:
        folder: its folder.
        key: what the numbers depend on.
        plan: how the sweep is divided, as the first process stored it, in plain JSON values. If it has a number
            `chunks`, messages say how many of them are finished.
        digest: SHA-256 of the manifest.
    """

    folder: Path
    key: Mapping[str, str]
    plan: Mapping[str, Any]
    digest: str

    @classmethod
    def open(cls, folder: str | Path, key: Mapping[str, str], plan: Mapping[str, Any]) -> Journal:
        """Start a journal in a new or empty folder, or continue the one that is there.

        Args:
            folder: made with its parents if it is missing.
            key: everything that the numbers depend on, by name: digests, versions, names.
            plan: how to divide the sweep if the journal is new; otherwise the stored plan is used.

        Raises:
            OutputError: the folder cannot be written, holds something else or a sweep with another key (the message
                says which parts differ), or its manifest is damaged.
        """
        folder = Path(os.path.expanduser(folder)).absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
            if not (folder / MANIFEST).exists():
                _refuse_strangers(folder)
                _write(folder / MANIFEST, _manifest(key, plan), publish=_first)
            content = read_regular(folder / MANIFEST)
        except OutputError:
            raise
        except (FileExistsError, NotADirectoryError):
            raise OutputError(f"{folder} cannot hold a sweep: it, or a folder above it, is a file") from None
        except ValueError as error:  # a path with a NUL
            raise OutputError(f"{str(folder)!r} cannot hold a sweep: {error}; give another --out") from None
        except OSError as error:
            fault, remedy = FULL.get(error.errno or 0, (error.strerror or str(error), "give another --out"))
            raise OutputError(f"{folder} cannot hold a sweep: {fault}; {remedy}") from error
        manifest = _read_manifest(content, folder)
        _refuse_other_key(manifest["key"], key, folder)
        return cls(folder, manifest["key"], manifest["plan"], manifest["sha256"])

    def finished(self) -> set[str]:
        """The parts that are on disk and undamaged; reads and checks every file.

        Raises:
            OutputError: a folder has the name of a part.
        """
        names = {name.removesuffix(SUFFIX) for name in os.listdir(self.folder) if name.endswith(SUFFIX)}
        parts = {name for name in names if PART.fullmatch(name)}
        for part in sorted(parts):
            if (place := self.folder / f"{part}{SUFFIX}").is_dir():  # a file could not replace it
                raise OutputError(
                    f"{place} is a folder where a file of a sweep belongs: remove it, or give another --out"
                )
        return {part for part in parts if self._content(part) is not None}

    def write(self, part: str, columns: Mapping[str, np.ndarray]) -> None:
        """Write a part, whole or not at all; an existing part is replaced.

        Args:
            part: its name, such as `chunk-00012`.
            columns: name -> numbers or bools [rows], all of the same length.

        Raises:
            OutputError: the disk is full or fails; the message says how many chunks are kept.
            ConfigError: a part or a column that cannot be stored.
        """
        if not PART.fullmatch(part):
            raise ConfigError(f"{part!r} is not a part's name; expected a kind and a number, such as 'chunk-00012'")
        content = _parquet(columns)
        try:
            _write(self.folder / f"{part}{SUFFIX}", sealed(content, salt=self._salt(part)), publish=os.replace)
        except OSError as error:
            fault, remedy = FULL.get(error.errno or 0, (error.strerror or str(error), "fix this"))
            raise OutputError(
                f"{fault} while writing {part} to {self.folder}: {self._safe()}; {remedy} and run the same again"
            ) from error

    def read(self, part: str) -> dict[str, np.ndarray]:
        """The columns of a finished part, bit for bit as they were written.

        Raises:
            OutputError: the part is missing or damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        content = self._content(part)
        if content is None:
            raise OutputError(f"{part} is missing from {self.folder} or damaged; run the same again to compute it")
        table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        return {name: table[name].to_numpy() for name in table.column_names}

    def _content(self, part: str) -> bytes | None:
        """The bytes of a part's file; None if it is missing or damaged."""
        try:
            content = read_regular(self.folder / f"{part}{SUFFIX}")
        except OSError:
            return None
        return content if is_sound(content, salt=self._salt(part)) else None

    def _salt(self, part: str) -> bytes:
        """What a part's checksum covers besides its bytes: the sweep and the name of the part."""
        return f"{self.digest} {part}\n".encode()

    def _safe(self) -> str:
        """How many chunks are kept, in words."""
        try:
            kept = sum(part.startswith("chunk-") for part in self.finished())
        except OSError:
            return "the folder cannot be read"
        total = self.plan.get("chunks")
        return f"{kept} of {total} finished chunks are kept" if isinstance(total, int) else f"{kept} chunks are kept"


def _parquet(columns: Mapping[str, np.ndarray]) -> bytes:
    """A Parquet file of columns with a blank checksum; with one version of pyarrow equal columns give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {len(values) for values in columns.values() if values.ndim == 1}
    for name, values in columns.items():
        if values.ndim != 1 or values.dtype.kind not in "biuf" or len(rows) != 1:
            raise ConfigError(
                f"column {name!r} is {values.dtype} {list(values.shape)}; expected numbers or bools [rows], as many in "
                "every column"
            )
    sink = pa.BufferOutputStream()
    table = pa.table(dict(columns))
    # Without a dictionary of values, because that would turn different NaNs into one.
    with pq.ParquetWriter(sink, table.schema, compression="zstd", use_dictionary=False, store_schema=False) as file:
        file.write_table(table)
        file.add_key_value_metadata({"checksum": BLANK.decode()})
    return sink.getvalue().to_pybytes()


def _manifest(key: Mapping[str, str], plan: Mapping[str, Any]) -> bytes:
    import pyarrow as pa

    versions = {"interp": __version__, "torch": torch.__version__, "pyarrow": pa.__version__}
    content = {"format": FORMAT, "key": dict(key), "plan": dict(plan), "versions": versions}
    content = json.loads(json.dumps(content))  # as a reader will get it
    return (json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n").encode()


def _digest(content: Mapping[str, Any]) -> str:
    plain = json.dumps({name: content[name] for name in content if name != "sha256"}, sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def _read_manifest(content: bytes, folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
    except ValueError:
        manifest = {"format": FORMAT}
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise OutputError(f"{folder} holds no sweep: its {MANIFEST} belongs to something else; give another --out")
    if manifest.get("sha256") != _digest(manifest):
        raise OutputError(f"{folder / MANIFEST} is damaged: give another --out, or remove the folder")
    return manifest


def _refuse_other_key(stored: Mapping[str, str], key: Mapping[str, str], folder: Path) -> None:
    def shown(keys: Mapping[str, str], name: str) -> str:
        return DIGEST.sub(lambda digest: f"{digest[0][:8]}…", str(keys.get(name, "not there")))

    differing = [name for name in dict.fromkeys([*stored, *key]) if stored.get(name) != key.get(name)]
    if differing:
        changes = ", ".join(f"{name} (was {shown(stored, name)}, is {shown(key, name)})" for name in differing)
        raise OutputError(f"{folder} holds another sweep: {changes}; give another --out, or remove the folder")


def _refuse_strangers(folder: Path) -> None:
    """Refuse a folder without a manifest, unless it holds only temporary files of a killed process."""
    others = sorted(n for n in os.listdir(folder) if not PARTIAL.fullmatch(n) and n not in DESKTOP_FILES)
    if others and not (folder / MANIFEST).exists():  # asked again: another process may have just written it
        names = others[0] if len(others) == 1 else f"{others[0]} and {len(others) - 1} more"
        raise OutputError(f"{folder} holds {names} and no manifest of a sweep; give an empty or a new folder as --out")


def _first(partial: Path, target: Path) -> None:
    """Give a file its final name, unless another process was first."""
    try:
        os.link(partial, target)
    except OSError as error:
        if error.errno in NO_LINKS:
            os.replace(partial, target)  # a file system without links: the last process wins
        elif error.errno != errno.EEXIST:
            raise


def _write(target: Path, content: bytes, *, publish: Callable[[Path, Path], None]) -> None:
    """Write a file under a temporary name, sync it and let `publish` give it its final name."""
    with partial_file(target) as (partial, handle):
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
        publish(partial, target)
    handle = os.open(target.parent, os.O_RDONLY)
    with contextlib.suppress(OSError):  # some file systems cannot sync folders; a lost part is computed again
        os.fsync(handle)
    os.close(handle)
