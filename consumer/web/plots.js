// The plots of /history: axes with units, gaps where a value is unknown, a cursor for mouse and keyboard, a table.

// A short number for an axis: 1,200,000 -> 1.2M, 9,000,000,000 -> 9B.
const short = x => x.toLocaleString("en", { maximumSignificantDigits: 3, notation: x >= 1e4 ? "compact" : "standard" });

const RATE = { tick: short, show: x => rate(x) + "/s" };
const COUNT = { tick: short, show: x => n(Math.round(x)) };
const SHARE = { tick: x => x * 100 + NBSP + "%", show: x => share(x, 1), marks: [0, .25, .5, .75, 1] };
const CALL = { tick: took, show: took };
const TIME = { tick: age, show: age, log: true };
// Curves: [series of /history, name, tone]. `none` says why there is nothing where values are missing.
const PLOTS = [
  {
    id: "rate", title: "Throughput", of: "records per second", scale: RATE,
    curves: [["settled_per_second", "settled", "calm"], ["delivered_per_second", "delivered", "good"],
      ["dead_lettered_per_second", "dead letters", "bad"]],
  },
  { id: "lag", title: "Lag", of: "unsettled records (maximum per interval)", scale: COUNT, curves: [["lag", "lag", "open"]] },
  {
    id: "within", title: "Delivered within one hour", of: "share of the events delivered", scale: SHARE,
    curves: [["within_hour", "within one hour", "good"]], none: "Nothing was delivered",
  },
  {
    id: "calls", title: "Latency of calls", of: "from the call to Pinterest's answer", scale: CALL,
    curves: [["call_p50", "half within", "good"], ["call_p95", "95 % within", "warn"]], none: "No call was answered",
  },
  {
    id: "behind", title: "Lag in time", of: "age of the oldest unsettled record, logarithmic", scale: TIME,
    rule: HOUR, curves: [["lag_seconds", "oldest record", "open"]],
  },
  {
    id: "age", title: "Event age at delivery", of: "from the event's time to its delivery, logarithmic", scale: TIME, rule: HOUR,
    curves: [["age_p50", "half within", "good"], ["age_p95", "95 % within", "warn"], ["age_p99", "99 % within", "bad"]],
    none: "Nothing was delivered",
  },
  {
    id: "duplicates", title: "Duplicates suppressed", of: "per second", scale: RATE,
    curves: [["duplicates_per_second", "duplicates", "calm"]],
  },
];
const SPANS = { 900: "last 15 minutes", 3600: "last hour", 21600: "last 6 hours", 86400: "last day" };
const SHORTEST = 300;
const STYLE = ["curve", "curve.second", "curve.third"];
const EDGE = { left: 52, right: 12, top: 12, bottom: 24 };
const TABLE_ROWS = 12;
let past = null;
let span = HOUR;
// The time at the crosshair, in all plots
let cursor = null;

// The points of the period: every ten seconds for up to an hour, every two minutes for more.
const step = () => past?.steps[span > HOUR ? 1 : 0];
// The window of /status that is nearest to the period.
const windowOf = () => span > HOUR ? "day" : "hour";

// `later`, after what this tab has of an earlier process, whose history ended with it.
function joined(earlier, later) {
  later.starts = [...new Set([...earlier?.starts || [], shown?.process?.started])].filter(Boolean);
  later.steps.forEach(({ seconds, series }, i) => {
    const old = earlier?.steps[i]?.series, first = series.at[0] ?? Infinity, end = Math.min(first, Date.now() / 1000);
    const kept = (old?.at || []).flatMap((t, at) => t < first - seconds / 2 && t > end - (i ? 24 : 1) * HOUR ? [at] : []);
    for (const name in series) series[name] = [...kept.map(at => old[name]?.[at] ?? null), ...series[name]];
  });
  return later;
}

// About four round steps from 0 to `top`.
function ticks(top, whole) {
  const rough = (top || 1) / 4, power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 2.5, 5, 10].map(x => x * power).find(x => x >= rough * .999);
  if (whole) step = Math.max(1, Math.ceil(step));
  return Array.from({ length: Math.max(1, Math.ceil((top || 1) / step - 1e-9)) + 1 }, (_, i) => i * step);
}

const TIMES = [1, 10, 60, 600, HOUR, 6 * HOUR, 24 * HOUR, 7 * 24 * HOUR];

// Start and end of the time axis: the chosen period, or the time since the first point if that is shorter.
function reach(at) {
  const to = at[at.length - 1];
  return [Math.max(to - span, Math.min(at[0], to - SHORTEST)), to];
}

