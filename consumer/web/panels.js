// Each panel: from the /status document to what it is to show. Pure, but for the two choices a reader has made.

const DISPOSITIONS = [
  ["delivered", "Delivered", "Pinterest said: processed", "good"],
  ["duplicate", "Duplicates", "delivered before, not sent again", "calm"],
  ["filtered", "Filtered", "the mapping says not to send these", "soft"],
  ["dead_lettered", "Dead letters", "cannot be sent; kept, with the reason", "bad"],
  ["open", "Open", "under way; read again after a crash", "open"],
];
const WAITS = {
  schema: "its schema, which the registry has not given yet",
  key_store: "the key store, which knows what was delivered before",
  batch: "its batch to fill",
  quota: "its turn: calls are paced or throttled",
  retry: "the next attempt, after an error",
  platform: "Pinterest's answer: it is being sent",
  halt: "Pinterest to let us in again",
  duplicate: "its double, which is still open",
  dead_letter: "the dead-letter topic to confirm it",
  guard: "what has stopped intake to be corrected",
  clock: "its time, which lies ahead, or to hear from Pinterest what time it is",
  room: "room: as many records are open as may be",
};
const PARAMETERS = {
  em: "E-mail, hashed", ph: "Phone, hashed", external_id: "Customer id, hashed", click_id: "Click id",
  ip_and_agent: "IP address and browser", value: "Value", currency: "Currency", content_ids: "Product ids",
  order_id: "Order id", event_source_url: "Page address", opt_out: "Opt-out flag",
};
const GUARD_CAUSES = {
  schema: "records cannot be read: their schema, or what is in them.",
  mapping: "records cannot become conversion events: the mapping, or the producer.",
  clock: "events lie in the future: a clock, or the unit of their times.",
  expired: "events are older than PINSTREAM_MAX_EVENT_AGE, or their times are in another unit.",
  destination: "Pinterest refuses the events.",
};
const STAGES = {
  decode: "could not be read", convert: "could not become a conversion event", deliver: "refused by Pinterest",
};
const NOTES = [
  ["api_errors", "error message of the API", "bad"],
  ["no_verdicts", "call without a verdict, sent again", "warn"],
  ["failures", "inner trouble, tried again", "warn"],
  ["api_warnings", "warning of the API", "warn"],
  ["convert_warnings", "field left out or corrected", "warn"],
  ["filtered", "filtered by the mapping", "soft"],
];
const SINGLES = [
  ["processed_with_error", "delivered, yet with an error message", "bad"],
  ["unclear_repeats", "event sent again, its outcome unclear, offline or over an hour old: Pinterest may count it twice", "warn"],
  ["batches_bisected", "batch halved to find a refused event", "soft"],
];
const TILES = ["Settled now", "Lag", "Delivered within 1 h", "Dead letters", "Oldest open event"];
/** Seconds of throttling that are worth the headline: shorter waits are the quota at work. */
const WORTH_A_WORD = 3;
/** Shares delivered within one hour: what is aimed at, and what is poor. The alert and the dashboard have the same. */
const TARGET = .99, POOR = .95;
const MANY_PARTITIONS = 16;
const WEEK = 7 * 24 * HOUR;
let allPartitions = false;

const lagOf = s => sum(s.partitions.map(p => p.lag || 0));
const toGo = s => Math.max(lagOf(s), s.ledger.open);
const behind = s => most(s.partitions.map(p => p.lag_seconds));
/** Partitions of which it is not known how much is left in them. */
const unknownOf = s => s.partitions.filter(p => p.lag == null).length;
const place = x => [h("span", { class: "break" }, x.topic), ` [${x.partition}] at offset ${n(x.offset)}`];
const sumsUp = l => l.delivered + l.duplicate + l.filtered + l.dead_lettered + l.open === l.read;
/** Whether the books are right: in all, and (which the figures alone may not show) in each partition. */
const addsUp = s => sumsUp(s.ledger) && s.partitions.every(p => sumsUp(p.ledger)) && !s.ledger_mismatch;

