// Where the data comes from: a server (`patchsae explore`) or the files of a report beside the page.

const KEPT = 400;
const NOT_HELD =
  "This report does not hold that part: it has a choice of latents and images. `patchsae explore` " +
  "shows all of the store.";
const answers = new Map();
const waiting = new Map();
let open = 0;

// A sentence for the reader: what is wrong, and what to do. `status` is that of the server, 0 without one.
export class Problem extends Error {
  constructor(sentence, status) {
    super(sentence);
    this.status = status || 0;
  }
}

// Whether the page is one of a static report.
export function isReport() {
  return document.documentElement.dataset.mode === "report";
}

function count(change) {
  open += change;
  document.body.dataset.pending = String(open);
}

function tailOf(query) {
  const pairs = Object.entries(query || {}).filter(
    ([, value]) => value !== null && value !== undefined && value !== "",
  );
  return pairs.length ? `?${new URLSearchParams(pairs)}` : "";
}

async function answerOf(response) {
  let value = null;
  try {
    value = await response.json();
  } catch {
    throw new Problem(
      `The server answered with ${response.status} and no sentence. Its terminal says why.`,
      response.status,
    );
  }
  if (!response.ok)
    throw new Problem(
      (value && value.error) || `The server answered with ${response.status}.`,
      response.status,
    );
  return value;
}

async function ask(address, options) {
  let response = null;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Problem(
      "The server does not answer. Start it again with `patchsae explore` and reload this page.",
      0,
    );
  }
  return answerOf(response);
}

// Which resources a report has of a choice of latents or images only.
const CHOSEN = {
  latent: "latents",
  neighbours: "latents",
  maps: "latents",
  image: "images",
  codes: "images",
};

// The value of a file of the report.
async function inject(path) {
  const [what, view, id] = path.split("/");
  if (CHOSEN[what]) {
    const { report } = await get("home");
    if (!(report[CHOSEN[what]][view] || []).includes(Number(id))) throw new Problem(NOT_HELD, 404);
  }
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    waiting.set(path, { resolve, reject });
    script.src = `data/${path}.js`;
    script.onerror = () => {
      waiting.delete(path);
      reject(new Problem(NOT_HELD, 404));
    };
    script.onload = () => {
      script.remove();
      if (waiting.delete(path))
        reject(new Problem(`The file data/${path}.js of this report is damaged.`, 409));
    };
    document.head.append(script);
  });
}

if (isReport()) {
  window.patchsae = {
    // `fault` is why there is no value: {status, error}.
    receive(path, value, fault) {
      const asked = waiting.get(path);
      waiting.delete(path);
      if (asked && fault) asked.reject(new Problem(fault.error, fault.status));
      else if (asked) asked.resolve(value);
    },
  };
}

async function counted(promise) {
  count(1);
  try {
    return await promise;
  } finally {
    count(-1);
  }
}

// A resource, such as get("latent/KEY/12"). `fresh` asks again for what may have changed.
export function get(path, query, fresh) {
  const address = path + (isReport() ? "" : tailOf(query));
  if ((!fresh || isReport()) && answers.has(address)) return answers.get(address);
  const promise = counted(isReport() ? inject(path) : ask(`api/${address}`));
  answers.delete(address);
  answers.set(address, promise);
  promise.catch(() => answers.delete(address));
  if (answers.size > KEPT) answers.delete(answers.keys().next().value);
  return promise;
}

// Sends a JSON value, or the bytes of a file.
export function post(path, value) {
  const bytes = value instanceof Blob;
  const headers = { "Content-Type": bytes ? "application/octet-stream" : "application/json" };
  return counted(
    ask(`api/${path}`, { method: "POST", headers, body: bytes ? value : JSON.stringify(value) }),
  );
}

// The address of a picture of a view (`view` is its head), at most `size` pixels long: 96, 224 or 640.
export function pictureOf(view, image, size) {
  if (isReport()) return `pictures/${view.image_set}/${image}-${size}.webp`;
  return `picture/${view.key}/${image}?size=${size}`;
}

export function uploadOf(id, size) {
  return `picture/upload/${id}?size=${size}`;
}

export function truthOf(view, image) {
  return isReport() ? `truth/${view.image_set}/${image}.png` : `truth/${view.key}/${image}`;
}

export function downloadOf(kind, sql, experiment) {
  return `api/sql.${kind}${tailOf({ q: sql, experiment })}`;
}
