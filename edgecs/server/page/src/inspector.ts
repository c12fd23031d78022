/** What is known about a token: on hover, and in a view for the keyboard. */

import { h } from "./dom.js";
import { Looks, sourceName } from "./sources.js";
import type { TokenDetail } from "./types.js";

/** Facts on a token as pairs of a name and a value. */
export function facts(token: TokenDetail): [string, string][] {
  const found: [string, string][] = [
    ["Written by", sourceName(token.source)],
    ["Probability", percent(token.p)],
    ["Round", token.round === 0 ? "0, the prompt" : String(token.round)],
    ["Width of the call", token.width === 1 ? "1 token" : `${token.width} tokens`],
  ];
  const rejected = token.rejected;
  if (rejected) {
    const by = `by ${sourceName(rejected.source)}, ${percent(rejected.p)}`;
    found.push(["Rejected", `${visible(rejected.text)} ${by}`]);
  }
  return found;
}

function percent(p: number): string {
  if (p > 0 && p < 0.001) return "< 0.1 %";
  if (p < 1 && p > 0.999) return "> 99.9 %";
  return `${(100 * p).toFixed(1)} %`;
}

/** The text of a token with its blanks made visible. */
export function visible(text: string): string {
  return text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "(no text)";
}

function card(token: TokenDetail): HTMLElement[] {
  const rows = facts(token).flatMap(([name, value]) => [
    h("dt", {}, name),
    h("dd", {}, value),
  ]);
  return [h("p", { class: "card-token" }, visible(token.text)), h("dl", {}, ...rows)];
}

/** One card at the pointer, for every painted answer of the page. */
export class Hover {
  private readonly card = h("div", { class: "card hover-card", hidden: true });
  private shown: Element | null = null;

  /** tokens: those of the answer that an element belongs to. */
  constructor(root: HTMLElement, tokens: (element: Element) => readonly TokenDetail[]) {
    document.body.append(this.card);
    root.addEventListener("pointerover", (event) => {
      const span = (event.target as Element).closest?.(".token") ?? null;
      if (span === this.shown) return;
      const index = (span as HTMLElement | null)?.dataset.token;
      const token = span && index !== undefined ? tokens(span)[Number(index)] : undefined;
      if (span && token) this.show(span, token);
      else this.hide();
    });
    root.addEventListener("pointerleave", () => this.hide());
    document.addEventListener("scroll", () => this.hide(), true);
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.hide();
    });
  }

  private show(span: Element, token: TokenDetail): void {
    this.hide();
    this.shown = span;
    span.classList.add("lit");
    this.card.replaceChildren(...card(token));
    this.card.hidden = false;
    const { left, top, bottom } = span.getBoundingClientRect();
    const { width, height } = this.card.getBoundingClientRect();
    const above = bottom + height + 12 > innerHeight;
    this.card.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
    this.card.style.top = `${above ? Math.max(8, top - height - 8) : bottom + 8}px`;
  }

  private hide(): void {
    this.shown?.classList.remove("lit");
    this.shown = null;
    this.card.hidden = true;
  }
}

/** The tokens one after the other; the arrow keys go from token to token. */
export function tokenView(tokens: readonly TokenDetail[], looks: Looks): HTMLElement {
  const about = h("div", { class: "card", role: "status" });
  const buttons = tokens.map((token, i) =>
    h(
      "button",
      {
        type: "button",
        class: `token ${looks.of(token.source)}${token.rejected ? " rejecting" : ""}`,
        tabindex: i === 0 ? 0 : -1,
        "aria-label": `${visible(token.text)}, ${sourceName(token.source)}`,
      },
      visible(token.text).replace(/↵/g, "↵\u200b"),
    ),
  );
  const list = h(
    "div",
    { class: "tokens", role: "toolbar", "aria-label": "Tokens of the answer" },
    ...buttons,
  );
  let current = 0;
  const select = (at: number): void => {
    buttons[current]?.classList.remove("lit");
    buttons[current]?.setAttribute("tabindex", "-1");
    current = at;
    buttons[at]!.classList.add("lit");
    buttons[at]!.setAttribute("tabindex", "0");
    about.replaceChildren(...card(tokens[at]!));
  };
  list.addEventListener("focusin", (event) => {
    const at = buttons.indexOf(event.target as HTMLButtonElement);
    if (at >= 0) select(at);
  });
  list.addEventListener("pointerover", (event) => {
    const at = buttons.indexOf(event.target as HTMLButtonElement);
    if (at >= 0) select(at);
  });
  list.addEventListener("keydown", (event) => {
    const to = {
      ArrowRight: current + 1,
      ArrowDown: current + 1,
      ArrowLeft: current - 1,
      ArrowUp: current - 1,
      Home: 0,
      End: buttons.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    buttons[Math.max(0, Math.min(to, buttons.length - 1))]?.focus();
  });
  if (tokens.length) select(0);
  return h("div", { class: "token-view" }, list, about);
}
