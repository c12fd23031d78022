/** The view of one message. */

import { comparisonCard } from "./compare.js";
import { h, iconButton } from "./dom.js";
import { tokenView } from "./inspector.js";
import { rendered } from "./markdown.js";
import { Looks, paint } from "./sources.js";
import type { Message, TokenDetail } from "./types.js";

export interface Actions {
  edit(message: Message, text: string): void;
  regenerate(message: Message): void;
  compare(message: Message): void;
  cancelComparison(message: Message): void;
  show(message: Message): void; // another version
  announce(text: string): void;
}

export interface Shown {
  message: Message;
  versions: readonly Message[];
  tokens: readonly TokenDetail[];
  looks: Looks;
  comparing: string | null; // progress
}

const STATES = {
  done: "",
  answering: "",
  stopped: "You stopped this answer.",
  interrupted:
    "This answer was interrupted because the page was closed or reloaded. What had " +
    "arrived is kept; regenerate it for a whole answer.",
  failed: "",
};

export class MessageView {
  readonly element: HTMLElement;
  private readonly body = h("div", { class: "body" });
  private readonly thought = h("div", { class: "thought-text" });
  private readonly thoughts = h(
    "details",
    { class: "thought", hidden: true },
    h("summary", {}, "Thoughts"),
    this.thought,
  );
  private readonly foot = h("div", { class: "foot" });
  private readonly extra = h("div", { class: "extra" });
  private opened = false; // the token view
  private drawn = "";
  private frame = 0;
  private ready = 0; // `performance.now` at which a live answer may be drawn again

  constructor(
    private shown: Shown,
    private readonly actions: Actions,
  ) {
    const { role } = shown.message;
    this.element = h(
      "article",
      {
        class: `message ${role}`,
        "aria-label": role === "user" ? "You" : "Answer",
        "data-message": shown.message.id,
      },
      this.thoughts,
      this.body,
      this.extra,
      this.foot,
    );
    this.draw();
  }

  get tokens(): readonly TokenDetail[] {
    return this.shown.tokens;
  }

  update(shown: Shown): void {
    this.shown = shown;
    if (shown.message.state !== "answering") {
      cancelAnimationFrame(this.frame);
      this.frame = 0;
      this.draw();
    } else if (!this.frame) {
      this.frame = requestAnimationFrame((now) => this.drawLive(now));
    }
  }

  /** Draws a live answer at most so often that a third of the time is left. */
  private drawLive(now: number): void {
    if (now < this.ready) {
      this.frame = requestAnimationFrame((later) => this.drawLive(later));
      return;
    }
    this.frame = 0;
    const began = performance.now();
    this.draw();
    this.ready = now + Math.max(40, 3 * (performance.now() - began));
  }

  private draw(): void {
    const { message } = this.shown;
    this.element.dataset.state = message.state;
    this.element.setAttribute("aria-busy", String(message.state === "answering"));
    this.drawText();
    this.thoughts.hidden = !message.thought;
    if (this.thought.textContent !== message.thought) {
      this.thought.textContent = message.thought;
    }
    this.drawExtra();
    if (message.state !== "answering") this.drawFoot();
    else if (this.foot.childElementCount) this.foot.replaceChildren();
  }

  private drawText(): void {
    const { message, tokens, looks } = this.shown;
    const key = `${message.content.length} ${tokens.length} ${message.state}`;
    if (key === this.drawn) return;
    this.drawn = key;
    if (message.role === "user") {
      this.body.textContent = message.content;
      return;
    }
    const fragment = rendered(message.content);
    if (tokens.length) paint(fragment, tokens, message.content, looks);
    if (message.state !== "answering") addCopyButtons(fragment, this.actions);
    for (const table of fragment.querySelectorAll("table")) scrolls(table);
    for (const block of fragment.querySelectorAll("pre")) block.tabIndex = 0;
    this.body.replaceChildren(fragment);
  }

  private drawExtra(): void {
    const { message, comparing, tokens, looks } = this.shown;
    const parts: HTMLElement[] = [];
    if (message.state === "answering" && !message.content && !message.thought) {
      parts.push(h("p", { class: "note waiting" }, "Waiting for the first token"));
    }
    const note = message.error ?? STATES[message.state];
    if (note) parts.push(h("p", { class: `note ${message.state}` }, note));
    if (message.state === "done" && message.finish === "length") {
      parts.push(h("p", { class: "note" }, "The answer ended at the most tokens."));
    }
    if (this.opened) parts.push(tokenView(tokens, looks));
    if (comparing !== null) {
      const cancel = iconButton(
        "stop",
        "Cancel",
        () => this.actions.cancelComparison(message),
        true,
      );
      parts.push(h("p", { class: "note comparing" }, comparing, cancel));
    } else if (message.comparison) {
      parts.push(comparisonCard(message.comparison));
    }
    this.extra.replaceChildren(...parts);
  }

