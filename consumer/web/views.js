// What stands in each view: its cards and plots, made once at the start. Panels fill them.

const card = (id, title, note, ...more) => h("div.card", { id: "by-" + id }, h("h3", { id: "h-" + id }, title), note && h("p.soft", note), more.length ? more : h("div", { id }));
const plot = id => h("figure.plot.card", { "data-plot": id });
const pair = (...cards) => h("div.pair", cards);
// What may be wider than the page, and then scrolls.
const wide = (id, ...content) => h("div.wide", { id: content.length ? null : id, role: "region", "aria-labelledby": "h-" + id, tabindex: 0 }, content);
const TABLE = id => h("table", { id, class: id, role: "table", "aria-labelledby": "h-" + id });

const VIEWS = {
  overview: ["Overview",
    h("dl", { id: "tiles" }, TILES.map(name => h("div", h("dt", name), h("dd.big", NONE)))),
    card("todo", "What to look at next"),
    card("ledger", "Is anything lost? How every record ended",
      "Every record that is read ends in exactly one of these ways. Until then it is open and its offset is not committed, so after a crash it is read again.",
      h("div.flow", h("p.read", { id: "read" }), h("svg", { id: "bands", viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" }), TABLE("ledger")),
      h("p.soft", { id: "sum" }), h("p", { id: "missing" }), h("p", { id: "members" })),
    pair(plot("rate"), plot("lag"), plot("within"), plot("calls"))],
  delivery: ["Delivery",
    pair(card("destination", "Destination: Pinterest"),
      card("calls", "Calls to Pinterest", "", h("div", { id: "latency" }), h("div", { id: "calls" }), h("p.soft.small", { id: "answers" })),
      plot("calls"), plot("behind")),
    card("oldest", "Open events, and what they wait for"),
    card("retries", "Retries and warnings", "", h("div", { id: "retries" }), h("p.soft", { id: "keys" })),
    card("workers", "Workers", "Each worker is a process and a member of the group. All other figures on this page are those of all workers together."),
    card("partitions", "Partitions of this member",
      "A topic is split into partitions; each is assigned to one member of the group. Lag is the number of records after the committed offset: those that a restart would read.",
      wide("partitions"), h("button", { type: "button", id: "more", hidden: "" })),
    card("group", "The whole group, as Kafka sees it")],
  quality: ["Data quality",
    card("fixes", "What to fix first"),
    pair(card("freshness", "Freshness: the one-hour rule",
      "Pinterest asks for every event within one hour of the time it happened. It counts web and app events that arrive later as offline events. The goal is 99\u00a0%."),
    plot("age")),
    card("value", "Delivered value",
      "What delivered events are worth, in whole units. The latest ones, nine at most of each name and currency, are not in it yet, so that no figure shows what a single order is worth."),
    card("coverage", "Parameter coverage by event name",
      "The share of delivered events that carried each recommended parameter. Pinterest's resilience and event-quality ratings look at this: the more it knows of an event, the more often it can match it to a person and an ad. Framed: below our goal. Blank: it does not apply to such events.",
      h("p", { id: "coverage-note" }), wide("coverage", TABLE("coverage"))),
    card("sees", "What Pinterest sees",
      "Its event quality score of a day: in how many events it found each component. After the slash: how many were delivered with it in the last day.", wide("sees")),
    pair(card("duplicates", "Duplicates", "An event that comes twice is sent once: the keys of delivered events are remembered."), plot("duplicates")),
    card("warnings", "Warnings about fields and events")],
  refusals: ["Refusals",
    card("reasons", "Dead letters by reason",
      ["A record that cannot be sent is stored whole in its dead-letter topic. Correct the cause, then run ", h("code", "pinstream dead-letters redrive"), " with the settings of this process; ", h("code", "--dry-run"), " shows first what it would do."]),
    card("sections", "Records by section"), card("latest", "Latest dead letters"), card("notes", "Error messages and filtered records")],
};

put("period", h("legend", "Period:"), Object.entries({ 900: "15 min", 3600: "1 h", 21600: "6 h", 86400: "24 h" }).map(([value, name]) =>
  h("label", h("input", { type: "radio", name: "span", value, checked: value == span ? "" : null }), " " + name)));
for (const [id, [title, ...content]] of Object.entries(VIEWS)) {
  put(id, h("h2" + (id === "overview" ? ".unseen" : ""), { id: "h-" + id, tabindex: -1 }, title), content);
}
