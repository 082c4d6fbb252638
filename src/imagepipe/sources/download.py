"""Getting one known file: from the user's mirror or from its home, verified, and never half there.

The home is asked through `requests`; a file is believed only when its checksum is right, and only then gets its name.
"""

import ipaddress
import os
import shutil
import socket
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.files import hash_bytes, hash_file, report_write_errors

TIMEOUT = (10.0, 30.0)  # seconds to connect, seconds without a byte
ATTEMPTS = 3
PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
MOST_REDIRECTS = 5
HEADERS = {"Accept-Encoding": "identity"}  # the bytes as published: a .gz must not be unpacked on the way
MOST_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a published set: its name, the MD5 that the publisher or torchvision states, and where it lives."""

    name: str
    md5: str
    urls: tuple[str, ...]


class TransientError(Exception):
    """A failure that another attempt may mend."""


def obtain_file(file: RemoteFile, target: Path, mirror: str, cache_root: Path) -> None:
    """Put `file` at `target`, verified.

    `mirror` is a folder or a URL that holds the original files under their own names, or '' for the publisher's own
    address. Downloads are kept below `cache_root` and used again.

    Raises InputError where the mirror's folder lacks the file or holds other bytes, EnvironmentFault where the network
    or the server is at fault.
    """
    if mirror and "://" not in mirror:
        copy_from_folder(file, Path(mirror).expanduser(), target)
        return
    urls = (f"{mirror.rstrip('/')}/{file.name}",) if mirror else file.urls
    problems: list[str] = []
    for url in urls:
        cached = cache_root / "downloads" / f"{hash_bytes(url.encode())[:16]}-{file.name}"
        try:
            if not (cached.exists() and hash_file(cached, "md5") == file.md5):
                download(url, file.md5, cached)
            with report_write_errors(target):
                shutil.copyfile(cached, target)
            return
        except EnvironmentFault as error:
            problems.append(str(error))
    raise EnvironmentFault(
        "\n".join(problems) + f"\nWithout a network: put the original {file.name} into a folder and set run.mirror "
        "in params.yaml to that folder."
    )


def copy_from_folder(file: RemoteFile, folder: Path, target: Path) -> None:
    """Copy and verify one file of a local mirror."""
    path = folder / file.name
    if not path.is_file():
        raise InputError(f"{path}: not there; run.mirror must be a folder that holds the original {file.name}.")
    with report_write_errors(target):
        shutil.copyfile(path, target)
    found = hash_file(target, "md5")
    if found != file.md5:
        raise InputError(f"{path}: MD5 is {found}, expected {file.md5}; put the original file there.")


def download(url: str, md5: str, target: Path) -> None:
    """Download `url` to `target`, with bounded attempts; only a verified file gets the name `target`.

    Raises EnvironmentFault, naming the URL and the last cause.
    """
    with report_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=target.parent)  # its own, beside other fetches
        os.close(handle)
    part = Path(name)
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            save_body(url, part)
            found = hash_file(part, "md5")
            if found != md5:
                page = "; it is a web page, not the file" if is_web_page(part) else ""
                raise EnvironmentFault(f"{url}: MD5 is {found}, expected {md5}{page}.")
            part.replace(target)
            return
        except TransientError as error:
            problem = str(error)
        except OSError as error:
            raise EnvironmentFault(f"{target}: cannot be written: {error.strerror}.") from error
        finally:
            part.unlink(missing_ok=True)
    raise EnvironmentFault(f"{url}: {problem} ({ATTEMPTS} attempts).")


def is_web_page(path: Path) -> bool:
    """Whether the file begins as HTML does."""
    with path.open("rb") as file:
        return file.read(64).lstrip().lower().startswith((b"<!doctype", b"<html"))


def save_body(url: str, part: Path) -> None:
    """Stream the body of `url` into `part`; TransientError is what may pass, EnvironmentFault what will not."""
    try:
        with requests.Session() as session, closing(follow_redirects(session, url)) as response:
            if response.status_code == 429 or response.status_code >= 500:
                raise TransientError(f"the server answers {response.status_code} {response.reason}")
            if response.status_code != 200:
                raise EnvironmentFault(f"{url}: the server answers {response.status_code} {response.reason}.")
            received = 0
            with part.open("wb") as out:
                for block in response.iter_content(2**16):
                    received += len(block)
                    if received > MOST_BYTES:
                        raise EnvironmentFault(f"{url}: the body passes {MOST_BYTES} bytes and was given up.")
                    out.write(block)
    except requests.exceptions.SSLError as error:
        raise EnvironmentFault(f"{url}: the server's certificate is not trusted ({error}).") from error
    except requests.exceptions.ConnectTimeout as error:
        raise TransientError(f"no connection within {TIMEOUT[0]:g} s") from error
    except requests.exceptions.Timeout as error:
        raise TransientError(f"no answer within {TIMEOUT[1]:g} s") from error
    except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        raise TransientError(f"the connection failed: {error}") from error
    except requests.exceptions.RequestException as error:
        raise EnvironmentFault(f"{url}: {error}.") from error


def follow_redirects(session: requests.Session, url: str) -> requests.Response:
    """The response at the end of at most MOST_REDIRECTS redirects, each of them checked.

    Raises EnvironmentFault for a loop, a step from https to http, another scheme, or a step from a public to a private
    address.
    """
    here = url
    for _ in range(MOST_REDIRECTS + 1):
        try:
            response = session.get(here, stream=True, timeout=TIMEOUT, headers=HEADERS, allow_redirects=False)
        except ValueError as error:  # requests parses the next address even where it does not follow it
            raise EnvironmentFault(f"{here}: is, or redirects to, no address ({error}).") from error
        if not response.is_redirect:
            return response
        there = urljoin(here, response.headers["Location"])
        response.close()
        check_redirect(here, there)
        here = there
    raise EnvironmentFault(f"{url}: more than {MOST_REDIRECTS} redirects, the last to {here}.")


def check_redirect(here: str, there: str) -> None:
    """Raise EnvironmentFault where a redirect leads somewhere that the first address had no right to send us."""
    scheme = urlsplit(there).scheme
    if scheme not in ("http", "https"):
        raise EnvironmentFault(f"{here}: redirects to {there}, which is not http or https; refused.")
    if urlsplit(here).scheme == "https" and scheme == "http":
        raise EnvironmentFault(f"{here}: redirects from https to {there}; refused.")
    if is_private(there) and not is_private(here):
        raise EnvironmentFault(f"{here}: redirects to the private address {there}; refused.")


def is_private(url: str) -> bool:
    """Whether the URL's host is, or resolves to, an address that is not public."""
    host = urlsplit(url).hostname or ""
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return any(not ipaddress.ip_address(address.split("%")[0]).is_global for address in addresses)
