"""One file from the network: resumed where it broke off, believed only by its hash.

A file grows under ``NAME.part`` and gets its name when its SHA-256 begins as published. Which
server sent which part of it does not matter, for the same reason: no ETag has to be remembered,
and a file begun at one mirror goes on at the next. What does not have the hash is thrown away.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import urlsplit

from models.errors import ModelError

__all__ = ["FetchError", "download"]

BLOCK_BYTES = 1 << 18
MAX_FILE_BYTES = 2_000_000_000  # the largest published file has well under 1 GB
SPARE_BYTES = 64_000_000  # what a disk must keep free
TIMEOUT_SECONDS = 30.0
ATTEMPTS = 4  # at one address, in a row, without a byte gained
MAX_ATTEMPTS = 100  # at one address
RETRIED_STATUSES = (408, 425, 429, 500, 502, 503, 504)
PAUSE_SECONDS = 1.0  # before an address is tried again


class FetchError(ModelError):
    """A file could not be had from anywhere; the message says why, address by address."""


class _Unusable(Exception):
    """An address does not help; ``args[0]`` says why. What was received so far stays."""


class _Broken(Exception):
    """A transfer broke off; ``args[0]`` says why. Going on may help."""


def download(
    urls: Sequence[str],
    destination: Path,
    sha256_prefix: str,
    progress: Callable[[int, int | None], None] | None = None,
    note: Callable[[str], None] | None = None,
    *,
    timeout_seconds: float | None = None,
    limit_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Get one file, from the first of several addresses that has it.

    Parameters
    ----------
    urls : sequence of str
        Addresses of http or https, tried in this order.
    destination : Path
        Where the file appears when it is whole and has the hash; unfinished it is
        ``destination.part``, which the next call goes on with.
    sha256_prefix : str
        How the file's SHA-256 begins, in lower-case hexadecimal digits.
    progress : callable, optional
        Called with the bytes that are there, and all bytes or None.
    note : callable, optional
        Called with a line for each address that did not help.
    timeout_seconds : float, optional
        How long a server may stay silent; by default :data:`TIMEOUT_SECONDS`.
    limit_bytes : int
        What the file may have at most.

    Raises
    ------
    FetchError
        No address had it (one line with each address' reason), or the disk does not take it;
        what came so far is kept.
    OSError
        The folder cannot be made or read.
    """
    part = destination.with_name(f"{destination.name}.part")
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.is_file():
        if _sha256(destination).startswith(sha256_prefix):
            return
        destination.unlink()
    transfer = _Transfer(
        part, sha256_prefix, progress, timeout_seconds or TIMEOUT_SECONDS, limit_bytes
    )
    reasons = []
    for url in urls:
        try:
            transfer.run(url)
        except _Unusable as error:
            reasons.append(f"{_server(url)}: {error}")
            if note is not None:
                note(f"{destination.name} is not to be had from {reasons[-1]}")
            continue
        part.replace(destination)
        return
    kept = part.stat().st_size if part.is_file() else 0
    told = f"; {kept / 1e6:.1f} MB are kept, and the next try goes on from there" if kept else ""
    told += "; check the connection, or name another address in STEMBRIDGE_MIRRORS"
    raise FetchError(
        f"cannot get {destination.name}: {'; '.join(reasons) or 'there is no address'}{told}"
    )


