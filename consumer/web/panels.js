// The panels: each turns the /status document into elements. They depend on nothing else, except for the reader's two
// choices: the period (`span`) and whether all partitions are shown (`allPartitions`).

const DISPOSITIONS = [
  ["delivered", "Delivered", "Pinterest answered: processed", "good"],
  ["duplicate", "Duplicates", "delivered before; not sent again", "calm"],
  ["filtered", "Filtered", "excluded by the mapping", "soft"],
  ["dead_lettered", "Dead letters", "cannot be sent; stored with the reason", "bad"],
  ["open", "Open", "in progress; read again after a crash", "open"],
];
const WAITS = {
  schema: "its schema, which the registry has not returned yet",
  key_store: "the key store to say whether it was delivered before",
  member: "another member, which has the same event in flight",
  batch: "its batch to fill",
  quota: "the call quota: calls are paced or throttled",
  retry: "the next attempt, after an error",
  platform: "Pinterest's answer to the call it was sent in",
  halt: "Pinterest to accept this account again",
  duplicate: "an open event with the same key",
  dead_letter: "the dead-letter topic to confirm the write",
  guard: "the cause that stopped intake to be corrected",
  clock: "its event time, which is in the future, or Pinterest to confirm the current time",
  room: "room: the limit of open records is reached",
};
const WORKERS = {
  waiting: "waits for the first worker to join", starting: "starting", running: "running", pausing: "ended; will be started again", gone: "ended",
};
const PARAMETERS = {
  em: "E-mail, hashed", ph: "Phone, hashed", external_id: "Customer id, hashed", click_id: "Click id",
  ip_and_agent: "IP address and browser", value: "Value", currency: "Currency", content_ids: "Product ids",
  order_id: "Order id", event_source_url: "Page address", opt_out: "Opt-out flag",
};
const GUARD_CAUSES = {
  schema: "records cannot be decoded: the schema, or the data in them, is wrong.",
  mapping: "records cannot be converted: the mapping, or the data from the producer, is wrong.",
  transform: "the function of PINSTREAM_TRANSFORM raises, or returns what does not fit the schema.",
  clock: "event times are in the future: a clock, or the unit of the times, is wrong.",
  expired: "events are older than PINSTREAM_MAX_EVENT_AGE, or the unit of their times is wrong.",
  destination: "Pinterest refuses the events.",
};
const STAGES = {
  decode: "could not be decoded", convert: "could not be converted", deliver: "refused by Pinterest",
};
const NOTES = [
  ["api_errors", "error message from the API", "bad"],
  ["no_verdicts", "call without a verdict, sent again", "warn"],
  ["failures", "failure outside the API, retried", "warn"],
  ["api_warnings", "warning from the API", "warn"],
  ["convert_warnings", "field omitted or doubtful", "warn"],
  ["filtered", "filtered by the mapping", "soft"],
  ["processed_with_error", "delivered, but with an error message", "bad"],
  ["unclear_repeats", "event sent again after an unknown outcome, offline or over an hour old: Pinterest may count it twice", "warn"],
  ["batches_bisected", "batch bisected to find a refused event", "soft"],
];
/** The notes that count records: their share tells one bad record from a producer that writes them all so. */
const OF_RECORDS = new Set(["convert_warnings", "filtered"]);
const TILES = ["Settled per second", "Lag", "Delivered within 1 h", "Dead letters", "Oldest open event"];
/** Seconds of throttling from which the headline says so; shorter waits are the normal pacing of the quota. */
const THROTTLE_SHOWN = 3;
/** Seconds without a report from which the headline names a worker; its row in the table does so after one second. */
const STILL_SHOWN = 5;
/** Shares delivered within one hour: the goal, and the bound below which it is bad, as in alert and dashboard. */
const TARGET = .99, POOR = .95;
const MANY_PARTITIONS = 16;
const WEEK = 7 * 24 * HOUR, ENDS_SOON = 2 * WEEK;
let allPartitions = false;

const lagOf = s => sum(s.partitions.map(p => p.lag || 0));
const toGo = s => Math.max(lagOf(s), s.ledger.open);
const behind = s => highest(s.partitions.map(p => p.lag_seconds));
/** The number of partitions whose lag is not known yet. */
const unknownOf = s => s.partitions.filter(p => p.lag == null).length;
/** Whether the sum of the lags says anything: not before the group has assigned partitions, or while no broker answers. */
const lagKnown = s => !s.brokers_silent && s.joined && !unknownOf(s);
const UNKNOWN = "unknown";
const place = x => [h("span", "break", x.topic), ` [${x.partition}] at offset ${n(x.offset)}`];
const sumsUp = l => l.delivered + l.duplicate + l.filtered + l.dead_lettered + l.open === l.read;
/** Whether the ledger adds up: in total, in each partition, and by the engine's own check. */
const addsUp = s => sumsUp(s.ledger) && s.partitions.every(p => sumsUp(p.ledger)) && !s.ledger_mismatch;

