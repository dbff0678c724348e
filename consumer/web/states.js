// The state of pinstream in words, from the /status document: the headline, why it is so, and what to do.

const BY_ITSELF = "Nothing is lost, and pinstream continues by itself";
// Seconds of throttling from which the headline says so; shorter waits are the normal pacing of the quota.
const THROTTLE_SHOWN = 3;
// Seconds without a report from which the headline names a worker; its row in the table does so after one second.
const STILL_SHOWN = 5;
/** The section of docs/runbook.md about each state that somebody may have to end. */
const RUNBOOK = {
  mismatch: "the-ledger-does-not-add-up", silent: "the-brokers-do-not-answer", guarded: "poison-flood", halted: "token-expired",
  unreachable: "pinterest-does-not-answer", still: "first-look", unreadable: "a-batch-is-damaged",
  uncoordinated: "no-coordinator-of-the-group", unstarted: "lag-grows", unassigned: "first-look", starting: "first-look",
  slow_function: "other-messages", throttled: "other-messages", schema: "registry-down", disk: "registry-down",
  clock: "the-clock-is-wrong", receipts: "receipts-cannot-be-written", stuck: "lag-grows", slow: "pinterest-answers-slowly",
  late: "lag-grows", behind: "lag-grows",
};
const see = section => `docs/runbook.md#${section}`;
const lagOf = s => sum(s.partitions.map(p => p.lag || 0));
const toGo = s => Math.max(lagOf(s), s.ledger.open);
const behind = s => highest(s.partitions.map(p => p.lag_seconds));
// The number of partitions whose lag is not known yet.
const unknownOf = s => s.partitions.filter(p => p.lag == null).length;
// Whether the sum of the lags says anything: not before the group has assigned partitions, or while no broker answers.
const lagKnown = s => !s.brokers_silent && s.joined && !unknownOf(s);
const UNKNOWN = "unknown";
const sumsUp = l => l.delivered + l.duplicate + l.filtered + l.dead_lettered + l.open === l.read;
// Whether the ledger adds up: in total, in each partition, and by the engine's own check.
const addsUp = s => sumsUp(s.ledger) && s.partitions.every(p => sumsUp(p.ledger)) && !s.ledger_mismatch;

