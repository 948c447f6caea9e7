// One class: its latents, what masking does to it, its images, and those that change first.

import { change, go, makeAddress } from "../address.js";
import { fill, h, later } from "../dom.js";
import { tile } from "../draw/tile.js";
import { count, number, percent, whole, words } from "../format.js";
import { onPage } from "../keys.js";
import { choice, select } from "../parts/controls.js";
import { maskingPlots } from "../parts/masking.js";
import { preview } from "../parts/preview.js";
import { note, pageHead, panel, show } from "../parts/states.js";
import { get, isReport } from "../source.js";
import { classesOf } from "../state.js";

const SORTS = [
  ["n_images", "images"],
  ["n_tokens", "tokens"],
  ["mean_activation", "mean activation"],
  ["selective", "share above all images"],
];

function latentsPanel(view, answer, query, small) {
  const by = SORTS.some(([name]) => name === query.by) ? query.by : "n_images";
  const rows = answer.latents
    .map((row) => ({ ...row, selective: (row.share ?? 0) - (row.frequency ?? 0) }))
    .sort((a, b) => b[by] - a[by]);
  const pointed = later((latent) => small.show(latent), 90);
  const heads = [
    ["latent", "latent"],
    ["images", "Images of the class that fire it"],
    ["share", "Share of the class's images that fire it"],
    ["of all", "Share of all images that fire it"],
    ["tokens", "Tokens of the class above tau"],
    ["mean activation", "Mean of the token mean over the images of the class that fire it"],
  ];
  const body = rows.map((row) =>
    h(
      "tr",
      { data: { latent: row.latent }, onpointerenter: () => pointed(row.latent) },
      h(
        "td",
        { class: "number" },
        h(
          "a",
          { href: makeAddress(["v", view.key, "latent", row.latent]), onfocus: () => pointed(row.latent) },
          String(row.latent),
        ),
      ),
      [
        whole(row.n_images),
        percent(row.share),
        percent(row.frequency),
        whole(row.n_tokens),
        number(row.mean_activation),
      ].map((text) => h("td", { class: "number" }, text)),
    ),
  );
  small.suggest(rows.length ? rows[0].latent : null);
  return panel(
    h(
      "header",
      null,
      h("h2", null, "Its latents"),
      h("span", { class: "soft" }, `the ${whole(rows.length)} that most images of it fire`),
      h("span", { class: "gap" }),
      select("by", SORTS, by, (value) => change({ by: value }, true)),
      h(
        "a",
        { class: "button", href: makeAddress(["v", view.key, "latents"], { class: answer.class }) },
        "All in the table",
      ),
    ),
    { data: { role: "latents" } },
    h(
      "div",
      { class: "low" },
      h(
        "div",
        { class: "sheet", tabindex: "0", role: "region", "aria-label": "Latents of the class" },
        h(
          "table",
          null,
          h("caption", { class: "unseen" }, "Latents of the class"),
          h(
            "thead",
            null,
            h(
              "tr",
              null,
              heads.map(([text, title]) => h("th", { scope: "col", class: "number", title }, text)),
            ),
          ),
          h("tbody", null, body),
        ),
      ),
    ),
  );
}

function flipsPanel(view, label) {
  if (isReport()) return null;
  const place = h("div");
  show(
    place,
    get(`flips/${view.key}/${label}`),
    ({ ks, images, why }) => {
      if (why) return note(why);
      if (!images.length) return note("No image of the class was looked at.");
      const flipped = images.filter((one) => one.first_k !== null && one.first_k !== undefined);
      if (!flipped.length)
        return note(
          `Of ${count(images.length, "image")}, none changes with up to ${Math.max(...ks)} of the ` +
            `class's top latents switched off.`,
        );
      flipped.sort((a, b) => a.first_k - b.first_k);
      return [
        note(
          `${whole(flipped.length)} of ${count(images.length, "image")} change with at most ` +
            `${Math.max(...ks)} of the class's top latents switched off; those that need fewest come first.`,
        ),
        h(
          "div",
          { class: "tiles" },
          flipped.slice(0, 36).map(
            (one) =>
              tile(view, one, {
                map: false,
                href: makeAddress(["v", view.key, "image", one.image]),
                title: `→ ${one.to}`,
                detail: `k = ${one.first_k}`,
              }).element,
          ),
        ),
      ];
    },
    (error) => note(error.message),
  );
  return panel(
    h(
      "header",
      null,
      h("h2", null, "Images that change first"),
      h("span", { class: "soft" }, "with the top latents of the class switched off"),
    ),
    { data: { role: "flips" } },
    place,
  );
}

