/** The page: connects the controls of index.html with the conversations. */

import { ApiError, healthy, key } from "./api.js";
import { Chat } from "./chat.js";
import { byId } from "./dom.js";
import { asks, asksText } from "./dialogs.js";
import { Models } from "./models.js";
import { sentence } from "./run.js";
import { editSettings } from "./settings.js";
import { conversationList } from "./sidebar.js";
import { Store } from "./store.js";
import { currentTheme, keep, kept, setTheme, type Theme } from "./theme.js";
import { Thread } from "./thread.js";
import { ImportError, MOST_BYTES } from "./transfer.js";
import type { Conversation } from "./types.js";

const RETRY = 1500; // milliseconds between questions whether the model is loaded
const wide = matchMedia("(min-width: 1100px)"); // the panel is beside the text

const models = new Models();
const store = await Store.open();
const chat = new Chat(store, {
  list: () => showList(),
  thread: () => show(),
  message: (message) => {
    thread.update(message);
    showComposer();
  },
  model: (settings) => models.of(settings),
  ended: () => void learn().catch(() => undefined),
  announce,
  warn: toast,
  needsKey: () => void askForKey(),
});
const thread = new Thread(chat, () => models.about(chat.current.settings), {
  edit: (message, text) => chat.edit(message, text),
  regenerate: (message) => chat.regenerate(message),
  compare: (message) => void chat.compare(message),
  cancelComparison: (message) => chat.cancelComparison(message),
  show: (message) => void chat.show(message),
  announce,
});
const prompt = byId<HTMLTextAreaElement>("prompt");
const search = byId<HTMLInputElement>("search");

function show(): void {
  thread.show();
  byId("title").textContent = chat.shown.length ? chat.current.title : "";
  document.title = chat.shown.length ? `${chat.current.title} · edgecs` : "edgecs";
  showComposer();
  showSpeculation();
  models.show(chat.current.settings);
}

function showList(): void {
  const entries = conversationList(
    chat.conversations.values(),
    search.value,
    chat.current,
    {
      select: (conversation) => {
        closeSidebar();
        void chat.select(conversation);
      },
      rename: (conversation) => void rename(conversation),
      remove: (conversation) => void remove(conversation),
    },
  );
  byId("conversations").replaceChildren(...entries);
}

/** Learns about the models, and shows what is new. Raises ApiError. */
async function learn(): Promise<void> {
  if (await models.learn(chat.current.settings)) show();
}

function showComposer(): void {
  const busy = chat.running !== null;
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
}

function showSpeculation(): void {
  const on = chat.current.settings.speculative;
  byId("speculation").setAttribute("aria-checked", String(on));
}

function announce(text: string): void {
  byId("status").textContent = text;
}

async function rename(conversation: Conversation): Promise<void> {
  const title = await asksText("Rename the conversation", "Title", conversation.title);
  if (title !== null) chat.rename(conversation, title);
  show();
}

async function remove(conversation: Conversation): Promise<void> {
  const question = `“${conversation.title}” will be deleted from this browser.`;
  if (await asks("Delete the conversation?", question, "Delete")) {
    await chat.remove(conversation);
  }
}

let asking = false;

async function askForKey(): Promise<void> {
  if (asking) return;
  asking = true;
  const title = key.get() ? "The API key is wrong" : "This server needs an API key";
  const given = await asksText(title, "API key", "", true);
  asking = false;
  if (!given) return;
  key.set(given.trim());
  await connect();
}

/** Waits for the model, and learns about it. */
async function connect(): Promise<void> {
  const banner = byId("banner");
  for (;;) {
    const state = await healthy().catch(() => null);
    if (state) break;
    banner.textContent =
      state === null ? "The server does not answer." : "The model is loading.";
    banner.hidden = false;
    await new Promise((resolve) => setTimeout(resolve, RETRY));
  }
  banner.hidden = true;
  try {
    await learn();
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return askForKey();
    banner.textContent = sentence(error);
    banner.hidden = false;
  }
  show();
}

function send(): void {
  const text = prompt.value;
  if (!text.trim() || chat.running) return;
  prompt.value = "";
  grow();
  chat.send(text);
  prompt.focus();
}

function stop(): void {
  chat.running?.stop();
  prompt.focus();
}

function grow(): void {
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight, innerHeight / 3)}px`;
}

async function save(conversations: Iterable<Conversation>): Promise<void> {
  const text = await chat.export(conversations);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `edgecs-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
}

