// What stands above every page: where one is, where one can go, the search, the theme.

import { here, makeAddress, go } from "../address.js";
import { fill, h, remember, remembered } from "../dom.js";
import { whole } from "../format.js";
import { showHelp } from "../keys.js";
import { homeNow } from "../state.js";
import { isReport } from "../source.js";
import { searchBox } from "./search.js";

const THEMES = {
  auto: ["light", "Theme of the system"],
  light: ["dark", "Light theme"],
  dark: ["auto", "Dark theme"],
};

// Sets the theme that was chosen last.
export function applyTheme(theme) {
  const chosen = theme || remembered("theme", "auto");
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  return chosen;
}

function tab(text, href, at) {
  return h("a", { href, "aria-current": at ? "page" : null }, text);
}

function viewSelect(view, place) {
  const store = homeNow();
  const views = store && store.views.length ? store.views : [view];
  const box = h(
    "select",
    {
      "aria-label": "View: SAE, images and backbone",
      onchange: () => {
        const keep = ["latents", "latent", "classes", "class"].includes(place.path[2])
          ? place.path.slice(2)
          : ["latents"];
        go(["v", box.value, ...keep], {});
      },
    },
    views.map((one) => h("option", { value: one.key, selected: one.key === view.key }, one.label)),
  );
  return box;
}

function viewBar(view) {
  const place = here();
  const at = place.path[2];
  const base = ["v", view.key];
  return h(
    "nav",
    { class: "place", "aria-label": "View" },
    h(
      "div",
      { class: "bar" },
      viewSelect(view, place),
      h(
        "div",
        { class: "tabs" },
        tab("Latents", makeAddress([...base, "latents"]), at === "latents" || at === "latent"),
        view.classes
          ? tab("Classes", makeAddress([...base, "classes"]), at === "classes" || at === "class")
          : null,
        tab(
          isReport() ? "Images" : "Images and upload",
          makeAddress([...base, "images"]),
          ["images", "image", "upload"].includes(at),
        ),
      ),
      h("span", { class: "gap" }),
      h("span", { class: "soft" }, `${whole(view.n_latents)} latents, ${whole(view.n_images)} images`),
    ),
  );
}

// {element, show(view or null), search}. `themed()` is called after a change of theme.
export function header(element, themed) {
  let view = null;
  const icon = document.querySelector("link[rel=icon]").getAttribute("href");
  const search = searchBox(() => view);
  const second = h("div");
  const tabs = h("nav", { class: "tabs", "aria-label": "Pages" });
  const theme = h("button", {
    type: "button",
    class: "plain icon",
    onclick: () => {
      const next = THEMES[remembered("theme", document.documentElement.dataset.theme || "auto")][0];
      remember("theme", next);
      name(applyTheme(next));
      themed();
    },
  });
  const name = (chosen) => {
    theme.textContent = { auto: "◐", light: "☀", dark: "☾" }[chosen];
    theme.setAttribute("aria-label", `${THEMES[chosen][1]}. Change it.`);
    theme.title = THEMES[chosen][1];
  };
  name(applyTheme());
  fill(
    element,
    h(
      "div",
      { class: "bar" },
      h("a", { class: "brand", href: "#/" }, h("img", { src: icon, alt: "" }), "patchsae"),
      tabs,
      h("span", { class: "gap" }),
      search.element,
      theme,
      h(
        "button",
        {
          type: "button",
          class: "plain icon",
          "aria-label": "Keys and help",
          title: "Keys and help (?)",
          onclick: showHelp,
        },
        "?",
      ),
    ),
    second,
  );
  return {
    search,
    show(next) {
      view = next;
      const { path } = here();
      const store = homeNow();
      fill(
        tabs,
        tab("Home", "#/", !path.length || path[0] === "sae"),
        store && store.comparisons.length ? tab("Compare", "#/compare", path[0] === "compare") : null,
        tab("Tables", "#/tables", path[0] === "tables"),
      );
      fill(second, view ? viewBar(view) : null);
    },
  };
}
