"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const unique = (values) => [...new Set(values)].filter((value) => value !== undefined && value !== "");
const text = (value) =>
  typeof value === "number" ? (Number.isInteger(value) ? value.toLocaleString("en") : String(+value.toPrecision(4))) : (value ?? "");
const measured = (value) => (Math.abs(value) >= 1 && !Number.isInteger(value) ? value.toFixed(2) : text(value));
const FIRST = 100; // lines of the table until somebody asks for more
const MOST_CURVES = 12;
const state = { entry: "", dataset: "", status: "", group: "", search: "", sort: ["", 1], shown: FIRST };
const picked = new Set(); // runs whose curves are compared
const opened = new Set();
// ------------------------------------------------------------------------------------------------ rows

for (const row of data.rows) {
  const run = data.runs[row.run];
  row.key = `${row.run} ${JSON.stringify(row.cell)}`;
  row.about = { entry: row.entry, run: row.run, seed: row.seed, status: row.status, experiment: run.experiment, ...row.cell };
  row.search = `${Object.values(row.about).join(" ")} ${run.command ?? ""} ${row.error}`.toLowerCase();
}
const value = (row, key) => row.about[key] ?? row.metrics[key] ?? data.runs[row.run][key];

function filtered() {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = data.rows.filter(
    (row) =>
      ["entry", "dataset", "status"].every((key) => !state[key] || String(value(row, key)) === state[key]) &&
      words.every((word) => row.search.includes(word)),
  );
  const [key, way] = state.sort;
  return key ? rows.sort((a, b) => way * compare(value(a, key), value(b, key))) : rows;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

// Names of cells that differ between rows, and metrics: those that tables show first.
function columns(rows) {
  const keys = unique(rows.flatMap((row) => Object.keys(row.cell)));
  const differ = keys.filter((key) => unique(rows.map((row) => String(row.cell[key]))).length > 1);
  const entries = unique(rows.map((row) => row.entry));
  const first = entries.flatMap((entry) => data.headlines[entry] ?? []);
  const metrics = unique(rows.flatMap((row) => Object.keys(row.metrics)));
  const chosen = unique([...first, ...metrics]).filter((name) => metrics.includes(name));
  const names = entries.length > 1 ? ["entry", "dataset"] : differ.slice(0, 6);
  return { names: unique([...names, "seed"]), metrics: chosen.slice(0, entries.length > 1 ? 4 : 7) };
}

// ------------------------------------------------------------------------------------------------ table

function show() {
  const rows = filtered();
  const { names, metrics } = columns(rows);
  const heads = ["", "run", ...names, "status", ...metrics, "seconds"];
  const head = make("tr");
  for (const name of heads) {
    const cell = make("th", { scope: "col", className: metrics.includes(name) || name === "seconds" ? "number" : "" });
    if (name) cell.append(make("button", { type: "button", textContent: name.replaceAll("_", " "), onclick: () => sortBy(name) }));
    if (name && name === state.sort[0]) cell.setAttribute("aria-sort", state.sort[1] > 0 ? "ascending" : "descending");
    head.append(cell);
  }
  $("run-table").tHead.replaceChildren(head);
  const lines = [];
  for (const [label, members] of groups(rows)) {
    if (state.group) lines.push(groupLine(label, members, names, metrics));
    for (const row of members) if (lines.length < state.shown) lines.push(...rowLines(row, names, metrics));
  }
  $("run-table").tBodies[0].replaceChildren(...lines);
  $("more").hidden = rows.length <= state.shown;
  $("count").textContent = `${text(rows.length)} of ${text(data.rows.length)} rows, ${text(unique(rows.map((row) => row.run)).length)} runs`;
  offerCharts(rows);
}

function groups(rows) {
  if (!state.group) return [["", rows]];
  const found = new Map();
  for (const row of rows) {
    const label = state.group === "seeds" ? `${row.group} ${JSON.stringify(row.cell)}` : text(value(row, state.group));
    found.set(label, [...(found.get(label) ?? []), row]);
  }
  return [...found].sort(([a], [b]) => compare(a, b));
}

function groupLine(label, rows, names, metrics) {
  const title = state.group === "seeds" ? rows[0].group : label || "none";
  const line = make("tr", { className: "group" }, make("td"), make("td", { textContent: `${title} (${rows.length})` }));
  line.append(...[...names, "status"].map(() => make("td")));
  for (const name of metrics) line.append(make("td", { className: "number", textContent: spread(rows, name) }));
  line.append(make("td"));
  return line;
}

function spread(rows, name) {
  const found = rows.map((row) => row.metrics[name]).filter((number) => typeof number === "number");
  if (!found.length) return "";
  const mean = found.reduce((a, b) => a + b) / found.length;
  if (found.length === 1) return text(mean);
  const std = Math.sqrt(found.reduce((sum, x) => sum + (x - mean) ** 2, 0) / (found.length - 1));
  return `${text(mean)} ± ${+std.toPrecision(2)}`;
}

function rowLines(row, names, metrics) {
  const pick = make("input", { type: "checkbox", checked: picked.has(row.run), ariaLabel: `compare ${row.run}` });
  pick.onchange = () => (pick.checked ? picked.add(row.run) : picked.delete(row.run), offerCharts(filtered()));
  const open = make("button", { type: "button", className: "open", textContent: row.run, ariaExpanded: opened.has(row.key) });
  open.onclick = () => (opened.delete(row.key) || opened.add(row.key), show());
  const line = make("tr", {}, make("td", {}, pick), make("td", {}, open));
  for (const name of names) line.append(make("td", { textContent: text(value(row, name)) }));
  line.append(make("td", { textContent: row.status, className: row.status === "ok" ? "" : "bad" }));
  for (const name of [...metrics, "seconds"]) line.append(make("td", { className: "number", textContent: measured(value(row, name)) }));
  return opened.has(row.key) ? [line, details(row, line.cells.length)] : [line];
}

function details(row, span) {
  const { config, links, command, ...about } = data.runs[row.run];
  const first = data.rows.find((other) => other.entry === row.entry).run;
  const settings = Object.entries(config).map(([key, setting]) => `${key}: ${JSON.stringify(setting)}`);
  const cell = make("td", { colSpan: span, className: "details" });
  if (row.error) cell.append(make("pre", { className: "bad", textContent: row.error }));
  cell.append(make("p", { className: "soft", textContent: "to repeat it" }), make("pre", { textContent: command ?? "not recorded" }));
  for (const link of links) cell.append(make("a", { href: link, textContent: link }), " ");
  cell.append(fold("all metrics", Object.entries(row.metrics).map(([name, number]) => `${name}: ${number}`)));
  cell.append(fold(first === row.run ? "config" : `config, where it differs from ${first}`, settings));
  cell.append(fold("provenance", JSON.stringify(about, null, 1).split("\n").slice(1, -1)));
  return make("tr", {}, cell);
}

const fold = (title, lines) => make("details", {}, make("summary", { textContent: title }), make("pre", { textContent: lines.join("\n") || "nothing" }));

function sortBy(name) {
  state.sort = [name, state.sort[0] === name ? -state.sort[1] : 1];
  show();
}

// ------------------------------------------------------------------------------------------------ charts

const dark = matchMedia("(prefers-color-scheme: dark)");
const KINDS = {
  curves: (rows) => series(rows, ["epoch", "requests"]).length && { x: present(rows, ["epoch", "requests"]), y: series(rows, ["epoch", "requests"]) },
  fronts: (rows) => series(rows, ["front_cost"]).length && { x: ["cost"], y: series(rows, ["front_cost"]).map((name) => name.slice(6)).filter((name) => !["cost", "on", "output"].includes(name)) },
  deltas: (rows) => metricNames(rows).length && { x: metricNames(rows), y: cellNames(rows) },
  points: (rows) => metricNames(rows).length > 1 && { x: metricNames(rows), y: metricNames(rows).slice(1).concat(metricNames(rows)[0]) },
  "heat map": (rows) => cellNames(rows).length > 1 && { x: cellNames(rows), y: cellNames(rows) },
};
const metricNames = (rows) => {
  const { metrics } = columns(rows);
  return unique([...metrics, ...rows.flatMap((row) => Object.keys(row.metrics))]);
};
const cellNames = (rows) => columns(rows).names.filter((name) => name !== "seed").concat(unique(rows.map((row) => row.entry)).length > 1 ? ["method"] : []);
const present = (rows, axes) => axes.filter((axis) => rows.some((row) => row.series[axis]));
// Series that have as many values as one of these axes.
const series = (rows, axes) =>
  unique(rows.flatMap((row) => axes.flatMap((axis) => Object.keys(row.series).filter((name) => !axes.includes(name) && row.series[axis]?.length === row.series[name].length))));

function suited(rows) {
  const names = new Set(rows.flatMap((row) => Object.keys(row.cell)));
  if (rows.some((row) => row.series.front_cost)) return "fronts";
  if (names.has("teacher") && names.has("student") && !names.has("method")) return "heat map";
  return rows.some((row) => row.cell.method) ? "deltas" : "curves";
}

function offerCharts(rows) {
  const good = rows.filter((row) => row.status === "ok");
  const kinds = Object.keys(KINDS).filter((kind) => good.length && KINDS[kind](good));
  fill("chart-kind", kinds, kinds.includes(suited(good)) ? suited(good) : kinds[0]);
  offerAxes();
}

function offerAxes() {
  const rows = filtered().filter((row) => row.status === "ok");
  const kind = $("chart-kind").value;
  const { x, y } = (kind && KINDS[kind](rows)) || { x: [], y: [] };
  const metric = ["heat map"].includes(kind) ? metricNames(rows) : ["none", "run", "entry", ...columns(rows).names];
  const wanted = { deltas: "method", "heat map": "teacher" }[kind];
  const gain = x.find((name) => /delta|gain|harmonic|average/.test(name));
  fill("chart-x", x, kind === "heat map" && x.includes("student") ? "student" : ((kind === "deltas" && gain) || x[0]));
  fill("chart-y", y, y.includes(wanted) ? wanted : (y.find((name) => name.startsWith("test_accuracy") || name === "accuracy") ?? y[0]));
  fill("chart-color", unique(metric), { curves: "run", fronts: ["search", "method", "dataset", "run"].find((name) => metric.includes(name)) }[kind] ?? metric[0]);
  $("chart-color").parentElement.firstChild.textContent = kind === "heat map" ? "value " : "color ";
  draw();
}

function fill(id, names, wanted) {
  const select = $(id);
  const before = select.dataset.touched && names.includes(select.value) ? select.value : wanted;
  select.replaceChildren(...names.map((name) => make("option", { value: name, textContent: name.replaceAll("_", " ") || (id === "group" ? "nothing" : "all") })));
  if (names.includes(before)) select.value = before;
}

function spec(kind, rows, x, y, color) {
  const number = (field, title = field) => ({ field, type: "quantitative", title: title.replaceAll("_", " "), scale: { zero: false } });
  const name = (field) => ({ field, type: "nominal", title: field.replaceAll("_", " "), sort: null });
  const paint = color === "none" ? {} : { color: { ...name("color"), title: color } };
  const zoom = [{ name: "zoom", select: "interval", bind: "scales" }];
  const pick = color === "none" ? [] : [{ name: "pick", select: { type: "point", fields: ["color"] }, bind: "legend" }];
  const faded = color === "none" ? {} : { opacity: { condition: { param: "pick", value: 1 }, value: 0.12 } };
  const about = [{ field: "run", title: "run" }, ...Object.keys(rows[0] ?? {}).filter((key) => !["run", "color", "order", "cost"].includes(key)).map((field) => ({ field, title: { x, y }[field] ?? field }))];
  const values = { data: { values: rows }, width: "container", height: 380 };
  if (kind === "curves") return { ...values, params: [...zoom, ...pick], mark: { type: "line", point: true }, encoding: { x: number("x", x), y: number("y", y), detail: { field: "run" }, tooltip: about, ...paint, ...faded } };
  if (kind === "fronts") return { ...values, params: [...zoom, ...pick], mark: { type: "point", size: 50 }, encoding: { x: { ...number("cost", x), axis: { format: "~s" } }, y: number("y", y), shape: { field: "network" }, tooltip: [...about.slice(1), about[0]], ...paint, ...faded } };
  if (kind === "points") return { ...values, params: [...zoom, ...pick], mark: { type: "point", filled: true, size: 60 }, encoding: { x: number("x", x), y: number("y", y), tooltip: about, ...paint, ...faded } };
  if (kind === "heat map") {
    const place = { x: { ...name("x"), title: x, axis: { labelAngle: -40 } }, y: { ...name("y"), title: y } };
    const mean = { field: "value", aggregate: "mean", type: "quantitative", title: color.replaceAll("_", " ") };
    return { ...values, height: 30 * unique(rows.map((one) => one.y)).length, encoding: place, layer: [
      { mark: "rect", encoding: { color: { ...mean, scale: { scheme: { name: "blues", extent: [0.05, 0.65] } } }, tooltip: [{ field: "x", title: x }, { field: "y", title: y }, mean, { aggregate: "count", title: "rows" }] } },
      { mark: { type: "text", fontSize: 11 }, encoding: { text: { ...mean, format: ".3~g" }, color: { value: "#24292f" } } } ] };
  }
  const across = { y: { ...name("y"), title: y }, x: number("x", x) };
  return { ...values, height: 26 * unique(rows.map((one) => one.y)).length, encoding: across, layer: [
    { mark: { type: "rule", strokeDash: [4, 3], color: "#8a8f98" }, encoding: { x: { datum: 0 }, y: null } },
    { mark: { type: "point", opacity: 0.45 }, encoding: { tooltip: about, ...paint } },
    { mark: { type: "errorbar", extent: "stdev", rule: { color: "#8a8f98", size: 2 } } },
    { mark: { type: "point", filled: true, size: 90 }, encoding: { x: { aggregate: "mean", ...across.x } } } ] };
}

function points(kind, rows, x, y, color) {
  const label = (row) => (color === "run" ? row.run : text(value(row, color)));
  const about = (row) => ({ run: row.run, color: label(row), ...row.cell });
  if (kind === "heat map") return rows.map((row) => ({ x: text(value(row, x)), y: text(value(row, y)), value: row.metrics[color] })).filter((one) => one.value !== undefined);
  if (kind === "deltas") return rows.map((row) => ({ ...about(row), x: row.metrics[x], y: text(value(row, y)) })).filter((one) => one.x !== undefined);
  if (kind === "points") return rows.map((row) => ({ ...about(row), x: row.metrics[x], y: row.metrics[y] })).filter((one) => one.x !== undefined && one.y !== undefined);
  if (kind === "curves") return rows.flatMap((row) => (row.series[x] ?? []).map((at, place) => ({ ...about(row), x: at, y: row.series[y]?.[place] }))).filter((one) => one.y !== undefined && one.y !== null);
  const networks = (row, side) => (row.series[`${side}_cost`] ?? []).map((cost, place) => {
    const get = (name) => row.series[`${side}_${name}`]?.[place];
    return { network: get("on") ? "offspring" : "parents", "stitches on": get("on") || "none", output: ["A", "B", "A + B"][get("output")], "multiply-adds": cost.toLocaleString("en"), "search accuracy": get("search_accuracy"), "test accuracy": get("test_accuracy"), ...about(row), cost, y: get(y) };
  });
  return rows.flatMap((row) => [...networks(row, "front"), ...networks(row, "reference")]);
}

async function draw() {
  const [kind, x, y, color] = ["kind", "x", "y", "color"].map((name) => $(`chart-${name}`).value);
  let rows = filtered().filter((row) => row.status === "ok");
  const chosen = rows.filter((row) => picked.has(row.run));
  if (chosen.length) rows = chosen;
  const overlay = kind === "curves" || kind === "fronts";
  if (overlay) rows = rows.filter((row) => row.series[kind === "curves" ? x : "front_cost"]);
  const few = kind === "curves" && !chosen.length ? rows.slice(0, MOST_CURVES) : rows;
  const values = kind ? points(kind, few, x, y, color) : [];
  const hidden = rows.length - few.length;
  $("chart-note").textContent = !values.length
    ? "Nothing to draw of these runs."
    : (hidden ? `The first ${few.length} of ${rows.length}; tick runs in the table to compare them. ` : "") +
      ({ deltas: "Points: rows; disc and bar: mean and standard deviation over them.", "heat map": "Means over the rows of a cell.", curves: data.thinned ? "Curves are thinned here; metrics.jsonl has all points." : "" }[kind] ?? "");
  if (!values.length) return $("chart").replaceChildren();
  const ink = dark.matches ? "#c9d1d9" : "#24292f";
  const line = dark.matches ? "#2b323b" : "#e3e7ec";
  const config = structuredClone(data.theme);
  Object.assign(config, { background: "transparent", title: { color: ink } });
  Object.assign(config.axis, { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line });
  Object.assign(config.legend, { labelColor: ink, titleColor: ink, orient: innerWidth < 700 ? "bottom" : "right", columns: 1 });
  await vegaEmbed("#chart", { ...spec(kind, values, x, y, color), config }, { actions: false, renderer: "svg" });
}

// ------------------------------------------------------------------------------------------------ start

for (const key of ["entry", "dataset", "status"]) {
  fill(`filter-${key}`, ["", ...unique(data.rows.map((row) => value(row, key))).map(String).sort()], "");
  $(`filter-${key}`).onchange = (event) => choose(key, event.target.value);
}
fill("group", ["", "seeds", "entry", ...unique(data.rows.flatMap((row) => Object.keys(row.cell))), "experiment", "sweep"], "");
$("group").onchange = (event) => choose("group", event.target.value);
$("search").oninput = (event) => choose("search", event.target.value);
$("more").onclick = () => ((state.shown += 500), show());
$("chart-kind").onchange = (event) => ((event.target.dataset.touched = "1"), offerAxes());
for (const name of ["x", "y", "color"]) $(`chart-${name}`).onchange = (event) => ((event.target.dataset.touched = "1"), draw());
for (const button of document.querySelectorAll(".choose"))
  button.onclick = () => (($("filter-entry").value = button.dataset.entry), choose("entry", button.dataset.entry), $("runs").scrollIntoView());
dark.addEventListener("change", draw);

function choose(key, wanted) {
  state[key] = wanted;
  state.shown = FIRST;
  if (key === "entry") for (const select of document.querySelectorAll("#charts select")) delete select.dataset.touched;
  show();
}

// A click on a heading sorts a finished table: values by their leading number (cells without one last), names by text.
for (const table of document.querySelectorAll("table.sortable"))
  [...table.tHead.rows[0].cells].forEach((head, place, heads) => {
    head.firstChild.onclick = () => {
      const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      const number = head.classList.contains("number");
      const key = (row) => (number ? parseFloat(row.cells[place].textContent) : row.cells[place].textContent);
      const lines = [...table.tBodies[0].rows].map((row) => [key(row), row]);
      lines.sort(([a], [b]) => (number && Number.isNaN(a + b) ? Number.isNaN(a) - Number.isNaN(b) : way * compare(a, b)));
      table.tBodies[0].append(...lines.map(([, row]) => row));
    };
  });
show();
