// Colours that do not depend on seeing red and green apart.

// Stops of viridis and cividis, evenly spaced from 0 to 1.
const SCALES = {
  viridis: [
    [68, 1, 84],
    [71, 45, 123],
    [59, 82, 139],
    [44, 114, 142],
    [33, 145, 140],
    [40, 174, 128],
    [94, 201, 98],
    [173, 220, 48],
    [253, 231, 37],
  ],
  cividis: [
    [0, 34, 78],
    [18, 53, 112],
    [59, 73, 108],
    [87, 93, 109],
    [112, 113, 115],
    [138, 134, 120],
    [165, 156, 116],
    [195, 179, 105],
    [254, 232, 56],
  ],
};

// Okabe and Ito's eight, without black, which depends on the theme.
export const CATEGORIES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800"];

// [r, g, b] of a value from 0 to 1.
export function shade(value, name) {
  const stops = SCALES[name || "viridis"];
  const at = Math.min(1, Math.max(0, value)) * (stops.length - 1);
  const low = Math.min(stops.length - 2, Math.floor(at));
  const rest = at - low;
  return stops[low].map((channel, i) => Math.round(channel + rest * (stops[low + 1][i] - channel)));
}

export function isDark() {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

// As `shade`, without the end of the scale that cannot be told from the page.
export function shadeOnPage(value) {
  return shade(isDark() ? 0.18 + 0.82 * value : 0.9 * value);
}

export function css(rgb, alpha) {
  return alpha === undefined ? `rgb(${rgb.join(" ")})` : `rgb(${rgb.join(" ")} / ${alpha})`;
}

// The colour that a custom property such as "--ink" has in the present theme.
export function themed(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}
