// The search of the header: a latent's number, a class, a name, or words for the text tower.

import { go, makeAddress, parseAddress } from "../address.js";
import { fill, h, later, say } from "../dom.js";
import { count } from "../format.js";
import { classesOf } from "../state.js";
import { isReport } from "../source.js";

// What a text may mean in a view: [{text, kind, href}].
async function meanings(text, view) {
  const found = [];
  const latent = /^#?(\d+)$/.exec(text);
  if (latent && Number(latent[1]) < view.n_latents) {
    found.push({
      text: `Latent ${Number(latent[1])}`,
      kind: "latent",
      href: makeAddress(["v", view.key, "latent", Number(latent[1])]),
    });
  }
  if (latent && Number(latent[1]) < view.n_images) {
    found.push({
      text: `Image ${Number(latent[1])}`,
      kind: "image",
      href: makeAddress(["v", view.key, "image", Number(latent[1])]),
    });
  }
  const like = text.toLowerCase();
  const classes = view.classes
    ? (await classesOf(view.key)).filter((one) => one.name.toLowerCase().includes(like))
    : [];
  for (const one of classes.slice(0, 6)) {
    found.push({ text: one.name, kind: "class", href: makeAddress(["v", view.key, "class", one.id]) });
    found.push({
      text: `Latents of ${one.name}`,
      kind: "latents",
      href: makeAddress(["v", view.key, "latents"], { class: one.id }),
    });
  }
  if (view.columns.some((column) => column.name === "name")) {
    found.push({
      text: `Latents named “${text}”`,
      kind: "name",
      href: makeAddress(["v", view.key, "latents"], { where: `name~${text}` }),
    });
  }
  if (view.words && !isReport() && !latent) {
    found.push({
      text: `Latents like “${text}”`,
      kind: "words",
      href: makeAddress(["v", view.key, "latents"], { words: text }),
    });
  }
  return found;
}

// The search box; `view()` is the head of the present view, or null.
export function searchBox(view) {
  let at = -1;
  const list = h("div", {
    class: "found",
    id: "found",
    role: "listbox",
    "aria-label": "Results",
    hidden: true,
  });
  const input = h("input", {
    id: "search",
    type: "search",
    role: "combobox",
    "aria-label": "Search latents, classes and words",
    autocomplete: "off",
    "aria-expanded": "false",
    "aria-controls": "found",
    placeholder: "Latent, class or words",
  });
  const element = h("search", { class: "find" }, input, h("kbd", { "aria-hidden": "true" }, "/"), list);

  const close = () => {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  };
  const mark = (next) => {
    const links = [...list.querySelectorAll("a")];
    at = links.length ? (next + links.length) % links.length : -1;
    links.forEach((link, i) => link.setAttribute("aria-selected", String(i === at)));
    if (at >= 0) {
      input.setAttribute("aria-activedescendant", links[at].id);
      links[at].scrollIntoView({ block: "nearest" });
    }
  };
  const look = later(async () => {
    const text = input.value.trim();
    if (!text) return close();
    const place = view();
    let found = [];
    let sentence = "Open a view first: its latents, classes and words can be searched.";
    if (place) {
      try {
        found = await meanings(text, place);
        sentence = "No latent, class or name is called that.";
      } catch (error) {
        sentence = error.message;
      }
    }
    if (text !== input.value.trim()) return null;
    fill(
      list,
      found.length
        ? found.map((one, i) =>
            h(
              "a",
              { href: one.href, role: "option", id: `found-${i}`, tabindex: "-1", onclick: close },
              h("span", null, one.text),
              h("span", { class: "soft small" }, one.kind),
            ),
          )
        : h("p", { class: "note" }, sentence),
    );
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    say(found.length ? count(found.length, "result") : sentence);
    mark(0);
    return null;
  }, 120);

  input.addEventListener("input", look);
  input.addEventListener("focus", () => input.value.trim() && look());
  input.addEventListener("keydown", (event) => {
    const links = [...list.querySelectorAll("a")];
    if (event.key === "ArrowDown") mark(at + 1);
    else if (event.key === "ArrowUp") mark(at - 1);
    else if (event.key === "Enter" && !list.hidden && links[at]) {
      const { path, query } = parseAddress(links[at].getAttribute("href"));
      close();
      input.blur();
      go(path, query);
    } else if (event.key === "Escape") {
      close();
      input.value = "";
      input.blur();
    } else return;
    event.preventDefault();
  });
  element.addEventListener("focusout", (event) => {
    if (!element.contains(event.relatedTarget)) close();
  });
  return { element, focus: () => input.select() || input.focus() };
}
