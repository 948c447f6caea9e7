// The conditions on a table: chips that can be removed, a builder for any column, and the text form.

import { fill, h } from "../dom.js";
import { words } from "../format.js";
import { faultOf, parseWhere, writeWhere } from "../where.js";

const SIGNS = { "<": "<", "<=": "≤", ">": ">", ">=": "≥", "=": "=", "!=": "≠", "~": "contains" };

// One chip: text and what removes it.
export function chip(text, remove, data) {
  return h(
    "span",
    { class: "chip", data },
    text,
    h("button", { type: "button", "aria-label": `Remove ${text}`, onclick: remove }, "×"),
  );
}

function isText(column) {
  return !column || /string|categorical|utf8|enum/i.test(column.type);
}

function isBoolean(column) {
  return column && /bool/i.test(column.type);
}

// Columns in groups by their table, as options of a select.
export function columnOptions(columns, keep) {
  const groups = new Map();
  for (const column of columns.filter(keep || (() => true))) {
    const group = column.table || "latents";
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push([column.name, words(column.name)]);
  }
  if (groups.size === 1) return [...groups.values()][0];
  return [...groups].map(([group, options]) => ({ group: words(group), options }));
}

// {chips, builder, set(where)}: elements, and a way to show other conditions. `changed(where)` is called.
export function filters(columns, changed) {
  const names = columns.map((column) => column.name);
  const chips = h("div", { class: "chips" });
  const fault = h("p", { class: "note", role: "alert" });
  let where = "";
  const apply = (conditions) => changed(writeWhere(conditions));

  const column = h("select", { "aria-label": "Column", data: { role: "filter-column" } });
  for (const option of columnOptions(columns)) {
    if (Array.isArray(option)) column.append(h("option", { value: option[0] }, option[1]));
    else
      column.append(
        h(
          "optgroup",
          { label: option.group },
          option.options.map(([v, t]) => h("option", { value: v }, t)),
        ),
      );
  }
  const op = h("select", { "aria-label": "Comparison", data: { role: "filter-op" } });
  const value = h("input", { "aria-label": "Value", placeholder: "value", data: { role: "filter-value" } });
  const meaning = h("p", { class: "note" });
  const fit = () => {
    const one = columns.find((item) => item.name === column.value);
    const signs = isText(one) ? ["~", "=", "!="] : isBoolean(one) ? ["="] : [">", ">=", "<", "<=", "=", "!="];
    fill(
      op,
      signs.map((sign) => h("option", { value: sign }, SIGNS[sign])),
    );
    value.placeholder = isBoolean(one) ? "true or false" : isText(one) ? "text" : "number or null";
    meaning.textContent = one ? one.sentence || "" : "";
  };
  column.addEventListener("change", fit);
  fit();
  const builder = h(
    "form",
    {
      class: "filter",
      onsubmit: (event) => {
        event.preventDefault();
        const text = value.value.trim();
        if (!text) return;
        apply([...parseWhere(where), { column: column.value, op: op.value, value: text }]);
        value.value = "";
      },
    },
    column,
    op,
    value,
    h("button", { type: "submit" }, "Add"),
  );

  const text = h("input", {
    class: "long",
    "aria-label": "Conditions as text",
    spellcheck: "false",
    placeholder: "frequency>0.01;dead=false",
  });
  const written = h(
    "form",
    {
      class: "filter",
      onsubmit: (event) => {
        event.preventDefault();
        fault.textContent = faultOf(text.value, names) || "";
        if (!fault.textContent) changed(writeWhere(parseWhere(text.value)));
      },
    },
    text,
    h("button", { type: "submit" }, "Apply"),
  );

  return {
    chips,
    builder: h(
      "details",
      { class: "drop left" },
      h("summary", null, "Filter"),
      h(
        "div",
        { class: "stack" },
        builder,
        meaning,
        h("label", { class: "stack" }, "or as text"),
        written,
        fault,
      ),
    ),
    set(next) {
      where = next || "";
      text.value = where;
      const conditions = parseWhere(where);
      fill(
        chips,
        conditions.map((one, i) =>
          chip(
            `${words(one.column)} ${SIGNS[one.op]} ${one.value}`,
            () => apply(conditions.filter((_, j) => j !== i)),
            { condition: `${one.column}${one.op}${one.value}` },
          ),
        ),
        conditions.length > 1
          ? h("button", { type: "button", class: "plain", onclick: () => apply([]) }, "Remove all")
          : null,
      );
    },
  };
}
