// The plots of /history: axes with units, gaps where a value is unknown, a cursor for mouse and keyboard, a table.

/** A short number for an axis: 1,200,000 -> 1.2M, 9,000,000,000 -> 9B. */
const short = x => x.toLocaleString("en", { maximumSignificantDigits: 3, notation: x >= 1e4 ? "compact" : "standard" });

const RATE = { unit: "per second", tick: short, show: x => rate(x) + "/s" };
const COUNT = { unit: "records", tick: short, show: x => n(Math.round(x)) };
const SHARE = { unit: "percent", tick: x => x * 100 + NBSP + "%", show: x => share(x, 1), marks: [0, .25, .5, .75, 1] };
const TIME = { unit: "logarithmic", tick: age, show: x => age(x), log: true };
const PLOTS = [
  {
    id: "rate", title: "Throughput", of: "records per second", scale: RATE,
    curves: [["settled_per_second", "settled", "calm"], ["delivered_per_second", "delivered", "good"],
      ["dead_lettered_per_second", "dead letters", "bad"]],
  },
  { id: "lag", title: "Lag", of: "unsettled records, all partitions (maximum per interval)", scale: COUNT, curves: [["lag", "lag", "open"]] },
  {
    id: "behind", title: "Lag in time", of: "age of the oldest unsettled record, logarithmic", scale: TIME,
    rule: HOUR, curves: [["lag_seconds", "oldest record", "open"]],
  },
  {
    id: "within", title: "Delivered within one hour", of: "share of the events delivered in each interval", scale: SHARE,
    curves: [["within_hour", "within one hour", "good"]], none: "Nothing was delivered",
  },
  {
    id: "age", title: "Event age at delivery", of: "from the event's time to its delivery, logarithmic", scale: TIME, rule: HOUR,
    curves: [["age_p50", "half within", "good"], ["age_p95", "95 % within", "warn"], ["age_p99", "99 % within", "bad"]],
    none: "Nothing was delivered",
  },
  {
    id: "duplicates", title: "Duplicates suppressed", of: "per second", scale: RATE, level: "h4",
    curves: [["duplicates_per_second", "duplicates", "calm"]],
  },
];
const SHORTEST = 300;
const SPAN = { hour: HOUR, day: 24 * HOUR };
const STYLE = ["curve", "curve second", "curve third"];
const EDGE = { left: 52, right: 12, top: 12, bottom: 24 };
const HEIGHT = 190;
const TABLE_ROWS = 12;
const cursors = {};
let past = null;
let span = "hour";

/** About four round steps from 0 to `top`. */
function ticks(top, whole) {
  const rough = (top || 1) / 4, power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 2.5, 5, 10].map(x => x * power).find(x => x >= rough * .999);
  if (whole) step = Math.max(1, Math.ceil(step));
  return Array.from({ length: Math.max(1, Math.ceil((top || 1) / step - 1e-9)) + 1 }, (_, i) => i * step);
}

const TIMES = [1, 10, 60, 600, HOUR, 6 * HOUR, 24 * HOUR, 7 * 24 * HOUR];

/** The points of a period: every ten seconds for the last hour, every two minutes for the last day. */
const stepOf = period => past?.steps[period === "hour" ? 0 : 1];

/** Start and end of the time axis: the chosen period, or the time since the start if that is shorter. */
function reach(at) {
  const to = at[at.length - 1];
  return [Math.max(to - SPAN[span], Math.min(at[0], to - SHORTEST)), to];
}

function axis(plot, values) {
  const high = highest(values.flat()) || 0, room = HEIGHT - EDGE.top - EDGE.bottom;
  if (!plot.scale.log) {
    const marks = plot.scale.marks || ticks(high, plot.scale === COUNT), top = marks[marks.length - 1];
    return { marks, y: v => px(EDGE.top + room * (1 - v / top)) };
  }
  const top = Math.max(high, 2 * HOUR) * 1.3, marks = TIMES.filter(x => x <= top);
  return { marks, y: v => px(EDGE.top + room * (1 - Math.log(Math.max(v, 1)) / Math.log(top))) };
}

