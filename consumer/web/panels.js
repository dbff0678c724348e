// The panels: each turns the /status document into elements. They depend on nothing else, except for the reader's choices:
// the period (`span`), whether all partitions are shown (`allPartitions`) and which command was copied (`copied`).

const DISPOSITIONS = [
  ["delivered", "Delivered", "Pinterest answered: processed", "good"],
  ["duplicate", "Duplicates", "delivered before; not sent again", "calm"],
  ["filtered", "Filtered", "excluded by the mapping", "soft"],
  ["dead_lettered", "Dead letters", "cannot be sent; stored with the reason", "bad"],
  ["open", "Open", "in progress; read again after a crash", "open"],
];
const WORKERS = {
  waiting: "waits for the first worker to join", starting: "starting", running: "running", pausing: "ended; will be started again", gone: "ended",
};
const OUTCOMES = {
  verdict: ["a verdict on the events", "good"], throttled: ["throttled: too many calls", "warn"], refused: ["token or ad account refused", "bad"],
  no_verdict: ["answered without a verdict, sent again", "warn"], no_answer: ["no answer, sent again", "warn"],
};
const STAGES = {
  decode: "could not be decoded", convert: "could not be converted", deliver: "refused by Pinterest",
};
// What is counted by name, in the view that it is for: [family in `counts`, what it is, tone].
const NOTES = {
  retries: [
    ["no_verdicts", "call without a verdict, sent again", "warn"],
    ["failures", "failure outside the API, retried", "warn"],
    ["unclear_repeats", "event sent again after an unknown outcome, offline or over an hour old: Pinterest may count it twice", "warn"],
    ["batches_bisected", "batch bisected to find a refused event", "soft"],
  ],
  warnings: [
    ["processed_with_error", "delivered, but with an error message", "bad"],
    ["api_warnings", "warning from the API", "warn"],
    ["convert_warnings", "field omitted or doubtful", "warn"],
  ],
  notes: [["api_errors", "error message from the API", "bad"], ["filtered", "filtered by the mapping", "soft"]],
};
// The notes that count records: their share tells one bad record from a producer that writes them all so.
const OF_RECORDS = new Set(["convert_warnings", "filtered"]);
// Shares delivered within one hour: the goal, and the bound below which it is bad, as in alert and dashboard.
const TARGET = .99, POOR = .95;
const TILES = ["Settled per second", "Lag", "Delivered within 1 h", "Dead letters", "Oldest open event", "Latency of calls"];
const MANY_PARTITIONS = 16;
const WEEK = 7 * 24 * HOUR, ENDS_SOON = 2 * WEEK;
let allPartitions = false;
let copied = null;
let group = null;

const tone = (f, goal = TARGET, poor = POOR) => f == null ? "" : f >= goal ? "good" : f >= poor ? "warn" : "bad";
const percent = x => x == null ? NONE : share(x, 1);
const code = name => h("code", breakable(name));
// Let a long name break after `_` and `.`.
const breakable = name => name.split(/(?<=[_.])/).flatMap((part, i) => i ? [h("wbr"), part] : [part]);
const place = x => [h("span.break", x.topic), ` [${x.partition}] at offset ${n(x.offset)}`];
// The counts in an object of /status as [names, count]: one name for each level of the object. Zeros are omitted.
const counted = (x, ...names) => typeof x === "object" ? Object.entries(x).flatMap(([name, inner]) => counted(inner, ...names, name))
  : x ? [[names, x]] : [];
const reasonsOf = s => counted(s.counts.rejections).sort((a, b) => b[1] - a[1]);

// -- in every view

