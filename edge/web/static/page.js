// The page of a running loop: server-sent events in, text and bars out. Labels are foreign text: textContent only.

import { Connection } from "./connection.js";
import { Timeline, name, swatch } from "./timeline.js";

const QUIET_AFTER = 3; // seconds without a result after which what is shown is old
const PATIENCE = 5; // seconds until an image stream that shows nothing is requested again
const SETTLE = 600; // milliseconds after a change by hand until the control follows the events again
const ADDED = ["oracle", "policy", "patch"]; // what a plain classifier would not do

const $ = (id) => document.getElementById(id);
const percent = (value) => (value == null ? "–" : `${Math.round(value * 100)} %`);
const fixed = (value, digits) => (value == null ? "–" : value.toFixed(digits));
const clock = (date) => date.toLocaleTimeString([], { hour12: false });
const ENDS = { source: "The video has ended", stopped: "The run was stopped", run: "The run has ended" };
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

const timeline = new Timeline($("timeline"), $("moment"), $("legend"));
const recent = []; // the newest results, for means of their times
let report = null;
let compared = null; // the newest result that the clean model has answered, too; only some frames are
let stages = []; // of a frame, without the wait for it
let setting = 0; // changes by hand that events may not know yet
let over = null; // how the run has ended: `source`, `stopped` or `run`
let spokenAt = -Infinity;
let watchedAt = 0;

// ---- the connection

$("sign-out").addEventListener("click", async () => {
  await fetch("signout", { method: "POST" }).catch(() => null);
  location.reload();
});

async function setLimits() {
  setting += 1;
  const query = `leave_clean=${Number($("leave-clean").checked)}&min_severity=${$("min-severity").value}`;
  await fetch(`limits?${query}`, { method: "POST" }).catch(() => null);
  setTimeout(() => { setting -= 1; }, SETTLE); // then events say what is in effect
}

for (const id of ["leave-clean", "min-severity"]) $(id).addEventListener("change", setLimits);
$("min-severity").addEventListener("input", () => {
  $("least").value = fixed(Number($("min-severity").value), 1);
});

$("range").addEventListener("click", () => {
  $("range").ariaPressed = String(timeline.switchRange());
});

// A hidden page costs the device nothing.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) $("image").removeAttribute("src");
});

/** Take an event; with the first of a connection, the timeline and the images begin again. */
function receive(event, first) {
  if (first) {
    timeline.clear();
    watch();
  }
  show(event);
}

function watch() {
  watchedAt = performance.now();
  $("image").src = `stream.mjpg?${Date.now()}`;
}

/** Show the live image; after a lost stream, whose image a browser drops, a copy of the last one. */
function showImage() {
  const [image, held] = [$("image"), $("held")];
  const { naturalWidth: width, naturalHeight: height } = image;
  image.hidden = !width;
  held.hidden = width > 0 || !held.dataset.drawn;
  if (width) {
    if (held.width !== width || held.height !== height) Object.assign(held, { width, height });
    held.getContext("2d").drawImage(image, 0, 0);
    held.dataset.drawn = "yes";
  } else if (connection.connected && performance.now() - watchedAt > PATIENCE * 1e3) {
    watch();
  }
}

// ---- what is shown

function show(next) {
  if (next.stages) {
    stages = next.stages.filter((stage) => stage !== "read");
    timeline.setFamilies(next.families);
    $("sign-out").hidden = !next.sign_out;
    $("all").hidden = !next.camera;
    $("version").textContent = next.version;
    $("class-count").textContent = `${plain.format(next.classes.length)} classes`;
    $("classes").textContent = next.classes.join(", ");
  }
  const result = next.result;
  if (result && result.index !== report?.result?.index) recent.push(result);
  if (recent.length > 10) recent.shift();
  report = next;
  over = next.ended ?? null;
  timeline.add(next);
  $("bundle").textContent = next.bundle;
  $("bundle-name").textContent = next.bundle;
  $("name").textContent = next.source.name;
  $("strategy").textContent = next.strategy && `weights: ${next.strategy}`;
  const part = result?.seen ? "; the model sees the bright part of it" : "";
  $("image").alt = `The newest frame of ${next.source.name}${part}`;
  if (result) {
    showPrediction(result);
    showBelief(result.belief);
    showMix(result, next.limits);
    showTimes();
    speak(result);
  }
  showLimits(next.limits);
  showSource(next);
  showState();
  timeline.draw();
}

