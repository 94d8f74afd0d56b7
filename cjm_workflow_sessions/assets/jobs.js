// Jobs on a page: their progress as it happens, and their buttons.
//
// The server renders every job and says in each event what its elements show; this script puts text in place. Where a job needs other elements than it has
// (`shape`), the part of the page it stands in is fetched anew from the address of the page, as a reload would show it. Text is written by textContent only.
(() => {
  "use strict";
  if (window.cjmJobs) return; // loaded twice, by two routers of one host
  window.cjmJobs = true;
  const HELLO_MS = 5000, SILENCE_MS = 40000; // the server says something at once, and then every 15 seconds
  const TRIES = 4, POLL_MS = 2000, POLLS = 15; // where no stream gets through; after so many polls another is tried
  const AGAIN_MS = 1000; // between two fetches of one part
  const LIMIT = 200; // jobs of one stream
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const ofJob = (prefix, id) => all(`[data-job="${CSS.escape(id)}"]`).filter((e) => e.dataset.jobs === prefix);

  // ---- showing -------------------------------------------------------------------------------------------------------
  function show(prefix, said) {
    for (const element of ofJob(prefix, said.session_id)) {
      if (said.status === null) gone(element);
      else put(element, said);
    }
  }

  function put(element, said) {
    const { text, bar, stats, shape, live } = said.shown;
    element.dataset.status = said.status;
    element.toggleAttribute("data-live", live);
    for (const place of all("[data-slot]", element)) if (place.textContent !== text[place.dataset.slot]) place.textContent = text[place.dataset.slot];
    for (const list of all("[data-stats]", element)) count(list, stats);
    for (const details of all("details[data-listed]", element)) fail(details, said.failed);
    for (const progress of all("[data-bar]", element)) {
      if (bar === null) progress.removeAttribute("value"); else progress.value = bar;
      progress.setAttribute("aria-valuetext", text.count || text.status);
    }
    if (element.dataset.shape && element.dataset.shape !== shape) renew(partOf(element));
  }

  function count(list, stats) {
    const names = Object.keys(stats), places = () => all("[data-stat]", list);
    if (names.toSorted().join("\n") !== places().map((e) => e.dataset.stat).toSorted().join("\n")) list.replaceChildren(...names.map(statistic));
    for (const place of places()) if (place.textContent !== stats[place.dataset.stat]) place.textContent = stats[place.dataset.stat];
  }

  function statistic(name) {
    const line = document.createElement("div"), term = document.createElement("dt"), value = document.createElement("dd");
    term.textContent = name.replaceAll("_", " ");
    value.dataset.stat = name;
    line.append(term, value);
    return line;
  }

  // Which items failed is fetched by those who want to know, not by everybody who watches.
  function fail(details, failed) {
    details.dataset.failed = failed;
    details.hidden = !failed;
    if (details.open && +details.dataset.listed < Math.min(failed, +details.dataset.most)) renew(partOf(details));
  }
  document.addEventListener("toggle", (e) => { if (e.target.matches?.("details[data-failed]")) fail(e.target, +e.target.dataset.failed); }, true);

  function gone(element) {
    element.removeAttribute("data-live");
    const part = partOf(element);
    if (part) renew(part); else element.remove();
  }

  // ---- parts of the page ---------------------------------------------------------------------------------------------
  function partOf(element) {
    let part = element.closest("[data-job-part]");
    for (let outer = part; outer; outer = part.parentElement?.closest("[data-job-part]")) part = outer;
    return part;
  }

  // One fetch at a time for all parts that wait for one, and not more than one a second.
  const waiting = new Set();
  let timer = null, fetchedAt = -Infinity;

  function renew(part, at_once = false) {
    if (!part) return;
    waiting.add(part.id);
    if (at_once) { clearTimeout(timer); timer = null; }
    timer ??= setTimeout(fetchParts, at_once ? 0 : Math.max(0, fetchedAt + AGAIN_MS - performance.now()));
  }

  async function fetchParts() {
    fetchedAt = performance.now();
    const ids = [...waiting];
    waiting.clear();
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
      if ([404, 410].includes(answer.status)) return location.reload(); // there is no such page any more: the server says why
      if (!answer.ok || answer.redirected) throw new Error(answer.status); // to a page for signing in, perhaps
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const id of ids) replace(document.getElementById(id), page.getElementById(id));
      document.title = page.title;
    } catch { /* the server is away: the next event, or the next stream, asks again */ }
    timer = null;
    if (waiting.size) renew(document.getElementById([...waiting][0]));
    look();
  }

  function replace(old, fresh) {
    if (!old) return;
    if (!fresh) return old.remove();
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    for (const kept of all("details[open][data-keep]", old)) fresh.querySelector(`details[data-keep="${kept.dataset.keep}"]`)?.setAttribute("open", "");
    const heard = old.querySelector('[data-slot="said"]'), hears = fresh.querySelector('[data-slot="said"]');
    const words = hears?.textContent;
    if (heard && hears) hears.textContent = heard.textContent; // a new element is not read out, a change of its text is
    for (const without of all("noscript", fresh)) without.remove(); // a parser without scripts reads what is in it, such as the order to load the page again
    document.adoptNode(fresh);
    old.replaceWith(fresh);
    if (heard && hears) setTimeout(() => { hears.textContent = words; }, 100);
    if (focused) (fresh.querySelector(`[data-job-act="${focused.dataset.jobAct}"]`) ?? fresh.querySelector("[data-job]") ?? fresh).focus({ preventScroll: true });
    window.htmx?.process(fresh);
  }

  // ---- following -----------------------------------------------------------------------------------------------------
  // One stream for all jobs of a router on the page, and only while the page is in sight: a browser opens six connections to one host in all its tabs.
  class Follower {
    constructor(prefix) {
      this.prefix = prefix;
      this.ids = [];
      this.failures = 0;
      this.state = "off";
    }

    get query() { return this.ids.map((id) => `id=${encodeURIComponent(id)}`).join("&"); }
    say(state = this.state) { this.state = state; for (const id of this.ids) for (const e of ofJob(this.prefix, id)) e.dataset.following = this.state; } // for those who style or test the page

    follow(ids) {
      const same = ids.length === this.ids.length && ids.every((id) => this.ids.includes(id));
      if (same && this.busy) return this.say(); // elements may be new
      this.stop();
      this.ids = ids;
      if (ids.length && !document.hidden && !this.refused) this.open();
    }

    stop() {
      this.source?.close();
      this.source = null;
      for (const name of ["watchdog", "later"]) clearTimeout(this[name]);
      this.busy = false;
    }

    open() {
      this.busy = true;
      if (!window.EventSource) return this.poll(Infinity);
      const source = this.source = new EventSource(`${this.prefix}/events?${this.query}`);
      const on = (name, heard) => source.addEventListener(name, (e) => { this.lives(); heard(JSON.parse(e.data)); });
      on("beat", () => {});
      on("progress", (said) => show(this.prefix, said));
      on("end", (said) => { show(this.prefix, said); look(); });
      source.addEventListener("error", () => this.lost());
      this.expect(HELLO_MS);
    }

    lives() {
      this.failures = 0;
      this.hope = true;
      this.say("on");
      this.expect(SILENCE_MS);
    }

    expect(ms) {
      clearTimeout(this.watchdog);
      this.watchdog = setTimeout(() => this.lost(), ms);
    }

    lost() { // a stream that ends in time is lost too, and comes back at once
      this.stop();
      if (document.hidden || !this.ids.length) return;
      this.busy = true;
      this.failures += 1;
      this.say("lost");
      const wait = 300 * this.failures + 400 * Math.random(); // not all browsers at the same moment
      this.later = setTimeout(() => (this.failures < TRIES ? this.open() : this.poll(POLLS)), wait);
    }

    async poll(left) {
      if (left === 0) { this.failures = 0; return this.open(); }
      const asked = this.query;
      let answer = null;
      try { answer = await fetch(`${this.prefix}/progress?${asked}`, { headers: { Accept: "application/json" }, cache: "no-store" }); }
      catch { /* the server is away */ }
      if (asked !== this.query || !this.busy) return;
      if ([401, 403].includes(answer?.status)) { this.refused = true; return this.stop(); }
      if (answer?.ok) {
        for (const said of (await answer.json()).sessions) show(this.prefix, said);
        look();
        if (asked !== this.query || !this.busy) return;
      }
      const back = this.hope && answer?.ok; // the server answers again: a stream may get through, if one ever did or none could
      this.hope = !answer?.ok;
      this.say(answer?.ok ? "polling" : "away");
      this.later = setTimeout(() => this.poll(back ? 0 : left - 1), back ? 0 : POLL_MS * (0.9 + 0.2 * Math.random()));
    }
  }

  const followers = new Map();

  function look() { // which jobs are on the page now
    const wanted = new Map([...followers.keys()].map((prefix) => [prefix, []]));
    for (const { dataset: { job, jobs } } of all("[data-job][data-live]")) {
      if (!wanted.has(jobs)) wanted.set(jobs, []);
      if (!wanted.get(jobs).includes(job)) wanted.get(jobs).push(job);
    }
    for (const [prefix, ids] of wanted) {
      if (!followers.has(prefix)) followers.set(prefix, new Follower(prefix));
      followers.get(prefix).follow(ids.slice(0, LIMIT));
    }
  }

  // Another tab may have gone on with a job that rests in this one.
  async function catchUp() {
    const resting = new Map();
    for (const { dataset: { job, jobs, shape } } of all("[data-job]:not([data-live])")) if (shape) resting.set(jobs, [...(resting.get(jobs) ?? []), job]);
    for (const [prefix, ids] of resting) {
      const query = ids.slice(0, LIMIT).map((id) => `id=${encodeURIComponent(id)}`).join("&");
      try {
        const answer = await fetch(`${prefix}/progress?${query}`, { headers: { Accept: "application/json" }, cache: "no-store" });
        if (answer.ok) for (const said of (await answer.json()).sessions) show(prefix, said);
      } catch { /* the server is away: nothing is lost */ }
    }
    look();
  }

  // ---- buttons -------------------------------------------------------------------------------------------------------
  document.addEventListener("submit", async (e) => {
    const form = e.target.closest("form[data-job-send]");
    if (!form) return;
    e.preventDefault();
    if (form.sending) return; // a double click does it once
    form.sending = true;
    const part = partOf(form), card = form.closest("[data-job]") ?? part?.querySelector("[data-job]"), data = new FormData(form);
    const refused = await send(form.getAttribute("action"), new URLSearchParams(data));
    form.sending = false;
    if (refused === "" && form.dataset.jobSend === "delete" && data.get("back")) return location.assign(data.get("back"));
    const place = card?.querySelector("[data-job-refused]");
    if (refused && place) place.textContent = refused;
    else renew(part, true);
  });

  async function send(url, body) { // gives why it was refused; "" if it was not
    try {
      const answer = await fetch(url, { method: "POST", headers: { Accept: "application/json" }, body });
      return answer.ok ? "" : (await answer.json()).error;
    } catch { return "The server cannot be reached, or gave no answer that can be read. Try again."; }
  }

  // ---- the page ------------------------------------------------------------------------------------------------------
  document.addEventListener("visibilitychange", () => {
    for (const follower of followers.values()) if (document.hidden) follower.stop();
    if (!document.hidden) catchUp();
  });
  document.addEventListener("htmx:afterSettle", look);
  window.addEventListener("pagehide", () => { for (const follower of followers.values()) follower.stop(); });
  window.addEventListener("pageshow", (e) => { if (e.persisted) catchUp(); });
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", look); else look();
})();
