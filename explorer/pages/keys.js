// The keyboard: a page says what its keys do, and the help lists them.

import { h } from "./dom.js";

const general = new Map();
let local = new Map();

function typing(event) {
  const target = event.target;
  return target.closest("input, textarea, select, [contenteditable]") !== null;
}

function listed(keys) {
  const entries = [...new Set(keys.values())];
  return h(
    "div",
    { class: "keys" },
    entries.map((entry) => [
      h(
        "span",
        null,
        entry.keys.map((key) => [h("kbd", null, entry.names[key] || key), " "]),
      ),
      h("span", null, entry.what),
    ]),
  );
}

function enter(map, keys, what, action, names) {
  const entry = { keys, what, action, names: names || {} };
  for (const key of keys) map.set(key, entry);
}

// A key of every page: everywhere(["/"], "search", action).
export function everywhere(keys, what, action, names) {
  enter(general, keys, what, action, names);
}

// A key of the page that is shown; the next page starts without.
export function onPage(keys, what, action, names) {
  enter(local, keys, what, action, names);
}

export function forgetPageKeys() {
  local = new Map();
}

export function showHelp() {
  const close = () => dialog.close();
  const dialog = h(
    "dialog",
    { "aria-labelledby": "help-title", onclose: () => dialog.remove() },
    h("h2", { id: "help-title" }, "Keys"),
    local.size ? [h("h3", null, "On this page"), listed(local), h("br", null)] : null,
    h("h3", null, "On every page"),
    listed(general),
    h("br", null),
    h(
      "p",
      { class: "note" },
      "Every state has its own address: copy it from the browser to send what you see.",
    ),
    h("br", null),
    h("button", { type: "button", class: "primary", onclick: close }, "Close"),
  );
  document.body.append(dialog);
  dialog.showModal();
}

export function listen() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (document.querySelector("dialog[open]") || (typing(event) && event.key !== "Escape")) return;
    const entry = local.get(event.key) || general.get(event.key);
    if (entry && entry.action(event) !== false) event.preventDefault();
  });
}