class _Transfer:
    """One file on its way, from any number of addresses."""

    def __init__(
        self,
        part: Path,
        sha256_prefix: str,
        progress: Callable[[int, int | None], None] | None,
        timeout_seconds: float,
        limit_bytes: int,
    ) -> None:
        self._part = part
        self._sha256_prefix = sha256_prefix
        self._progress = progress
        self._timeout_seconds = timeout_seconds
        self._limit_bytes = limit_bytes

    def run(self, url: str) -> None:
        """Complete the part from an address; ``_Unusable`` where it does not help."""
        without_gain = 0
        for _ in range(MAX_ATTEMPTS):
            resumed_bytes = self._kept_bytes()
            if resumed_bytes and self._is_right():  # interrupted after its last byte
                return
            try:
                self._receive(url, resumed_bytes)
            except _Broken as error:
                without_gain = 0 if self._kept_bytes() > resumed_bytes else without_gain + 1
                if without_gain >= ATTEMPTS:
                    raise _Unusable(*error.args) from None
                time.sleep(PAUSE_SECONDS)
                continue
            if self._is_right():
                return
            self._part.unlink()
            if not resumed_bytes:
                raise _Unusable("it sent something else (wrong SHA-256)")
            # What was there before may be at fault: once more, from the start.
        raise _Unusable(f"it broke off {MAX_ATTEMPTS} times")

    def _receive(self, url: str, resumed_bytes: int) -> None:
        """Append to the part what the server sends, up to the end that it told."""
        with _request_errors(), self._open(url, resumed_bytes) as response:
            if resumed_bytes and response.status == http.client.PARTIAL_CONTENT:
                total_bytes = _total_of_range(response, resumed_bytes)
                done_bytes = resumed_bytes
            elif response.status == http.client.OK:
                total_bytes, done_bytes = _length(response), 0  # from the start, asked or not
            else:
                raise _Unusable(f"it answered with status {response.status}")
            self._check_room(total_bytes, done_bytes)
            with self._opened("ab" if done_bytes else "wb") as file:
                self._tell(done_bytes, total_bytes)
                while block := response.read(BLOCK_BYTES):
                    done_bytes += len(block)
                    if done_bytes > self._limit_bytes:
                        raise _Unusable("it sends more than such a file can have")
                    self._write(file, block)
                    self._tell(done_bytes, total_bytes)
        if total_bytes is not None and done_bytes < total_bytes:
            raise _Broken("the connection broke off")

    def _open(self, url: str, resumed_bytes: int) -> Any:
        headers = {"User-Agent": "stembridge", "Accept-Encoding": "identity"}
        if resumed_bytes:
            headers["Range"] = f"bytes={resumed_bytes}-"
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - see _opener
        try:
            return _opener().open(request, timeout=self._timeout_seconds)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and resumed_bytes:
                self._part.unlink()  # it is no shorter than the file, and is not the file
                raise _Broken("it has no more than was there") from None
            if error.code in RETRIED_STATUSES:
                raise _Broken(f"it answered {error.code} {error.reason}") from None
            if 300 <= error.code < 400:
                raise _Unusable("it leads to an address that is not followed") from None
            raise _Unusable(f"it answered {error.code} {error.reason}") from None

    def _check_room(self, total_bytes: int | None, done_bytes: int) -> None:
        if total_bytes is None:
            return
        if not done_bytes <= total_bytes <= self._limit_bytes:
            raise _Unusable(f"its file has {total_bytes / 1e6:.0f} MB, which cannot be right")
        # As much again for the model that is made of it.
        missing_bytes = 2 * total_bytes - self._kept_bytes() + SPARE_BYTES
        free_bytes = shutil.disk_usage(self._part.parent).free
        if free_bytes < missing_bytes:
            raise FetchError(
                f"{self._part.parent} has {free_bytes / 1e6:.0f} MB free, and"
                f" {missing_bytes / 1e6:.0f} MB are needed; free some and run again"
            )

    def _opened(self, mode: Literal["ab", "wb"]) -> IO[bytes]:
        try:
            return self._part.open(mode, buffering=0)
        except OSError as error:
            raise self._disk_fault(error) from None

    def _write(self, file: IO[bytes], block: bytes) -> None:
        rest = memoryview(block)
        try:
            while rest:  # unbuffered, so a disk may take a part of it
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise self._disk_fault(error) from None

    def _disk_fault(self, error: OSError) -> FetchError:
        return FetchError(
            f"cannot write {self._part}: {error.strerror}; mend it and run again, which goes on"
            f" from the {self._kept_bytes() / 1e6:.1f} MB that are kept"
        )

    def _tell(self, done_bytes: int, total_bytes: int | None) -> None:
        if self._progress is not None:
            self._progress(done_bytes, total_bytes)

    def _is_right(self) -> bool:
        return _sha256(self._part).startswith(self._sha256_prefix)

    def _kept_bytes(self) -> int:
        return self._part.stat().st_size if self._part.is_file() else 0


@contextmanager
def _request_errors() -> Iterator[None]:
    """Sort what a request can fail with into what a second try may mend and what not."""
    try:
        yield
    except (TimeoutError, ConnectionError, http.client.IncompleteRead) as error:
        raise _Broken(_reason(error)) from None
    except urllib.error.URLError as error:
        kind = _Broken if isinstance(error.reason, TimeoutError) else _Unusable
        raise kind(_reason(error.reason)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Unusable(_reason(error)) from None


def _reason(error: BaseException | str) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, and never from the latter to the former."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise urllib.error.HTTPError(req.full_url, code, "not followed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Build an opener that has no way to files or FTP; proxies are the environment's."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _length(response: Any) -> int | None:
    told = response.headers.get("Content-Length", "")
    return int(told) if told.isdecimal() else None


def _total_of_range(response: Any, resumed_bytes: int) -> int | None:
    told = re.fullmatch(
        r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", "")
    )
    if told is None or int(told[1]) != resumed_bytes:
        raise _Unusable("it sent another part than was asked for")
    if told[2] != "*":
        return int(told[2])
    length = _length(response)
    return None if length is None else resumed_bytes + length


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _server(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]  # no password in a message
