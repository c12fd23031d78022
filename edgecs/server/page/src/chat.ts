/** The conversations, the current one, and the answers under way. */

import { ApiError } from "./api.js";
import { newestLeaf, path, pathTo, siblings, titleOf } from "./branches.js";
import { compare } from "./compare.js";
import { Run, sentence } from "./run.js";
import { loadDefaults, saveDefaults } from "./settings.js";
import { type Store, takeUnsaved } from "./store.js";
import { exported, imported, renamed, type Whole } from "./transfer.js";
import {
  type Conversation,
  type Message,
  newConversation,
  newMessage,
  type Settings,
  type TokenDetail,
  usualSettings,
} from "./types.js";

const SEEDS = 2 ** 32;

/** What the view has to do. */
export interface Changes {
  list(): void; // the conversations
  thread(): void; // other messages are shown
  message(message: Message): void;
  model(settings: Settings): string | null; // the one that answers
  ended(): void; // an answer
  announce(text: string): void;
  warn(text: string): void;
  needsKey(): void;
}

export class Chat {
  readonly conversations = new Map<string, Conversation>();
  current: Conversation;
  private readonly tokens = new Map<string, readonly TokenDetail[]>();
  private readonly runs = new Map<string, Run>();
  private readonly comparisons = new Map<
    string,
    { progress: string; abort: AbortController }
  >();

  constructor(
    readonly store: Store,
    private readonly changes: Changes,
  ) {
    this.current = newConversation(loadDefaults(usualSettings()));
    store.onChange((id) => void this.reload(id));
    addEventListener("pagehide", () => this.runs.forEach((run) => run.keep()));
  }

  /** Loads all conversations; answers that were under way are interrupted. */
  async load(): Promise<void> {
    const elsewhere = await answeringElsewhere();
    for (const conversation of await this.store.all()) {
      this.conversations.set(conversation.id, conversation);
      const open = conversation.messages.filter((one) => one.state === "answering");
      const lost = open.filter((one) => !elsewhere.has(one.id));
      for (const message of lost) {
        message.state = "interrupted";
        const unsaved = takeUnsaved(message.id);
        if (!unsaved) continue;
        message.content = longer(message.content, unsaved.content);
        message.thought = longer(message.thought, unsaved.thought);
      }
      if (lost.length) await this.store.save(conversation);
    }
    this.changes.list();
  }

  get shown(): Message[] {
    return path(this.current);
  }

  /** The answer under way in the current conversation. */
  get running(): Run | null {
    return this.shown.map(({ id }) => this.runs.get(id)).find(Boolean) ?? null;
  }

  run(message: Message): Run | undefined {
    return this.runs.get(message.id);
  }

  tokensOf(message: Message): readonly TokenDetail[] {
    return this.runs.get(message.id)?.tokens ?? this.tokens.get(message.id) ?? [];
  }

  progress(message: Message): string | null {
    return this.comparisons.get(message.id)?.progress ?? null;
  }

  versions(message: Message): Message[] {
    return siblings(this.current, message);
  }

  begin(): void {
    this.current = newConversation(loadDefaults(this.current.settings));
    this.changes.thread();
    this.changes.list();
  }

  async select(conversation: Conversation): Promise<void> {
    this.current = conversation;
    await this.loadTokens();
    if (this.current !== conversation) return; // another one was selected meanwhile
    this.changes.thread();
    this.changes.list();
  }

  private async loadTokens(): Promise<void> {
    const missing = this.shown.filter(
      ({ id, role }) => role === "assistant" && !this.tokens.has(id) && !this.runs.has(id),
    );
    await Promise.all(
      missing.map(async ({ id }) => this.tokens.set(id, await this.store.tokens(id))),
    );
  }

  send(text: string): void {
    const message = newMessage("user", this.current.leaf, text);
    if (!this.current.messages.length) {
      this.current.title = titleOf(text);
      this.conversations.set(this.current.id, this.current);
    }
    this.add(message);
    this.ask(message);
  }

  edit(message: Message, text: string): void {
    const changed = newMessage("user", message.parent, text);
    this.add(changed);
    this.ask(changed);
  }

  regenerate(message: Message): void {
    const question = this.current.messages.find(({ id }) => id === message.parent);
    if (question) this.ask(question);
  }

  async show(message: Message): Promise<void> {
    this.current.leaf = newestLeaf(this.current, message.id);
    await this.loadTokens();
    this.changes.thread();
    await this.save(this.current);
  }

  set settings(settings: Settings) {
    this.current.settings = settings;
    saveDefaults({ ...settings, seed: null });
    if (this.conversations.has(this.current.id)) void this.save(this.current);
  }

  rename(conversation: Conversation, title: string): void {
    conversation.title = title.trim().slice(0, 200) || "Untitled";
    void this.save(conversation);
    this.changes.list();
  }

  async remove(conversation: Conversation): Promise<void> {
    for (const { id } of conversation.messages) {
      this.runs.get(id)?.stop();
      this.comparisons.get(id)?.abort.abort();
    }
    this.conversations.delete(conversation.id);
    await this.store.remove(conversation);
    if (conversation === this.current) this.begin();
    this.changes.list();
  }

  async removeAll(): Promise<void> {
    for (const one of [...this.conversations.values()]) await this.remove(one);
  }

