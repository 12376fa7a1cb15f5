// Markdown as nodes of the page. The lexer finds the structure; text is never read as HTML, so nothing in it can run.

import { lexer } from "./marked/marked.esm.js";
import { element } from "./dom.js";

const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", hellip: "…", ndash: "–", mdash: "—" };
const SAFE_LINK = /^(https?:|mailto:)/i;

// The lexer fails on a thousand nested quotes. A text with more levels than this stays as it was written.
const MAX_DEPTH = 100;

// The source of each block on the page.
const sources = new WeakMap();

/** Show a text as Markdown; blocks that have not changed stay, with the selection in them. */
export function renderMarkdown(container, text) {
  const tokens = parse(text);
  // The definition of a link changes the meaning of earlier blocks.
  const links = JSON.stringify(tokens.links ?? {});
  const blocks = tokens.filter((token) => token.type !== "space" && token.type !== "def");
  blocks.forEach((block, position) => {
    const before = container.children[position];
    const source = links + block.raw;
    if (before && sources.get(before) === source) return;
    const node = buildBlock(block);
    sources.set(node, source);
    if (before) before.replaceWith(node);
    else container.append(node);
  });
  while (container.children.length > blocks.length) container.lastElementChild.remove();
}

function parse(text) {
  try {
    const tokens = lexer(text);
    if (depth({ tokens }) < MAX_DEPTH) return tokens;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return [{ type: "plain", raw: text }];
}

function depth({ tokens, items }) {
  return 1 + (tokens ?? items ?? []).reduce((deepest, token) => Math.max(deepest, depth(token)), 0);
}

const BLOCKS = {
  plain: (token) => element("p", { class: "plain" }, token.raw),
  heading: (token) => element(`h${token.depth}`, {}, ...inline(token)),
  hr: () => element("hr"),
  blockquote: (token) => element("blockquote", {}, ...token.tokens.map(buildBlock)),
  code: codeBlock,
  list: listBlock,
  table: tableBlock,
};

function buildBlock(token) {
  const build = BLOCKS[token.type];
  return build ? build(token) : element("p", {}, ...inline(token));
}

function codeBlock(token) {
  const language = (token.lang ?? "").split(/\s/)[0];
  const head = element("figcaption", {}, element("span", {}, language), copyButton());
  return element("figure", { class: "code" }, head, element("pre", { tabindex: "0" }, element("code", {}, token.text)));
}

function copyButton() {
  return element("button", { type: "button", class: "copy-code" }, "Copy");
}

function listBlock(token) {
  const start = token.ordered && token.start !== 1 ? { start: token.start } : {};
  return element(token.ordered ? "ol" : "ul", start, ...token.items.map(listItem));
}

function listItem(item) {
  const parts = item.tokens.filter((token) => token.type !== "space");
  // A text in a tight list is on the line of its bullet.
  const isBlock = ({ type }) => type in BLOCKS || type === "paragraph";
  const nodes = parts.flatMap((token) => (isBlock(token) ? [buildBlock(token)] : inlineOf(token)));
  return element("li", item.task ? { class: "task" } : {}, ...nodes);
}

function tableBlock(token) {
  const cell = (name) => (entry) => element(name, { class: entry.align ?? undefined }, ...inline(entry));
  const head = element("tr", {}, ...token.header.map(cell("th")));
  const rows = token.rows.map((row) => element("tr", {}, ...row.map(cell("td"))));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  return element("div", { class: "table", tabindex: "0" }, table);
}

const INLINES = {
  strong: (token) => element("strong", {}, ...inline(token)),
  em: (token) => element("em", {}, ...inline(token)),
  del: (token) => element("del", {}, ...inline(token)),
  codespan: (token) => element("code", {}, token.text),
  br: () => element("br"),
  checkbox: (token) => element("input", { type: "checkbox", disabled: "", ...(token.checked && { checked: "" }) }),
  html: (token) => (/^<br\s*\/?>$/i.test(token.raw) ? element("br") : token.raw),
  escape: (token) => token.text,
  link: (token) => link(token, inline(token)),
  // Images are not loaded: an address can carry away the text of the conversation.
  image: (token) => link(token, [`Image: ${decode(token.text) || token.href}`]),
};

function inline(token) {
  return token.tokens ? token.tokens.flatMap(inlineOf) : [decode(token.text ?? token.raw)];
}

function inlineOf(token) {
  const build = INLINES[token.type];
  return build ? [build(token)] : inline(token);
}

function link(token, children) {
  // A link to anything but a web page or a mailbox is shown as it was written.
  if (!SAFE_LINK.test(token.href)) return token.raw;
  const { href } = token;
  return element("a", { href, title: href, target: "_blank", rel: "noopener noreferrer" }, ...children);
}

function decode(text) {
  return text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|([a-z]+));/gi, (all, decimal, hex, name) => {
    if (name) return Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : all;
    const number = decimal ? Number(decimal) : parseInt(hex, 16);
    return number && number <= 0x10ffff ? String.fromCodePoint(number) : "\ufffd";
  });
}
