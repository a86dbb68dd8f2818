// What is drawn: the lineage as a layered graph, a score as a dot in its interval. Text only ever enters as text.

const SVG = "http://www.w3.org/2000/svg";
const BOX = { width: 162, height: 46, across: 198, down: 58 };
const LETTERS = 21;

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

export const short = (digest) => digest.slice(3, 15);

/** Columns are given by the server; within one, boxes stand near the middle of what they were made from. */
function place(graph) {
  const columns = new Map();
  for (const node of graph.nodes) {
    if (!columns.has(node.column)) columns.set(node.column, []);
    columns.get(node.column).push(node);
  }
  const rows = new Map();
  for (const column of [...columns.keys()].sort((a, b) => a - b)) {
    const wish = (node) => {
      const above = graph.edges.filter((edge) => edge.to === node.digest && rows.has(edge.from));
      return above.length ? above.reduce((sum, edge) => sum + rows.get(edge.from), 0) / above.length : 0;
    };
    const wishes = new Map(columns.get(column).map((node) => [node.digest, wish(node)]));
    const ordered = columns.get(column).sort(
      (a, b) => wishes.get(a.digest) - wishes.get(b.digest) || a.digest.localeCompare(b.digest));
    let next = 0;
    for (const node of ordered) {
      const row = Math.max(next, wishes.get(node.digest));
      rows.set(node.digest, row);
      next = row + 1;
    }
  }
  return new Map(graph.nodes.map((node) => [node.digest, { x: node.column * BOX.across, y: rows.get(node.digest) * BOX.down }]));
}

/** Everything that leads to a node. */
function ancestry(graph, digest) {
  const found = new Set([digest]);
  for (const at of found) {
    for (const edge of graph.edges) if (edge.to === at) found.add(edge.from);
  }
  return found;
}

const clip = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function box(node, at, chosen) {
  const kinds = [node.kind, chosen ? "chosen" : "", node.problem ? "problem" : ""].filter(Boolean).join(" ");
  const title = svg("title");
  title.textContent = `${node.kind} ${node.digest}: ${node.problem ?? node.text}`;
  const head = svg("text", { x: 12, y: 20, class: node.refs.length ? "refs" : "" });
  const name = node.kind === "base" ? node.text.replace(/@[0-9a-f]{16,}$/, "").split("/").at(-1) : node.text;
  head.textContent = clip(node.refs.length ? node.refs.join(", ") : name, LETTERS);
  const foot = svg("text", { x: 12, y: 37, class: "digest" });
  foot.textContent = node.refs.length ? `manifest ${short(node.digest)}` : `${node.kind} ${short(node.digest)}`;
  return svg("g", { class: kinds, transform: `translate(${at.x + 2} ${at.y + 2})` },
    title, svg("rect", { width: BOX.width, height: BOX.height, rx: 6 }), head, foot);
}

export function lineage(graph, chosen) {
  const places = place(graph);
  const path = ancestry(graph, chosen);
  const reach = [...places.values()];
  const width = Math.max(...reach.map((at) => at.x)) + BOX.width + 4;
  const height = Math.max(...reach.map((at) => at.y)) + BOX.height + 4;
  const count = (kind) => graph.nodes.filter((node) => node.kind === kind).length;
  const said = `Lineage: ${count("base")} bases, ${count("adapter")} adapters, ${count("manifest")} manifests`;
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": said });
  for (const edge of graph.edges) {
    const [from, to] = [places.get(edge.from), places.get(edge.to)];
    if (!from || !to) continue;
    const [x1, y1, x2, y2] = [from.x + BOX.width + 2, from.y + BOX.height / 2 + 2, to.x + 2, to.y + BOX.height / 2 + 2];
    const bend = (x2 - x1) / 2;
    const on = path.has(edge.from) && path.has(edge.to) ? "path" : "";
    drawing.append(svg("path", {
      d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`, class: `${edge.kind} ${on}`.trim() }));
  }
  for (const node of graph.nodes) drawing.append(box(node, places.get(node.digest), node.digest === chosen));
  return drawing;
}

/** The same as sentences, for who does not see the drawing. */
export function lineageSentences(graph) {
  const names = new Map(graph.nodes.map((node) => [node.digest, `${node.kind} ${short(node.digest)}`]));
  const verbs = { trained: "was made on", merged: "was merged from", worn: "wears" };
  return graph.edges.map((edge) => {
    const verb = edge.kind === "worn" && names.get(edge.from)?.startsWith("base") ? "is the bare" : verbs[edge.kind];
    return `${names.get(edge.to)} ${verb} ${names.get(edge.from)}`;
  });
}

/** Where a score lies in its interval; a hollow dot is the score of what the ref pointed at before. */
export function whisker(score, before) {
  const values = [score.score, score.interval?.low, score.interval?.high, before?.score].filter((value) => value != null);
  const share = values.every((value) => value >= 0 && value <= 1);
  const [low, high] = share ? [0, 1] : [Math.min(...values), Math.max(...values)];
  const span = high - low || 1;
  const at = (value) => `${3 + ((value - low) / span) * 94}%`;
  const drawing = svg("svg", { "aria-hidden": "true" });
  drawing.append(svg("line", { x1: "3%", x2: "97%", y1: 11, y2: 11, class: "axis" }));
  if (score.interval) {
    drawing.append(svg("line", { x1: at(score.interval.low), x2: at(score.interval.high), y1: 11, y2: 11, class: "range" }));
  }
  if (before) drawing.append(svg("circle", { cx: at(before.score), cy: 11, r: 3.6, class: "before" }));
  drawing.append(svg("circle", { cx: at(score.score), cy: 11, r: 4.6, class: "dot" }));
  return drawing;
}
