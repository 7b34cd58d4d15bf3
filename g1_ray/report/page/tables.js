// Results, runs side by side, misread tiles, and the lab.

const filled = (cell) => cell !== null && cell !== undefined;

// A table from column names and rows of cells: texts, numbers, or [mean, low, high].
function resultTable({ title, columns, rows }) {
  const tops = columns.map((_, i) => Math.max(...rows.map((row) => (Array.isArray(row[i]) ? row[i][2] : 0)), 1e-9));
  const positive = columns.map((_, i) => rows.every((row) => !Array.isArray(row[i]) || row[i][1] >= 0));
  const digits = columns.map((column, i) => column.digits ?? digitsOf(rows.map((row) => row[i]).filter((value) => typeof value === "number")));
  const cell = (value, i) => {
    if (!filled(value)) return el("td");
    if (typeof value === "string") return i ? el("td", { class: value.length > 18 && "long" }, value) : el("th", { scope: "row" }, value);
    if (!Array.isArray(value)) return el("td", { class: "number" }, num(value, digits[i]));
    const [mean, low, high] = value;
    const place = (x) => `${(100 * Math.max(0, x)) / tops[i]}%`;
    const bar = positive[i] && el("span", { class: "interval", "aria-hidden": "true" },
      el("i", { style: `left:${place(low)};right:calc(100% - ${place(high)})` }), el("b", { style: `left:${place(mean)}` }));
    const text = value.map((x) => num(x, Math.abs(mean) >= 100 ? 0 : Math.abs(mean) >= 10 ? 1 : 2));
    return el("td", { class: "number" }, `${text[0]} `, el("small", {}, `[${text[1]}, ${text[2]}]`), bar);
  };
  const numeric = (i) => rows.some((row) => filled(row[i]) && typeof row[i] !== "string");
  return tableOf(title, "results", columns.map(({ name }, i) => el("th", { scope: "col", class: numeric(i) && "number" }, name)),
    rows.map((row) => el("tr", {}, row.map(cell))));
}

$("compared").append(...DATA.compared.map(resultTable));

if (DATA.results.length) {
  showPart("results");
  fill("tables", DATA.results, ({ game }) => game, resultTable);
}

// Players down, variants of a game across: the share of moves that score.
function gridTable({ title, variants, players, values }) {
  const cell = (share) => el("td", { class: filled(share) && "right", style: shade(share) }, filled(share) ? percent(share) : "");
  return tableOf(title, "matrix", [el("td"), ...variants.map((name) => el("th", { scope: "col" }, name))],
    players.map((player, i) => el("tr", {}, el("th", { scope: "row" }, player), values[i].map(cell))));
}

if (DATA.grids.length) {
  showPart("grid");
  $("grids").append(...DATA.grids.map(gridTable));
}

// True kinds down, told kinds across; a cell says how often, and its shade which share of the line.
function confusionTable({ names, counts }) {
  const told = [...names, "missing or unknown"];
  const line = (row, i) => {
    const all = row.reduce((a, b) => a + b, 0);
    return el("tr", {}, el("th", { scope: "row" }, names[i] === "-" ? "- (empty)" : names[i]), row.map((count, j) =>
      el("td", {
        class: count && (i === j ? "right" : "wrong"),
        style: shade(all && count / all),
        title: `${names[i]} told as ${told[j]}: ${num(count)} of ${num(all)}`,
      }, count ? num(count) : "")));
  };
  return tableOf("Cells by what they show (down) and what the answer tells (across)", "matrix",
    [el("td"), ...told.map((name) => el("th", { scope: "col" }, el("span", {}, name)))], counts.map(line));
}

function cellMap(cells) {
  // Shades start at a share of a half: between 0.9 and 1 lies what matters.
  const cell = (share) => el("td", { class: "right", style: shade(2 * share - 1) }, num(share, 3));
  return tableOf("Share of cells told right, by place on the board", "matrix",
    [el("td"), ...cells[0].map((_, i) => el("th", { scope: "col" }, `col ${i}`))],
    cells.map((row, i) => el("tr", {}, el("th", { scope: "row" }, `row ${i}`), row.map(cell))));
}

function commonErrors({ names, counts }) {
  const told = [...names, "missing or unknown"];
  const errors = counts.flatMap((row, i) => row.map((count, j) => ({ i, j, count }))).filter(({ i, j, count }) => i !== j && count);
  if (!errors.length) return el("p", {}, "No cell was told wrong.");
  const cells = counts.flat().reduce((a, b) => a + b, 0);
  const wrong = errors.reduce((sum, { count }) => sum + count, 0);
  errors.sort((a, b) => b.count - a.count);
  return el("div", {}, el("h3", {}, `${num(wrong)} of ${num(cells)} cells wrong; most often`),
    el("ol", { class: "errors" }, errors.slice(0, 8).map(({ i, j, count }) =>
      el("li", {}, el("b", {}, names[i]), " told as ", el("b", {}, told[j]), `, ${num(count)} ×`))));
}

function showMatrix(matrix) {
  const about = [matrix.boards && `${num(matrix.boards)} boards${matrix.here ? " of the rollouts on this page" : ""}`, filled(matrix.exact) && `${percent(matrix.exact)} of them without an error (P_acc)`];
  $("matrix").replaceChildren(
    el("p", {}, about.filter(Boolean).join(", ")),
    el("div", { class: "side" },
      el("div", {}, confusionTable(matrix)),
      el("div", {}, commonErrors(matrix), matrix.cells ? cellMap(matrix.cells) : null)));
}

if (DATA.matrices.length) {
  showPart("reading");
  $("matrix-of").append(...DATA.matrices.map((matrix, i) => el("option", { value: i }, matrix.title)));
  $("matrix-of").addEventListener("change", () => showMatrix(DATA.matrices[$("matrix-of").value]));
  showMatrix(DATA.matrices[0]);
}

// Interventions down, what is measured across; a bar under each number.
function labTable([name, { game = name, player, states, interventions }]) {
  const rows = Object.entries(interventions);
  const columns = [...new Set(rows.flatMap(([, row]) => Object.keys(row).filter((name) => filled(row[name]))))];
  const tops = columns.map((name) => Math.max(1, ...rows.map(([, row]) => row[name] ?? 0)));
  const bar = (share) => el("span", { class: "bar", "aria-hidden": "true" }, el("i", { style: `width:${100 * Math.max(0, share)}%` }));
  const cell = (value, i) => (filled(value) ? el("td", { class: "number" }, num(value, 3), bar(value / tops[i])) : el("td"));
  return tableOf([game, player, states && `${num(states)} states`].filter(Boolean).join(", "), "bars",
    [el("th", { scope: "col" }, "intervention"), ...columns.map((name) => el("th", { scope: "col", class: "number" }, label(name)))],
    rows.map(([name, row]) => el("tr", {}, el("th", { scope: "row" }, name), columns.map((column, i) => cell(row[column], i)))));
}

const labs = DATA.lab.filter(([, its]) => its && its.interventions);
if (labs.length) {
  showPart("lab");
  fill("interventions", labs, ([, its]) => its.game, labTable);
}