/** How things are: kind, tone, a headline, and what there is to say of it by label. The worst comes first. */
function stateOf(s) {
  const halted = s.destination.accounts.filter(a => a.state === "halted"), wait = behind(s);
  const go = lagOf(s) < s.ledger.open ? many(s.ledger.open, "record") + " open" : many(lagOf(s), "record") + " to go";
  if (!addsUp(s)) return ["mismatch", "bad", "The ledger does not add up.", { "": "Nothing is read or committed any more; what is not committed is read again.", "What to do": "save /status and the log, start pinstream again, and please report this. The figures below contradict each other." }];
  if (s.guard) return guardState(s.guard);
  if (halted.length) return haltState(halted, s.destination.accounts);
  const away = s.destination.accounts.filter(a => a.state === "unreachable");
  if (away.length && !s.stopping) return awayState(away, s.destination.accounts, go);
  if (s.stopping) return ["stopping", "warn", "Stopping.", { "": `What is under way is being finished: ${many(s.ledger.open, "record")} open.` }];
  const torn = s.partitions.filter(p => p.unreadable_at != null);
  if (torn.length) return ["unreadable", "bad", `${many(torn.length, "partition")} cannot be read on: what Kafka sends is damaged.`, { "": `${torn.slice(0, 3).map(p => `${p.topic} [${p.partition}] from offset ${n(p.unreadable_at)}`).join(", ")}${torn.length > 3 ? ", …" : ""}. It is asked for again and again, and nothing behind it is read until then.`, "What to do": "if it lasts, have the brokers' disks checked; the runbook says how to go on behind the batch." }];
  if (s.waiting_for_start) return ["unstarted", "warn", "Waiting for Kafka to say where to start.", { "": `${many(s.waiting_for_start, "partition")} of ours cannot be read until then, ${many(s.partitions.length, "partition")} can. The brokers are asked again and again. Nothing is lost.`, "What to do": "if it lasts, look after the group's coordinator and the partitions' leaders; the log has the reason (kafka_trouble)." }];
  if (!s.partitions.length) return unassignedState(s.joined);
  if (most(s.destination.accounts.map(a => a.throttled_for)) >= WORTH_A_WORD) return ["throttled", "warn", "Waiting until Pinterest takes calls again.", { "": `Nothing is lost, and it goes on by itself: ${go}.${wait >= 60 ? ` The oldest has waited ${age(wait)}.` : ""}` }];
  const stuck = s.stalled_for != null || (toGo(s) && s.seconds_since_progress >= 30);
  const explains = reason => !stuck || (s.oldest_open && s.oldest_open.waits_for === reason);
  const schema = (s.open.schemas || []).find(one => one.seconds >= 30);
  if (schema && explains("schema")) return schemaState(schema, s, stuck);
  if (s.clock && clockOff(s.clock) && explains("clock")) return clockState(s.clock);
  if (stuck) return stuckState(s, go);
  return paceState(wait, toGo(s), go, unknownOf(s));
}

const unassignedState = joined => joined
  ? ["unassigned", "open", "No partitions for this member.", { "": "The group has more members than its topics have partitions, so this one is a spare: it takes over when another one goes." }]
  : ["unassigned", "warn", "No partitions assigned yet.", { "": "The group is still forming, or its brokers cannot be reached: then the log says why (kafka_trouble)." }];

function paceState(wait, left, go, unknown) {
  if (wait >= HOUR) return ["late", "bad", `Too late for the one-hour rule: ${go}.`, {
    "": `The oldest has waited ${age(wait)}. Nothing is lost.`,
    "What to do": "see in the plots whether lag falls by itself. If not, add members (and partitions), and look at what the oldest open event waits for.",
  }];
  if (wait >= 60) return ["behind", "warn", `Behind: ${go}.`, { "": `The oldest has waited ${age(wait)}. Nothing is lost; the plot of the lag says whether it catches up.` }];
  if (left) return ["working", "good", `Keeping up: ${go}.`, { "": wait ? `The oldest has waited ${age(wait)}.` : "" }];
  if (unknown) return ["unknown", "open", "Nothing is waiting, as far as is known.", { "": `It is not known yet how much is left in ${many(unknown, "partition")}.` }];
  return ["idle", "good", "Caught up: nothing is waiting.", {}];
}

