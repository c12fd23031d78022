/** One answer under way: it is shown, measured and saved while it arrives. */

import { answer, ApiError, requestBody } from "./api.js";
import { Meter } from "./chart.js";
import { keepUnsaved, type Store } from "./store.js";
import type { Conversation, Message, TokenDetail } from "./types.js";

const SAVED_EVERY = 500; // milliseconds, at least

export class Run {
  readonly tokens: TokenDetail[] = [];
  readonly meter = new Meter();
  private readonly abort = new AbortController();
  private saved = performance.now();
  private pause = SAVED_EVERY;
  private saving = false;

  /** changed: called after every part. */
  constructor(
    private readonly store: Store,
    readonly conversation: Conversation,
    readonly message: Message,
    private readonly changed: () => void,
  ) {}

  stop(): void {
    this.abort.abort();
  }

  /** Keeps what has arrived, when the page is being closed. */
  keep(): void {
    const { content, thought } = this.message;
    keepUnsaved({ message: this.message.id, content, thought });
  }

  /** Asks for the answer and waits for its end, which is a state of the message. */
  async follow(messages: readonly Message[]): Promise<void> {
    const { message } = this;
    const { model, speculative } = message;
    const settings = { ...this.conversation.settings, model, speculative };
    try {
      const body = requestBody(messages, settings, message.seed ?? 0);
      for await (const part of answer(body, this.abort.signal)) {
        message.content += part.content;
        message.thought += part.thought;
        message.finish = part.finish ?? message.finish;
        message.measured = part.measured ?? message.measured;
        this.tokens.push(...part.tokens);
        this.meter.add(part.tokens, performance.now());
        this.changed();
        this.save();
      }
      message.state = "done";
    } catch (error) {
      message.state = this.abort.signal.aborted ? "stopped" : "failed";
      message.error = message.state === "failed" ? sentence(error) : null;
      if (error instanceof ApiError && error.status === 401) throw error;
    } finally {
      message.samples = this.meter.samples;
    }
  }

  /** Saves now and then; a long answer is saved less often. */
  private save(): void {
    const now = performance.now();
    if (this.saving || now - this.saved < this.pause) return;
    this.saving = true;
    void this.store
      .save(this.conversation, new Map([[this.message.id, this.tokens]]))
      .catch(() => undefined)
      .then(() => {
        this.saved = performance.now();
        this.pause = Math.max(SAVED_EVERY, 20 * (this.saved - now));
        this.saving = false;
      });
  }
}

/** An error as a sentence. */
export function sentence(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}
