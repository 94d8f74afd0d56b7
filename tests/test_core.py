"""WorkflowSession and JobSessionManager: the usage that older hosts rely on, through real requests, and what keeps namespaces apart."""

import json
import random
from base64 import b64encode

import pytest
from fasthtml.common import Client, FastHTML
from itsdangerous import TimestampSigner
from starlette.middleware.sessions import Session

from cjm_workflow_sessions.core.cookie import COOKIE_LIMIT, MAX_DEPTH, cookie_size
from cjm_workflow_sessions.core.job_session import JobSessionManager
from cjm_workflow_sessions.core.workflow_session import WorkflowSession
from cjm_workflow_sessions.errors import CookieTooLarge, InvalidInput, NotJSON, SessionError


class StoredSession(dict):
    "A session that a server keeps: it has no limit."
    cookie_limit = None


class CountedSession(Session):
    "Counts how often a key was set or removed."
    def __init__(self, *args):
        super().__init__(*args)
        self.writes = 0

    def mark_modified(self):
        super().mark_modified()
        self.writes += 1


def make_app():
    app = FastHTML(secret_key="test")

    @app.post("/set")
    def set_value(sess, workflow_id: str, key: str, value: str):
        WorkflowSession(sess, workflow_id).set(key, json.loads(value))
        return "set"

    @app.post("/append")
    def append(sess, workflow_id: str, key: str, value: str):
        with WorkflowSession(sess, workflow_id).edit(key, default=[]) as values: values.append(value)
        return "appended"

    @app.post("/clear")
    def clear(sess, workflow_id: str):
        WorkflowSession(sess, workflow_id).clear()
        return "cleared"

    @app.post("/job")
    def store_job(sess, job_id: str, metadata: str):
        JobSessionManager(sess).store_job_metadata(job_id, json.loads(metadata))
        return "stored"

    @app.post("/clear_jobs")
    def clear_jobs(sess):
        JobSessionManager(sess).clear_all_jobs()
        return "cleared"

    @app.get("/all")
    def show(sess): return json.dumps(sess)

    return app


def values(client): return {key: value for key, value in json.loads(client.get("/all").text).items() if not key.endswith("_last_modified")}


# -- usage, as in the seeds ----------------------------------------------------------------------------------------------------

def test_workflow_session_usage():
    sess = {}
    workflow = WorkflowSession(sess, "registration", clock=lambda: 1761790891.25)
    workflow.set("email", "user@example.com")
    workflow.set("username", "john_doe")
    workflow.set("step", 2)
    assert sess == {"workflow_registration_email": "user@example.com", "__registration_last_modified": 1761790891.25,
                    "workflow_registration_username": "john_doe", "workflow_registration_step": 2}
    assert list(sess)[:2] == ["workflow_registration_email", "__registration_last_modified"]
    assert workflow.get_all() == {"email": "user@example.com", "username": "john_doe", "step": 2}
    assert (workflow.has("email"), workflow.has("password"), workflow.get("password"), workflow.get("password", "none")) == (True, False, None, "none")

    checkout = WorkflowSession(sess, "checkout")
    checkout.set("step", 1)
    checkout.set("cart_total", 99.99)
    assert (workflow.get("step"), checkout.get("step")) == (2, 1)

    workflow.delete("step")
    assert workflow.get("step", "Not found") == "Not found"
    workflow.clear()
    assert (workflow.get_all(), checkout.get_all()) == ({}, {"step": 1, "cart_total": 99.99})
    assert set(sess) == {"__registration_last_modified", "workflow_checkout_step", "__checkout_last_modified", "workflow_checkout_cart_total"}
    assert WorkflowSession({}, "empty").get("nonexistent", "default_value") == "default_value"