const guardState = g => ["guarded", "bad", "Intake has stopped: too many records would be dead letters.", {
  Why: `of the latest ${many(g.of, "record")} of ${g.topic}, ${n(g.rejected)} would be, mostly ${g.mostly}. Nothing is lost.`,
  "The cause": GUARD_CAUSES[g.mostly === "convert expired" ? "expired" : g.cause],
  "What to do": `${g.advice}.`,
}];

const whyOf = accounts => [...new Set(accounts.map(a => a.reason || "no reason given"))].join("; ");

function haltState(halted, accounts) {
  const title = halted.length < accounts.length
    ? `Pinterest refuses ${halted.length} of ${accounts.length} ad accounts; the others go on.`
    : "Halted: Pinterest refuses us.";
  return ["halted", "bad", title, {
    Why: `${whyOf(halted)}. Nothing is lost.`,
    "What to do": "put a valid token in PINTEREST_ACCESS_TOKEN or its file, and see that it may write to this ad account. A new file is tried by itself.",
  }];
}

/** By how much our clock is behind; of the records' word only where Pinterest has not had its own. */
const clockOff = c => Math.abs(c.behind_platform || 0) >= 60 ? c.behind_platform : c.behind_records >= 60 ? c.behind_records : 0;

function clockState(c) {
  const off = clockOff(c), known = c.corrected, waits = c.early ? ` ${many(c.early, "event")} wait${c.early === 1 ? "s" : ""} for it.` : "";
  if (known) return ["clock", "warn", `This machine's clock is ${age(Math.abs(off))} ${off > 0 ? "behind" : "ahead"}.`, {
    "": `So says Pinterest, and events are judged by its clock meanwhile. Nothing is lost.${waits}`,
    "What to do": "set the clock right (NTP); no restart is needed.",
  }];
  return ["clock", "warn", `Records are stamped ${age(off)} ahead of this machine's clock.`, {
    "": (c.behind_platform == null ? "Pinterest has not said yet which of the two is right." : "Pinterest agrees with this machine: the clock of a producer or broker is ahead.") + waits,
    "What to do": "compare the clocks of this machine, the brokers and the producers (NTP).",
  }];
}

function schemaState(one, s, stuck) {
  const others = s.open.schemas.length - 1;
  return ["schema", stuck ? "bad" : "warn", `Waiting for schemas: ${many(s.open.waiting_for_schema, "record")}.`, {
    Why: (one.denied_seconds == null ? `there is no answer yet of what schema ${one.kind} ${one.value} is` : `schema ${one.kind} ${one.value} is not known to the registry (or the folder), as it has said for ${age(one.denied_seconds)}`)
      + `; its records have waited ${age(one.seconds)}.` + (others ? ` So have those of ${many(others, "other schema")}.` : "") + (stuck ? " Nothing else moves either." : " All other records go on."),
    "What to do": one.denied_seconds == null ? "look after the registry; the log has the reason (schema_unavailable)." : "register it, or find out who writes such records. After PINSTREAM_SCHEMA_PATIENCE they become dead letters.",
  }];
}

const awayState = (away, all, go) => ["unreachable", "bad", `Pinterest does not answer${away.length < all.length ? ` for ${away.length} of ${all.length} ad accounts` : ""}.`, {
  Why: `${whyOf(away)}. For ${age(most(away.map(a => a.unreachable_for)))}: ${go}. Nothing is lost, and it goes on by itself.`,
  "What to do": "if somebody else answers, have it let calls through; docs/runbook.md (Pinterest does not answer) says what is kept, and how long.",
}];

