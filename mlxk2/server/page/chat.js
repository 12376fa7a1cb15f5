// The chat page: the open conversation, and what the user does with it.

import { Api } from "./api.js";
import { newAnswer, requestFor, Run } from "./answering.js";
import { askKey, SettingsPanel } from "./dialogs.js";
import { byId, element, pause } from "./dom.js";
import { newConversation, Store } from "./store.js";
import { Transcript } from "./transcript.js";

// Milliseconds between two writes of an answer that is being generated, and how long a notice stays.
const SAVE_EVERY = 1000;
const NOTICE = 8000;

const api = new Api(askKey);
const store = new Store();
// The answers that are being generated, by the id of their conversation; each conversation has at most one.
const runs = new Map();
const places = { list: byId("messages"), scroller: byId("scroller"), toEnd: byId("to-end") };
const transcript = new Transcript(places, { edit: beginEditing, retry });
const input = byId("input");
let current = newConversation();
let isEditing = false;
let isLossShown = false;
let noticeTimer = 0;

// --- conversations ---

function open() {
  current = store.find(location.hash.slice(1)) ?? newConversation();
  endEditing();
  show();
  transcript.scrollToEnd();
}

/** Show the open conversation and the list as they are now. */
function show() {
  const run = runs.get(current.id);
  transcript.show(current, run);
  byId("welcome").hidden = current.messages.length > 0;
  byId("stop").hidden = !run;
  byId("send").hidden = Boolean(run);
  document.title = current.title ? `${current.title} · mlxk2` : "mlxk2";
  showList();
}

function showList() {
  byId("conversations").replaceChildren(...store.conversations.map(entry));
}

function entry({ id, title }) {
  const link = element("a", { href: `#${id}`, "aria-current": id === current.id && "page", title }, title);
  const onclick = () => removeEntry(id);
  const remove = element("button", { type: "button", "aria-label": `Delete “${title}”`, onclick }, "×");
  return element("li", runs.has(id) ? { class: "busy" } : {}, link, remove);
}

function removeEntry(id) {
  const conversation = store.find(id);
  runs.get(id)?.stop();
  store.remove(id);
  if (id === current.id) location.hash = "";
  showList();
  notify("Conversation deleted.", "Undo", () => {
    save(conversation);
    location.hash = id;
  });
}

/** Save a conversation whose answer is being generated, unless the user has deleted it. */
function saveAnswered(id) {
  const conversation = store.find(id);
  if (conversation) save(conversation);
}

function save(conversation) {
  const isKept = store.save(conversation);
  if (!isKept && !isLossShown) notify("This browser can't keep the conversation: its storage is full or blocked.");
  isLossShown = !isKept;
}

// --- asking and answering ---

function send(text) {
  if (isEditing) current.messages.splice(lastQuestion());
  endEditing();
  current.messages.push({ role: "user", content: text });
  current.title = current.messages[0].content.trim().split("\n")[0].slice(0, 80);
  if (location.hash.slice(1) !== current.id) history.pushState(null, "", `#${current.id}`);
  answer(current);
}

function retry() {
  current.messages.splice(lastQuestion() + 1);
  answer(current);
  focusInput();
}

const lastQuestion = () => current.messages.findLastIndex(({ role }) => role === "user");

async function answer(conversation) {
  const body = requestFor(conversation.messages, { ...store.settings, model: byId("model").value });
  const run = new Run(newAnswer(body.model));
  conversation.messages.push(run.message);
  conversation.updated = Date.now();
  runs.set(conversation.id, run);
  save(conversation);
  const saving = setInterval(saveAnswered, SAVE_EVERY, conversation.id);
  show();
  transcript.scrollToEnd();
  announce("The model answers.");
  await run.fill(api, body, () => conversation.id === current.id && transcript.update());
  clearInterval(saving);
  runs.delete(conversation.id);
  saveAnswered(conversation.id);
  if (conversation.id !== current.id) return showList();
  show();
  announce(transcript.lastText);
}

function beginEditing() {
  isEditing = true;
  byId("editing").hidden = false;
  input.value = current.messages[lastQuestion()].content;
  fit();
  input.focus();
}

function endEditing() {
  if (isEditing) input.value = "";
  isEditing = false;
  byId("editing").hidden = true;
  fit();
}

// --- models ---

