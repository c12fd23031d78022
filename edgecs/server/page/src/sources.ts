/** Which model wrote which part of a text.
 *
 * Tokens have the text of the answer in Markdown; the page shows it rendered. Both have
 * nearly the same characters in the same order, so each shown character is matched with
 * the next equal one of the tokens, and marks of Markdown are skipped.
 */

import type { TokenDetail } from "./types.js";

const LOOKS = 4; // classes source-1 to source-4
const KEYS = [12, 6, 3, 1]; // characters to look for after a difference
const REACH = [4000, 400, 60, 8]; // characters to look through, for each of them

/** The name that is shown for a source. */
export function sourceName(source: string): string {
  return source === "mag" ? "Max-Gram" : source;
}

/** The class of each drafter; Max-Gram looks the same in every chain. */
export class Looks {
  private readonly names: string[];

  constructor(chain: readonly string[]) {
    const drafters = chain.slice(1);
    this.names = ["mag", ...drafters.filter((name) => name !== "mag")];
  }

  of(source: string): string {
    if (source === "target") return "source-0";
    if (!this.names.includes(source)) this.names.push(source);
    return `source-${(this.names.indexOf(source) % LOOKS) + 1}`;
  }
}

/** Splits the text below `root` into one span for each token, with its index. */
export function paint(
  root: Node,
  tokens: readonly TokenDetail[],
  content: string,
  looks: Looks,
): void {
  const follow = new Follower(tokens, content);
  for (const text of shownTexts(root)) {
    const spans = document.createDocumentFragment();
    for (const run of follow.runs(text.data)) {
      const token = tokens[run.token];
      if (!token) {
        spans.append(run.text);
        continue;
      }
      const span = document.createElement("span");
      span.className = `token ${looks.of(token.source)}`;
      span.dataset.token = String(run.token);
      span.textContent = run.text;
      spans.append(span);
    }
    text.replaceWith(spans);
  }
}

/** The text nodes that a reader sees, without those between blocks. */
function shownTexts(root: Node): Text[] {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const found: Text[] = [];
  while (walker.nextNode()) {
    const text = walker.currentNode as Text;
    const between = /^\s*\n\s*$/.test(text.data) && !text.parentElement?.closest("pre,p");
    if (!between) found.push(text);
  }
  return found;
}

interface Run {
  text: string;
  token: number; // -1: unknown
}

/** Follows shown text through the text of the tokens. */
class Follower {
  private readonly raw: string;
  private readonly ends: number[] = []; // of every token in `raw`
  private cursor: number;
  private token = 0;

  constructor(tokens: readonly TokenDetail[], content: string) {
    this.raw = tokens.map((token) => token.text).join("");
    let end = 0;
    for (const token of tokens) this.ends.push((end += token.text.length));
    this.cursor = Math.max(0, this.raw.lastIndexOf(content.slice(0, 200)));
  }

  runs(text: string): Run[] {
    const runs: Run[] = [];
    for (let at = 0; at < text.length; at++) {
      const token = this.owner(text, at);
      const last = runs.at(-1);
      if (last && last.token === token) last.text += text[at];
      else runs.push({ text: text[at]!, token });
    }
    return runs;
  }

  private owner(text: string, at: number): number {
    const found = this.find(text, at);
    if (found < 0) return this.cursor < this.raw.length ? this.token : -1;
    this.cursor = found + 1;
    while (this.token < this.ends.length && this.ends[this.token]! <= found) {
      this.token++;
    }
    return this.token;
  }

  private find(text: string, at: number): number {
    if (at > 0 && this.raw[this.cursor] === text[at]) return this.cursor;
    for (const [i, length] of KEYS.entries()) {
      const key = text.slice(at, at + length);
      if (key.length < length && i < KEYS.length - 1 && at + length < text.length) continue;
      const found = this.raw.slice(this.cursor, this.cursor + REACH[i]!).indexOf(key);
      if (found >= 0) return this.cursor + found;
    }
    return -1;
  }
}
