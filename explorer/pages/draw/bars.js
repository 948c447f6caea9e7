// Bars: lists of names with lengths, and histograms.

import { h, svg } from "../dom.js";
import { number, whole } from "../format.js";

// [{name, value, text, href, title, before}] as rows of name, bar and number; `before` is outlined over the
// bar.
export function barList(items, most) {
  const top = most || Math.max(...items.map((item) => Math.max(item.value || 0, item.before || 0)), 1e-12);
  const wide = (value) => ({ width: `${Math.max(0, Math.min(100, (100 * value) / top))}%` });
  return h(
    "ul",
    { class: "barlist" },
    items.map((item) => {
      const parts = [
        h("span", { class: "name", title: item.title || item.name }, item.name),
        h(
          "span",
          { class: "meter", "aria-hidden": "true" },
          h("i", { css: wide(item.value || 0) }),
          item.before === undefined ? null : h("i", { class: "before", css: wide(item.before) }),
        ),
        h("span", { class: "number" }, item.text || number(item.value)),
      ];
      return h(
        "li",
        { data: item.data },
        item.href ? h("a", { href: item.href }, parts) : h("div", null, parts),
      );
    }),
  );
}

// A histogram of tokens by activation: {low, high, n_tokens}, with a logarithmic axis of values.
export function histogram(data, label) {
  const [width, height, left, bottom, top] = [360, 150, 42, 28, 8];
  const counts = data.n_tokens;
  const most = Math.max(...counts, 1);
  const lows = data.low.map((value) => Math.max(value, 1e-6));
  const [first, last] = [Math.log(lows[0]), Math.log(data.high[data.high.length - 1])];
  const x = (value) =>
    left + ((Math.log(Math.max(value, lows[0])) - first) / (last - first || 1)) * (width - left - 8);
  const y = (n) => height - bottom - (n / most) * (height - bottom - top);
  const bars = counts.map((n, i) =>
    svg(
      "rect",
      {
        x: x(lows[i]),
        y: y(n),
        width: Math.max(1, x(data.high[i]) - x(lows[i]) - 0.6),
        height: height - bottom - y(n),
        fill: "currentColor",
      },
      svg("title", null, `${number(data.low[i], 3)} to ${number(data.high[i], 3)}: ${whole(n)} tokens`),
    ),
  );
  const ticks = [];
  const every = Math.max(1, Math.ceil((last - first) / Math.LN2 / 5));
  for (let power = Math.ceil(first / Math.LN2); power * Math.LN2 <= last + 1e-9; power += every)
    ticks.push(2 ** power);
  return svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "bars", width: "100%" },
    svg("g", { css: { color: "var(--accent)" } }, bars),
    svg("line", { class: "axis", x1: left, x2: width - 8, y1: height - bottom, y2: height - bottom }),
    ticks.map((value) =>
      svg(
        "text",
        { class: "soft", x: x(value), y: height - bottom + 13, "text-anchor": "middle" },
        number(value, 3),
      ),
    ),
    svg("text", { class: "soft", x: left - 5, y: top + 8, "text-anchor": "end" }, whole(most)),
    svg("text", { class: "soft", x: left - 5, y: height - bottom, "text-anchor": "end" }, "0"),
    svg(
      "text",
      { class: "soft", x: (left + width) / 2, y: height - 3, "text-anchor": "middle" },
      "activation of a token",
    ),
  );
}
