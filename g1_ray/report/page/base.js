// What all parts of the report share.

const DATA = JSON.parse(document.getElementById("data").textContent);
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