function stuckState(s, go) {
  const waits = s.oldest_open && WAITS[s.oldest_open.waits_for];
  return ["stuck", "bad", `Nothing moves: ${go}.`, {
    "": `Nothing was settled for ${age(s.stalled_for ?? s.seconds_since_progress)}.` + (s.key_store_fails ? " The key store does not answer." : waits ? ` The oldest open event waits for ${waits}.` : ""),
    "What to do": s.key_store_fails ? "key_store_trouble in the log says which folder it is, and what to do." : "look at the log's latest warnings; docs/runbook.md says what each means.",
  }];
}

function showState(s) {
  const [kind, tone, title, said] = stateOf(s);
  $("state").className = tone;
  put($("state"), h("h2", null, title), Object.entries(said).map(([label, text]) => text && h("p", null, label && h("b", null, label + ": "), text)));
  document.title = title.replace(/[.:;].*/, "") + " – pinstream";
  return [kind, title.replace(/: \d.*/, ".")];
}

function showTiles(s, pace, trend) {
  const l = s.ledger, f = freshnessOver(s, "hour"), lag = lagOf(s), wait = behind(s), unknown = unknownOf(s);
  const oldest = s.oldest_open;
  if (l.read == null) return put($("tiles"), TILES.map(name => h("div", null, h("dt", null, name), h("dd", { class: "big" }, NONE))));
  const tiles = [
    [[rate(pace), h("span", { class: "unit" }, " records/s")], "", `${n(l.read - l.open)} since the start`],
    [n(lag), wait >= HOUR ? "bad" : wait >= 60 ? "warn" : "", [lagNote(lag, unknown, wait), trend && h("br"), trend]],
    [percent(f.within_one_hour), tone(f), f.delivered ? `of ${many(f.delivered, "event")} delivered ${overWhat(s, "hour")}` : `nothing delivered ${overWhat(s, "hour")}`],
    [n(l.dead_lettered), l.dead_lettered ? "bad" : "", l.dead_lettered ? `${share(l.dead_lettered, l.read)} of what was read` : "none"],
    [oldest ? age(oldest.age_seconds) : "none", "", oldest ? `waits for ${WAITS[oldest.waits_for] || oldest.waits_for}` : "all that was read is settled"],
  ];
  put($("tiles"), tiles.map(([value, cls, note], i) =>
    h("div", null, h("dt", null, TILES[i]), h("dd", { class: ["big", cls, sized(wanted([value])[0])].filter(Boolean).join(" ") }, value), h("dd", null, note))));
}

const lagNote = (lag, unknown, wait) => unknown ? `records, and ${many(unknown, "partition")} not known yet`
  : lag && wait ? `records; the oldest waits ${age(wait)}` : "records still to come";
const tone = f => f.within_one_hour == null ? "" : f.within_one_hour >= TARGET ? "good" : f.within_one_hour >= POOR ? "warn" : "bad";
const percent = x => x == null ? NONE : share(x, 1);

function showLedger(s) {
  const l = s.ledger, adds = addsUp(s);
  put($("read"), h("span", { class: "soft" }, "Read"), h("b", { class: `big ${sized(n(l.read))}`.trim() }, n(l.read)), h("span", { class: "soft small" }, "records"));
  put($("ledger"), h("tbody", { role: "rowgroup" }, DISPOSITIONS.map(([id, name, hint, cls]) => h("tr", { role: "row" },
    h("th", { scope: "row", role: "rowheader", class: cls }, name, h("small", null, hint)),
    h("td", { role: "cell", class: "count" }, n(l[id])), h("td", { role: "cell", class: "share" }, share(l[id], l.read))))));
  put($("bands"), bands(l));
  const parts = DISPOSITIONS.map(([id]) => n(l[id])).join(" + ");
  put($("sum"), h("b", { class: adds ? "good" : "bad" }, adds ? "It adds up: " : "It does not add up: "), `${parts} ${sumsUp(l) ? "=" : "≠"} ${n(l.read)} read.`,
    s.released ? ` ${many(s.released, "record")} more were let go unsettled when partitions moved; their next owner reads them again.` : "",
    s.passed_over ? ` ${many(s.passed_over, "record")} had been settled before and were passed over.` : "");
  const lines = missing(s);
  $("missing").hidden = !lines.length;
  put($("missing"), h("b", { class: "warn" }, lines.join(" ")), " Since the start; the log says more.");
}