export async function classPage({ class: label }, query, view) {
  const [answer, classes] = await Promise.all([get(`class/${view.key}/${label}`), classesOf(view.key)]);
  const small = preview(view);
  const closers = [];
  const masking = h("div");
  const latents = h("div");
  const place = classes.findIndex((one) => one.id === answer.class);
  const step = (by) => {
    const other = classes[place + by];
    if (other) go(["v", view.key, "class", other.id], { of: query.of, by: query.by });
  };

  function drawMasking(next) {
    closers.splice(0).forEach((close) => close());
    if (!answer.masking.length) {
      fill(
        masking,
        note(
          "Masking curves are in tables of the evaluation `masking`: add one to the experiment and " +
            "run it again.",
        ),
      );
      return;
    }
    const chosen = answer.masking.find((one) => one.key === next.masking) || answer.masking[0];
    const all = next.of === "all";
    const plots = maskingPlots(all ? chosen.all : chosen, all ? "all images" : answer.name);
    closers.push(plots.close);
    fill(
      masking,
      panel(
        h(
          "header",
          null,
          h("h2", null, "Masking"),
          h("span", { class: "soft" }, "accuracy with 95 % intervals"),
          h("span", { class: "gap" }),
          answer.masking.length > 1
            ? select(
                "evaluation",
                answer.masking.map((one) => [one.key, words(one.name)]),
                chosen.key,
                (value) => change({ masking: value }, true),
              )
            : null,
          choice(
            "Images",
            [
              ["class", answer.name],
              ["all", "All classes"],
            ],
            all ? "all" : "class",
            (value) => change({ of: value === "all" ? "all" : null }, true),
          ),
        ),
        { data: { role: "masking" } },
        plots.element,
      ),
    );
  }

  let last = {};
  const update = (next) => {
    if (next.by !== last.by || !latents.hasChildNodes())
      fill(latents, latentsPanel(view, answer, next, small));
    if (next.of !== last.of || next.masking !== last.masking || !masking.hasChildNodes()) drawMasking(next);
    last = next;
  };
  update(query);
  onPage(["ArrowRight", "j"], "next class", () => step(1), { ArrowRight: "→" });
  onPage(["ArrowLeft", "k"], "previous class", () => step(-1), { ArrowLeft: "←" });
  const arrow = (by, sign, text) => {
    const other = classes[place + by];
    return other
      ? h(
          "a",
          {
            class: "button",
            href: makeAddress(["v", view.key, "class", other.id]),
            "aria-label": `${text}: ${other.name}`,
            title: other.name,
          },
          sign,
        )
      : null;
  };
  return {
    title: answer.name,
    element: h(
      "div",
      { class: "stack" },
      pageHead(
        answer.name,
        `class ${answer.class}, ${count(answer.n_images, "image")} in ${view.label}`,
        arrow(-1, "←", "Previous class"),
        arrow(1, "→", "Next class"),
      ),
      h("div", { class: "split wide" }, latents, small.element),
      masking,
      flipsPanel(view, answer.class),
      panel(
        h(
          "header",
          null,
          h("h2", null, "Images"),
          h("span", { class: "soft" }, `${whole(answer.images.length)} of ${whole(answer.n_images)}`),
        ),
        null,
        h(
          "div",
          { class: "tiles" },
          answer.images.map(
            (image) =>
              tile(view, image, {
                map: false,
                href: makeAddress(["v", view.key, "image", image.image]),
                title: `image ${image.image}`,
              }).element,
          ),
        ),
      ),
    ),
    update,
    close: () => closers.forEach((close) => close()),
  };
}
