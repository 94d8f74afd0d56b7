"""A PostgreSQL server of our own for the tests: made in a temporary folder, on a free loopback port, ended with them."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest

from support import free_port


@contextlib.contextmanager
def throwaway():
    "A server for some tests. Without PostgreSQL they are skipped, and under CI they fail."
    programs = find_programs()
    if programs is None:
        assert os.environ.get("CI") != "true", "no PostgreSQL on this machine: run `make postgres`"
        pytest.skip("no PostgreSQL on this machine: `make postgres` installs it")
    cluster = Cluster(programs)
    try: yield cluster
    finally: cluster.close()


def find_programs():
    "The folder with initdb and postgres; None if there is no server on this machine."
    on_path = shutil.which("initdb")
    places = [*([Path(on_path).parent] if on_path else []), *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return next((p for p in places if (p / "initdb").exists() and (p / "postgres").exists()), None)


class Cluster:
    "One server with one database; each test has a schema of its own in it."
    def __init__(self, programs, **settings):
        self.programs, self.port = programs, free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="wfs-postgres-"))
        self.who = {} if os.geteuid() else _other_user()   # PostgreSQL refuses to run as root
        if self.who: os.chown(self.folder, self.who["user"], self.who["group"])
        self.data = self.folder / "data"
        # No sync: these tests end processes, never the machine.
        self.settings = dict(port=self.port, listen_addresses="127.0.0.1", unix_socket_directories="", fsync="off", max_connections=120,
                             shared_preload_libraries="pg_stat_statements", **settings)
        self._run("initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
        self.start()
        with self.admin() as db:
            db.execute("CREATE EXTENSION pg_trgm")
            db.execute("CREATE EXTENSION pg_stat_statements")

    @property
    def url(self): return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def _run(self, program, *args):
        done = subprocess.run([self.programs / program, *map(str, args)], cwd=self.folder, capture_output=True, text=True, **self.who)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self):
        options = [x for name, value in self.settings.items() for x in ("-c", f"{name}={value}")]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([self.programs / "postgres", "-D", self.data, *options], cwd=self.folder,
                                            stdout=log, stderr=log, start_new_session=True, **self.who)
        deadline = time.monotonic() + 60
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.05)

    def answers(self):
        try: self.admin().close()
        except psycopg.OperationalError: return False
        return True

    def stop(self, mode="fast"):
        "End the server: it says good-bye to its clients, or with mode \"immediate\" it does not."
        self._run("pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")
        self.process.wait(60)

    def restart(self, mode="fast"):
        self.stop(mode)
        self.start()

    def admin(self): return psycopg.connect(self.url, autocommit=True, connect_timeout=2)

    def fresh_url(self, *, user="postgres"):
        "The address of a schema of its own, where nothing is yet."
        schema = f"t{uuid4().hex}"
        with self.admin() as db: db.execute(f"CREATE SCHEMA {schema}")
        return self.in_schema(schema, user=user)

    def in_schema(self, schema, *, user="postgres"):
        return f"postgresql://{user}@127.0.0.1:{self.port}/postgres?options={quote(f'-csearch_path={schema},public')}"

    def statements(self):
        "How many statements the server has run for the tables of a store."
        with self.admin() as db:
            return db.execute("SELECT coalesce(sum(calls), 0)::int FROM pg_stat_statements WHERE query LIKE '%wfs%'").fetchone()[0]

    def close(self):
        if self.process.poll() is None: self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)


def _other_user():
    for name in ("postgres", "nobody"):
        try: found = pwd.getpwnam(name)
        except KeyError: continue
        return {"user": found.pw_uid, "group": found.pw_gid}
    raise AssertionError("root may not run PostgreSQL, and there is no other user")