/** What the ledger cannot know of: records that were never read, or that are not sent here. */
function missing(s) {
  const { removed_unread: removed, positions_went_back: back } = s.counts, anew = Object.keys(s.counts.topics_made_anew || {});
  return [
    removed && `Kafka removed up to ${many(removed, "record")} before they were read: raise the topic's retention.`,
    anew.length && `${anew.join(", ")} ${anew.length > 1 ? "were" : "was"} deleted and made anew, and read from the beginning: what was unread before is gone.`,
    back && `Reading went back ${many(back, "time")}: a log was cut, or a topic made anew.`,
    s.committed_elsewhere && `${many(s.committed_elsewhere, "partition")} began where the group had committed for another destination: what lies before is not sent to this one.`,
  ].filter(one => one);
}

/** From the block on the left to the middle of each row: as thick as its share, and never too thin to be seen. */
function bands(l) {
  const step = 100 / DISPOSITIONS.length;
  let from = 0;
  return DISPOSITIONS.map(([id, , , cls], i) => {
    if (!l[id] || !l.read) return null;
    const part = l[id] / l.read, left = Math.max(part * 100, .5), right = Math.max(part * step * .84, .5);
    const top = Math.min(from, 100 - left), mid = step * (i + .5);
    from += part * 100;
    const y = [top, mid - right / 2, mid + right / 2, top + left].map(v => v.toFixed(2));
    return h("path", { class: `band ${cls}`, d: `M0 ${y[0]}C50 ${y[0]} 50 ${y[1]} 100 ${y[1]}V${y[2]}C50 ${y[2]} 50 ${y[3]} 0 ${y[3]}Z` });
  });
}

function showDestination(s) {
  const word = { open: ["takes events", "good"], throttled: ["is at its limit of calls", "warn"], unreachable: ["does not answer", "bad"], halted: ["refuses us", "bad"] };
  if (s.guard && s.guard.cause === "destination") word.open = ["refuses events", "bad"];
  put($("destination"), s.destination.accounts.length ? s.destination.accounts.map(a => {
    const [text, cls] = word[a.state] || [a.state, ""];
    return h("div", { class: "account" },
      h("p", null, "Ad account ", h("b", null, a.account), " ", h("b", { class: cls }, text)),
      (a.state === "halted" || a.state === "unreachable") && h("p", { class: "break" }, `Why: ${whyOf([a])}. For ${age(a.halted_for ?? a.unreachable_for)}; tried again ${a.next_probe_in == null ? "by itself" : "in " + age(a.next_probe_in)}.`),
      a.state === "throttled" && h("p", null, `Goes on by itself in ${age(a.throttled_for)}.`),
      h("p", { class: "soft" }, `${many(a.in_flight, "call")} under way, ${many(a.queued, "event")} queued`));
  }) : h("p", { class: "soft" }, "Nothing sent yet."),
  s.process && h("p", { class: "soft small break" }, `${many(s.counts.calls, "call")}, ${many(s.counts.events_sent, "event")}, ${bytes(s.counts.bytes_sent)} sent to ${s.process.sends_to}`));
}

function showOldest(s) {
  const one = s.oldest_open;
  put($("oldest"), one ? [
    h("p", null, "Has waited ", h("b", null, age(one.age_seconds)), "; waits for ", h("b", null, WAITS[one.waits_for] || one.waits_for), "."),
    h("p", { class: "soft small break" }, place(one), one.account ? `, for ad account ${one.account}` : ""),
  ] : h("p", { class: "soft" }, "None: all that was read is settled."));
}

