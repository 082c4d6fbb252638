import errno
import hashlib
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from imagepipe.core.errors import DiskFault, EnvironmentFault, InputError
from imagepipe.sources import download as module
from imagepipe.sources import remote
from imagepipe.sources.download import RemoteFile, Terms, download, name_download, obtain_archive, obtain_file
from imagepipe.sources.remote import Reader, read_http, read_storage
from tests.core.made import name_abandoned
from tests.sources.loopback import Handler, LoopbackServer, redirect

BODY = bytes(range(256)) * 300
MD5 = hashlib.md5(BODY).hexdigest()
SHA256 = hashlib.sha256(BODY).hexdigest()
EMPTY_MD5 = "d41d8cd98f00b204e9800998ecf8427e"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache" / "file.bin"


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def fetch(url: str, target: Path, read: Reader = read_http) -> None:
    download(url, target, Terms("md5", MD5, 200_000), read)


def test_a_good_answer_is_saved_under_its_name_alone(server: LoopbackServer, target: Path) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(200, BODY)
    fetch(f"{server.url}/file.bin", target)
    assert target.read_bytes() == BODY
    assert list_names(target.parent) == ["file.bin"]
    assert server.asked == ["/file.bin"]


def test_bytes_are_asked_for_as_published(server: LoopbackServer, target: Path) -> None:
    seen: list[str | None] = []

    def answer(handler: Handler) -> None:
        seen.append(handler.headers["Accept-Encoding"])
        handler.answer(200, BODY)

    server.answers["/file.bin"] = answer
    fetch(f"{server.url}/file.bin", target)
    assert seen == ["identity"]


def test_a_name_that_the_server_suggests_is_ignored(server: LoopbackServer, target: Path) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(
        200, BODY, Content_Disposition='attachment; filename="../../evil.bin"'
    )
    fetch(f"{server.url}/file.bin", target)
    assert list_names(target.parent.parent) == ["cache", "file.bin"]


def test_a_body_shorter_than_its_length_is_tried_again_then_given_up(server: LoopbackServer, target: Path) -> None:
    def cut(handler: Handler) -> None:
        handler.answer(200, BODY[:1000], Content_Length=str(len(BODY)))
        handler.close_connection = True

    server.answers["/file.bin"] = cut
    with pytest.raises(EnvironmentFault) as caught:
        fetch(f"{server.url}/file.bin", target)
    message = str(caught.value)
    assert message.startswith(f"{server.url}/file.bin: the connection failed: ")
    assert "1000 bytes read, 75800 more expected" in message
    assert message.endswith(" (3 attempts).")
    assert len(server.asked) == 3
    assert list_names(target.parent) == []


def test_a_body_cut_once_is_mended_by_another_attempt(server: LoopbackServer, target: Path) -> None:
    def answer(handler: Handler) -> None:
        handler.answer(200, BODY if len(server.asked) == 2 else BODY[:7], Content_Length=str(len(BODY)))
        handler.close_connection = True

    server.answers["/file.bin"] = answer
    fetch(f"{server.url}/file.bin", target)
    assert target.read_bytes() == BODY
    assert list_names(target.parent) == ["file.bin"]


def test_a_server_that_never_answers_is_given_up(
    server: LoopbackServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "TIMEOUT", (5.0, 1.0))
    server.answers["/file.bin"] = lambda handler: server.released.wait(60)
    with pytest.raises(EnvironmentFault, match=r"file\.bin: no answer within 1 s \(3 attempts\)\.$"):
        fetch(f"{server.url}/file.bin", target)
    assert len(server.asked) == 3
    assert list_names(target.parent) == []


