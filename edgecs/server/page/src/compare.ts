/** The same prompt and seed answered with drafts and without.
 *
 * Drafters copy from earlier text, so an answer with drafts that is repeated is faster
 * than it was at first. The answer that is there already is therefore one of the two
 * wherever it was measured, and only the other one is computed.
 */

import { answer, requestBody } from "./api.js";
import { h } from "./dom.js";
import type { Comparison, Message, Settings, TokenDetail } from "./types.js";

const MOST = 256; // tokens where there is no answer to compare with

interface Answered {
  ids: number[];
  rate: number; // tokens per second
}

/** Measures what is missing. messages: those before the answer. */
export async function compare(
  messages: readonly Message[],
  message: Message,
  tokens: readonly TokenDetail[],
  settings: Settings,
  stop: AbortSignal,
  progress: (text: string) => void,
): Promise<Comparison> {
  const most = tokens.length || MOST;
  const run = async (speculative: boolean): Promise<Answered> => {
    const changed = { ...settings, speculative, max_tokens: most };
    const body = requestBody(messages, changed, message.seed ?? 0);
    const name = speculative ? "with" : "without";
    const found: Answered = { ids: [], rate: 0 };
    for await (const part of answer(body, stop)) {
      found.ids.push(...part.tokens.map((token) => token.id));
      found.rate = part.measured?.rate ?? found.rate;
      progress(`Answering ${name} speculation: ${found.ids.length} of ${most} tokens`);
    }
    return found;
  };
  const { measured, speculative } = message;
  const here = measured && {
    ids: tokens.map((token) => token.id),
    rate: measured.rate,
  };
  const plain = here && !speculative ? here : await run(false);
  const drafted = here && speculative ? here : await run(true);
  return {
    withRate: drafted.rate,
    withoutRate: plain.rate,
    tokens: Math.max(plain.ids.length, drafted.ids.length),
    equal: equalUpTo(plain.ids, drafted.ids),
    repeated: drafted !== here,
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
  const note =
    "The answer with speculation was the second one: drafters copy from earlier text, " +
    "so a first answer can be slower.";
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
    found.repeated ? h("p", { class: "hint" }, note) : null,
  );
}

function bar(name: string, rate: number, top: number, look = ""): HTMLElement {
  const meter = h("meter", { min: 0, max: top, value: rate, "aria-label": name });
  const value = h("span", { class: "value" }, `${rate.toFixed(1)} tokens/s`);
  return h("div", { class: `bar ${look}` }, h("span", {}, name), meter, value);
}
