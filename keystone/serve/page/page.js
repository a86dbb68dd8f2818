// The page: asks the server what the archive says, draws it, and sends the two things a person may start.
// Nothing that comes from the archive becomes markup; every word enters as text.

import { lineage, lineageSentences, short, whisker } from "./drawing.js";

const POLL_MILLISECONDS = 3000;
const known = { state: null, graph: null, detail: null, events: [], start: 0, audit: null, bearer: null };
const at = (id) => document.getElementById(id);

// Making elements.

function h(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const mono = (text, properties = {}) => h("code", properties, text);
const digest = (text) => mono(short(text), { title: text });

/** Commits and digests inside a text, cut to what a person compares. */
const brief = (text) => h("span", { title: text }, text.replace(/[0-9a-f]{16,}/g, (hex) => `${hex.slice(0, 10)}…`));

/** A name that may break behind its slashes. */
const breakable = (name) => name.split("/").flatMap((part, number) => (number ? ["/", h("wbr"), part] : [part]));

function ago(text) {
  const seconds = Math.max(0, (Date.now() - new Date(text).getTime()) / 1000);
  const units = [[86400 * 365, "y"], [86400, "d"], [3600, "h"], [60, "min"]];
  const unit = units.find(([size]) => seconds >= size);
  const words = unit ? `${Math.floor(seconds / unit[0])} ${unit[1]} ago` : "just now";
  return h("time", { datetime: text, title: new Date(text).toLocaleString() }, words);
}

const TRIPWIRE = { clear: ["good", "✓ clear"], tripped: ["bad", "▲ tripped"], untested: ["", "○ untested"] };
const VERDICT = { PASS: "good", FAIL: "bad", UNKNOWN: "doubt", UNSIGNED: "note" };

const tripwireChip = (status) => {
  const [colour, words] = TRIPWIRE[status] ?? ["doubt", status];
  return h("span", { class: `chip ${colour}` }, h("span", { class: "unseen" }, "tripwire "), words);
};

// Asking the server.

class Refused extends Error {}

async function ask(path, body) {
  const headers = {};
  if (known.bearer) headers.Authorization = `Bearer ${known.bearer}`;
  const options = { headers, cache: "no-store", credentials: "same-origin" };
  if (body !== undefined) {
    Object.assign(headers, { "Content-Type": "application/json", "X-Keystone-Page": known.state.token });
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  const answer = await fetch(path, options);
  if (answer.status === 401) {
    await askForToken();
    return ask(path, body);
  }
  if (answer.status === 204) return null;
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(found.error?.message ?? `the server answered ${answer.status}`);
  return found;
}

function askForToken() {
  const dialog = at("token");
  at("token-problem").hidden = !known.bearer;
  at("token-problem").textContent = "The server does not know this token.";
  at("token-value").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      known.bearer = at("token-value").value.trim() || null;
      resolve();
    }, { once: true });
  });
}

function say(text) {
  at("said").textContent = text;
  if (text) setTimeout(() => { if (at("said").textContent === text) at("said").textContent = ""; }, 9000);
}

// What is chosen: the ref in the address.

const wanted = () => decodeURIComponent(location.hash.slice(1));
const chosen = () => known.state.refs.find((ref) => ref.name === wanted()) ?? known.state.refs[0];

// Parts of the page.

function drawHeader() {
  const { archive, ledger, rights } = known.state;
  at("archive").textContent = archive;
  at("ledger").textContent = `${ledger.size} events, root ${ledger.root.slice(0, 12)}`;
  at("ledger").title = ledger.root;
  at("rights").textContent = "read-only";
  at("rights").hidden = rights === "operator";
}

function drawRefs(ref) {
  at("refs").replaceChildren(...known.state.refs.map((each) => {
    const manifest = known.state.manifests[each.target];
    const button = h("button", {
      type: "button", "data-key": `ref ${each.name}`, "aria-current": each === ref ? "true" : null,
      on: { click: () => { location.hash = encodeURIComponent(each.name); } },
    },
    h("span", { class: "row" }, h("span", { class: "name" }, ...breakable(each.name)),
      h("span", { class: "small quiet when" }, ago(each.moved))),
    h("span", { class: "row" }, h("span", { class: "quiet" }, each.target ? mono(each.target.slice(3, 13), { title: each.target }) : "nowhere"),
      manifest ? tripwireChip(manifest.tripwire ?? "unreadable") : null));
    return h("li", {}, button);
  }));
  const current = document.querySelector("#refs [aria-current]")?.parentElement;
  if (current) at("refs").scrollLeft = Math.max(0, current.offsetLeft - at("refs").offsetLeft - 16);
}