// The height of a plot: four of them and the rest of the overview fit two screens, or four of a phone.
const tall = () => innerWidth < 577 ? 112 : 165;

function axis(plot, values) {
  const high = highest(values.flat()) || 0, room = tall() - EDGE.top - EDGE.bottom;
  if (!plot.scale.log) {
    const marks = plot.scale.marks || ticks(high, plot.scale === COUNT), top = marks[marks.length - 1];
    return { marks, y: v => px(EDGE.top + room * (1 - v / top)) };
  }
  const top = Math.max(high, 2 * HOUR) * 1.3, marks = TIMES.filter(x => x <= top);
  return { marks, y: v => px(EDGE.top + room * (1 - Math.log(Math.max(v, 1)) / Math.log(top))) };
}

// Marks of the time axis, at round minutes or hours of local time.
function times(from, to, width) {
  const fits = Math.max(2, Math.floor(width / 80));
  const step = [30, 60, 120, 300, 600, 900, 1200, 1800, HOUR, 2 * HOUR, 4 * HOUR, 6 * HOUR, 12 * HOUR].find(s => (to - from) / s <= fits) || 12 * HOUR;
  const shift = new Date(to * 1000).getTimezoneOffset() * 60;
  const first = Math.ceil((from - shift) / step) * step + shift;
  return Array.from({ length: Math.floor((to - first) / step) + 1 }, (_, i) => first + i * step);
}

// One curve, interrupted at gaps; a point between two gaps is a dot.
function curve(at, values, x, y, apart, style) {
  const pieces = [];
  let last = null;
  values.forEach((value, i) => {
    if (value == null) { last = null; return }
    if (last === null || at[i] - last > apart) pieces.push([]);
    pieces[pieces.length - 1].push([x(at[i]), y(value)]);
    last = at[i];
  });
  return [
    h("path." + style, { d: pieces.filter(one => one.length > 1).map(one => "M" + one.map(point => point.join(" ")).join("L")).join("") }),
    pieces.filter(one => one.length === 1).map(([[a, b]]) => h("circle.mark", { cx: a, cy: b, r: 2 })),
  ];
}

// The times without figures, as [from, to]: between points far apart, and where counts say nothing.
function gaps(at, apart) {
  const { at: all, settled_per_second: settled } = step().series, known = all.filter((t, i) => t >= at[0] && settled[i] != null);
  return known.slice(1).map((t, i) => [known[i], t]).filter(([from, to]) => to - from > apart);
}

// The text to show instead of a plot.
function nothing(plot) {
  if (!past) return "No history yet.";
  if (step()?.series.at.length) return `${plot.none || "Unknown"} in the ${SPANS[span]}.`;
  return `No points yet: the first ones come within ${span > HOUR ? "a few minutes" : "half a minute"}.`;
}

// The points of the period: their times, and the values of each curve.
function pointsOf(plot) {
  const { at = [], ...series } = step()?.series || {}, first = at.findIndex(t => t >= at[at.length - 1] - span);
  return [at.slice(first), plot.curves.map(([name]) => (series[name] || []).slice(first))];
}