function showPrediction(result) {
  const patched = Object.keys(result.mix).length > 0;
  if (result.unpatched || !patched) compared = result;
  const other = compared?.unpatched;
  $("label").textContent = result.label;
  $("confidence").textContent = percent(result.confidence);
  fill($("confidence-bar"), result.confidence);
  const side = $("other-label").closest(".other");
  side.classList.toggle("calm", !(patched && other));
  $("other-label").textContent = !patched ? "same, not patched" : other ? other.label : "…";
  $("other-confidence").textContent = patched && other ? percent(other.confidence) : "";
  fill($("other-bar"), patched && other ? other.confidence : patched ? 0 : result.confidence);
  const before = result.on_original;
  $("before").hidden = !before;
  if (before) {
    $("before-label").textContent = before.label;
    $("before-confidence").textContent = percent(before.confidence);
    fill($("before-bar"), before.confidence);
  }
  $("difference").textContent = patched && other && other.label !== compared.label ? "the patch changes the answer" : "";
}

function showBelief(belief) {
  $("severity").textContent = `severity ${fixed(belief.severity, 1)} of 5`;
  const ranked = Object.entries(belief.probability).filter(([, p]) => p >= 0.005).sort((a, b) => b[1] - a[1]).slice(0, 6);
  rows($("belief"), ranked.map(([key, p]) => [key, p, percent(p)]));
}

function showMix({ mix, belief }, limits) {
  const ranked = Object.entries(mix).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  rows($("mix"), ranked.map(([key, alpha]) => [key, Math.abs(alpha), `α ${fixed(alpha, 2)}`]));
  $("no-mix").hidden = ranked.length > 0;
  const below = belief.severity < limits.min_severity;
  const why = limits.leave_clean ? "left clean by hand" : below ? `severity below ${fixed(limits.min_severity, 1)}` : "";
  $("no-mix").textContent = why ? `none: ${why}` : "none, clean weights";
}

/** Show the limits that are in effect, unless a person is changing them. */
function showLimits(limits) {
  if (setting || document.activeElement === $("min-severity") && $("min-severity").matches(":active")) return;
  $("leave-clean").checked = limits.leave_clean;
  $("min-severity").value = limits.min_severity;
  $("least").value = fixed(limits.min_severity, 1);
}

function showTimes() {
  const mean = (stage) => recent.reduce((sum, result) => sum + result.times_ms[stage], 0) / recent.length;
  const sum = (names) => names.reduce((total, stage) => total + mean(stage), 0);
  const total = sum(stages);
  $("total").textContent = `${total.toFixed(2)} ms, of which ${sum(ADDED).toFixed(2)} for oracle and patch`;
  keep($("stages"), "i", stages.length);
  keep($("stage-legend"), "li", stages.length + 1);
  [...stages, "read"].forEach((stage, index) => {
    const colour = stage === "patch" ? "patching" : stage;
    const bar = $("stages").children[index];
    if (bar) Object.assign(bar.style, { flexGrow: mean(stage) / total, background: `var(--${colour})` });
    const text = document.createElement("span");
    text.textContent = bar ? stage : "read, with the wait for the frame";
    $("stage-legend").children[index].replaceChildren(...(bar ? [swatch(colour)] : []), text, `${mean(stage).toFixed(2)} ms`);
  });
}

function showSource({ source, fps, counts, failure, sinks, events: noted, since_result_s: since, uptime_s: uptime, result }) {
  const rejected = Object.entries(counts.rejected_by_reason);
  const facts = {
    state: source.state === "reconnecting" ? "lost, retrying" : source.state,
    results: `${fixed(fps, 1)} /s`,
    "last result": since == null ? "none yet" : over ? "the end" : since < 1 ? "now" : `${fixed(since, 0)} s ago`,
    latency: result ? `${fixed(result.age_ms, 1)} ms` : "–",
    "running for": duration(uptime),
    "mix changes": plain.format(counts.mix_changes),
    received: plain.format(source.received),
    "with a result": plain.format(counts.results),
    dropped: plain.format(source.dropped),
    rejected: plain.format(rejected.reduce((sum, [, count]) => sum + count, 0)),
    reconnects: plain.format(source.reconnects),
  };
  const { seen } = result ?? {};
  if (seen) facts["model sees"] = `the bright ${seen[2] - seen[0]} × ${seen[3] - seen[1]} px`;
  keep($("facts"), "div", Object.keys(facts).length);
  Object.entries(facts).forEach(([term, value], index) => {
    const [dt, dd] = keep($("facts").children[index], ["dt", "dd"], 2);
    dt.textContent = term;
    dd.textContent = value;
  });
  const list = (entries) => entries.map(([key, count]) => `${plain.format(count)} ${name(key)}`).join(", ");
  const notes = [];
  if (rejected.length) notes.push(`rejected: ${list(rejected)}`);
  if (Object.keys(noted).length) notes.push(`events: ${list(Object.entries(noted))}`);
  if (failure) notes.push(`last failed frame: ${failure}`);
  for (const [output, sink] of Object.entries(sinks)) {
    const lost = sink.dropped + sink.failed;
    if (lost || sink.error) notes.push(`${output}: ${plain.format(lost)} lost${sink.error && `, ${sink.state}: ${sink.error}`}`);
  }
  if (source.error) notes.push(`last error: ${source.error}`);
  keep($("notes"), "li", notes.length);
  notes.forEach((note, index) => { $("notes").children[index].textContent = note; });
}