def test_job_session_usage():
    sess = {}
    jobs = JobSessionManager(sess)
    for number in ("123", "456", "789"): jobs.store_job_metadata(f"job-{number}", {"file_info": {"name": f"{number}.mp3"}})
    assert list(sess) == ["job_job-123", "job_job-456", "job_job-789"]
    assert jobs.get_job_metadata("job-123") == {"file_info": {"name": "123.mp3"}}
    assert jobs.get_job_metadata("job-999", default={"error": "Not found"}) == {"error": "Not found"}
    jobs.delete_job_metadata("job-456")
    jobs.delete_job_metadata("job-456")
    assert list(sess) == ["job_job-123", "job_job-789"]
    jobs.clear_all_jobs()
    assert sess == {}

    custom = JobSessionManager({}, prefix="processing")
    custom.store_job_metadata("task-001", {"status": "running"})
    assert (custom.sess, custom.prefix) == ({"processing_task-001": {"status": "running"}}, "processing")


def test_values_survive_requests():
    client = Client(make_app())
    client.post("/set", data={"workflow_id": "registration", "key": "email", "value": '"user@example.com"'})
    client.post("/append", data={"workflow_id": "registration", "key": "tags", "value": "a"})
    client.post("/append", data={"workflow_id": "registration", "key": "tags", "value": "b"})   # nested: the cookie is written again
    client.post("/job", data={"job_id": "j1", "metadata": '{"title": "é 🎈"}'})
    assert values(client) == {"workflow_registration_email": "user@example.com", "workflow_registration_tags": ["a", "b"], "job_j1": {"title": "é 🎈"}}
    client.post("/clear", data={"workflow_id": "registration"})
    client.post("/clear_jobs")
    assert values(client) == {}
    assert list(json.loads(client.get("/all").text)) == ["__registration_last_modified"]


def test_reading_and_removing_nothing_sends_no_cookie():
    client = Client(make_app())
    assert "set-cookie" not in client.post("/clear", data={"workflow_id": "registration"}).headers
    assert "set-cookie" not in client.post("/clear_jobs").headers
    assert "set-cookie" in client.post("/set", data={"workflow_id": "a", "key": "k", "value": "1"}).headers


# -- namespaces ----------------------------------------------------------------------------------------------------------------

def test_key_shapes_of_ids_with_underscore_and_percent():
    sess = {}
    WorkflowSession(sess, "a_b", clock=lambda: 1.5).set("x_y", 1)
    WorkflowSession(sess, "5%", clock=lambda: 2.5).set("x", 2)
    JobSessionManager(sess, prefix="job_x").store_job_metadata("1_2", {})
    assert sess == {"workflow_a%5Fb_x_y": 1, "__a%5Fb_last_modified": 1.5, "workflow_5%25_x": 2, "__5%25_last_modified": 2.5, "job%5Fx_1_2": {}}


@pytest.mark.parametrize("first, second", [("a", "a_b"), ("order", "order_items"), ("a_b", "a%5Fb"), ("a%", "a%25"), ("_", "__"), ("a", "A"), ("%5", "%5F")])
def test_alike_ids_stay_apart(first, second):
    sess = {}
    one, two = WorkflowSession(sess, first), WorkflowSession(sess, second)
    one.set("b_x", 1)
    two.set("x", 2)
    two.set("b_x", 3)
    assert (one.get_all(), two.get_all()) == ({"b_x": 1}, {"x": 2, "b_x": 3})
    one.clear()
    assert two.get_all() == {"x": 2, "b_x": 3} and two.last_modified is not None
    two.forget()
    assert list(sess) == [one.stamp_key]


def test_alike_prefixes_stay_apart():
    sess = {}
    plain, longer = JobSessionManager(sess), JobSessionManager(sess, prefix="job_x")
    plain.store_job_metadata("x_1", {"of": "job"})
    longer.store_job_metadata("1", {"of": "job_x"})
    assert (plain.get_job_metadata("x_1"), longer.get_job_metadata("1")) == ({"of": "job"}, {"of": "job_x"})
    plain.clear_all_jobs()
    assert (plain.get_job_metadata("x_1"), longer.get_job_metadata("1")) == ({}, {"of": "job_x"})


