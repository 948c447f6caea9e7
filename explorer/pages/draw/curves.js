// Curves by uPlot, with intervals as bands, a legend that follows the pointer, and the numbers as a table.

import { h } from "../dom.js";
import { number, words } from "../format.js";
import { table } from "../parts/controls.js";
import { CATEGORIES, themed } from "./colours.js";

function faint(hex) {
  const n = parseInt(hex.slice(1), 16);
  return `rgb(${n >> 16} ${(n >> 8) & 255} ${n & 255} / 0.18)`;
}

// Ticks of a logarithmic axis.
function decades(plot, axis, low, high) {
  const ticks = [];
  for (let power = Math.ceil(Math.log10(low) - 1e-9); power <= Math.log10(high) + 1e-9; power++)
    ticks.push(10 ** power);
  return ticks.length > 1 ? ticks : [low, high];
}

function dataOf(x, lines) {
  const data = [x];
  for (const line of lines) {
    data.push(line.values);
    if (line.low) data.push(line.low, line.high);
  }
  return data;
}

// `lines`: [{name, values, low, high, colour, dash}], all over `x`: {name, values, log}. Returns {element,
// set(x, lines), close()}. `options`: {height, range: [low, high] of y, log: whether y is}.
export function curves(label, x, lines, options) {
  const settings = options || {};
  const tall = settings.height || 220;
  const place = h("div", { class: "plot", role: "img", "aria-label": label, css: { height: `${tall}px` } });
  const keys = h("div", { class: "legend" });
  const numbers = h("div");
  const folded = h(
    "details",
    { class: "small", ontoggle: () => folded.open && writeNumbers() },
    h("summary", { class: "soft" }, "As a table"),
    numbers,
  );
  const element = h("div", null, place, keys, folded);
  let now = { x, lines };
  let plot = null;
  let spans = [];

  const colourOf = (line, i) => line.colour || CATEGORIES[i % CATEGORIES.length];

  function writeKeys(index) {
    now.lines.forEach((line, i) => {
      const value =
        index === null || index === undefined ? line.values[line.values.length - 1] : line.values[index];
      spans[i].textContent = value === null || value === undefined ? "" : number(value, 3);
    });
  }

  function writeNumbers() {
    const columns = [
      { name: now.x.name, number: true },
      ...now.lines.map((line) => ({ name: line.name, number: true })),
    ];
    const every = Math.max(1, Math.ceil(now.x.values.length / 100));
    const rows = now.x.values
      .map((value, i) => [
        number(value),
        ...now.lines.map((line) =>
          line.low && line.values[i] !== null
            ? `${number(line.values[i], 3)} (${number(line.low[i], 3)} to ${number(line.high[i], 3)})`
            : number(line.values[i]),
        ),
      ])
      .filter((_, i) => i % every === 0 || i === now.x.values.length - 1);
    numbers.replaceChildren(table(`${label}, as numbers`, columns, rows));
  }

  function make() {
    const [soft, line] = [themed("--soft"), themed("--line")];
    const axis = {
      stroke: soft,
      grid: { stroke: line, width: 1 },
      ticks: { stroke: line, width: 1, size: 5 },
      font: "11px system-ui, sans-serif",
      labelFont: "11px system-ui, sans-serif",
    };
    const series = [{}];
    const bands = [];
    now.lines.forEach((one, i) => {
      const points = one.points ?? now.x.values.length < 40;
      series.push({
        stroke: colourOf(one, i),
        width: 2,
        dash: one.dash,
        points: { show: points, size: 5 },
        spanGaps: true,
      });
      if (one.low) {
        series.push(
          { stroke: "transparent", points: { show: false } },
          { stroke: "transparent", points: { show: false } },
        );
        bands.push({ series: [series.length - 1, series.length - 2], fill: faint(colourOf(one, i)) });
      }
    });
    const values = (_, ticks) => ticks.map((tick) => (tick === null ? "" : number(tick, 3)));
    plot = new window.uPlot(
      {
        width: Math.max(160, place.clientWidth),
        height: tall,
        legend: { show: false },
        cursor: { drag: { x: true, y: false }, points: { size: 7 } },
        scales: {
          x: {
            time: false,
            distr: now.x.log ? 3 : 1,
            range: (_, low, high) => [low, high > low ? high : low + 1],
          },
          y: { distr: settings.log ? 3 : 1, range: settings.range ? () => settings.range : undefined },
        },
        axes: [
          {
            ...axis,
            size: 26,
            label: words(now.x.name),
            labelSize: 16,
            splits: now.x.log ? decades : undefined,
            values,
          },
          { ...axis, size: 54, splits: settings.log ? decades : undefined, values },
        ],
        series,
        bands,
        hooks: { setCursor: [(one) => writeKeys(one.cursor.idx)] },
      },
      dataOf(now.x.values, now.lines),
      place,
    );
  }

  function writeLegend() {
    spans = now.lines.map(() => h("span", { class: "number" }));
    keys.replaceChildren(
      ...now.lines.map((line, i) =>
        h(
          "span",
          { class: "key" },
          h("i", { css: { background: colourOf(line, i) } }),
          words(line.name),
          spans[i],
        ),
      ),
    );
    writeKeys(null);
  }

  const watch = new ResizeObserver(() => {
    if (!place.clientWidth) return;
    if (plot) plot.setSize({ width: place.clientWidth, height: tall });
    else make();
  });
  watch.observe(place);
  writeLegend();
  return {
    element,
    set(nextX, nextLines) {
      const same = nextLines.length === now.lines.length;
      now = { x: nextX, lines: nextLines };
      if (plot && same) plot.setData(dataOf(now.x.values, now.lines));
      else if (plot) {
        plot.destroy();
        make();
      }
      writeLegend();
      if (folded.open) writeNumbers();
    },
    close() {
      watch.disconnect();
      if (plot) plot.destroy();
    },
  };
}
