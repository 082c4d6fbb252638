import errno
import socket
from importlib.util import find_spec
from typing import Any

import fsspec
import pytest
import requests
from fsspec.implementations.memory import MemoryFileSystem

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.sources.remote import (
    RemoteFault,
    TransientError,
    check_redirect,
    choose_reader,
    hide_credentials,
    read_http,
    read_storage,
)

# What read_http does with a server's answers is seen through `download`, in test_download.py.


def test_a_step_from_https_to_http_is_refused() -> None:
    expected = r"^https://1\.1\.1\.1/a: redirects from https to http://1\.1\.1\.1/a; refused\.$"
    with pytest.raises(EnvironmentFault, match=expected):
        check_redirect("https://1.1.1.1/a", "http://1.1.1.1/a")


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.7", "192.168.1.1", "169.254.169.254", "[::1]", "[fe80::1]"])
def test_a_step_from_a_public_to_a_private_address_is_refused(host: str) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        check_redirect("http://1.1.1.1/a", f"http://{host}/b")
    assert str(caught.value) == f"http://1.1.1.1/a: redirects to the private address http://{host}/b; refused."


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("http://1.1.1.1/a", "https://1.1.1.1/a"),
        ("https://1.1.1.1/a", "https://8.8.8.8/b"),
        ("http://127.0.0.1/a", "http://10.0.0.7/b"),
    ],
)
def test_a_harmless_step_is_allowed(here: str, there: str) -> None:
    check_redirect(here, there)


@pytest.mark.parametrize(
    ("message", "hidden"),
    [
        ("https://ada:s3cret@example.org/a: gone", "https://example.org/a: gone"),
        ("https://ada:p@ss@example.org/a", "https://example.org/a"),
        ("https://token@example.org", "https://example.org"),
        ("ftp://a:b@one/x to sftp://c:d@two/y", "ftp://one/x to sftp://two/y"),
        ("https://example.org/a@b", "https://example.org/a@b"),
        ("https://example.org/a.zip?X-Sig=s3cret&x=1: gone.", "https://example.org/a.zip?…: gone."),
        ("https://ada:pw@example.org/a?key=s3cret#x", "https://example.org/a?…"),
        (
            "http://one/a?b=c to https://two?d=e/f?g, the last (s3://x/y?z=1).",
            "http://one/a?… to https://two?…, the last (s3://x/y?…).",
        ),
        ("http://one/a?b=c\nnext? yes", "http://one/a?…\nnext? yes"),
        (
            "Max retries exceeded with url: /a.zip?key=s3cret (Caused by x)",
            "Max retries exceeded with url: /a.zip?… (Caused by x)",
        ),
        ("did you mean `x`? https://example.org/a: gone", "did you mean `x`? https://example.org/a: gone"),
    ],
)
def test_credentials_are_taken_out_of_messages(message: str, hidden: str) -> None:
    for kind in (InputError, RemoteFault):
        with pytest.raises(kind) as caught, hide_credentials():
            raise kind(message)
        assert str(caught.value) == hidden


def test_the_reader_follows_from_the_scheme() -> None:
    assert choose_reader("http://example.org/a") is read_http
    assert choose_reader("HTTPS://[2001:db8::1]/a") is read_http
    assert choose_reader("s3://bucket/a") is read_storage


@pytest.mark.parametrize(
    "url",
    ["filecache://x::file:///etc/hostname", "simplecache::file:///etc/hostname", "blockcache::local:///etc/hostname"],
)
def test_a_chain_of_storages_is_refused(url: str) -> None:
    with pytest.raises(InputError) as caught:
        choose_reader(url)
    assert str(caught.value) == f"params.yaml: fetch.url: found {url}; expected one address, without `::`."


@pytest.mark.parametrize("url", ["file:///etc/hostname", "local:///etc/hostname", "git:///repo:main@a.zip", "a.zip"])
def test_what_lies_on_this_machine_is_no_address(url: str) -> None:
    with pytest.raises(InputError) as caught:
        choose_reader(url)
    assert str(caught.value) == (
        f"params.yaml: fetch.url: found {url}; expected an address such as https://… or s3://…. What lies on this "
        "machine belongs in fetch.path, with fetch.url ''."
    )


def test_a_storage_is_read_in_blocks() -> None:
    with fsspec.open("memory://a/b.bin", "wb") as file:
        file.write(bytes(70_000))
    assert [len(block) for block in read_storage("memory://a/b.bin")] == [65536, 4464]


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(InputError) as caught:
        next(read_storage("nope://a/b.zip"))
    assert str(caught.value) == (
        "params.yaml: fetch.url: found nope://a/b.zip, which fsspec cannot open: Protocol not known: nope."
    )


def test_an_address_that_lacks_what_its_scheme_needs_is_named() -> None:
    with pytest.raises(InputError, match=r"found reference://x, which fsspec cannot open: .*missing 1 required"):
        next(read_storage("reference://x"))
    with pytest.raises(InputError, match=r"found dir://x, which fsspec cannot open: 'NoneType' object has no"):
        next(read_storage("dir://x"))


@pytest.mark.parametrize(
    ("url", "package", "module"),
    [("s3://bucket/a.zip", "s3fs", "s3fs"), ("gs://bucket/a.zip", "gcsfs", "gcsfs"), ("az://box/a", "adlfs", "adlfs")],
)
def test_a_storage_whose_package_is_missing_names_it(url: str, package: str, module: str) -> None:
    if find_spec(module):
        pytest.skip(f"needs an environment without {module}")
    with pytest.raises(EnvironmentFault) as caught:
        next(read_storage(url))
    assert str(caught.value).startswith(f"{url}: {url.partition(':')[0]} needs a package that is missing (")
    assert str(caught.value).endswith(f"): `pip install {package}` in this environment.")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("no key"), "the storage denies access (no key); sign in as its own tools do."),
        (FileNotFoundError("x"), "there is no such file."),
        (OSError(errno.EIO, "Input/output error"), "cannot be read: [Errno 5] Input/output error."),
    ],
)
def test_what_a_storage_refuses_is_a_fault_of_the_remote(error: OSError, message: str) -> None:
    with pytest.raises(RemoteFault) as caught:
        read_refused(error)
    assert str(caught.value) == f"refusing://a.zip: {message}"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("reset"),
        TimeoutError("reset"),
        socket.gaierror("reset"),
        requests.ConnectionError("reset"),
        requests.ReadTimeout("reset"),
    ],
)
def test_a_lost_connection_to_a_storage_may_be_tried_again(error: OSError) -> None:
    with pytest.raises(TransientError, match=r"^the connection failed: reset$"):
        read_refused(error)


def read_refused(error: OSError) -> None:
    """Read a file of a storage that raises this error."""

    class Refusing(MemoryFileSystem):
        protocol = "refusing"

        def _open(self, *_: Any, **__: Any) -> Any:
            raise error

    fsspec.register_implementation("refusing", Refusing, clobber=True)
    next(read_storage("refusing://a.zip"))
