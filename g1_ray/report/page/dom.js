// Elements and numbers: what the report and the arena share.

const $ = (id) => document.getElementById(id);

// An element: attributes by name (on... are listeners, true is an attribute without a value), children texts or nodes.
function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "circle", "g", "rect"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") node.style.cssText = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
  return node;
}

// A number with as many digits as are read, or as are asked for: 1,234; 56.7; 0.123.
function num(value, digits) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (digits === undefined && size > 0 && size < 0.001) return value.toExponential(1).replaceAll("-", "−");
  digits ??= Number.isInteger(value) || size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
}

// The digits that all numbers of a column are given with.
function digitsOf(values) {
  const top = Math.max(...values.map(Math.abs));
  return values.every(Number.isInteger) ? 0 : top >= 100 ? 0 : top >= 10 ? 1 : top > 1 ? 2 : 3;
}

const signed = (value) => (value > 0 ? "+" : "") + num(value);
const percent = (share) => `${num(Math.round(1000 * share) / 10)}\u00a0%`;
