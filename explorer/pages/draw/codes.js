// An image's sparse code: which latents are above 0 on which tokens. Maps and regions are computed from it.

import { tokenCount } from "./geometry.js";

// The resource `codes` as {map(latent) -> value per token, latentsOf(tokens) -> [{latent, activation,
// token}], has}.
export function codeOf(codes, layout) {
  const n = Math.max(codes.n_tokens, layout ? tokenCount(layout) : 0);
  const places = new Map();
  for (let i = 0; i < codes.latents.length; i++) {
    const latent = codes.latents[i];
    if (!places.has(latent)) places.set(latent, []);
    places.get(latent).push(i);
  }
  const maps = new Map();
  return {
    n,
    left: codes.n_left_out,
    has: (latent) => places.has(latent),
    map(latent) {
      if (!maps.has(latent)) {
        const values = new Float32Array(n);
        for (const i of places.get(latent) || []) values[codes.tokens[i]] = codes.values[i];
        maps.set(latent, values);
      }
      return maps.get(latent);
    },
    // Latents above 0 on any of these tokens, by their mean over the tokens; `token` is where each is
    // largest.
    latentsOf(tokens) {
      const chosen = new Set(tokens);
      const found = new Map();
      for (let i = 0; i < codes.latents.length; i++) {
        if (!chosen.has(codes.tokens[i])) continue;
        const one = found.get(codes.latents[i]) || {
          latent: codes.latents[i],
          activation: 0,
          token: -1,
          token_activation: 0,
        };
        one.activation += codes.values[i] / chosen.size;
        if (codes.values[i] > one.token_activation)
          Object.assign(one, { token: codes.tokens[i], token_activation: codes.values[i] });
        found.set(codes.latents[i], one);
      }
      return [...found.values()].sort((a, b) => b.activation - a.activation || a.latent - b.latent);
    },
  };
}
