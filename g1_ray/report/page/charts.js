// Curves in SVG, drawn for the width there is, and drawn again when it changes.

const HEIGHT = 200;
const MARGIN = { left: 44, right: 10, top: 10, bottom: 24 };
const DASHES = ["", "7 4", "2 4", "10 4 2 4"];

// About `number` round values between two numbers.
function ticks(low, high, number) {
  const rough = (high - low || 1) / number;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((each) => each >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function range(chart) {
  if (chart.share) return [0, 1];
  const values = chart.lines.flatMap((line) => line.raw).filter((value) => value !== null);
  const [low, high] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  const room = 0.05 * (high - low || 1);
  return [low - room, high + room];
}

// The path of a line through the values that are there.
function path(steps, values, x, y) {
  const points = values.map((value, i) => (value === null ? "" : `${x(steps[i]).toFixed(1)} ${y(value).toFixed(1)}`)).filter(Boolean);
  // A single point is a line without length, which round caps make visible.
  return points.length ? `M${points.join("L")}${points.length === 1 ? "h0" : ""}` : "";
}

// The value of a step, or the last one before it: some things are not measured in every step.
const valueAt = (values, step) => values.slice(0, step + 1).findLast((value) => value !== null) ?? null;

function drawChart(chart, svg, width) {
  const steps = chart.steps;
  const [first, last] = [steps[0], steps[steps.length - 1]];
  const [low, high] = range(chart);
  const x = (step) => MARGIN.left + ((step - first) / (last - first || 1)) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => HEIGHT - MARGIN.bottom - ((value - low) / (high - low)) * (HEIGHT - MARGIN.bottom - MARGIN.top);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.replaceChildren(
    ...ticks(low, high, 4).map((tick) =>
      el("g", { class: "grid" },
        el("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }),
        el("text", { x: MARGIN.left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick)))),
    ...ticks(first, last, Math.max(2, width / 90)).map((tick) =>
      el("text", { x: x(tick), y: HEIGHT - 6, "text-anchor": "middle", class: "tick" }, String(tick))),
    ...chart.lines.flatMap((line, i) => [
      el("path", { class: `raw line-${i % 6}`, d: path(steps, line.raw, x, y) }),
      el("path", { class: `line line-${i % 6}`, d: path(steps, line.smooth, x, y), "stroke-dasharray": DASHES[i % 4] }),
    ]),
  );
  const rule = el("line", { class: "rule", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" });
  const dots = chart.lines.map((_, i) => el("circle", { class: `dot line-${i % 6}`, r: 4, visibility: "hidden" }));
  svg.append(rule, ...dots);
  return { x, y, rule, dots };
}

function chartFigure(chart) {
  const last = chart.steps.length - 1;
  const svg = el("svg", { tabindex: 0, role: "img", height: HEIGHT });
  const at = el("span", { class: "at" });
  const values = chart.lines.map(() => el("b"));
  const legend = el("ul", { class: "legend" }, chart.lines.map((line, i) =>
    el("li", {},
      el("svg", { width: 30, height: 10, "aria-hidden": "true" },
        el("path", { class: `line line-${i % 6}`, d: "M1 5H29", "stroke-dasharray": DASHES[i % 4] })),
      `${line.name} `, values[i])));
  const text = el("figcaption", {}, el("h3", {}, chart.title), at);
  const figure = el("figure", {}, text, svg, legend);
  let drawn = null;
  let shown = last;

  // Shows the values of a step: under the pointer, of the keyboard, or the last one.
  function show(index, marked) {
    shown = Math.min(last, Math.max(0, index));
    at.textContent = `step ${num(chart.steps[shown])}`;
    chart.lines.forEach((line, i) => {
      const [smooth, raw] = [line.smooth, line.raw].map((its) => valueAt(its, shown));
      values[i].textContent = smooth === null ? "–" : num(smooth, 3) + (raw === smooth ? "" : ` (${num(raw, 3)})`);
      drawn.dots[i].setAttribute("visibility", marked && smooth !== null ? "visible" : "hidden");
      drawn.dots[i].setAttribute("cx", drawn.x(chart.steps[shown]));
      drawn.dots[i].setAttribute("cy", smooth === null ? 0 : drawn.y(smooth));
    });
    drawn.rule.setAttribute("visibility", marked ? "visible" : "hidden");
    for (const end of ["x1", "x2"]) drawn.rule.setAttribute(end, drawn.x(chart.steps[shown]));
    svg.setAttribute("aria-label", `${chart.title}, step ${chart.steps[shown]}: ` +
      chart.lines.map((line) => `${line.name} ${num(valueAt(line.smooth, shown), 3) || "nothing"}`).join(", "));
  }

  svg.addEventListener("pointermove", (event) => {
    const step = chart.steps[0] + ((event.offsetX - MARGIN.left) / (drawn.x(chart.steps[last]) - MARGIN.left || 1)) *
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

if (DATA.charts.length) {
  showPart("curves");
  $("charts").append(...DATA.charts.map(chartFigure));
}