def test_other_keys_are_left_alone():
    others = {"_workflow_session_id": "s1", "_workflow_session_id:ingest": "s2", "workflow": 1, "workflow_": 2, "auth": "me", "job": 3, "job_title": "Engineer",
              "jobs_1": {}, "__last_modified": 4, 7: "not yet text"}
    sess = dict(others)
    workflow, jobs = WorkflowSession(sess, "session"), JobSessionManager(sess)
    workflow.set("id", 1)
    jobs.store_job_metadata("1", {"a": 1})
    assert (workflow.get_all(), jobs.get_job_metadata("title"), jobs.get_job_metadata("title", {"a": 1})) == ({"id": 1}, {}, {"a": 1})
    jobs.delete_job_metadata("title")
    workflow.forget()
    jobs.clear_all_jobs()
    assert sess == others


def test_a_dict_of_the_host_under_the_prefix_cannot_be_told_from_a_job():
    sess = {"job_filters": {"open": True}}
    assert JobSessionManager(sess).get_job_metadata("filters") == {"open": True}
    JobSessionManager(sess).clear_all_jobs()
    assert sess == {}


@pytest.mark.parametrize("refused", ["", None, 5])
def test_a_workflow_needs_a_name(refused):
    with pytest.raises(InvalidInput) as caught: WorkflowSession({}, refused)
    assert caught.value.field == "workflow_id"


@pytest.mark.parametrize("refused", ["", None, 5, "workflow"])
def test_prefixes_that_belong_to_others_are_refused(refused):
    with pytest.raises(InvalidInput) as caught: JobSessionManager({}, refused)
    assert caught.value.field == "prefix"


HOSTILE = ("workflow", "session", "id", "job", "last", "modified", "a", "b", "_", "__", "%", "%5F", "%25", "5F", ":", " ", "\0", "é")


def hostile_name(rng, least): return "".join(rng.choices(HOSTILE, k=rng.randint(least, 4)))


def run_at_random(rng, host, workflows, jobs):
    "Do 400 random operations on one session and beside it on a plain model; return both."
    sess = StoredSession(host)
    flows = {name: WorkflowSession(sess, name) for name in workflows}
    managers = {name: JobSessionManager(sess, prefix=name) for name in jobs}
    model = {("flow", name): {} for name in workflows} | {("job", name): {} for name in jobs}
    for number in range(400):
        kind, name = rng.choice(list(model))
        key, held = hostile_name(rng, 0), model[kind, name]
        if held and rng.random() < 0.3: key = rng.choice(list(held))
        match kind, rng.choices(("put", "delete", "clear", "forget"), (80, 15, 3, 2))[0]:
            case "flow", "put": flows[name].set(key, number); held[key] = number
            case "flow", "delete": flows[name].delete(key); held.pop(key, None)
            case "flow", "clear": flows[name].clear(); held.clear()
            case "flow", "forget": flows[name].forget(); held.clear()
            case "job", "put": managers[name].store_job_metadata(key, {"n": number}); held[key] = {"n": number}
            case "job", "delete": managers[name].delete_job_metadata(key); held.pop(key, None)
            case "job", _: managers[name].clear_all_jobs(); held.clear()
    read = {("flow", name): flow.get_all() for name, flow in flows.items()}
    read |= {("job", name): {key: manager.get_job_metadata(key, {"n": None}) for key in model["job", name]} for name, manager in managers.items()}
    stamps = {flow.stamp_key for flow in flows.values()} & set(sess)
    return sess, read, model, stamps


@pytest.mark.parametrize("seed", range(40))
def test_namespaces_never_touch_each_other(seed):
    rng = random.Random(seed)
    host = {"_workflow_session_id": "s1", "_workflow_session_id:a": "s2", "auth": "me"}
    workflows = {hostile_name(rng, 1) for _ in range(6)} | {"a", "a_b"}
    jobs = ({hostile_name(rng, 1) for _ in range(4)} | {"job", "job_a"}) - {"workflow"}
    sess, read, model, stamps = run_at_random(rng, host, workflows, jobs)
    assert read == model
    assert len(sess) == len(host) + len(stamps) + sum(len(held) for held in model.values())
    assert {key: sess[key] for key in host} == host