/** Marks of the time axis, at round minutes or hours of local time. */
function times(from, to, width) {
  const fits = Math.max(2, Math.floor(width / 80));
  const step = [30, 60, 120, 300, 600, 900, 1200, 1800, HOUR, 2 * HOUR, 4 * HOUR, 6 * HOUR, 12 * HOUR].find(s => (to - from) / s <= fits) || 12 * HOUR;
  const shift = new Date(to * 1000).getTimezoneOffset() * 60;
  const first = Math.ceil((from - shift) / step) * step + shift;
  return Array.from({ length: Math.floor((to - first) / step) + 1 }, (_, i) => first + i * step);
}

/** One curve, interrupted at gaps; a point between two gaps is a dot. */
function curve(at, values, x, y, apart, style) {
  const pieces = [];
  let last = null;
  values.forEach((value, i) => {
    if (value == null) { last = null; return }
    if (last === null || at[i] - last > apart) pieces.push([]);
    pieces[pieces.length - 1].push([x(at[i]), y(value)]);
    last = at[i];
  });
  const points = one => one.map(point => point.join(" ")).join("L");
  return [
    h("path", { class: style, d: pieces.filter(one => one.length > 1).map(one => "M" + points(one)).join("") }),
    pieces.filter(one => one.length === 1).map(([[a, b]]) => h("circle", { class: "mark", cx: a, cy: b, r: 2 })),
  ];
}

/** The text to show instead of a plot. */
function nothing(plot, step) {
  if (!past) return "No history yet.";
  if (step && step.series.at.length) return `${plot.none || "Unknown"} in the last ${span}.`;
  return `No points yet: the first ones come within ${span === "hour" ? "half a minute" : "a few minutes"}.`;
}

function figure(plot, width) {
  const head = h("figcaption", null, h(plot.level || "h3", { id: `title-${plot.id}` }, plot.title), h("span", "soft", plot.of));
  const step = stepOf(span), at = step ? step.series.at : [];
  const values = plot.curves.map(([name]) => step && step.series[name] || []);
  if (!at.length || !values.some(list => list.some(v => v != null))) {
    return [head, h("p", "none", nothing(plot, step))];
  }
  const [from, to] = reach(at);
  const x = t => px(EDGE.left + (width - EDGE.left - EDGE.right) * (t - from) / (to - from));
  const { marks, y } = axis(plot, values), bottom = HEIGHT - EDGE.bottom;
  const chosen = cursors[plot.id] == null ? null : nearest(at, cursors[plot.id]);
  const read = plot.curves.map(([, name], c) => [name, plot.scale, values[c][chosen ?? values[c].findLastIndex(v => v != null)]]);
  const shown = read.map(([name, scale, v]) => `${name} ${v == null ? "unknown" : scale.show(v)}`).join(", ");
  return [
    head,
    h("ul", "keys", plot.curves.map(([, name, tone], c) => h("li", tone,
      h("svg", { "aria-hidden": "true", viewBox: "0 0 22 10" }, h("path", { class: STYLE[c], d: "M1 5H21" })),
      name + " ", h("b", null, read[c][2] == null ? NONE : plot.scale.show(read[c][2])))),
      h("li", "soft", chosen == null ? "latest" : "at " + clock(at[chosen]))),
    h("svg", {
      class: "canvas", viewBox: `0 0 ${width} ${HEIGHT}`, "data-plot": plot.id, tabindex: 0, role: "slider",
      "aria-label": `${plot.title}, ${plot.of}, over the last ${span}; arrow keys move through time`,
      "aria-readonly": "true", "aria-valuemin": 0, "aria-valuemax": at.length - 1, "aria-valuenow": chosen ?? at.length - 1,
      "aria-valuetext": `${clock(at[chosen ?? at.length - 1])}: ${shown}`,
    },
    marks.map(v => [
      h("path", { class: v ? "grid" : "axis", d: `M${EDGE.left} ${y(v)}H${width - EDGE.right}` }),
      h("text", { x: EDGE.left - 6, y: y(v) + 4, "text-anchor": "end" }, plot.scale.tick(v)),
    ]),
    times(from, to, width).map(t => h("text", { x: x(t), y: HEIGHT - 6, "text-anchor": x(t) > width - 30 ? "end" : "middle" }, clock(t, false))),
    h("path", { class: "axis", d: `M${EDGE.left} ${bottom}H${width - EDGE.right}` }),
    plot.rule && [
      h("path", { class: "rule", d: `M${EDGE.left} ${y(plot.rule)}H${width - EDGE.right}` }),
      h("text", { class: "rule-text", x: EDGE.left + 4, y: y(plot.rule) - 4 }, "one-hour rule"),
    ],
    plot.curves.map(([, , tone], c) => h("g", tone, curve(at, values[c], x, y, step.seconds * 1.6, STYLE[c]))),
    chosen != null && [
      h("path", { class: "cursor", d: `M${x(at[chosen])} ${EDGE.top}V${bottom}` }),
      plot.curves.map(([, , tone], c) => values[c][chosen] == null ? null
        : h("g", tone, h("circle", { class: "mark", cx: x(at[chosen]), cy: y(values[c][chosen]), r: 3.5 }))),
    ]),
    h("details", { "data-plot": plot.id }, h("summary", null, "as a table"),
      h("div", { class: "wide", role: "region", tabindex: 0, "aria-label": `${plot.title}, as a table` }, h("table", { role: "table" }, numbers(plot, at, values)))),
  ];
}

