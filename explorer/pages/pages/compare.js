// Compare: the page of a remapping (two backbones, one SAE) or of a matching (two SAEs).

import { matchingPage } from "../parts/matching.js";
import { remappingPage } from "../parts/remapping.js";
import { Problem } from "../source.js";

export async function comparePage({ kind, key }, query) {
  if (kind === "remapping") return remappingPage(key, query);
  if (kind === "matching") return matchingPage(key, query);
  throw new Problem(`${kind}: comparisons are of kind remapping or matching.`, 404);
}