const section = (id, title, aside, ...children) => h("section", { "aria-labelledby": id },
  h("h2", { id }, title, aside ? h("small", { class: "quiet" }, aside) : null), ...children);

function title(ref) {
  const operator = known.state.rights === "operator";
  const possible = operator && ref.back.choices.some((choice) => !choice.refused);
  const running = known.audit?.running;
  return [
    h("div", { class: "title" },
      h("h1", {}, ...breakable(ref.name)),
      ref.protected ? h("span", { class: "chip note", title: "moves only with an approval" }, "protected") : null,
      ref.target ? tripwireChip(known.state.manifests[ref.target]?.tripwire ?? "unreadable") : null,
      h("div", { class: "buttons" },
        h("button", { type: "button", "data-key": "audit", disabled: running, on: { click: () => audit(ref) } }, "Audit"),
        h("button", {
          type: "button", "data-key": "rollback", "aria-haspopup": "dialog", disabled: !possible,
          title: operator ? ref.back.why : "this server's page is read-only",
          on: { click: () => openRollback(ref) },
        }, "Roll back …"))),
    h("p", { class: "address" }, mono(ref.target ?? "points nowhere"),
      ref.target ? h("button", {
        type: "button", class: "copy small", "data-key": "copy", "aria-label": "Copy the digest",
        on: { click: () => navigator.clipboard.writeText(ref.target).then(() => say("digest copied"), () => say(ref.target)) },
      }, "copy") : null),
  ];
}

function facts(ref, manifest) {
  if (!manifest) return null;
  if (manifest.problem) return h("p", { class: "problem" }, manifest.problem);
  const worn = manifest.adapters.flatMap((use, number) => [
    number ? " + " : "", use.weight === 1 ? "" : `${use.weight} × `, digest(use.adapter)]);
  const arrival = [...ref.history].reverse().find((move) => move.target === ref.target && !move.protects);
  const row = (name, ...value) => [h("dt", {}, name), h("dd", {}, ...value)];
  return h("dl", { class: "facts" },
    ...row("Base", digest(manifest.base), " ", brief(manifest.source), `, ${manifest.licence}`),
    ...row("Adapters", ...(worn.length ? worn : ["none: the frozen base alone"])),
    ...row("Held as", manifest.recipe),
    ...(manifest.parent ? row("Made from", digest(manifest.parent)) : []),
    ...row("Approval", ...(arrival?.approval ? [digest(arrival.approval), `, spent by event ${arrival.seq}`] : ["none: it came here without one"])));
}

function scores(ref, manifest) {
  const earlier = [...ref.history].reverse().find((move) => move.target && move.target !== ref.target)?.target;
  const before = known.state.manifests[earlier]?.scores ?? [];
  const rows = (manifest?.scores ?? []).map((score) => {
    const match = before.find((each) => each.suite === score.suite && each.metric === score.metric);
    const percent = score.passed !== null;
    const shown = (value) => (percent ? `${(value * 100).toFixed(1)} %` : Number(value).toPrecision(4));
    const range = score.interval ? `${shown(score.interval.low)} – ${shown(score.interval.high)}` : "no interval";
    return h("tr", {}, h("th", { scope: "row" }, score.suite, " ", h("span", { class: "quiet" }, score.metric)),
      h("td", { class: "number", title: score.report }, shown(score.score)),
      h("td", { class: "number quiet", title: score.interval ? `${score.interval.level * 100} %, ${score.interval.method}` : null }, range),
      h("td", { class: "number quiet" }, percent ? `${score.passed}/${score.n}` : `n ${score.n}`),
      h("td", { class: "number quiet" }, match ? shown(match.score) : "–"),
      h("td", { class: "whisker" }, whisker(score, match)));
  });
  const head = ["Suite", "Score", "Interval", "Items", "Before", "● now  ○ before"].map((text, place) =>
    h("th", { scope: "col", class: place === 5 ? "legend number" : place ? "number" : "" }, text));
  return section("scores", "Scores", null, rows.length
    ? h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows)))
    : h("p", { class: "quiet" }, "Nothing was measured on exactly these weights. ", mono("keystone eval"), " does."));
}