async function loadModels() {
  const [models, state] = await Promise.all([api.models(), api.health()]);
  const ids = models.map(({ id }) => id);
  const wanted = [byId("model").value, store.settings.model, state.model ?? state.loading, ids[0]];
  const chosen = wanted.find((id) => ids.includes(id));
  const option = ({ id, context_length: context }) =>
    element("option", { value: id, selected: id === chosen && "" }, context ? `${id} · ${tokens(context)} context` : id);
  byId("model").replaceChildren(...models.map(option));
}

function chooseModel({ target }) {
  store.saveSettings({ ...store.settings, model: target.value });
}

const tokens = (count) => (count < 1024 ? String(count) : `${Math.round(count / 1024)}k`);

/** Show that the server's first model is being loaded, until it is in memory. */
async function showLoading() {
  for (;;) {
    const { status, loading } = await api.health();
    byId("state").textContent = status === "loading" ? `Loading ${loading}…` : "";
    if (status !== "loading") return;
    await pause(SAVE_EVERY);
  }
}

// --- the page ---

function notify(text, label = "Close", action = () => {}) {
  const act = () => {
    byId("notice").hidden = true;
    action();
  };
  byId("notice").replaceChildren(text, element("button", { type: "button", class: "quiet", onclick: act }, label));
  byId("notice").hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => (byId("notice").hidden = true), NOTICE);
}

const isTouch = () => matchMedia("(pointer: coarse)").matches;

const tell = (error) => notify([error.message, error.hint].filter(Boolean).join(" "));

/** Let a screen reader read a text. */
function announce(text) {
  byId("announcement").textContent = text;
}

/** Make the field as high as its text, in browsers that do not know the style sheet's `field-sizing`. */
function fit() {
  if (CSS.supports("field-sizing", "content")) return;
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}

function submit(event) {
  event.preventDefault();
  const text = input.value;
  if (!text.trim() || runs.has(current.id)) return;
  input.value = "";
  send(text);
  fit();
}

function onInputKey(event) {
  // Touch keyboards have no easy Shift+Enter, and Enter may belong to an input method.
  const isPlainEnter = event.key === "Enter" && !event.shiftKey && !event.isComposing;
  if (isPlainEnter && !isTouch()) submit(event);
}

function onEscape(event) {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("menu-open")) closeMenu();
  else if (isEditing) endEditing();
  else stop();
}

function stop() {
  runs.get(current.id)?.stop();
  focusInput();
}

/** Move the focus to the field, unless that would open a touch keyboard. */
function focusInput() {
  if (!isTouch()) input.focus();
}

function toggleMenu() {
  const isOpen = document.body.classList.toggle("menu-open");
  byId("menu").ariaExpanded = String(isOpen);
}

function closeMenu() {
  if (document.body.classList.contains("menu-open")) toggleMenu();
}

/** Show what another tab has changed. */
function onStorage({ key }) {
  store.reload(new Set(runs.keys()));
  current = store.find(current.id) ?? current;
  if (key?.endsWith(current.id) && !runs.has(current.id)) show();
  else showList();
}

/** Save the text that has come, before the page is closed. */
function leave() {
  for (const [id, run] of runs) {
    run.stop("interrupted");
    saveAnswered(id);
  }
}

function listen() {
  byId("composer").addEventListener("submit", submit);
  byId("stop").addEventListener("click", stop);
  byId("cancel-editing").addEventListener("click", endEditing);
  byId("menu").addEventListener("click", toggleMenu);
  byId("veil").addEventListener("click", closeMenu);
  // The hash does not change for the conversation that is open already, so the click closes the menu.
  byId("sidebar").addEventListener("click", ({ target }) => target.closest("a") && closeMenu());
  byId("new").addEventListener("click", () => setTimeout(focusInput));
  byId("model").addEventListener("change", chooseModel);
  input.addEventListener("input", fit);
  input.addEventListener("keydown", onInputKey);
  addEventListener("keydown", onEscape);
  addEventListener("hashchange", open);
  addEventListener("storage", onStorage);
  // Models may have been pulled or removed while the page was hidden.
  addEventListener("visibilitychange", () => document.hidden || loadModels().catch(tell));
  addEventListener("pagehide", leave);
}

new SettingsPanel(store);
listen();
open();
showLoading().catch(tell);
loadModels().catch(tell);
