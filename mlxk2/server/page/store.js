// The conversations and the settings, which the browser keeps. Without storage, or when it is full, they last as long
// as the page.

const CONVERSATION = "mlxk2.conversation.";
const SETTINGS = "mlxk2.settings";

/** The settings until the user changes them, as for `mlxk2 run`; the server chooses the value of each empty one. */
export const DEFAULTS = { model: "", system: "", temperature: "0.7", maxTokens: "" };

/** All conversations and the settings; `save` and `saveSettings` return whether the browser could keep them. */
export class Store {
  #conversations = new Map();

  constructor() {
    this.reload();
  }

  /** Read what this and other tabs have saved; conversations that are `busy` in this tab stay as they are. */
  reload(busy = new Set()) {
    const kept = new Map(readAll().map((conversation) => [conversation.id, conversation]));
    for (const [id, conversation] of this.#conversations) {
      if (busy.has(id) || conversation.isUnkept) kept.set(id, conversation);
    }
    this.#conversations = kept;
    this.settings = { ...DEFAULTS, ...parse(read(SETTINGS)) };
  }

  /** The conversations, the last used one first. */
  get conversations() {
    return [...this.#conversations.values()].sort((one, other) => other.updated - one.updated);
  }

  /** Return a conversation, or undefined. */
  find(id) {
    return this.#conversations.get(id);
  }

  /** Save a conversation; return whether the browser could keep it. */
  save(conversation) {
    this.#conversations.set(conversation.id, conversation);
    const { isUnkept, ...data } = conversation;
    conversation.isUnkept = !write(CONVERSATION + conversation.id, JSON.stringify(data));
    return !conversation.isUnkept;
  }

  /** Remove a conversation. */
  remove(id) {
    this.#conversations.delete(id);
    attempt(() => localStorage.removeItem(CONVERSATION + id));
  }

  /** Save the settings; return whether the browser could keep them. */
  saveSettings(settings) {
    this.settings = settings;
    return write(SETTINGS, JSON.stringify(settings));
  }
}

/** Return a conversation without messages. */
export function newConversation() {
  // Browsers refuse randomUUID to pages that come over plain HTTP from another machine.
  const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 10);
  return { id, title: "", updated: Date.now(), messages: [] };
}

function readAll() {
  const names = attempt(() => Object.keys(localStorage)) ?? [];
  const values = names.filter((name) => name.startsWith(CONVERSATION)).map((name) => parse(read(name)));
  // Other programs on the same address may have written values of any form.
  return values.filter((value) => value.id && Array.isArray(value.messages));
}

const read = (name) => attempt(() => localStorage.getItem(name));

const write = (name, text) => attempt(() => (localStorage.setItem(name, text), true)) ?? false;

function parse(text) {
  return attempt(() => JSON.parse(text)) ?? {};
}

/** Return the result of a function, or undefined if the browser forbids what it does. */
function attempt(action) {
  try {
    return action();
  } catch {
    return undefined;
  }
}