# -- copies --------------------------------------------------------------------------------------------------------------------

def test_what_goes_in_and_out_is_a_copy():
    sess, given = {}, {"rows": [1]}
    workflow, jobs = WorkflowSession(sess, "a"), JobSessionManager(sess)
    workflow.set("k", given)
    jobs.store_job_metadata("1", given)
    given["rows"].append(2)
    for read in (workflow.get("k"), workflow.get_all()["k"], jobs.get_job_metadata("1")):
        assert read == {"rows": [1]}
        read["rows"].append(3)
    assert workflow.get("k") == jobs.get_job_metadata("1") == {"rows": [1]}


def test_defaults_are_copies_and_sentinels_stay():
    default, sentinel = {"rows": []}, object()
    WorkflowSession({}, "a").get("k", default)["rows"].append(1)
    JobSessionManager({}).get_job_metadata("1", default)["rows"].append(1)
    JobSessionManager({}).get_job_metadata("1")["x"] = 1
    assert default == {"rows": []} and JobSessionManager({}).get_job_metadata("1") == {}
    assert WorkflowSession({}, "a").get("k", sentinel) is sentinel


def test_a_value_reads_the_same_now_and_in_the_next_request():
    sess = {}
    WorkflowSession(sess, "a").set("k", {"pair": (1, 2), "n": None, "f": 0.1, "text": "\0 é 🎈 \u202e"})
    now = WorkflowSession(sess, "a").get("k")
    later = WorkflowSession(json.loads(json.dumps(sess)), "a").get("k")
    assert now == later == {"pair": [1, 2], "n": None, "f": 0.1, "text": "\0 é 🎈 \u202e"}


# -- edit ----------------------------------------------------------------------------------------------------------------------

def test_edit_stores_a_nested_change_and_marks_the_session():
    sess = CountedSession()
    workflow = WorkflowSession(sess, "a")
    workflow.set("cart", {"items": ["tea"]})
    sess.modified, sess.writes = False, 0
    with workflow.edit("cart") as cart: cart["items"].append("milk")
    assert (workflow.get("cart"), sess.modified, sess.writes) == ({"items": ["tea", "milk"]}, True, 1)
    cart["items"].append("after the end")
    assert workflow.get("cart") == {"items": ["tea", "milk"]}


def test_edit_without_a_change_writes_nothing():
    sess = CountedSession({"workflow_a_k": {"n": 1}, "__a_last_modified": 1.5})
    with WorkflowSession(sess, "a").edit("k") as value: value["n"] = 1
    with WorkflowSession(sess, "a").edit("missing", default=[]): pass
    assert (sess.writes, dict(sess)) == (0, {"workflow_a_k": {"n": 1}, "__a_last_modified": 1.5})
    with WorkflowSession(sess, "a").edit("k") as value: value["n"] = True   # equal in Python, another value in JSON
    assert sess["workflow_a_k"]["n"] is True


@pytest.mark.parametrize("spoil, error", [(lambda v: 1 / 0, ZeroDivisionError), (lambda v: v.update(bad={1}), NotJSON), (lambda v: v.update(big="x" * 5000), CookieTooLarge)])
def test_edit_that_fails_stores_nothing(spoil, error):
    sess = CountedSession({"workflow_a_k": {"n": 1}})
    with pytest.raises(error):
        with WorkflowSession(sess, "a").edit("k") as value:
            value["n"] = 2
            spoil(value)
    assert (dict(sess), sess.writes) == ({"workflow_a_k": {"n": 1}}, 0)


