/** Markdown to elements that are safe to show.
 *
 * The text comes from a model or a file, so it is hostile: markdown-it escapes HTML, and
 * DOMPurify keeps a short list of elements. Images become links, as loading one would
 * tell another server that the text was read.
 */

import createDOMPurify from "dompurify";
import hljs from "highlight.js/lib/core";
import MarkdownIt from "markdown-it";
import { languages } from "./languages.js";

const TAGS =
  "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong table " +
  "tbody td th thead tr ul";
const MOST_HIGHLIGHTED = 50_000; // characters of a block of code

for (const [name, language] of Object.entries(languages)) {
  hljs.registerLanguage(name, language);
}

const purify = createDOMPurify(window);
purify.addHook("afterSanitizeAttributes", (element) => {
  if (element.tagName === "A") {
    element.setAttribute("target", "_blank");
    element.setAttribute("rel", "noopener noreferrer nofollow");
  }
});

const parser = new MarkdownIt({
  html: false,
  linkify: true,
  highlight: (code, language) => {
    if (!hljs.getLanguage(language) || code.length > MOST_HIGHLIGHTED) return "";
    return hljs.highlight(code, { language, ignoreIllegals: true }).value;
  },
});
parser.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
parser.renderer.rules.image = (tokens, at) => {
  const { content } = tokens[at]!;
  const source = String(tokens[at]!.attrGet("src") ?? "");
  const escape = parser.utils.escapeHtml;
  return `<a href="${escape(source)}">${escape(content || "image")}</a>`;
};

/** The elements of a text. */
export function rendered(text: string): DocumentFragment {
  return purify.sanitize(parser.render(text), {
    ALLOWED_TAGS: TAGS.split(" "),
    ALLOWED_ATTR: ["class", "href", "start", "target", "rel"],
    ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
}