// One place decides whether what is shown is old, and says why.
function showState() {
  showImage();
  const [level, pill, text, stale] = condition();
  if (text !== $("banner").textContent) $("banner").textContent = text;
  $("banner").hidden = text === "";
  $("banner").dataset.level = level;
  $("state").textContent = pill;
  $("state").dataset.level = level;
  if (stale) document.body.dataset.stale = stale;
  else delete document.body.dataset.stale;
  const late = report?.since_result_s;
  if (stale && late != null) $("stamp").dataset.at ??= clock(new Date(Date.now() - late * 1e3));
  else delete $("stamp").dataset.at;
  const age = stale === "ended" ? "last" : "stale";
  $("stamp").textContent = $("stamp").dataset.at ? `${age} frame, ${$("stamp").dataset.at}` : "waiting for the first frame";
  for (const id of ["leave-clean", "min-severity"]) $(id).disabled = !connection.connected;
  $("save").hidden = !connection.connected || !report?.result;
  $("stamp").hidden = !stale && !$("image").hidden;
  const label = report?.result?.label;
  const old = stale === "ended" ? "ended" : "old";
  document.title = stale ? `${old}: ${label ?? "rws"}` : label ? `${label} · rws` : "rws";
}

function condition() {
  if (over && !connection.refused) return ["wait", "ended", `${ENDS[over]}. This is its last frame and its last state.`, "ended"];
  if (!connection.connected) {
    const text = connection.refused
      ? "The device asks for its token again: open the link that rws run printed."
      : "No connection to the device: it is out of reach, or the run has ended. What you see is old; trying again.";
    return report || connection.refused ? ["bad", "no connection", text, "all"] : ["wait", "connecting", "", ""];
  }
  const { source, result, since_result_s: since } = report;
  const why = source.error ? ` (${source.error})` : "";
  if (source.state === "reconnecting") {
    return ["bad", "source lost", `The source is lost and being opened again${why}. What you see is old.`, "result"];
  }
  if (source.state === "lost") return ["bad", "source lost", `The source is lost${why}. What you see is old.`, "result"];
  if (source.state === "ended") return ["wait", "ended", "The source has ended. This is its last frame.", "ended"];
  if (result === null) return ["wait", "starting", "", ""];
  if (since > QUIET_AFTER) return ["bad", "no results", "No frame is coming in. What you see is old.", "result"];
  const failing = Object.keys(report.sinks).filter((output) => report.sinks[output].state !== "up");
  const pill = `running, ${report.fps.toFixed(1)} /s`;
  if (failing.length) return ["wait", pill, `The run goes on, but an output fails and loses its frames: ${failing.join(", ")}.`, ""];
  return ["ok", pill, "", ""];
}

function speak({ label, confidence, belief }) {
  // At most one sentence in three seconds, and only if there is news: screen readers read each to its end.
  const news = `${label}; ${name(belief.type)}`;
  if (news === $("spoken").dataset.news || performance.now() - spokenAt < 3e3) return;
  spokenAt = performance.now();
  $("spoken").dataset.news = news;
  $("spoken").textContent = `${label}${confidence == null ? "" : `, ${percent(confidence)}`}; the oracle sees ${name(belief.type)}`;
}

// ---- small parts

function rows(list, items) {
  keep(list, "li", items.length);
  items.forEach(([key, share, value], index) => {
    const row = list.children[index];
    const [text, bar, number] = keep(row, ["span", "div", "b"], 3);
    row.className = key === "clean" ? "clean" : "";
    text.textContent = name(key);
    bar.className = "bar";
    bar.ariaHidden = "true";
    fill(keep(bar, "i", 1)[0], share);
    number.textContent = value;
  });
}

/** Bring a parent to `count` children, of one tag or of one tag each, and keep those that are there. */
function keep(parent, tags, count) {
  while (parent.children.length > count) parent.lastElementChild.remove();
  while (parent.children.length < count) {
    const tag = typeof tags === "string" ? tags : tags[parent.children.length];
    parent.append(document.createElement(tag));
  }
  return parent.children;
}

function fill(bar, share) {
  bar.style.width = `${Math.min(Math.max(share ?? 0, 0), 1) * 100}%`;
}

function duration(seconds) {
  const whole = Math.floor(seconds);
  const [d, h, m, s] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60, whole % 60];
  return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
}

const connection = new Connection(receive, showState);