/** The state as [kind, tone, headline, { label: sentence }]. The most severe one that applies is returned. */
function stateOf(s) {
  const accounts = s.destination.accounts, wait = behind(s);
  const halted = accounts.filter(a => a.state === "halted"), away = accounts.filter(a => a.state === "unreachable");
  const go = !lagKnown(s) || lagOf(s) < s.ledger.open ? many(s.ledger.open, "record") + " open" : many(lagOf(s), "record") + " to go";
  if (!addsUp(s)) return ["mismatch", "bad", "The ledger does not add up.", { "": "Nothing is read or committed any more; a restart reads again what is not committed.", "What to do": "save /status and the log, restart pinstream, and please report this bug. The figures below contradict each other." }];
  if (s.brokers_silent && !s.stopping) return ["silent", "bad", `${s.brokers_silent.sentence}.`, { "": `Nothing can be read or committed, and the lag is unknown. What was read before still goes to Pinterest: ${go}. Nothing is lost, and pinstream continues by itself.`, "What to do": "see whether the brokers run, and whether this machine reaches them; docs/runbook.md (The brokers do not answer) says more." }];
  if (s.guard) return guardState(s.guard);
  if (halted.length) return haltState(halted, away, accounts);
  if (away.length && !s.stopping) return awayState(away, accounts, go);
  if (s.stopping) return ["stopping", "warn", "Stopping.", { "": `Open records are being finished: ${many(s.ledger.open, "record")}.` }];
  const still = (s.workers || []).find(w => w.silent && w.reported_seconds_ago >= STILL_SHOWN);
  if (still) return ["still", "bad", `Worker ${n(still.worker)} stands still.`, { "": `It has not reported for ${age(still.reported_seconds_ago)}. The group gives its partitions to others once its session ends; nothing is lost.`, "What to do": `look at process ${still.pid}: whether it is stopped, or the machine lacks CPU. After 30 seconds /healthz names it too.` }];
  const damaged = s.partitions.filter(p => p.unreadable_at != null);
  if (damaged.length) return ["unreadable", "bad", `${many(damaged.length, "partition")} cannot be read further: Kafka sends damaged data.`, { "": `${damaged.slice(0, 3).map(p => `${p.topic} [${p.partition}] from offset ${n(p.unreadable_at)}`).join(", ")}${damaged.length > 3 ? ", …" : ""}. pinstream keeps asking for it and reads nothing after it.`, "What to do": "if it lasts, check the brokers' disks; the runbook says how to skip the damaged batch." }];
  if (s.coordinator_silent) return ["uncoordinated", "bad", `${s.coordinator_silent.sentence}.`, { "": `Until one does, this member gets no partitions, and nothing can be committed${s.partitions.length ? `; what it reads still goes to Pinterest: ${go}` : ""}. Nothing is lost, and pinstream continues by itself.`, "What to do": "docs/runbook.md (No coordinator of the group) says what to look at." }];
  if (s.waiting_for_start) return ["unstarted", "warn", "Waiting for Kafka to say where to start.", { "": `${many(s.waiting_for_start, "assigned partition")} cannot be read until then, ${many(s.partitions.length, "partition")} can. pinstream keeps asking the brokers. Nothing is lost.`, "What to do": "if it lasts, check the group's coordinator and the partitions' leaders; the log has the reason (kafka_trouble)." }];
  if (!s.partitions.length) return unassignedState(s);
  if (s.slow_transform) return functionState(s.slow_transform);
  if (highest(accounts.map(a => a.throttled_for)) >= THROTTLE_SHOWN) return ["throttled", "warn", "Throttled: waiting until Pinterest takes calls again.", { "": `Nothing is lost, and pinstream continues by itself: ${go}.${wait >= 60 ? ` The oldest has waited ${age(wait)}.` : ""}` }];
  const stuck = s.stalled_for != null || (toGo(s) && s.seconds_since_progress >= 30);
  const explains = reason => !stuck || (s.oldest_open && s.oldest_open.waits_for === reason);
  const schema = (s.open.schemas || []).find(one => one.seconds >= 30);
  if (schema && explains("schema")) return schemaState(schema, s, stuck);
  if (s.clock && clockOff(s.clock) && explains("clock")) return clockState(s.clock);
  if (stuck) return stuckState(s, go);
  if (s.schemas_from_disk && wait < HOUR) return ["disk", "warn", `The schema registry does not answer: ${go}.`, { "": "Only records of new schemas wait.", "What to do": SEE_REGISTRY }];
  return paceState(wait, toGo(s), go, unknownOf(s));
}

