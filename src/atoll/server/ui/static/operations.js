// Operations: one small request a second; the server keeps ten minutes, so a reload has them again.

import { Chart, color } from "./charts.js";
import { send } from "./app.js";

const KEPT = 600;
const root = document.getElementById("operations");
const small = (v) => (v === 0 ? "0" : Math.abs(v) >= 1000 ? `${+(v / 1000).toPrecision(3)}k` : String(+v.toPrecision(3)));
const percent = (v) => `${Math.round(100 * v)} %`;
const at = (id, options) => new Chart(document.getElementById(`chart-${id}`), { height: 150, time: true, min: 0, format: small, ...options });
const charts = {
  queue: at("queue"), tokens: at("tokens"), kv: at("kv", { max: 1, format: percent }),
  latency: at("latency"), tiers: at("tiers"), steps: at("steps"),
};
const SHOWN = {
  queue: [["running", 0, true], ["waiting", 1]],
  tokens: [["computed", 6], ["generated", 0, true]],
  kv: [["kv_use", 0, true], ["kv_cached", 8]],
  tiers: [["device_hits", 0], ["host_hits", 5], ["disk_reads", 9]],
  steps: [["tokens_per_step", 2, true]],
};
const looks = [];
const names = new Map(); // adapter -> number of its colour, kept so that nothing changes colour while one looks

function seconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 1 ? `${+(1000 * value).toPrecision(3)} ms` : `${value.toFixed(2)} s`;
}

function draw() {
  const times = looks.map((look) => look.at);
  for (const [name, lines] of Object.entries(SHOWN)) {
    const series = lines.map(([key, number, fill]) => ({ label: key, color: number, fill: Boolean(fill) }));
    charts[name].show(series, [times, ...lines.map(([key]) => looks.map((look) => look[key]))]);
  }
  const series = ["p50", "p95", "p99"].map((label, i) => ({ label, color: [0, 5, 9][i], spanGaps: false }));
  charts.latency.show(series, [times, ...series.map((s) => looks.map((look) => look.latency.first_token[s.label]))]);
  strip();
}

function colorOf(name) {
  if (name === "") return 8;
  if (!names.has(name)) names.set(name, [0, 1, 2, 3, 4, 5, 6, 7, 9][names.size % 9]);
  return names.get(name);
}

/** The batch of every second as a column of cells, the newest on the right. */
function strip() {
  const canvas = document.getElementById("strip"), scale = devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width) return;
  canvas.width = width * scale; canvas.height = height * scale;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const cell = Math.max(2, Math.min(8, width / 120)), columns = Math.floor(width / cell);
  const shown = looks.slice(-columns);
  const tallest = Math.max(8, ...shown.map((look) => Object.values(look.batch).reduce((a, b) => a + b, 0)));
  const unit = height / tallest, gap = unit > 3 ? 1 : 0;
  shown.forEach((look, index) => {
    let y = height;
    const x = width - (shown.length - index) * cell;
    for (const [name, number] of Object.entries(look.batch)) {
      context.fillStyle = color(colorOf(name));
      for (let i = 0; i < number; i += 1) { y -= unit; context.fillRect(x, y + gap, cell - 1, unit - gap); }
    }
  });
  legend(shown);
}

function legend(shown) {
  const last = looks.at(-1)?.batch ?? {};
  const seen = [...new Set(shown.flatMap((look) => Object.keys(look.batch)))].sort();
  const parts = seen.map((name) => {
    const part = document.createElement("span"), swatch = document.createElement("i");
    swatch.className = `swatch c${colorOf(name)}`;
    part.append(swatch, `${name || "base model"}${last[name] ? `: ${last[name]}` : ""}`);
    return part;
  });
  const element = document.getElementById("strip-legend");
  element.replaceChildren(...(parts.length ? parts : ["no request has run in this time"]));
}

function fill(now) {
  for (const element of document.querySelectorAll("[data-now]")) element.textContent = now[element.dataset.now];
  const last = looks.at(-1);
  if (last) {
    document.getElementById("generated").textContent = small(last.generated);
    document.getElementById("kv").textContent = percent(last.kv_use);
    document.getElementById("first-token").textContent = seconds(last.latency.first_token.p95);
    for (const row of document.querySelectorAll("[data-latency]")) {
      const values = last.latency[row.dataset.latency];
      for (const cell of row.querySelectorAll("[data-quantile]")) cell.textContent = seconds(values[cell.dataset.quantile]);
    }
  }
  const alive = document.getElementById("alive");
  alive.className = `status ${now.is_alive ? "running" : "failed"}`;
  alive.textContent = now.is_alive ? "the engine runs" : "the engine does not run";
  troubles(now.troubles);
}

function troubles(list) {
  const rows = list.map((trouble) => {
    const row = document.createElement("tr"), head = document.createElement("th"), cell = document.createElement("td");
    head.scope = "row"; head.textContent = trouble.text;
    cell.className = "num"; cell.textContent = trouble.count.toLocaleString("en");
    row.append(head, cell);
    return row;
  });
  if (rows.length) document.getElementById("troubles").replaceChildren(...rows);
}

async function poll() {
  try {
    const answer = await send(`/ui/operations/looks?after=${looks.at(-1)?.number ?? 0}`);
    if (answer.status === 401) { location.reload(); return; }
    if (answer.ok) {
      const { looks: fresh, now } = await answer.json();
      if (fresh.length && looks.length && fresh[0].number < looks.at(-1).number) looks.length = 0; // another server's life
      looks.push(...fresh);
      looks.splice(0, Math.max(0, looks.length - KEPT));
      fill(now);
      draw();
    }
  } catch {
    document.getElementById("alive").className = "status failed";
    document.getElementById("alive").textContent = "the server does not answer";
  }
  setTimeout(poll, Number(root.dataset.poll) * (document.hidden ? 5 : 1));
}

new ResizeObserver(strip).observe(document.getElementById("strip"));
document.addEventListener("atoll:theme", strip);
poll();
