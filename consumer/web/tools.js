"use strict";
// Formatting of numbers and times, and writing to the page: as text, never as markup, and only where something changed.

const NBSP = "\u00a0";
const NONE = "–";
const HOUR = 3600;

const $ = id => document.getElementById(id);
const n = x => x == null ? NONE : x.toLocaleString("en");
// A count with its noun. A line may break between a long number and its noun, never inside the number.
const many = (count, what) => n(count) + (n(count).length > 9 ? " " : NBSP) + what + (count === 1 ? "" : "s");
// The CSS classes of a large figure: the longer it is, the smaller its font, to stay on one line.
const big = (figure, cls) => ["big", cls, ["", "long", "longer", "longest"][[9, 13, 17].filter(limit => String(figure).length > limit).length]]
  .filter(Boolean).join(" ");
const sum = list => list.reduce((all, one) => all + one, 0);

// The largest value that is not null; null if there is none.
const highest = list => list.reduce((top, x) => x == null ? top : top == null ? x : Math.max(top, x), null);

// A share in percent, rounded down, so that 100 % means all and 0 % means none (1e-9 absorbs floating-point error).
function share(part, whole, digits = 2) {
  if (!whole) return NONE;
  if (part === whole) return "100" + NBSP + "%";
  const scale = 10 ** digits;
  const down = Math.floor(part / whole * 100 * scale + 1e-9) / scale;
  if (part > 0 && down === 0) return `<${NBSP}${1 / scale}${NBSP}%`;
  return Math.min(down, 100 - 1 / scale).toFixed(part ? digits : 0) + NBSP + "%";
}

// Seconds as text with a unit.
function age(s) {
  if (s == null) return NONE;
  if (s < 10 && s !== Math.round(s)) return s.toFixed(1) + NBSP + "s";
  if (s < 100 && s !== 60) return Math.round(s) + NBSP + "s";
  if (s < 2 * HOUR && s !== HOUR) return Math.round(s / 60) + NBSP + "min";
  if (s < 48 * HOUR) return Math.round(s / HOUR) + NBSP + "h";
  return Math.round(s / 86400) + NBSP + "days";
}

// How long a call took.
const took = s => s == null || s >= 1 ? age(s) : Math.round(s * 1000) + NBSP + "ms";

function bytes(x) {
  if (x == null) return NONE;
  const power = Math.min(Math.floor(Math.log2(Math.max(x, 1)) / 10), 4);
  return (power ? (x / 1024 ** power).toFixed(1) : n(x)) + NBSP + ["bytes", "KiB", "MiB", "GiB", "TiB"][power];
}

// A rate: two decimals below 1, one below 10, none above.
const rate = x => x == null ? NONE : x === 0 ? "0" : x < 10 ? x.toFixed(x < 1 ? 2 : 1) : n(Math.round(x));

// Unix seconds as the local time of day.
const clock = (unix, seconds = true) => new Date(unix * 1000).toLocaleTimeString("en-GB",
  seconds ? { hour: "2-digit", minute: "2-digit", second: "2-digit" } : { hour: "2-digit", minute: "2-digit" });

// The local time of day, with the date unless it is today.
const moment = unix => new Date(unix * 1000).toDateString() === new Date().toDateString() ? clock(unix)
  : new Date(unix * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "short" }) + ", " + clock(unix, false);

// A coordinate in pixels, rounded: an SVG path has thousands of them.
const px = x => Math.round(x * 10) / 10;

// Describe an element for `put`: h("p.soft", "text", …), with its classes; an object before the content has its attributes.
function h(selector, ...children) {
  const [tag, ...classes] = selector.split(".");
  const more = children[0]?.constructor === Object && !children[0].tag ? children.shift() : {};
  return { tag, attributes: { class: classes.join(" ") || null, ...more }, children };
}
const wanted = list => [list].flat(9).filter(one => one != null && one !== false && one !== "");

const SVG = "http://www.w3.org/2000/svg";

// Make `children` the content of the element with this id, or of this element. Equal nodes are kept, and with them focus,
// selection and open details.
function put(at, ...children) {
  const parent = typeof at === "string" ? $(at) : at, list = wanted(children);
  list.forEach((one, index) => {
    const there = parent.childNodes[index], isText = typeof one !== "object";
    let node = there;
    if (!there || (isText ? there.nodeType !== Node.TEXT_NODE : there.localName !== one.tag)) {
      node = isText ? document.createTextNode("") : parent.namespaceURI === SVG || one.tag === "svg"
        ? document.createElementNS(SVG, one.tag) : document.createElement(one.tag);
      if (there) there.replaceWith(node); else parent.append(node);
    }
    if (isText) {
      if (node.data !== String(one)) node.data = one;
      return;
    }
    // The reader opens and closes details: keep `open`.
    for (const { name } of [...node.attributes]) if (one.attributes[name] == null && name !== "open") node.removeAttribute(name);
    for (const [name, value] of Object.entries(one.attributes)) {
      if (value != null && node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
    }
    put(node, ...one.children);
  });
  while (parent.childNodes.length > list.length) parent.lastChild.remove();
}

// Fill the element `id`, and show its card `by-id` only if there is something in it.
function putIf(id, ...children) {
  put(id, ...children);
  $("by-" + id).hidden = !wanted(children).length;
}

// The content of a table. A head is [text, class, name]: the class is that of the whole column, the name stands beside its
// figures on narrow screens (a column with a class has words, which need none). A cell is its content, or a `td`.
function rows(heads, lines) {
  const names = heads.map(([text, cls, name = cls ? null : text.toLowerCase()]) => name);
  const cell = (content, index) => {
    const cls = heads[index][1];
    if (!index) return h("th", { scope: "row", role: "rowheader", class: cls || "left" }, content);
    const { attributes, children } = content?.tag === "td" ? content : h("td", { class: cls }, content);
    return h("td", { role: "cell", "data-name": names[index], ...attributes }, ...children);
  };
  const line = cells => h("tr", { role: "row" }, cells);
  // The roles are set explicitly, because narrow screens lay rows out as blocks, which takes the meaning of a table from them.
  return [
    h("thead", { role: "rowgroup" }, line(heads.map(([text, cls]) => h("th", { scope: "col", role: "columnheader", class: cls }, text)))),
    h("tbody", { role: "rowgroup" }, lines.map(cells => line(cells.map(cell)))),
  ];
}

// A table named by the heading above it; the sentence `none` if it has no lines.
const table = (id, heads, lines, none = "None since the start.", cls = "stack") => lines.length
  ? h("table", { class: cls, role: "table", "aria-labelledby": "h-" + id }, rows(heads, lines)) : none && h("p.soft", none);
const showTable = (id, ...more) => put(id, table(id, ...more));
