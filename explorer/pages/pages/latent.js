// One latent: what it sees, how strongly, in which classes, and which latents are near.

import { change, go, here as address, makeAddress } from "../address.js";
import { fill, h } from "../dom.js";
import { barList, histogram } from "../draw/bars.js";
import { MAP_MODES } from "../draw/map.js";
import { count, number, percent, whole } from "../format.js";
import { onPage } from "../keys.js";
import { facts, table, told } from "../parts/controls.js";
import { note, panel, show } from "../parts/states.js";
import { get } from "../source.js";
import { columnOf } from "../state.js";
import { painter, examplesPanel, mode } from "../parts/examples.js";
import { siblingsPanel } from "../parts/siblings.js";

const FACTS = ["frequency", "n_images", "mean_activation", "max_activation", "label_entropy", "n_classes"];

function classesPanel(view, answer) {
  if (!answer.classes.length) return null;
  const total = answer.row.n_images;
  return panel(
    h(
      "header",
      null,
      h("h2", null, "Classes"),
      h(
        "span",
        { class: "soft" },
        `${count(answer.n_classes, "class", "classes")}, entropy ${number(answer.row.label_entropy, 3)}`,
      ),
    ),
    { data: { role: "classes" } },
    barList(
      answer.classes.slice(0, 12).map((one) => ({
        name: one.name,
        value: one.n_images,
        text: `${whole(one.n_images)}`,
        href: makeAddress(["v", view.key, "class", one.class]),
        title:
          `${one.name}: ${count(one.n_images, "image")} fire it, which is ` +
          `${percent(one.share)} of the class and ${percent(total ? one.n_images / total : 0)} of ` +
          `all that do`,
      })),
    ),
    answer.classes.length > 12
      ? h(
          "details",
          { class: "small" },
          h("summary", null, `${answer.classes.length - 12} more`),
          table(
            "Classes of the latent",
            [
              { name: "class" },
              { name: "n_images", number: true },
              { name: "share of the class", number: true },
              { name: "mean_activation", number: true },
            ],
            answer.classes.map((one) => [
              h("a", { href: makeAddress(["v", view.key, "class", one.class]) }, one.name),
              whole(one.n_images),
              percent(one.share),
              number(one.mean_activation),
            ]),
          ),
        )
      : null,
  );
}

function latentLink(view, latent) {
  return h("a", { href: makeAddress(["v", view.key, "latent", latent]) }, String(latent));
}

function nearPanel(view, answer) {
  const place = h("div");
  show(
    place,
    get(`neighbours/${view.key}/${answer.latent}`),
    ({ neighbours }) =>
      barList(
        neighbours.slice(0, 10).map((one) => ({
          name: `${one.latent}${one.dead ? " (dead)" : ""}`,
          value: Math.max(0, one.cosine),
          text: number(one.cosine, 3),
          href: makeAddress(["v", view.key, "latent", one.latent]),
          data: { latent: one.latent },
        })),
        1,
      ),
    () => note("The SAE's weights are not in the store."),
  );
  return panel(
    h(
      "header",
      null,
      h("h2", null, "Nearest decoders"),
      h("span", { class: "soft" }, "cosine of W_dec rows"),
    ),
    null,
    place,
  );
}

function cofiringPanel(view, answer) {
  if (!answer.cofiring) return null;
  return panel(
    h(
      "header",
      null,
      h("h2", null, "Fires together with"),
      h("span", { class: "soft" }, "on the same tokens"),
    ),
    { data: { role: "cofiring" } },
    answer.cofiring.length
      ? table(
          "Co-firing latents",
          [
            { name: "latent" },
            {
              name: "jaccard",
              number: true,
              title: "Tokens on which both fire, as a share of those on which one of them does.",
            },
            {
              name: "lift",
              number: true,
              title: "How many times more often they fire together than if they were independent.",
            },
            { name: "tokens", number: true, title: "Drawn tokens on which both fire." },
          ],
          answer.cofiring
            .slice(0, 12)
            .map((one) => [
              latentLink(view, one.latent),
              number(one.jaccard, 3),
              number(one.lift, 3),
              whole(one.n_both),
            ]),
        )
      : note("No other latent fires on the same tokens."),
  );
}

