// The session manager in the browser: keys, wheel, swipe, scroll bar, search, dialogs, messages, fresh times, and what others change.
//
// The server renders everything; this script only says what the person did. All it needs to know stands in data- attributes, and it writes
// text by textContent and value, so no label can become markup. One Manager serves one list; a page may hold several.
(() => {
  "use strict";
  const htmx = window.htmx;
  if (!htmx) return; // the page's forms and links work by themselves
  if (window.cjmManager) return; // loaded twice, by two routers of one host
  window.cjmManager = true;
  const byId = (id) => document.getElementById(id);
  const TYPING = "input, textarea, select, [contenteditable]:not([contenteditable='false'])";
  const MOVE_KEYS = { ArrowUp: "up", ArrowDown: "down", PageUp: "page_up", PageDown: "page_down", Home: "first", End: "last" };
  const MESSAGE_MS = 12000; // a message with Undo stays long enough to read it and act

  class Manager {
    constructor(root) {
      this.root = root;
      this.name = root.dataset.list;
      this.moves = []; // [move, count or position], waiting for their turn
      this.turn = Promise.resolve();
      this.listen();
      this.fit();
      this.settled();
      if (root.dataset.events && window.EventSource) this.live = new Live(this);
    }

    get grid() { return byId(`${this.name}-table`); }
    get view() { return byId(this.root.dataset.wsm); }
    get track() { return byId(`${this.name}-scrollbar-track`); }
    get row() { return this.grid.querySelector('[role="row"][aria-selected="true"]'); }
    dialog(name) { return byId(this.root.dataset[name]); }

    // ---- requests --------------------------------------------------------------------------------------------------
    // One after another, each with the view that the answer before it left: an answer that was made for ten rows never meets a list of eight.
    // The answer is elements to swap in by id, the new view among them.
    post(url, values, quiet = false) {
      const sent = this.turn.then(() => {
        this.quiet = quiet; // nobody asked for it, so nobody is told that it failed
        return htmx.ajax("POST", url, { source: this.root, swap: "none", values: { view: this.view.value, ...values() } });
      });
      this.turn = sent.catch(() => {}); // htmx reports a failure by an event; the next request goes its way
      return sent;
    }

    // Presses are counted until their turn and go out together: on a slow link a held key loses no step.
    move(name, n = 1) {
      const last = this.moves.at(-1);
      const counted = ["up", "down", "page_up", "page_down", "scroll"].includes(name);
      if (last?.[0] === name) last[1] = counted ? last[1] + n : n;
      else this.moves.push([name, n]);
      if (this.waiting) return;
      this.waiting = true;
      this.post(`${this.root.dataset.moves}/move`, () => {
        this.waiting = false;
        return { moves: this.moves.splice(0).slice(-100).map(([name, n]) => (n === 1 ? name : `${name}*${n}`)).join(" ") };
      });
    }

    // ---- listening -------------------------------------------------------------------------------------------------
    listen() {
      this.root.addEventListener("click", (e) => this.click(e));
      const collection = byId(`${this.name}-collection`);
      collection.addEventListener("wheel", (e) => this.wheel(e), { passive: false });
      collection.addEventListener("pointerdown", (e) => this.pointer(e));
      const search = byId(this.root.dataset.search);
      let timer;
      search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => this.search(search.value), 200); });
      search.addEventListener("keydown", (e) => { if (e.key === "ArrowDown" || e.key === "Enter") { e.preventDefault(); this.grid.focus(); } });
      new ResizeObserver(() => this.fit()).observe(byId(`${this.name}-wrapper`));
      document.addEventListener("htmx:oobBeforeSwap", (e) => this.leave(e.detail.target));
      document.addEventListener("htmx:oobAfterSwap", () => this.comeBack());
      document.addEventListener("htmx:afterSettle", () => this.settled());
    }

    search(text) { this.post(`${this.root.dataset.moves}/search`, () => ({ search: text })); }

    click(e) {
      const sort = e.target.closest("[data-sort]");
      if (sort) return void this.sort(sort.dataset.sort);
      const act = e.target.closest("[data-act]");
      const row = e.target.closest("[data-session]");
      if (act?.dataset.act === "clear-search") { byId(this.root.dataset.search).value = ""; return this.search(""); }
      if (act) return this.open(act.dataset.act, row);
      if (row && !e.target.closest("a, button")) { this.grid.focus(); this.move("focus", row.getAttribute("aria-rowindex") - 2); }
    }

    async sort(column) {
      await this.post(`${this.root.dataset.moves}/sort`, () => ({ column }));
      this.grid.querySelector(`[data-sort="${CSS.escape(column)}"]`)?.focus(); // the header was swapped
    }

    key(e) {
      if (e.ctrlKey || e.metaKey || e.altKey || document.querySelector("dialog[open]")) return;
      const target = e.target;
      if (target.closest?.(TYPING)) return;
      const onControl = target.closest?.("a, button, summary");
      if (onControl && (e.key === "Enter" || e.key === " ")) return; // the control's own
      const handled = this.act(e.key, e.repeat);
      if (!handled) return;
      e.preventDefault();
      if (MOVE_KEYS[e.key] && !this.grid.contains(target)) this.grid.focus();
      else if (MOVE_KEYS[e.key] && onControl) this.grid.focus();
    }

    act(key, repeat) {
      if (MOVE_KEYS[key]) { this.move(MOVE_KEYS[key]); return true; }
      if (repeat) return false;
      switch (key) {
        case "Enter": this.row?.querySelector(".wsm-resume")?.click(); return true;
        case "F2": this.open("rename", this.row); return true;
        case "Delete": this.open("delete", this.row); return true;
        case "n": byId(this.root.dataset.new).click(); return true;
        case "/": byId(this.root.dataset.search).select(); return true;
        case "?": this.open("help"); return true;
      }
      return false;
    }

    // ---- wheel, swipe, scroll bar ------------------------------------------------------------------------------------
    wheel(e) {
      if (e.ctrlKey || Math.abs(e.deltaX) > Math.abs(e.deltaY)) return;
      e.preventDefault();
      const pixels = e.deltaMode === 1 ? e.deltaY * 32 : e.deltaMode === 2 ? e.deltaY * 400 : e.deltaY;
      this.scroll(pixels, 33); // three rows a notch
    }

    scroll(pixels, perRow) {
      this.rest = (this.rest ?? 0) + pixels;
      const rows = Math.trunc(this.rest / perRow);
      if (!rows) return;
      this.rest -= rows * perRow;
      this.move("scroll", rows);
    }

    pointer(e) {
      if (this.track?.contains(e.target)) return this.drag(e);
      if (e.pointerType !== "touch" || e.target.closest("button, input")) return;
      const height = this.rowHeight() || 48;
      let last = e.clientY, velocity = 0, time = e.timeStamp;
      const collection = e.currentTarget, id = e.pointerId;
      const stop = new AbortController(), on = (name, f) => collection.addEventListener(name, f, { signal: stop.signal });
      on("pointermove", (m) => {
        if (m.pointerId !== id) return;
        const moved = last - m.clientY;
        velocity = moved / Math.max(1, m.timeStamp - time);
        [last, time] = [m.clientY, m.timeStamp];
        this.scroll(moved, height);
      });
      const end = (m) => {
        if (m.pointerId !== id) return;
        stop.abort();
        if (m.type === "pointerup" && Math.abs(velocity) > 0.3) this.glide(velocity, height);
      };
      on("pointerup", end); on("pointercancel", end);
    }

    glide(velocity, height) { // a flick goes on and slows down
      const step = (now, before) => {
        this.scroll(velocity * Math.min(now - before, 50), height);
        velocity *= 0.95;
        if (Math.abs(velocity) > 0.05) requestAnimationFrame((next) => step(next, now));
      };
      requestAnimationFrame((now) => requestAnimationFrame((next) => step(next, now)));
    }

    drag(e) {
      e.preventDefault();
      const track = this.track, box = track.getBoundingClientRect(), last = +track.dataset.maxPosition;
      const to = (y) => this.move("window", Math.round(Math.min(1, Math.max(0, (y - box.top) / box.height)) * last));
      to(e.clientY);
      const stop = new AbortController(), on = (name, f) => window.addEventListener(name, f, { signal: stop.signal });
      on("pointermove", (m) => to(m.clientY));
      on("pointerup", () => stop.abort()); on("pointercancel", () => stop.abort());
    }

    // ---- fitting the number of rows ----------------------------------------------------------------------------------
    rowHeight() { return this.grid.querySelector("[data-session]")?.getBoundingClientRect().height; }

    fit() {
      clearTimeout(this.fitting);
      this.fitting = setTimeout(() => {
        const height = this.rowHeight(), header = byId(`${this.name}-header`);
        if (!height || !header) return;
        const room = byId(`${this.name}-wrapper`).clientHeight - header.getBoundingClientRect().height;
        const rows = Math.max(1, Math.min(200, Math.floor((room + 1) / height)));
        if (rows !== JSON.parse(this.view.value).rows) this.post(`${this.root.dataset.moves}/update_viewport`, () => ({ visible_rows: rows }));
      }, 60);
    }

    // ---- dialogs -----------------------------------------------------------------------------------------------------
    open(name, row) {
      const dialog = this.dialog(name);
      if (!dialog || (name !== "help" && !row)) return;
      if (row) {
        const link = row.querySelector('[role="gridcell"] a'), label = link.title || link.textContent;
        dialog.querySelector("[data-session-id]").value = row.dataset.session;
        const field = dialog.querySelector('input[name="label"]'), named = dialog.querySelector("[data-session-label]");
        if (field) field.value = label;
        if (named) named.textContent = label;
      }
      dialog.back = { byButton: Boolean(document.activeElement.closest?.("[data-act]")), session: row?.dataset.session, act: name };
      dialog.showModal();
      dialog.querySelector('input[name="label"]')?.select();
    }

    // The browser gives focus back to where it was. Where that has been swapped away meanwhile, it goes to what stands there now, unless the person
    // has moved on: this event comes a moment after the dialog has closed.
    closed(dialog) {
      const now = document.activeElement;
      if (now !== document.body && !dialog.contains(now)) return;
      const { session, act } = dialog.back ?? {};
      const again = session && this.grid.querySelector(`[data-session="${CSS.escape(session)}"] [data-act="${act}"]`);
      (dialog.back?.byButton && again ? again : this.grid).focus();
    }

    // ---- before and after every swap -----------------------------------------------------------------------------------
    // Focus within a row goes to the same control of the same session in the new rows.
    leave(target) {
      const focused = document.activeElement, row = focused?.closest("[data-session]");
      if (!row || !this.root.contains(row) || !target.contains(row)) return;
      const control = focused.dataset.act ? `[data-act="${focused.dataset.act}"]` : focused.matches(".wsm-resume") ? ".wsm-resume" : "a";
      this.left = `[data-session="${CSS.escape(row.dataset.session)}"] ${control}`;
    }

    comeBack() {
      if (!this.left) return;
      (this.grid.querySelector(this.left) ?? this.grid).focus({ preventScroll: true });
      this.left = null;
    }

    settled() {
      if (!this.root.isConnected) return;
      const grid = this.grid, row = this.row;
      if (row) grid.setAttribute("aria-activedescendant", row.id); else grid.removeAttribute("aria-activedescendant");
      const total = this.track?.dataset.totalItems ?? grid.querySelectorAll("[data-session]").length; // without a bar all are in sight
      grid.setAttribute("aria-rowcount", +total + 1);
      const url = this.view.dataset.url;
      if (url && url !== location.pathname + location.search && location.pathname === new URL(url, location).pathname) history.replaceState(history.state, "", url);
      if (this.rowHeight() && this.empty) this.fit(); // the first row has come
      this.empty = !this.rowHeight();
      this.live?.read();
    }
  }

  // ---- what others change --------------------------------------------------------------------------------------------
  // A stream says that sessions have changed; the rows are then asked for, as after any other change. Only a page in sight listens, for a browser opens six
  // connections to one host in all its tabs. With each stream goes a mark, up to when everything was seen; the server answers with what was missed since.
  const HELLO_MS = 5000, SILENCE_MS = 40000; // the server says something at once, and then every 15 seconds
  const POLL_MS = 10000, POLLS = 6; // where no stream gets through; after so many, another is tried
  const TRIES = 3;
  const PRESS_MS = 5000; // longer than a click: the button was let go outside the window

  class Live {
    constructor(manager) {
      this.manager = manager;
      this.root = manager.root;
      this.failures = 0;
      this.readAt = 0; // microseconds: the rows are not older
      this.toldAt = 0; // up to when nothing else has changed
      this.changedAt = 0; // when something was last said to have changed
      this.unseen = undefined; // sessions that were said to have changed since the last refresh; null: any
      this.read();
      document.addEventListener("visibilitychange", () => this.follow());
      window.addEventListener("pagehide", () => this.stop());
      window.addEventListener("pageshow", () => this.follow());
      window.addEventListener("pointerdown", (e) => { this.pressedAt = this.root.contains(e.target) ? performance.now() : -Infinity; }, true);
      for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, () => { this.pressedAt = -Infinity; }, true);
      this.follow();
    }

    get mark() { return [Math.max(this.readAt, this.toldAt), ...(this.count ? [this.count] : [])].join("."); }
    say(state) { this.root.dataset.live = state; } // "on", "polling" or "off", for those who style or test the page

    read() { // what an answer says of its rows
      const [at, count] = (this.manager.view.dataset.since ?? "").split(".");
      if (+at > this.readAt) [this.readAt, this.count] = [+at, count];
    }

    // ---- the stream ------------------------------------------------------------------------------------------------
    follow() {
      if (document.hidden || !this.root.isConnected) return this.stop();
      if (this.source || this.refused) return;
      clearTimeout(this.later);
      if (this.again && !this.count) this.soon(); // a search has no count, without which the server cannot tell that a session was restored
      this.again = true;
      const source = this.source = new EventSource(`${this.root.dataset.events}?since=${this.mark}`);
      source.addEventListener("beat", (e) => {
        if (!this.root.isConnected) return this.stop(); // the host has put something else in its place
        if (this.changedAt <= this.readAt) this.toldAt = Math.max(this.toldAt, +e.lastEventId);
        this.failures = 0;
        this.hope = true;
        this.say("on");
        this.expect(SILENCE_MS);
      });
      source.addEventListener("change", (e) => {
        this.expect(SILENCE_MS);
        const changed = JSON.parse(e.data).sessions;
        if (changed?.every(([id, at]) => this.shows(id, at))) return;
        this.unseen = changed && this.unseen !== null ? [...(this.unseen ?? []), ...changed] : null;
        this.changedAt = Math.max(this.changedAt, +e.lastEventId);
        this.soon();
      });
      source.addEventListener("error", () => this.lost());
      this.expect(HELLO_MS);
    }

    expect(ms) {
      clearTimeout(this.watchdog);
      this.watchdog = setTimeout(() => this.lost(), ms);
    }

    refuse() { // nobody is signed in any more
      this.refused = true;
      this.stop();
    }

    stop() {
      this.source?.close();
      this.source = null;
      for (const timer of [this.watchdog, this.later, this.timer]) clearTimeout(timer);
      this.timer = null;
      this.say("off");
    }

    lost() { // the browser would come back by itself, but with the mark of the first time
      this.stop();
      if (document.hidden || !this.root.isConnected) return;
      this.failures += 1;
      if (this.failures < TRIES) this.later = setTimeout(() => this.follow(), 1000 * (this.failures + Math.random()));
      else this.poll(POLLS);
    }

    async poll(left) {
      this.say("polling");
      if (left === 0) return this.follow();
      const before = this.readAt;
      await this.refresh();
      if (document.hidden || !this.root.isConnected || this.source || this.refused) return;
      const back = this.hope && this.readAt > before; // the server answers again: a stream may get through, if one ever did or none could
      this.hope = this.readAt === before;
      this.later = setTimeout(() => this.poll(back ? 0 : left - 1), POLL_MS * (0.9 + 0.2 * Math.random()));
    }

    // ---- the rows --------------------------------------------------------------------------------------------------
    // A write of this tab comes back as an event, after the answer that shows it.
    shows(id, at) {
      const time = this.root.querySelector(`[data-session="${CSS.escape(id)}"] time`)?.dateTime;
      return Boolean(time && at) && at <= this.readAt && Date.parse(`${time.slice(0, 19)}Z`) * 1000 + +time.slice(20, 26) === at;
    }

    soon() { // at most once a second, and not all browsers at the same moment
      this.timer ??= setTimeout(() => this.refresh(), Math.max(0, (this.refreshedAt ?? 0) + 1000 - performance.now()) + 300 * Math.random());
    }

    async refresh() {
      this.timer = null;
      if (document.hidden || !this.root.isConnected) return; // the mark stays behind, so the server will say it again
      if (performance.now() - this.pressedAt < PRESS_MS) { this.timer = setTimeout(() => this.refresh(), 100); return; } // a click is not torn apart
      const unseen = this.unseen;
      this.unseen = undefined;
      if (unseen?.every(([id, at]) => this.shows(id, at))) return; // an answer to this tab has come after the event
      this.refreshedAt = performance.now();
      const rows = () => (this.manager.empty ? {} : { selected: this.manager.row?.dataset.session ?? "" });
      try { await this.manager.post(`${this.root.dataset.moves}/refresh`, rows, true); }
      catch { /* htmx reports it; the next event or poll tries again */ }
      if (this.root.isConnected) this.read();
    }
  }

  // ---- what belongs to the page --------------------------------------------------------------------------------------
  const managers = [];
  const managerOf = (element) => managers.find((m) => m.root.contains(element)) ?? managers[0];

  // Mirrors utils.format_relative_time; a test compares the two.
  function ago(seconds) {
    const say = (n, unit) => `${n} ${unit}${n === 1 ? "" : "s"} ago`;
    if (seconds < -60) return "in the future";
    if (seconds < 60) return "just now";
    if (seconds < 3600) return say(Math.floor(seconds / 60), "minute");
    if (seconds < 86400) return say(Math.floor(seconds / 3600), "hour");
    if (seconds < 172800) return "yesterday";
    if (seconds < 604800) return say(Math.floor(seconds / 86400), "day");
    if (seconds < 2592000) return say(Math.floor(seconds / 604800), "week");
    return null; // a date, which the server wrote
  }

  function refreshTimes() {
    for (const time of document.querySelectorAll("time[data-ago]")) {
      const text = ago((Date.now() - Date.parse(time.dateTime)) / 1000);
      if (text && text !== time.textContent) time.textContent = text;
      if (!time.title) time.title = `${time.dateTime.slice(0, 16).replace("T", " ")} UTC`;
    }
  }

  // Messages leave by themselves, but not while somebody points at one or has the focus in it. Inside a modal dialog the page is inert, so the
  // messages move into the dialog while one is open.
  function placeMessages() {
    for (const { root } of managers) {
      const area = byId(root.dataset.alerts), home = document.querySelector("dialog[open] form, dialog[open] .modal-box") ?? root;
      if (area && home && area.parentElement !== home && area.childElementCount) home.append(area);
      for (const alert of area?.children ?? []) if (!alert.timer) expire(alert);
      while (area?.childElementCount > 3) area.firstElementChild.remove();
    }
  }

  function expire(alert) {
    alert.timer = setInterval(() => {
      if (alert.matches(":hover, :focus-within")) return;
      clearInterval(alert.timer);
      alert.remove();
    }, MESSAGE_MS);
  }

  function say(manager, text) {
    const alert = document.createElement("div");
    alert.className = "alert alert-error";
    alert.setAttribute("role", "alert");
    alert.textContent = text;
    byId(manager.root.dataset.alerts)?.append(alert);
    placeMessages();
  }

  // Forms marked data-send go by htmx, so that the page stays; without this script they are plain forms.
  document.addEventListener("submit", async (e) => {
    const form = e.target.closest("form[data-send]"), manager = form && managerOf(form);
    if (!manager) return;
    e.preventDefault();
    if (form.sending) return; // a double click creates one session
    form.sending = true;
    const dialog = form.closest("dialog"), alert = form.closest('[role="status"], [role="alert"]');
    try { await manager.post(form.getAttribute("action"), () => Object.fromEntries(new FormData(form))); }
    finally { form.sending = false; }
    if (form.failed) { form.failed = false; return; }
    alert?.remove();
    if (dialog?.open) dialog.close();
    else if (document.activeElement === document.body) manager.grid.focus();
  });

  document.addEventListener("click", (e) => {
    if (e.target.closest("[data-close]")) e.target.closest("dialog")?.close();
    if (e.target.closest("[data-dismiss]")) e.target.closest(".alert")?.remove();
  });
  document.addEventListener("close", (e) => { managerOf(e.target)?.closed(e.target); placeMessages(); }, true);
  document.addEventListener("keydown", (e) => managerOf(document.activeElement)?.key(e));

  // An error is an answer too: its message is swapped in like any other.
  document.addEventListener("htmx:beforeSwap", (e) => {
    const manager = managers.find((m) => m.root === e.detail.requestConfig?.elt);
    if (!manager || e.detail.xhr.status < 400) return;
    if (manager.quiet) {
      e.detail.shouldSwap = e.detail.isError = false;
      if ([401, 403].includes(e.detail.xhr.status)) manager.live.refuse();
      return;
    }
    e.detail.shouldSwap = /hx-swap-oob/.test(e.detail.serverResponse);
    e.detail.isError = false;
    for (const form of document.querySelectorAll("form[data-send]")) if (form.sending) form.failed = true;
    if (!e.detail.shouldSwap) say(manager, `The server answered with an error (${e.detail.xhr.status}). Try again.`);
  });
  document.addEventListener("htmx:sendError", (e) => {
    const manager = managers.find((m) => m.root === e.detail.elt);
    if (!manager || manager.quiet) return;
    for (const form of document.querySelectorAll("form[data-send]")) if (form.sending) form.failed = true;
    say(manager, "The server cannot be reached. Nothing was changed; try again.");
  });
  document.addEventListener("htmx:afterSettle", () => { refreshTimes(); placeMessages(); });

  function start() {
    for (const root of document.querySelectorAll("[data-wsm]")) managers.push(new Manager(root));
    refreshTimes();
    setInterval(refreshTimes, 15000);
    placeMessages();
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start); else start();
})();
