// The connection, and what is shown when. Figures come from /events as they change; where that fails, from /status each
// second. What is not known to be of now is shown grey, with its age: a stream that says nothing is asked after.

const QUIET = 7;            // seconds without news before a stream is asked after; it may have nothing new to say
const PATIENCE = 3000;      // milliseconds for one answer
const AGAIN = 2000;         // milliseconds before another attempt
const STREAM_AGAIN = 30000; // milliseconds before /events is tried again after two failures
const PACE_OVER = 10;       // seconds over which the rate of now is taken
const HISTORY_EVERY = 10000;
const SETTLE = 1200;        // milliseconds before something is announced: a blink of the line is not worth a word

const link = { source: null, fails: 0, streamAt: 0, timer: 0, heard: null, since: 0, checking: false };
let shown = null;
let unknown = false;
let samples = [];
let announced = "";
let announcing = 0;

const seconds = () => performance.now() / 1000;

/** Tell screen readers: once for each `kind` of news, and only if it still holds after a moment. */
function announce(kind, text) {
  clearTimeout(announcing);
  announcing = setTimeout(() => {
    if (kind === announced) return;
    announced = kind;
    put($("announce"), text);
  }, SETTLE);
}

// -- what came

function receive(status) {
  if (status.version !== 1) return misunderstood();
  const back = document.body.classList.contains("gone") || !shown;
  link.heard = seconds();
  shown = status;
  try {
    show();
    $("main").removeAttribute("aria-busy");
    unknown = false;
  } catch (error) {
    console.error(error);
    return misunderstood();
  }
  found();
  if (back) history();
}

function misunderstood() {
  unknown = true;
  lose("This page does not understand the figures.", "Another version of pinstream may have started: reload the page.");
}

function show() {
  const s = shown, settled = s.ledger.read - s.ledger.open;
  if (samples.length && settled < samples[samples.length - 1][1]) samples = [];
  samples.push([seconds(), settled]);
  const [kind, words] = showState(s);
  showTiles(s, paceNow(), trend());
  for (const panel of [showLedger, showDestination, showOldest, showPartitions, showFreshness, showDuplicates, showCoverage,
    showReasons, showLatest, showNotes, showProcess]) panel(s);
  announce(kind, words);
}

/** Records settled a second over the last ten or so; null until there are two looks. */
function paceNow() {
  const now = seconds();
  while (samples.length > 2 && now - samples[1][0] >= PACE_OVER) samples.shift();
  if (samples.length < 2) return latestOf("settled_per_second");
  const [[from, before], [, after]] = [samples[0], samples[samples.length - 1]];
  return now - from < .9 ? latestOf("settled_per_second") : (after - before) / (now - from);
}

/** What the history's last point says; null without one. */
function latestOf(name) {
  if (!past || !past.steps.length) return null;
  const list = past.steps.reduce((a, b) => a.seconds <= b.seconds ? a : b).series[name];
  return list[list.length - 1] ?? null;
}

/** What lag was five minutes ago, or as long ago as the history goes back. */
function trend() {
  if (!past || !past.steps.length) return null;
  const { at, lag } = past.steps.reduce((a, b) => a.seconds <= b.seconds ? a : b).series, last = at.length - 1;
  const then = at.findIndex(t => t >= at[last] - 300);
  return then < 0 || then === last || lag[then] == null ? null : `${age(at[last] - at[then])} ago: ${n(lag[then])}`;
}

// -- whether we hear from it

function found() {
  document.body.classList.remove("gone");
  $("lost").hidden = true;
  $("live").className = "on";
  put($("live-text"), `live, ${clock(Date.now() / 1000)}`);
}

/** Say it at once. The figures stay, grey, with their age. */
function lose(title = "No connection to pinstream.", why = "Trying again by itself.") {
  document.body.classList.add("gone");
  $("live").className = "gone";
  $("lost").hidden = false;
  put($("live-text"), "no connection");
  document.title = "No connection – pinstream";
  $("lost").dataset.why = why;
  put($("lost-title"), title);
  tellAge();
  if (!shown) showWaiting();
  announce("lost", `${title} ${shown ? "The figures are old." : ""} ${why}`);
}

function tellAge() {
  const old = link.heard == null ? "There are no figures yet. " : `These figures are ${age(Math.round(seconds() - link.heard))} old. `;
  put($("lost-text"), old + $("lost").dataset.why);
}

function showWaiting() {
  $("state").className = "loading";
  put($("state"), h("h2", null, "No figures yet."), h("p", null, "They come as soon as pinstream answers."));
}

function listen() {
  clearTimeout(link.timer);
  if (!window.EventSource) return later(poll, 0);
  const source = link.source = new EventSource("/events");
  let spoke = false;
  link.since = seconds();
  source.addEventListener("status", event => {
    spoke = true;
    link.fails = 0;
    receive(JSON.parse(event.data));
  });
  source.onerror = () => {
    if (link.source !== source) return;
    hangUp();
    link.fails += 1;
    link.streamAt = performance.now() + (link.fails < 2 ? AGAIN : STREAM_AGAIN);
    if (spoke) lose();
    poll();
  };
}

function hangUp() {
  if (link.source) link.source.close();
  link.source = null;
}

function later(what, milliseconds) {
  clearTimeout(link.timer);
  link.timer = setTimeout(what, milliseconds);
}

/** Ask for /status; true if it came. */
async function ask() {
  const answer = await fetch("/status", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (answer.ok) return receive(await answer.json());
  const why = { 401: "It asks for its token: reload the page.", 503: "It has no room for one more reader: trying again." };
  lose(`pinstream answers, and gives no figures (HTTP ${answer.status}).`, why[answer.status]);
  throw new Error("no figures");
}

/** Without a stream: ask each second, and try the stream again when its time has come. */
async function poll() {
  try {
    await ask();
    if (performance.now() >= link.streamAt) { link.fails = Math.min(link.fails, 1); return listen() }
    later(poll, 1000);
  } catch (error) {
    if (error.message !== "no figures") lose();
    link.fails = link.streamAt = 0;
    later(poll, AGAIN);
  }
}

/** A stream that has said nothing for a while: nothing new, or nobody there? */
async function check() {
  link.checking = true;
  try {
    await ask();
  } catch {
    lose();
    hangUp();
    later(poll, 0);
  }
  link.checking = false;
}

function tick() {
  if (document.body.classList.contains("gone")) return tellAge();
  if (shown && link.heard != null && !unknown) showTiles(shown, paceNow(), trend());
  if (link.source && seconds() - Math.max(link.heard ?? 0, link.since) > QUIET && !link.checking) check();
}

async function history() {
  try {
    const answer = await fetch("/history", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (answer.ok) past = await answer.json();
  } catch { /* the connection says so */ }
  draw();
}

// -- begin

document.addEventListener("change", event => {
  if (event.target.name !== "window") return;
  span = event.target.value;
  draw();
  if (shown) { showFreshness(shown); showCoverage(shown) }
});
$("more").addEventListener("click", () => {
  allPartitions = !allPartitions;
  if (shown) showPartitions(shown);
});
addEventListener("offline", () => { hangUp(); lose(); later(poll, AGAIN) });
addEventListener("online", () => { if (!link.source) later(poll, 0) });
document.addEventListener("visibilitychange", () => {
  if (document.hidden || link.heard == null) return;
  history();
  if (link.source && seconds() - link.heard > 1 && !link.checking) check();
});
showTiles({ ledger: {}, freshness: {}, partitions: [] }, null, null);
watchPlots();
history();
listen();
setInterval(tick, 1000);
setInterval(() => { if (!document.hidden) history() }, HISTORY_EVERY);
