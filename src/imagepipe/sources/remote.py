"""The bytes of an address, block by block: by http(s), each redirect checked, or from a storage that fsspec knows."""

import ipaddress
import re
import socket
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import IO, cast
from urllib.parse import urljoin, urlsplit

import requests

from imagepipe.core.errors import EnvironmentFault, ImagepipeError, InputError

TIMEOUT = (10.0, 30.0)  # seconds to connect, seconds without a byte
MOST_REDIRECTS = 5
HEADERS = {"Accept-Encoding": "identity"}  # the bytes as published: a .gz must not be unpacked on the way
BLOCK = 2**16
LOCAL = ("file", "local", "git")  # as fsspec calls this machine, and a repository on it
# What a storage raises where the network is at fault: of the system, of a name's look-up, of what speaks http.
LOST = (ConnectionError, TimeoutError, socket.gaierror, requests.ConnectionError, requests.Timeout)
# Which package brings a storage (fsspec's registry of known implementations).
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "sftp": "paramiko"}

Reader = Callable[[str], Generator[bytes]]


class RemoteFault(EnvironmentFault):
    """The network or the server is at fault."""


class TransientError(Exception):
    """A failure that another attempt may mend."""


@contextmanager
def hide_credentials() -> Generator[None]:
    """Take `user:secret@`, and what follows a `?` (signed addresses), out of the addresses in an error's message."""
    try:
        yield
    except ImagepipeError as error:
        hidden = re.sub(r"(://)[^/?#\s]*@", r"\1", str(error))
        # Where there is no connection, the error of requests says `url: /path?…`, without the host.
        hidden = re.sub(r"((?:://|\burl: )[^?\s]*\?)\S*?(?=[:;,.)]*(?:\s|$))", r"\1…", hidden)
        if hidden == str(error):
            raise
        raise type(error)(hidden) from None  # the cause would show them


def choose_reader(url: str) -> Reader:
    """What reads the user's address; raises InputError, naming `fetch.url`, for what is no remote address."""
    scheme, separator, _ = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme in LOCAL:
        raise InputError(
            f"params.yaml: fetch.url: found {url}; expected an address such as https://… or s3://…. What lies on this "
            "machine belongs in fetch.path, with fetch.url ''."
        )
    try:
        urlsplit(url)
    except ValueError as error:
        raise InputError(f"params.yaml: fetch.url: found {url}, which is no address ({error}).") from error
    if scheme in ("http", "https"):
        return read_http
    if "::" in url:  # which chains storages, this machine's among them
        raise InputError(f"params.yaml: fetch.url: found {url}; expected one address, without `::`.")
    return read_storage


def read_storage(url: str) -> Generator[bytes]:
    """The file at `url` by fsspec, which knows s3, gs and others.

    Raises InputError for an address that fsspec does not know, EnvironmentFault where a package is missing,
    TransientError where the connection fails, RemoteFault where the storage refuses.
    """
    import fsspec  # here, because it takes 0.2 s that no other source should pay

    scheme = url.partition("://")[0]
    try:
        with cast("AbstractContextManager[IO[bytes]]", fsspec.open(url, "rb")) as file:
            while block := file.read(BLOCK):
                yield block
    except ImportError as error:
        package = PACKAGES.get(scheme)
        remedy = f"`pip install {package}` in this environment" if package else "install it in this environment"
        raise EnvironmentFault(f"{url}: {scheme} needs a package that is missing ({error}): {remedy}.") from error
    except FileNotFoundError as error:
        raise RemoteFault(f"{url}: there is no such file.") from error
    except PermissionError as error:
        raise RemoteFault(f"{url}: the storage denies access ({error}); sign in as its own tools do.") from error
    except LOST as error:
        raise TransientError(f"the connection failed: {error}") from error
    except OSError as error:
        raise RemoteFault(f"{url}: cannot be read: {error}.") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"params.yaml: fetch.url: found {url}, which fsspec cannot open: {error}.") from error


def read_http(url: str) -> Generator[bytes]:
    """The body of `url`; TransientError is what may pass, RemoteFault what will not."""
    try:
        with requests.Session() as session, closing(follow_redirects(session, url)) as response:
            if response.status_code == 429 or response.status_code >= 500:
                raise TransientError(f"the server answers {response.status_code} {response.reason}")
            if response.status_code != 200:
                raise RemoteFault(f"{url}: the server answers {response.status_code} {response.reason}.")
            yield from response.iter_content(BLOCK)
    except requests.exceptions.SSLError as error:
        raise RemoteFault(f"{url}: the server's certificate is not trusted ({error}).") from error
    except requests.exceptions.ConnectTimeout as error:
        raise TransientError(f"no connection within {TIMEOUT[0]:g} s") from error
    except requests.exceptions.Timeout as error:
        raise TransientError(f"no answer within {TIMEOUT[1]:g} s") from error
    except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        raise TransientError(f"the connection failed: {error}") from error
    except requests.exceptions.RequestException as error:
        raise RemoteFault(f"{url}: {error}.") from error


def follow_redirects(session: requests.Session, url: str) -> requests.Response:
    """The response at the end of at most MOST_REDIRECTS redirects, each of them checked.

    Raises RemoteFault for a loop, a step from https to http, another scheme, or a step from a public to a private
    address.
    """
    here = url
    for _ in range(MOST_REDIRECTS + 1):
        try:
            response = session.get(here, stream=True, timeout=TIMEOUT, headers=HEADERS, allow_redirects=False)
        except ValueError as error:  # requests parses the next address even where it does not follow it
            raise RemoteFault(f"{here}: is, or redirects to, no address ({error}).") from error
        if not response.is_redirect:
            return response
        there = urljoin(here, response.headers["Location"])
        response.close()
        check_redirect(here, there)
        here = there
    raise RemoteFault(f"{url}: more than {MOST_REDIRECTS} redirects, the last to {here}.")


def check_redirect(here: str, there: str) -> None:
    """Raise RemoteFault where a redirect leads somewhere that the first address had no right to send us."""
    scheme = urlsplit(there).scheme
    if scheme not in ("http", "https"):
        raise RemoteFault(f"{here}: redirects to {there}, which is not http or https; refused.")
    if urlsplit(here).scheme == "https" and scheme == "http":
        raise RemoteFault(f"{here}: redirects from https to {there}; refused.")
    try:
        inward = is_private(there) and not is_private(here)
    except UnicodeError as error:  # of a part between dots that is empty or above 63 characters
        raise RemoteFault(f"{here}: redirects to {there}, whose host cannot be looked up; refused.") from error
    if inward:
        raise RemoteFault(f"{here}: redirects to the private address {there}; refused.")


def is_private(url: str) -> bool:
    """Whether the URL's host is, or resolves to, an address that is not public.

    Raises UnicodeError for a host that is no name of the DNS.
    """
    host = urlsplit(url).hostname or ""
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return any(not ipaddress.ip_address(address.split("%")[0]).is_global for address in addresses)
