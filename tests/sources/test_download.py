import hashlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.sources import download as module
from imagepipe.sources.download import RemoteFile, check_redirect, download, obtain_file

BODY = bytes(range(256)) * 300
MD5 = hashlib.md5(BODY).hexdigest()
EMPTY_MD5 = "d41d8cd98f00b204e9800998ecf8427e"


class LoopbackServer(ThreadingHTTPServer):
    """Answers each path as `answers` says, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Callable[[Handler], object]] = {}
        self.asked: list[str] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: LoopbackServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        try:
            self.server.answers[self.path](self)
        except OSError:
            self.close_connection = True  # the client gave up, as it should

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the test's output."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "PAUSE", 0)
    with LoopbackServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache" / "file.bin"


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def redirect(to: str) -> Callable[[Handler], object]:
    return lambda handler: handler.answer(302, Location=to)


def test_a_good_answer_is_saved_under_its_name_alone(server: LoopbackServer, target: Path) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(200, BODY)
    download(f"{server.url}/file.bin", MD5, target)
    assert target.read_bytes() == BODY
    assert list_names(target.parent) == ["file.bin"]
    assert server.asked == ["/file.bin"]


def test_bytes_are_asked_for_as_published(server: LoopbackServer, target: Path) -> None:
    seen: list[str | None] = []

    def answer(handler: Handler) -> None:
        seen.append(handler.headers["Accept-Encoding"])
        handler.answer(200, BODY)

    server.answers["/file.bin"] = answer
    download(f"{server.url}/file.bin", MD5, target)
    assert seen == ["identity"]


def test_a_name_that_the_server_suggests_is_ignored(server: LoopbackServer, target: Path) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(
        200, BODY, Content_Disposition='attachment; filename="../../evil.bin"'
    )
    download(f"{server.url}/file.bin", MD5, target)
    assert list_names(target.parent.parent) == ["cache", "file.bin"]


def test_a_body_shorter_than_its_length_is_tried_again_then_given_up(server: LoopbackServer, target: Path) -> None:
    def cut(handler: Handler) -> None:
        handler.answer(200, BODY[:1000], Content_Length=str(len(BODY)))
        handler.close_connection = True

    server.answers["/file.bin"] = cut
    with pytest.raises(EnvironmentFault) as caught:
        download(f"{server.url}/file.bin", MD5, target)
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
    download(f"{server.url}/file.bin", MD5, target)
    assert target.read_bytes() == BODY
    assert list_names(target.parent) == ["file.bin"]


def test_a_server_that_never_answers_is_given_up(
    server: LoopbackServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", (5.0, 0.2))
    server.answers["/file.bin"] = lambda handler: server.released.wait(60)
    with pytest.raises(EnvironmentFault, match=r"file\.bin: no answer within 0\.2 s \(3 attempts\)\.$"):
        download(f"{server.url}/file.bin", MD5, target)
    assert len(server.asked) == 3
    assert list_names(target.parent) == []


def test_a_body_that_stops_is_given_up(server: LoopbackServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", (5.0, 0.2))

    def stall(handler: Handler) -> None:
        handler.answer(200, BODY[:1000], Content_Length=str(len(BODY)))
        server.released.wait(60)

    server.answers["/file.bin"] = stall
    with pytest.raises(EnvironmentFault, match=r"file\.bin: .*[Rr]ead timed out.* \(3 attempts\)\.$"):
        download(f"{server.url}/file.bin", MD5, target)
    assert len(server.asked) == 3
    assert list_names(target.parent) == []


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><p>Sign in", b"\n  <html><body>Sign in"])
def test_a_web_page_with_status_200_is_called_one(server: LoopbackServer, target: Path, page: bytes) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(200, page)
    with pytest.raises(EnvironmentFault) as caught:
        download(f"{server.url}/file.bin", MD5, target)
    found = hashlib.md5(page).hexdigest()
    expected = f"{server.url}/file.bin: MD5 is {found}, expected {MD5}; it is a web page, not the file."
    assert str(caught.value) == expected
    assert list_names(target.parent) == []
    assert len(server.asked) == 1


def test_other_bytes_give_both_checksums(server: LoopbackServer, target: Path) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(200, b"")
    with pytest.raises(EnvironmentFault) as caught:
        download(f"{server.url}/file.bin", MD5, target)
    assert str(caught.value) == f"{server.url}/file.bin: MD5 is {EMPTY_MD5}, expected {MD5}."
    assert list_names(target.parent) == []


@pytest.mark.parametrize(("status", "reason"), [(404, "Not Found"), (403, "Forbidden"), (204, "No Content")])
def test_a_final_answer_is_not_asked_for_again(server: LoopbackServer, target: Path, status: int, reason: str) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(status)
    with pytest.raises(EnvironmentFault, match=rf"/file\.bin: the server answers {status} {reason}\.$"):
        download(f"{server.url}/file.bin", MD5, target)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_refusal_is_waited_out(server: LoopbackServer, target: Path, status: int) -> None:
    def answer(handler: Handler) -> None:
        first = len(server.asked) == 1
        handler.answer(status if first else 200, b"" if first else BODY)

    server.answers["/file.bin"] = answer
    download(f"{server.url}/file.bin", MD5, target)
    assert target.read_bytes() == BODY
    assert len(server.asked) == 2


@pytest.mark.parametrize(("status", "reason"), [(429, "Too Many Requests"), (500, "Internal Server Error")])
def test_a_lasting_refusal_ends_after_three_attempts(
    server: LoopbackServer, target: Path, status: int, reason: str
) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(status)
    expected = rf"/file\.bin: the server answers {status} {reason} \(3 attempts\)\.$"
    with pytest.raises(EnvironmentFault, match=expected):
        download(f"{server.url}/file.bin", MD5, target)
    assert len(server.asked) == 3


def test_pauses_double(server: LoopbackServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(module, "PAUSE", 1.0)
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    server.answers["/file.bin"] = lambda handler: handler.answer(500)
    with pytest.raises(EnvironmentFault):
        download(f"{server.url}/file.bin", MD5, target)
    assert pauses == [1.0, 2.0]


def test_an_endless_body_is_given_up(server: LoopbackServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 200_000)

    def pour(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not server.released.is_set():
            handler.wfile.write(bytes(2**16))

    server.answers["/file.bin"] = pour
    with pytest.raises(EnvironmentFault, match=r"/file\.bin: the body passes 200000 bytes and was given up\.$"):
        download(f"{server.url}/file.bin", MD5, target)
    assert len(server.asked) == 1
    assert list_names(target.parent) == []


def test_redirects_are_followed_relative_and_absolute(server: LoopbackServer, target: Path) -> None:
    server.answers["/old"] = redirect("newer/file.bin")
    server.answers["/newer/file.bin"] = redirect(f"{server.url}/newest")
    server.answers["/newest"] = lambda handler: handler.answer(200, BODY)
    download(f"{server.url}/old", MD5, target)
    assert target.read_bytes() == BODY
    assert server.asked == ["/old", "/newer/file.bin", "/newest"]


def test_a_loop_of_redirects_is_refused(server: LoopbackServer, target: Path) -> None:
    server.answers["/a"] = redirect("/b")
    server.answers["/b"] = redirect("/a")
    with pytest.raises(EnvironmentFault, match=r"/a: more than 5 redirects, the last to http://127\.0\.0\.1:\d+/a\.$"):
        download(f"{server.url}/a", MD5, target)
    assert len(server.asked) == 6


@pytest.mark.parametrize("there", ["file:///etc/hostname", "ftp://127.0.0.1/file.bin", "data:text/plain,x"])
def test_a_redirect_to_another_scheme_is_refused(server: LoopbackServer, target: Path, there: str) -> None:
    server.answers["/file.bin"] = redirect(there)
    with pytest.raises(EnvironmentFault) as caught:
        download(f"{server.url}/file.bin", MD5, target)
    expected = f"{server.url}/file.bin: redirects to {there}, which is not http or https; refused."
    assert str(caught.value) == expected
    assert list_names(target.parent) == []


def test_a_redirect_to_nonsense_is_refused(server: LoopbackServer, target: Path) -> None:
    server.answers["/file.bin"] = redirect("http://[nonsense")
    with pytest.raises(EnvironmentFault, match=r"/file\.bin: is, or redirects to, no address \(Invalid IPv6 URL\)\.$"):
        download(f"{server.url}/file.bin", MD5, target)


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
        download(url, MD5, target)
    assert list_names(target.parent) == []


def test_a_name_that_cannot_be_written_is_named(server: LoopbackServer, target: Path) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(200, BODY)
    target.mkdir()
    with pytest.raises(EnvironmentFault, match=r"file\.bin: cannot be written: Is a directory\.$"):
        download(f"{server.url}/file.bin", MD5, target)
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


def test_a_file_that_the_mirrors_folder_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        obtain_file(make_file(), tmp_path / "out.bin", str(tmp_path), tmp_path / "cache")
    expected = "not there; run.mirror must be a folder that holds the original file.bin."
    assert str(caught.value) == f"{tmp_path / 'file.bin'}: {expected}"


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


def test_a_cache_that_cannot_be_made_is_named(server: LoopbackServer, tmp_path: Path) -> None:
    server.answers["/file.bin"] = lambda handler: handler.answer(200, BODY)
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(EnvironmentFault, match=r"cache.*: cannot be written"):
        obtain_file(make_file(f"{server.url}/file.bin"), tmp_path / "out.bin", "", tmp_path / "cache")