function showPartitions(s) {
  const all = [...s.partitions].sort((a, b) => a.topic < b.topic ? -1 : a.topic > b.topic ? 1 : a.partition - b.partition), some = allPartitions || all.length <= MANY_PARTITIONS ? all : worst(all);
  const heads = [["Partition", "left"], ["Lag, records", null, "lag"], ["Oldest waits", null, "oldest waits"], ["Open", null, "open"], ["Settled", "places", "settled"],
    ["Committed offset", "places"], ["Read up to", "places"], ["End of topic", "places"]];
  put($("partitions"), all.length ? rows(heads, some.map(p => [
    [`${p.topic} [${p.partition}]`, "left break"], n(p.lag), age(p.lag_seconds), n(p.ledger.open), [n(p.ledger.read - p.ledger.open), "places"],
    [n(p.committed), "places"], [n(p.position), "places"], [n(p.end), "places"],
  ])) : h("tbody", null, h("tr", null, h("td", { class: "left soft" }, "None assigned."))));
  $("partitions").className = "stack";
  $("more").hidden = all.length <= MANY_PARTITIONS;
  say("more", allPartitions ? `Show the ${MANY_PARTITIONS} with most lag` : `Show all ${all.length} (these have most lag)`);
}

/** Those with most lag, in their own order, so that rows do not jump. */
function worst(all) {
  const by = [...all].sort((a, b) => (b.lag_seconds || 0) - (a.lag_seconds || 0) || (b.lag || 0) - (a.lag || 0));
  const chosen = new Set(by.slice(0, MANY_PARTITIONS));
  return all.filter(p => chosen.has(p));
}

/** Freshness over the last hour or day; since the start where an older pinstream says no more. */
const freshnessOver = (s, window) => s.freshness[window] || s.freshness;
const overWhat = (s, window) => s.freshness[window] ? `in the last ${window}` : "since the start";

function showFreshness(s) {
  const f = freshnessOver(s, span), all = s.freshness, when = overWhat(s, span);
  const sinceStart = `Since the start: ${percent(all.within_one_hour)} of ${many(all.delivered, "event")} within one hour.`;
  if (!all.delivered) return put($("freshness"), h("p", { class: "soft" }, "Nothing delivered yet."));
  if (!f.delivered) return put($("freshness"), h("p", { class: "soft" }, `Nothing delivered ${when}. ${sinceStart}`));
  const within = x => x == null ? "more than 7 days" : age(x);
  put($("freshness"),
    h("p", null, h("b", { class: `big ${tone(f)}` }, percent(f.within_one_hour)), ` of ${many(f.delivered, "event")} delivered ${when} came within one hour`),
    h("p", null, "Half within ", h("b", null, within(f.age_p50)), ", 95 % within ", h("b", null, within(f.age_p95)),
      ", 99 % within ", h("b", null, within(f.age_p99)), "."),
    ageScale(f),
    h("p", { class: "soft small" }, "Ages are from happening to Pinterest's answer, at most a quarter too high.", f === all ? "" : ` ${sinceStart}`));
}

/** The three ages on one line from a second to a week, and what the rule allows. */
function ageScale(f) {
  const width = Math.max(240, $("freshness").clientWidth), x = s => Math.log(Math.max(Math.min(s ?? Infinity, WEEK), 1)) / Math.log(WEEK) * (width - 20) + 10;
  const marks = [1, 10, 60, 600, HOUR, ...(width > 440 ? [24 * HOUR] : []), WEEK];
  const pins = [["half", f.age_p50], ["95 %", f.age_p95], ["99 %", f.age_p99]].map(([name, s]) => [name, x(s)]);
  return h("svg", { class: "scale", viewBox: `0 0 ${width} 76`, "aria-hidden": "true" },
    h("path", { class: "within", d: `M10 30H${x(HOUR).toFixed(1)}V42H10Z` }),
    h("path", { class: "track", d: `M${x(HOUR).toFixed(1)} 30H${width - 10}V42H${x(HOUR).toFixed(1)}Z` }),
    h("path", { class: "rule", d: `M${x(HOUR).toFixed(1)} 24V48` }),
    marks.map(s => h("text", { x: x(s).toFixed(1), y: 62, "text-anchor": s === 1 ? "start" : s === WEEK ? "end" : "middle" }, age(s))),
    pins.map(([, at]) => h("path", { class: "pin", d: `M${at.toFixed(1)} 22V48` })),
    pinLabels(pins, width).map(([text, at]) => h("text", { class: "pin-text", x: at.toFixed(1), y: 16, "text-anchor": "middle" }, text)));
}