  private drawFoot(): void {
    const { message } = this.shown;
    const buttons =
      message.role === "user"
        ? [iconButton("edit", "Edit", () => this.edit())]
        : this.answerButtons();
    const copy = iconButton("copy", "Copy", () => {
      copied(message.content, this.actions);
    });
    this.foot.replaceChildren(this.versions(), copy, ...buttons, this.rate());
  }

  private answerButtons(): HTMLElement[] {
    const { message, tokens, comparing } = this.shown;
    const regenerate = iconButton("again", "Regenerate", () => {
      this.actions.regenerate(message);
    });
    if (!tokens.length) return [regenerate];
    const view = iconButton(
      "tokens",
      "Tokens",
      () => {
        this.opened = !this.opened;
        this.draw();
        this.foot.querySelector<HTMLElement>("[aria-expanded]")?.focus();
      },
      true,
    );
    view.setAttribute("aria-expanded", String(this.opened));
    const compare = iconButton(
      "compare",
      "Compare",
      () => this.actions.compare(message),
      true,
    );
    compare.title = message.speculative
      ? "Answer again without speculation, and compare"
      : "Answer again with speculation, and compare";
    compare.disabled = comparing !== null;
    return [regenerate, view, compare];
  }

  private rate(): HTMLElement {
    const measured = this.shown.message.measured;
    if (!measured || measured.tokens < 2) return h("span", { class: "rate" });
    const { rate, tested, accepted, tokens } = measured;
    const share = tested ? `, ${accepted} of ${tested} drafted tokens accepted` : "";
    return h(
      "span",
      { class: "rate", title: `${tokens} tokens${share}` },
      `${rate.toFixed(1)} tokens/s`,
    );
  }

  private versions(): HTMLElement {
    const { message, versions } = this.shown;
    if (versions.length < 2) return h("span");
    const at = versions.indexOf(message);
    const step = (name: string, label: string, to: number): HTMLElement => {
      const button = iconButton(name, label, () => {
        if (versions[to]) this.actions.show(versions[to]);
      });
      button.disabled = !versions[to];
      return button;
    };
    return h(
      "span",
      { class: "versions", role: "group", "aria-label": "Versions" },
      step("left", "Previous version", at - 1),
      h("span", {}, `${at + 1} / ${versions.length}`),
      step("right", "Next version", at + 1),
    );
  }

  private edit(): void {
    const { message } = this.shown;
    const field = h("textarea", { "aria-label": "Edit the message", rows: 3 });
    field.value = message.content;
    const done = (): void => {
      this.drawn = "";
      this.draw();
      this.foot.querySelector<HTMLElement>("[aria-label=Edit]")?.focus();
    };
    const send = (): void => {
      if (field.value.trim()) this.actions.edit(message, field.value);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") done();
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
    });
    const cancel = h("button", { type: "button", class: "plain", onclick: done }, "Cancel");
    const ok = h("button", { type: "button", class: "primary", onclick: send }, "Send");
    this.foot.replaceChildren();
    this.body.replaceChildren(field, h("div", { class: "choice" }, cancel, ok));
    field.focus();
  }
}

function scrolls(table: HTMLTableElement): void {
  const box = h("div", { class: "wide", tabindex: 0, role: "group", "aria-label": "Table" });
  table.replaceWith(box);
  box.append(table);
}

function addCopyButtons(fragment: DocumentFragment, actions: Actions): void {
  for (const block of fragment.querySelectorAll("pre")) {
    const code = block.textContent ?? "";
    const button = iconButton("copy", "Copy the code", () => copied(code, actions));
    const language = /language-([\w+#-]{1,20})/.exec(
      block.firstElementChild?.className ?? "",
    )?.[1];
    const bar = h("div", { class: "code-bar" }, h("span", {}, language ?? ""), button);
    const box = h("div", { class: "code" }, bar);
    block.replaceWith(box);
    box.append(block);
  }
}

function copied(text: string, actions: Actions): void {
  navigator.clipboard?.writeText(text).then(
    () => actions.announce("Copied."),
    () => actions.announce("The browser does not allow copying here."),
  ) ?? actions.announce("The browser does not allow copying here.");
}
