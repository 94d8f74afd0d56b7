"""What a real browser does with a stored session: the promises that stock FastHTML, beside it, cannot make."""

import contextlib
import shutil
import socket
import subprocess
import threading
import time

import pytest
import uvicorn
from itsdangerous import Signer

import http_session_app
from support import Server

NAME, HOST_NAME = "session_", "__Host-session_"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    "Two processes over one store: whatever the browser does next may reach the other one."
    with Server("http_session_app:make_stored", workers=2, STORE=f"sqlite:///{tmp_path_factory.mktemp('store')}/sessions.db") as server: yield server.url


@pytest.fixture(scope="module")
def stock():
    with Server("http_session_app:make_stock") as server: yield server.url


class Person:
    "Somebody with a browser of their own."
    def __init__(self, visitor, url):
        self.context, self.url = visitor(), url
        self.page = self.context.new_page()

    def ask(self, path):
        self.page.goto(self.url + path)
        return self.page.inner_text("body").strip()

    @property
    def cookies(self): return {c["name"]: c for c in self.context.cookies()}
    def cookie(self): return self.cookies[NAME]["value"]
    def replay(self, value): self.context.add_cookies([{"name": NAME, "value": value, "url": self.url}])


def test_twenty_kilobytes_survive(visitor, stored):
    ann = Person(visitor, stored)
    ann.ask("/fill?n=20000")
    assert [ann.ask("/length") for _ in range(4)] == ["20000"] * 4   # whichever process answers
    cookie = ann.cookies[NAME]
    assert len(cookie["value"]) < 100 and cookie["httpOnly"] and cookie["sameSite"] == "Lax" and not cookie["secure"]
    assert 13.9 < (cookie["expires"] - time.time()) / 86400 <= 14.1


def test_stock_loses_twenty_kilobytes_without_a_word(visitor, stock):
    ann = Person(visitor, stock)
    assert ann.ask("/fill?n=20000") == "filled"
    assert ann.ask("/length") == "0"


def test_a_nested_change_is_kept_where_stock_loses_it(visitor, stored, stock):
    def shop(url):
        ann = Person(visitor, url)
        ann.ask("/append?item=tea"), ann.ask("/append?item=milk")
        return ann.ask("/cart")
    assert (shop(stored), shop(stock)) == ("tea milk", "tea")


def replay_after_logout(visitor, url):
    ann, eve = Person(visitor, url), Person(visitor, url)
    ann.ask("/login?user=ann")
    copied = ann.cookie()
    eve.replay(copied)
    assert (ann.ask("/me"), eve.ask("/me")) == ("ann", "ann")
    ann.ask("/logout")
    assert ann.ask("/me") == "nobody" and NAME not in ann.cookies
    ann.replay(copied)
    return {who.ask("/me") for who in (ann, eve) for _ in range(3)}


def test_a_cookie_replayed_after_logout_is_refused(visitor, stored): assert replay_after_logout(visitor, stored) == {"nobody"}
def test_stock_takes_a_cookie_replayed_after_logout(visitor, stock): assert replay_after_logout(visitor, stock) == {"ann"}


def test_a_key_from_before_login_reaches_nothing_after_it(visitor, stored):
    eve, ann = Person(visitor, stored), Person(visitor, stored)
    eve.ask("/append?item=bait")
    planted = eve.cookie()
    ann.replay(planted)   # Eve has given Ann a session that she knows the key of
    assert ann.ask("/cart") == "bait"
    ann.ask("/login?user=ann")
    assert (ann.ask("/me"), ann.ask("/cart")) == ("ann", "bait") and ann.cookie() != planted
    assert [eve.ask(path) for path in ("/me", "/cart", "/me")] == ["nobody", "empty", "nobody"]


@pytest.mark.parametrize("chosen", ["A" * 43, "A" * 43 + ".sig", Signer("test").sign("A" * 43).decode(), "null"])
def test_a_chosen_key_is_not_adopted(visitor, stored, chosen):
    eve, ann = Person(visitor, stored), Person(visitor, stored)
    for who in (eve, ann): who.replay(chosen)
    ann.ask("/login?user=ann")
    assert ann.cookie() != chosen and ann.ask("/me") == "ann"
    assert eve.ask("/me") == "nobody"


# -- https -----------------------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def serve_https(app, folder):
    "Run `app` over https on a free port, with a certificate that nobody knows; gives its address."
    openssl = shutil.which("openssl")
    if openssl is None: pytest.skip("no openssl on this machine to make a certificate with")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ssl_certfile=str(folder / "cert.pem"), ssl_keyfile=str(folder / "key.pem")))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started and thread.is_alive(): time.sleep(0.01)
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def test_over_https_the_browser_takes_the_host_prefix(browser, tmp_path, monkeypatch):
    monkeypatch.setenv("STORE", "memory:")
    with serve_https(http_session_app.make_stored(), tmp_path) as url, contextlib.closing(browser.new_context(ignore_https_errors=True)) as context:
        ann = Person(lambda: context, url)
        ann.ask("/append?item=tea")
        assert ann.ask("/append?item=milk") == "tea milk"
        [cookie] = context.cookies()
        assert cookie["name"] == HOST_NAME and cookie["secure"] and cookie["httpOnly"] and cookie["path"] == "/" and not cookie["domain"].startswith(".")
        ann.ask("/logout")
        assert context.cookies() == [] and ann.ask("/cart") == "empty"
