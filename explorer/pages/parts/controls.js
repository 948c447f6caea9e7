// Small controls that several pages have.

import { h } from "../dom.js";
import { words } from "../format.js";

// Buttons of which one is pressed. `options` are [value, text] pairs.
export function choice(label, options, value, pick) {
  const buttons = options.map(([option, text]) =>
    h(
      "button",
      {
        type: "button",
        "aria-pressed": String(option === value),
        data: { value: option },
        onclick: () => {
          for (const button of buttons)
            button.setAttribute("aria-pressed", String(button.dataset.value === option));
          pick(option);
        },
      },
      text,
    ),
  );
  return h("div", { class: "choice", role: "group", "aria-label": label }, buttons);
}

// A select with a label; `options` are [value, text] pairs, or {group, options}.
export function select(label, options, value, pick, attributes) {
  const item = ([option, text]) => h("option", { value: option, selected: option === value }, text);
  const items = options.map((option) =>
    Array.isArray(option) ? item(option) : h("optgroup", { label: option.group }, option.options.map(item)),
  );
  const box = h("select", { ...attributes, onchange: () => pick(box.value) }, items);
  box.value = value;
  return h("label", null, h("span", null, label), box);
}

// A word that says more when it is pointed at: a column's name with its sentence.
export function told(name, sentence) {
  return sentence ? h("span", { class: "told", title: sentence }, words(name)) : h("span", null, words(name));
}

// Names with numbers, as a list of large figures: [[name, value, sentence], ...].
export function facts(entries, attributes) {
  return h(
    "dl",
    { class: "facts", ...attributes },
    entries.map(([name, value, sentence]) =>
      h("div", null, h("dt", null, told(name, sentence)), h("dd", null, value)),
    ),
  );
}

export function pairs(entries) {
  return h(
    "dl",
    { class: "pairs" },
    entries.map(([name, value]) => [h("dt", null, name), h("dd", null, value)]),
  );
}

// Shows a sentence at the pointer, or hides it.
export function tip(text, event) {
  const place = document.getElementById("tip");
  place.hidden = !text;
  if (!text) return;
  place.textContent = text;
  const right = event.clientX + 14 + place.offsetWidth > innerWidth;
  place.style.left = `${right ? Math.max(4, event.clientX - 14 - place.offsetWidth) : event.clientX + 14}px`;
  place.style.top = `${Math.max(4, Math.min(innerHeight - place.offsetHeight - 4, event.clientY + 14))}px`;
}

// A plain table: `columns` are [{name, text, number, title}], rows are arrays of text or elements.
export function table(label, columns, rows) {
  const head = columns.map((column) =>
    h(
      "th",
      { scope: "col", class: column.number ? "number" : null, title: column.title },
      column.text || words(column.name),
    ),
  );
  const body = rows.map((row) =>
    h(
      "tr",
      null,
      row.map((cell, i) => h("td", { class: columns[i].number ? "number" : null }, cell)),
    ),
  );
  return h(
    "div",
    { class: "sheet", tabindex: "0", role: "region", "aria-label": label },
    h(
      "table",
      null,
      h("caption", { class: "unseen" }, label),
      h("thead", null, h("tr", null, head)),
      h("tbody", null, body),
    ),
  );
}
