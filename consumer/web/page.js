// The connection to pinstream. Figures arrive on the /events stream. `tick` looks each second: while there is no stream, or
// it is silent, it asks /status. Old figures are grey and show their age.

// Seconds of silence on the stream, which sends every second, before the page asks /status
const QUIET = 7;
// Milliseconds to wait for one answer
const PATIENCE = 3000;
// Seconds before the next attempt
const AGAIN = 2;
// Seconds before /events is tried again after two failures
const STREAM_AGAIN = 30;
// Seconds over which the current rate is computed
const PACE_OVER = 10;
const HISTORY_EVERY = 10000;
// Milliseconds before a change is announced, so that a short interruption is not
const SETTLE = 1200;

// When the latest figures came, and when to ask /status and /events next, in seconds of `seconds`.
const link = { source: null, fails: 0, heard: null, asking: false, askAt: 0, streamAt: 0 };
let shown = null;
let unknown = false;
let view = "overview";
let samples = [];
let announced = "";
let announcing = 0;

const seconds = () => performance.now() / 1000;

// Announce `text` to screen readers: once for each `kind`, and only if it still holds after SETTLE.
function announce(kind, text) {
  clearTimeout(announcing);
  announcing = setTimeout(() => {
    if (kind === announced) return;
    announced = kind;
    put("announce", text);
  }, SETTLE);
}

// -- a new /status document

function receive(status) {
  link.askAt = link.source ? seconds() + QUIET : 0;
  if (status.version !== 1) return rejectDocument();
  const back = document.body.classList.contains("gone") || !shown;
  link.heard = seconds();
  shown = status;
  try {
    show();
    $("main").removeAttribute("aria-busy");
    unknown = false;
  } catch (error) {
    console.error(error);
    return rejectDocument();
  }
  showLive();
  if (back) history();
}

function rejectDocument() {
  unknown = true;
  showLost("This page does not understand the figures.", "Another version of pinstream may have started: reload the page.");
}

function show() {
  const s = shown, settled = s.ledger.read - s.ledger.open;
  if (samples.length && settled < samples[samples.length - 1][1]) samples = [];
  samples.push([seconds(), settled]);
  const [kind, words] = showState(s);
  showTiles(s, currentRate(), trend());
  for (const panel of [...PANELS.all, ...PANELS[view]]) panel(s);
  announce(kind, words);
}

// Records settled per second over the last PACE_OVER seconds; from the history until there are two samples.
function currentRate() {
  const now = seconds();
  while (samples.length > 2 && now - samples[1][0] >= PACE_OVER) samples.shift();
  if (samples.length < 2) return latestOf("settled_per_second");
  const [[from, before], [, after]] = [samples[0], samples[samples.length - 1]];
  return now - from < .9 ? latestOf("settled_per_second") : (after - before) / (now - from);
}

// The value of `name` in the last point of the history; null if there is none.
function latestOf(name) {
  return past?.steps[0]?.series[name].at(-1) ?? null;
}

// The lag five minutes ago, or as far back as the history reaches.
function trend() {
  const { at = [], lag } = past?.steps[0]?.series || {}, last = at.length - 1;
  const then = at.findIndex(t => t >= at[last] - 300);
  return then < 0 || then === last || lag[then] == null ? null : `${age(at[last] - at[then])} ago: ${n(lag[then])}`;
}

// -- connected or not

function showLive() {
  document.body.classList.remove("gone");
  $("lost").hidden = true;
  $("live").className = "on";
  put("live-text", `live, ${clock(Date.now() / 1000)}`);
}

// Show at once that the figures are old.
function showLost(title = "No connection to pinstream.", why = "The page keeps trying.") {
  document.body.classList.add("gone");
  $("live").className = "gone";
  $("lost").hidden = false;
  put("live-text", "no connection");
  document.title = "No connection – pinstream";
  $("lost").dataset.why = why;
  put("lost-title", title);
  showFiguresAge();
  if (!shown) showWaiting();
  announce("lost", `${title} ${shown ? "The figures are out of date." : ""} ${why}`);
}

function showFiguresAge() {
  const old = link.heard == null ? "There are no figures yet. " : `These figures are ${age(Math.round(seconds() - link.heard))} old. `;
  put("lost-text", old + $("lost").dataset.why);
}

function showWaiting() {
  $("state").className = "loading";
  put("state", h("h2", "No figures yet."), h("p", "They appear as soon as pinstream answers."));
}