// The state as [kind, tone, headline, { label: sentence }]. The most severe one that applies is returned.
function stateOf(s) {
  const accounts = s.destination.accounts, wait = behind(s);
  const halted = accounts.filter(a => a.state === "halted"), away = accounts.filter(a => a.state === "unreachable");
  const go = !lagKnown(s) || lagOf(s) < s.ledger.open ? many(s.ledger.open, "record") + " open" : many(lagOf(s), "record") + " to go";
  if (!addsUp(s)) return ["mismatch", "bad", "The ledger does not add up.", { "": "Nothing is read or committed any more; a restart reads again what is not committed.", "What to do": "save /status and the log, restart pinstream, and please report this bug. The figures below contradict each other." }];
  if (s.brokers_silent && !s.stopping) return ["silent", "bad", `${s.brokers_silent.sentence}.`, { "": `Nothing can be read or committed, and the lag is unknown. What was read before still goes to Pinterest: ${go}. ${BY_ITSELF}.`, "What to do": "see whether the brokers run, and whether this machine reaches them." }];
  if (s.guard) return guardState(s.guard);
  if (halted.length) return haltState(halted, away, accounts);
  if (away.length && !s.stopping) return awayState(away, accounts, go);
  if (s.stopping) return ["stopping", "warn", "Stopping.", { "": `Open records are being finished: ${many(s.ledger.open, "record")}.` }];
  const still = (s.workers || []).find(w => w.silent && w.reported_seconds_ago >= STILL_SHOWN);
  if (still) return ["still", "bad", `Worker ${n(still.worker)} stands still.`, { "": `It has not reported for ${age(still.reported_seconds_ago)}. The group gives its partitions to others once its session ends; nothing is lost.`, "What to do": `look at process ${still.pid}: whether it is stopped, or the machine lacks CPU. After 30 seconds /healthz names it too.` }];
  const damaged = s.partitions.filter(p => p.unreadable_at != null);
  if (damaged.length) return ["unreadable", "bad", `${many(damaged.length, "partition")} cannot be read further: Kafka sends damaged data.`, { "": `${damaged.slice(0, 3).map(p => `${p.topic} [${p.partition}] from offset ${n(p.unreadable_at)}`).join(", ")}${damaged.length > 3 ? ", …" : ""}. pinstream keeps asking for it and reads nothing after it.`, "What to do": "if it lasts, check the brokers' disks." }];
  if (s.coordinator_silent) return ["uncoordinated", "bad", `${s.coordinator_silent.sentence}.`, { "": `Until one does, this member gets no partitions, and nothing can be committed${s.partitions.length ? `; what it reads still goes to Pinterest: ${go}` : ""}. ${BY_ITSELF}.` }];
  if (s.waiting_for_start) return ["unstarted", "warn", "Waiting for Kafka to say where to start.", { "": `${many(s.waiting_for_start, "assigned partition")} cannot be read until then, ${many(s.partitions.length, "partition")} can. pinstream keeps asking the brokers. Nothing is lost.`, "What to do": "if it lasts, check the group's coordinator and the partitions' leaders; the log has the reason (kafka_trouble)." }];
  if (!s.partitions.length) return unassignedState(s);
  if (s.slow_transform) return functionState(s.slow_transform);
  if (highest(accounts.map(a => a.throttled_for)) >= THROTTLE_SHOWN) return ["throttled", "warn", "Throttled: waiting until Pinterest takes calls again.", { "": `${BY_ITSELF}: ${go}.${wait >= 60 ? ` The oldest has waited ${age(wait)}.` : ""}` }];
  const stuck = s.stalled_for != null || (toGo(s) && s.seconds_since_progress >= 30);
  const explains = reason => !stuck || (s.oldest_open && s.oldest_open.waits_for === reason);
  const schema = s.open.schemas.find(one => one.seconds >= 30);
  if (schema && explains("schema")) return schemaState(schema, s, stuck);
  if (clockOff(s.clock) && explains("clock")) return clockState(s.clock);
  if (s.receipts_error != null) return receiptsState(s.receipts_error, go);
  if (stuck) return stuckState(s, go);
  if (s.schemas_from_disk && wait < HOUR) return ["disk", "warn", `The schema registry does not answer: ${go}.`, { "": "Only records of new schemas wait.", "What to do": SEE_REGISTRY }];
  const slow = s.destination.latency.slow;
  if (slow && wait >= 60 && wait < HOUR) return ["slow", "warn", "Pinterest answers slowly.", { Why: `${slow}. ${go} wait; the oldest has waited ${age(wait)}. Nothing is lost.` }];
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
  "The cause": g.why,
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

// Seconds that this machine's clock is behind: by Pinterest's clock, else by the records' timestamps.
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
  Why: `${whyOf(away)}. For ${age(highest(away.map(a => a.unreachable_for)))}: ${go}. ${BY_ITSELF}.`,
  "What to do": "if a proxy answers in place of Pinterest, let it pass calls to Pinterest.",
}];

const receiptsState = (why, go) => ["receipts", "bad", `Receipts cannot be written: ${go}.`, {
  Why: `${why || "the log says why (receipts_not_stored)"}. No record settles without its receipt, and sending stops before too many are missing. Nothing is lost, and pinstream continues by itself.`,
  "What to do": "see whether the receipts topic exists, and whether this user may write to it.",
}];

function stuckState(s, go) {
  const waits = s.oldest_open?.waits_in_words;
  return ["stuck", "bad", `Nothing settles: ${go}.`, {
    "": `No record was settled for ${age(s.stalled_for ?? s.seconds_since_progress)}.` + (s.key_store_fails ? ` The key store fails: ${s.key_store_trouble || "see the log"}.` : waits ? ` The oldest open event waits for ${waits}.` : ""),
    "What to do": s.key_store_fails ? "as the line above says; key_store_trouble in the log has the same." : "see the latest warnings in the log.",
  }];
}
