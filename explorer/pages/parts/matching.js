// How alike the latents of two SAEs are, and which latent of one is which of the other.

import { change, makeAddress } from "../address.js";
import { fill, h } from "../dom.js";
import { count, number, whole, words } from "../format.js";
import { choice, table } from "./controls.js";
import { filters } from "./filters.js";
import { latentPair } from "./pairs.js";
import { plainCell, sheet } from "./sheet.js";
import { note, pageHead, panel } from "./states.js";
import { matchingRows } from "../rows.js";
import { get } from "../source.js";
import { viewOf } from "../state.js";

const COLUMNS = [
  ["latent", "Int32", "Latent id in this SAE."],
  ["mass", "Float64", "Sum of its activations over the tokens, or of their token means over the images."],
  ["assigned", "Int32", "The latent of the other SAE that it is assigned to, if any."],
  ["assigned_cosine", "Float64", "Cosine of their decoder rows."],
  [
    "nearest_cosine",
    "Float64",
    "Largest cosine of its decoder row with that of an alive latent of the other SAE.",
  ],
  ["correlated", "Int32", "The latent of the other SAE that it correlates with most."],
  ["correlation", "Float64", "Their Pearson correlation."],
].map(([name, type, sentence]) => ({ name, type, sentence, table: "matching_latents" }));

function summaryTable(rows) {
  const names = Object.keys(rows[0]).filter((name) => !["key", "artifact"].includes(name));
  return table(
    "Summary of the matching",
    names.map((name) => ({ name, number: typeof rows[0][name] === "number" })),
    rows.map((row) => names.map((name) => number(row[name]))),
  );
}

export async function matchingPage(key, firstQuery) {
  const answer = await get(`matching/${key}`);
  const sides = ["first", "second"];
  const heads = await Promise.all(
    sides.map((side) => (answer[side].views[0] ? viewOf(answer[side].views[0].key).catch(() => null) : null)),
  );
  let query = firstQuery;
  const box = h("input", {
    type: "number",
    min: 0,
    value: firstQuery.latent || "",
    placeholder: "latent",
    "aria-label": "Latent to see beside its partner",
    onchange: () => change({ latent: box.value }, true),
  });
  const beside = h("div");
  const told = h("span", { class: "soft" });
  const filter = filters(COLUMNS, (where) => change({ where }));
  const side = () => (query.side === "second" ? "second" : "first");
  const mine = () => heads[side() === "first" ? 0 : 1];
  const others = () => heads[side() === "first" ? 1 : 0];

  const rows = sheet("Matched latents", {
    id: "matching",
    load: (offset, limit) =>
      matchingRows(key, { side: side(), where: query.where, sort: query.sort, offset, limit }),
    cell: (name, value) => {
      const view = name === "latent" ? mine() : ["assigned", "correlated"].includes(name) ? others() : null;
      return view && value !== null
        ? h("a", { href: makeAddress(["v", view.key, "latent", value]) }, String(value))
        : plainCell(value);
    },
    head: (name) => ({ number: true, title: COLUMNS.find((column) => column.name === name)?.sentence }),
    sorted: (name) =>
      change({ sort: query.sort === `-${name}` ? name : query.sort === name ? null : `-${name}` }),
    opened: (row) => change({ latent: row[0] }, true),
    chosen: (row) => change({ latent: row[0] }, true),
  });

  async function drawPair() {
    if (query.latent === undefined) {
      fill(
        beside,
        note("Click a row, press Enter on it, or write its number, to see the latent beside its partner."),
      );
      return;
    }
    const found = await matchingRows(key, {
      side: side(),
      where: `latent=${query.latent}`,
      offset: 0,
      limit: 1,
    });
    const row = found.rows[0];
    if (!row) {
      fill(beside, note(`Latent ${query.latent} of this side fires on no image.`));
      return;
    }
    const value = (name) => row[found.columns.indexOf(name)];
    const [here, there] = side() === "first" ? [answer.first, answer.second] : [answer.second, answer.first];
    const pair = (partner, text) =>
      partner === null
        ? note(`No latent is ${text}.`)
        : latentPair(
            `Latent ${row[0]} and ${partner}`,
            text === "assigned"
              ? `assigned, cosine ${number(value("assigned_cosine"), 3)}`
              : `most correlated, ${number(value("correlation"), 3)}`,
            [
              { view: mine(), latent: row[0], title: here.sae },
              { view: others(), latent: partner, title: there.sae },
            ],
          );
    fill(
      beside,
      h(
        "div",
        { class: "stack" },
        pair(value("assigned"), "assigned"),
        value("correlated") !== value("assigned") ? pair(value("correlated"), "correlated") : null,
      ),
    );
  }

  let last = {};
  async function update(next) {
    box.value = next.latent || "";
    const changed = (...names) => names.some((name) => (last[name] || "") !== (next[name] || ""));
    const begin = !told.textContent;
    query = next;
    filter.set(next.where);
    if (begin || changed("latent", "side")) drawPair().catch((error) => fill(beside, note(error.message)));
    if (begin || changed("where", "sort", "side")) {
      last = next;
      try {
        const first = await rows.refresh(next.sort || "-mass");
        if (first)
          told.textContent =
            `${whole(first.n_matched)} of ` + `${count(first.n_latents ?? first.n_matched, "alive latent")}`;
      } catch {
        told.textContent = "";
      }
    }
    last = next;
  }
  update(firstQuery);
  const link = (one) =>
    h(
      "a",
      {
        href: one.views[0]
          ? makeAddress(["v", one.views[0].key, "latents"])
          : makeAddress(["sae", one.sae_key]),
      },
      one.sae,
    );
  return {
    title: answer.name,
    element: h(
      "div",
      { class: "stack" },
      pageHead(
        [link(answer.first), " and ", link(answer.second)],
        `${words(answer.name)}: which latent of one SAE is which of the other`,
      ),
      answer.summary.length ? panel("How alike they are", null, summaryTable(answer.summary)) : null,
      h(
        "div",
        { class: "split wide" },
        panel(
          h(
            "header",
            null,
            h("h2", null, "Latents"),
            told,
            h("span", { class: "gap" }),
            filter.builder,
            choice(
              "Side",
              sides.map((name, i) => [
                name,
                answer[name].sae === answer[sides[1 - i]].sae ? name : answer[name].sae,
              ]),
              side(),
              (value) => change({ side: value === "first" ? null : value, latent: null }),
            ),
          ),
          null,
          filter.chips,
          rows.element,
        ),
        panel(h("header", null, h("h2", null, "Side by side"), box), { data: { role: "pairs" } }, beside),
      ),
    ),
    update,
  };
}