def test_edit_default_is_not_touched():
    default = {"rows": []}
    workflow = WorkflowSession({}, "a")
    with workflow.edit("k", default=default) as value: value["rows"].append(1)
    assert (default, workflow.get("k")) == ({"rows": []}, {"rows": [1]})


@pytest.mark.parametrize("held", [3, "text", None, True])
def test_edit_refuses_what_cannot_change_in_place(held):
    workflow = WorkflowSession({}, "a")
    workflow.set("k", held)
    with pytest.raises(InvalidInput, match="use set"):
        with workflow.edit("k"): pass
    with pytest.raises(InvalidInput, match="default="):
        with workflow.edit("missing"): pass


# -- refused values ------------------------------------------------------------------------------------------------------------

def nested(levels):
    value = "deep"
    for _ in range(levels): value = [value]
    return value


def endless():
    value = {}
    value["self"] = value
    return value


BAD = {"bytes": b"x", "set": {1}, "object": object(), "nan": float("nan"), "inf": [float("-inf")], "int key": {1: 2}, "deep int key": [{"a": ({True: 1},)}],
       "None key": {None: 1}, "endless": endless(), "deep": nested(MAX_DEPTH + 1), "very deep": nested(100_000), "huge number": 10 ** 5000}


@pytest.mark.parametrize("name", BAD)
def test_what_json_cannot_hold_is_refused_before_anything_is_stored(name):
    sess = CountedSession({"workflow_a_photo": 1, "__a_last_modified": 1.5, "job_1": {"old": 1}})
    before = dict(sess)
    with pytest.raises(TypeError, match="'photo'") as caught: WorkflowSession(sess, "a").set("photo", BAD[name])
    assert isinstance(caught.value, NotJSON) and caught.value.key == "photo"
    with pytest.raises(NotJSON, match="'job_1'"): JobSessionManager(sess).store_job_metadata("1", {"v": BAD[name]})
    assert (dict(sess), sess.writes) == (before, 0)


def test_the_deepest_value_that_goes_in_comes_out():
    workflow = WorkflowSession({}, "a")
    workflow.set("k", nested(MAX_DEPTH))
    assert workflow.get("k") == nested(MAX_DEPTH)


@pytest.mark.parametrize("metadata", [None, "running", [1], 5])
def test_metadata_is_a_dict(metadata):
    sess = {}
    with pytest.raises(InvalidInput, match="metadata"): JobSessionManager(sess).store_job_metadata("1", metadata)
    assert sess == {}


def test_a_bad_value_of_the_host_is_named():
    with pytest.raises(NotJSON, match="'upload'"): WorkflowSession({"upload": b"x"}, "a").set("k", 1)


# -- the size of the cookie ----------------------------------------------------------------------------------------------------

def sent_bytes(client, cookie_name):
    "Bytes of name and value in the cookie that the server sent last."
    return len(cookie_name) + len(client.cli.cookies.get(cookie_name).strip('"'))


@pytest.mark.parametrize("cookie_name", ["session_", "s", "session_of_a_longer_name"])
def test_the_size_is_what_the_server_sends(cookie_name):
    app = FastHTML(secret_key="another key", session_cookie=cookie_name)

    @app.post("/fill")
    def fill(sess, value: str):
        WorkflowSession(sess, "a", cookie_name=cookie_name).set("k", value)
        return str(cookie_size(sess, cookie_name))

    client = Client(app)
    for value in ("x", "xx", "xxx", "é\n\"\\", "🎈" * 50, "x" * 2500):
        assert int(client.post("/fill", data={"value": value}).text) == sent_bytes(client, cookie_name)


def largest_fit(sess, put):
    "Put longer and longer text until it is refused; return the length that went in and the error."
    low, high = 0, COOKIE_LIMIT
    while low + 1 < high:
        middle = (low + high) // 2
        try: put("x" * middle); low = middle
        except CookieTooLarge as e: high, error = middle, e
    put("x" * low)
    return low, error


def as_sent(sess, cookie_name="session_"):
    return len(cookie_name) + len(TimestampSigner("k").sign(b64encode(json.dumps(sess).encode())))


