// Elements. Text reaches the page as text nodes only: nothing here, or elsewhere, parses markup.

import { known } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";

/** Attributes, if the first of the parts has some, and children. */
function fill(node, parts) {
  const [properties, ...children] = parts[0]?.constructor === Object ? parts : [{}, ...parts];
  for (const [name, value] of Object.entries(properties)) {
    if (!known(value)) continue;
    if (name.startsWith("aria-")) node.setAttribute(name, String(value));
    else if (value === false) continue;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "css") style(node, value);
    else if (name === "data") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => known(child) && child !== false));
  return node;
}

/** `h("p.note", { title }, text)`: an element with classes, attributes if there are any
    (`onclick`: a listener, `css`: custom properties), and children. */
export function h(tag, ...parts) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name);
  if (classes.length) node.className = classes.join(" ");
  return fill(node, parts);
}

/** The same in SVG. */
export function s(tag, ...parts) {
  return fill(document.createElementNS(SVG, tag), parts);
}

/** Style properties, set one by one as a strict content security policy allows. */
export function style(node, properties) {
  for (const [name, value] of Object.entries(properties)) node.style.setProperty(name, value);
  return node;
}

export function button(label, onclick, properties) {
  return h("button", { type: "button", onclick, ...properties }, label);
}

/** A list of names and what they stand for: [name, text, title of the name] each. */
export function pairs(list) {
  return h(
    "dl.pairs",
    list.map(([name, text, title]) => [h("dt", { title }, name), h("dd", text)]),
  );
}

/** A sentence for those who listen to the page, shown for a moment. */
export function say(sentence) {
  const said = document.getElementById("said");
  said.textContent = sentence;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => (said.textContent = ""), 4000);
}

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} copied.`);
  } catch {
    say("This browser does not let the page copy. Select the text and copy it by hand.");
  }
}

/** A button that copies text. */
export function copyButton(label, text, what) {
  return button(label, () => copy(typeof text === "function" ? text() : text, what), {
    class: "small",
  });
}

/** A choice of one of a few: radio buttons that look like a segmented control. */
export function choice(label, options, value, onchange) {
  const name = `choice-${(choice.count = (choice.count ?? 0) + 1)}`;
  const radios = options.map(([key, text, title]) => {
    const radio = h("input", {
      type: "radio",
      name,
      value: key,
      checked: key === value,
      onchange: () => onchange(key),
    });
    return h("label", { title }, radio, h("span", text));
  });
  return h("fieldset.choice", h("legend", label), h("div", radios));
}

/** At most one call a frame; the last arguments win. */
export function perFrame(call) {
  let waiting = 0;
  let last = [];
  return (...given) => {
    last = given;
    waiting ||= requestAnimationFrame(() => {
      waiting = 0;
      call(...last);
    });
  };
}

/** A call once nothing has happened for so many milliseconds. */
export function later(milliseconds, call) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...given), milliseconds);
  };
}
