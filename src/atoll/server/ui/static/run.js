// A run's page: asks for what is new, once a second while it goes on; a reload begins with all points again.

import { Chart } from "./charts.js";
import { send } from "./app.js";

const root = document.getElementById("run");
const [TIME, STEP, LOSS, VALIDATION, RATE, NORM, TOKENS] = [0, 1, 2, 3, 4, 5, 6];
const points = new Map();
const small = (v) => (v === 0 ? "0" : Math.abs(v) < 0.001 ? v.toExponential(0) : String(+v.toPrecision(3)));
const charts = {};
for (const [name, options] of Object.entries({
  loss: { height: 280, format: small }, rate: { min: 0, format: small }, norm: { min: 0, format: small }, speed: { min: 0, time: true, format: small },
})) {
  const element = document.getElementById(`chart-${name}`);
  if (element) charts[name] = new Chart(element, options);
}

/** Series of several adapters over their own steps, joined on one axis. */
function show(chart, column, extra) {
  const series = [], tables = [];
  [...points].forEach(([name, rows], index) => {
    if (!rows.length) return;
    series.push({ label: name, color: index });
    tables.push([rows.map((row) => row[STEP]), rows.map((row) => row[column])]);
    const marked = extra === undefined ? [] : rows.filter((row) => row[extra] !== null);
    if (marked.length) {
      series.push({ label: `${name}, validation`, color: index, points: true });
      tables.push([marked.map((row) => row[STEP]), marked.map((row) => row[extra])]);
    }
  });
  if (tables.length) chart.show(series, uPlot.join(tables));
}

/** Tokens of all adapters a second, over windows that hold at least two seconds. */
function speed() {
  const moments = [...points.values()].flatMap((rows) => rows.map((row, i) => [row[TIME], row[TOKENS] - (i ? rows[i - 1][TOKENS] : 0)]));
  moments.sort((a, b) => a[0] - b[0]);
  if (moments.length < 3) return;
  const span = moments.at(-1)[0] - moments[0][0], width = Math.max(2, span / 150);
  const times = [], rates = [];
  let start = moments[0][0], tokens = 0;
  for (const [at, number] of moments.slice(1)) {
    tokens += number;
    if (at - start >= width) { times.push(at); rates.push(tokens / (at - start)); start = at; tokens = 0; }
  }
  if (times.length) charts.speed.show([{ label: "tokens/s", color: 0, fill: true }], [times, rates]);
}

function draw() {
  if (!charts.loss) return;
  show(charts.loss, LOSS, VALIDATION);
  show(charts.rate, RATE);
  show(charts.norm, NORM);
  speed();
}

function fill(live) {
  for (const [key, text] of Object.entries(live.facts)) {
    const element = document.getElementById(`fact-${key}`);
    if (element) element.textContent = text;
  }
  const share = document.getElementById("share");
  if (share) share.value = live.share;
  for (const adapter of live.adapters) {
    const row = document.querySelector(`tr[data-adapter="${CSS.escape(adapter.name)}"]`);
    if (!row) continue;
    row.querySelector("progress").value = adapter.share;
    for (const cell of row.querySelectorAll("[data-key]")) cell.textContent = adapter[cell.dataset.key];
  }
  const output = document.getElementById("output");
  if (output && live.output) output.textContent = live.output;
}

let after = 0;

async function poll() {
  let live;
  try {
    const answer = await send(`${root.dataset.live}?after=${after}`);
    if (!answer.ok) throw new Error(answer.status);
    live = await answer.json();
  } catch {
    setTimeout(poll, 5 * Number(root.dataset.poll)); // the server may be starting again
    return;
  }
  const hasRows = document.querySelectorAll("tr[data-adapter]").length;
  if (live.status !== root.dataset.status || (live.adapters.length && !hasRows)) { location.reload(); return; }
  for (const [name, rows] of Object.entries(live.points)) {
    if (!points.has(name)) points.set(name, []);
    points.get(name).push(...rows);
    for (const row of rows) after = Math.max(after, row[TIME]);
  }
  fill(live);
  draw();
  if (root.dataset.going === "yes") setTimeout(poll, Number(root.dataset.poll));
}

poll();
