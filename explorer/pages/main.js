// The explorer: shows the page of the present address, and another one when the address changes.

import { here } from "./address.js";
import { fill, h } from "./dom.js";
import { forgetColours } from "./draw/map.js";
import { everywhere, forgetPageKeys, listen, showHelp } from "./keys.js";
import { header } from "./parts/header.js";
import { tip } from "./parts/controls.js";
import { empty, waiting, wrong } from "./parts/states.js";
import { classPage } from "./pages/class.js";
import { classesPage } from "./pages/classes.js";
import { comparePage } from "./pages/compare.js";
import { comparisonsPage } from "./pages/comparisons.js";
import { homePage } from "./pages/home.js";
import { imagePage } from "./pages/image.js";
import { imagesPage } from "./pages/images.js";
import { latentPage } from "./pages/latent.js";
import { latentsPage } from "./pages/latents.js";
import { saePage } from "./pages/sae.js";
import { tablesPage } from "./pages/tables.js";
import { home, viewOf } from "./state.js";

// The pattern of a path, and its page. A word in capitals stands for any one piece of the path. A page is
// an async function (piece by name, query, view) -> {element, title, update(query), close()}; the last two
// may be missing.
const ROUTES = [
  ["", homePage],
  ["sae/SAE", saePage],
  ["compare", comparisonsPage],
  ["compare/KIND/KEY", comparePage],
  ["tables", tablesPage],
  ["v/VIEW/latents", latentsPage],
  ["v/VIEW/latent/LATENT", latentPage],
  ["v/VIEW/images", imagesPage],
  ["v/VIEW/image/IMAGE", imagePage],
  ["v/VIEW/upload/UPLOAD", imagePage],
  ["v/VIEW/classes", classesPage],
  ["v/VIEW/class/CLASS", classPage],
];

const SLOW = "Still loading. The first image of a view takes longer, since its model is loaded.";

const page = document.getElementById("page");
const top = header(document.getElementById("header"), () => {
  forgetColours();
  open(true);
});
let shown = null;
let turn = 0;

function match(path) {
  for (const [pattern, make] of ROUTES) {
    const pieces = pattern.split("/").filter(Boolean);
    if (pieces.length !== path.length) continue;
    const named = {};
    if (
      pieces.every((piece, i) => {
        const free = piece === piece.toUpperCase();
        if (free) named[piece.toLowerCase()] = path[i];
        return free || piece === path[i];
      })
    )
      return { make, named };
  }
  return null;
}

function settle(state) {
  document.body.dataset.state = state;
}

async function open(again) {
  const { path, query } = here();
  const place = path.join("/");
  if (shown && shown.place === place && shown.update && !again) {
    top.show(shown.view);
    shown.update(query);
    return;
  }
  const mine = ++turn;
  const sameKind = shown && shown.place.split("/")[2] === path[2];
  settle("loading");
  tip("");
  forgetPageKeys();
  if (shown && shown.close) shown.close();
  shown = null;
  if (!sameKind) {
    fill(page, waiting());
    scrollTo(0, 0);
    setTimeout(() => {
      if (mine === turn && document.body.dataset.state === "loading") fill(page, waiting(SLOW));
    }, 2000);
  }
  try {
    const found = match(path);
    if (!found) {
      fill(
        page,
        h(
          "div",
          { class: "stack" },
          h("h1", null, "Nothing here"),
          empty("There is no page at this address.", "The pages begin at Home."),
        ),
      );
      settle("error");
      return;
    }
    const [view] = await Promise.all([found.named.view ? viewOf(found.named.view) : null, home()]);
    if (mine !== turn) return;
    top.show(view);
    const made = await found.make(found.named, query, view);
    if (mine !== turn) {
      if (made.close) made.close();
      return;
    }
    shown = { ...made, place, view };
    document.title = `${made.title} · patchsae`;
    fill(page, made.element);
    settle("ready");
  } catch (error) {
    if (mine !== turn) return;
    top.show(null);
    fill(
      page,
      h(
        "div",
        { class: "stack" },
        h("h1", null, "This page cannot be shown"),
        wrong(error),
        h("p", null, h("a", { href: "#/" }, "Home")),
      ),
    );
    settle("error");
  }
}

everywhere(["/"], "search", () => top.search.focus());
everywhere(["?"], "this help", showHelp);
everywhere(
  ["Escape"],
  "close what is open",
  () => {
    tip("");
    for (const one of document.querySelectorAll("details.drop[open]")) one.open = false;
  },
  { Escape: "Esc" },
);
listen();
document.addEventListener("pointerdown", (event) => {
  for (const one of document.querySelectorAll("details.drop[open]"))
    if (!one.contains(event.target)) one.open = false;
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  forgetColours();
  open(true);
});
addEventListener("hashchange", () => open(false));
open(false);