const functionState = f => ["slow_function", f.seconds >= 30 ? "bad" : "warn", `${f.function} works on one record for ${age(f.seconds)}.`, {
  "": `PINSTREAM_TRANSFORM names this function. It has not returned for the record of ${f.topic} [${f.partition}] at offset ${n(f.offset)}. Nothing else is read until it is done; what was read before goes on. Nothing is lost.`,
  "What to do": "if it does not return, correct the function and restart pinstream: the record is read again.",
}];

const unassignedState = s => s.joined
  ? ["unassigned", "open", "No partitions for this member.", { "": "The group has more members than its topics have partitions. This member is a spare: it takes over when another one leaves." }]
  : s.starting ? ["starting", "warn", "Starting.", { Why: `${s.starting}. It goes on by itself. Nothing is lost.` }]
  : ["unassigned", "warn", "No partitions assigned yet.", { "": "The group is still forming: its other members may have to finish first." }];

function paceState(wait, left, go, unknown) {
  if (wait >= HOUR) return ["late", "bad", `Too late for the one-hour rule: ${go}.`, {
    "": `The oldest has waited ${age(wait)}. Nothing is lost.`,
    "What to do": "check in the plots whether lag falls by itself. If not, see what the oldest open event waits for, and add members (and partitions).",
  }];
  if (wait >= 60) return ["behind", "warn", `Behind: ${go}.`, { "": `The oldest has waited ${age(wait)}. Nothing is lost; the plot of the lag shows whether it catches up.` }];
  if (left) return ["working", "good", `Keeping up: ${go}.`, { "": wait ? `The oldest has waited ${age(wait)}.` : "" }];
  if (unknown) return ["unknown", "open", "No known record is waiting.", { "": `The lag of ${many(unknown, "partition")} is not known yet.` }];
  return ["idle", "good", "Caught up: no record is waiting.", {}];
}

const guardState = g => ["guarded", "bad", "Intake has stopped: too many records would be dead letters.", {
  Why: `${n(g.rejected)} of the latest ${many(g.of, "record")} of ${g.topic} would be dead letters, mostly ${g.mostly}${g.section ? ` of ${g.section}` : ""}. Nothing is lost.`,
  "The cause": GUARD_CAUSES[g.mostly === "convert expired" ? "expired" : g.cause],
  "What to do": `${g.advice}.`,
}];

const whyOf = accounts => [...new Set(accounts.map(a => a.reason || "no reason given"))].join("; ");

function haltState(halted, away, accounts) {
  const title = halted.length < accounts.length
    ? `Pinterest refuses ${halted.length} of ${accounts.length} ad accounts; ${away.length ? `for ${away.length} more it does not answer` : "the others continue"}.`
    : "Halted: Pinterest refuses the token or the ad account.";
  const named = halted.slice(0, 3).map(a => a.account).join(", ") + (halted.length > 3 ? ` and ${halted.length - 3} more` : "");
  return ["halted", "bad", title, {
    Why: `${accounts.length > 1 ? `ad account ${named}: ` : ""}${whyOf(halted)}. Nothing is lost.`,
    "What to do": "set a valid token in PINTEREST_ACCESS_TOKEN or its file, and make sure that it may write to this ad account. A changed file is read without a restart.",
  }];
}

/** Seconds that this machine's clock is behind: by Pinterest's clock, else by the records' timestamps. */
const clockOff = c => Math.abs(c.behind_platform || 0) >= 60 ? c.behind_platform : c.behind_records >= 60 ? c.behind_records : 0;

function clockState(c) {
  const off = clockOff(c), known = c.corrected, waits = c.early ? ` ${many(c.early, "event")} wait${c.early === 1 ? "s" : ""} for it.` : "";
  if (known) return ["clock", "warn", `This machine's clock is ${age(Math.abs(off))} ${off > 0 ? "behind" : "ahead"}.`, {
    "": `Pinterest's clock says so, and pinstream uses that clock until this one is right. Nothing is lost.${waits}`,
    "What to do": "set the clock right (NTP); no restart is needed.",
  }];
  return ["clock", "warn", `Record timestamps are ${age(off)} ahead of this machine's clock.`, {
    "": (c.behind_platform == null ? "Pinterest's clock, which decides between the two, is not known yet." : "Pinterest's clock agrees with this machine: the clock of a producer or broker is ahead.") + waits,
    "What to do": "compare the clocks of this machine, the brokers and the producers (NTP).",
  }];
}

const SEE_REGISTRY = "check the registry; the log says why it does not answer.";

