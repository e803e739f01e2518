import { text } from "./texts.ts";

type Child = Node | string;

/** An element with attributes and children. Texts become text nodes: the page never parses HTML (Trusted Types). */
export function make<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  attributes: Record<string, string> = {},
  ...children: Child[]
): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** A decorative icon of 24 units, drawn with the stroke of the style sheet. */
export function icon(path: string): SVGSVGElement {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.append(svgPath(path));
  return svg;
}

export function svgPath(path: string): SVGPathElement {
  const shape = document.createElementNS(SVG, "path");
  shape.setAttribute("d", path);
  return shape;
}

export function button(kind: string, label: string, press: () => void): HTMLButtonElement {
  const made = make("button", { type: "button", class: kind }, label);
  made.addEventListener("click", press);
  return made;
}

/** The advice for people whose screen reader speaks digits aloud. */
export function headphones(): HTMLElement {
  return make("p", { id: "headphones", class: "for-readers" }, text("headphones"));
}