function listen() {
  const source = link.source = new EventSource("/events");
  let spoke = false;
  link.askAt = seconds() + QUIET;
  source.addEventListener("status", event => {
    spoke = true;
    link.fails = 0;
    receive(JSON.parse(event.data));
  });
  source.onerror = () => {
    if (link.source !== source) return;
    closeStream();
    link.fails += 1;
    link.streamAt = seconds() + (link.fails < 2 ? AGAIN : STREAM_AGAIN);
    if (spoke) showLost();
    tick();
  };
}

function closeStream() {
  link.source?.close();
  link.source = null;
  link.askAt = 0;
}

// Fetch /status once and show it; throws if there are no figures.
async function ask() {
  const answer = await fetch("/status", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (answer.ok) return receive(await answer.json());
  const why = { 401: "It needs the token: reload the page.", 503: "It serves too many readers: the page keeps trying." };
  showLost(`pinstream answers without figures (HTTP ${answer.status}).`, why[answer.status]);
  throw new Error("no figures");
}

// Show how old the figures are; ask for new ones if it is time, and then for the stream if there is none.
async function tick() {
  if (document.body.classList.contains("gone")) showFiguresAge();
  else if (shown && !unknown) showTiles(shown, currentRate(), trend());
  if (link.asking || seconds() < link.askAt) return;
  const begun = seconds();
  link.asking = true;
  try {
    await ask();
    if (!link.source && seconds() >= link.streamAt) listen();
  } catch (error) {
    // If the stream has sent something since, the answer is late and the connection is not lost.
    if (!(link.heard > begun)) {
      if (error.message !== "no figures") showLost();
      closeStream();
      // Once /status answers, the stream is tried at once.
      link.fails = link.streamAt = 0;
      link.askAt = seconds() + AGAIN;
    }
  }
  link.asking = false;
}

// Keep the points in this tab: after a reload, those of an earlier process are still there.
function keep() {
  try { sessionStorage.past = JSON.stringify(past) } catch { /* the browser keeps nothing: only restarts before now are not shown */ }
}

async function history() {
  try {
    const answer = await fetch("/history", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (answer.ok) past = joined(past, await answer.json());
    keep();
  } catch { /* tick shows a lost connection */ }
  draw();
}

// -- the views

// Show the view that the address names, or the one that has the element it names.
function turn() {
  const at = $(location.hash.slice(1)), next = at?.closest(".view")?.id || view;
  view = next;
  document.body.dataset.view = view;
  for (const one of document.querySelectorAll(".view")) one.hidden = one.id !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === "#" + view) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  if (shown) show();
  draw();
  askGroup();
  if (at?.id === view) {
    scrollTo(0, 0);
    $("h-" + view).focus({ preventScroll: true });
  } else at?.scrollIntoView();
}

// Copy a command: the reader sees it selected. The clipboard API would need HTTPS.
function copy(button) {
  getSelection().selectAllChildren(button.previousSibling);
  const done = document.execCommand("copy");
  copied = done ? button.dataset.copy : null;
  put("announce", done ? "Copied." : "Selected: copy it with the keyboard.");
  setTimeout(() => { copied = null }, 3000);
  if (shown) show();
}

// Ask for the whole group; where there is no answer, the page shows none.
async function askGroup() {
  if (document.hidden || view !== "delivery") return;
  const answer = await fetch("/group").catch(() => null);
  group = answer?.ok ? await answer.json() : null;
  if (shown) showGroup();
}

// -- start

document.addEventListener("change", event => {
  if (event.target.name !== "span") return;
  span = +event.target.value;
  draw();
  if (shown) show();
});
document.addEventListener("click", event => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button);
});
$("more").addEventListener("click", () => {
  allPartitions = !allPartitions;
  if (shown) showPartitions(shown);
});
addEventListener("hashchange", turn);
addEventListener("offline", () => { closeStream(); showLost() });
document.addEventListener("visibilitychange", () => {
  if (document.hidden || link.heard == null) return;
  history();
  // The system may have stopped the page, and its connection with it.
  if (seconds() - link.heard > 1) link.askAt = 0;
  tick();
});
try { past = JSON.parse(sessionStorage.past || null) } catch { /* there is nothing to go on from */ }
watchPlots();
turn();
history();
listen();
setInterval(tick, 1000);
setInterval(askGroup, 30000);
setInterval(() => { if (!document.hidden) history() }, HISTORY_EVERY);