function schemaState(one, s, stuck) {
  const others = s.open.schemas.length - 1;
  return ["schema", stuck ? "bad" : "warn", `Waiting for schemas: ${many(s.open.waiting_for_schema, "record")}.`, {
    Why: (one.denied_seconds == null ? `the registry has not answered yet for schema ${one.kind} ${one.value}` : `the registry (or the folder) has said for ${age(one.denied_seconds)} that it does not know schema ${one.kind} ${one.value}`)
      + `; its records have waited ${age(one.seconds)}.` + (others ? ` The records of ${many(others, "other schema")} wait too.` : "") + (stuck ? " No other record settles either." : " All other records continue."),
    "What to do": one.denied_seconds == null ? SEE_REGISTRY : "register the schema, or find the producer of these records. After PINSTREAM_SCHEMA_PATIENCE they become dead letters.",
  }];
}

const awayState = (away, all, go) => ["unreachable", "bad", `Pinterest does not answer${away.length < all.length ? ` for ${away.length} of ${all.length} ad accounts` : ""}.`, {
  Why: `${whyOf(away)}. For ${age(highest(away.map(a => a.unreachable_for)))}: ${go}. Nothing is lost, and pinstream continues by itself.`,
  "What to do": "if a proxy answers in place of Pinterest, let it pass calls to Pinterest; docs/runbook.md (Pinterest does not answer) says what is kept, and for how long.",
}];

function stuckState(s, go) {
  const waits = s.oldest_open && WAITS[s.oldest_open.waits_for];
  return ["stuck", "bad", `Nothing settles: ${go}.`, {
    "": `No record was settled for ${age(s.stalled_for ?? s.seconds_since_progress)}.` + (s.key_store_fails ? ` The key store fails: ${s.key_store_trouble || "see the log"}.` : waits ? ` The oldest open event waits for ${waits}.` : ""),
    "What to do": s.key_store_fails ? "as the line above says; key_store_trouble in the log has the same." : "see the latest warnings in the log; docs/runbook.md explains each.",
  }];
}

