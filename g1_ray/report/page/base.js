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
const label = (name) => DATA.columns[name] ?? name.replaceAll("_", " ");
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

// Fills a place with what is made of things that are each of a game; those of the grid's variants are folded away.
function fill(id, things, gameOf, make) {
  const isVariant = (thing) => DATA.variants.includes(gameOf(thing));
  $(id).append(...things.filter((thing) => !isVariant(thing)).map(make));
  const variants = things.filter(isVariant);
  if (!variants.length) return;
  const folded = el("details", { class: "variants" }, el("summary", {}, "The same of the grid's variants"));
  folded.addEventListener("toggle", () => folded.append(...variants.map(make)), { once: true });
  $(id).append(folded);
}

$("name").textContent = DATA.name;
$("kind").textContent = DATA.kind;
if (DATA.verdict.length || DATA.summary.length || DATA.compared.length || Object.keys(DATA.config).length) {
  showPart("summary");
  $("verdict").append(...DATA.verdict.map((line) => el("li", {}, line)));
  $("verdict").hidden = !DATA.verdict.length;
  $("facts").append(...DATA.summary.map(([what, value]) => el("div", {}, el("dt", {}, what), el("dd", {}, value))));
  $("config").hidden = !Object.keys(DATA.config).length;
  $("config").addEventListener("toggle", () => {
    $("config").querySelector("pre").textContent = JSON.stringify(DATA.config, null, 2);
  });
}
