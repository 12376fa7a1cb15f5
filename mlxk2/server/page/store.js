// What this browser keeps: the conversations and the settings. Without storage, or when it is full, they live as long
// as the page does.

const CONVERSATION = "mlxk2.conversation.";
const SETTINGS = "mlxk2.settings";

/** What holds until the user says otherwise: the same as for `mlxk2 run`. Empty is the server's choice. */
export const DEFAULTS = { model: "", system: "", temperature: "0.7", maxTokens: "" };

/** All conversations and the settings; `save` and `settings` tell whether they could be kept. */
export class Store {
  #conversations = new Map();

  constructor() {
    this.reload();
  }

  /** Read again what this and other tabs have kept; conversations that are `busy` here stay as they are. */
  reload(busy = new Set()) {
    const kept = new Map(readAll().map((conversation) => [conversation.id, conversation]));
    for (const [id, conversation] of this.#conversations) {
      if (busy.has(id) || conversation.isUnkept) kept.set(id, conversation);
    }
    this.#conversations = kept;
    this.settings = { ...DEFAULTS, ...parse(read(SETTINGS)) };
  }

  /** The conversations, the one that was used last first. */
  get conversations() {
    return [...this.#conversations.values()].sort((one, other) => other.updated - one.updated);
  }

  /** Return a conversation, or undefined. */
  find(id) {
    return this.#conversations.get(id);
  }

  /** Keep a conversation; whether it outlives the page. */
  save(conversation) {
    this.#conversations.set(conversation.id, conversation);
    const { isUnkept, ...data } = conversation;
    conversation.isUnkept = !write(CONVERSATION + conversation.id, JSON.stringify(data));
    return !conversation.isUnkept;
  }

  /** Forget a conversation. */
  remove(id) {
    this.#conversations.delete(id);
    attempt(() => localStorage.removeItem(CONVERSATION + id));
  }

  /** Keep the settings; whether they outlive the page. */
  saveSettings(settings) {
    this.settings = settings;
    return write(SETTINGS, JSON.stringify(settings));
  }
}

/** Return a conversation without messages. */
export function newConversation() {
  // Not randomUUID, which browsers refuse to pages that come over plain HTTP from another machine.
  const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 10);
  return { id, title: "", updated: Date.now(), messages: [] };
}

function readAll() {
  const names = attempt(() => Object.keys(localStorage)) ?? [];
  const values = names.filter((name) => name.startsWith(CONVERSATION)).map((name) => parse(read(name)));
  // Other programs on the same address may have left anything there.
  return values.filter((value) => value.id && Array.isArray(value.messages));
}

const read = (name) => attempt(() => localStorage.getItem(name));

const write = (name, text) => attempt(() => (localStorage.setItem(name, text), true)) ?? false;

function parse(text) {
  return attempt(() => JSON.parse(text)) ?? {};
}

/** Return what a function returns, or undefined where the browser does not let it. */
function attempt(action) {
  try {
    return action();
  } catch {
    return undefined;
  }
}