function tripwire() {
  const found = known.detail?.tripped;
  if (!found) return section("tripwire", "Tripwire", null, h("p", { class: "quiet" }, "Reading …"));
  if (found.problem) return section("tripwire", "Tripwire", found.status, h("p", { class: "problem" }, found.problem));
  if (!found.report) {
    return section("tripwire", "Tripwire", null, h("p", { class: "quiet" }, "Untested: no report stands behind these weights."));
  }
  const number = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))));
  const rows = found.rules.map((rule) => h("tr", {},
    h("th", { scope: "row" }, rule.rule),
    h("td", { class: "number" }, number(rule.value)),
    h("td", { class: "number quiet" }, number(rule.incumbent)),
    h("td", { class: "number quiet" }, [rule.limit === null ? "" : `limit ${number(rule.limit)}`,
      rule.margin === null ? "" : `margin ${number(rule.margin)}`].filter(Boolean).join(", ")),
    h("td", {}, rule.tripped ? h("span", { class: "chip bad bare" }, `▲ ${rule.tripped}`) : h("span", { class: "chip good bare" }, "✓ clear"))));
  const head = ["Rule", "Value", "Incumbent", "Allowed", ""].map((text, place) =>
    h("th", { scope: "col", class: place > 0 && place < 4 ? "number" : "" }, text));
  return section("tripwire", "Tripwire", `policy ${found.policy}, report ${short(found.report)}`,
    h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows))));
}

function graph(ref) {
  if (!known.graph?.nodes.length) return null;
  const cut = known.graph.cut ? `${known.graph.cut} older manifests are left out` : null;
  return section("lineage", "Lineage", cut,
    h("div", { class: "lineage scroll", tabindex: "0", role: "group", "aria-label": "Lineage, scrolls sideways" },
      lineage(known.graph, ref.target)),
    h("details", {}, h("summary", { "data-key": "as text" }, "The same in words"),
      h("ul", { class: "small" }, ...lineageSentences(known.graph).map((text) => h("li", {}, text)))));
}

function findings() {
  const job = known.audit;
  if (!job) return null;
  if (job.running) {
    return section("findings", "Audit", `${job.target}, ${job.seconds.toFixed(0)} s`,
      h("progress", { "aria-label": "audit is running", max: job.planned || null,
        value: job.planned ? Math.min(job.hashed, job.planned) : null }),
      h("p", { class: "quiet small" }, job.phase));
  }
  if (job.problem) return section("findings", "Audit", job.target, h("p", { class: "problem" }, job.problem));
  const order = ["FAIL", "UNKNOWN", "UNSIGNED", "PASS"];
  const lines = [...job.lines].sort((a, b) => order.indexOf(a.verdict) - order.indexOf(b.verdict));
  const counts = order.map((verdict) => [lines.filter((line) => line.verdict === verdict).length, verdict])
    .filter(([count]) => count).map(([count, verdict]) => `${count} ${verdict}`).join(", ");
  return section("findings", "Audit", null,
    h("p", { class: "verdict" }, h("span", { class: `chip ${VERDICT[job.verdict]}` }, job.verdict), ` ${job.target}: ${counts}, in ${job.seconds.toFixed(1)} s`),
    h("ul", { class: "findings" }, ...lines.map((line) => h("li", {},
      h("span", {}, h("span", { class: `chip ${VERDICT[line.verdict]}` }, line.verdict)),
      h("span", { class: "quiet" }, line.check), h("p", {}, line.message)))));
}

function moves(ref) {
  const items = [...ref.history].reverse().map((move, number) => {
    const verb = move.rollback ? "rolled back to" : move.protects ? "protected at" : move.approval ? "promoted to" : "set to";
    return h("li", { class: number === 0 ? "now" : "" }, h("div", {},
      h("p", { class: "row" }, h("span", {}, `${verb} `, move.target ? digest(move.target) : "nothing"),
        h("span", { class: "quiet small" }, ago(move.time), ` · event ${move.seq}`),
        move.target && !move.protects ? tripwireChip(known.state.manifests[move.target]?.tripwire ?? "unreadable") : null),
      move.reason ? h("p", { class: "quiet" }, move.reason) : null));
  });
  return section("history", "History", `${ref.moves} moves`, h("ol", { class: "moves" }, ...items));
}

function drawSubject(ref) {
  if (!ref) {
    at("subject").replaceChildren(h("h1", {}, "No ref yet"), h("p", { class: "quiet" }, "A ref is a name for a manifest. ",
      mono("keystone import nano"), " makes the first."));
    return;
  }
  const manifest = known.state.manifests[ref.target];
  at("subject").replaceChildren(...[...title(ref), facts(ref, manifest), findings(), graph(ref), scores(ref, manifest),
    tripwire(), moves(ref)].filter(Boolean));
  document.title = `${ref.name} · Keystone`;
}

function drawStory() {
  at("story").replaceChildren(...known.events.map((event) => h("li", {},
    h("p", { class: "when" }, ago(event.time), h("span", { class: "mono" }, `#${event.seq}`)), h("p", {}, event.text))));
  at("older").hidden = known.start === 0;
}