function showState(s) {
  const [kind, tone, title, said] = stateOf(s);
  $("state").className = tone;
  put($("state"), h("h2", null, title), Object.entries(said).map(([label, text]) => text && h("p", null, label && h("b", null, label + ": "), text)));
  document.title = title.replace(/( \(|[.:;]).*/, "") + " – pinstream";
  return [kind, title.replace(/: \d.*/, ".")];
}

function showTiles(s, pace, trend) {
  const l = s.ledger, f = freshnessOver(s, "hour"), lag = lagOf(s), wait = behind(s), unknown = unknownOf(s);
  const oldest = s.oldest_open;
  const tiles = [
    [[rate(pace), h("span", "unit", " records/s")], "", `${n(l.read - l.open)} since the start`],
    [lagKnown(s) ? n(lag) : UNKNOWN, wait >= HOUR ? "bad" : wait >= 60 ? "warn" : "", [lagNote(lag, unknown, wait), trend && h("br"), trend]],
    [percent(f.within_one_hour), tone(f), f.delivered ? `of ${many(f.delivered, "event")} delivered ${periodOf(s, "hour")}` : `nothing delivered ${periodOf(s, "hour")}`],
    [n(l.dead_lettered), l.dead_lettered ? "bad" : "", l.dead_lettered ? `${share(l.dead_lettered, l.read)} of the records read` : "none"],
    [oldest ? age(oldest.age_seconds) : "none", "", oldest ? `waits for ${WAITS[oldest.waits_for] || oldest.waits_for}` : "every record read is settled"],
  ];
  put($("tiles"), tiles.map(([value, cls, note], i) =>
    h("div", null, h("dt", null, TILES[i]), h("dd", big(wanted([value])[0], cls), value), h("dd", null, note))));
}

const lagNote = (lag, unknown, wait) => unknown ? `${lag ? `at least ${n(lag)}; ` : ""}${many(unknown, "partition")} not known`
  : lag && wait ? `records; the oldest has waited ${age(wait)}` : "unsettled records";
const tone = f => f.within_one_hour == null ? "" : f.within_one_hour >= TARGET ? "good" : f.within_one_hour >= POOR ? "warn" : "bad";
const percent = x => x == null ? NONE : share(x, 1);

function showLedger(s) {
  const l = s.ledger, adds = addsUp(s);
  put($("read"), h("span", "soft", "Read"), h("b", big(n(l.read)), n(l.read)), h("span", "soft small", "records"));
  put($("ledger"), h("tbody", { role: "rowgroup" }, DISPOSITIONS.map(([id, name, hint, cls]) => h("tr", { role: "row" },
    h("th", { scope: "row", role: "rowheader", class: cls }, name, h("small", null, hint)),
    h("td", { role: "cell", class: "count" }, n(l[id])), h("td", { role: "cell", class: "share" }, share(l[id], l.read))))));
  put($("bands"), bands(l));
  const parts = DISPOSITIONS.map(([id]) => n(l[id])).join(" + ");
  put($("sum"), h("b", adds ? "good" : "bad", adds ? "It adds up: " : "It does not add up: "), `${parts} ${sumsUp(l) ? "=" : "≠"} ${n(l.read)} read.`,
    s.released ? ` ${many(s.released, "record")} more were released unsettled when their partitions were revoked; the next owner reads them again.` : "",
    s.passed_over ? ` ${many(s.passed_over, "record")} had been settled before and were skipped.` : "");
  const lines = missing(s);
  $("missing").hidden = !lines.length;
  put($("missing"), h("b", "warn", lines.join(" ")), " Since the start; see the log for details.");
}

/** Records outside the ledger: never read, or received by another destination. */
function missing(s) {
  const { removed_unread: removed, positions_went_back: back } = s.counts, recreated = Object.keys(s.counts.topics_made_anew || {});
  return [
    removed && `Kafka removed up to ${many(removed, "record")} before they were read: raise the topic's retention.`,
    recreated.length && `${recreated.join(", ")} ${recreated.length > 1 ? "were" : "was"} deleted and created again, and read from the beginning. Records that were unread before are lost.`,
    back && `The position went back ${many(back, "time")}: a log was truncated, or a topic created again.`,
    s.committed_elsewhere && `${many(s.committed_elsewhere, "partition")} began at an offset that the group had committed for another destination: earlier records are not sent to this one.`,
  ].filter(one => one);
}

/** What other members send by other settings: normal during a rollout, and wrong after it. */
function showMembers(s) {
  const url = "destination", own = s.members_differ.filter(name => name !== url);
  const lines = [
    own.length && `Other members of the group send by another ${own.join(", ")}: normal while an update is rolled out. After it, give all the same.`,
    s.members_differ.includes(url) && "Members that share the key store send to another URL for the same ad account: each has a quota and a memory of its own. Give all the same, or see PINSTREAM_DESTINATION.",
  ].filter(one => one);
  $("members").hidden = !lines.length;
  put($("members"), h("b", "warn", lines.join(" ")));
}

/** The bands from the total to each row: as thick as the row's share, with a visible minimum. */
function bands(l) {
  const step = 100 / DISPOSITIONS.length;
  let from = 0;
  return DISPOSITIONS.map(([id, , , cls], i) => {
    if (!l[id] || !l.read) return null;
    const part = l[id] / l.read, left = Math.max(part * 100, .5), right = Math.max(part * step * .84, .5);
    const top = Math.min(from, 100 - left), mid = step * (i + .5);
    from += part * 100;
    const y = [top, mid - right / 2, mid + right / 2, top + left].map(px);
    return h("path", { class: `band ${cls}`, d: `M0 ${y[0]}C50 ${y[0]} 50 ${y[1]} 100 ${y[1]}V${y[2]}C50 ${y[2]} 50 ${y[3]} 0 ${y[3]}Z` });
  });
}

function showDestination(s) {
  const word = { open: ["takes events", "good"], throttled: ["is at its call limit", "warn"], unreachable: ["does not answer", "bad"], halted: ["is refused", "bad"] };
  if (s.brokers_silent) word.open = ["gets what was read before; nothing more can be read", "soft"];
  if (s.guard && s.guard.cause === "destination") word.open = ["refuses events", "bad"];
  put($("destination"), s.destination.accounts.length ? s.destination.accounts.map(a => {
    const [text, cls] = word[a.state] || [a.state, ""];
    return h("div", "account",
      h("p", null, "Ad account ", h("b", null, a.account), " ", h("b", cls, text)),
      (a.state === "halted" || a.state === "unreachable") && h("p", "break", `Why: ${whyOf([a])}. For ${age(a.halted_for ?? a.unreachable_for)}; ${a.next_probe_in == null ? "pinstream keeps trying" : "next attempt in " + age(a.next_probe_in)}.${a.told_by_member ? " Another member met it and reported it to this one." : ""}`),
      a.state === "throttled" && h("p", null, `Calls continue in ${age(a.throttled_for)}.${a.told_by_member ? " Another member met the limit and reported it to this one." : ""}`),
      h("p", "soft", `${many(a.in_flight, "call")} in flight, ${many(a.queued, "event")} queued`));
  }) : h("p", "soft", "Nothing sent yet."),
  s.destination.quota_divided_by > 1 && h("p", "soft", `The call quota is divided by ${s.destination.quota_divided_by} members.`),
  s.process && h("p", "soft small break", `Called ${s.process.sends_to}: ${[["", "calls", "events_sent", "bytes_sent"], ["answered: ", "calls_answered", "events_answered", "bytes_answered"]].map(([what, calls, events, size]) =>
    `${what}${many(s.counts[calls], "call")} with ${many(s.counts[events], "event")}, ${bytes(s.counts[size])}`).join("; ")}; processed: ${many(s.counts.events_processed, "event")}.`));
}

function showOldest(s) {
  const one = s.oldest_open;
  put($("oldest"), one ? [
    h("p", null, "Has waited ", h("b", null, age(one.age_seconds)), "; waits for ", h("b", null, WAITS[one.waits_for] || one.waits_for), "."),
    h("p", "soft small break", place(one), one.account ? `, for ad account ${one.account}` : ""),
  ] : h("p", "soft", "None: every record read is settled."));
}

/** With `run --workers`: the processes whose figures the page shows as one. */
function showWorkers(s) {
  const all = s.workers || [];
  $("by-worker").hidden = !all.length;
  put($("h-partitions"), all.length ? "Partitions of all workers" : "Partitions of this member");
  showTable("workers", [["Worker", "left"], ["State", "left"], ["Partitions"], ["Read"], ["Open"], ["Restarts"], ["Last report"]],
    all.map(w => [`Worker ${n(w.worker)}`, w.silent ? h("span", "bad", "stands still: no report") : h("span", w.state === "running" ? "good" : "warn", WORKERS[w.state] || w.state), n(w.partitions), n(w.read), n(w.open),
      w.restarts ? h("span", "warn", n(w.restarts)) : "0", w.reported_seconds_ago == null ? NONE : `${age(w.reported_seconds_ago)} ago`]));
}

function showPartitions(s) {
  const all = [...s.partitions].sort((a, b) => a.topic < b.topic ? -1 : a.topic > b.topic ? 1 : a.partition - b.partition), some = allPartitions || all.length <= MANY_PARTITIONS ? all : worst(all);
  showTable("partitions", [["Partition", "left break"], ["Lag, records", null, "lag"], ["Oldest record"], ["Open"], ["Settled", "places"],
    ["Committed offset", "places"], ["Position", "places"], ["End offset", "places"]],
    some.map(p => [`${p.topic} [${p.partition}]`, p.lag == null ? UNKNOWN : n(p.lag), age(p.lag_seconds), n(p.ledger.open), n(p.ledger.read - p.ledger.open), n(p.committed), n(p.position), n(p.end)]),
    "None assigned.");
  $("more").hidden = all.length <= MANY_PARTITIONS;
  put($("more"), allPartitions ? `Show the ${MANY_PARTITIONS} with most lag` : `Show all ${all.length} (these have most lag)`);
}

/** The partitions with most lag, in partition order, so that rows do not jump. */
function worst(all) {
  const by = [...all].sort((a, b) => (b.lag_seconds || 0) - (a.lag_seconds || 0) || (b.lag || 0) - (a.lag || 0));
  const chosen = new Set(by.slice(0, MANY_PARTITIONS));
  return all.filter(p => chosen.has(p));
}

/** Freshness over the last hour or day; since the start if an older pinstream reports only that. */
const freshnessOver = (s, window) => s.freshness[window] || s.freshness;
const periodOf = (s, window) => s.freshness[window] ? `in the last ${window}` : "since the start";

function showFreshness(s) {
  const f = freshnessOver(s, span), all = s.freshness, when = periodOf(s, span);
  const sinceStart = `Since the start: ${percent(all.within_one_hour)} of ${many(all.delivered, "event")} within one hour.`;
  if (!all.delivered) return put($("freshness"), h("p", "soft", "Nothing delivered yet."));
  if (!f.delivered) return put($("freshness"), h("p", "soft", `Nothing delivered ${when}. ${sinceStart}`));
  const within = x => x == null ? "more than 7 days" : age(x);
  put($("freshness"),
    h("p", null, h("b", big("", tone(f)), percent(f.within_one_hour)), ` of ${many(f.delivered, "event")} delivered ${when} arrived within one hour`),
    h("p", null, "Half within ", h("b", null, within(f.age_p50)), ", 95 % within ", h("b", null, within(f.age_p95)),
      ", 99 % within ", h("b", null, within(f.age_p99)), "."),
    ageScale(f),
    h("p", "soft small", "Ages run from the event's time to Pinterest's answer and are at most 25 % too high.", f === all ? "" : ` ${sinceStart}`));
}

/** The three ages on one logarithmic line from a second to a week, with the one-hour rule. */
function ageScale(f) {
  const width = Math.max(240, $("freshness").clientWidth), x = s => px(Math.log(Math.max(Math.min(s ?? Infinity, WEEK), 1)) / Math.log(WEEK) * (width - 20) + 10);
  const marks = [1, 10, 60, 600, HOUR, ...(width > 440 ? [24 * HOUR] : []), WEEK];
  const pins = [["half", f.age_p50], ["95 %", f.age_p95], ["99 %", f.age_p99]].map(([name, s]) => [name, x(s)]);
  return h("svg", { class: "scale", viewBox: `0 0 ${width} 76`, "aria-hidden": "true" },
    h("path", { class: "within", d: `M10 30H${x(HOUR)}V42H10Z` }),
    h("path", { class: "track", d: `M${x(HOUR)} 30H${width - 10}V42H${x(HOUR)}Z` }),
    h("path", { class: "rule", d: `M${x(HOUR)} 24V48` }),
    marks.map(s => h("text", { x: x(s), y: 62, "text-anchor": s === 1 ? "start" : s === WEEK ? "end" : "middle" }, age(s))),
    pins.map(([, at]) => h("path", { class: "pin", d: `M${at} 22V48` })),
    pinLabels(pins, width).map(([text, at]) => h("text", { class: "pin-text", x: px(at), y: 16, "text-anchor": "middle" }, text)));
}

/** Labels for the pins, from the left; pins too close for separate labels share one. */
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
    h("p", null, h("b", big(n(l.duplicate)), n(l.duplicate)), ` suppressed, ${share(l.duplicate, l.read)} of the records read`),
    s.claimed_elsewhere > 0 && h("p", null, `${many(s.claimed_elsewhere, "open event")} ${s.claimed_elsewhere === 1 ? "is" : "are"} in flight at another member; the outcome there decides.`),
    keys && h("p", "soft", `The key store holds ${many(keys.keys, "key")} in ${bytes(keys.bytes)}.`,
      keys.evicted_early ? h("b", "warn", ` ${many(keys.evicted_early, "key")} forgotten early: see keys_forgotten_early in the log.`) : ""));
}

