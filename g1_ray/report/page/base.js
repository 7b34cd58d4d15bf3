// What all parts of the page share.

const DATA = JSON.parse(document.getElementById("data").textContent);
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
const label = (name) => (/^[pr]_acc$/.test(name) ? name[0].toUpperCase() + "_acc" : name.replaceAll("_", " "));
const shade = (share) => `--share:${Math.round(100 * Math.min(1, Math.max(0, share ?? 0)))}%`;

// A part of the page that has something to show is shown, and named at the top.
function showPart(id) {
  const section = $(id);
  section.hidden = false;
  $("parts").append(el("li", {}, el("a", { href: `#${id}` }, section.querySelector("h2").textContent)));
}

// A table under its title. Wide ones scroll by themselves; the page never does.
function tableOf(title, kind, head, rows) {
  return el("div", { class: "titled" }, el("h3", {}, title),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title },
      el("table", { class: kind, "aria-label": title }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows))));
}

$("name").textContent = DATA.name;
$("kind").textContent = DATA.kind;
if (DATA.summary.length || Object.keys(DATA.config).length) {
  showPart("summary");
  $("facts").append(...DATA.summary.map(([what, value]) => el("div", {}, el("dt", {}, what), el("dd", {}, value))));
  $("config").hidden = !Object.keys(DATA.config).length;
  $("config").addEventListener("toggle", () => {
    $("config").querySelector("pre").textContent = JSON.stringify(DATA.config, null, 2);
  });
}
