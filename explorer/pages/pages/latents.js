// Latents: a table of all of them beside a scatter, both of the same conditions.

import { change, go, makeAddress } from "../address.js";
import { fill, h, later, say } from "../dom.js";
import { count, number, whole, words } from "../format.js";
import { onPage } from "../keys.js";
import { chip, filters } from "../parts/filters.js";
import { preview } from "../parts/preview.js";
import { plainCell, sheet } from "../parts/sheet.js";
import { note } from "../parts/states.js";
import { latentRows } from "../rows.js";
import { isReport } from "../source.js";
import { classesOf, columnOf } from "../state.js";
import { plotOf } from "../parts/latent_map.js";

const FIRST = [
  "name",
  "n_images",
  "frequency",
  "mean_activation",
  "max_activation",
  "label_entropy",
  "n_classes",
];

function sortOf(query) {
  return query.sort || (query.words ? "-word_score" : query.class ? "-class_n_images" : "");
}

function shownColumns(view, query) {
  const all = view.columns.map((column) => column.name);
  const chosen = query.columns
    ? query.columns.split(",").filter((name) => all.includes(name))
    : FIRST.filter((name) => all.includes(name));
  return chosen.filter((name) => name !== "latent");
}

function columnPicker(view, query) {
  const shown = new Set(shownColumns(view, query));
  const boxes = view.columns
    .filter((column) => column.name !== "latent")
    .map((column) =>
      h(
        "label",
        null,
        h("input", {
          type: "checkbox",
          checked: shown.has(column.name),
          onchange: (event) => {
            if (event.target.checked) shown.add(column.name);
            else shown.delete(column.name);
            change(
              {
                columns:
                  view.columns
                    .map((one) => one.name)
                    .filter((name) => shown.has(name))
                    .join(",") || "latent",
              },
              true,
            );
          },
        }),
        h(
          "span",
          null,
          words(column.name),
          column.table && column.table !== "latents"
            ? h("span", { class: "soft" }, ` (${words(column.table)})`)
            : null,
        ),
        h("small", null, column.sentence),
      ),
    );
  return h(
    "details",
    { class: "drop" },
    h("summary", null, "Columns"),
    h("div", { class: "columns" }, boxes),
  );
}

function searches(view, query) {
  const list = h("datalist", { id: "class-names" });
  const byName = new Map();
  if (view.classes) {
    classesOf(view.key).then(
      (classes) =>
        fill(
          list,
          classes.map((one) => {
            byName.set(one.name, one.id);
            return h("option", { value: one.name });
          }),
        ),
      () => null,
    );
  }
  const klass = h("input", {
    list: "class-names",
    placeholder: "Class",
    "aria-label": "Latents of a class",
    autocomplete: "off",
    onchange: () => {
      const text = klass.value.trim();
      if (byName.has(text)) change({ class: byName.get(text) });
      else if (text) say("No class is called that.");
    },
  });
  const form =
    view.words && !isReport()
      ? h(
          "form",
          {
            onsubmit: (event) => {
              event.preventDefault();
              change({ words: event.target.elements.words.value.trim(), sort: null });
            },
          },
          h("input", {
            name: "words",
            value: query.words || "",
            placeholder: "Words, such as “red circle”",
            "aria-label": "Latents by words",
          }),
        )
      : null;
  return [view.classes ? [klass, list] : null, form];
}

export async function latentsPage({ view: key }, firstQuery, view) {
  let query = firstQuery;
  const told = h("p", { class: "lead", "aria-live": "polite" });
  const tools = h("div", { class: "row" });
  const extra = h("div", { class: "chips" });
  const filter = filters(view.columns, (where) => change({ where }));
  const small = preview(view);
  const open = (latent) => go(["v", key, "latent", latent]);
  const pointed = later((latent) => small.show(latent), 90);
  const plot = plotOf(view, (latent) => pointed(latent));

  const about = (name) => {
    const column = columnOf(view, name);
    const sentences = {
      latent: "Number of the latent.",
      word_score: "Cosine of the latent's direction and the words' text embedding.",
    };
    return {
      title: column
        ? column.sentence
        : sentences[name] || `${words(name.replace(/^class_/, ""))} in the chosen class`,
      number: name !== "name" && (!column || !/string|bool|categorical/i.test(column.type)),
    };
  };
  const rows = sheet("Latents", {
    id: "latents",
    load: (offset, limit) =>
      latentRows(
        key,
        { where: query.where, sort: sortOf(query), offset, limit, class: query.class, words: query.words },
        shownColumns(view, query),
      ),
    cell: (name, value) =>
      name === "latent"
        ? h("a", { href: makeAddress(["v", key, "latent", value]) }, String(value))
        : plainCell(value),
    head: about,
    sorted: (name) =>
      change({ sort: sortOf(query) === `-${name}` ? name : query.sort === name ? null : `-${name}` }),
    pointed: (row) => {
      plot.point(row ? row[0] : null);
      if (row) pointed(row[0]);
    },
    opened: (row) => open(row[0]),
  });

  async function chips() {
    const list = [];
    if (query.class) {
      let name = query.class;
      try {
        name = (await classesOf(key)).find((one) => String(one.id) === query.class)?.name || name;
      } catch {
        // The number says it too.
      }
      list.push(
        chip(`class: ${name}`, () => change({ class: null })),
        h("a", { href: makeAddress(["v", key, "class", query.class]) }, "Page of this class"),
      );
    }
    if (query.words) list.push(chip(`words: ${query.words}`, () => change({ words: null })));
    fill(extra, list);
  }

  let last = {};
  async function update(next) {
    query = next;
    const same = (...names) => names.every((name) => (last[name] || "") === (next[name] || ""));
    filter.set(query.where);
    if (!same("columns", "words") || !tools.hasChildNodes())
      fill(tools, filter.builder, searches(view, query), columnPicker(view, query));
    plot.set(query);
    chips();
    const asks = !same("where", "sort", "class", "words", "columns") || !told.textContent;
    last = next;
    if (!asks) return;
    try {
      const first = await rows.refresh(sortOf(query));
      if (first) {
        told.textContent =
          first.n_matched === first.n_latents
            ? count(first.n_latents, "latent")
            : `${whole(first.n_matched)} of ${count(first.n_latents, "latent")} ` +
              `(${number((100 * first.n_matched) / first.n_latents, 3)} %)`;
        small.suggest(first.rows[0] ? first.rows[0][0] : null);
      }
    } catch {
      told.textContent = "The table cannot be shown.";
    }
  }

  onPage(["j", "ArrowDown"], "next row", () => rows.step(1), { ArrowDown: "↓" });
  onPage(["k", "ArrowUp"], "previous row", () => rows.step(-1), { ArrowUp: "↑" });
  onPage(["Enter"], "open the latent of the row", () =>
    document.activeElement.closest("a, button, summary") ? false : rows.open(),
  );
  const ready = update(firstQuery);
  const element = h(
    "div",
    { class: "stack" },
    h(
      "div",
      { class: "head" },
      h("div", null, h("h1", null, "Latents"), told),
      h("span", { class: "gap" }),
      tools,
    ),
    filter.chips,
    extra,
    h(
      "div",
      { class: "split wide" },
      h("div", { class: "fillup" }, rows.element),
      h("div", { class: "stack" }, plot.element, small.element),
    ),
    isReport()
      ? note("This report filters and sorts in the browser. Search by words needs `patchsae explore`.")
      : null,
  );
  return { element, title: "Latents", update, ready };
}