function showCoverage(s) {
  const seen = s.coverage && s.coverage[span], names = seen ? Object.keys(seen).filter(name => seen[name].events) : [];
  if (!names.length) {
    put($("coverage"), null);
    return put($("coverage-note"), `Nothing delivered in the last ${span}.`);
  }
  names.sort((a, b) => seen[b].events - seen[a].events || (a < b ? -1 : 1));
  const events = sum(names.map(name => seen[name].events));
  put($("coverage-note"), `Of ${many(events, "event")} delivered in the last ${span}.`);
  const columns = [["all", "All", events, id => sum(names.map(name => seen[name].carried[id] || 0)) / events],
    ...names.map(name => [name, breakable(name), seen[name].events, id => (seen[name].carried[id] || 0) / seen[name].events])];
  put($("coverage"), rows([["Parameter, and Pinterest's advice"], ...columns.map(([name, title]) => [title, null, name])], [
    [["EventStream", h("small", null, "How many had this name.")], ...columns.map(([, , count]) => n(count))],
    ...s.coverage.parameters.map(({ id, advice }) => [
      [PARAMETERS[id] || id, " ", h("code", null, id), h("small", null, advice)],
      ...columns.map(([, , , of]) => h("td", shade(of(id)), share(of(id), 1, 0))),
    ]),
  ]));
}

