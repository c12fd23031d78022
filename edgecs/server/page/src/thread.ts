/** The messages of the current conversation, and the panel beside them. */

import type { Chat } from "./chat.js";
import type { Model } from "./api.js";
import { byId } from "./dom.js";
import { Hover } from "./inspector.js";
import { type Actions, MessageView, type Shown } from "./message.js";
import { cascadePanel } from "./panel.js";
import { Looks } from "./sources.js";
import type { Message, TokenDetail } from "./types.js";

const NEAR = 80; // pixels from the end at which the view follows the answer

export class Thread {
  private readonly box = byId("messages");
  private readonly scroller = byId("scroller");
  private readonly latest = byId<HTMLButtonElement>("latest");
  private readonly views = new Map<string, MessageView>();
  private follows = true;
  private painting = 0;

  constructor(
    private readonly chat: Chat,
    private readonly model: () => Model,
    private readonly actions: Actions,
  ) {
    new Hover(this.box, (element) => this.tokensAt(element));
    this.scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.latest.onclick = () => this.toEnd();
  }

  private tokensAt(element: Element): readonly TokenDetail[] {
    const id = element.closest<HTMLElement>("[data-message]")?.dataset.message;
    return this.views.get(id ?? "")?.tokens ?? [];
  }

  /** Shows the current conversation. */
  show(): void {
    const { shown } = this.chat;
    const ids = new Set(shown.map(({ id }) => id));
    for (const id of [...this.views.keys()]) if (!ids.has(id)) this.views.delete(id);
    const looks = new Looks(this.model().chain);
    for (const message of shown) {
      const facts = this.facts(message, looks);
      const view = this.views.get(message.id);
      if (view) view.update(facts);
      else this.views.set(message.id, new MessageView(facts, this.actions));
    }
    this.box.replaceChildren(...shown.map(({ id }) => this.views.get(id)!.element));
    byId("welcome").hidden = shown.length > 0;
    this.panel();
    this.toEnd();
  }

  /** Shows the changes of a message, if it is here. */
  update(message: Message): void {
    const view = this.views.get(message.id);
    if (!view) return;
    view.update(this.facts(message, new Looks(this.model().chain)));
    if (this.painting) return;
    this.painting = requestAnimationFrame(() => {
      this.painting = 0;
      this.panel();
      if (this.follows) this.toEnd();
    });
  }

  private facts(message: Message, looks: Looks): Shown {
    return {
      message,
      versions: this.chat.versions(message),
      tokens: this.chat.tokensOf(message),
      looks,
      comparing: this.chat.progress(message),
    };
  }

  /** The panel tells about the last answer. */
  private panel(): void {
    const { chain, reason } = this.model();
    const message = this.chat.shown.findLast(({ role }) => role === "assistant") ?? null;
    const samples = message && (this.chat.run(message)?.meter.samples ?? message.samples);
    const told = {
      message,
      tokens: message ? this.chat.tokensOf(message) : [],
      samples: samples ?? [],
      chain,
      looks: new Looks(chain),
      reason,
    };
    byId("panel-content").replaceChildren(...cascadePanel(told));
  }

  private scrolled(): void {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.follows = scrollHeight - scrollTop - clientHeight < NEAR;
    this.latest.hidden = this.follows;
  }

  private toEnd(): void {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.follows = true;
    this.latest.hidden = true;
  }
}
