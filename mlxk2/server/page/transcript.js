// The conversation as it is read: one article per message. What streams in is drawn again in place.

import { copy, element, pause } from "./dom.js";
import { renderMarkdown } from "./markdown.js";

const NOTES = {
  stopped: () => "Stopped.",
  interrupted: () => "Unfinished: the page was closed.",
  elsewhere: () => "Being written in another tab.",
  failed: ({ fault }) => [fault.text, fault.hint].filter(Boolean).join(" "),
  done: ({ finish, content, reasoning }) => {
    if (finish === "length") return "Cut off: the answer reached its limit of tokens.";
    return content || reasoning ? "" : "The model answered with nothing.";
  },
};
// Drawing takes at most a quarter of the time, however long an answer gets.
const REST = 3;

/** The messages of one conversation; `actions` are `edit` and `retry`, offered for its last question and answer.
 *  `toEnd` is a button that is there while the end is out of sight. */
export class Transcript {
  #list;
  #scroller;
  #toEnd;
  #actions;
  #run = null;
  #last = null;
  #isStale = false;
  #isDrawing = false;
  #isAtEnd = true;

  constructor({ list, scroller, toEnd }, actions) {
    this.#list = list;
    this.#scroller = scroller;
    this.#toEnd = toEnd;
    this.#actions = actions;
    list.addEventListener("click", copyCode);
    toEnd.addEventListener("click", () => this.scrollToEnd());
    scroller.addEventListener("scroll", () => this.#follow(isAtEnd(scroller)));
  }

  /** Show a conversation; `run` is there while its last answer is on its way. */
  show(conversation, run) {
    this.#run = run;
    const parts = conversation.messages.map((message) => this.#part(message));
    this.#last = parts.findLast((part) => part.draw) ?? null;
    this.#last?.offerRetry(!run);
    parts.findLast((part) => part.offerEdit)?.offerEdit(!run);
    for (const part of parts) part.draw?.(part === this.#last ? run : null);
    this.#list.replaceChildren(...parts.map((part) => part.node));
    this.scrollToEnd();
  }

  /** Draw the answer on its way again, with the browser's next picture or a little later. */
  async update() {
    this.#isStale = true;
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    while (this.#isStale) {
      await new Promise(requestAnimationFrame);
      const begin = performance.now();
      this.#isStale = false;
      this.#last?.draw(this.#run);
      if (this.#isAtEnd) this.scrollToEnd();
      await pause((performance.now() - begin) * REST);
    }
    this.#isDrawing = false;
  }

  /** Go to the end and stay there while more comes. */
  scrollToEnd() {
    this.#follow(true);
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  /** The last answer as it reads, without its markup. */
  get lastText() {
    return this.#last?.text ?? "";
  }

  /** Move on with what comes, or leave the reader where they have scrolled to. */
  #follow(isAtEnd) {
    this.#isAtEnd = isAtEnd;
    this.#toEnd.hidden = isAtEnd;
  }

  #part(message) {
    return message.role === "user" ? new Question(message, this.#actions.edit) : new Answer(message, this.#actions.retry);
  }
}

/** What the user asked. */
class Question {
  #edit;

  constructor(message, edit) {
    this.#edit = button("Edit", edit);
    this.#edit.hidden = true;
    const text = element("div", { class: "text" }, message.content);
    this.node = element("article", { class: "question", "aria-label": "You" }, text, this.#edit);
  }

  offerEdit(isOffered) {
    this.#edit.hidden = !isOffered;
  }
}

/** What the model answered: its reasoning folded, the answer, how it went, what can be done with it. */
class Answer {
  #message;
  #summary = element("summary");
  #thoughts = element("div", { class: "prose" });
  #prose = element("div", { class: "prose" });
  #note = element("p", { class: "note" });
  #figures = element("span", { class: "figures" });
  #reasoning = element("details", { class: "reasoning" }, this.#summary, this.#thoughts);
  #copy = button("Copy", ({ target }) => copyFrom(target, this.#message.content));
  #retry;

  constructor(message, retry) {
    this.#message = message;
    this.#retry = button("Regenerate", retry);
    this.#retry.hidden = true;
    const footer = element("footer", {}, this.#figures, this.#copy, this.#retry);
    const parts = [this.#reasoning, this.#prose, this.#note, footer];
    this.node = element("article", { class: "answer", "aria-label": message.model ?? "Answer" }, ...parts);
  }

  get text() {
    return [this.#prose.innerText, this.#note.innerText].filter(Boolean).join("\n");
  }

  offerRetry(isOffered) {
    this.#retry.hidden = !isOffered;
    this.#retry.textContent = this.#message.state === "done" ? "Regenerate" : "Try again";
  }

  draw(run) {
    const message = this.#message;
    const state = message.state === "streaming" && !run ? "elsewhere" : message.state;
    this.node.dataset.state = state;
    this.node.ariaBusy = String(state === "streaming");
    this.#reasoning.hidden = !message.reasoning;
    this.#summary.textContent = thinking(message, state);
    renderMarkdown(this.#thoughts, message.reasoning);
    renderMarkdown(this.#prose, message.content);
    this.#note.textContent = state === "streaming" ? waiting(message, run) : NOTES[state](message);
    this.#note.hidden = !this.#note.textContent;
    this.#figures.textContent = state === "streaming" ? "" : figures(message);
    this.#copy.hidden = state === "streaming" || !message.content;
  }
}

function thinking({ content, seconds }, state) {
  if (state === "streaming" && !content) return "Thinking…";
  return seconds?.thinking ? `Thought for ${seconds.thinking.toFixed(1)} s` : "Reasoning";
}

const waiting = ({ content, reasoning }, run) => (content || reasoning ? "" : run.waiting || "Waiting for the model…");

function figures({ usage, seconds }) {
  if (!usage) return "";
  const { prompt_tokens: prompt, completion_tokens: tokens, prompt_tokens_details: details } = usage;
  // The first token belongs to the prompt's time.
  const rate = tokens > 1 && seconds?.writing > 0 ? (tokens - 1) / seconds.writing : 0;
  const cached = details?.cached_tokens ? `, ${details.cached_tokens} of them cached` : "";
  const parts = [tokens === 1 ? "1 token" : `${tokens} tokens`, rate && `${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`, `prompt ${prompt}${cached}`];
  return parts.filter(Boolean).join(" · ");
}

function button(label, onclick) {
  return element("button", { type: "button", class: "quiet", onclick }, label);
}

function copyCode({ target }) {
  if (target.matches(".copy-code")) copyFrom(target, target.closest("figure").querySelector("code").textContent);
}

async function copyFrom(button, text) {
  await copy(text);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function isAtEnd(scroller) {
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48;
}
