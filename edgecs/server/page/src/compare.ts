/** The same prompt and seed answered with drafts and without. */

import { answer, requestBody } from "./api.js";
import { h } from "./dom.js";
import type { Comparison, Message, Settings } from "./types.js";

interface Answered {
  ids: number[];
  rate: number;
}

/** Measures both, one after the other. most: tokens of an answer. */
export async function compare(
  messages: readonly Message[],
  settings: Settings,
  seed: number,
  most: number,
  stop: AbortSignal,
  progress: (text: string) => void,
): Promise<Comparison> {
  const run = async (speculative: boolean): Promise<Answered> => {
    const changed = { ...settings, speculative, max_tokens: most };
    const name = speculative ? "with" : "without";
    const found: Answered = { ids: [], rate: 0 };
    for await (const part of answer(requestBody(messages, changed, seed), stop)) {
      found.ids.push(...part.tokens.map((token) => token.id));
      found.rate = part.measured?.rate ?? found.rate;
      progress(`Answering ${name} speculation: ${found.ids.length} of ${most} tokens`);
    }
    return found;
  };
  const plain = await run(false);
  const drafted = await run(true);
  return {
    withRate: drafted.rate,
    withoutRate: plain.rate,
    tokens: Math.max(plain.ids.length, drafted.ids.length),
    equal: equalUpTo(plain.ids, drafted.ids),
  };
}

/** Number of leading ids that are the same. */
export function equalUpTo(one: readonly number[], other: readonly number[]): number {
  const differs = one.findIndex((id, i) => id !== other[i]);
  return differs < 0 ? one.length : differs;
}

/** Both rates as bars, and whether the ids are equal. */
export function comparisonCard(found: Comparison): HTMLElement {
  const top = Math.max(found.withRate, found.withoutRate, 1e-9);
  const ratio = found.withRate / Math.max(found.withoutRate, 1e-9);
  const same = found.equal === found.tokens;
  const ids = same
    ? `All ${found.tokens} token ids are equal.`
    : `The first ${found.equal} of ${found.tokens} token ids are equal, then they differ.`;
  return h(
    "section",
    { class: "comparison", "aria-label": "Comparison" },
    bar("With speculation", found.withRate, top),
    bar("Without", found.withoutRate, top, "without"),
    h(
      "p",
      {},
      h("strong", {}, `${ratio.toFixed(2)}×`),
      ` the speed with the same prompt and seed. `,
      h("span", { class: same ? "good" : "bad" }, ids),
    ),
  );
}

function bar(name: string, rate: number, top: number, look = ""): HTMLElement {
  const meter = h("meter", { min: 0, max: top, value: rate, "aria-label": name });
  const value = h("span", { class: "value" }, `${rate.toFixed(1)} tokens/s`);
  return h("div", { class: `bar ${look}` }, h("span", {}, name), meter, value);
}
