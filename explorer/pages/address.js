// The state of a page is in its address: #/PATH?NAME=VALUE&... The query is an object of strings.

function encode(text) {
  return encodeURIComponent(text).replace(/%(2C|3B|3A|2F|20)/g, (code) =>
    code === "%20" ? "+" : decodeURIComponent(code),
  );
}

function decode(text) {
  const spaced = text.replace(/\+/g, " ");
  try {
    return decodeURIComponent(spaced);
  } catch {
    return spaced;
  }
}

// "#/v/abc/latents?sort=-frequency" -> {path: ["v", "abc", "latents"], query: {sort: "-frequency"}}.
export function parseAddress(hash) {
  const text = hash.replace(/^#?\/?/, "");
  const cut = text.indexOf("?");
  const path = (cut < 0 ? text : text.slice(0, cut)).split("/").filter(Boolean).map(decode);
  const query = {};
  for (const pair of (cut < 0 ? "" : text.slice(cut + 1)).split("&").filter(Boolean)) {
    const equal = pair.indexOf("=");
    if (equal > 0) query[decode(pair.slice(0, equal))] = decode(pair.slice(equal + 1));
  }
  return { path, query };
}

// The opposite; values that are null, undefined or empty are left out.
export function makeAddress(path, query) {
  const pairs = Object.entries(query || {}).filter(
    ([, value]) => value !== null && value !== undefined && value !== "",
  );
  const tail = pairs.map(([name, value]) => `${encode(name)}=${encode(String(value))}`).join("&");
  return `#/${path.map(encode).join("/")}${tail ? `?${tail}` : ""}`;
}

// Where the reader is.
export function here() {
  return parseAddress(location.hash);
}

// Goes to another page or state; the back button returns.
export function go(path, query) {
  location.hash = makeAddress(path, query);
}

// Changes values of the present state. `quiet` puts the state in the place of the present one in the history.
export function change(values, quiet) {
  const { path, query } = here();
  const address = makeAddress(path, { ...query, ...values });
  if (address === location.hash) return;
  if (quiet) location.replace(address);
  else location.hash = address;
}
