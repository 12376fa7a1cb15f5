// The two dialogs: the settings, and the server's key.

import { byId } from "./dom.js";
import { DEFAULTS } from "./store.js";

// The settings, by the ids of their fields.
const FIELDS = { system: "system", temperature: "temperature", "max-tokens": "maxTokens" };

/** The settings panel and its button, which shows whether a setting was changed. */
export class SettingsPanel {
  #store;

  constructor(store) {
    this.#store = store;
    byId("settings-open").addEventListener("click", () => this.#open());
    byId("settings").addEventListener("input", () => this.#take());
    this.#mark();
  }

  #open() {
    for (const [id, name] of Object.entries(FIELDS)) byId(id).value = this.#store.settings[name];
    byId("settings").showModal();
  }

  #take() {
    const valid = Object.entries(FIELDS).filter(([id]) => byId(id).validity.valid);
    const changes = Object.fromEntries(valid.map(([id, name]) => [name, byId(id).value]));
    this.#store.saveSettings({ ...this.#store.settings, ...changes });
    this.#mark();
  }

  #mark() {
    const isChanged = Object.values(FIELDS).some((name) => this.#store.settings[name] !== DEFAULTS[name]);
    byId("settings-open").classList.toggle("changed", isChanged);
  }
}

/** Ask for the server's key; return null if the user has none. */
export function askKey(wasWrong) {
  const dialog = byId("key-dialog");
  const field = byId("key");
  byId("key-refused").hidden = !wasWrong;
  byId("key-cancel").onclick = () => dialog.close();
  field.value = dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const answer = () => resolve(dialog.returnValue === "ok" ? field.value.trim() : null);
    dialog.addEventListener("close", answer, { once: true });
  });
}
