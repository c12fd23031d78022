/** The panel on the cascade: who wrote the answer, how fast, how much was accepted. */

import { chart } from "./chart.js";
import { h } from "./dom.js";
import { Looks, sourceName } from "./sources.js";
import type { Message, Sample, TokenDetail } from "./types.js";

export interface Told {
  message: Message | null;
  tokens: readonly TokenDetail[];
  samples: readonly Sample[];
  chain: readonly string[];
  looks: Looks;
  reason: string | null; // why the model has no drafters
}

/** The content of the panel. */
export function cascadePanel(told: Told): HTMLElement[] {
  const parts = [h("h3", {}, "Who wrote it"), legend(told)];
  if (told.reason) {
    parts.push(h("p", { class: "hint" }, `There are no drafts: ${told.reason}.`));
  }
  if (told.message) parts.push(h("h3", {}, "Speed"), chart(told.samples));
  const counts = facts(told);
  if (counts.length) parts.push(h("dl", { class: "facts" }, ...counts));
  return parts;
}

function legend({ tokens, chain, looks }: Told): HTMLElement {
  const counts = new Map<string, number>(chain.map((name) => [name, 0]));
  for (const { source } of tokens) counts.set(source, (counts.get(source) ?? 0) + 1);
  const rows = [...counts].map(([name, count]) =>
    h(
      "li",
      {},
      h("span", { class: `swatch ${looks.of(name)}` }, "Aa"),
      h("span", {}, name === "target" ? "Target" : sourceName(name)),
      h("span", { class: "value" }, tokens.length ? share(count, tokens.length) : ""),
    ),
  );
  return h("ul", { class: "legend" }, ...rows);
}

function share(count: number, all: number): string {
  return `${count} · ${Math.round((100 * count) / all)} %`;
}

function facts({ message, tokens }: Told): HTMLElement[] {
  const measured = message?.measured;
  if (!measured) return [];
  const { rounds, tested, accepted, promptTokens, promptSeconds, reason } = measured;
  const rows: [string, string][] = [
    ["Tokens", String(measured.tokens)],
    ["Average", `${measured.rate.toFixed(1)} tokens/s`],
    ["Target calls", String(rounds + 1)],
    ["Prompt", `${promptTokens} tokens, ${promptSeconds.toFixed(2)} s`],
  ];
  if (tested) rows.push(["Drafts accepted", `${accepted} of ${tested}`]);
  else if (reason) rows.push(["Drafts", reason]);
  if (message?.seed !== null && tokens.length) rows.push(["Seed", String(message?.seed)]);
  return rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]);
}