def test_a_body_that_stops_is_given_up(server: LoopbackServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TIMEOUT", (5.0, 1.0))

    def stall(handler: Handler) -> None:
        handler.answer(200, BODY[:1000], Content_Length=str(len(BODY)))
        server.released.wait(60)

    server.answers["/file.bin"] = stall
    with pytest.raises(EnvironmentFault, match=r"file\.bin: .*[Rr]ead timed out.* \(3 attempts\)\.$"):
        fetch(f"{server.url}/file.bin", target)
    assert len(server.asked) == 3
    assert list_names(target.parent) == []


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><p>Sign in", b"\n  <html><body>Sign in"])
def test_a_web_page_with_status_200_is_called_one(server: LoopbackServer, target: Path, page: bytes) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(200, page)
    with pytest.raises(EnvironmentFault) as caught:
        fetch(f"{server.url}/file.bin", target)
    found = hashlib.md5(page).hexdigest()
    expected = f"{server.url}/file.bin: MD5 is {found}, expected {MD5}; it is a web page, not the file."
    assert str(caught.value) == expected
    assert list_names(target.parent) == []
    assert len(server.asked) == 1


def test_other_bytes_give_both_checksums(server: LoopbackServer, target: Path) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(200, b"")
    with pytest.raises(EnvironmentFault) as caught:
        fetch(f"{server.url}/file.bin", target)
    assert str(caught.value) == f"{server.url}/file.bin: MD5 is {EMPTY_MD5}, expected {MD5}."
    assert list_names(target.parent) == []


@pytest.mark.parametrize(("status", "reason"), [(404, "Not Found"), (403, "Forbidden"), (204, "No Content")])
def test_a_final_answer_is_not_asked_for_again(server: LoopbackServer, target: Path, status: int, reason: str) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(status)
    with pytest.raises(EnvironmentFault, match=rf"/file\.bin: the server answers {status} {reason}\.$"):
        fetch(f"{server.url}/file.bin", target)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_refusal_is_waited_out(server: LoopbackServer, target: Path, status: int) -> None:
    def answer(handler: Handler) -> None:
        first = len(server.asked) == 1
        handler.answer(status if first else 200, b"" if first else BODY)

    server.answers["/file.bin"] = answer
    fetch(f"{server.url}/file.bin", target)
    assert target.read_bytes() == BODY
    assert len(server.asked) == 2


@pytest.mark.parametrize(("status", "reason"), [(429, "Too Many Requests"), (500, "Internal Server Error")])
def test_a_lasting_refusal_ends_after_three_attempts(
    server: LoopbackServer, target: Path, status: int, reason: str
) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(status)
    expected = rf"/file\.bin: the server answers {status} {reason} \(3 attempts\)\.$"
    with pytest.raises(EnvironmentFault, match=expected):
        fetch(f"{server.url}/file.bin", target)
    assert len(server.asked) == 3


def test_pauses_double(server: LoopbackServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(module, "PAUSE", 1.0)
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    server.answers["/file.bin"] = lambda handler: handler.answer(500)
    with pytest.raises(EnvironmentFault):
        fetch(f"{server.url}/file.bin", target)
    assert pauses == [1.0, 2.0]


def test_an_endless_body_is_given_up(server: LoopbackServer, target: Path) -> None:
    def pour(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not server.released.is_set():
            handler.wfile.write(bytes(2**16))

    server.answers["/file.bin"] = pour
    with pytest.raises(EnvironmentFault, match=r"/file\.bin: the body passes 200000 bytes and was given up\.$"):
        fetch(f"{server.url}/file.bin", target)
    assert len(server.asked) == 1
    assert list_names(target.parent) == []


def test_redirects_are_followed_relative_and_absolute(server: LoopbackServer, target: Path) -> None:
    server.answers["/old"] = redirect("newer/file.bin")
    server.answers["/newer/file.bin"] = redirect(f"{server.url}/newest")
    server.answers["/newest"] = lambda handler: handler.answer(200, BODY)
    fetch(f"{server.url}/old", target)
    assert target.read_bytes() == BODY
    assert server.asked == ["/old", "/newer/file.bin", "/newest"]


def test_a_loop_of_redirects_is_refused(server: LoopbackServer, target: Path) -> None:
    server.answers["/a"] = redirect("/b")
    server.answers["/b"] = redirect("/a")
    with pytest.raises(EnvironmentFault, match=r"/a: more than 5 redirects, the last to http://127\.0\.0\.1:\d+/a\.$"):
        fetch(f"{server.url}/a", target)
    assert len(server.asked) == 6


@pytest.mark.parametrize("there", ["file:///etc/hostname", "ftp://127.0.0.1/file.bin", "data:text/plain,x"])
def test_a_redirect_to_another_scheme_is_refused(server: LoopbackServer, target: Path, there: str) -> None:
    server.answers["/file.bin"] = redirect(there)
    with pytest.raises(EnvironmentFault) as caught:
        fetch(f"{server.url}/file.bin", target)
    expected = f"{server.url}/file.bin: redirects to {there}, which is not http or https; refused."
    assert str(caught.value) == expected
    assert list_names(target.parent) == []


def test_a_redirect_to_nonsense_is_refused(server: LoopbackServer, target: Path) -> None:
    server.answers["/file.bin"] = redirect("http://[nonsense")
    with pytest.raises(EnvironmentFault, match=r"/file\.bin: is, or redirects to, no address \(Invalid IPv6 URL\)\.$"):
        fetch(f"{server.url}/file.bin", target)


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.org"])
def test_a_redirect_to_a_host_that_is_no_name_is_refused(server: LoopbackServer, target: Path, host: str) -> None:
    server.answers["/file.bin"] = redirect(f"http://{host}/x")
    with pytest.raises(EnvironmentFault) as caught:
        fetch(f"{server.url}/file.bin", target)
    assert str(caught.value) == (
        f"{server.url}/file.bin: redirects to http://{host}/x, whose host cannot be looked up; refused."
    )
    assert list_names(target.parent) == []


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.org"])
def test_a_host_that_is_no_name_is_no_address(target: Path, host: str) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        fetch(f"http://{host}/x", target)
    assert str(caught.value) == (
        f"http://{host}/x: is, or redirects to, no address (Failed to parse: '{host}', label empty or too long)."
    )


def test_a_certificate_that_nobody_vouches_for_is_refused(server: LoopbackServer, tmp_path: Path, target: Path) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout key.pem -out cert.pem"
    try:
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl to make a certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    plain = server.socket
    server.socket = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue] the failed handshake
    url = f"https://127.0.0.1:{server.server_port}/file.bin"
    with pytest.raises(EnvironmentFault, match=r"/file\.bin: the server's certificate is not trusted \(.*self.signed"):
        fetch(url, target)
    assert list_names(target.parent) == []


def test_a_name_that_cannot_be_written_is_named(server: LoopbackServer, target: Path) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(200, BODY)
    target.mkdir()
    with pytest.raises(EnvironmentFault, match=r"file\.bin: cannot be written: Is a directory\. "):
        fetch(f"{server.url}/file.bin", target)
    assert list_names(target.parent) == ["file.bin"]


# obtain_file: mirror, cache, several homes


def make_file(*urls: str) -> RemoteFile:
    return RemoteFile("file.bin", MD5, urls)


def test_a_folder_as_mirror_is_copied_from(tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "file.bin").write_bytes(BODY)
    obtain_file(make_file(), tmp_path / "out.bin", str(tmp_path / "mirror"), tmp_path / "cache")
    assert (tmp_path / "out.bin").read_bytes() == BODY
    assert not (tmp_path / "cache").exists()


def test_a_folder_below_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "file.bin").write_bytes(BODY)
    obtain_file(make_file(), tmp_path / "out.bin", "~/mirror", tmp_path / "cache")
    assert (tmp_path / "out.bin").read_bytes() == BODY


def test_a_mirror_below_an_unknown_home_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^params\.yaml: run\.mirror: found ~nosuch/x, but no home folder is known"):
        obtain_file(make_file(), tmp_path / "out.bin", "~nosuch/x", tmp_path / "cache")


def test_a_file_that_the_mirrors_folder_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        obtain_file(make_file(), tmp_path / "out.bin", str(tmp_path), tmp_path / "cache")
    expected = "not there; run.mirror must be a folder that holds the original file.bin."
    assert str(caught.value) == f"{tmp_path / 'file.bin'}: {expected}"


@pytest.mark.skipif(os.name == "nt", reason="needs permissions of POSIX")
def test_a_file_of_the_mirror_that_may_not_be_read_is_named_rather_than_its_copy(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(BODY)
    (tmp_path / "file.bin").chmod(0)
    (tmp_path / "out").mkdir()
    script = f"""
import os
from pathlib import Path
from imagepipe.sources.download import RemoteFile, obtain_file
os.chmod(".", 0o755)
os.chmod("out", 0o777)
os.geteuid() or os.setuid(65534)
obtain_file(RemoteFile("file.bin", {MD5!r}, ()), Path("out/x"), ".", Path("cache"))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    expected = "file.bin: cannot be read: Permission denied. Change its permissions, then run the stage again."
    assert done.stderr.endswith(f"EnvironmentFault: {expected}\n")


def test_other_bytes_in_the_mirrors_folder_give_both_checksums(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        obtain_file(make_file(), tmp_path / "out.bin", str(tmp_path), tmp_path / "cache")
    expected = f"MD5 is {EMPTY_MD5}, expected {MD5}; put the original file there."
    assert str(caught.value) == f"{tmp_path / 'file.bin'}: {expected}"


def test_a_url_as_mirror_goes_before_the_publisher(server: LoopbackServer, tmp_path: Path) -> None:
    server.answers["/mirror/file.bin"] = lambda handler: handler.answer(200, BODY)
    for mirror in (f"{server.url}/mirror", f"{server.url}/mirror/"):
        obtain_file(make_file(f"{server.url}/home"), tmp_path / "out.bin", mirror, tmp_path / "cache")
    assert (tmp_path / "out.bin").read_bytes() == BODY
    assert server.asked == ["/mirror/file.bin"]


def test_a_download_is_asked_for_once(server: LoopbackServer, tmp_path: Path) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(200, BODY)
    for number in range(3):
        obtain_file(make_file(f"{server.url}/file.bin"), tmp_path / f"{number}.bin", "", tmp_path / "cache")
        assert (tmp_path / f"{number}.bin").read_bytes() == BODY
    assert server.asked == ["/file.bin"]
    (kept,) = (tmp_path / "cache" / "downloads").iterdir()
    assert kept.name.endswith("-file.bin")


@pytest.mark.parametrize("damaged", [b"", BODY[:-1], BODY[:-1] + b"\0"])
def test_a_damaged_download_is_fetched_again(server: LoopbackServer, tmp_path: Path, damaged: bytes) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(200, BODY)
    file = make_file(f"{server.url}/file.bin")
    obtain_file(file, tmp_path / "a.bin", "", tmp_path / "cache")
    (kept,) = (tmp_path / "cache" / "downloads").iterdir()
    kept.write_bytes(damaged)
    obtain_file(file, tmp_path / "b.bin", "", tmp_path / "cache")
    assert (tmp_path / "b.bin").read_bytes() == BODY
    assert kept.read_bytes() == BODY
    assert server.asked == ["/file.bin", "/file.bin"]


def test_two_addresses_with_one_base_name_are_kept_apart(server: LoopbackServer, tmp_path: Path) -> None:
    for home, body in (("/a/file.bin", b"a"), ("/b/file.bin", b"b")):
        server.answers[home] = lambda handler, body=body: handler.answer(200, body)
    for _ in range(2):
        for home, body in (("/a/file.bin", b"a"), ("/b/file.bin", b"b")):
            file = RemoteFile("file.bin", hashlib.md5(body).hexdigest(), (f"{server.url}{home}",))
            obtain_file(file, tmp_path / "out.bin", "", tmp_path / "cache")
            assert (tmp_path / "out.bin").read_bytes() == body
    assert server.asked == ["/a/file.bin", "/b/file.bin"]


def test_the_second_home_is_asked_where_the_first_fails(server: LoopbackServer, tmp_path: Path) -> None:
    server.answers["/first"] = lambda handler: handler.answer(404)
    server.answers["/second"] = lambda handler: handler.answer(200, BODY)
    file = make_file(f"{server.url}/first", f"{server.url}/second")
    obtain_file(file, tmp_path / "out.bin", "", tmp_path / "cache")
    assert (tmp_path / "out.bin").read_bytes() == BODY
    assert server.asked == ["/first", "/second"]
    assert len(list((tmp_path / "cache" / "downloads").iterdir())) == 1


def test_failing_homes_are_all_listed(server: LoopbackServer, tmp_path: Path) -> None:
    server.answers["/first"] = lambda handler: handler.answer(404)
    server.answers["/second"] = lambda handler: handler.answer(500)
    file = make_file(f"{server.url}/first", f"{server.url}/second")
    with pytest.raises(EnvironmentFault) as caught:
        obtain_file(file, tmp_path / "out.bin", "", tmp_path / "cache")
    assert str(caught.value).splitlines() == [
        f"{server.url}/first: the server answers 404 Not Found.",
        f"{server.url}/second: the server answers 500 Internal Server Error (3 attempts).",
        "Without a network: put the original file.bin into a folder and set run.mirror in params.yaml to that folder.",
    ]
    assert not (tmp_path / "out.bin").exists()


def test_offline_names_the_address_and_the_local_way(server: LoopbackServer, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file.bin"
    with pytest.raises(EnvironmentFault) as caught:
        obtain_file(make_file(url), tmp_path / "out.bin", "", tmp_path / "cache")
    first, last = str(caught.value).splitlines()
    assert first.startswith(f"{url}: the connection failed: ")
    assert "refused" in first
    assert first.endswith(" (3 attempts).")
    assert "put the original file.bin into a folder and set run.mirror in params.yaml" in last
    assert list_names(tmp_path / "cache") == ["downloads"]


def test_a_mirror_of_another_scheme_is_refused(server: LoopbackServer, tmp_path: Path) -> None:
    with pytest.raises(
        EnvironmentFault, match=r"^file:///nowhere/file\.bin: is, or redirects to, no address .No connection adapters"
    ):
        obtain_file(make_file(), tmp_path / "out.bin", "file:///nowhere", tmp_path / "cache")


@pytest.mark.parametrize(("blocked", "asked"), [("cache", []), ("out", ["/file.bin"])])
def test_a_disk_that_takes_nothing_is_no_matter_of_the_network(
    server: LoopbackServer, tmp_path: Path, blocked: str, asked: list[str]
) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(200, BODY)
    (tmp_path / blocked).write_text("in the way")
    file = make_file(f"{server.url}/file.bin", f"{server.url}/elsewhere/file.bin")
    with pytest.raises(DiskFault, match=rf"{blocked}.*: cannot be written: .* nothing half-written was left\.$"):
        obtain_file(file, tmp_path / "out" / "file.bin", "", tmp_path / "cache")
    assert server.asked == asked


@pytest.mark.parametrize("method", ["stat", "open"])
def test_a_cache_that_may_not_be_read_is_named_and_nobody_asked(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Permissions bind everybody but root, so that the call is refused instead."""
    server.answers["/file.bin"] = lambda handler: handler.answer(200, BODY)
    url, cache = f"{server.url}/file.bin", tmp_path / "cache"
    obtain_file(make_file(url), tmp_path / "out.bin", "", cache)
    cached = obtain_archive(url, SHA256, 200_000, cache)
    call = getattr(Path, method)

    def refuse(self: Path, *arguments: Any, **more: Any) -> Any:
        if self == cached:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return call(self, *arguments, **more)

    monkeypatch.setattr(Path, method, refuse)
    message = (
        f"{cached}: cannot be read: Permission denied. Change the permissions, or name another cache folder in "
        "run.cache_dir in params.yaml."
    )
    with pytest.raises(EnvironmentFault) as caught:
        obtain_file(make_file(url), tmp_path / "out.bin", "", cache)
    assert str(caught.value) == message
    with pytest.raises(EnvironmentFault) as caught:
        obtain_archive(url, SHA256, 200_000, cache)
    assert str(caught.value) == message
    assert server.asked == ["/file.bin"]


def test_credentials_of_a_mirror_are_in_no_message(server: LoopbackServer, tmp_path: Path) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(404)
    mirror = server.url.replace("://", "://ada:secret@")
    with pytest.raises(EnvironmentFault) as caught:
        obtain_file(make_file(), tmp_path / "out.bin", mirror, tmp_path / "cache")
    assert str(caught.value).startswith(f"{server.url}/file.bin: the server answers 404 Not Found.")


# obtain_archive: the user's own address


OTHER = "f" * 64
BY_HAND = "\nWithout a network: download the file by hand, set fetch.path in params.yaml to it and fetch.url to ''."


def list_kept(cache: Path) -> list[str]:
    """What is in the cache, without the hash that stands in front of each name; files that were given up too."""
    return sorted(path.name.partition("-")[2] or path.name for path in (cache / "downloads").glob("*"))


def test_an_archive_is_downloaded_once_and_kept_under_its_name(server: LoopbackServer, tmp_path: Path) -> None:
    server.answers["/data/cats.zip?v=2"] = lambda handler: handler.answer(200, BODY)
    url = f"{server.url}/data/cats.zip?v=2"
    for _ in range(3):
        path = obtain_archive(url, SHA256, 10**9, tmp_path)
        assert path == tmp_path / "downloads" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-cats.zip"
        assert path.read_bytes() == BODY
    assert server.asked == ["/data/cats.zip?v=2"]


def test_without_a_checksum_the_line_to_paste_is_given_once(server: LoopbackServer, tmp_path: Path) -> None:
    server.answers["/cats.zip"] = lambda handler: handler.answer(200, BODY)
    url = f"{server.url}/cats.zip"
    with pytest.raises(InputError) as caught:
        obtain_archive(url, "", 10**9, tmp_path)
    assert str(caught.value) == (
        f"params.yaml: fetch.sha256: is not given for {url}; if this is the file that you mean, set it to\n"
        f"    sha256: {SHA256}"
    )
    assert list_kept(tmp_path) == ["cats.zip"]
    assert obtain_archive(url, SHA256, 10**9, tmp_path).read_bytes() == BODY
    assert server.asked == ["/cats.zip"]


def test_without_a_checksum_the_file_of_today_is_shown(server: LoopbackServer, tmp_path: Path) -> None:
    for body in (b"old", b"new"):
        server.answers["/cats.zip"] = lambda handler, body=body: handler.answer(200, body)
        with pytest.raises(InputError, match=hashlib.sha256(body).hexdigest()):
            obtain_archive(f"{server.url}/cats.zip", "", 10**9, tmp_path)
    assert list_kept(tmp_path) == ["cats.zip"]


def test_a_file_that_was_changed_at_its_home_is_refused_and_not_kept(server: LoopbackServer, tmp_path: Path) -> None:
    server.answers["/cats.zip"] = lambda handler: handler.answer(200, BODY)
    url = f"{server.url}/cats.zip"
    with pytest.raises(EnvironmentFault) as caught:
        obtain_archive(url, OTHER, 10**9, tmp_path)
    assert str(caught.value) == (
        f"{url}: SHA-256 is {SHA256}, expected {OTHER}. If it was changed on purpose, accept the new file: set "
        "fetch.sha256 in params.yaml to the former."
    )
    assert list_kept(tmp_path) == []
    assert len(server.asked) == 1


def test_a_good_file_in_the_cache_outlives_a_wrong_one(server: LoopbackServer, tmp_path: Path) -> None:
    server.answers["/cats.zip"] = lambda handler: handler.answer(200, BODY)
    url = f"{server.url}/cats.zip"
    obtain_archive(url, SHA256, 10**9, tmp_path)
    server.answers["/cats.zip"] = lambda handler: handler.answer(200, b"changed")
    with pytest.raises(EnvironmentFault, match="accept the new file"):
        obtain_archive(url, OTHER, 10**9, tmp_path)
    assert obtain_archive(url, SHA256, 10**9, tmp_path).read_bytes() == BODY
    assert len(server.asked) == 2


@pytest.mark.parametrize("damaged", [b"", BODY[:-1], BODY[:-1] + b"\0"])
def test_a_damaged_archive_in_the_cache_is_fetched_again(
    server: LoopbackServer, tmp_path: Path, damaged: bytes
) -> None:
    server.answers["/cats.zip"] = lambda handler: handler.answer(200, BODY)
    url = f"{server.url}/cats.zip"
    obtain_archive(url, SHA256, 10**9, tmp_path).write_bytes(damaged)
    assert obtain_archive(url, SHA256, 10**9, tmp_path).read_bytes() == BODY
    assert len(server.asked) == 2


@pytest.mark.parametrize(("sha256", "difference"), [("", ""), (OTHER, f"SHA-256 is {{}}, expected {OTHER}; ")])
def test_a_web_page_is_no_archive(server: LoopbackServer, tmp_path: Path, sha256: str, difference: str) -> None:
    page = b"<!DOCTYPE html><p>Sign in"
    server.answers["/cats.zip"] = lambda handler: handler.answer(200, page)
    with pytest.raises(EnvironmentFault) as caught:
        obtain_archive(f"{server.url}/cats.zip", sha256, 10**9, tmp_path)
    found = difference.format(hashlib.sha256(page).hexdigest())
    assert str(caught.value) == f"{server.url}/cats.zip: {found}it is a web page, not the file.{BY_HAND}"
    assert list_kept(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "message", "asked"),
    [
        (404, "the server answers 404 Not Found.", 1),
        (403, "the server answers 403 Forbidden.", 1),
        (429, "the server answers 429 Too Many Requests (3 attempts).", 3),
        (503, "the server answers 503 Service Unavailable (3 attempts).", 3),
    ],
)
def test_a_refusal_names_the_local_way(
    server: LoopbackServer, tmp_path: Path, status: int, message: str, asked: int
) -> None:
    server.answers["/cats.zip"] = lambda handler: handler.answer(status)
    with pytest.raises(EnvironmentFault) as caught:
        obtain_archive(f"{server.url}/cats.zip", SHA256, 10**9, tmp_path)
    assert str(caught.value) == f"{server.url}/cats.zip: {message}{BY_HAND}"
    assert len(server.asked) == asked
    assert list_kept(tmp_path) == []


def test_an_archive_that_is_cut_or_stalls_names_the_local_way(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "TIMEOUT", (5.0, 1.0))

    def cut(handler: Handler) -> None:
        handler.answer(200, BODY[:1000], Content_Length=str(len(BODY)))
        handler.close_connection = True

    server.answers["/cut.zip"] = cut
    server.answers["/stalls.zip"] = lambda handler: server.released.wait(60)
    for name, words in (("cut.zip", "1000 bytes read, 75800 more expected"), ("stalls.zip", "no answer within 1 s")):
        with pytest.raises(EnvironmentFault) as caught:
            obtain_archive(f"{server.url}/{name}", "", 10**9, tmp_path)
        assert words in str(caught.value)
        assert str(caught.value).endswith(f" (3 attempts).{BY_HAND}")
    assert list_kept(tmp_path) == []


def test_offline_names_the_users_address_and_the_local_way(server: LoopbackServer, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/cats.zip"
    with pytest.raises(EnvironmentFault) as caught:
        obtain_archive(url, SHA256, 10**9, tmp_path)
    assert str(caught.value).startswith(f"{url}: the connection failed: ")
    assert str(caught.value).endswith(BY_HAND)


def test_a_body_above_the_limit_names_the_key(server: LoopbackServer, tmp_path: Path) -> None:
    server.answers["/cats.zip"] = lambda handler: handler.answer(200, BODY)
    url = f"{server.url}/cats.zip"
    with pytest.raises(EnvironmentFault) as caught:
        obtain_archive(url, SHA256, len(BODY) - 1, tmp_path)
    assert str(caught.value) == (
        f"{url}: the body passes 76799 bytes and was given up; fetch.max_gigabytes in params.yaml allows 7.6799e-05: "
        "raise it if the file is right."
    )
    assert list_kept(tmp_path) == []
    assert obtain_archive(url, SHA256, len(BODY), tmp_path).read_bytes() == BODY


def test_redirects_of_the_users_address_are_checked(server: LoopbackServer, tmp_path: Path) -> None:
    server.answers["/loop"] = redirect("/loop")
    server.answers["/file"] = redirect("file:///etc/hostname")
    server.answers["/good"] = redirect("/cats.zip")
    server.answers["/cats.zip"] = lambda handler: handler.answer(200, BODY)
    for name, words in (("loop", "more than 5 redirects"), ("file", "redirects to file:///etc/hostname, which is not")):
        with pytest.raises(EnvironmentFault, match=words):
            obtain_archive(f"{server.url}/{name}", SHA256, 10**9, tmp_path)
    assert obtain_archive(f"{server.url}/good", SHA256, 10**9, tmp_path).name.endswith("-good")


def test_the_name_that_a_server_suggests_for_an_archive_is_ignored(server: LoopbackServer, tmp_path: Path) -> None:
    server.answers["/get"] = lambda handler: handler.answer(
        200, BODY, Content_Disposition='attachment; filename="../../evil.zip"'
    )
    obtain_archive(f"{server.url}/get", SHA256, 10**9, tmp_path)
    assert list_names(tmp_path) == sorted(["downloads", *[path.name for path in (tmp_path / "downloads").iterdir()]])
    assert list_kept(tmp_path) == ["get"]


def test_two_archives_of_one_base_name_are_kept_apart(server: LoopbackServer, tmp_path: Path) -> None:
    for home, body in (("/a/cats.zip", b"a"), ("/b/cats.zip", b"b")):
        server.answers[home] = lambda handler, body=body: handler.answer(200, body)
        path = obtain_archive(f"{server.url}{home}", hashlib.sha256(body).hexdigest(), 10**9, tmp_path)
        assert path.read_bytes() == body
    assert list_kept(tmp_path) == ["cats.zip", "cats.zip"]


def test_what_an_interrupted_download_left_is_not_used_and_removed(server: LoopbackServer, tmp_path: Path) -> None:
    server.answers["/cats.zip"] = lambda handler: handler.answer(200, BODY)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / name_abandoned()).write_bytes(BODY[:5])
    path = obtain_archive(f"{server.url}/cats.zip", SHA256, 10**9, tmp_path)
    assert path.read_bytes() == BODY
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("sha256", ["", OTHER])
def test_credentials_are_used_and_shown_in_no_message(server: LoopbackServer, tmp_path: Path, sha256: str) -> None:
    seen: list[str | None] = []

    def answer(handler: Handler) -> None:
        seen.append(handler.headers["Authorization"])
        handler.answer(200, BODY)

    server.answers["/cats.zip"] = answer
    with pytest.raises((InputError, EnvironmentFault)) as caught:
        obtain_archive(server.url.replace("://", "://ada:s3cret@") + "/cats.zip", sha256, 10**9, tmp_path)
    assert f"{server.url}/cats.zip" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert seen == ["Basic YWRhOnMzY3JldA=="]
    assert "s3cret" not in "".join(list_names(tmp_path))


@pytest.mark.parametrize(
    "url",
    [
        "file:///home/ada/cats.zip",
        "FILE:///cats.zip",
        "local:///cats.zip",
        "/home/ada/cats.zip",
        "C:\\cats.zip",
        "cats.zip",
    ],
)
def test_a_place_on_this_machine_belongs_in_the_path(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError) as caught:
        obtain_archive(url, "", 10**9, tmp_path / "cache")
    assert str(caught.value) == (
        f"params.yaml: fetch.url: found {url}; expected an address such as https://… or s3://…. What lies on this "
        "machine belongs in fetch.path, with fetch.url ''."
    )
    assert not (tmp_path / "cache").exists()


def test_an_address_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^params\.yaml: fetch\.url: found http://\[no, which is no address \(Invalid IPv6"
    ):
        obtain_archive("http://[no", "", 10**9, tmp_path)
    with pytest.raises(EnvironmentFault, match=r"^http:///cats\.zip: .*(no host|is no|Invalid URL)"):
        obtain_archive("http:///cats.zip", "", 10**9, tmp_path)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.org/a/cats.zip?token=x#y", "cats.zip"),
        ("https://example.org", "download"),
        ("https://example.org/a/", "a"),
        ("https://example.org/a%2F..%2Fb.zip", "a%2F..%2Fb.zip"),
        ("https://example.org/Fällé:*.zip", "F_ll___.zip"),
        (f"https://example.org/{'x' * 300}.zip", "x" * 96 + ".zip"),
    ],
)
def test_a_download_gets_a_name_that_any_disk_can_hold(url: str, name: str) -> None:
    assert name_download(url) == name


def test_a_storage_is_read_by_fsspec_and_kept(tmp_path: Path) -> None:
    with fsspec.open("memory://bucket/cats.zip", "wb") as file:
        file.write(BODY)
    with pytest.raises(InputError, match=SHA256):
        obtain_archive("memory://bucket/cats.zip", "", 10**9, tmp_path)
    fsspec.filesystem("memory").rm("/bucket/cats.zip")
    assert obtain_archive("memory://bucket/cats.zip", SHA256, 10**9, tmp_path).read_bytes() == BODY
    assert list_kept(tmp_path) == ["cats.zip"]


def test_a_storage_has_the_same_limit(target: Path) -> None:
    with fsspec.open("memory://large", "wb") as file:
        file.write(bytes(200_001))
    with pytest.raises(EnvironmentFault, match=r"^memory://large: the body passes 200000 bytes and was given up\.$"):
        fetch("memory://large", target, read_storage)
    assert list_names(target.parent) == []


def test_a_file_that_a_storage_lacks_names_the_local_way(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        obtain_archive("memory://bucket/none.zip", SHA256, 10**9, tmp_path)
    assert str(caught.value) == f"memory://bucket/none.zip: there is no such file.{BY_HAND}"
    assert list_kept(tmp_path) == []
