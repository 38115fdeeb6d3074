// Charts in the page's colours, which follow the theme and the width.

const PALETTES = {
  light: ["#0b6f79", "#b3541e", "#5b4bb7", "#2f7d32", "#b0307a", "#8a6d00", "#1f6fb2", "#7a4a2b", "#6a6f73", "#a3262a"],
  dark: ["#58c4cd", "#f0a06a", "#a99bf5", "#84cf87", "#ee8bc0", "#e0c04d", "#74b6ee", "#c9a184", "#aab4b8", "#f29a93"],
};

export function isDark() {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** The colour of the series of that number. */
export const color = (index) => PALETTES[isDark() ? "dark" : "light"][index % 10];

const clock = (seconds) => new Date(1000 * seconds).toTimeString().slice(0, 8);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const all = new Set();

/**
 * A chart inside an element. series: [{label, color (a number), points, width, dash, fill}]; data: as uPlot has it.
 * options: time (x is unix seconds), log, min, max, format.
 */
export class Chart {
  constructor(element, options = {}) {
    this.element = element;
    this.options = options;
    this.series = [];
    this.data = [[]];
    all.add(this);
    new ResizeObserver(() => this.resize()).observe(element);
  }

  show(series, data) {
    const shape = JSON.stringify(series);
    const isSame = shape === this.shape && this.plot;
    this.series = series;
    this.data = data;
    if (isSame) this.plot.setData(data);
    else { this.shape = shape; this.draw(); }
  }

  resize() {
    const width = Math.floor(this.element.clientWidth);
    if (this.plot && width && width !== this.width) this.plot.setSize({ width, height: this.height() });
    this.width = width;
  }

  height() { return this.options.height ?? 200; }

  draw() {
    this.plot?.destroy();
    const width = Math.floor(this.element.clientWidth);
    if (!width || !this.series.length) { this.plot = null; return; }
    this.width = width;
    const { time = false, log = false, min, max, format = (v) => String(v) } = this.options;
    const axis = { stroke: css("--dim"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line"), width: 1, size: 4 }, font: "11px system-ui, sans-serif" };
    const range = (u, low, high) => {
      const bottom = min ?? low ?? 0;
      const top = Math.max(max ?? high ?? 1, bottom + 1e-9);
      return [bottom, min === undefined ? top : top * 1.06];
    };
    this.plot = new uPlot({
      width, height: this.height(),
      legend: { show: this.options.legend ?? false },
      cursor: { drag: { x: false, y: false }, points: { size: 6 } },
      scales: { x: { time }, y: log ? { distr: 3 } : (min === undefined && max === undefined ? {} : { range }) },
      axes: [{ ...axis, size: 28, gap: 2, ...(time ? { values: (u, ticks) => ticks.map(clock), space: 70 } : {}) }, { ...axis, size: 54, gap: 2, values: (u, ticks) => ticks.map((t) => (t === null ? "" : format(t))) }],
      series: [{}, ...this.series.map((s) => ({
        label: s.label, stroke: color(s.color), width: s.width ?? 1.5, dash: s.dash, spanGaps: s.spanGaps ?? true,
        fill: s.fill ? `${color(s.color)}22` : undefined,
        paths: s.points ? () => null : undefined,
        points: { show: Boolean(s.points), size: 6, fill: color(s.color), space: 0 },
      }))],
    }, this.data, this.element);
  }
}

function redraw() { for (const chart of all) chart.draw(); }
document.addEventListener("atoll:theme", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