function showState(s) {
  const [kind, tone, title, said] = stateOf(s);
  const lines = Object.entries({ ...said, Runbook: tone !== "good" && tone !== "open" && RUNBOOK[kind] && see(RUNBOOK[kind]) }).filter(([, text]) => text);
  $("state").className = tone;
  put("state", h("h2", title), lines.map(([label, text]) => h("p", label && h("b", label + ": "), text)),
    tone !== "good" && lines.length > 0 && h("p.why", h("a", { href: "#overview" }, "Why, and what to do")));
  document.title = title.replace(/( \(|[.:;]).*/, "") + " – pinstream";
  return [kind, title.replace(/: \d.*/, ".")];
}

function showProcess(s) {
  const p = s.process;
  $("mode").hidden = !p.test_mode;
  put("route", `Reads ${p.topics.join(", ")} as group ${p.group}, sends to ${p.sends_to}`);
  put("process", `pinstream ${p.version}, running for ${age(Math.max(0, Math.round(Date.now() / 1000 - p.started)))}.`);
}

// -- overview

// What deserves attention beside the state, as [tone, sentence, view].
function todoOf(s) {
  const l = s.ledger, f = s.freshness.hour, [reason] = reasonsOf(s), fix = s.coverage.gaps[0], ends = certificates(s);
  return [
    reason && ["bad", `Most dead letters are ${reason[0].join(" ")} (${n(reason[1])} of ${n(l.dead_lettered)}): correct the cause, then redrive them.`, "refusals"],
    s.freshness.catching_up && ["warn", `${s.freshness.catching_up}.`, "quality"],
    f.within_one_hour < TARGET && f.within_one_hour != null && [tone(f.within_one_hour), `${percent(f.within_one_hour)} of the last hour's events arrived within one hour; the goal is 99${NBSP}%: see what delays them.`, "delivery"],
    s.destination.latency.slow && ["warn", `${s.destination.latency.slow}.`, "delivery"],
    ends.length && ["warn", `A client certificate ends soon, or has ended: replace it.`, "delivery"],
    ...s.schema_drift.filter(one => one.lacks.length).map(one => ["warn", `${one.sentence} (${see("a-schema-drifts")}).`, "quality"]),
    fix && ["warn", fixWords(s, fix), "quality"],
    s.event_quality.gaps.length && ["warn", s.event_quality.gaps[0], "quality"],
  ].filter(Boolean).slice(0, 4);
}

function showTodo(s) {
  const all = todoOf(s);
  put("todo", all.length ? h("ul.todo", all.map(([tone, text, view]) => h("li." + tone, h("span.ink", text, " ", h("a", { href: "#" + view }, `See ${$("h-" + view).textContent}`)))))
    : h("p.soft", "Nothing else needs attention."));
}

function showTiles(s, pace, trend) {
  const l = s.ledger, f = s.freshness.hour, lag = lagOf(s), wait = behind(s), unknown = unknownOf(s);
  const oldest = s.oldest_open, calls = s.destination.latency;
  const tiles = [
    [[rate(pace), h("span.unit", " records/s")], "", `${n(l.read - l.open)} since the start`],
    [lagKnown(s) ? n(lag) : UNKNOWN, wait >= HOUR ? "bad" : wait >= 60 ? "warn" : "", [lagNote(lag, unknown, wait), trend && h("br"), trend]],
    [percent(f.within_one_hour), tone(f.within_one_hour), f.delivered ? `of ${many(f.delivered, "event")} delivered in the last hour` : "nothing delivered in the last hour"],
    [n(l.dead_lettered), l.dead_lettered ? "bad" : "", l.dead_lettered ? `${share(l.dead_lettered, l.read)} of the records read` : "none"],
    [oldest ? age(oldest.age_seconds) : "none", "", oldest ? `waits for ${oldest.waits_in_words}` : "every record read is settled"],
    [took(calls.p95), calls.slow ? "warn" : "", calls.calls ? `95 % of ${many(calls.calls, "call")} within this; half within ${took(calls.p50)}` : "no calls in the last five minutes"],
  ];
  put("tiles", tiles.map(([value, cls, note], i) =>
    h("div", h("dt", TILES[i]), h("dd", { class: big(wanted([value])[0], cls) }, value), h("dd", note))));
}

const lagNote = (lag, unknown, wait) => unknown ? `${lag ? `at least ${n(lag)}; ` : ""}${many(unknown, "partition")} not known`
  : lag && wait ? `records; the oldest has waited ${age(wait)}` : "unsettled records";

function showLedger(s) {
  const l = s.ledger, adds = addsUp(s);
  put("read", h("span.soft", "Read"), h("b", { class: big(n(l.read)) }, n(l.read)), h("span.soft.small", "records"));
  put("ledger", h("tbody", { role: "rowgroup" }, DISPOSITIONS.map(([id, name, hint, cls]) => h("tr", { role: "row" },
    h("th", { scope: "row", role: "rowheader", class: cls }, name, h("small", hint)),
    h("td.count", { role: "cell" }, n(l[id])), h("td.share", { role: "cell" }, share(l[id], l.read))))));
  put("bands", bands(l));
  const parts = DISPOSITIONS.map(([id]) => n(l[id])).join(" + ");
  put("sum", h("b", { class: adds ? "good" : "bad" }, adds ? "It adds up: " : "It does not add up: "), `${parts} ${sumsUp(l) ? "=" : "≠"} ${n(l.read)} read.`,
    s.released ? ` ${many(s.released, "record")} more were released unsettled when their partitions were revoked; the next owner reads them again.` : "",
    s.passed_over ? ` ${many(s.passed_over, "record")} had been settled before and were skipped.` : "");
  const { outside_ledger: outside, members_differ_in_words: differ } = s;
  put("missing", h("b.warn", outside.join(" ")), outside.length > 0 && " Since the start; see the log for details.");
  put("members", h("b.warn", differ.join(" ")));
}

// The bands from the total to each row: as thick as the row's share, with a visible minimum.
function bands(l) {
  const step = 100 / DISPOSITIONS.length;
  let from = 0;
  return DISPOSITIONS.map(([id, , , cls], i) => {
    if (!l[id] || !l.read) return null;
    const part = l[id] / l.read, left = Math.max(part * 100, .5), right = Math.max(part * step * .84, .5);
    const top = Math.min(from, 100 - left), mid = step * (i + .5);
    from += part * 100;
    const y = [top, mid - right / 2, mid + right / 2, top + left].map(px);
    return h("path.band." + cls, { d: `M0 ${y[0]}C50 ${y[0]} 50 ${y[1]} 100 ${y[1]}V${y[2]}C50 ${y[2]} 50 ${y[3]} 0 ${y[3]}Z` });
  });
}

// -- delivery

function showDestination(s) {
  const word = { open: ["takes events", "good"], throttled: ["is at its call limit", "warn"], unreachable: ["does not answer", "bad"], halted: ["is refused", "bad"] };
  if (s.brokers_silent) word.open = ["gets what was read before; nothing more can be read", "soft"];
  if (s.guard && s.guard.cause === "destination") word.open = ["refuses events", "bad"];
  put("destination", s.destination.accounts.length ? s.destination.accounts.map(a => {
    const [text, cls] = word[a.state] || [a.state, ""];
    return h("div.account",
      h("p", "Ad account ", h("b", a.account), " ", h("b." + cls, text)),
      (a.state === "halted" || a.state === "unreachable") && h("p.break", `Why: ${whyOf([a])}. For ${age(a.halted_for ?? a.unreachable_for)}; ${a.next_probe_in == null ? "pinstream keeps trying" : "next attempt in " + age(a.next_probe_in)}.${a.told_by_member ? " Another member met it and reported it to this one." : ""}`),
      a.state === "throttled" && h("p", `Calls continue in ${age(a.throttled_for)}.${a.told_by_member ? " Another member met the limit and reported it to this one." : ""}`),
      h("p.soft", `${many(a.in_flight, "call")} in flight, ${many(a.queued, "event")} queued`));
  }) : h("p.soft", "Nothing sent yet."),
  s.destination.quota_divided_by > 1 && h("p.soft", `The call quota is divided by ${s.destination.quota_divided_by} members.`),
  h("p.soft.small.break", `Called ${s.process.sends_to}: ${[["", "calls", "events_sent", "bytes_sent"], ["answered: ", "calls_answered", "events_answered", "bytes_answered"]].map(([what, calls, events, size]) =>
    `${what}${many(s.counts[calls], "call")} with ${many(s.counts[events], "event")}, ${bytes(s.counts[size])}`).join("; ")}; processed: ${many(s.counts.events_processed, "event")}.`));
}

function showCalls(s) {
  const l = s.destination.latency, ended = s.counts.calls_ended, all = sum(Object.values(ended).map(one => one.count));
  put("latency", l.calls ? h("p", "Half of the calls within ", h("b", took(l.p50)), ", 95 % within ", h("b", took(l.p95)), ", 99 % within ", h("b", took(l.p99)), ".") : "",
    h("p", { class: l.slow ? "warn" : "soft" }, l.slow ? `${l.slow} (${see("pinterest-answers-slowly")}).` : l.calls ? `Of ${many(l.calls, "call")} in the last five minutes.` : "No calls in the last five minutes."));
  showTable("calls", [["Ended with", "left"], ["Calls"], ["Share"], ["On average", null, "on average"]],
    Object.entries(OUTCOMES).filter(([id]) => ended[id].count).map(([id, [text, cls]]) =>
      [h("span." + cls, text), n(ended[id].count), share(ended[id].count, all), took(ended[id].seconds / ended[id].count)]), "No calls yet.");
  const answers = counted(s.counts.answers);
  put("answers", answers.length > 0 && `HTTP answers: ${answers.map(([[name], count]) => `${name}: ${n(count)}`).join(", ")}.`);
}

function showOldest(s) {
  put("oldest", table("oldest", [["Oldest open event of", "left break"], ["Has waited"], ["Waits for", "left", "waits for"], ["Ad account", "left", "ad account"]],
    s.open.oldest.map(one => [place(one), age(one.age_seconds), one.waits_in_words, one.account || NONE]), "None: every record read is settled."),
  s.claimed_elsewhere > 0 && h("p", `${many(s.claimed_elsewhere, "open event")} ${s.claimed_elsewhere === 1 ? "is" : "are"} in flight at another member; the outcome there decides.`));
}

// With `run --workers`: the processes whose figures the page shows as one.
function showWorkers(s) {
  const all = s.workers || [];
  put("h-partitions", all.length ? "Partitions of all workers" : "Partitions of this member");
  putIf("workers", table("workers", [["Worker", "left"], ["State", "left"], ["Partitions"], ["Read"], ["Open"], ["Restarts"], ["Last report"]],
    all.map(w => [`Worker ${n(w.worker)}`, w.silent ? h("span.bad", "stands still: no report") : h("span." + (w.state === "running" ? "good" : "warn"), WORKERS[w.state] || w.state), n(w.partitions), n(w.read), n(w.open),
      w.restarts ? h("span.warn", n(w.restarts)) : "0", w.reported_seconds_ago == null ? NONE : `${age(w.reported_seconds_ago)} ago`]), null));
}

function showPartitions(s) {
  const all = [...s.partitions].sort((a, b) => a.topic < b.topic ? -1 : a.topic > b.topic ? 1 : a.partition - b.partition), some = allPartitions || all.length <= MANY_PARTITIONS ? all : worst(all);
  showTable("partitions", [["Partition", "left break"], ["Lag, records", null, "lag"], ["Oldest record"], ["Open"], ["Settled", "places"],
    ["Committed offset", "places"], ["Position", "places"], ["End offset", "places"]],
    some.map(p => [`${p.topic} [${p.partition}]`, p.lag == null ? UNKNOWN : n(p.lag), age(p.lag_seconds), n(p.ledger.open), n(p.ledger.read - p.ledger.open), n(p.committed), n(p.position), n(p.end)]),
    "None assigned.");
  $("more").hidden = all.length <= MANY_PARTITIONS;
  put("more", allPartitions ? `Show the ${MANY_PARTITIONS} with most lag` : `Show all ${all.length} (these have most lag)`);
}

// The partitions with most lag, in partition order, so that rows do not jump.
function worst(all) {
  const by = [...all].sort((a, b) => (b.lag_seconds || 0) - (a.lag_seconds || 0) || (b.lag || 0) - (a.lag || 0));
  const chosen = new Set(by.slice(0, MANY_PARTITIONS));
  return all.filter(p => chosen.has(p));
}

// The whole group, as Kafka sees it: asked while this view is open.
function showGroup() {
  const numbers = held => Object.entries(Object.groupBy(held, one => one.topic)).map(([topic, all]) => `${topic} [${all.map(one => one.partition).join(", ")}]`).join("; ");
  putIf("group", group && [h("p.soft", group.problem || (group.state === "Unknown" ? "These brokers do not say who is in the group." : `State: ${group.state}.`)),
    table("group", [["Member", "left break"], ["Partitions", "left break"], ["Lag, records", null, "lag"]],
      group.members.map(one => [one.member || (group.state === "Unknown" ? "not known" : h("b.warn", "no member")), numbers(one.partitions), n(one.lag)]), null)]);
}

// The client certificates that end soon, or have ended.
const certificates = s => s.certificates.filter(one => one.expires - Date.now() / 1000 < ENDS_SOON);

// The tables of NOTES; in `retries`, also what is wrong with commits and certificates.
function showNotes(s) {
  const sampleOf = (family, [code, field]) => family === "convert_warnings" && s.samples.convert_warnings[code]?.[field];
  for (const [id, families] of Object.entries(NOTES)) {
    const lines = families.flatMap(([family, what, cls]) => counted(s.counts[family])
      .map(([names, count]) => [what, cls, names, count, OF_RECORDS.has(family) ? share(count, s.ledger.read) : "", sampleOf(family, names)]));
    if (id === "retries") {
      if (s.commit_metadata !== "maps") lines.push(["commits carry no offset maps: the brokers refuse them", "warn", ["offset.metadata.max.bytes"], 1, "", s.commit_metadata === "ids" ? "commits carry topic ids and the destination" : "commits carry offsets only"]);
      for (const { setting, expires } of certificates(s)) {
        const left = expires - Date.now() / 1000;
        lines.push([left > 0 ? `a certificate ends in ${age(left)}: replace it, and start again` : "a certificate has ended", left > 0 ? "warn" : "bad", [setting], 1, "", new Date(expires * 1000).toISOString().slice(0, 10)]);
      }
    }
    // Empty columns are not shown.
    const filled = lines.some(line => line[4] || line[5]) ? 5 : 3;
    showTable(id, [["Kind", "left"], ["Name", "left word"], ["Count", null, "times"], ["Share"], ["Latest message", "left break"]].slice(0, filled),
      lines.map(([what, cls, names, count, part, sample]) => [h("span." + cls, what), names.map((name, i) => [i ? " in " : "", code(name)]), n(count), part, sample].slice(0, filled)));
  }
}

function showKeyStore(s) {
  const keys = s.key_store;
  put("keys", [`The key store holds ${many(keys.keys, "key")} in ${bytes(keys.bytes)}.`,
    keys.evicted_early ? h("b.warn", ` ${many(keys.evicted_early, "key")} forgotten early: see keys_forgotten_early in the log.`) : ""]);
}

// -- data quality

function showFreshness(s) {
  const f = s.freshness[windowOf()], all = s.freshness, when = `in the last ${windowOf()}`;
  const sinceStart = `Since the start: ${percent(all.within_one_hour)} of ${many(all.delivered, "event")} within one hour.`;
  if (!f.delivered) return put("freshness", h("p.soft", all.delivered ? `Nothing delivered ${when}. ${sinceStart}` : "Nothing delivered yet."));
  const within = x => x == null ? "more than 7 days" : age(x);
  put("freshness",
    h("p", h("b", { class: big("", tone(f.within_one_hour)) }, percent(f.within_one_hour)), ` of ${many(f.delivered, "event")} delivered ${when} arrived within one hour`),
    h("p", "Half within ", h("b", within(f.age_p50)), ", 95 % within ", h("b", within(f.age_p95)), ", 99 % within ", h("b", within(f.age_p99)), "."),
    all.catching_up && h("p.warn", all.catching_up + "."),
    h("p.soft.small", "Ages run from the event's time to Pinterest's answer and are at most 25 % too high.", ` ${sinceStart}`));
}

// What delivered events are worth, by event name and currency.
function showValue(s) {
  const worth = Object.entries(s.delivered_value[windowOf()]).flatMap(([name, by]) => Object.entries(by).map(([currency, one]) => [name, currency, one.events, one.value]));
  showTable("value", [["Event name", "left"], ["Currency", "left"], ["Events"], ["Value"]],
    worth.sort((a, b) => a[1] < b[1] ? -1 : a[1] > b[1] ? 1 : b[3] - a[3]).map(([name, currency, events, value]) => [code(name), currency, n(events), n(value)]),
    `Not yet ten events with a value in the last ${windowOf()}.`);
}

function showDuplicates(s) {
  const l = s.ledger;
  put("duplicates", h("p", h("b", { class: big(n(l.duplicate)) }, n(l.duplicate)), ` suppressed, ${share(l.duplicate, l.read)} of the records read`));
}

const parameterOf = (s, id) => s.coverage.parameters.find(one => one.id === id);
const fixWords = (s, { event_name: name, id, share: part, target, events }) =>
  `${parameterOf(s, id).label}: in ${share(part, 1, 0)} of ${name} events in the last day; the goal is ${share(target, 1, 0)}, ${many(events, "event")} more.`;

// What lies below its target, what is worth most first.
function showFixes(s) {
  const gaps = s.coverage.gaps;
  put("fixes", gaps.length ? h("ol", gaps.slice(0, 5).map(gap => h("li", h("b", fixWords(s, gap)), " ", parameterOf(s, gap.id).advice))) : h("p.soft", "Nothing: each parameter reaches its goal."),
    gaps.length > 5 && h("p.soft", `${many(gaps.length - 5, "more figure")} below the goal: see the table of coverage.`));
}

function showCoverage(s) {
  const seen = s.coverage[windowOf()], names = Object.keys(seen);
  const events = sum(names.map(name => seen[name].events));
  names.sort((a, b) => seen[b].events - seen[a].events || (a < b ? -1 : 1));
  put("coverage-note", names.length ? `Of ${many(events, "event")} delivered in the last ${windowOf()}.` : `Nothing delivered in the last ${windowOf()}.`);
  put("coverage", names.length > 0 && rows([["Parameter, and Pinterest's advice"], ["All"], ...names.map(name => [breakable(name), null, name])], [
    [["Events", h("small", "How many had this name.")], n(events), ...names.map(name => n(seen[name].events))],
    ...s.coverage.parameters.map(({ id, label, advice }) => {
      const all = sum(names.map(name => seen[name].carried[id])) / events, applies = names.some(name => seen[name].target[id] != null);
      return [
        [label, " ", h("code", id), h("small", advice)], h("td." + shade(all), share(all, 1, 0)),
        ...names.map(name => {
          const { events, carried, target } = seen[name], part = (carried[id]) / events, goal = target[id];
          return applies && goal == null ? "" : h(`td.${shade(part)}${goal > part ? ".under" : ""}`, share(part, 1, 0), goal > part && h("small", ` of ${share(goal, 1, 0)}`));
        }),
      ];
    }),
  ]));
}

// What Pinterest says of each ad account: the scores, and a table for each that has components.
function showSeen(s) {
  const { accounts, gaps } = s.event_quality, { day, parameters } = s.coverage;
  const same = new Map(parameters.map(one => [one.component, one.id]));
  const cell = (seen, ours) => seen ? h("td." + shade(seen.coverage / 100), share(seen.coverage, 100, 0), ours && ` / ${ours}`,
    seen.overlap != null && `, overlap ${share(seen.overlap, 100, 0)}`) : NONE;
  const table = ({ platform, source, score, components }) => {
    const all = Object.entries(components), names = [...new Set(all.flatMap(([, seen]) => Object.keys(seen)))];
    const ours = (id, name) => source === "CONVERSIONS_API" && id && day[name] && share(day[name].carried[id], day[name].events, 0);
    const issues = all.flatMap(([one, seen]) => Object.entries(seen).flatMap(([name, { issues }]) => issues.map(said => `${name}, ${one}: ${said}`)));
    return [h("p", h("b", `${platform}, ${source}: ${score || UNKNOWN}`)),
      names.length > 0 && h("table.coverage", { role: "table", "aria-labelledby": "h-sees" }, rows([["Component"], ...names.map(name => [breakable(name), null, name])],
        all.map(([one, seen]) => [code(one), ...names.map(name => cell(seen[name], ours(same.get(one), name)))]))),
      issues.map(one => h("p.soft.small", one))];
  };
  putIf("sees", gaps.map(one => h("p.warn", one)), accounts.flatMap(({ account, at, problem, scores }) => [
    h("p.soft", `Ad account ${account}: ${at ? "answered " + moment(at) : "no answer yet"}.`, problem && ` Not known: ${problem}.`),
    scores.map(table)]));
}

// The CSS class of a share: the larger, the deeper its shade.
const shade = part => "c" + (part ? Math.min(5, 1 + Math.floor(part * 5)) : 0);

// -- refusals

// A command with a button that copies it.
const command = text => h("p.command", h("code", text), h("button", { type: "button", "data-copy": text, "aria-label": "Copy: " + text }, copied === text ? "Copied" : "Copy"));
const word = text => /^[\w.:-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;

function showReasons(s) {
  showTable("reasons", [["Reason", "left word"], ["Stage", "left"], ["Records"], ["Latest message", "left message break"]],
    reasonsOf(s).map(([[stage, name], count]) => [code(name), [stage, ": ", STAGES[stage]], n(count), [s.samples.rejections[stage]?.[name] || NONE,
      ["list", "redrive"].map(verb => command(`pinstream dead-letters ${verb} --stage ${stage} --code ${word(name)}`))]]));
}

// Where the mapping has sections, what became of the records of each.
function showSections(s) {
  const settled = DISPOSITIONS.filter(([name]) => name !== "open");
  putIf("sections", table("sections", [["Section of the mapping", "left word"], ...settled.map(([, title]) => [title])],
    Object.entries(s.counts.by_section).map(([name, counts]) => [code(name), ...settled.map(([outcome]) => n(counts[outcome] || 0))]), null));
}

function showLatest(s) {
  showTable("latest", [["When", "left nowrap"], ["From", "left"], ["Reason", "left word"], ["Message", "left message break"]],
    s.latest_dead_letters.map(one => [h("time", { datetime: new Date(one.at * 1000).toISOString() }, moment(one.at)),
      place(one), [one.stage, " ", code(one.code), one.section && h("small", breakable(one.section))],
      [one.message, command(`pinstream dead-letters list --origin ${word(`${one.topic}:${one.partition}:${one.offset}`)}`)]]));
}

// The panels of each view; those of `all` are in every view.
const PANELS = {
  all: [showProcess],
  overview: [showTodo, showLedger],
  delivery: [showDestination, showCalls, showOldest, showWorkers, showPartitions, showGroup, showNotes, showKeyStore],
  quality: [showFixes, showFreshness, showValue, showDuplicates, showCoverage, showSeen, showNotes],
  refusals: [showReasons, showSections, showLatest, showNotes],
};
