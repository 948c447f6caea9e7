// A table of any length: only the rows in sight are in the page, and rows are asked for in pages as they
// come in sight.

import { fill, h, later, say } from "../dom.js";
import { count, number, words } from "../format.js";
import { wrong } from "./states.js";

const HEIGHT = 32;
const PAGE = 200;
const SPARE = 12;

// `load(offset, limit) -> Promise<{n_matched, n, columns, rows}>`; `cell(name, value, row) -> text or
// element`; `head(name) -> {text, title, number}`. Further: sorted(name), pointed(row or null), opened(row)
// by Enter, chosen(row) by a click.
export function sheet(label, { load, cell, head, sorted, pointed, opened, chosen, id }) {
  const body = h("tbody");
  const heads = h("tr");
  const grid = h("table", null, h("caption", { class: "unseen" }, label), h("thead", null, heads), body);
  const element = h(
    "div",
    { class: "sheet tall", tabindex: "0", role: "region", "aria-label": label, id },
    grid,
  );
  const state = { columns: [], pages: new Map(), n: 0, at: -1, sort: "", turn: 0 };
  let frame = 0;

  const rowAt = (i) => state.pages.get(Math.floor(i / PAGE))?.rows?.[i % PAGE] || null;

  async function ask(page) {
    if (state.pages.has(page)) return;
    const turn = state.turn;
    state.pages.set(page, {});
    try {
      const found = await load(page * PAGE, PAGE);
      if (turn !== state.turn) return;
      state.pages.set(page, found);
    } catch (error) {
      if (turn !== state.turn) return;
      state.pages.delete(page);
      fill(body, h("tr", null, h("td", { colspan: state.columns.length || 1, class: "wrap" }, wrong(error))));
      return;
    }
    draw();
  }

  function away(n, key) {
    return n > 0
      ? [
          h(
            "tr",
            { class: "away", "aria-hidden": "true", data: { key } },
            h("td", { colspan: state.columns.length || 1, css: { height: `${n * HEIGHT}px` } }),
          ),
        ]
      : [];
  }

  function drawRow(i) {
    const row = rowAt(i);
    const cells = state.columns.map((name, j) => {
      const about = head(name);
      const waits = j ? "" : "…";
      return h("td", { class: about.number ? "number" : null }, row ? cell(name, row[j], row) : waits);
    });
    return h(
      "tr",
      {
        "aria-rowindex": i + 2,
        class: i === state.at ? "at" : null,
        data: { row: i, latent: row ? row[0] : null },
        onpointerenter: () => pointed && row && pointed(row),
        onclick: () => {
          move(i, true);
          if (chosen && row) chosen(row);
        },
      },
      cells,
    );
  }

  function draw() {
    const first = Math.max(0, Math.floor((element.scrollTop - HEIGHT) / HEIGHT) - SPARE);
    const last = Math.min(state.n, Math.ceil((element.scrollTop + element.clientHeight) / HEIGHT) + SPARE);
    for (let page = Math.floor(first / PAGE); page <= Math.floor(Math.max(0, last - 1) / PAGE); page++) {
      if (state.n) soon(page);
    }
    const rows = [];
    for (let i = first; i < last; i++) rows.push(drawRow(i));
    fill(body, away(first, "above"), rows, away(state.n - last, "below"));
    grid.setAttribute("aria-rowcount", String(state.n + 1));
  }

  const wanted = new Set();
  const flush = later(() => {
    const pages = [...wanted].slice(-3);
    wanted.clear();
    pages.forEach(ask);
  }, 60);
  function soon(page) {
    if (state.pages.has(page)) return;
    wanted.add(page);
    flush();
  }

  function drawHeads() {
    fill(
      heads,
      state.columns.map((name) => {
        const about = head(name);
        const by = state.sort.replace(/^-/, "") === name;
        const down = by && state.sort.startsWith("-");
        const text = [
          about.text || words(name),
          by ? h("span", { "aria-hidden": "true" }, down ? " ↓" : " ↑") : null,
        ];
        return h(
          "th",
          {
            scope: "col",
            class: about.number ? "number" : null,
            data: { column: name },
            "aria-sort": by ? (down ? "descending" : "ascending") : null,
          },
          sorted
            ? h("button", { type: "button", title: about.title, onclick: () => sorted(name) }, text)
            : h("span", { title: about.title }, text),
        );
      }),
    );
  }

  function move(i, quiet) {
    if (!state.n) return;
    state.at = Math.min(state.n - 1, Math.max(0, i));
    const top = state.at * HEIGHT;
    if (!quiet) {
      if (top < element.scrollTop) element.scrollTop = top;
      else if (top + 2 * HEIGHT > element.scrollTop + element.clientHeight) {
        element.scrollTop = top + 2 * HEIGHT - element.clientHeight + 4;
      }
    }
    draw();
    const row = rowAt(state.at);
    if (row && pointed) pointed(row);
  }

  element.addEventListener("scroll", () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  });
  element.addEventListener("pointerleave", () => pointed && pointed(null));
  element.addEventListener("keydown", (event) => {
    if (event.target !== element) return;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12 };
    if (event.key in steps) move(state.at + steps[event.key]);
    else if (event.key === "Home") move(0);
    else if (event.key === "End") move(state.n - 1);
    else if (event.key === "Enter" && rowAt(state.at) && opened) opened(rowAt(state.at));
    else return;
    event.preventDefault();
  });
  new ResizeObserver(() => state.columns.length && draw()).observe(element);

  return {
    element,
    // Asks again for everything, and shows the first page. Returns what the first page said.
    async refresh(sort) {
      const turn = ++state.turn;
      state.sort = sort || "";
      element.setAttribute("aria-busy", "true");
      try {
        const first = await load(0, PAGE);
        if (turn !== state.turn) return null;
        Object.assign(state, {
          columns: first.columns,
          n: first.n_matched,
          pages: new Map([[0, first]]),
          at: -1,
        });
        element.scrollTop = 0;
        drawHeads();
        draw();
        if (!state.n) {
          fill(
            body,
            h("tr", null, h("td", { colspan: state.columns.length }, "Nothing is left by these conditions.")),
          );
        }
        say(`${count(state.n, "row")}.`);
        return first;
      } catch (error) {
        if (turn === state.turn)
          fill(
            body,
            h("tr", null, h("td", { class: "wrap", colspan: state.columns.length || 1 }, wrong(error))),
          );
        throw error;
      } finally {
        if (turn === state.turn) element.removeAttribute("aria-busy");
      }
    },
    step: (by) => move(state.at + by),
    open: () => rowAt(state.at) && opened && opened(rowAt(state.at)),
  };
}

// What a cell shows by default.
export function plainCell(value) {
  return number(value);
}