@pytest.mark.parametrize("kind", ["workflow", "job"])
def test_the_limit_is_exact(kind):
    sess = {"host": "y" * 500}
    put = {"workflow": lambda text: WorkflowSession(sess, "a", clock=lambda: 1761790891.5).set("k", text),
           "job": lambda text: JobSessionManager(sess).store_job_metadata("1", {"text": text})}[kind]
    length, _ = largest_fit(sess, put)
    assert COOKIE_LIMIT - 4 < as_sent(sess) <= COOKIE_LIMIT
    before = json.dumps(sess)
    with pytest.raises(CookieTooLarge) as caught: put("x" * (length + 1))
    error = caught.value
    assert json.dumps(sess) == before and isinstance(error, SessionError)
    assert (error.limit, error.size) == (4096, as_sent(sess) + 4)   # base64 grows by four
    assert error.biggest[0][0] in ("workflow_a_k", "job_1") and error.biggest[1] == ("host", 502)


def test_the_cookie_name_counts():
    short, long = {}, {}
    for name, sess in (("s", short), ("s" * 40, long)):
        largest_fit(sess, lambda text: WorkflowSession(sess, "a", cookie_name=name, clock=lambda: 1.5).set("k", text))
        assert COOKIE_LIMIT - 4 < as_sent(sess, name) <= COOKIE_LIMIT
    assert len(short["workflow_a_k"]) - len(long["workflow_a_k"]) == pytest.approx(39 * 3 / 4, abs=3)


def test_a_session_kept_by_a_server_has_no_limit_but_takes_only_json():
    sess = StoredSession()
    WorkflowSession(sess, "a").set("k", "x" * 100_000)
    JobSessionManager(sess).store_job_metadata("1", {"text": "x" * 100_000})
    assert len(sess) == 3
    with pytest.raises(NotJSON): WorkflowSession(sess, "a").set("k", b"x")


def test_removing_works_in_a_full_cookie():
    sess = {"workflow_a_small": 1}
    sess["host"] = "x" * (3039 - len(json.dumps(sess | {"host": ""})))   # full, and without a time stamp: stored by an older version
    assert cookie_size(sess) == COOKIE_LIMIT - 1
    workflow = WorkflowSession(sess, "a")
    with pytest.raises(CookieTooLarge): workflow.set("small", 2)
    workflow.delete("small")
    assert list(sess) == ["host"] and cookie_size(sess) <= COOKIE_LIMIT   # no room for the stamp


def test_removing_makes_a_cookie_that_is_too_large_smaller():
    sess = {"workflow_a_big": "x" * 9000, "job_1": {"text": "x" * 9000}}
    JobSessionManager(sess).delete_job_metadata("1")
    WorkflowSession(sess, "a").clear()
    assert list(sess) == ["__a_last_modified"]


def test_every_write_marks_the_session_once_and_reads_never():
    sess = CountedSession()
    workflow, jobs = WorkflowSession(sess, "a"), JobSessionManager(sess)
    workflow.set("k", [1]); jobs.store_job_metadata("1", {})
    assert sess.writes == 2
    workflow.get("k"), workflow.get_all(), workflow.has("k"), workflow.last_modified, jobs.get_job_metadata("1")
    workflow.delete("missing"); jobs.delete_job_metadata("missing")
    assert sess.writes == 2


def test_last_modified_follows_changes_only():
    now = iter((1.5, 2.5, 3.5))
    workflow = WorkflowSession({}, "a", clock=lambda: next(now))
    seen = [workflow.last_modified]
    workflow.set("k", 1); seen.append(workflow.last_modified)
    workflow.delete("missing"); seen.append(workflow.last_modified)
    workflow.delete("k"); seen.append(workflow.last_modified)
    workflow.clear(); seen.append(workflow.last_modified)
    assert seen == [None, 1.5, 1.5, 2.5, 2.5]
