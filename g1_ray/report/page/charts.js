// Curves in SVG, drawn for the width there is, and drawn again when it changes.

const HEIGHT = 214;
const EDGE = { right: 14, top: 10, bottom: 38 };
const DASHES = ["", "7 4", "2 4", "10 4 2 4"];

// Round values between two numbers: as few as make `number`, or more where they have to be whole.
function ticks(low, high, number, whole = false) {
  const power = 10 ** Math.floor(Math.log10(high - low || 1));
  const steps = [5, 2, 1, 0.5, 0.2, 0.1].map((times) => times * power).filter((step) => !whole || step >= 1);
  const count = (step) => Math.floor(high / step + 1e-9) - Math.ceil(low / step - 1e-9) + 1;
  const step = steps.find((each) => count(each) >= number) ?? steps.at(-1) ?? 1;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: count(step) }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

// 12K, 2500, 0.25, 3e-4: short, as there is little room.
function tickText(value) {
  const size = Math.abs(value);
  if (size >= 10000) return value.toLocaleString("en", { notation: "compact" }).replace("-", "−");
  const text = size && size < 0.001 ? value.toExponential(1).replace(".0", "") : String(value);
  return text.replaceAll("-", "−");
}

function range(chart) {
  if (chart.share) return [0, 1];
  const values = chart.lines.flatMap((line) => line.raw).filter((value) => value !== null);
  const [low, high] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  const room = 0.05 * (high - low || Math.abs(high) || 1);
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

// The path of a line through the values that are there.
function path(steps, values, x, y) {
  const points = values.map((value, i) => (value === null ? "" : `${x(steps[i]).toFixed(1)} ${y(value).toFixed(1)}`)).filter(Boolean);
  return points.length ? `M${points.join("L")}` : "";
}

// Marks where a line has a value, if that is now and then.
function marksOf(steps, { smooth, sparse, color }, x, y) {
  const at = sparse ? smooth.flatMap((value, step) => (value === null ? [] : [step])) : [];
  return at.map((step) => el("circle", { class: `mark line-${color % 6}`, r: 3, cx: x(steps[step]), cy: y(smooth[step]) }));
}

// The value of a step, or the last one before it: some things are not measured in every step.
const valueAt = (values, step) => values.slice(0, step + 1).findLast((value) => value !== null) ?? null;

function drawChart(chart, svg, width) {
  const steps = chart.steps;
  const [first, last] = [steps[0], steps[steps.length - 1]];
  const [low, high] = range(chart);
  const marks = ticks(low, high, 3).map((tick) => [tick, tickText(tick)]);
  const left = 14 + 6.5 * Math.max(...marks.map(([, text]) => text.length));
  const [right, bottom] = [width - EDGE.right, HEIGHT - EDGE.bottom];
  const x = (step) => left + ((step - first) / (last - first || 1)) * (right - left);
  const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - EDGE.top);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.replaceChildren(
    ...marks.map(([tick, text]) =>
      el("g", { class: "grid" },
        el("line", { x1: left, x2: right, y1: y(tick), y2: y(tick) }),
        el("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, text))),
    ...ticks(first, last, 3, true).map((tick) =>
      el("g", { class: "axis" },
        el("line", { x1: x(tick), x2: x(tick), y1: bottom, y2: bottom + 4 }),
        el("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, tickText(tick)))),
    el("g", { class: "axis" },
      el("line", { x1: left, x2: right, y1: bottom, y2: bottom }),
      el("text", { x: (left + right) / 2, y: HEIGHT - 5, "text-anchor": "middle" }, "optimizer step")),
    ...chart.lines.flatMap((line) => [
      el("path", { class: `raw line-${line.color % 6}`, d: path(steps, line.raw, x, y) }),
      el("path", { class: `line line-${line.color % 6}`, d: path(steps, line.smooth, x, y), "stroke-dasharray": DASHES[line.color % 4] }),
      ...marksOf(steps, line, x, y),
    ]),
  );
  const rule = el("line", { class: "rule", y1: EDGE.top, y2: bottom, visibility: "hidden" });
  const dots = chart.lines.map(({ color }) => el("circle", { class: `dot line-${color % 6}`, r: 4, visibility: "hidden" }));
  svg.append(rule, ...dots);
  return { x, y, left, rule, dots };
}

function chartFigure(chart) {
  const last = chart.steps.length - 1;
  const svg = el("svg", { tabindex: 0, role: "img", height: HEIGHT });
  const at = el("span", { class: "at" });
  const values = chart.lines.map(() => el("b"));
  const legend = el("ul", { class: "legend" }, chart.lines.map((line, i) =>
    el("li", {},
      el("svg", { width: 30, height: 10, "aria-hidden": "true" },
        el("path", { class: `line line-${line.color % 6}`, d: "M1 5H29", "stroke-dasharray": DASHES[line.color % 4] })),
      `${line.name} `, values[i])));
  const text = el("figcaption", {}, el("h4", {}, chart.title), at);
  const figure = el("figure", {}, text, svg, legend);
  let drawn = null;
  let shown = last;

  // Shows the values of a step: under the pointer, of the keyboard, or the last one.
  function show(index, marked) {
    shown = Math.min(last, Math.max(0, index));
    at.textContent = `step ${num(chart.steps[shown])}`;
    chart.lines.forEach((line, i) => {
      const [smooth, raw] = [line.smooth, line.raw].map((its) => valueAt(its, shown));
      values[i].textContent = smooth === null ? "–" : num(smooth) + (raw === smooth ? "" : ` (${num(raw)})`);
      drawn.dots[i].setAttribute("visibility", marked && smooth !== null ? "visible" : "hidden");
      drawn.dots[i].setAttribute("cx", drawn.x(chart.steps[shown]));
      drawn.dots[i].setAttribute("cy", smooth === null ? 0 : drawn.y(smooth));
    });
    drawn.rule.setAttribute("visibility", marked ? "visible" : "hidden");
    for (const end of ["x1", "x2"]) drawn.rule.setAttribute(end, drawn.x(chart.steps[shown]));
    svg.setAttribute("aria-label", `${chart.title}, step ${chart.steps[shown]}: ` +
      chart.lines.map((line) => `${line.name} ${num(valueAt(line.smooth, shown)) || "nothing"}`).join(", "));
  }

  svg.addEventListener("pointermove", (event) => {
    const step = chart.steps[0] + ((event.offsetX - drawn.left) / (drawn.x(chart.steps[last]) - drawn.left || 1)) *
      (chart.steps[last] - chart.steps[0]);
    let near = 0;
    chart.steps.forEach((each, i) => { if (Math.abs(each - step) < Math.abs(chart.steps[near] - step)) near = i; });
    show(near, true);
  });
  svg.addEventListener("pointerleave", () => show(last, document.activeElement === svg));
  svg.addEventListener("focus", () => show(shown, true));
  svg.addEventListener("blur", () => show(last, false));
  svg.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: shown - 1, ArrowRight: shown + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(to, true);
  });
  let width = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now === width || !now) return;
    width = now;
    drawn = drawChart(chart, svg, width);
    show(shown, document.activeElement === svg);
  }).observe(svg);
  return figure;
}

// A chart with the steps of all its runs, its lines' values for each of them, and a colour for each of `names`.
function withSteps(chart, names) {
  const runs = [...new Set(chart.lines.map((line) => line.run))];
  const steps = [...new Set(runs.flatMap((run) => DATA.steps[run]))].sort((a, b) => a - b);
  const lines = chart.lines.map(({ name, run, raw, smooth }) => {
    const at = new Map(DATA.steps[run].map((step, i) => [step, i]));
    const valuesOf = (values) => steps.map((step) => values[at.get(step)] ?? null);
    const known = raw.filter((value) => value !== null).length;
    const sparse = known === 1 || 2 * known < raw.length;
    return { name, raw: valuesOf(raw), smooth: valuesOf(smooth), sparse, color: names.indexOf(name) };
  });
  return { ...chart, steps, lines };
}

if (DATA.charts.length) {
  showPart("curves");
  for (const group of new Set(DATA.charts.map((chart) => chart.group))) {
    const its = DATA.charts.filter((chart) => chart.group === group);
    const names = [...new Set(its.flatMap((chart) => chart.lines.map((line) => line.name)))];
    $("charts").append(el("section", {}, el("h3", {}, group),
      el("div", { class: "charts" }, its.map((chart) => chartFigure(withSteps(chart, names))))));
  }
}