  private add(message: Message): void {
    this.current.messages.push(message);
    this.current.leaf = message.id;
    this.current.updated = Date.now();
  }

  /** Asks for an answer to a message of the current conversation. */
  private ask(question: Message): void {
    const conversation = this.current;
    const { settings } = conversation;
    const message = newMessage("assistant", question.id);
    message.state = "answering";
    message.model = this.changes.model(settings);
    message.seed = settings.seed ?? Math.floor(Math.random() * SEEDS);
    message.speculative = settings.speculative;
    this.add(message);
    const changed = (): void => this.changes.message(message);
    const run = new Run(this.store, conversation, message, changed);
    this.runs.set(message.id, run);
    this.changes.thread();
    this.changes.list();
    void whileAnswering(message.id, () => this.follow(run, question));
  }

  private async follow(run: Run, question: Message): Promise<void> {
    const { conversation, message } = run;
    try {
      await this.save(conversation);
      await run.follow(pathTo(conversation, question.id));
    } catch (error) {
      if (error instanceof ApiError) this.changes.needsKey();
    }
    this.runs.delete(message.id);
    this.tokens.set(message.id, run.tokens);
    conversation.updated = Date.now();
    if (this.conversations.has(conversation.id)) {
      await this.save(conversation, new Map([[message.id, run.tokens]]));
    }
    this.changes.message(message);
    this.changes.list();
    this.changes.ended();
    this.changes.announce(ending(message, run.tokens.length));
  }

  async compare(message: Message): Promise<void> {
    const conversation = this.current;
    const abort = new AbortController();
    const progress = (text: string): void => {
      this.comparisons.set(message.id, { progress: text, abort });
      this.changes.message(message);
    };
    progress("Waiting for the server");
    const { settings } = conversation;
    const model = this.changes.model({ ...settings, model: message.model });
    try {
      message.comparison = await compare(
        pathTo(conversation, message.parent),
        message,
        this.tokensOf(message),
        { ...settings, model },
        abort.signal,
        progress,
      );
      await this.save(conversation);
      this.changes.announce("The comparison is finished.");
    } catch (error) {
      if (!abort.signal.aborted) this.changes.warn(sentence(error));
    }
    this.comparisons.delete(message.id);
    this.changes.message(message);
  }

  cancelComparison(message: Message): void {
    this.comparisons.get(message.id)?.abort.abort();
  }

  async export(conversations: Iterable<Conversation>): Promise<string> {
    const wholes: Whole[] = [];
    for (const conversation of conversations) {
      const tokens = new Map<string, TokenDetail[]>();
      for (const { id } of conversation.messages) {
        const list = this.tokens.get(id) ?? (await this.store.tokens(id));
        if (list.length) tokens.set(id, [...list]);
      }
      wholes.push({ conversation, tokens });
    }
    return exported(wholes);
  }

  /** Adds the conversations of a file that are not here. Raises ImportError. */
  async import(text: string): Promise<{ added: number; known: number }> {
    const wholes = imported(text);
    const here = new Set([...this.conversations.values()].map(signature));
    const fresh = wholes.filter(({ conversation }) => !here.has(signature(conversation)));
    for (const { conversation, tokens } of fresh.map(renamed)) {
      this.conversations.set(conversation.id, conversation);
      await this.store.save(conversation, tokens);
    }
    this.changes.list();
    return { added: fresh.length, known: wholes.length - fresh.length };
  }

  private async save(
    conversation: Conversation,
    tokens?: ReadonlyMap<string, readonly TokenDetail[]>,
  ): Promise<void> {
    try {
      await this.store.save(conversation, tokens);
    } catch {
      this.changes.warn(
        "The browser could not save this conversation: export it to keep it.",
      );
    }
  }

  /** Takes over what another page has changed. */
  private async reload(id: string): Promise<void> {
    const mine = this.conversations.get(id);
    if (mine?.messages.some((message) => this.runs.has(message.id))) return;
    const theirs = await this.store.one(id);
    if (!theirs) this.conversations.delete(id);
    else this.conversations.set(id, theirs);
    for (const message of theirs?.messages ?? []) this.tokens.delete(message.id);
    this.changes.list();
    if (id !== this.current.id) return;
    if (theirs) await this.select(theirs);
    else this.begin();
  }
}

function longer(one: string, other: string): string {
  return other.length > one.length ? other : one;
}

/** What makes a conversation the same as another one, whatever its ids are. */
function signature({ title, created, messages }: Conversation): string {
  const said = messages.map(({ role, content, created }) => [role, content, created]);
  return JSON.stringify([title, created, said]);
}

function ending(message: Message, tokens: number): string {
  if (message.state === "failed") return message.error ?? "The answer failed.";
  return `Answer ${message.state === "stopped" ? "stopped" : "finished"}, ${tokens} tokens.`;
}

/** Holds a lock with the name of the answer, which other pages can see. */
async function whileAnswering(id: string, work: () => Promise<void>): Promise<void> {
  // Locks need HTTPS or loopback.
  if (!navigator.locks) await work();
  else await navigator.locks.request(id, work);
}

/** The messages that are answered in other pages of this browser. */
async function answeringElsewhere(): Promise<Set<string>> {
  const { held } = (await navigator.locks?.query()) ?? {};
  return new Set((held ?? []).map((lock) => lock.name ?? ""));
}