async function open(file: File): Promise<void> {
  try {
    if (file.size > MOST_BYTES) {
      throw new ImportError(`it has more than ${MOST_BYTES >> 20} MiB`);
    }
    const { added, known } = await chat.import(await file.text());
    const also = known ? ` ${known} were already here.` : "";
    toast(`${added} conversation${added === 1 ? "" : "s"} imported.${also}`);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    toast(`“${file.name.slice(0, 100)}” was not imported: ${why}.`);
  }
}

let fading = 0;

/** A text that is shown for some seconds, and announced. */
function toast(text: string): void {
  const box = byId("toast");
  box.textContent = text;
  box.hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => (box.hidden = true), 8000);
}

function closeSidebar(): void {
  document.body.classList.remove("sidebar-open");
  byId("menu").setAttribute("aria-expanded", "false");
}

function togglePanel(open: boolean): void {
  document.body.classList.toggle("panel-open", open);
  byId("panel").hidden = !open;
  byId("panel-button").setAttribute("aria-expanded", String(open));
}

function toggleColours(on: boolean): void {
  document.body.classList.toggle("coloured", on);
  byId<HTMLInputElement>("colours").checked = on;
}

function connectControls(): void {
  byId<HTMLFormElement>("composer").onsubmit = (event) => {
    event.preventDefault();
    send();
  };
  prompt.addEventListener("input", grow);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  byId("stop").onclick = stop;
  byId("new").onclick = () => {
    closeSidebar();
    chat.begin();
    prompt.focus();
  };
  byId("speculation").onclick = () => {
    const { settings } = chat.current;
    chat.settings = { ...settings, speculative: !settings.speculative };
    showSpeculation();
  };
  byId("settings-button").onclick = () => {
    editSettings(chat.current.settings, (settings) => {
      chat.settings = settings;
    });
  };
  byId<HTMLSelectElement>("model").onchange = (event) => {
    const model = (event.target as HTMLSelectElement).value;
    chat.settings = { ...chat.current.settings, model };
    thread.show();
  };
  search.addEventListener("input", showList);
  connectPanels();
  connectData();
  addEventListener("keydown", shortcut);
}

function connectPanels(): void {
  byId("menu").onclick = () => {
    const open = document.body.classList.toggle("sidebar-open");
    byId("menu").setAttribute("aria-expanded", String(open));
    if (open) byId("new").focus();
  };
  byId("shade").onclick = closeSidebar;
  byId("panel-button").onclick = () => {
    const open = !document.body.classList.contains("panel-open");
    togglePanel(open);
    if (wide.matches) keep("panel", open);
  };
  byId("panel-close").onclick = () => {
    togglePanel(false);
    if (wide.matches) keep("panel", false);
    byId("panel-button").focus();
  };
  byId<HTMLInputElement>("colours").onchange = (event) => {
    const on = (event.target as HTMLInputElement).checked;
    toggleColours(on);
    keep("colours", on);
  };
  const theme = byId<HTMLSelectElement>("theme");
  theme.value = currentTheme();
  theme.onchange = () => setTheme(theme.value as Theme);
}

function connectData(): void {
  const file = byId<HTMLInputElement>("file");
  byId("import").onclick = () => file.click();
  file.onchange = async () => {
    if (file.files?.[0]) await open(file.files[0]);
    file.value = "";
  };
  byId("export").onclick = () => void save(chat.conversations.values());
  byId("delete-all").onclick = async () => {
    const question = "All conversations will be deleted from this browser.";
    if (await asks("Delete all conversations?", question, "Delete all")) {
      await chat.removeAll();
    }
  };
}

function shortcut(event: KeyboardEvent): void {
  const open = document.querySelector("dialog[open]");
  if (event.key === "Escape" && !open) {
    if (document.body.classList.contains("sidebar-open")) closeSidebar();
    else if (chat.running) stop();
  } else if ((event.ctrlKey || event.metaKey) && event.key === "k" && !open) {
    event.preventDefault();
    document.body.classList.add("sidebar-open");
    search.focus();
  } else if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key === "O") {
    event.preventDefault();
    byId("new").click();
  }
}

setTheme(currentTheme());
toggleColours(kept("colours", true));
togglePanel(wide.matches && kept("panel", true));
wide.onchange = () => togglePanel(wide.matches && kept("panel", true));
connectControls();
await chat.load();
show();
if (!store.lasting) {
  toast("This browser does not let the page store conversations: they end with it.");
}
const last = [...chat.conversations.values()].sort((a, b) => b.updated - a.updated)[0];
if (last?.messages.at(-1)?.state === "interrupted") await chat.select(last);
prompt.focus();
await connect();