/** Pinterest's component -> our parameter. */
const SAME = {
  hashed_email: "em", advertiser_external_id: "external_id", click_id_epik: "click_id", order_value: "value", order_id: "order_id",
  product_id: "content_ids", source_url: "event_source_url",
};

/** What Pinterest says of each ad account: the scores, and a table for each that has components. */
function showSeen(s) {
  const { accounts = [], gaps } = s.event_quality || {}, day = s.coverage?.day || {};
  $("by-pinterest").hidden = !accounts.length;
  const cell = (seen, ours) => seen ? h("td", shade(seen.coverage / 100), share(seen.coverage, 100, 0), ours && ` / ${ours}`,
    seen.overlap != null && `, overlap ${share(seen.overlap, 100, 0)}`) : NONE;
  const table = ({ platform, source, score, components }) => {
    const all = Object.entries(components), names = [...new Set(all.flatMap(([, seen]) => Object.keys(seen)))];
    const ours = (id, name) => source === "CONVERSIONS_API" && id && day[name] && share(day[name].carried[id], day[name].events, 0);
    const issues = all.flatMap(([one, seen]) => Object.entries(seen).flatMap(([name, { issues }]) => issues.map(said => `${name}, ${one}: ${said}`)));
    return [h("p", null, h("b", null, `${platform}, ${source}: ${score || UNKNOWN}`)),
      names.length > 0 && h("table", { class: "coverage", role: "table", "aria-labelledby": "h-sees" }, rows([["Component"], ...names.map(name => [breakable(name), null, name])],
        all.map(([one, seen]) => [h("code", null, breakable(one)), ...names.map(name => cell(seen[name], ours(SAME[one], name)))]))),
      ...issues.map(one => h("p", "soft small", one))];
  };
  put($("sees"), gaps?.map(one => h("p", "warn", one)), accounts.flatMap(({ account, at, problem, scores }) => [
    h("p", "soft", `Ad account ${account}: ${at ? "answered " + moment(at) : "no answer yet"}.`, problem && ` Not known: ${problem}.`),
    scores.map(table)]));
}