/** The plot as a table: at most TABLE_ROWS evenly spaced points, the latest first. */
function numbers(plot, at, values) {
  const every = Math.max(1, Math.ceil(at.length / TABLE_ROWS));
  const picked = at.map((_, i) => i).filter(i => (at.length - 1 - i) % every === 0).reverse();
  return rows([["time", "left"], ...plot.curves.map(([, name]) => [name])],
    picked.map(i => [clock(at[i]), ...values.map(list => list[i] == null ? "unknown" : plot.scale.show(list[i]))]));
}

const nearest = (at, time) => at.reduce((best, t, i) => Math.abs(t - time) < Math.abs(at[best] - time) ? i : best, 0);

function draw() {
  for (const plot of PLOTS) {
    const node = $(`plot-${plot.id}`), style = getComputedStyle(node);
    // The inner width in CSS pixels: plots are drawn in pixels, so that text is not scaled.
    const width = node.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    put(node, figure(plot, Math.max(240, Math.round(width))));
  }
}

function move(target, time) {
  cursors[target.dataset.plot] = time;
  draw();
}

function pointed(event) {
  const target = event.target.closest?.(".canvas"), step = stepOf(span);
  if (!target || !step) return;
  const box = target.getBoundingClientRect(), [from, to] = reach(step.series.at);
  const part = (event.clientX - box.left - EDGE.left) / (box.width - EDGE.left - EDGE.right);
  move(target, from + (to - from) * Math.min(1, Math.max(0, part)));
}

function pressed(event) {
  const target = event.target.closest?.(".canvas"), step = stepOf(span);
  if (!target || !step) return;
  const at = step.series.at, last = at.length - 1, now = cursors[target.dataset.plot];
  const index = now == null ? last : nearest(at, now);
  const next = {
    ArrowLeft: index - 1, ArrowDown: index - 1, ArrowRight: index + 1, ArrowUp: index + 1,
    PageDown: index - 30, PageUp: index + 30, Home: 0, End: last,
  }[event.key];
  if (event.key === "Escape") return move(target, null);
  if (next === undefined) return;
  event.preventDefault();
  move(target, at[Math.min(last, Math.max(0, next))]);
}

function watchPlots() {
  document.addEventListener("pointermove", pointed);
  document.addEventListener("keydown", pressed);
  for (const leaving of ["pointerout", "focusout"]) {
    document.addEventListener(leaving, event => { if (event.target.matches?.(".canvas")) move(event.target, null) });
  }
  new ResizeObserver(draw).observe($("pace"));
}