/** What stands above the pins, from the left: those too near to each other for a word each share one. */
function pinLabels(pins, width) {
  const half = text => text.length * 3.6 + 2, labels = [];
  for (const [name, at] of pins) labels.push({ text: name, from: at, to: at });
  const middle = one => Math.min(Math.max((one.from + one.to) / 2, half(one.text)), width - half(one.text));
  for (let i = 1; i < labels.length;) {
    const [one, next] = labels.slice(i - 1, i + 1);
    if (middle(next) - middle(one) > half(one.text) + half(next.text) + 4) { i += 1; continue }
    labels.splice(i - 1, 2, { text: `${one.text}, ${next.text}`, from: one.from, to: next.to });
    i = 1;
  }
  return labels.map(one => [one.text, middle(one)]);
}

function showDuplicates(s) {
  const l = s.ledger, keys = s.key_store;
  put($("duplicates"),
    h("p", null, h("b", { class: `big ${sized(n(l.duplicate))}`.trim() }, n(l.duplicate)), ` suppressed, ${share(l.duplicate, l.read)} of what was read`),
    keys && h("p", { class: "soft" }, `The key store holds ${many(keys.keys, "key")} in ${bytes(keys.bytes)}.`,
      keys.evicted_early ? h("b", { class: "warn" }, ` ${many(keys.evicted_early, "key")} forgotten before their time: it is full. Raise PINSTREAM_KEY_STORE_MAX_BYTES.`) : ""));
}

function showCoverage(s) {
  const seen = s.coverage && s.coverage[span], names = seen ? Object.keys(seen).filter(name => seen[name].sampled) : [];
  if (!names.length) {
    put($("coverage"), null);
    return put($("coverage-note"), `Nothing delivered in the last ${span}.`);
  }
  names.sort((a, b) => seen[b].events - seen[a].events || (a < b ? -1 : 1));
  const sampled = sum(names.map(name => seen[name].sampled)), events = sum(names.map(name => seen[name].events));
  put($("coverage-note"), `Of ${many(events, "event")} delivered in the last ${span} `,
    sampled < events ? `${n(sampled)} were looked at: shares are estimates, the better the more events.` : "all were looked at.");
  const columns = [["all", "All", events, id => sum(names.map(name => covered(seen[name], id) * seen[name].events)) / events],
    ...names.map(name => [name, breakable(name), seen[name].events, id => covered(seen[name], id)])];
  put($("coverage"),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, h("th", { scope: "col", role: "columnheader" }, "Parameter, and Pinterest's advice"),
      columns.map(([, title]) => h("th", { scope: "col", role: "columnheader" }, title)))),
    h("tbody", { role: "rowgroup" }, h("tr", { role: "row" },
      h("th", { scope: "row", role: "rowheader" }, "Events", h("small", null, "How many had this name. In All each name counts as much as it has events.")),
      columns.map(([name, , count]) => h("td", { role: "cell", "data-name": name }, n(count)))), s.coverage.parameters.map(({ id, advice }) => h("tr", { role: "row" },
      h("th", { scope: "row", role: "rowheader" }, PARAMETERS[id] || id, " ", h("code", null, id), h("small", null, advice)),
      columns.map(([name, , , of]) => carried(name, of(id)))))));
}