/** Draw everything anew; who was at a button stays there. */
function draw() {
  const key = document.activeElement?.dataset?.key;
  const open = document.querySelector("#subject details")?.open;
  const ref = chosen();
  drawHeader();
  drawRefs(ref);
  drawSubject(ref);
  drawStory();
  const details = document.querySelector("#subject details");
  if (details && open) details.open = true;
  if (key) document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

// Coming and going of news.

async function readDetail() {
  const ref = chosen();
  const asked = ref?.target;
  known.detail = null;
  if (!asked || known.state.manifests[asked]?.problem) return;
  const found = await ask(`/ui/data/manifest/${encodeURIComponent(asked)}`);
  if (chosen()?.target === asked) known.detail = found;
}

async function readAll(have) {
  const state = await ask(`/ui/data/state?have=${have}`);
  if (state === null) return false;
  const [graphed, told] = await Promise.all([ask("/ui/data/lineage"), ask("/ui/data/story")]);
  Object.assign(known, { state, graph: graphed, events: told.events, start: told.start });
  await readDetail();
  draw();
  return true;
}

async function poll() {
  try {
    const busy = document.hidden || document.querySelector("dialog[open]");
    if (!busy) await readAll(known.state?.ledger.size ?? -1);
    if (document.body.dataset.lost) { delete document.body.dataset.lost; say("the server is back"); }
  } catch (error) {
    if (!document.body.dataset.lost) say(error instanceof Refused ? error.message : "the server does not answer; trying again");
    document.body.dataset.lost = "yes";
  }
  setTimeout(poll, POLL_MILLISECONDS);
}

async function audit(ref) {
  try {
    known.audit = await ask("/ui/audit", { target: ref.name });
    draw();
    while (known.audit.running) {
      await new Promise((resolve) => setTimeout(resolve, 300));
      known.audit = await ask(`/ui/audit/${known.audit.key}`);
      draw();
    }
    say(known.audit.problem ?? `audit of ${known.audit.target}: ${known.audit.verdict}`);
  } catch (error) {
    known.audit = null;
    draw();
    say(error.message);
  }
}

// Rolling back: what is shown is what is sent.

function openRollback(ref) {
  const dialog = at("rollback");
  at("rollback-title").textContent = `Roll ${ref.name} back`;
  at("rollback-from").replaceChildren("It points at ", digest(ref.target), " now.");
  at("rollback-choices").replaceChildren(...ref.back.choices.map((choice) => {
    const first = choice.target === ref.back.target;
    const manifest = known.state.manifests[choice.target];
    return h("label", { class: "choice" },
      h("input", { type: "radio", name: "to", value: choice.target, checked: first, disabled: Boolean(choice.refused) }),
      h("span", {}, digest(choice.target), " ", manifest ? tripwireChip(manifest.tripwire ?? "unreadable") : null,
        h("span", { class: "quiet small" }, manifest?.adapters?.length === 0 ? " bare base" : "",
          first ? " the last good one" : "")),
      choice.refused ? h("span", { class: "why quiet small" }, `not possible: ${choice.refused}`) : null);
  }));
  at("rollback-reason").value = "";
  at("rollback-name").value = "";
  at("rollback-type").hidden = !ref.protected;
  at("rollback-problem").hidden = true;
  dialog.dataset.ref = ref.name;
  dialog.dataset.expected = ref.target;
  dialog.dataset.typed = ref.protected ? ref.name : "";
  checkTyped();
  dialog.showModal();
  at("rollback-cancel").focus();
}

function checkTyped() {
  at("rollback-go").disabled = at("rollback-name").value.trim() !== at("rollback").dataset.typed;
}

async function sendRollback() {
  const dialog = at("rollback");
  const to = dialog.querySelector("input[name=to]:checked")?.value;
  if (!to) return;
  at("rollback-go").disabled = true;
  try {
    const moved = await ask("/ui/rollback",
      { ref: dialog.dataset.ref, expected: dialog.dataset.expected, to, reason: at("rollback-reason").value });
    dialog.close();
    await readAll(-1);
    say(`${moved.ref} is at ${short(moved.target)} again`);
  } catch (error) {
    at("rollback-problem").textContent = error.message;
    at("rollback-problem").hidden = false;
  } finally {
    checkTyped();
  }
}

at("rollback").querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); sendRollback(); });
at("rollback-cancel").addEventListener("click", () => at("rollback").close());
// Closing gives the focus back by itself, unless the page was drawn anew meanwhile.
at("rollback").addEventListener("close", () => document.querySelector('[data-key="rollback"]')?.focus());
at("rollback-name").addEventListener("input", checkTyped);
at("older").addEventListener("click", async () => {
  const told = await ask(`/ui/data/story?before=${known.start}`);
  known.events.push(...told.events);
  known.start = told.start;
  drawStory();
});
addEventListener("hashchange", async () => {
  await readDetail();
  draw();
});
poll();