function numbersPanel(view, answer) {
  const entries = Object.entries(answer.row).filter(([name]) => name !== "latent");
  return panel(
    "All numbers",
    null,
    h(
      "dl",
      { class: "pairs" },
      entries.map(([name, value]) => [
        h("dt", null, told(name, columnOf(view, name)?.sentence)),
        h("dd", null, number(value)),
      ]),
    ),
  );
}

export async function latentPage({ latent: id }, query, view) {
  const answer = await get(`latent/${view.key}/${id}`);
  const latent = answer.latent;
  const paint = painter(query.map || "heat", query.truth === "1");
  const maps = answer.top.length ? get(`maps/${view.key}/${latent}`) : Promise.resolve({ maps: {}, max: 0 });
  maps.catch(() => null);
  // What stays when one goes to another latent.
  const keep = () => {
    const { map, truth, beside } = address().query;
    return { map, truth, beside };
  };
  const to = (other) => makeAddress(["v", view.key, "latent", other], keep());
  const step = (other) =>
    other === null || other === undefined ? null : go(["v", view.key, "latent", other], keep());
  onPage(["ArrowRight", "j"], "next latent that fires", () => step(answer.next), { ArrowRight: "→" });
  onPage(["ArrowLeft", "k"], "previous latent that fires", () => step(answer.previous), { ArrowLeft: "←" });
  onPage(["m"], "next way to draw maps", () => {
    const modes = MAP_MODES.map(([name]) => name);
    const next = modes[(modes.indexOf(mode()) + 1) % modes.length];
    change({ map: next === "heat" ? null : next }, true);
  });
  const arrow = (other, sign, text) =>
    other === null || other === undefined
      ? h("button", { disabled: true, "aria-label": text }, sign)
      : h(
          "a",
          {
            class: "button",
            href: to(other),
            "aria-label": `${text}: latent ${other}`,
            title: `${text}: ${other}`,
          },
          sign,
        );
  const beside = h("div");
  const column = h("div", { class: "stack" });
  const draw = (next) => {
    fill(beside, siblingsPanel(view, answer, next, paint));
    // Side by side it comes first, since that is what the reader asked for.
    if (next.beside) column.prepend(beside);
    else column.append(beside);
  };
  column.append(...examplesPanel(view, answer, paint, maps, query).filter(Boolean));
  draw(query);
  const name = answer.row.name;
  const element = h(
    "div",
    { class: "stack", data: { latent } },
    h(
      "div",
      { class: "head" },
      h("h1", null, `Latent ${latent}`),
      name ? h("p", { class: "lead" }, String(name)) : null,
      answer.row.dead ? h("span", { class: "badge bad" }, "dead") : null,
      answer.row.dense ? h("span", { class: "badge warn" }, "dense") : null,
      h("span", { class: "gap" }),
      h("span", { class: "soft small" }, `of ${whole(answer.n_latents)}`),
      arrow(answer.previous, "←", "Previous latent that fires"),
      arrow(answer.next, "→", "Next latent that fires"),
    ),
    facts(
      FACTS.filter((column) => column in answer.row).map((column) => [
        column,
        number(answer.row[column]),
        columnOf(view, column)?.sentence,
      ]),
    ),
    h(
      "div",
      { class: "split" },
      column,
      h(
        "div",
        { class: "stack" },
        answer.histogram && answer.histogram.n_tokens.length
          ? panel(
              "Activations",
              { data: { role: "histogram" } },
              histogram(
                answer.histogram,
                `Histogram of the activations of ${whole(answer.row.n_tokens)} tokens, at most ` +
                  `${number(answer.row.max_activation)}`,
              ),
            )
          : null,
        classesPanel(view, answer),
        nearPanel(view, answer),
        cofiringPanel(view, answer),
        numbersPanel(view, answer),
      ),
    ),
  );
  let last = query;
  return {
    element,
    title: `Latent ${latent}`,
    update(next) {
      paint.set(next.map || "heat", next.truth === "1");
      for (const button of element.querySelectorAll("[data-role=top] .choice button"))
        button.setAttribute("aria-pressed", String(button.dataset.value === (next.map || "heat")));
      if ((next.beside || "") !== (last.beside || "")) draw(next);
      last = next;
    },
  };
}
