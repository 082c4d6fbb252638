"""Getting one file: from the user's mirror, its home or the user's own address, verified, and never half there.

A file is believed only when its checksum is right, and only then gets its name.
"""

import re
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from imagepipe.core.errors import DiskFault, EnvironmentFault, InputError
from imagepipe.core.files import copy_file, report_write_errors
from imagepipe.core.hashes import hash_bytes, hash_file
from imagepipe.core.run import expand_home
from imagepipe.core.unfinished import name_unfinished, remove_abandoned
from imagepipe.sources.remote import Reader, RemoteFault, TransientError, choose_reader, hide_credentials, read_http

ATTEMPTS = 3
PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
MOST_BYTES = 4 * 2**30  # of one file of a published set
LABELS = {"md5": "MD5", "sha256": "SHA-256"}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a published set: its name, the MD5 that the publisher or torchvision states, and where it lives."""

    name: str
    md5: str
    urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a download has to be: its digest ('' takes any file but a web page) and its size at most.

    `accept` and `enlarge` say what to do about another digest and about a longer body.
    """

    algorithm: str
    digest: str
    most_bytes: int
    accept: str = ""
    enlarge: str = ""


@hide_credentials()
def obtain_file(file: RemoteFile, target: Path, mirror: str, cache_root: Path) -> None:
    """Put `file` at `target`, verified.

    `mirror` is a folder or a URL that holds the original files under their own names, or '' for the publisher's own
    address. Downloads are kept below `cache_root` and used again.

    Raises InputError where the mirror's folder is below an unknown home, lacks the file or holds other bytes,
    EnvironmentFault where the network, the server or the disk is at fault.
    """
    if mirror and "://" not in mirror:
        copy_from_folder(file, expand_home(mirror, "params.yaml: run.mirror"), target)
        return
    urls = (f"{mirror.rstrip('/')}/{file.name}",) if mirror else file.urls
    terms = Terms("md5", file.md5, MOST_BYTES)
    problems: list[str] = []
    for url in urls:
        cached = locate_download(url, file.name, cache_root)
        held = holds(cached, terms)
        try:
            if not held:
                download(url, cached, terms)
        except DiskFault:
            raise
        except EnvironmentFault as error:
            problems.append(str(error))
            continue
        copy_file(cached, target)
        return
    raise EnvironmentFault(
        "\n".join(problems) + f"\nWithout a network: put the original {file.name} into a folder and set run.mirror "
        "in params.yaml to that folder."
    )


@hide_credentials()
def obtain_archive(url: str, sha256: str, most_bytes: int, cache_root: Path) -> Path:
    """The file at the user's own `url`, verified, where it is kept below `cache_root`.

    Raises InputError for what is no remote address, and, once the file is there, where `sha256` is '': the message
    holds the line for params.yaml. Raises EnvironmentFault for all that the network, the server or the disk may do, and
    for a file of another SHA-256, which is not kept.
    """
    read = choose_reader(url)
    terms = Terms(
        "sha256",
        sha256,
        most_bytes,
        accept=" If it was changed on purpose, accept the new file: set fetch.sha256 in params.yaml to the former.",
        enlarge=f"; fetch.max_gigabytes in params.yaml allows {most_bytes / 1e9:g}: raise it if the file is right",
    )
    cached = locate_download(url, name_download(url), cache_root)
    if holds(cached, terms):
        return cached
    try:
        download(url, cached, terms, read)
    except RemoteFault as error:
        raise EnvironmentFault(
            f"{error}\nWithout a network: download the file by hand, set fetch.path in params.yaml to it and fetch.url "
            "to ''."
        ) from error
    if not sha256:
        raise InputError(
            f"params.yaml: fetch.sha256: is not given for {url}; if this is the file that you mean, set it to\n"
            f"    sha256: {hash_file(cached)}"
        )
    return cached


def locate_download(url: str, name: str, cache_root: Path) -> Path:
    """Where the file `name` of `url` is kept; another URL has another place."""
    return cache_root / "downloads" / f"{hash_bytes(url.encode())[:16]}-{name}"


def name_download(url: str) -> str:
    """The base name of a URL's path as any file system can hold it; `download` where the path has none."""
    return re.sub(r"[^\w.+%=~-]", "_", PurePosixPath(urlsplit(url).path).name, flags=re.ASCII)[-100:] or "download"


def holds(cached: Path, terms: Terms) -> bool:
    """Whether the file that is wanted has been downloaded before.

    Raises EnvironmentFault where the cache folder or the file may not be read.
    """
    try:
        return bool(terms.digest) and cached.is_file() and hash_file(cached, terms.algorithm) == terms.digest
    except OSError as error:
        raise EnvironmentFault(
            f"{cached}: cannot be read: {error.strerror}. Change the permissions, or name another cache folder in "
            "run.cache_dir in params.yaml."
        ) from error


def copy_from_folder(file: RemoteFile, folder: Path, target: Path) -> None:
    """Copy and verify one file of a local mirror."""
    path = folder / file.name
    if not path.is_file():
        raise InputError(f"{path}: not there; run.mirror must be a folder that holds the original {file.name}.")
    copy_file(path, target)
    found = hash_file(target, "md5")
    if found != file.md5:
        raise InputError(f"{path}: MD5 is {found}, expected {file.md5}; put the original file there.")


def download(url: str, target: Path, terms: Terms, read: Reader = read_http) -> None:
    """Download `url` to `target`, with bounded attempts; only a verified file gets the name `target`.

    Raises EnvironmentFault, naming the URL and the last cause; its kind RemoteFault where network or server are at
    fault.
    """
    with report_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent)
        part = target.with_name(name_unfinished())  # its own, beside other fetches
        part.touch()
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            with report_write_errors(target):
                save_body(url, part, terms, read)
                check_digest(url, part, terms)
                part.replace(target)
            return
        except TransientError as error:
            problem = str(error)
        finally:
            part.unlink(missing_ok=True)
    raise RemoteFault(f"{url}: {problem} ({ATTEMPTS} attempts).")


def save_body(url: str, part: Path, terms: Terms, read: Reader) -> None:
    """Stream the body of `url` into `part`; raises EnvironmentFault where it has no end, and whatever `read` raises."""
    received = 0
    with closing(read(url)) as blocks, part.open("wb") as out:
        for block in blocks:
            received += len(block)
            if received > terms.most_bytes:
                raise EnvironmentFault(
                    f"{url}: the body passes {terms.most_bytes} bytes and was given up{terms.enlarge}."
                )
            out.write(block)


def check_digest(url: str, part: Path, terms: Terms) -> None:
    """Raise EnvironmentFault where the file is not the one that is wanted; RemoteFault where it is a web page."""
    found = hash_file(part, terms.algorithm)
    if found == terms.digest:
        return
    label = LABELS[terms.algorithm]
    difference = f"{label} is {found}, expected {terms.digest}" if terms.digest else ""
    if is_web_page(part):
        raise RemoteFault(f"{url}: {difference and difference + '; '}it is a web page, not the file.")
    if difference:
        raise EnvironmentFault(f"{url}: {difference}.{terms.accept}")


def is_web_page(path: Path) -> bool:
    """Whether the file begins as HTML does."""
    with path.open("rb") as file:
        return file.read(64).lstrip().lower().startswith((b"<!doctype", b"<html"))