function figure(plot, width) {
  const head = h("figcaption", h("h3", plot.title), h("span.soft", plot.of));
  const [at, values] = pointsOf(plot);
  if (!values.flat().some(v => v != null)) return [head, h("p.none", nothing(plot))];
  const [from, to] = reach(at), right = width - EDGE.right, height = tall(), bottom = height - EDGE.bottom;
  const x = t => px(EDGE.left + (right - EDGE.left) * (t - from) / (to - from));
  const { marks, y } = axis(plot, values), apart = step().seconds * 1.6;
  const chosen = cursor == null ? null : nearest(at, cursor), index = chosen ?? at.length - 1;
  const read = values.map(list => list[chosen ?? list.findLastIndex(v => v != null)]);
  const line = (cls, d) => h("path." + cls, { d });
  const curves = each => plot.curves.map(([, name, tone], c) => each(values[c], tone, STYLE[c], name, read[c]));
  return [
    head,
    h("ul.keys", curves((_, tone, style, name, v) => h("li." + tone,
      h("svg", { "aria-hidden": "true", viewBox: "0 0 22 10" }, line(style, "M1 5H21")),
      name + " ", h("b", v == null ? NONE : plot.scale.show(v)))),
    h("li.soft", chosen == null ? "latest" : "at " + clock(at[chosen]))),
    h("svg.canvas", {
      viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "slider",
      "aria-label": `${plot.title}, ${plot.of}, over the ${SPANS[span]}; arrow keys move through time`,
      "aria-readonly": "true", "aria-valuemin": 0, "aria-valuemax": at.length - 1, "aria-valuenow": index,
      "aria-valuetext": `${clock(at[index])}: ${curves((_, tone, style, name, v) => `${name} ${v == null ? "unknown" : plot.scale.show(v)}`).join(", ")}`,
    },
    gaps(at, apart).map(([a, b]) => line("gap", `M${x(a)} ${EDGE.top}H${x(b)}V${bottom}H${x(a)}Z`)),
    marks.map(v => [
      line(v ? "grid" : "axis", `M${EDGE.left} ${y(v)}H${right}`),
      h("text", { x: EDGE.left - 6, y: y(v) + 4, "text-anchor": "end" }, plot.scale.tick(v)),
    ]),
    times(from, to, width).map(t => h("text", { x: x(t), y: height - 6, "text-anchor": x(t) > width - 30 ? "end" : "middle" }, clock(t, false))),
    line("axis", `M${EDGE.left} ${bottom}H${right}`),
    plot.rule && [line("rule", `M${EDGE.left} ${y(plot.rule)}H${right}`), h("text.rule-text", { x: EDGE.left + 4, y: y(plot.rule) - 4 }, "one-hour rule")],
    past.starts.filter(t => t > from && t < to).map(t => [line("start", `M${x(t)} ${EDGE.top}V${bottom}`),
      h("text", { x: x(t) + (x(t) > right - 60 ? -4 : 4), y: EDGE.top + 10, "text-anchor": x(t) > right - 60 ? "end" : "start" }, "started")]),
    curves((list, tone, style) => h("g." + tone, curve(at, list, x, y, apart, style))),
    chosen != null && [line("cursor", `M${x(at[chosen])} ${EDGE.top}V${bottom}`),
      curves((list, tone) => list[chosen] != null && h("g." + tone, h("circle.mark", { cx: x(at[chosen]), cy: y(list[chosen]), r: 3.5 })))]),
    h("details", h("summary", "as a table"),
      h("div.wide", { role: "region", tabindex: 0, "aria-label": `${plot.title}, as a table` }, h("table", { role: "table" }, numbers(plot, at, values)))),
  ];
}

// The plot as a table: at most TABLE_ROWS evenly spaced points, the latest first.
function numbers(plot, at, values) {
  const every = Math.max(1, Math.ceil(at.length / TABLE_ROWS));
  const picked = at.map((_, i) => i).filter(i => (at.length - 1 - i) % every === 0).reverse();
  return rows([["time", "left"], ...plot.curves.map(([, name]) => [name])],
    picked.map(i => [clock(at[i]), ...values.map(list => list[i] == null ? "unknown" : plot.scale.show(list[i]))]));
}

const nearest = (at, time) => at.reduce((best, t, i) => Math.abs(t - time) < Math.abs(at[best] - time) ? i : best, 0);

// Draw the plots of the view that is shown.
function draw() {
  for (const node of document.querySelectorAll(".plot")) {
    // Plots are drawn in pixels, so that text is not scaled.
    const width = node.clientWidth - 2 * parseFloat(getComputedStyle(node).paddingLeft);
    if (width > 0) put(node, figure(PLOTS.find(plot => plot.id === node.dataset.plot), Math.max(240, Math.round(width))));
  }
}

function move(time) {
  cursor = time;
  draw();
}

function watchPlots() {
  const on = (name, act) => document.addEventListener(name, event => {
    const target = event.target.closest?.(".canvas");
    if (target) act(event, target, pointsOf(PLOTS[0])[0]);
  });
  on("pointermove", (event, target, at) => {
    const box = target.getBoundingClientRect(), [from, to] = reach(at);
    const part = (event.clientX - box.left - EDGE.left) / (box.width - EDGE.left - EDGE.right);
    move(from + (to - from) * Math.min(1, Math.max(0, part)));
  });
  on("keydown", (event, target, at) => {
    const last = at.length - 1, index = cursor == null ? last : nearest(at, cursor);
    const next = {
      ArrowLeft: index - 1, ArrowDown: index - 1, ArrowRight: index + 1, ArrowUp: index + 1,
      PageDown: index - 30, PageUp: index + 30, Home: 0, End: last,
    }[event.key];
    if (event.key === "Escape") return move(null);
    if (next === undefined) return;
    event.preventDefault();
    move(at[Math.min(last, Math.max(0, next))]);
  });
  for (const leaving of ["pointerout", "focusout"]) on(leaving, () => move(null));
  new ResizeObserver(draw).observe($("main"));
}