/** Let a long name break after `_` and `.`. */
const breakable = name => name.split(/(?<=[_.])/).flatMap((part, i) => i ? [h("wbr"), part] : [part]);

/** The CSS class of a share: the larger, the deeper its shade. */
const shade = part => "c" + (part ? Math.min(5, 1 + Math.floor(part * 5)) : 0);

/** The counts in an object of /status as [names, count]: one name for each level of the object. Zeros are omitted. */
const counted = (x, ...names) => typeof x === "object" ? Object.entries(x).flatMap(([name, inner]) => counted(inner, ...names, name))
  : x ? [[names, x]] : [];

function showReasons(s) {
  showTable("reasons", [["Reason", "left word"], ["Stage", "left"], ["Records"], ["Latest message", "left message break"]],
    counted(s.counts.rejections).sort((a, b) => b[1] - a[1]).map(([[stage, code], count]) => [h("code", null, breakable(code)), [stage, ": ", STAGES[stage]],
      n(count), s.samples?.rejections[stage]?.[code] || NONE]));
}

/** Where the mapping has sections, what became of the records of each. */
function showSections(s) {
  const sections = Object.entries(s.counts.by_section || {}), settled = DISPOSITIONS.filter(([name]) => name !== "open");
  $("by-section").hidden = !sections.length;
  showTable("sections", [["Section of the mapping", "left word"], ...settled.map(([, title]) => [title])],
    sections.map(([name, counts]) => [h("code", null, breakable(name)), ...settled.map(([outcome]) => n(counts[outcome] || 0))]));
}

function showLatest(s) {
  showTable("latest", [["When", "left nowrap"], ["From", "left"], ["Reason", "left word"], ["Message", "left message break"]],
    (s.latest_dead_letters || []).map(one => [h("time", { datetime: new Date(one.at * 1000).toISOString(), title: new Date(one.at * 1000).toISOString() }, moment(one.at)),
      place(one), [one.stage, " ", h("code", null, breakable(one.code)), one.section && h("small", null, breakable(one.section))], one.message]));
}

function showNotes(s) {
  const sampleOf = (family, [code, field]) => family === "convert_warnings" && s.samples?.convert_warnings[code]?.[field];
  const lines = NOTES.flatMap(([family, what, cls]) => counted(s.counts[family])
    .map(([names, count]) => [what, cls, names, count, OF_RECORDS.has(family) ? share(count, s.ledger.read) : "", sampleOf(family, names)]));
  if (s.commit_metadata !== "maps") lines.push(["commits carry no offset maps: the brokers refuse them", "warn", ["offset.metadata.max.bytes"], 1, "", s.commit_metadata === "ids" ? "commits carry topic ids and the destination" : "commits carry offsets only"]);
  for (const { setting, expires } of s.certificates || []) {
    const left = expires - Date.now() / 1000;
    if (left < ENDS_SOON) lines.push([left > 0 ? `a certificate ends in ${age(left)}: replace it, and start again` : "a certificate has ended", left > 0 ? "warn" : "bad", [setting], 1, new Date(expires * 1000).toISOString()]);
  }
  showTable("notes", [["Kind", "left"], ["Name", "left word"], ["Count", null, "times"], ["Share"], ["Latest message", "left message break"]],
    lines.map(([what, cls, names, count, part, sample]) => [h("span", cls, what), names.map((name, i) => [i ? " in " : "", h("code", null, breakable(name))]), n(count), part, sample]));
}

function showProcess(s) {
  const p = s.process;
  $("mode").hidden = !(p && p.test_mode);
  if (!p) return;
  put($("route"), `Reads ${p.topics.join(", ")} as group ${p.group}, sends to ${p.sends_to}`);
  put($("process"), `pinstream ${p.version}, running for ${age(Math.max(0, Math.round(Date.now() / 1000 - p.started)))}.`);
}
