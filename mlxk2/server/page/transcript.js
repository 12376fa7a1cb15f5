// The conversation as it is read: one article per message. What streams in is drawn again in place.

import { copy, element, pause } from "./dom.js";
import { renderMarkdown } from "./markdown.js";

const NOTES = {
  stopped: () => "Stopped.",
  interrupted: () => "Unfinished: the page was closed.",
  elsewhere: () => "Unfinished, or being written in another tab.",
  failed: ({ fault }) => [fault.text, fault.hint].filter(Boolean).join(" "),
  done: ({ finish, content, reasoning }) => {
    if (finish === "length") return "Cut off: the answer reached its limit of tokens.";
    return content || reasoning ? "" : "The model answered with nothing.";
  },
};
// Seconds; what comes in less may have come in one go, and says nothing about the speed.
const SHORTEST = 0.05;
// Drawing takes at most a quarter of the time, however long an answer gets.
const REST = 3;

/**
 * The messages of one conversation; `actions` are `edit` and `retry`, offered for its last question and answer.
 * `toEnd` is a button that is there while the end is out of sight.
 */
export class Transcript {
  #list;
  #scroller;
  #toEnd;
  #actions;
  #run = null;
  #last = null;
  #parts = new Map();
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

  /** Show a conversation; `run` is there while its last answer is on its way. What is on the page already stays. */
  show({ messages }, run) {
    this.#run = run;
    const parts = messages.map((message) => this.#parts.get(message) ?? this.#part(message));
    this.#parts = new Map(parts.map((part) => [part.message, part]));
    this.#last = parts.findLast((part) => part instanceof Answer) ?? null;
    const lastQuestion = parts.findLast((part) => part instanceof Question);
    for (const part of parts) part.offer(!run && (part === this.#last || part === lastQuestion));
    this.#last?.draw(run);
    this.#place(parts.map((part) => part.node));
    if (this.#isAtEnd) this.scrollToEnd();
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
    if (message.role === "user") return new Question(message, this.#actions.edit);
    const answer = new Answer(message, this.#actions.retry);
    answer.draw(null);
    return answer;
  }

  #place(nodes) {
    for (const child of [...this.#list.children]) if (!nodes.includes(child)) child.remove();
    this.#list.append(...nodes.filter((node) => !node.isConnected));
  }
}

/** What the user asked. */
class Question {
  #edit;

  constructor(message, edit) {
    this.message = message;
    this.#edit = button("Edit", edit);
    const text = element("div", { class: "text" }, message.content);
    this.node = element("article", { class: "question", "aria-label": "You" }, text, this.#edit);
  }

  offer(isOffered) {
    this.#edit.hidden = !isOffered;
  }
}

/** What the model answered: its reasoning folded, the answer, how it went, what can be done with it. */
class Answer {
  #summary = element("summary");
  #thoughts = element("div", { class: "prose" });
  #prose = element("div", { class: "prose" });
  #note = element("p", { class: "note" });
  #figures = element("span", { class: "figures" });
  #reasoning = element("details", { class: "reasoning" }, this.#summary, this.#thoughts);
  #copy = button("Copy", ({ target }) => copyFrom(target, this.message.content));
  #retry;

  constructor(message, retry) {
    this.message = message;
    this.#retry = button("Regenerate", retry);
    const footer = element("footer", {}, this.#figures, this.#copy, this.#retry);
    const parts = [this.#reasoning, this.#prose, this.#note, footer];
    this.node = element("article", { class: "answer", "aria-label": message.model ?? "Answer" }, ...parts);
  }

  get text() {
    return [this.#prose.innerText, this.#note.innerText].filter(Boolean).join("\n");
  }

  offer(isOffered) {
    this.#retry.hidden = !isOffered;
    this.#retry.textContent = this.message.state === "done" ? "Regenerate" : "Try again";
  }

  draw(run) {
    const { message } = this;
    const state = message.state === "streaming" && !run ? "elsewhere" : message.state;
    const isStreaming = state === "streaming";
    this.node.dataset.state = state;
    this.node.ariaBusy = String(isStreaming);
    this.#reasoning.hidden = !message.reasoning;
    this.#summary.textContent = thinking(message, state);
    renderMarkdown(this.#thoughts, message.reasoning);
    renderMarkdown(this.#prose, message.content);
    this.#note.textContent = isStreaming ? waiting(message, run) : NOTES[state](message);
    this.#note.hidden = !this.#note.textContent;
    this.#figures.textContent = isStreaming ? "" : figures(message);
    this.#copy.hidden = isStreaming || !message.content;
  }
}

function thinking({ content, seconds }, state) {
  if (state === "streaming" && !content) return "Thinking…";
  return seconds?.thinking > SHORTEST ? `Thought for ${seconds.thinking.toFixed(1)} s` : "Reasoning";
}

function waiting({ content, reasoning }, run) {
  return content || reasoning ? "" : run.waiting || "Waiting for the model…";
}

function figures({ usage, seconds }) {
  if (!usage) return "";
  const { prompt_tokens: prompt, completion_tokens: tokens, prompt_tokens_details: details } = usage;
  // The first token belongs to the prompt's time.
  const rate = seconds?.writing > SHORTEST ? (tokens - 1) / seconds.writing : 0;
  const cached = details?.cached_tokens ? `, ${details.cached_tokens} of them cached` : "";
  const count = tokens === 1 ? "1 token" : `${tokens} tokens`;
  const speed = rate && `${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`;
  return [count, speed, `prompt ${prompt}${cached}`].filter(Boolean).join(" · ");
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
