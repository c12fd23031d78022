/** Conversations in IndexedDB, so that they stay in this browser.
 *
 * Where IndexedDB is not available, they last as long as the page.
 */

import type { Conversation, TokenDetail } from "./types.js";

const NAME = "edgecs";
const VERSION = 1;
const KEPT = "edgecs.unsaved.";

/** What an answer had when the page was closed; written synchronously. */
export interface Unsaved {
  message: string;
  content: string;
  thought: string;
}

export class Store {
  /** Other pages of this server in the same browser. */
  private readonly channel = new BroadcastChannel(NAME);

  private constructor(private readonly database: IDBDatabase | null) {}

  static async open(): Promise<Store> {
    return new Store(await opened().catch(() => null));
  }

  /** Whether conversations are kept when the page is closed. */
  get lasting(): boolean {
    return this.database !== null;
  }

  /** Calls a function when another page has changed a conversation. */
  onChange(changed: (id: string) => void): void {
    this.channel.onmessage = (event) => changed(String(event.data));
  }

  async all(): Promise<Conversation[]> {
    if (!this.database) return [];
    const store = this.database.transaction("conversations").objectStore("conversations");
    return (await result(store.getAll())) as Conversation[];
  }

  async one(id: string): Promise<Conversation | null> {
    if (!this.database) return null;
    const store = this.database.transaction("conversations").objectStore("conversations");
    return ((await result(store.get(id))) as Conversation | undefined) ?? null;
  }

  async tokens(message: string): Promise<TokenDetail[]> {
    if (!this.database) return [];
    const store = this.database.transaction("tokens").objectStore("tokens");
    return ((await result(store.get(message))) as TokenDetail[] | undefined) ?? [];
  }

  /** Saves a conversation, and the tokens of some of its messages. */
  async save(
    conversation: Conversation,
    tokens: ReadonlyMap<string, readonly TokenDetail[]> = new Map(),
  ): Promise<void> {
    if (!this.database) return;
    const change = this.database.transaction(["conversations", "tokens"], "readwrite");
    change.objectStore("conversations").put(conversation);
    for (const [id, list] of tokens) change.objectStore("tokens").put(list, id);
    await completed(change);
    this.channel.postMessage(conversation.id);
  }

  async remove(conversation: Conversation): Promise<void> {
    if (!this.database) return;
    const change = this.database.transaction(["conversations", "tokens"], "readwrite");
    change.objectStore("conversations").delete(conversation.id);
    for (const { id } of conversation.messages) {
      change.objectStore("tokens").delete(id);
    }
    await completed(change);
    this.channel.postMessage(conversation.id);
  }
}

/** Keeps what IndexedDB may not get before the page is gone. */
export function keepUnsaved(unsaved: Unsaved): void {
  try {
    localStorage.setItem(KEPT + unsaved.message, JSON.stringify(unsaved));
  } catch {
    // It is full or forbidden: what was saved before is what remains.
  }
}

/** What was kept of a message, once. */
export function takeUnsaved(message: string): Unsaved | null {
  try {
    const text = localStorage.getItem(KEPT + message);
    localStorage.removeItem(KEPT + message);
    return text === null ? null : (JSON.parse(text) as Unsaved);
  } catch {
    return null;
  }
}

function opened(): Promise<IDBDatabase> {
  const request = indexedDB.open(NAME, VERSION);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("conversations", { keyPath: "id" });
    request.result.createObjectStore("tokens");
  };
  return result(request);
}

function result<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function completed(change: IDBTransaction): Promise<void> {
  return new Promise((resolve, reject) => {
    change.oncomplete = () => resolve();
    change.onabort = change.onerror = () => reject(change.error);
  });
}