/** What share of a name's events carried a parameter; an older pinstream says only how many that it looked at did. */
const covered = (one, id) => one.share ? one.share[id] || 0 : (one.carried[id] || 0) / one.sampled;

/** A long name may be broken where its words are. */
const breakable = name => name.split(/(?<=[_.])/).flatMap((part, i) => i ? [h("wbr"), part] : [part]);

const carried = (name, part) =>
  h("td", { role: "cell", class: "c" + (part ? Math.min(5, 1 + Math.floor(part * 5)) : 0), "data-name": name }, share(part, 1, 0));

function showReasons(s) {
  const samples = s.samples && s.samples.rejections || {}, lines = [];
  for (const [stage, codes] of Object.entries(s.counts.rejections)) {
    for (const [code, count] of Object.entries(codes)) lines.push([stage, code, count, (samples[stage] || {})[code]]);
  }
  lines.sort((a, b) => b[2] - a[2]);
  put($("reasons"), lines.length ? h("table", { class: "stack", "aria-labelledby": "h-reasons" }, rows(
    [["Reason", "left"], ["Where", "left"], ["Records", null, "records"], ["The latest of its kind says", "left message"]],
    lines.map(([stage, code, count, sample]) => [[h("code", null, breakable(code)), "left word"], [[stage, ": ", STAGES[stage] || ""], "left"], n(count), [sample || NONE, "left message break"]]),
  )) : h("p", { class: "soft" }, "None since the start."));
}

function showLatest(s) {
  const list = s.latest_dead_letters || [];
  put($("latest"), list.length ? h("table", { class: "stack", "aria-labelledby": "h-latest" }, rows(
    [["When", "left"], ["From", "left"], ["Reason", "left"], ["What it says", "left message"]],
    list.map(one => [[h("time", { datetime: new Date(one.at * 1000).toISOString(), title: new Date(one.at * 1000).toISOString() }, moment(one.at)), "left nowrap"],
      [place(one), "left"], [[one.stage, " ", h("code", null, breakable(one.code))], "left word"], [one.message, "left message break"]]),
  )) : h("p", { class: "soft" }, "None since the start."));
}

function showNotes(s) {
  const samples = s.samples && s.samples.convert_warnings || {}, lines = [];
  for (const [family, what, cls] of NOTES) {
    for (const [name, count] of Object.entries(s.counts[family])) {
      if (family !== "convert_warnings") lines.push([what, cls, [name], count, ""]);
      else for (const [field, times] of Object.entries(count)) lines.push([what, cls, [name, field], times, (samples[name] || {})[field]]);
    }
  }
  if (s.commit_metadata !== "maps") lines.push(["commits go without offset maps, which the brokers refuse", "warn", ["offset.metadata.max.bytes"], 1, s.commit_metadata === "ids" ? "topic ids and destination are committed" : "nothing is committed beside the offsets"]);
  for (const [name, what, cls] of SINGLES) if (s.counts[name]) lines.push([what, cls, [], s.counts[name], ""]);
  put($("notes"), lines.length ? h("table", { class: "stack", "aria-labelledby": "h-notes" }, rows(
    [["Kind", "left"], ["Name", "left"], ["Times", null, "times"], ["The latest of its kind says", "left message"]],
    lines.map(([what, cls, names, count, sample]) => [[what, `left ${cls}`], [names.map((name, i) => [i ? " in " : "", h("code", null, breakable(name))]), "left word"], n(count), [sample || "", "left message break"]]),
  )) : h("p", { class: "soft" }, "None since the start."));
}

function showProcess(s) {
  const p = s.process;
  $("mode").hidden = !(p && p.test_mode);
  if (!p) return;
  put($("route"), `Reads ${p.topics.join(", ")} as group ${p.group}, sends to ${p.sends_to}`);
  put($("process"), `pinstream ${p.version}, running for ${age(Math.max(0, Math.round(Date.now() / 1000 - p.started)))}.`);
}
